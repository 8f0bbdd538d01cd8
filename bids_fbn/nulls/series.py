"""Surrogate runs: what a run would look like without dynamics, or without any network.

=========  ==================================================  ==================================
kind       keeps                                               has nothing of
=========  ==================================================  ==================================
``phase``  every covariance, spectra but for a mixing of       anything beyond second order
           neighbours, what cleaning has taken out
``var``    covariance at lag 0 and 1 of the leading            the same; longer lags are those of
           components, in expectation; spectra of the rest;    the model
           what cleaning has taken out
``noise``  smoothness in space, mean spectrum in time, the     networks
           signals of tissues, what cleaning has taken out
=========  ==================================================  ==================================

In ``phase`` and ``var`` the correlation between any two places is static: whatever changes in time
there is chance. All are Gaussian, or nearly so, and were stationary before they were cleaned.

That last point decides. A run of which 40 nuisances were regressed out is not stationary, however
static the brain: it is smallest where the nuisances are largest. Surrogates that are have windows
more alike than those of the run, and one run in six without any change in it would stand out.

Noise keeps the mean signals of grey matter, white matter and fluid, each voxel by its share of
these. What a whole tissue does is no network, but most cleaning leaves some of it in. Since
networks lie in one tissue, noise without these would let networks stand that are not there.

Volumes that are kept are treated as one series without gaps: where some were left out, spectra and
lags are those of what was kept, put end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.fft import irfft, rfft
from scipy.linalg import circulant, orth
from threadpoolctl import threadpool_limits

from bids_fbn.networks.tissue import grey_fraction, white_fraction
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals

__all__ = [
    "StaticVAR",
    "SurrogateKind",
    "fit_var",
    "left_by_cleaning",
    "slow_to_fast",
    "surrogate_runs",
    "turned",
]

SurrogateKind = Literal["phase", "var", "noise"]

# What the autoregressive model describes; the rest, mostly noise, has phases randomised.
_VARIANCE_IN_COMPONENTS = 0.95
# A model of k components has k² coefficients from k T values: at least this many values for each.
_VALUES_PER_COEFFICIENT = 5
_VOXELS_AT_A_TIME = 4096
# Share of the mean variance of a course below which it is rounding.
_NOTHING = 1e-6
# Square of the length of a wave's steps below which it is constant; the slowest wave of 10,000
# volumes has 4e-7.
_FLAT = 1e-8
# Of a frequency that cleaning has taken out but for this share, noise gets less than the run had.
_LEAST_SHARE = 0.05

_Draw = Callable[[np.random.Generator], np.ndarray]


def surrogate_runs(
    signals: Signals, kind: SurrogateKind, n: int, seed: int = 0
) -> Iterator[Signals]:
    """Surrogates of a run, one after the other.

    In memory are the run, the surrogate, and what the caller keeps. Surrogate i is the same
    whatever `n` is, and the number of threads.

    Parameters
    ----------
    signals : Signals
        T kept volumes, V voxels.
    kind : {"phase", "var", "noise"}
        Multivariate phase randomisation (Prichard & Theiler 1994, Phys Rev Lett 73:951) of what
        cleaning has left: see :func:`turned`; a static vector autoregressive model with Gaussian
        innovations (Liégeois et al. 2017, NeuroImage 163:437); the mean signals of the run's
        tissues and, for all the rest, smooth Gaussian noise that has the mean power spectrum of
        the voxels. All are cleaned as the run was: see :func:`left_by_cleaning`. The grid of
        ``noise`` is in an MNI space.
    n : int
    seed : int

    Yields
    ------
    Signals
        As the run, but for `data`: (T, V) float32 in memory, z-scored over time in each covered
        voxel, 0 elsewhere.
    """
    # A sine and its cosine change as slowly as each other: which two waves come out of a matrix
    # depends on the last digits, and these on the number of threads.
    with threadpool_limits(1, user_api="blas"):
        draw = _DRAWS[kind](signals)
    for child in np.random.SeedSequence(seed).spawn(n):
        with threadpool_limits(1, user_api="blas"):
            data = _zscored(draw(np.random.default_rng(child)))
        yield replace(signals, data=data)


def slow_to_fast(left: np.ndarray) -> np.ndarray:
    """Waves in the space of some courses, without the mean, from slow to fast.

    Of all courses there are these are sines and cosines. In the space that cleaning has left they
    are what comes nearest: each differs as little as it can from one volume to the next, the last
    volume being followed by the first.

    Parameters
    ----------
    left : ndarray (T, k)
        Orthonormal columns.

    Returns
    -------
    ndarray (T, k) or (T, k − 1)
        Orthonormal columns, none of which is constant.
    """
    steps = left - np.roll(left, 1, axis=0)
    roughness, axes = np.linalg.eigh(steps.T @ steps)
    waves: np.ndarray = left @ axes[:, roughness > _FLAT]
    return waves


def turned(waves: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What gives volumes random phases, were there phases: each two waves turned into each other.

    Applied to a run of which all but its mean is left, that is phase randomisation with the same
    phases for all voxels (Prichard & Theiler 1994): sine and cosine of a frequency are neighbours.
    Whatever was regressed out of a run, its static covariance stays as it is, since the matrix is
    orthogonal in the space of the waves; its spectra stay but for a mixing of neighbours; and what
    cleaning took from a volume is taken from that of the surrogate.

    Parameters
    ----------
    waves : ndarray (T, k)
        From :func:`slow_to_fast`.
    rng : Generator

    Returns
    -------
    ndarray (T, T)
    """
    n_pairs, odd = divmod(waves.shape[1], 2)
    angle = 2 * np.pi * rng.random(n_pairs)
    cos, sin = np.cos(angle), np.sin(angle)
    even, uneven = waves[:, : 2 * n_pairs : 2], waves[:, 1 : 2 * n_pairs : 2]
    after = np.empty_like(waves)
    after[:, : 2 * n_pairs : 2] = cos * even + sin * uneven
    after[:, 1 : 2 * n_pairs : 2] = cos * uneven - sin * even
    if odd:
        # One that has no neighbour can change its sign, no more.
        after[:, -1] = rng.choice([-1, 1]) * waves[:, -1]
    mixing: np.ndarray = after @ waves.T
    return mixing


