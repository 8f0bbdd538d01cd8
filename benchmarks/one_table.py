"""One table of all methods, from what other benchmarks have left: nothing is computed.

    python -m bids_fbn.evaluate OUT --noise 0.5 1 2 …
    python benchmarks/methods.py DATASET --rows rest.tsv …
    python benchmarks/one_table.py OUT/evaluation.tsv rest.tsv …

Each table is a dataset; of an evaluation each combination of its settings is one. Tables of the
same name (``--names``) are one dataset. A cell has the means over the runs of each dataset, in
their order, and – where there is none. What the columns are is said in ``methods.py``; networks
are those at a corrected p < 0.05 by all nulls, of an evaluation only those that are on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bids_fbn.errors import InputError
from bids_fbn.evaluation.table import CELL
from bids_fbn.nulls.pvalues import ALPHA

# Heading, and how a mean is written.
MEASURES = {
    "best_of_all": ("best of all", "{:.2f}"),
    "equal_budget": ("equal budget", "{:.2f}"),
    "networks": ("networks beyond chance", "{:.1f}"),
    "held_out": ("held out", "{:.2f}"),
    "changes": ("runs that change beyond chance, %", "{:.0f}"),
    "seconds": ("seconds", "{:.1f}"),
}
NOTHING = "–"


def of_evaluation(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``bids_fbn.evaluate``, in the names of this table."""
    varied = [axis for axis in CELL if axis == "noise" or len(rows[axis].unique()) > 1]
    cells = [[f"{axis} {value}" for value in rows[axis]] for axis in varied]
    return pd.DataFrame(
        {
            "dataset": [", ".join(["simulated", *cell]) for cell in zip(*cells, strict=True)],
            "method": rows["model"],
            "best_of_all": rows["iou_best_of_all"],
            "equal_budget": rows["iou_other_half"],
            "networks": rows["networks_found"],
            "held_out": rows["held_out_variance"],
            "changes": 100 * (rows["dynamics_p"] < ALPHA).where(rows["dynamics_p"].notna()),
            "seconds": rows["seconds"],
        }
    )


def of_methods(rows: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Rows of ``methods.py``, in the names of this table."""
    return pd.DataFrame(
        {
            "dataset": dataset,
            "method": rows["method"],
            "best_of_all": rows["best_of_all"],
            "equal_budget": rows["equal_budget"],
            "networks": rows["beyond"],
            "held_out": rows["held_out"],
            "changes": 100 * rows["dynamics"].notna().where(rows["dynamics_tested"].astype(bool)),
            "seconds": rows["seconds"],
        }
    )


def read(path: Path, name: str) -> pd.DataFrame:
    """Rows of one table.

    Raises
    ------
    InputError
        If it is of neither command.
    """
    rows = pd.read_csv(path, sep="\t")
    if "iou_best_of_all" in rows:
        return of_evaluation(rows)
    if "equal_budget" in rows:
        return of_methods(rows, name)
    raise InputError(
        f"{path}: no table of bids_fbn.evaluate (evaluation.tsv) or of methods.py --rows"
    )


def table(rows: pd.DataFrame) -> str:
    """Markdown, a row for each method in the order in which they come."""
    datasets = rows["dataset"].unique()
    means = rows.groupby(["method", "dataset"], sort=False)[list(MEASURES)].mean()
    lines = [
        "Datasets: " + " / ".join(datasets),
        "",
        "| method | " + " | ".join(heading for heading, _ in MEASURES.values()) + " |",
        "|---" * (len(MEASURES) + 1) + "|",
    ]
    for method in rows["method"].unique():
        of_method = means.loc[method].reindex(datasets)
        cells = [cell(of_method[measure], words) for measure, (_, words) in MEASURES.items()]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(means: pd.Series, words: str) -> str:
    """One measure of one method, of all datasets."""
    if means.isna().all():
        return NOTHING
    return " / ".join(NOTHING if np.isnan(mean) else words.format(mean) for mean in means)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", type=Path)
    parser.add_argument("--names", nargs="+", help="of the tables (their files')")
    options = parser.parse_args(arguments)
    names = options.names or [path.stem for path in options.tables]
    if len(names) != len(options.tables):
        parser.error(f"--names has {len(names)} for {len(options.tables)} tables")
    try:
        rows = [read(path, name) for path, name in zip(options.tables, names, strict=True)]
    except (OSError, InputError) as error:
        parser.error(str(error))
    print(table(pd.concat(rows, ignore_index=True)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
