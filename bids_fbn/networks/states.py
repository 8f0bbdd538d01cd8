"""States and transitions.

The state of a time step is the template whose overlap with the candidate maps of that step is the
highest (Liu et al., SCAAE, section 4.4), or, by a method that is told of its networks, the network
with the largest amplitude. Steps that have no state, because no overlap reaches the threshold,
because it is not certain which network is the largest, or because there is no window, break the
chain of transitions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = [
    "NO_STATE",
    "StateRule",
    "StateSummary",
    "assign_states",
    "largest_where_certain",
    "summarize_states",
    "transition_counts",
]

NO_STATE = -1


@dataclass(frozen=True)
class StateRule:
    """When a step has a state.

    Parameters
    ----------
    threshold : float
        IoU from which on it has one.
    certainty : float
        The same for the probability that the network with the largest amplitude truly has it,
        where states are by amplitude.
    """

    threshold: float = 0.3
    certainty: float = 0.5


@dataclass(frozen=True, eq=False)
class StateSummary:
    """How a run spends its time in P states.

    Parameters
    ----------
    occupancy : ndarray (P,)
        Share of the steps that have a state; all 0 where no step has one.
    visits : ndarray (P,) of int
        Unbroken stretches.
    dwell_mean, dwell_median : ndarray (P,)
        Length of a visit, s; NaN for a state that is never visited.
    without_state : float
        Share of the steps with a window that have no state; NaN without any such step.
    switching_rate : float
        Changes of state per minute of steps that have a state; NaN where none has.
    occupancy_entropy : float
        bit.
    transition_entropy : float
        Mean entropy of the rows of the transition matrix, each weighted by how often it is left
        from; bit. NaN without any transition.
    counts, probabilities : ndarray (P, P)
        Transitions from row to column, diagonal included; probabilities by row, 0 for rows without
        a departure.
    """

    occupancy: np.ndarray
    visits: np.ndarray
    dwell_mean: np.ndarray
    dwell_median: np.ndarray
    without_state: float
    switching_rate: float
    occupancy_entropy: float
    transition_entropy: float
    counts: np.ndarray
    probabilities: np.ndarray


def assign_states(iou: np.ndarray, threshold: float = 0.3) -> np.ndarray:
    """State of each step.

    Parameters
    ----------
    iou : ndarray (S, P)
        NaN in steps without a window.
    threshold : float
        IoU from which on there is a state.

    Returns
    -------
    ndarray (S,) of int
        0 to P − 1, or ``NO_STATE``.

    Examples
    --------
    >>> assign_states(np.array([[0.1, 0.5], [0.2, 0.1], [np.nan, np.nan]]))
    array([ 1, -1, -1])
    """
    known = np.nan_to_num(iou, nan=-1.0)
    if known.shape[1] == 0:
        return np.full(len(iou), NO_STATE)
    states = known.argmax(axis=1)
    return np.where(known.max(axis=1) >= threshold, states, NO_STATE)


def largest_where_certain(
    amplitude: np.ndarray, certainty: np.ndarray, least: float
) -> np.ndarray:
    """State of each step by amplitude.

    Parameters
    ----------
    amplitude : ndarray (S, P)
        NaN in steps without a window.
    certainty : ndarray (S,)
        From :func:`~bids_fbn.networks.amplitude.certainty_of_largest`.
    least : float
        Certainty from which on there is a state.

    Returns
    -------
    ndarray (S,) of int
        0 to P − 1, or ``NO_STATE``.
    """
    # 0 is below any amplitude but that of a course that stands still.
    largest = assign_states(amplitude, 0.0)
    return np.where(np.nan_to_num(certainty, nan=-1.0) >= least, largest, NO_STATE)


def transition_counts(states: np.ndarray, n_states: int) -> np.ndarray:
    """Transitions between consecutive steps that both have a state, (P, P), row to column."""
    counts = np.zeros((n_states, n_states), dtype=int)
    before, after = states[:-1], states[1:]
    both = (before != NO_STATE) & (after != NO_STATE)
    np.add.at(counts, (before[both], after[both]), 1)
    return counts


def _entropy(shares: np.ndarray) -> np.ndarray:
    """Entropy along the last axis, bit."""
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    # Not −0 where all is in one state.
    return np.abs((shares * logs).sum(axis=-1))


def _visits(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """State and length in steps of each unbroken stretch that has a state."""
    if len(states) == 0:
        return np.zeros(0, int), np.zeros(0, int)
    edges = np.flatnonzero(np.diff(states)) + 1
    first = np.concatenate([[0], edges])
    length = np.diff(np.concatenate([first, [len(states)]]))
    has_state = states[first] != NO_STATE
    return states[first][has_state], length[has_state]


def summarize_states(
    states: np.ndarray, valid: np.ndarray, n_states: int, step_seconds: float
) -> StateSummary:
    """Occupancy, visits, dwell, switching and entropies of a sequence of states.

    Parameters
    ----------
    states : ndarray (S,) of int
        From :func:`assign_states`.
    valid : ndarray (S,) of bool
        Steps that have a window.
    n_states : int
        P.
    step_seconds : float
        From one step to the next, s.
    """
    with_state = states[states != NO_STATE]
    occupancy = np.bincount(with_state, minlength=n_states) / max(1, len(with_state))
    visited, length = _visits(states)
    dwell = [length[visited == state] * step_seconds for state in range(n_states)]
    counts = transition_counts(states, n_states)
    departures = counts.sum(axis=1, keepdims=True)
    probabilities = counts / np.maximum(departures, 1)
    changes = counts.sum() - np.trace(counts)
    minutes = len(with_state) * step_seconds / 60
    row_weights = departures[:, 0] / max(1, departures.sum())
    return StateSummary(
        occupancy=occupancy,
        visits=np.bincount(visited, minlength=n_states),
        dwell_mean=np.array([d.mean() if len(d) else np.nan for d in dwell]),
        dwell_median=np.array([np.median(d) if len(d) else np.nan for d in dwell]),
        without_state=float(np.mean(states[valid] == NO_STATE)) if valid.any() else np.nan,
        switching_rate=float(changes / minutes) if minutes else np.nan,
        occupancy_entropy=float(_entropy(occupancy)) if len(with_state) else np.nan,
        transition_entropy=(
            float(row_weights @ _entropy(probabilities)) if departures.sum() else np.nan
        ),
        counts=counts,
        probabilities=probabilities,
    )