@dataclass(frozen=True, eq=False)
class StaticVAR:
    """A stationary Gaussian vector autoregressive model of order p on k series.

    Parameters
    ----------
    coefficients : ndarray (k, p k)
        Of the values before, the latest first.
    innovation : ndarray (k, k)
        Covariance of the innovations.
    stationary : ndarray (p k, p k)
        Covariance of p successive values, the latest first.
    """

    coefficients: np.ndarray
    innovation: np.ndarray
    stationary: np.ndarray

    def draw(self, n_times: int, rng: np.random.Generator) -> np.ndarray:
        """A realisation, (n_times, k); it starts in the stationary state, not from zero."""
        k, memory = self.coefficients.shape
        before = _root(self.stationary) @ rng.standard_normal(memory)
        values = rng.standard_normal((n_times, k)) @ _root(self.innovation).T
        for now in values:
            now += self.coefficients @ before
            before = np.concatenate([now, before[: memory - k]])
        return values


def fit_var(series: np.ndarray, order: int = 1) -> StaticVAR:
    """Fit an autoregressive model by the multivariate Yule–Walker equations.

    That is least squares on the series with zeros before and after it, which, unlike least
    squares on the bare series, always gives a stable model (Lütkepohl 2005, New Introduction to
    Multiple Time Series Analysis, section 3.3.4). Realisations of T values have, once their mean
    is removed, the covariances of the series up to lag p, in expectation.

    Parameters
    ----------
    series : ndarray (T, k)
        Mean 0, T > k (p + 1), no series a sum of others.
    order : int
        p.
    """
    n_times = len(series)
    covariances = [series[lag:].T @ series[: n_times - lag] / n_times for lag in range(order + 1)]
    model = _yule_walker(covariances)
    # The mean of the series was removed, that of a realisation will be: what that takes from each
    # covariance is the variance of a mean of T values (Brockwell & Davis 1991, section 7.2).
    k = series.shape[1]
    gain = np.eye(k) - sum(model.coefficients[:, i * k : (i + 1) * k] for i in range(order))
    of_mean = np.linalg.solve(gain, np.linalg.solve(gain, model.innovation).T) / n_times
    return _yule_walker([covariance + of_mean for covariance in covariances])


