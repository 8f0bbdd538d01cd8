"""What more than one benchmark needs."""

from __future__ import annotations

import shutil
from pathlib import Path

from bids_fbn.bids.discovery import discover
from bids_fbn.config import Config
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals
from bids_fbn.signal.standard import analysis_grid
from bids_fbn.stages import clean

__all__ = ["cleaned"]


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
