"""How long the group level takes to collect a study, and how much memory.

    python benchmarks/collecting.py OUT [--participants 100 1000]

``OUT`` is any output dataset; the files of its first participant are linked as those of others,
in a folder that is removed. Prints, for each number of participants, seconds and peak memory of a
process that finds, reads and writes all tables; images are not read.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

from bids_fbn.bids.writing import write_table
from bids_fbn.config import Config
from bids_fbn.group.collect import collect
from bids_fbn.group.tables import LONG, long_table, wide_columns, wide_table


def multiply(out: Path, n: int, folder: Path) -> None:
    """A dataset of `n` participants, all with the files of the first one of `out`."""
    folder.mkdir()
    shutil.copy(out / "dataset_description.json", folder)
    first = min(path.name for path in out.glob("sub-*") if path.is_dir())
    files = [path for path in (out / first).rglob("func/*") if path.suffix in (".tsv", ".json")]
    for number in range(n):
        name = f"sub-{number:05d}"
        for path in files:
            target = folder / name / path.relative_to(out / first)
            target = target.with_name(target.name.replace(first, name))
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)


def measure(folder: Path) -> tuple[int, float, float]:
    """Rows of the long table, seconds, peak memory in MB."""
    start = time.perf_counter()
    config = Config.from_options(
        {"bids_dir": folder / "none", "output_dir": folder, "analysis_level": "group"}
    )
    long, collected = long_table(collect(config))
    write_table(folder / "group" / "group_desc-long_metrics.tsv", long, LONG)
    wide = wide_table(long)
    columns = wide_columns(wide, collected.quality)
    write_table(folder / "group" / "group_desc-wide_metrics.tsv", wide, columns)
    seconds = time.perf_counter() - start
    return len(long), seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--participants", type=int, nargs="+", default=[100, 1000])
    options = parser.parse_args()
    print("| participants | rows | s | peak MB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.out.parent) as name:
        for n in options.participants:
            folder = Path(name) / str(n)
            multiply(options.out, n, folder)
            # A process of its own: the peak of one must not be that of the next.
            with get_context("spawn").Pool(1) as pool:
                rows, seconds, peak = pool.apply(measure, (folder,))
            print(f"| {n} | {rows:,} | {seconds:.1f} | {peak:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
