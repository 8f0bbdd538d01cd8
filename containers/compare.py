"""Is an output dataset the expected one? Files by a committed list, numbers by another run's.

usage: compare.py OUT LIST [REFERENCE]     (--write makes LIST from OUT)
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

# Of the largest value of an image or a column: other builds of BLAS add up in another order.
TOLERANCE = 1e-4
# Each call has a folder of its own for its log.
CALL = re.compile(r"/log/[^/]+/")


def files_of(out: Path) -> list[str]:
    """Relative paths of all files, sorted, names of calls replaced."""
    paths = (path for path in out.rglob("*") if path.is_file())
    return sorted({CALL.sub("/log/*/", path.relative_to(out).as_posix()) for path in paths})


def difference(a: Path, b: Path) -> float:
    """Largest difference of images or tables, relative to the largest value; inf if unlike."""
    if a.suffix == ".tsv":
        return difference_of_tables(
            *(pd.read_csv(path, sep="\t", na_values="n/a") for path in (a, b))
        )
    x, y = (np.asarray(nib.load(path).dataobj, dtype=np.float64) for path in (a, b))
    return np.inf if x.shape != y.shape else relative(x, y)


def difference_of_tables(a: pd.DataFrame, b: pd.DataFrame) -> float:
    """The same of two tables, column by column."""
    if list(a) != list(b) or len(a) != len(b):
        return np.inf
    largest = 0.0
    for name in a.columns:
        if pd.api.types.is_numeric_dtype(a[name]) and pd.api.types.is_numeric_dtype(b[name]):
            largest = max(largest, relative(a[name].to_numpy(float), b[name].to_numpy(float)))
        elif not a[name].equals(b[name]):
            return np.inf
    return largest


def relative(x: np.ndarray, y: np.ndarray) -> float:
    if (np.isnan(x) != np.isnan(y)).any():
        return np.inf
    scale = max(np.nanmax(np.abs(x), initial=0), np.finfo(float).tiny)
    return float(np.nanmax(np.abs(x - y), initial=0) / scale)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("list", type=Path)
    parser.add_argument("reference", type=Path, nargs="?")
    parser.add_argument("--write", action="store_true", help="make the list")
    options = parser.parse_args()
    found = files_of(options.out)
    if options.write:
        options.list.write_text("".join(f"{name}\n" for name in found))
        return 0
    expected = options.list.read_text().splitlines()
    faults = [f"missing: {name}" for name in expected if name not in set(found)]
    faults += [f"not in {options.list}: {name}" for name in found if name not in set(expected)]
    largest, n_compared = 0.0, 0
    if options.reference and not faults:
        for name in found:
            if name.endswith((".nii.gz", ".tsv")):
                n_compared += 1
                here = difference(options.out / name, options.reference / name)
                largest = max(largest, here)
                if not here <= TOLERANCE:
                    faults.append(f"{name}: differs by {here:.2g} of its largest value")
    print(*faults, sep="\n", end="\n" if faults else "")
    print(f"{len(found)} files, {n_compared} compared, largest difference {largest:.1e}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