def _yule_walker(covariances: list[np.ndarray]) -> StaticVAR:
    """The model that has these covariances at lags 0 to p."""
    order = len(covariances) - 1
    stationary = np.block(
        [
            [covariances[j - i] if j >= i else covariances[i - j].T for j in range(order)]
            for i in range(order)
        ]
    )
    ahead = np.hstack(covariances[1:])
    coefficients = np.linalg.solve(stationary, ahead.T).T
    return StaticVAR(coefficients, covariances[0] - coefficients @ ahead.T, stationary)


def _root(covariance: np.ndarray) -> np.ndarray:
    """R with R Rᵀ = covariance, whatever its rank."""
    values, vectors = np.linalg.eigh(covariance)
    root: np.ndarray = vectors * np.sqrt(values.clip(0))
    return root


def _in_memory(signals: Signals) -> np.ndarray:
    return np.asarray(signals.data, dtype=np.float32)


def _zscored(data: np.ndarray) -> np.ndarray:
    """In place; voxels without variance become 0."""
    data -= data.mean(axis=0)
    sd = np.sqrt(np.einsum("tv,tv->v", data, data) / len(data))
    data *= np.divide(1, sd, out=np.zeros_like(sd), where=sd > 0)
    return data


def _phase(signals: Signals) -> _Draw:
    data = _in_memory(signals)
    waves = slow_to_fast(left_by_cleaning(data[:, signals.covered]))
    return lambda rng: turned(waves, rng).astype(np.float32) @ data


def _var(signals: Signals) -> _Draw:
    data = _in_memory(signals)
    n_times = len(data)
    components = leading_components(data)
    scale = np.sqrt(n_times)
    model = fit_var(components * scale)
    left = left_by_cleaning(data[:, signals.covered])
    waves = slow_to_fast(left)
    rest = np.eye(n_times) - components @ components.T

    def draw(rng: np.random.Generator) -> np.ndarray:
        courses = left @ (left.T @ model.draw(n_times, rng)) / scale
        mixing = courses @ components.T + turned(waves, rng) @ rest
        return mixing.astype(np.float32) @ data

    return draw


