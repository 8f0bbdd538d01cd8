"""Networks in the wrong place of the same brain."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from nibabel.affines import apply_affine
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from threadpoolctl import threadpool_limits

from bids_fbn.networks.maps import zscore_maps
from bids_fbn.signal.grid import Grid

__all__ = ["Turn", "turned_null", "turning"]

# rad
_LEAST_ANGLE = 1.0
# Correlation with itself, over voxels, above which a network still lies where it was: its axis is
# near that of the turn. Of what cannot leave its place, the best of so many turns is taken.
_MOST_ALIKE = 0.25
_TRIES = 20
# What is near a network ranks above what is far from it where a map has the same value in both.
_NEARNESS_MM = 30.0
_NEARNESS_WEIGHT = 1e-3


class Turn(Protocol):
    """Networks elsewhere: generator → maps (K, covered).

    Either the whole brain is turned, or each half about its own middle, the right one as the
    mirror image of the left.
    """

    def __call__(self, rng: np.random.Generator, mirrored: bool = False) -> np.ndarray: ...


def turning(
    maps: np.ndarray, grid: Grid, covered: np.ndarray, tissue: np.ndarray | None = None
) -> Turn:
    """Turn maps about the middle of the brain, or of its halves, all alike, about any axis.

    As in the spin tests of surfaces (Alexander-Bloch et al. 2018, Neuroimage 178), in the volume.
    Coordinates are by their standard deviations along the three axes, in which the brain is nearly
    a ball, and so is each half: cortex comes to lie on cortex, and little falls out of the brain.
    In each tissue a map keeps its values, in the order of what is interpolated: else it would be
    smoother than it was, have lost what fell out, and lie in white matter, which differs from
    networks anywhere. No map lies where it was.

    Networks are in one piece across the middle, and alike on both sides. A turn of the whole brain
    keeps the one, a mirrored turn of its halves the other.

    Parameters
    ----------
    maps : ndarray (K, V)
        Or supports, of bool.
    grid : Grid
    covered : ndarray (V,) of bool
        Voxels that take part.
    tissue : ndarray (V,), optional
        Equal in voxels of one tissue; all are of one, if None.
    """
    here = maps[:, covered]
    of_voxel = np.zeros(here.shape[1], int) if tissue is None else tissue[covered]
    by_tissue = np.argsort(of_voxel, kind="stable")
    starts = np.unique(of_voxel[by_tissue], return_index=True)[1]
    ordered = [np.sort(own, axis=1) for own in np.split(here[:, by_tissue], starts[1:], axis=1)]
    standard = zscore_maps(here.astype(np.float32))
    volumes = np.zeros((*grid.shape, len(maps)), dtype=np.float32)
    volumes[grid.mask] = maps.T
    sigma = _NEARNESS_MM / grid.resolution
    volumes += _NEARNESS_WEIGHT * gaussian_filter(volumes, sigma, axes=(0, 1, 2))
    axes = [np.arange(n) for n in grid.shape]
    to_voxels = np.linalg.inv(grid.affine)
    # All maps at once, at the same places.
    values_at = RegularGridInterpolator(axes, volumes, bounds_error=False, fill_value=0)
    wanted = grid.coordinates[covered][by_tissue]
    ways = [_standardised(grid.coordinates, wanted, mirrored) for mirrored in (False, True)]

    def turned_by(rotation: Rotation, mirrored: bool) -> np.ndarray:
        places, middle, spread, sides = ways[mirrored]
        before = rotation.apply(places) * spread + middle
        found = values_at(apply_affine(to_voxels, before * sides)).T.astype(np.float32)
        turned, start = np.empty_like(here), 0
        for own in ordered:
            stop = start + own.shape[1]
            order = by_tissue[start:stop][found[:, start:stop].argsort(axis=1)]
            np.put_along_axis(turned, order, own, axis=1)
            start = stop
        return turned

    def turn(rng: np.random.Generator, mirrored: bool = False) -> np.ndarray:
        best, least = here, np.inf
        for _ in range(_TRIES):
            turned = turned_by(_rotation(rng), mirrored)
            alike = (standard * zscore_maps(turned.astype(np.float32))).mean(axis=1).max()
            if alike < least:
                best, least = turned, alike
            if least < _MOST_ALIKE:
                break
        return best

    return turn


def _standardised(
    everywhere: np.ndarray, wanted: np.ndarray, mirrored: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Places (V, 3) by middle and spread of the brain or, mirrored, of its right half.

    And what brings places back to their side.
    """
    sides = [np.ones_like(places) for places in (everywhere, wanted)]
    if mirrored:
        for places, side in zip((everywhere, wanted), sides, strict=True):
            side[places[:, 0] < 0, 0] = -1
    folded = everywhere * sides[0]
    middle, spread = folded.mean(axis=0), folded.std(axis=0)
    return (wanted * sides[1] - middle) / spread, middle, spread, sides[1]


def _rotation(rng: np.random.Generator) -> Rotation:
    turn = Rotation.random(random_state=rng)
    while turn.magnitude() < _LEAST_ANGLE:
        turn = Rotation.random(random_state=rng)
    return turn


def turned_null(
    turn: Turn,
    statistic: Callable[[np.ndarray], np.ndarray],
    n_surrogates: int,
    seed: int = 0,
    threads: int = 1,
) -> dict[str, np.ndarray]:
    """A statistic of networks that lie elsewhere, by either kind of turn.

    Parameters
    ----------
    turn : callable
        See :func:`turning`.
    statistic : callable
        What is turned → (P,).
    n_surrogates : int
        S, turns, of the whole brain and of its halves one after the other. One is the same however
        many follow.
    seed : int
    threads : int
        Turns that are made side by side; the result does not depend on it.

    Returns
    -------
    dict of ndarray
        ``turned`` (⌈S/2⌉, P) and ``mirrored`` (⌊S/2⌋, P); (0, 0) where there are none.
    """

    def of_turn(number: int) -> np.ndarray:
        return statistic(turn(np.random.default_rng([seed, number]), mirrored=bool(number % 2)))

    # The threads of the linear algebra would be in the way of these.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(of_turn, range(n_surrogates)))
    kinds = {"turned": found[::2], "mirrored": found[1::2]}
    return {
        kind: np.array(values, dtype=float).reshape(len(values), -1 if values else 0)
        for kind, values in kinds.items()
    }
