"""Simulated runs of an evaluation: their settings, and their signals, cleaned as real ones are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bids_fbn.config import SignalOptions
from bids_fbn.evaluation.truth import Truth, read_truth
from bids_fbn.signal.clean import clean_run
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals
from bids_fbn.simulate import simulate_dataset
from bids_fbn.simulation.run import Simulation

__all__ = ["SPACE", "Cell", "combine", "simulate_signals", "simulation_faults"]

SPACE = "MNI152NLin2009cAsym"
_PREFIX = "sub-01_task-rest"


@dataclass(frozen=True)
class Cell:
    """Settings of a simulation, see :func:`bids_fbn.simulate.simulate_dataset`.

    Parameters
    ----------
    dynamics : {"states", "static", "none"}
        "none": no networks.
    noise : float
    volumes : int
    dwell : float or None
        s; None without networks, where it changes nothing.
    overlap, variation : float or None
        None without networks.
    """

    dynamics: Literal["states", "static", "none"]
    noise: float
    volumes: int
    dwell: float | None
    overlap: float | None
    variation: float | None

    def __str__(self) -> str:
        words = [self.dynamics, f"noise {self.noise:g}", f"{self.volumes} volumes"]
        if self.dwell is not None:
            words.append(f"dwell {self.dwell:g} s")
        if self.overlap is not None:
            words.append(f"overlap {self.overlap:g}")
        if self.variation is not None:
            words.append(f"variation {self.variation:g}")
        return ", ".join(words)

    def arguments(self) -> dict[str, Any]:
        """For :func:`bids_fbn.simulate.simulate_dataset`."""
        given: dict[str, Any] = {
            "noise": self.noise,
            "n_volumes": self.volumes,
            "networks": self.dynamics != "none",
            "dynamics": "static" if self.dynamics == "static" else "states",
        }
        if self.dwell is not None:
            given["dwell"] = self.dwell
        if self.overlap is not None:
            given["overlap"] = self.overlap
        if self.variation is not None:
            given["variation"] = self.variation
        return given


def combine(
    noise: Sequence[float],
    volumes: Sequence[int],
    dwell: Sequence[float],
    overlap: Sequence[float],
    variation: Sequence[float],
    *,
    static: bool = False,
    noise_only: bool = False,
) -> list[Cell]:
    """All combinations, each once.

    Parameters
    ----------
    noise, volumes, dwell, overlap, variation : sequence
        Values of each setting.
    static : bool
        Each also with networks that have no states.
    noise_only : bool
        Each noise and number of volumes also without networks.

    Examples
    --------
    >>> for cell in combine([1.0], [200], [20.0, 40.0], [0.0], [0.1], noise_only=True):
    ...     print(cell)
    states, noise 1, 200 volumes, dwell 20 s, overlap 0, variation 0.1
    none, noise 1, 200 volumes
    states, noise 1, 200 volumes, dwell 40 s, overlap 0, variation 0.1
    """
    cells = []
    for a_noise, n_volumes, *of_networks in itertools.product(
        noise, volumes, dwell, overlap, variation
    ):
        cells.append(Cell("states", a_noise, n_volumes, *of_networks))
        if static:
            cells.append(Cell("static", a_noise, n_volumes, *of_networks))
        if noise_only:
            cells.append(Cell("none", a_noise, n_volumes, None, None, None))
    return list(dict.fromkeys(cells))


def simulation_faults(cells: Sequence[Cell], n_participants: int, resolution: float) -> list[str]:
    """What cannot be simulated, one line each."""
    faults = []
    for cell in cells:
        settings: dict[str, Any] = {
            "dwell": 20.0,
            "overlap": 0.0,
            "variation": 0.1,
            **cell.arguments(),
        }
        faults += Simulation(
            n_participants=n_participants,
            n_sessions=0,
            n_runs=1,
            tasks=("rest",),
            repetition_time=2.0,
            resolution=resolution,
            space=SPACE,
            motion_spikes=True,
            n_sites=1,
            n_groups=1,
            group_effect=0.0,
            seed=0,
            **settings,
        ).faults()
    return list(dict.fromkeys(faults))


def simulate_signals(
    cell: Cell, seed: int, grid: Grid, options: SignalOptions, folder: Path
) -> tuple[Signals, Truth]:
    """Simulate a run, and clean it as the app does.

    Parameters
    ----------
    cell : Cell
    seed : int
    grid : Grid
        The analysis grid.
    options : SignalOptions
        Its resolution is also that of the simulation.
    folder : Path
        Empty, or not there yet; nothing in it is needed afterwards.

    Returns
    -------
    signals : Signals
        In memory.
    truth : Truth

    Raises
    ------
    RunError
        If too few volumes are left to work with.
    """
    dataset, cleaned = folder / "data", folder / "cleaned"
    simulate_dataset(
        dataset,
        n_participants=1,
        resolution=options.resolution,
        space=SPACE,
        seed=seed,
        **cell.arguments(),
    )
    cleaned.mkdir()
    func = dataset / "sub-01" / "func"
    truth = read_truth(dataset, _PREFIX, grid)
    confounds = func / f"{_PREFIX}_desc-confounds_timeseries.tsv"
    signals = clean_run(
        next(func.glob("*_desc-preproc_bold.nii.gz")),
        truth.repetition_time,
        grid,
        options,
        cleaned,
        next(func.glob("*_desc-brain_mask.nii.gz")),
        confounds,
        confounds.with_suffix(".json"),
        name=f"{cell}, seed {seed}",
    ).signals
    return replace(signals, data=np.array(signals.data)), truth