def leading_components(data: np.ndarray) -> np.ndarray:
    """Courses of the principal components that the autoregressive model describes.

    As many as hold 95 % of the variance, at most a fifth as many as there are volumes.

    Parameters
    ----------
    data : ndarray (T, V)
        Mean 0 over time.

    Returns
    -------
    ndarray (T, k)
        Orthonormal columns, that of the most variance first.
    """
    values, vectors = np.linalg.eigh((data @ data.T).astype(np.float64))
    values, vectors = values[::-1], vectors[:, ::-1]
    share = np.cumsum(values) / values.sum()
    n_components = int(np.searchsorted(share, _VARIANCE_IN_COMPONENTS)) + 1
    most = max(1, len(data) // _VALUES_PER_COEFFICIENT)
    return vectors[:, : min(n_components, most)]


def _noise(signals: Signals) -> _Draw:
    from bids_fbn.nulls.fields import draw_fields, estimate_smoothness

    covered = signals.covered
    data = _in_memory(signals)[:, covered]
    left = left_by_cleaning(data)
    tissues = _tissues(signals.grid, covered)
    courses, r = _signals_of(tissues, data)
    rest = np.zeros(signals.data.shape, dtype=np.float32)
    rest[:, covered] = _zscored(data - courses @ r)
    del data
    # As much of them as the share of tissues tells: a network's own part is not in its null.
    r = (r @ tissues) @ tissues.T
    smoothness = estimate_smoothness(rest, signals.grid, covered)
    shape = rest.shape
    power = _mean_power(rest, covered)
    waves = rfft(left, axis=0, norm="ortho")
    share = np.square(np.abs(waves)).sum(axis=1)  # of each frequency that is left
    amplitude = np.sqrt(power / share.clip(min=_LEAST_SHARE))
    # A filter without delay; what it gives, once cleaned, has the mean power spectrum.
    colour = circulant(irfft(amplitude, n=shape[0]))
    cleaned = (left @ (left.T @ colour)).astype(np.float32)
    amount = np.sqrt((1 - np.square(r).sum(axis=0)).clip(min=0))
    del rest

    def draw(rng: np.random.Generator) -> np.ndarray:
        noise = np.zeros(shape, dtype=np.float32)
        drawn = amount * _zscored(cleaned @ draw_fields(smoothness, shape[0], rng))
        # The signals of its tissues are those of the run, and nothing beside them.
        drawn -= (drawn @ tissues) @ tissues.T
        drawn += courses @ r
        noise[:, covered] = drawn
        return noise

    return draw


def _tissues(grid: Grid, covered: np.ndarray) -> np.ndarray:
    """Orthonormal maps (V_covered, k) that grey matter, white matter and fluid are sums of."""
    grey, white = grey_fraction(grid)[covered], white_fraction(grid)[covered]
    shares = np.stack([grey, white, 1 - grey - white], axis=1).astype(np.float64)
    return orth(shares).astype(np.float32)


def _signals_of(maps: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the sums over maps (V, k) have of signals, and each voxel of these.

    Uncorrelated courses (T, m) of mean 0 and variance 1, and the correlation of each voxel with
    them (m, V). Of sums that are 0 in all volumes, as when they were regressed out, there is none.
    """
    axes, sizes, _ = np.linalg.svd((data @ maps).astype(np.float64), full_matrices=False)
    there = np.square(sizes) > _NOTHING * data.size
    courses = (np.sqrt(len(data)) * axes[:, there]).astype(np.float32)
    return courses, courses.T @ data / np.float32(len(data))


def left_by_cleaning(data: np.ndarray) -> np.ndarray:
    """Courses that the regression of nuisances has left in a run.

    What was regressed out of all voxels is in none. It matters: of 120 volumes cleaned of 33
    nuisances, noise has 87 degrees of freedom, and the fewer there are, the less a map that
    dual regression makes of noise looks like the template that it started from.

    Parameters
    ----------
    data : ndarray (T, V)

    Returns
    -------
    ndarray (T, k)
        Orthonormal columns. All T of them where voxels are too few to tell.
    """
    n_times, n_voxels = data.shape
    if n_voxels <= n_times:
        return np.eye(n_times)
    values, vectors = np.linalg.eigh((data @ data.T).astype(np.float64))
    return vectors[:, values > _NOTHING * values.mean()]


def _mean_power(data: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Mean power spectrum of the covered voxels, (T // 2 + 1,)."""
    voxels = np.flatnonzero(covered)
    total = np.zeros(len(data) // 2 + 1)
    for first in range(0, len(voxels), _VOXELS_AT_A_TIME):
        spectrum = rfft(data[:, voxels[first : first + _VOXELS_AT_A_TIME]], axis=0)
        total += np.square(np.abs(spectrum), dtype=np.float64).sum(axis=1)
    return total / max(1, len(voxels))


_DRAWS: dict[SurrogateKind, Callable[[Signals], _Draw]] = {
    "phase": _phase,
    "var": _var,
    "noise": _noise,
}
