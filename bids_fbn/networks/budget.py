"""Methods held against each other on equal terms: as many maps each, chosen in one half of a run
and scored in the other.

A method that offers more maps finds better matches among them, whatever it is. So each is given a
*budget* of maps, and spends it on those that explain most of the volumes: a ranking that knows no
template and treats all methods alike. What is then found in one half is looked for in the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from bids_fbn.networks.arrays import Array, as_numpy
from bids_fbn.networks.maps import SupportRule, moments, zscore_maps
from bids_fbn.networks.overlap import (
    assign_one_to_one,
    overlap_with_templates,
    support_iou,
    support_of,
)

__all__ = [
    "HalfScores",
    "PoolCollector",
    "collect_pool",
    "halves",
    "held_out_variance",
    "rank_maps",
    "score_halves",
    "variance_explained",
]

# Components that an ICA of a run is usually asked for (Smith et al. 2009).
N_MAPS = 20
# Volumes left out between the halves: neighbouring volumes resemble each other.
GAP = 5
POOL_LIMIT = 512

# Maps that correlate more than this, either way up, are the same.
_SAME_R = 1 - 1e-6
# In single precision an r can be off by less than this, unless a map is all but flat.
_CLOSE_R = 1 - 1e-3
# A map is exhausted when those before it explain it as well as a map explains its duplicate.
_SMALLEST_REST = 1 - _SAME_R**2
# Below this share of the variance there is only the rounding of single precision.
_SMALLEST_SHARE = 1e-12
# Least squares ignores directions that hold less than this share of the largest singular value.
_RCOND = 1e-5
_BLOCK_VOXELS = 4096


def halves(n_volumes: int, gap: int = GAP) -> tuple[slice, slice]:
    """Rows of the first and of the last half of a run, equally many.

    Parameters
    ----------
    n_volumes : int
        Kept volumes of the run.
    gap : int
        Volumes between the halves that belong to neither; one more where they come out odd.

    Raises
    ------
    ValueError
        No volume is left for a half.

    Examples
    --------
    >>> halves(20)
    (slice(0, 7, None), slice(13, 20, None))
    """
    length = (n_volumes - gap) // 2
    if length < 1:
        raise ValueError(f"{n_volumes} volumes leave no halves with {gap} volumes between them")
    return slice(0, length), slice(n_volumes - length, n_volumes)


class PoolCollector:
    """The candidates of a stretch of a run, gathered while they pass by.

    Steps count whose window lies wholly in the stretch; they are thinned, evenly in time, to what
    the pool may hold. A map without variation, and one that is another turned or scaled, is left
    out. Several collectors can listen to one stream, so that a model computes its maps once.

    Parameters
    ----------
    start : ndarray (S,) of int
        First row of the window of each step; −1 where it has none.
    window : int
        Rows.
    stretch : slice
        Rows of the signals, as :func:`halves` gives them.
    covered : ndarray (V,) of bool
        Voxels of the run.
    limit : int
        Maps that the pool holds at most.
    """

    def __init__(
        self,
        start: np.ndarray,
        window: int,
        stretch: slice,
        covered: np.ndarray,
        limit: int = POOL_LIMIT,
    ) -> None:
        first = max(stretch.start, 0)
        self._steps = np.flatnonzero((start >= first) & (start + window <= stretch.stop))
        self._limit = limit
        self._covered = covered
        self._maps: np.ndarray | None = None
        self._norms = np.zeros(limit)
        self._n = 0

    @property
    def pool(self) -> np.ndarray:
        """Maps (n, covered) of float32, as the method gave them, in the order of the steps."""
        if self._maps is None:
            return np.zeros((0, int(self._covered.sum())), dtype=np.float32)
        return self._maps[: self._n]

    def add(self, steps: np.ndarray, maps: Array) -> None:
        """Take the candidates (B, K, V) of B steps, arrays or tensors of any one device."""
        if self._maps is None:
            n_each = maps.shape[1]
            self._steps = self._steps[_evenly(len(self._steps), max(1, self._limit // n_each))]
            room = min(self._limit, len(self._steps) * n_each)
            self._maps = np.empty((room, int(self._covered.sum())), dtype=np.float32)
        for number in np.flatnonzero(np.isin(steps, self._steps)).tolist():
            at_step = as_numpy(maps[number])[:, self._covered]
            self._add_new(self._maps, at_step[_evenly(len(at_step), self._limit)])

    def _add_new(self, pool: np.ndarray, maps: np.ndarray) -> None:
        mean, spread = moments(maps)
        varies = spread[:, 0] > 0
        maps, mean, spread = maps[varies], mean[varies], spread[varies]
        units = (maps - mean) / (spread * np.sqrt(np.float32(maps.shape[1])))
        norms = spread[:, 0] * np.sqrt(maps.shape[1])
        # As `units` have mean zero, the maps that they are held against need not.
        with_pool = abs(units @ pool[: self._n].T) / self._norms[: self._n]
        among_them = np.tril(abs(units @ units.T), -1)
        n_before = self._n
        for k, values in enumerate(maps):
            close = [pool[i] for i in np.flatnonzero(with_pool[k, :n_before] > _CLOSE_R)]
            close += [maps[i] for i in np.flatnonzero(among_them[k] > _CLOSE_R)]
            if any(_same(values, other) for other in close):
                continue
            pool[self._n], self._norms[self._n] = values, norms[k]
            self._n += 1


def _evenly(n: int, most: int) -> np.ndarray:
    """Indices of at most that many of n things, evenly spaced."""
    most = min(n, most)
    return ((np.arange(most) + 0.5) * n / max(most, 1)).astype(int)


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(abs(np.corrcoef(first, second, dtype=np.float64)[0, 1]) > _SAME_R)


def collect_pool(
    candidates: Iterable[tuple[np.ndarray, Array]],
    start: np.ndarray,
    window: int,
    stretch: slice,
    covered: np.ndarray,
    limit: int = POOL_LIMIT,
) -> np.ndarray:
    """Gather the candidates of a stretch of a run; see :class:`PoolCollector`.

    Parameters
    ----------
    candidates : iterable of (steps (B,) of int, maps (B, K, V) of float32)

    Returns
    -------
    ndarray (n, covered) of float32
    """
    collector = PoolCollector(start, window, stretch, covered, limit)
    for steps, maps in candidates:
        collector.add(steps, maps)
    return collector.pool


@dataclass(frozen=True, eq=False)
class _Products:
    """What least squares of volumes on maps needs to know of either.

    Parameters
    ----------
    among_maps : ndarray (n, n)
        r over voxels; 0 for a map without variation.
    with_volumes : ndarray (T, n)
        Sum over voxels of volume times map of norm 1.
    total : float
        Sum of squares of the volumes.
    """

    among_maps: np.ndarray
    with_volumes: np.ndarray
    total: float


def _products(maps: np.ndarray, volumes: np.ndarray) -> _Products:
    # Maps of neighbouring windows are nearly the same: what they differ by is lost in products of
    # single precision.
    mean = maps.mean(axis=1, dtype=np.float64, keepdims=True)
    among = np.zeros((len(maps), len(maps)))
    with_volumes = np.zeros((len(volumes), len(maps)))
    sums = np.zeros(len(volumes))
    total = 0.0
    for first in range(0, maps.shape[1], _BLOCK_VOXELS):
        block = slice(first, first + _BLOCK_VOXELS)
        map_values = maps[:, block] - mean
        values = volumes[:, block].astype(np.float64)
        values -= values.mean(axis=0)
        among += map_values @ map_values.T
        with_volumes += values @ map_values.T
        sums += values.sum(axis=1)
        total += float((values * values).sum())
    norms = np.sqrt(among.diagonal())
    scale = np.divide(1, norms, out=np.zeros_like(norms), where=moments(maps)[1][:, 0] > 0)
    return _Products(
        among * scale * scale[:, None],
        with_volumes * scale,
        total - float((sums * sums).sum()) / maps.shape[1],
    )


def rank_maps(
    maps: np.ndarray, volumes: np.ndarray, n_maps: int = N_MAPS
) -> tuple[np.ndarray, np.ndarray]:
    """Spend a budget of maps on those that explain most: greedy forward selection.

    Each map is the one that explains most of what those before it left of the volumes (orthogonal
    least squares: Chen, Billings & Luo 1989, doi:10.1080/00207178908953472). What is to be
    explained is the variance of :func:`variance_explained`.

    Parameters
    ----------
    maps : ndarray (n, V)
        The pool; offset, sign and scale of a map do not matter.
    volumes : ndarray (T, V)
        Of the same stretch of the run and the same voxels.
    n_maps : int
        The budget.

    Returns
    -------
    chosen : ndarray of int
        Indices of the maps, the best first; fewer than `n_maps` where the pool is exhausted or
        nothing is left that its maps explain.
    explained : ndarray
        Share of the variance that each and those before it explain together, 0 to 1.
    """
    products = _products(maps, volumes)
    total = products.total
    rest, with_volumes = products.among_maps, products.with_volumes
    chosen: list[int] = []
    gains: list[float] = []
    while len(chosen) < n_maps:
        squares = rest.diagonal()
        gain = np.divide(
            (with_volumes * with_volumes).sum(axis=0),
            squares,
            out=np.zeros(len(squares)),
            where=squares > _SMALLEST_REST,
        )
        if not len(gain) or gain.max() <= _SMALLEST_SHARE * total:
            break
        best = int(gain.argmax())
        chosen.append(best)
        gains.append(gain[best])
        # Gram-Schmidt: what is left of each map, and of the volumes, beside the one chosen.
        onto_best = rest[best] / np.sqrt(squares[best])
        course = with_volumes[:, best] / np.sqrt(squares[best])
        rest = rest - np.outer(onto_best, onto_best)
        with_volumes = with_volumes - np.outer(course, onto_best)
    return np.array(chosen, dtype=int), np.cumsum(gains) / total


def variance_explained(maps: np.ndarray, volumes: np.ndarray) -> float:
    """Share of the variance of volumes that maps explain: least squares of each volume on all.

    Maps and volumes are centred over voxels: else any map would be paid for the global signal
    by its mere offset. Volumes are centred over time too: the mean of one half of z-scored
    signals is minus that of the other, so that it would be known from there.

    Parameters
    ----------
    maps : ndarray (N, V)
    volumes : ndarray (T, V)

    Returns
    -------
    float
        1 − ‖residuals‖² / ‖volumes‖²; 0 where the volumes do not vary.
    """
    products = _products(maps, volumes)
    if not len(maps) or products.total <= 0:
        return 0.0
    eigenvalues, eigenvectors = np.linalg.eigh(products.among_maps)
    used = eigenvalues > _RCOND**2 * eigenvalues[-1]
    courses = products.with_volumes @ eigenvectors[:, used]
    return float((courses * courses / eigenvalues[used]).sum()) / products.total


def held_out_variance(
    maps: tuple[np.ndarray, np.ndarray], volumes: tuple[np.ndarray, np.ndarray]
) -> float:
    """Share of the variance of one half that the maps of the other explain; mean of both ways.

    Parameters
    ----------
    maps : pair of ndarray (N, V), (M, V)
        The budgets of the two halves.
    volumes : pair of ndarray (T, V), (U, V)
    """
    forward = variance_explained(maps[0], volumes[1])
    backward = variance_explained(maps[1], volumes[0])
    return (forward + backward) / 2


@dataclass(frozen=True, eq=False)
class HalfScores:
    """What was found in one half, scored in the other; each (P,), mean of both ways.

    0 where a half had no map left for the template: a network that was not found.

    Parameters
    ----------
    iou : ndarray
        Of the other half's map with the template.
    r : ndarray
        Pearson correlation over voxels of the other half's map with the template's values.
    select_iou : ndarray
        Of the map that was chosen with the template, in the half in which it was chosen. What it
        exceeds `iou` by is due to the search.
    reproducibility : ndarray
        Similarity of the map that was chosen with the other half's: |r| over voxels.
    """

    iou: np.ndarray
    r: np.ndarray
    select_iou: np.ndarray
    reproducibility: np.ndarray


def score_halves(
    maps: tuple[np.ndarray, np.ndarray],
    template_maps: np.ndarray,
    template_supports: np.ndarray,
    rule: SupportRule,
) -> HalfScores:
    """Choose a map for each template in one half, and score its like from the other half.

    In the first half each template gets one map, one to one, by IoU. The other half's partner of
    that map is found without any template: the map most similar to it by |r| over voxels, again
    one to one. Turned as the chosen map is, it is held against the template. Where the rule counts
    the positive side alone, a partner is not turned either, and must have a positive r.

    Parameters
    ----------
    maps : pair of ndarray (N, V), (M, V)
        The budgets of the two halves, as the method gave them, over the voxels that take part.
    template_maps : ndarray (P, V)
    template_supports : ndarray (P, V) of bool
    rule : SupportRule
    """
    first, second = (zscore_maps(half) if rule.standardize else half for half in maps)
    there = _score_one_way(first, second, template_maps, template_supports, rule)
    back = _score_one_way(second, first, template_maps, template_supports, rule)
    return HalfScores(*((there + back) / 2))


def _score_one_way(
    maps: np.ndarray,
    others: np.ndarray,
    template_maps: np.ndarray,
    template_supports: np.ndarray,
    rule: SupportRule,
) -> np.ndarray:
    """Choose among `maps` (N, V), score among `others` (M, V), both in the units of the rule.

    (4, P): the fields of :class:`HalfScores`.
    """
    scores = np.zeros((4, len(template_maps)))
    if not len(maps):
        return scores
    iou, template_r, select_iou, reproducibility = scores
    found = overlap_with_templates(maps, template_maps, template_supports, rule)
    chosen = assign_one_to_one(found.iou)
    served = np.flatnonzero(chosen >= 0)
    chosen = chosen[served]
    select_iou[served] = found.iou[chosen, served]
    r = zscore_maps(others) @ zscore_maps(maps[chosen]).T / maps.shape[1]
    likeness = abs(r) if rule.either_sign else r.clip(min=0)
    partners = assign_one_to_one(likeness)
    for k in np.flatnonzero(partners >= 0):
        p, partner = served[k], partners[k]
        if likeness[partner, k] == 0:
            continue
        turn = found.sign[chosen[k], p] * (-1 if rule.either_sign and r[partner, k] < 0 else 1)
        values = others[partner] * turn
        support = support_of(values, rule, int(template_supports[p].sum()))
        iou[p] = support_iou(support, template_supports[p])
        template_r[p] = (zscore_maps(values) * zscore_maps(template_maps[p])).mean()
        reproducibility[p] = likeness[partner, k]
    return scores
