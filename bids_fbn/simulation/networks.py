"""Ten networks that take turns: the signal of :mod:`bids_fbn.simulate`.

Activity is high and fluctuates in the network that is on, and near zero in the others; convolved
with SPM's haemodynamic response it becomes the networks' BOLD courses.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.signal import lfilter

from bids_fbn.networks.templates import TemplateSet
from bids_fbn.signal.grid import Grid
from bids_fbn.simulation.noise import smooth_fields

__all__ = [
    "BOLD_STATE_THRESHOLD",
    "HRF_LENGTH",
    "NO_NETWORK",
    "N_NETWORKS",
    "bold_courses",
    "neural_activity",
    "own_maps",
    "state_sequence",
    "strongest_network",
]

NO_NETWORK = -1  # state in which no network is on; "none" in the truth tables
N_NETWORKS = 10
_MAP_FWHM = 6.0  # mm, at least the width of a voxel: turns 0/1 templates into graded maps
_VARIATION = 0.1  # of a map's values between participants, standard deviation
_VARIATION_FWHM = 20.0  # mm
_MINIMUM_DWELL = 0.4  # of the mean: 8 s of 20 s
_NO_NETWORK_PROBABILITY = 0.1
_FLUCTUATION = 0.5  # of the activity in a state, standard deviation
_FLUCTUATION_TIME = 4.0  # s: fast enough to change within a state, slow enough to pass the HRF
_IDLE_FLUCTUATION = 0.1  # of a network that is off
BOLD_STATE_THRESHOLD = 0.3  # two networks that hand over evenly both pass 0.5
HRF_LENGTH = 32.0  # s, SPM's


def own_maps(rng: np.random.Generator, templates: TemplateSet, grid: Grid) -> np.ndarray:
    """One participant's form of the ten largest networks.

    Parameters
    ----------
    rng : Generator
    templates : TemplateSet
        0/1 maps.
    grid : Grid

    Returns
    -------
    ndarray (10, V) of float32
        Smoothed, varied by a tenth, peak 1.
    """
    sigma = max(_MAP_FWHM, grid.resolution) / np.sqrt(8 * np.log(2)) / grid.resolution
    smooth = np.stack(
        [
            grid.gather(gaussian_filter(grid.scatter(network), sigma, mode="constant"))
            for network in templates.maps[:N_NETWORKS]
        ]
    )
    smooth *= 1 + _VARIATION * smooth_fields(rng, len(smooth), grid, _VARIATION_FWHM)
    smooth = smooth.clip(min=0)
    return smooth / smooth.max(axis=1, keepdims=True)


def state_sequence(
    rng: np.random.Generator, n_steps: int, step: float, n_networks: int, dwell: float
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

    Returns
    -------
    ndarray (N,) of int
        Index of the network that is on, or :data:`NO_NETWORK`.
    """
    states = np.empty(n_steps, dtype=int)
    visits = np.zeros(n_networks)
    current, position = NO_NETWORK, 0
    while position < n_steps:
        if current != NO_NETWORK and rng.random() < _NO_NETWORK_PROBABILITY:
            current = NO_NETWORK
        else:
            weights = np.exp(visits.min() - visits)
            if current != NO_NETWORK:
                weights[current] = 0
            current = int(rng.choice(n_networks, p=weights / weights.sum()))
            visits[current] += 1
        length = dwell * (_MINIMUM_DWELL + rng.exponential(1 - _MINIMUM_DWELL))
        end = position + max(1, round(length / step))
        states[position:end] = current
        position = end
    return states


def neural_activity(
    rng: np.random.Generator, states: np.ndarray, step: float, n_networks: int
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

    Returns
    -------
    ndarray (N, K)
    """
    correlation = np.exp(-step / _FLUCTUATION_TIME)
    fresh = rng.standard_normal((len(states), n_networks))
    fresh[1:] *= np.sqrt(1 - correlation**2)
    fluctuation = lfilter([1.0], [1.0, -correlation], fresh, axis=0)
    on = states[:, None] == np.arange(n_networks)
    return np.where(on, 1 + _FLUCTUATION * fluctuation, _IDLE_FLUCTUATION * fluctuation)


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
