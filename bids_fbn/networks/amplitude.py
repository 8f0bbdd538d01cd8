"""How strong networks are in each window, and how well that is known.

For methods that are told of their networks: their maps overlap with the templates whatever the
brain does, so what comes and goes is not the overlap, it is the size.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from bids_fbn.networks.courses import centred_courses, chessboard
from bids_fbn.signal.signals import Signals
from bids_fbn.signal.windows import Steps

__all__ = ["certainty_of_largest", "window_amplitudes"]

# What two halves of the voxels do not differ by, since maps are off in both: chosen on simulated
# participants that the table of docs/udr.md has not.
_COMMON = 1.15
_LEAST_SD = 1e-6
# Where the distribution of the largest amplitude is looked at, in its sd.
_POINTS = np.linspace(-5, 5, 41)


def window_amplitudes(
    signals: Signals, maps: np.ndarray, steps: Steps
) -> tuple[np.ndarray, np.ndarray]:
    """Root mean square of each network's course in each window, and the sd of its error.

    Courses are least squares of the volumes on all maps at once, as in dual regression; their
    standard deviation over a run is the amplitude of a network there (Nickerson et al. 2017,
    Front Neurosci 11). A window's is about the mean of the *run*: about its own mean, a network
    that is on throughout a window would have none. The error of courses is half of what those
    from two halves of the voxels, in blocks like a chessboard, differ by. In a window of T
    volumes it changes the root mean square by about its product with the course: by
    sd √(1 + 2 Σ (1 − l/T) r(l) q(l)) / √T, with the autocorrelations r of the course and q of
    its error.

    Parameters
    ----------
    signals : Signals
        T' kept volumes.
    maps : ndarray (K, V)
    steps : Steps
        S steps.

    Returns
    -------
    amplitude : ndarray (S, K)
        In standard deviations of the course over the run: 1 is as over the whole run. NaN in
        steps without a window.
    sd : ndarray (K,)
        Of the error of any of them.
    """
    covered = signals.covered
    volumes = np.asarray(signals.data)[:, covered].astype(np.float64)
    own = np.asarray(maps, dtype=np.float64)[:, covered]
    first = chessboard(signals.grid.coordinates[covered])
    courses = centred_courses(volumes, own)
    error = (
        centred_courses(volumes[:, first], own[:, first])
        - centred_courses(volumes[:, ~first], own[:, ~first])
    ) / 2
    size = courses.std(axis=0)
    size[size == 0] = 1
    courses, error = courses / size, error / size
    amplitude = np.full((len(steps), len(own)), np.nan)
    for step in np.flatnonzero(steps.valid):
        start = steps.start[step]
        amplitude[step] = np.sqrt((courses[start : start + steps.window] ** 2).mean(axis=0))
    lags = np.arange(1, min(steps.window, len(courses)))
    shared = _autocorrelation(courses, lags) * _autocorrelation(error, lags)
    spread = 1 + 2 * (1 - lags / steps.window) @ shared
    variance = error.var(axis=0) / steps.window * np.maximum(spread, 1)
    return amplitude, _COMMON * np.sqrt(variance)


def _autocorrelation(series: np.ndarray, lags: np.ndarray) -> np.ndarray:
    """Of series (T, K) without a mean, (lags, K); 0 of one that does not vary."""
    power = np.maximum((series**2).sum(axis=0), np.finfo(float).tiny)
    products = [(series[lag:] * series[:-lag]).sum(axis=0) for lag in lags]
    return np.array(products).reshape(len(lags), series.shape[1]) / power


def certainty_of_largest(amplitude: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Probability that the network with the largest amplitude truly has it.

    Parameters
    ----------
    amplitude : ndarray (S, P)
        NaN for networks without one, and in steps without a window.
    sd : ndarray (P,)
        Of their normal errors.

    Returns
    -------
    ndarray (S,)
        NaN where there is no amplitude.

    Examples
    --------
    >>> certainty_of_largest(np.array([[1.0, 1.0], [1.2, 1.0]]), np.array([0.1, 0.1])).round(2)
    array([0.5 , 0.92])
    """
    certainty = np.full(len(amplitude), np.nan)
    known = np.isfinite(amplitude)
    rows = np.flatnonzero(known.any(axis=1))
    if not len(rows):
        return certainty
    values = np.where(known, amplitude, -np.inf)[rows]
    sd = np.maximum(np.nan_to_num(sd, nan=_LEAST_SD), _LEAST_SD)
    largest = values.argmax(axis=1)
    top = values[np.arange(len(rows)), largest]
    drawn = top[:, None] + sd[largest][:, None] * _POINTS
    below = norm.cdf((drawn[:, :, None] - values[:, None, :]) / sd)
    below[np.arange(len(rows)), :, largest] = 1
    weights = norm.pdf(_POINTS)
    certainty[rows] = below.prod(axis=2) @ (weights / weights.sum())
    return certainty
