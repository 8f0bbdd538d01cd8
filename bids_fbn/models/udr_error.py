"""How far the maps of unrolled dual regression are from the truth, found on runs with a known one.

Of a real run the truth is not known, and two stretches of it do not tell: what courses of wrong
maps do to both is no difference between them. So runs are made that are like the training runs,
from maps and courses that are known (a parametric bootstrap: Efron & Tibshirani 1993, An
Introduction to the Bootstrap, 6.5); docs/udr.md, "How sure it is", derives it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import nnls
from scipy.stats import t as student

from bids_fbn.models.udr_network import N_LENGTHS, fit_maps
from bids_fbn.nulls.series import left_by_cleaning, slow_to_fast, turned
from bids_fbn.signal.signals import Signals

if TYPE_CHECKING:
    from bids_fbn.models.udr_network import UnrolledDualRegression

__all__ = ["COMMON", "DrawnRun", "draw_run", "find_error", "limits_of", "stretches_of"]

# Runs that are drawn anew, at most: twelve numbers are found, from every voxel of each.
_MOST_RUNS = 40
# Stretches of one length in each run.
_MOST_STRETCHES = 4
# Fits of the parts to the squared errors, each with weights by the one before; they settle in
# three or four.
_FITS = 6

# Voxels, evenly over the mask, whose single errors are kept.
_SAMPLE = 1000
# The shares that are asked for most are to be as near to what they are called as can be.
_SHARES = np.array([0.5, 0.68, 0.9, 0.95])
# Errors have longer tails than a normal distribution: of Student's t, by degrees of freedom. With
# 4 and more, 95 % are within 1.96 to 2 standard deviations, as they are used to be.
_DEGREES = (4.0, 5.0, 6.0, 8.0, 12.0, 20.0, np.inf)
# Share of the sampled voxels where most of a network is: there intervals have to hold too.
_MOST_OF_IT = 0.1
_SCALES = np.geomspace(0.5, 2, 141)
# Of standard deviations: for what is wrong in the same way in all participants, which runs drawn
# from what was found in them do not show. Found where the truth is known (docs/udr.md).
COMMON = 1.15
# Beside modes most of that is in proportion to the map, by this share of it.
COMMON_BESIDE_MODES = 0.8, 0.12
OF_MAP = 2  # of the parts
# Of the mean squared error: no voxel counts as if less were expected of it.
_LEAST_EXPECTED = 0.05

Prior = Callable[[Iterable[Signals]], tuple[np.ndarray, ...]]


@dataclass(frozen=True, eq=False)
class DrawnRun:
    """A run that was made of known maps and courses.

    Parameters
    ----------
    signals : Signals
    maps : ndarray (K, V)
        Signal, in standard deviations of a voxel's series, for one standard deviation of the
        course over the run.
    courses : ndarray (T, K)
        z-scored over the run.
    """

    signals: Signals
    maps: np.ndarray
    courses: np.ndarray

    def maps_of(self, start: int, stop: int) -> np.ndarray:
        """The true maps (K, V) of a stretch: for one standard deviation over the stretch."""
        return self.maps * self.courses[start:stop].std(axis=0)[:, None]


@torch.no_grad()
def draw_run(network: UnrolledDualRegression, run: Signals, seed: Sequence[int]) -> DrawnRun:
    """A run like another one, of which the truth is known.

    Its courses are those of the run. Its maps are drawn from what the run says of its maps, so
    that over participants they differ as much as the prior has it; what is drawn is as smooth as
    the difference between the raw maps of two halves, which is noise. The rest of the run gets
    other phases, the same in all voxels and within what cleaning has left, and so keeps its
    correlations in time and space.

    Parameters
    ----------
    network : UnrolledDualRegression
    run : Signals
    seed : sequence of int
    """
    chance = np.random.default_rng(list(seed))
    volumes = torch.from_numpy(run.rows(0, run.n_kept))[None].to(network.group.device)
    if network.n_modes:
        # The volumes of others count for as many as helps, which says little of how far people
        # differ: noise that is left of these is none of it.
        maps, parts, courses = network.maps_and_parts(volumes)
        spread = parts[:, 1].sqrt()
    else:
        maps, spread, courses = network.estimate(volumes)
    half = run.n_kept // 2
    first, second = (
        fit_maps(volumes[:, rows], courses[:, rows], 0.0)[0]
        for rows in (slice(0, half), slice(half, None))
    )
    noise = first - second
    noise = noise / noise.square().mean(dim=2, keepdim=True).sqrt().clamp_min(1e-12)
    residual = (volumes - courses @ maps)[0].cpu().numpy() * run.covered
    of_courses = courses[0].cpu().numpy()
    drawn = ((maps + spread * noise)[0].cpu().numpy() * run.covered).astype(np.float32)
    waves = slow_to_fast(left_by_cleaning(run.rows(0, run.n_kept)[:, run.covered]))
    data = of_courses @ drawn + turned(waves, chance) @ residual
    data -= data.mean(axis=0)
    size = data.std(axis=0, ddof=1)
    size[~run.covered | (size == 0)] = 1
    data = np.where(run.covered, data / size, 0).astype(np.float32)
    return DrawnRun(replace(run, data=data), drawn / size, of_courses)


def stretches_of(n_volumes: int, length: int) -> Iterator[tuple[int, int]]:
    """First and last + 1 volume of stretches, evenly over a run, at most four."""
    n = min(n_volumes // length, _MOST_STRETCHES)
    for start in np.linspace(0, n_volumes - length, n).astype(int) if n else ():
        yield int(start), int(start) + length


@torch.no_grad()
def find_error(
    network: UnrolledDualRegression,
    runs: Sequence[Signals],
    window: int,
    prior: Prior,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, float]:
    """By which factors the parts of the error count, for stretches of several lengths.

    Parameters
    ----------
    network : UnrolledDualRegression
        Trained; not changed.
    runs : sequence of Signals
        That it was trained on.
    window : int
        Volumes: the lengths are half of it, all of it, and half a run.
    prior : callable
        Gives mean and spread (K, V) of the maps of runs, and the modes of their volumes if there
        are to be any. It is found again in the drawn runs, since it errs too.
    seed : int

    Returns
    -------
    lengths : ndarray (3,) of int
        Ascending.
    factors : ndarray (3, 4)
        See :meth:`UnrolledDualRegression.parts_of_error`.
    degrees : float
        Of freedom of Student's t, which errors are distributed as; see :func:`limits_of`.
    """
    runs = list(runs)[:: -(-len(runs) // _MOST_RUNS)]
    plain = copy.deepcopy(network)
    plain.reset_error()
    again = copy.deepcopy(plain)

    def drawn() -> Iterator[DrawnRun]:
        for number, run in enumerate(runs):
            yield draw_run(plain, run, [seed, number])

    device = network.group.device
    found = prior(run.signals for run in drawn())
    again.set_prior(network.group, *(torch.from_numpy(values).to(device) for values in found))
    half = int(np.median([run.n_kept for run in runs])) // 2
    lengths = sorted({max(2, window // 2), window, max(half, window)})
    parts: list[Any] = [0.0 for _ in lengths]
    squares: list[Any] = [0.0 for _ in lengths]
    counts = [0 for _ in lengths]
    sampled: list[list[tuple[np.ndarray, ...]]] = [[] for _ in lengths]
    for run in drawn():
        data, covered = np.asarray(run.signals.data), run.signals.covered
        few = np.flatnonzero(covered)[:: -(-int(covered.sum()) // _SAMPLE)]
        for at, length in enumerate(lengths):
            for start, stop in stretches_of(len(data), length):
                volumes = torch.from_numpy(data[start:stop])[None].to(device)
                maps, of_maps, _ = again.maps_and_parts(volumes)
                true = run.maps_of(start, stop)
                error = maps[0].cpu().numpy() - true
                parts[at] = parts[at] + of_maps[0].cpu().numpy().astype(np.float64) * covered
                squares[at] = squares[at] + error.astype(np.float64) ** 2 * covered
                counts[at] += 1
                sampled[at].append(
                    (error[:, few], of_maps[0].cpu().numpy()[:, :, few], true[:, few])
                )
    known = [at for at in range(len(lengths)) if counts[at]]
    factors = [
        _factors(np.asarray(parts[at]) / counts[at], squares[at] / counts[at]) for at in known
    ]
    degrees, scales = _scales(
        [_away(sampled[at], own) for at, own in zip(known, factors, strict=True)]
    )
    common, of_map = COMMON_BESIDE_MODES if network.n_modes else (COMMON, 0.0)
    scaled = [own * (common * scale) ** 2 for own, scale in zip(factors, scales, strict=True)]
    for own in scaled:
        own[OF_MAP] += of_map**2
    missing = N_LENGTHS - len(known)
    of_lengths = [lengths[at] for at in known]
    return (
        np.array(of_lengths + of_lengths[-1:] * missing),
        np.stack(scaled + scaled[-1:] * missing),
        degrees,
    )


def limits_of(shares: np.ndarray, degrees: float) -> np.ndarray:
    """How many standard deviations of its error a map is away from the truth, at most.

    Parameters
    ----------
    shares : ndarray (N,)
        Of the voxels.
    degrees : float
        More than 2; a normal distribution if infinite.

    Returns
    -------
    ndarray (N,)

    Examples
    --------
    >>> limits_of(np.array([0.5, 0.95]), 4.0).round(2)
    array([0.52, 1.96])
    >>> limits_of(np.array([0.5, 0.95]), np.inf).round(2)
    array([0.67, 1.96])
    """
    of_scale: np.ndarray = student.ppf(0.5 + np.asarray(shares) / 2, degrees)
    return of_scale * np.sqrt(1 - 2 / degrees)


def _away(
    sampled: Sequence[tuple[np.ndarray, ...]], factors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Errors in standard deviations: of all sampled voxels, and of those where most of a network
    is."""
    away = np.concatenate(
        [
            np.abs(error) / np.sqrt(np.einsum("n,nkv->kv", factors, parts))
            for error, parts, _ in sampled
        ],
        axis=None,
    )
    true = np.abs(np.concatenate([true for *_, true in sampled], axis=None))
    return away, away[true >= np.quantile(true, 1 - _MOST_OF_IT)]


