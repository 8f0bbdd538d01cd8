"""The best overlap that a search finds elsewhere in the brain, or among random smooth maps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from bids_fbn.networks.maps import SupportRule, moments
from bids_fbn.networks.overlap import Matcher, assign_one_to_one
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.networks.tissue import grey_quarters
from bids_fbn.nulls.fields import draw_fields, estimate_smoothness, field_correlation
from bids_fbn.nulls.turned import turned_null, turning
from bids_fbn.signal.grid import Grid

__all__ = ["elsewhere_null", "random_maps_null", "search_statistic"]

# Enough for the drawing of fields to be efficient, few enough for memory.
_SETS_AT_A_TIME = 16


def search_statistic(iou: np.ndarray) -> np.ndarray:
    """IoU (N, P) of each template with the map assigned to it, (P,); 0 where there is none."""
    chosen = assign_one_to_one(iou)
    best = iou[chosen, np.arange(iou.shape[1])]
    return np.where(chosen >= 0, best, 0)


def elsewhere_null(
    maps: np.ndarray,
    templates: TemplateSet,
    grid: Grid,
    covered: np.ndarray,
    rule: SupportRule,
    n_surrogates: int = 1000,
    seed: int = 0,
    threads: int = 1,
) -> dict[str, np.ndarray]:
    """Repeat the search among the same maps for the templates elsewhere in the brain.

    Parameters
    ----------
    maps : ndarray (N, V)
        Candidates, in the units of the rule; or bool.
    templates : TemplateSet
        P templates on the grid.
    grid : Grid
    covered : ndarray (V,) of bool
        Voxels that take part.
    rule : SupportRule
    n_surrogates : int
        S, turns (:func:`~bids_fbn.nulls.turned.turning`). One is the same however many follow.
    seed : int
    threads : int
        Turns that are made side by side; the result does not depend on it.

    Returns
    -------
    dict of ndarray
        Of either kind of turn, half of them each, (S/2, P): IoU of each template with the
        candidate assigned to it.
    """
    candidates = np.asarray(maps, dtype=np.float32)[:, covered]

    def searched(turned: np.ndarray) -> np.ndarray:
        matcher = Matcher(turned, rule, np.ones(turned.shape[1], dtype=bool))
        return search_statistic(matcher.match(candidates).iou)

    supports = templates.supports
    turn = turning(supports, grid, covered, grey_quarters(grid))
    nulls = turned_null(turn, searched, n_surrogates, seed, threads)
    return {kind: null.reshape(len(null), len(supports)) for kind, null in nulls.items()}


def random_maps_null(
    maps: np.ndarray,
    templates: TemplateSet,
    grid: Grid,
    covered: np.ndarray,
    rule: SupportRule,
    n_surrogates: int = 1000,
    seed: int = 0,
    threads: int = 1,
) -> np.ndarray:
    """Repeat the search for networks among surrogate maps.

    A surrogate is a whole set of N maps: Gaussian fields, each as smooth as the candidate that it
    stands for, and as correlated with each other. Each goes through the same search. Where more
    than the order of a map's values decides on its support (a fixed threshold, values that tie),
    its surrogate has the same values, in the order of the field: then supports are of the same
    size.

    Parameters
    ----------
    maps, templates, grid, covered, rule, seed, threads
        As of :func:`elsewhere_null`.
    n_surrogates : int
        S, surrogate sets. One is the same however many follow.

    Returns
    -------
    ndarray (S, P)
        IoU of each template with the surrogate assigned to it.
    """
    candidates = np.asarray(maps, dtype=np.float32)[:, covered]
    supports = templates.supports[:, covered]
    matcher = Matcher(supports, rule, np.ones(supports.shape[1], dtype=bool))
    # The first components of a run are smoother than the last; smooth maps match by chance more.
    smoothness = [estimate_smoothness(one[None], grid, covered) for one in np.asarray(maps)]
    mixing = _square_root(field_correlation(candidates)).astype(np.float32)
    kept_values = {
        number: np.sort(candidates[number])
        for number in np.flatnonzero(_values_matter(candidates, supports.sum(axis=1), rule))
    }

    def surrogates(source: np.random.SeedSequence) -> np.ndarray:
        rng = np.random.default_rng(source)
        drawn = np.stack([draw_fields(own, _SETS_AT_A_TIME, rng) for own in smoothness], axis=1)
        return np.array([search_statistic(matcher.match(like(mixing @ x)).iou) for x in drawn])

    def like(fields: np.ndarray) -> np.ndarray:
        for number, ordered in kept_values.items():
            fields[number, fields[number].argsort()] = ordered
        return fields

    sources = np.random.SeedSequence(seed).spawn(-(-n_surrogates // _SETS_AT_A_TIME))
    # The threads of the linear algebra would be in the way of these.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        blocks = list(pool.map(surrogates, sources))
    return np.concatenate([np.zeros((0, len(supports))), *blocks])[:n_surrogates]


def _square_root(correlation: np.ndarray) -> np.ndarray:
    spread, axes = np.linalg.eigh(correlation)
    return (axes * np.sqrt(spread.clip(min=0))) @ axes.T


def _values_matter(maps: np.ndarray, sizes: np.ndarray, rule: SupportRule) -> np.ndarray:
    """Maps (N, V) whose supports are not simply their highest (or lowest) voxels, (N,) of bool."""
    if rule.threshold is not None:
        return np.ones(len(maps), dtype=bool)
    ordered = np.sort(maps)
    ends = sizes[(sizes > 0) & (sizes < maps.shape[1])]
    high = ordered[:, -ends] == ordered[:, -ends - 1]
    low = ordered[:, ends] == ordered[:, ends - 1]
    return (high | low).any(axis=1) | (moments(maps)[1][:, 0] == 0)
