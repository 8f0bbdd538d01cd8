"""What more than one benchmark needs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd

from bids_fbn.bids.discovery import discover
from bids_fbn.bids.writing import write_text
from bids_fbn.config import Config
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals
from bids_fbn.signal.standard import analysis_grid
from bids_fbn.stages import clean

__all__ = ["cleaned", "processes", "read_rows", "write_rows"]


def cleaned(
    bids_dir: Path,
    nuisance: str,
    resolution: float,
    work: Path,
    grid: Grid | None = None,
    participants: tuple[str, ...] = (),
) -> list[Signals]:
    """Signals of every run of a dataset, each in a folder of its name below `work`.

    Events of a task lie beside them, as ``events.tsv``.
    """
    config = Config.from_options(
        {
            "bids_dir": bids_dir,
            "output_dir": work / "unused",
            "nuisance": (nuisance,),
            "resolution": resolution,
            "participant_label": participants,
            "min_time": 0,
        }
    )
    signals = []
    for run in discover(config).runs:
        grid = grid or analysis_grid(run.space, resolution)
        folder = work / run.prefix
        folder.mkdir()
        clean(run, config, grid, folder, minimum_volumes=2)
        if run.events is not None:
            shutil.copyfile(run.events, folder / "events.tsv")
        signals.append(Signals.load(folder, grid))
    return signals


@contextmanager
def processes(n: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes; where one job fails, those that have not begun are not begun."""
    pool = ProcessPoolExecutor(n, get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def read_rows(path: Path | None) -> list[dict[str, Any]]:
    """Rows that an earlier call left in a table; none where there is no table."""
    if path is None or not path.is_file():
        return []
    return pd.read_csv(path, sep="\t").to_dict("records")


def write_rows(path: Path | None, rows: Sequence[dict[str, Any]]) -> None:
    """Write a table whole, so that a call that is killed meanwhile leaves the one before."""
    if path is not None:
        write_text(path, pd.DataFrame(rows).to_csv(sep="\t", index=False, na_rep="n/a"))
