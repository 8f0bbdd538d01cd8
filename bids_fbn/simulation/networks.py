"""Ten networks that take turns: the signal of :mod:`bids_fbn.simulate`.

Activity is high and fluctuates in the network that is on, and near zero in the others; convolved
with SPM's haemodynamic response it becomes the networks' BOLD courses. Where networks overlap,
a second one is on beside the first. Static courses have the spectra and covariances of courses
with states, and no states.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.signal import lfilter

from bids_fbn.networks.templates import TemplateSet
from bids_fbn.signal.grid import Grid
from bids_fbn.simulation.cohort import GroupEffect
from bids_fbn.simulation.noise import smooth_fields

__all__ = [
    "BOLD_STATE_THRESHOLD",
    "HRF_LENGTH",
    "NO_NETWORK",
    "N_NETWORKS",
    "bold_courses",
    "neural_activity",
    "own_maps",
    "second_networks",
    "state_sequence",
    "static_courses",
    "strongest_network",
]

NO_NETWORK = -1  # state in which no network is on; "none" in the truth tables
N_NETWORKS = 10
_MAP_FWHM = 6.0  # mm, at least the width of a voxel: turns 0/1 templates into graded maps
_VARIATION_FWHM = 20.0  # mm
_MINIMUM_DWELL = 0.4  # of the mean: 8 s of 20 s
_NO_NETWORK_PROBABILITY = 0.1
_FLUCTUATION = 0.5  # of the activity in a state, standard deviation
_FLUCTUATION_TIME = 4.0  # s: fast enough to change within a state, slow enough to pass the HRF
_IDLE_FLUCTUATION = 0.1  # of a network that is off
_SECOND_ACTIVITY = 0.6  # of the first network's: it stays clear which of the two the state is
BOLD_STATE_THRESHOLD = 0.3  # two networks that hand over evenly both pass 0.5
HRF_LENGTH = 32.0  # s, SPM's


def own_maps(
    rng: np.random.Generator, templates: TemplateSet, grid: Grid, variation: float
) -> np.ndarray:
    """One participant's form of the ten largest networks.

    Parameters
    ----------
    rng : Generator
    templates : TemplateSet
        0/1 maps.
    grid : Grid
    variation : float
        Standard deviation over participants, as a share of a map's value.

    Returns
    -------
    ndarray (10, V) of float32
        Smoothed, varied, peak 1.
    """
    sigma = max(_MAP_FWHM, grid.resolution) / np.sqrt(8 * np.log(2)) / grid.resolution
    smooth = np.stack(
        [
            grid.gather(gaussian_filter(grid.scatter(network), sigma, mode="constant"))
            for network in templates.maps[:N_NETWORKS]
        ]
    )
    smooth *= 1 + variation * smooth_fields(rng, len(smooth), grid, _VARIATION_FWHM)
    smooth = smooth.clip(min=0)
    return smooth / smooth.max(axis=1, keepdims=True)


def state_sequence(
    rng: np.random.Generator,
    n_steps: int,
    step: float,
    n_networks: int,
    dwell: float,
    effect: GroupEffect | None = None,
) -> np.ndarray:
    """A semi-Markov sequence of states.

    A state lasts 0.4 of ``dwell`` plus an exponentially distributed rest. No network follows with
    probability 0.1; else another network does, the more probably the less often it has been on,
    so that short runs visit most networks.

    Parameters
    ----------
    rng : Generator
    n_steps : int
        N.
    step : float
        Length of a step, s.
    n_networks : int
    dwell : float
        Mean length of a state, s.
    effect : GroupEffect, optional
        Of a patient.

    Returns
    -------
    ndarray (N,) of int
        Index of the network that is on, or :data:`NO_NETWORK`.
    """
    states = np.empty(n_steps, dtype=int)
    visits = np.zeros(n_networks)
    current, position = NO_NETWORK, 0
    while position < n_steps:
        if (
            effect is not None
            and current == effect.transition[0]
            and rng.random() < effect.transition_share
        ):
            current = effect.transition[1]
            visits[current] += 1
        elif current != NO_NETWORK and rng.random() < _NO_NETWORK_PROBABILITY:
            current = NO_NETWORK
        else:
            weights = np.exp(visits.min() - visits)
            if current != NO_NETWORK:
                weights[current] = 0
            current = int(rng.choice(n_networks, p=weights / weights.sum()))
            visits[current] += 1
        length = dwell * (_MINIMUM_DWELL + rng.exponential(1 - _MINIMUM_DWELL))
        if effect is not None and current == effect.dwell_network:
            length *= effect.dwell_factor
        end = position + max(1, round(length / step))
        states[position:end] = current
        position = end
    return states


def second_networks(
    rng: np.random.Generator, states: np.ndarray, n_networks: int, overlap: float
) -> np.ndarray:
    """The network that is on beside the state's own.

    Parameters
    ----------
    rng : Generator
    states : ndarray (N,) of int
        See :func:`state_sequence`.
    n_networks : int
    overlap : float
        Probability that a visit of a network is shared, for all of its length, with another.

    Returns
    -------
    ndarray (N,) of int
        Index of the second network, or :data:`NO_NETWORK`.
    """
    second = np.full(len(states), NO_NETWORK)
    edges = [0, *(np.flatnonzero(np.diff(states)) + 1), len(states)]
    for start, end in pairwise(edges):
        if states[start] != NO_NETWORK and rng.random() < overlap:
            second[start:end] = (states[start] + rng.integers(1, n_networks)) % n_networks
    return second


def neural_activity(
    rng: np.random.Generator,
    states: np.ndarray,
    step: float,
    n_networks: int,
    second: np.ndarray | None = None,
) -> np.ndarray:
    """Activity of each network: near 1 and fluctuating while it is on, near 0 while it is off.

    Parameters
    ----------
    rng : Generator
    states : ndarray (N,) of int
        See :func:`state_sequence`.
    step : float
        Length of a step, s.
    n_networks : int
        K.
    second : ndarray (N,) of int, optional
        See :func:`second_networks`; their activity is 0.6 of what it would be as first.

    Returns
    -------
    ndarray (N, K)
    """
    correlation = np.exp(-step / _FLUCTUATION_TIME)
    fresh = rng.standard_normal((len(states), n_networks))
    fresh[1:] *= np.sqrt(1 - correlation**2)
    fluctuation = lfilter([1.0], [1.0, -correlation], fresh, axis=0)
    networks = np.arange(n_networks)
    on, off = 1 + _FLUCTUATION * fluctuation, _IDLE_FLUCTUATION * fluctuation
    activity = np.where(states[:, None] == networks, on, off)
    if second is None:
        return activity
    return np.where(second[:, None] == networks, _SECOND_ACTIVITY * on, activity)


def bold_courses(activity: np.ndarray, repetition_time: float, oversampling: int) -> np.ndarray:
    """Convolve activity with SPM's haemodynamic response and sample it at each volume.

    Parameters
    ----------
    activity : ndarray (T · oversampling, K)
    repetition_time : float
        In s.
    oversampling : int
        Steps per volume.

    Returns
    -------
    ndarray (T, K)
        Steady activity of 1 gives 1.
    """
    from nilearn.glm.first_level import spm_hrf

    response = spm_hrf(repetition_time, oversampling=oversampling, time_length=HRF_LENGTH)
    return lfilter(response / response.sum(), [1.0], activity, axis=0)[::oversampling]


def static_courses(
    rng: np.random.Generator, references: Sequence[np.ndarray], n_volumes: int
) -> np.ndarray:
    """Stationary Gaussian courses with the mean, spectrum and covariances of others.

    Networks are alike in the long run. So the spectra of two processes say all: that of the mean
    over networks, and that of what each network has besides.

    Parameters
    ----------
    rng : Generator
    references : sequence of R ndarray (L, K)
        Courses with states, L ≥ 2 T: what is drawn is periodic in L volumes.
    n_volumes : int
        T.

    Returns
    -------
    ndarray (T, K)
    """
    courses = np.stack(references)
    level = courses.mean()
    common = courses.mean(axis=2, keepdims=True)
    power_common = _mean_power(common - level)
    power_own = _mean_power(courses - common)
    n_drawn, n_networks = courses.shape[1:]
    white = rng.standard_normal((n_drawn, n_networks + 1))
    own = white[:, 1:] - white[:, 1:].mean(axis=1, keepdims=True)
    own *= np.sqrt(n_networks / (n_networks - 1))  # what taking off the mean cost
    drawn = _coloured(white[:, :1], power_common) + _coloured(own, power_own)
    return level + drawn[:n_volumes]


def _mean_power(courses: np.ndarray) -> np.ndarray:
    """Periodogram over L, averaged over runs and networks, (R, L, K) → (L // 2 + 1,)."""
    return np.mean(np.abs(np.fft.rfft(courses, axis=1)) ** 2, axis=(0, 2))


def _coloured(white: np.ndarray, power: np.ndarray) -> np.ndarray:
    """White noise (L, K) with a periodogram imposed."""
    filtered = np.fft.rfft(white, axis=0) * np.sqrt(power / len(white))[:, None]
    return np.fft.irfft(filtered, n=len(white), axis=0)


def strongest_network(courses: np.ndarray) -> np.ndarray:
    """Index of the strongest network of each volume, :data:`NO_NETWORK` where all are below 0.3.

    Parameters
    ----------
    courses : ndarray (T, K)

    Returns
    -------
    ndarray (T,) of int
    """
    strongest = courses.argmax(axis=1)
    return np.where(courses.max(axis=1) >= BOLD_STATE_THRESHOLD, strongest, NO_NETWORK)
