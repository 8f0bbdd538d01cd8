"""Maps in the wrong place of the same brain."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from threadpoolctl import threadpool_limits

from bids_fbn.signal.grid import Grid

__all__ = ["turned_maps", "turned_null"]

# rad: nearer to where it was a map still lies on its network.
_LEAST_ANGLE = 1.0


def turned_maps(maps: np.ndarray, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Maps turned about the middle of the brain, each by itself, about any axis.

    Each keeps its shape and its smoothness, as in the spin tests of surfaces (Alexander-Bloch et
    al. 2018, Neuroimage 178), but for what falls out of the brain; what comes from outside is 0.

    Parameters
    ----------
    maps : ndarray (K, V)
    grid : Grid
    rng : Generator

    Returns
    -------
    ndarray (K, V) of float32
    """
    places = grid.coordinates
    middle = places.mean(axis=0)
    to_voxels = np.linalg.inv(grid.affine)
    volume = np.zeros(grid.shape, dtype=np.float32)
    turned = np.empty(maps.shape, dtype=np.float32)
    for number, own in enumerate(maps):
        turn = Rotation.random(random_state=rng)
        while turn.magnitude() < _LEAST_ANGLE:
            turn = Rotation.random(random_state=rng)
        volume[grid.mask] = own
        source = (turn.apply(places - middle) + middle) @ to_voxels[:3, :3].T + to_voxels[:3, 3]
        turned[number] = map_coordinates(volume, source.T, order=1)
    return turned


def turned_null(
    maps: np.ndarray,
    grid: Grid,
    covered: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    n_surrogates: int,
    seed: int = 0,
    threads: int = 1,
) -> np.ndarray:
    """A statistic of sets of maps that lie elsewhere, see :func:`turned_maps`.

    Parameters
    ----------
    maps : ndarray (K, V)
    grid : Grid
    covered : ndarray (V,) of bool
        Voxels that take part.
    statistic : callable
        Maps (K, covered) → (P,).
    n_surrogates : int
        S, sets. One is the same however many follow.
    seed : int
    threads : int
        Sets that are made side by side; the result does not depend on it.

    Returns
    -------
    ndarray (S, P)
        (0, 0) if S is 0.
    """

    def of_set(number: int) -> np.ndarray:
        turned = turned_maps(maps, grid, np.random.default_rng([seed, number]))
        return statistic(turned[:, covered])

    # The threads of the linear algebra would be in the way of these.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(of_set, range(n_surrogates)))
    return np.array(found, dtype=float).reshape(n_surrogates, -1 if n_surrogates else 0)
