"""One simulated run: networks, head and noise put together, in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from bids_fbn.simulation.cohort import GROUPS, GroupEffect, Site
from bids_fbn.simulation.confounds import confounds_table
from bids_fbn.simulation.networks import (
    HRF_LENGTH,
    NO_NETWORK,
    bold_courses,
    neural_activity,
    second_networks,
    state_sequence,
    static_courses,
    strongest_network,
)
from bids_fbn.simulation.noise import (
    Head,
    head_motion,
    motion_signal,
    nuisance_signal,
    saturation,
)

__all__ = ["EFFECT", "Dynamics", "SimulatedRun", "Simulation", "simulate_run"]

Dynamics = Literal["states", "static"]

EFFECT = 2.0  # percent signal change at the peak of a map; 1 to 2 % is usual at 3 T
_NEURAL_STEP = 0.1  # s, at most
_NON_STEADY_EXCESS = 0.005
_N_REFERENCES = 20  # runs with states whose spectra static courses get
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
    dynamics: Dynamics
    networks: bool
    overlap: float
    variation: float
    n_sites: int
    n_groups: int
    group_effect: float
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
            (
                self.dynamics in get_args(Dynamics),
                "--dynamics: one of " + ", ".join(get_args(Dynamics)),
            ),
            (0 <= self.overlap <= 1, "--overlap: from 0 to 1"),
            (0 <= self.variation <= 1, "--variation: from 0 to 1"),
            (self.n_sites >= 1, "--sites: at least 1"),
            (1 <= self.n_groups <= len(GROUPS), f"--groups: 1 or {len(GROUPS)}"),
            (0 <= self.group_effect <= 1, "--group-effect: from 0 to 1"),
            (
                self.group_effect == 0
                or (self.n_groups > 1 and self.dynamics == "states" and self.networks),
                "--group-effect: is on states, and needs networks with states and --groups 2",
            ),
            (self.seed >= 0, "--seed: 0 or more"),
        )
        faults = [fault for good, fault in limits if not good]
        at_least = self.n_sites * self.n_groups
        if not faults and self.n_participants < at_least:
            faults.append(f"--participants: at least {at_least}, one of each site and group")
        return faults


@dataclass(frozen=True, eq=False)
class SimulatedRun:
    """One run and the truth about it; K networks.

    Parameters
    ----------
    volumes : ndarray (X, Y, Z, T) of int16
    courses : ndarray (T, K)
        BOLD course of each network; 1 is steady activity.
    neural_states, second_states, bold_states : ndarray (T,) of int
        Index of the network that is on at the onset of a volume, of the one that is on beside it,
        and of the one that is strongest in the BOLD signal; −1 where there is none. In static data
        there are no states, and all are −1.
    confounds : DataFrame of T rows
    confounds_metadata : dict
        Its sidecar.
    """

    volumes: np.ndarray
    courses: np.ndarray
    neural_states: np.ndarray
    second_states: np.ndarray
    bold_states: np.ndarray
    confounds: pd.DataFrame
    confounds_metadata: dict[str, dict[str, Any]]


def simulate_run(
    rng: np.random.Generator,
    head: Head,
    maps: np.ndarray,
    settings: Simulation,
    site: Site,
    effect: GroupEffect | None = None,
) -> SimulatedRun:
    """One run.

    Whatever the networks do, the same generator gives the same motion and noise; only a group
    effect changes them.

    Parameters
    ----------
    rng : Generator
    head : Head
    maps : ndarray (K, V)
        The participant's networks, peak 1.
    settings : Simulation
    site : Site
    effect : GroupEffect, optional
        Of a patient.
    """
    grid, n_volumes = head.grid, settings.n_volumes
    courses, neural, second = _network_courses(rng, settings, n_volumes, len(maps), effect)
    bold = strongest_network(courses)
    if settings.dynamics == "static":
        # Numbers of their own: the noise is that of the run with states.
        (apart,) = rng.spawn(1)
        references = [
            _network_courses(apart, settings, 2 * n_volumes, len(maps), None)[0]
            for _ in range(_N_REFERENCES)
        ]
        courses = static_courses(apart, references, n_volumes)
    if not settings.networks:
        courses = np.zeros_like(courses)
    if settings.dynamics == "static" or not settings.networks:
        neural, second, bold = (np.full(n_volumes, NO_NETWORK) for _ in range(3))

    motion = head_motion(
        rng, n_volumes, settings.repetition_time, settings.noise, settings.motion_spikes
    )
    from_motion = motion_signal(head, motion)
    brightness = saturation(n_volumes, settings.repetition_time, settings.noise)
    volumes = np.empty((*grid.shape, n_volumes), dtype=np.int16, order="F")
    for at, nuisance in nuisance_signal(
        rng, head, n_volumes, settings.repetition_time, settings.noise, site
    ):
        percent = EFFECT * (courses[at] @ maps) + from_motion[at] + nuisance
        brain = head.baseline * (1 + percent / 100) * brightness[at, None]
        volumes[..., at] = _digitised(site.gain * grid.scatter(brain, fill=head.background))
    return SimulatedRun(
        volumes,
        courses,
        neural,
        second,
        bold,
        *confounds_table(
            grid.gather(volumes).astype(np.float32),
            head,
            maps.max(axis=0) < _TRUTH_IN_TISSUE,
            motion,
            settings.repetition_time,
            _n_non_steady(settings),
        ),
    )


def _network_courses(
    rng: np.random.Generator,
    settings: Simulation,
    n_volumes: int,
    n_networks: int,
    effect: GroupEffect | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """BOLD courses (T, K) of networks with states, and the networks that are on, twice (T,)."""
    oversampling = int(np.ceil(settings.repetition_time / _NEURAL_STEP))
    step = settings.repetition_time / oversampling
    # Activity starts one response before the run, so that the first volume is like any other.
    n_before = int(np.ceil(HRF_LENGTH / settings.repetition_time))
    n_steps = (n_before + n_volumes) * oversampling
    states = state_sequence(rng, n_steps, step, n_networks, settings.dwell, effect)
    second = second_networks(rng.spawn(1)[0], states, n_networks, settings.overlap)
    activity = neural_activity(rng, states, step, n_networks, second)
    courses = bold_courses(activity, settings.repetition_time, oversampling)[n_before:]
    onsets = slice(n_before * oversampling, None, oversampling)
    return courses, states[onsets], second[onsets]


def _digitised(volumes: np.ndarray) -> np.ndarray:
    return np.rint(volumes).clip(0, np.iinfo(np.int16).max).astype(np.int16)


def _n_non_steady(settings: Simulation) -> int:
    if settings.noise == 0:
        return 0
    excess = saturation(settings.n_volumes, settings.repetition_time, 1.0) - 1
    return int((excess > _NON_STEADY_EXCESS).sum())
