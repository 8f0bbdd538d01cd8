"""One simulated run: networks, head and noise put together, in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bids_fbn.simulation.confounds import confounds_table
from bids_fbn.simulation.networks import (
    HRF_LENGTH,
    bold_courses,
    neural_activity,
    state_sequence,
    strongest_network,
)
from bids_fbn.simulation.noise import (
    Head,
    head_motion,
    motion_signal,
    nuisance_signal,
    saturation,
)

__all__ = ["EFFECT", "SimulatedRun", "Simulation", "simulate_run"]

EFFECT = 2.0  # percent signal change at the peak of a map; 1 to 2 % is usual at 3 T
_NEURAL_STEP = 0.1  # s, at most
_NON_STEADY_EXCESS = 0.005
_TRUTH_IN_TISSUE = 0.05  # tissue signals are taken where every map is below this


@dataclass(frozen=True)
class Simulation:
    """The settings of one dataset; :func:`bids_fbn.simulate.simulate_dataset` describes them."""

    n_participants: int
    n_sessions: int
    n_runs: int
    tasks: tuple[str, ...]
    n_volumes: int
    repetition_time: float
    resolution: float
    space: str
    noise: float
    dwell: float
    motion_spikes: bool
    seed: int

    def faults(self) -> list[str]:
        """What cannot be simulated, one line each."""
        limits = (
            (self.n_participants >= 1, "--participants: at least 1"),
            (self.n_sessions >= 0, "--sessions: 0 (no session level) or more"),
            (self.n_runs >= 1, "--runs: at least 1"),
            (bool(self.tasks), "--tasks: name at least one task"),
            (
                all(label.isascii() and label.isalnum() for label in (*self.tasks, self.space)),
                "--tasks, --space: letters and digits only",
            ),
            (len(set(self.tasks)) == len(self.tasks), "--tasks: name each task once"),
            (self.n_volumes >= 20, "--volumes: at least 20"),
            (0.2 <= self.repetition_time <= 10, "--tr: from 0.2 to 10 s"),
            (1 <= self.resolution <= 12, "--resolution: from 1 to 12 mm"),
            (0 <= self.noise <= 10, "--noise: from 0 to 10"),
            (self.dwell >= 2, "--dwell: at least 2 s"),
            (self.seed >= 0, "--seed: 0 or more"),
        )
        return [fault for good, fault in limits if not good]


@dataclass(frozen=True, eq=False)
class SimulatedRun:
    """One run and the truth about it; K networks.

    Parameters
    ----------
    volumes : ndarray (X, Y, Z, T) of int16
    courses : ndarray (T, K)
        BOLD course of each network; 1 is steady activity.
    neural_states, bold_states : ndarray (T,) of int
        Index of the network that is on at the onset of a volume, and of the one that is strongest
        in its BOLD signal; −1 where there is none.
    confounds : DataFrame of T rows
    confounds_metadata : dict
        Its sidecar.
    """

    volumes: np.ndarray
    courses: np.ndarray
    neural_states: np.ndarray
    bold_states: np.ndarray
    confounds: pd.DataFrame
    confounds_metadata: dict[str, dict[str, Any]]


def simulate_run(
    rng: np.random.Generator, head: Head, maps: np.ndarray, settings: Simulation
) -> SimulatedRun:
    """One run.

    Parameters
    ----------
    rng : Generator
    head : Head
    maps : ndarray (K, V)
        The participant's networks, peak 1.
    settings : Simulation
    """
    grid, n_volumes = head.grid, settings.n_volumes
    oversampling = int(np.ceil(settings.repetition_time / _NEURAL_STEP))
    step = settings.repetition_time / oversampling
    # Activity starts one response before the run, so that the first volume is like any other.
    n_before = int(np.ceil(HRF_LENGTH / settings.repetition_time))
    n_steps = (n_before + n_volumes) * oversampling
    states = state_sequence(rng, n_steps, step, len(maps), settings.dwell)
    activity = neural_activity(rng, states, step, len(maps))
    courses = bold_courses(activity, settings.repetition_time, oversampling)[n_before:]

    motion = head_motion(
        rng, n_volumes, settings.repetition_time, settings.noise, settings.motion_spikes
    )
    from_motion = motion_signal(head, motion)
    brightness = saturation(n_volumes, settings.repetition_time, settings.noise)
    volumes = np.empty((*grid.shape, n_volumes), dtype=np.int16, order="F")
    for at, nuisance in nuisance_signal(
        rng, head, n_volumes, settings.repetition_time, settings.noise
    ):
        percent = EFFECT * (courses[at] @ maps) + from_motion[at] + nuisance
        brain = head.baseline * (1 + percent / 100) * brightness[at, None]
        volumes[..., at] = _digitised(grid.scatter(brain, fill=head.background))
    return SimulatedRun(
        volumes,
        courses,
        states[n_before * oversampling :: oversampling],
        strongest_network(courses),
        *confounds_table(
            grid.gather(volumes).astype(np.float32),
            head,
            maps.max(axis=0) < _TRUTH_IN_TISSUE,
            motion,
            settings.repetition_time,
            _n_non_steady(settings),
        ),
    )


def _digitised(volumes: np.ndarray) -> np.ndarray:
    return np.rint(volumes).clip(0, np.iinfo(np.int16).max).astype(np.int16)


def _n_non_steady(settings: Simulation) -> int:
    if settings.noise == 0:
        return 0
    excess = saturation(settings.n_volumes, settings.repetition_time, 1.0) - 1
    return int((excess > _NON_STEADY_EXCESS).sum())