def _scales(away: Sequence[Sequence[np.ndarray]]) -> tuple[float, list[float]]:
    """Degrees of freedom, and by what factors standard deviations hold the usual shares best.

    Parameters
    ----------
    away : sequence of sequence of ndarray
        Of each length, and of it sets of errors, in standard deviations.

    Returns
    -------
    degrees : float
    scales : list of float
        Of each length. With them the worst of the shares, in any set, is the least wrong.
    """
    ordered = [[np.sort(values) for values in sets] for sets in away]
    found = {}
    for degrees in _DEGREES:
        limits = _SCALES[:, None] * limits_of(_SHARES, degrees)
        wrong = [
            np.max(
                [
                    np.abs(np.searchsorted(values, limits) / len(values) - _SHARES).max(axis=1)
                    for values in sets
                ],
                axis=0,
            )
            for sets in ordered
        ]
        scales = [float(_SCALES[of_length.argmin()]) for of_length in wrong]
        found[degrees] = max(of_length.min() for of_length in wrong), scales
    best = min(_DEGREES, key=lambda degrees: found[degrees][0])
    return best, found[best][1]


def _factors(parts: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Least squares with factors of at least 0, voxels weighted by what is expected of them.

    Parameters
    ----------
    parts : ndarray (N, K, V)
    squares : ndarray (K, V)
        Mean squared error.

    Returns
    -------
    ndarray (N,)
    """
    seen = squares > 0
    rows, target = parts[:, seen].T, squares[seen]
    expected = np.full(len(target), target.mean())
    factors = np.ones(len(parts))
    for _ in range(_FITS):
        # Halfway between absolute errors, which would leave most voxels to a few, and relative
        # ones, by which most voxels would say what it is in those few.
        weight = 1 / np.sqrt(np.maximum(expected, _LEAST_EXPECTED * target.mean()))
        factors, _ = nnls(rows * weight[:, None], target * weight)
        expected = rows @ factors
    return factors
