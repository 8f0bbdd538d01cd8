"""What the charts show, put together once for the chart to explore and for the one to print."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_fbn.reports.results import ModelResults, RunResults

__all__ = ["Courses", "Motion", "Overlap", "Visit", "courses_of", "motion_of", "overlap_of"]


@dataclass(frozen=True)
class Visit:
    """An unbroken stretch of steps in one state.

    Parameters
    ----------
    state : int or None
        Place of the network in the template set; None where there was no state.
    start, end : float
        s; from half a step before the first step to half a step after the last.
    steps : int
    """

    state: int | None
    start: float
    end: float
    steps: int


@dataclass(frozen=True, eq=False)
class Overlap:
    """IoU or amplitude, and states, over time; P networks, S steps.

    Parameters
    ----------
    networks : tuple of str
    faint : ndarray (P,) of bool
        Networks that are drawn thin: weak by IoU, or never the state by amplitude.
    onset : ndarray (S,)
        s.
    presence : ndarray (S, P)
        What states are by: IoU or amplitude; NaN in steps without a window.
    measure : str
        Which of them.
    visits : tuple of Visit
        Of states, and of steps with a window but no state.
    missing : tuple of Visit
        Stretches without a window.
    threshold : float or None
        IoU from which on there is a state.
    no_state : str
        Why a run has none at all, in words.
    step_seconds : float
    """

    networks: tuple[str, ...]
    faint: np.ndarray
    onset: np.ndarray
    presence: np.ndarray
    measure: str
    visits: tuple[Visit, ...]
    missing: tuple[Visit, ...]
    threshold: float | None
    no_state: str
    step_seconds: float

    def label(self, p: int) -> str:
        """Name of a network in a legend."""
        if not self.faint[p]:
            return self.networks[p]
        return f"{self.networks[p]} ({'weak' if self.measure == 'IoU' else 'never the state'})"

    @property
    def states_seen(self) -> list[int]:
        """Networks that were a state at least once, in the order of the template set."""
        return sorted({visit.state for visit in self.visits if visit.state is not None})


@dataclass(frozen=True, eq=False)
class Courses:
    """Courses of the networks.

    Parameters
    ----------
    networks : tuple of str
    onset : ndarray (T,)
        s.
    values : ndarray (T, P)
        NaN in volumes left out.
    """

    networks: tuple[str, ...]
    onset: np.ndarray
    values: np.ndarray

    @property
    def scaled(self) -> np.ndarray:
        """Each course centred, by its standard deviation; 0 for one that does not vary."""
        scaled = np.where(np.isfinite(self.values), 0.0, np.nan)
        for p in np.flatnonzero(np.isfinite(self.values).any(axis=0)):
            course = self.values[:, p]
            if (spread := np.nanstd(course)) > 0:
                scaled[:, p] = (course - np.nanmean(course)) / spread
        return scaled


@dataclass(frozen=True, eq=False)
class Motion:
    """Framewise displacement and volumes left out.

    Parameters
    ----------
    onset : ndarray (T,)
        s, or volumes where the repetition time is not known.
    displacement : ndarray (T,)
        mm; NaN where not known.
    left_out : ndarray (T,) of bool
    reasons : tuple of str
        For each volume why it was left out, empty where it was kept.
    unit : str
        Of the onset.
    """

    onset: np.ndarray
    displacement: np.ndarray
    left_out: np.ndarray
    reasons: tuple[str, ...]
    unit: str


def overlap_of(results: ModelResults) -> Overlap:
    """What states are by, and states, of a model in a run."""
    networks = results.networks
    table, by_iou = results.presence, results.certainty is None
    onset = table.data["onset"].to_numpy(dtype=float)
    presence = table.data[list(networks)].to_numpy(dtype=float)
    presence = presence.reshape(len(onset), len(networks))
    seconds = float(table.facts.get("StrideSeconds") or 1.0)
    place = {name: index for index, name in enumerate(networks)}
    states = [place.get(name) for name in results.states.data["state"]]
    has_window = np.isfinite(presence).any(axis=1)
    weak = results.weak
    seen = {state for state in states if state is not None}
    return Overlap(
        networks=networks,
        faint=np.array(
            [weak[name] if by_iou else place[name] not in seen for name in networks], dtype=bool
        ),
        onset=onset,
        presence=presence,
        measure="IoU" if by_iou else "amplitude",
        visits=_stretches(states, has_window, onset, seconds),
        missing=_stretches([None] * len(onset), ~has_window, onset, seconds),
        threshold=results.threshold if by_iou else None,
        no_state=(
            f"no time step reached the threshold {results.threshold:g}"
            if by_iou
            else "in no time step is it certain which network is the largest"
        ),
        step_seconds=seconds,
    )


def _stretches(
    states: list[int | None], include: np.ndarray, onset: np.ndarray, seconds: float
) -> tuple[Visit, ...]:
    stretches: list[Visit] = []
    first = 0
    for step in range(1, len(states) + 1):
        if step < len(states) and (states[step], include[step]) == (states[first], include[first]):
            continue
        if include[first]:
            start, end = onset[first] - seconds / 2, onset[step - 1] + seconds / 2
            stretches.append(Visit(states[first], float(start), float(end), step - first))
        first = step
    return tuple(stretches)


def courses_of(results: ModelResults) -> Courses:
    """Courses of the networks of a model in a run."""
    table = results.table("mixing")
    values = table.data[list(results.networks)].to_numpy(dtype=float)
    frequency = float(table.facts.get("SamplingFrequency") or 1.0)
    start = float(table.facts.get("StartTime") or 0.0)
    return Courses(results.networks, start + np.arange(len(values)) / frequency, values)


def motion_of(run: RunResults) -> Motion | None:
    """Framewise displacement of a run; None where no table of volumes was written."""
    if run.outliers is None:
        return None
    data = run.outliers.data
    reasons = [name for name in data.columns if name not in ("framewise_displacement", "left_out")]
    seconds = run.repetition_time
    return Motion(
        onset=np.arange(len(data)) * (seconds or 1.0),
        displacement=data["framewise_displacement"].to_numpy(dtype=float),
        left_out=data["left_out"].to_numpy() == 1,
        reasons=tuple(
            ", ".join(name.replace("_", " ") for name in reasons if row[name] == 1)
            for _, row in data.iterrows()
        ),
        unit="s" if seconds else "volumes",
    )
