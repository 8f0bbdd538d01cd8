"""Cleaned time series of one run, and which volumes of the run they are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bids_fbn.signal.grid import Grid

__all__ = ["Signals"]


@dataclass(frozen=True, eq=False)
class Signals:
    """Cleaned signals of one run on the analysis grid.

    Parameters
    ----------
    data : ndarray (T, V) of float32
        z-scored over the kept volumes; memory-mapped when read from a file. Voxels that the run
        does not cover are 0.
    grid : Grid
        V voxels.
    repetition_time : float
        Seconds.
    kept : ndarray (T,) of int
        Index in the original run of each row of `data`, ascending.
    n_volumes : int
        Volumes in the original run.
    covered : ndarray (V,) of bool
        Voxels in which the run has signal.
    name : str
        Of the run, for messages.
    """

    data: np.ndarray
    grid: Grid
    repetition_time: float
    kept: np.ndarray
    n_volumes: int
    covered: np.ndarray
    name: str = ""

    @cached_property
    def n_kept(self) -> int:
        """T, the number of volumes that were kept."""
        return len(self.kept)

    def save(self, folder: Path) -> None:
        """Write all but `data` beside the ``data.npy`` that the cleaning wrote."""
        self.grid.save(folder / "grid.npz")
        np.savez(folder / "volumes.npz", kept=self.kept, covered=self.covered)
        (folder / "signals.json").write_text(
            json.dumps(
                {
                    "repetition_time": self.repetition_time,
                    "n_volumes": self.n_volumes,
                    "name": self.name,
                }
            )
        )

    @classmethod
    def load(cls, folder: Path) -> Signals:
        """Read what :meth:`save` wrote; `data` stays on disk until it is touched."""
        facts = json.loads((folder / "signals.json").read_text())
        with np.load(folder / "volumes.npz", allow_pickle=False) as volumes:
            kept, covered = volumes["kept"], volumes["covered"]
        return cls(
            data=np.load(folder / "data.npy", mmap_mode="r"),
            grid=Grid.load(folder / "grid.npz"),
            repetition_time=facts["repetition_time"],
            kept=kept,
            n_volumes=facts["n_volumes"],
            covered=covered,
            name=facts["name"],
        )
