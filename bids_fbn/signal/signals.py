"""Cleaned time series of one run, and which volumes of the run they are."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from bids_fbn.signal.grid import Grid

__all__ = ["Signals", "StoredMatrix"]


class StoredMatrix:
    """A matrix in an ``.npy`` file, indexed like an array.

    It is mapped only while it is read. A mapping holds a file open, and what was read through it
    stays in memory: a study has more runs than a process may open files, or than memory holds.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        mapped = self._mapped()
        self.shape: tuple[int, ...] = mapped.shape
        self.dtype = mapped.dtype
        self.nbytes: int = mapped.nbytes

    def _mapped(self) -> np.ndarray:
        matrix: np.ndarray = np.load(self._path, mmap_mode="r")
        return matrix

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.array(self._mapped()[key])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._mapped(), dtype=dtype)


@dataclass(frozen=True, eq=False)
class Signals:
    """Cleaned signals of one run on the analysis grid.

    Parameters
    ----------
    data : ndarray or StoredMatrix (T, V) of float32
        z-scored over the kept volumes; stays in its file when it was loaded. Voxels that the run
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

    data: np.ndarray | StoredMatrix
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

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows of `data`, (stop − start, V), in memory."""
        return np.asarray(self.data[start:stop])

    def stretch(self, rows: slice) -> Self:
        """Some of the kept volumes, as a run of its own."""
        return replace(
            self,
            data=np.asarray(self.data)[rows],
            kept=self.kept[rows],
            name=f"{self.name}, volumes {rows.start + 1} to {rows.stop}",
        )

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
    def load(cls, folder: Path, grid: Grid | None = None) -> Signals:
        """Read what :meth:`save` wrote; `data` stays on disk until it is touched.

        Parameters
        ----------
        folder : Path
        grid : Grid, optional
            Shared by many runs, to hold it once; ignored where the run's own is another.
        """
        own = Grid.load(folder / "grid.npz")
        if grid is not None and grid.fingerprint == own.fingerprint:
            own = grid
        facts = json.loads((folder / "signals.json").read_text())
        with np.load(folder / "volumes.npz", allow_pickle=False) as volumes:
            kept, covered = volumes["kept"], volumes["covered"]
        return cls(
            data=StoredMatrix(folder / "data.npy"),
            grid=own,
            repetition_time=facts["repetition_time"],
            kept=kept,
            n_volumes=facts["n_volumes"],
            covered=covered,
            name=facts["name"],
        )
