"""Networks in the wrong place of the same brain."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.ndimage import distance_transform_edt, map_coordinates
from scipy.spatial.transform import Rotation
from threadpoolctl import threadpool_limits

from bids_fbn.networks.maps import zscore_maps
from bids_fbn.signal.grid import Grid

__all__ = ["turned_maps", "turned_null", "turned_supports"]

# rad
_LEAST_ANGLE = 1.0
# Correlation with itself, over voxels, above which a network still lies where it was: its axis is
# near that of the turn. Of what cannot leave its place, the best of so many turns is taken.
_MOST_ALIKE = 0.25
_TRIES = 20


def turned_maps(maps: np.ndarray, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Maps turned about the middle of the brain, all alike, about any axis.

    As in the spin tests of surfaces (Alexander-Bloch et al. 2018, Neuroimage 178), in the volume.
    Coordinates are by their standard deviations along the three axes, in which the brain is nearly
    a ball: cortex comes to lie on cortex, and little falls out of the brain. What comes from
    outside is 0. No map lies where it was.

    Parameters
    ----------
    maps : ndarray (K, V)
    grid : Grid
    rng : Generator

    Returns
    -------
    ndarray (K, V) of float32
    """
    volume = np.zeros(grid.shape, dtype=np.float32)

    def turn(source: np.ndarray) -> np.ndarray:
        turned = np.empty(maps.shape, dtype=np.float32)
        for number, own in enumerate(maps):
            volume[grid.mask] = own
            turned[number] = map_coordinates(volume, source, order=1)
        return turned

    return _elsewhere(maps, turn, grid, rng)


def turned_supports(
    supports: np.ndarray, grid: Grid, covered: np.ndarray
) -> Callable[[np.random.Generator], np.ndarray]:
    """The same of supports, each of as many voxels as before.

    They are the voxels whose places before the turn lie furthest inside the support, or nearest to
    it where some of it has fallen out of the brain.

    Parameters
    ----------
    supports : ndarray (P, V) of bool
    grid : Grid
    covered : ndarray (V,) of bool
        Voxels that take part.

    Returns
    -------
    callable
        Generator → supports (P, covered) of bool.
    """
    here = supports[:, covered]
    sizes = here.sum(axis=1)
    sampling = grid.resolution / grid.coordinates.std(axis=0)
    volume = np.zeros(grid.shape, dtype=bool)
    outside = []
    for own in supports:
        volume[grid.mask] = own
        distance = distance_transform_edt(~volume, sampling)
        outside.append(distance - distance_transform_edt(volume, sampling))

    def turn(source: np.ndarray) -> np.ndarray:
        turned = np.zeros(here.shape, dtype=bool)
        for number, (size, distance) in enumerate(zip(sizes, outside, strict=True)):
            values = map_coordinates(distance, source[:, covered], order=1, mode="nearest")
            turned[number, values.argsort(kind="stable")[:size]] = True
        return turned

    return lambda rng: _elsewhere(here, turn, grid, rng)


def _elsewhere(
    own: np.ndarray,
    turn: Callable[[np.ndarray], np.ndarray],
    grid: Grid,
    rng: np.random.Generator,
) -> np.ndarray:
    """What `turn` makes of :func:`_sources`, none of it like what it was (K, N)."""
    standard = zscore_maps(own.astype(np.float32))
    best, least = own, np.inf
    for _ in range(_TRIES):
        turned = turn(_sources(grid, rng))
        alike = (standard * zscore_maps(turned.astype(np.float32))).mean(axis=1).max()
        if alike < least:
            best, least = turned, alike
        if least < _MOST_ALIKE:
            break
    return best


def _sources(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Where the voxels of the brain lay before a turn, in voxels of the grid's box, (3, V)."""
    turn = Rotation.random(random_state=rng)
    while turn.magnitude() < _LEAST_ANGLE:
        turn = Rotation.random(random_state=rng)
    places = grid.coordinates
    middle, spread = places.mean(axis=0), places.std(axis=0)
    before = turn.apply((places - middle) / spread) * spread + middle
    to_voxels = np.linalg.inv(grid.affine)
    return (before @ to_voxels[:3, :3].T + to_voxels[:3, 3]).T


def turned_null(
    turn: Callable[[np.random.Generator], np.ndarray],
    statistic: Callable[[np.ndarray], np.ndarray],
    n_surrogates: int,
    seed: int = 0,
    threads: int = 1,
) -> np.ndarray:
    """A statistic of networks that lie elsewhere.

    Parameters
    ----------
    turn : callable
        Generator → what is turned, see :func:`turned_maps` and :func:`turned_supports`.
    statistic : callable
        What is turned → (P,).
    n_surrogates : int
        S, turns. One is the same however many follow.
    seed : int
    threads : int
        Turns that are made side by side; the result does not depend on it.

    Returns
    -------
    ndarray (S, P)
        (0, 0) if S is 0.
    """

    def of_turn(number: int) -> np.ndarray:
        return statistic(turn(np.random.default_rng([seed, number])))

    # The threads of the linear algebra would be in the way of these.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(of_turn, range(n_surrogates)))
    return np.array(found, dtype=float).reshape(n_surrogates, -1 if n_surrogates else 0)
