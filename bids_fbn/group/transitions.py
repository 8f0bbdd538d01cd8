"""Means over participants with bootstrap intervals: transitions, and any other metric."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["GroupMean", "bootstrap_mean", "group_transitions"]

_INTERVAL = (2.5, 97.5)  # percentiles: 95 %
_FEWEST = 2  # participants with an interval
_RESAMPLES_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class GroupMean:
    """A mean over participants; all arrays have the shape of one participant's values.

    Parameters
    ----------
    mean : ndarray
        NaN where no participant has a value.
    ci_low, ci_high : ndarray
        95 % interval; NaN with fewer than two participants.
    n : ndarray of int
        Participants that have a value.
    """

    mean: np.ndarray
    ci_low: np.ndarray
    ci_high: np.ndarray
    n: np.ndarray


def bootstrap_mean(values: np.ndarray, n_bootstrap: int = 2000, seed: int = 0) -> GroupMean:
    """Mean of each metric over the participants that have it, with a percentile interval.

    Participants are drawn with replacement, all metrics of one together (Efron & Tibshirani 1993,
    An introduction to the bootstrap, chapter 13). With ten participants or so such an interval
    is a little too narrow.

    Parameters
    ----------
    values : ndarray (n, …)
        NaN where a participant has no value.
    n_bootstrap : int
    seed : int
    """
    shape = values.shape[1:]
    flat = np.asarray(values, dtype=float).reshape(len(values), math.prod(shape))
    known = np.isfinite(flat)
    n = known.sum(axis=0)
    filled, counted = np.where(known, flat, 0), known.astype(float)
    mean = np.divide(filled.sum(axis=0), n, out=np.full(n.shape, np.nan), where=n > 0)

    rng = np.random.default_rng(seed)
    low, high = np.full(n.shape, np.nan), np.full(n.shape, np.nan)
    enough = n >= _FEWEST
    if enough.any():
        chances = np.full(len(values), 1 / len(values))
        resampled = np.empty((n_bootstrap, int(enough.sum())))
        for first in range(0, n_bootstrap, _RESAMPLES_AT_ONCE):
            n_resamples = min(_RESAMPLES_AT_ONCE, n_bootstrap - first)
            times_drawn = rng.multinomial(len(values), chances, size=n_resamples).astype(float)
            drawn = times_drawn @ counted[:, enough]
            # A resample can miss all who have the metric: it says nothing about it.
            resampled[first : first + n_resamples] = np.divide(
                times_drawn @ filled[:, enough],
                drawn,
                out=np.full(drawn.shape, np.nan),
                where=drawn > 0,
            )
        low[enough], high[enough] = np.nanpercentile(resampled, _INTERVAL, axis=0)
    return GroupMean(*(result.reshape(shape) for result in (mean, low, high, n)))


def group_transitions(
    probabilities: np.ndarray, counts: np.ndarray, n_bootstrap: int = 2000, seed: int = 0
) -> GroupMean:
    """Mean transition probabilities, each row over the participants that were in its state.

    The diagonal, staying, is part of the probabilities, as in
    :class:`bids_fbn.networks.states.StateSummary`; each row of the mean adds up to 1. A
    participant weighs the same however long the run. A row of few departures is biased by a
    little: it tells too little of staying.

    Parameters
    ----------
    probabilities : ndarray (n, P, P)
        By row, all 0 in rows without a departure.
    counts : ndarray (n, P, P)
        Transitions that these are made of, diagonal included.
    n_bootstrap : int
    seed : int

    Returns
    -------
    GroupMean
        Of arrays (P, P); `n` is the same along a row. Rows that nobody departed from are NaN.
    """
    departed = np.asarray(counts).sum(axis=2, keepdims=True) > 0
    return bootstrap_mean(np.where(departed, probabilities, np.nan), n_bootstrap, seed)
