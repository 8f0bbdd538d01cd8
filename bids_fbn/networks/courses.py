"""Courses of given maps by least squares, and how far two halves of the voxels agree on them."""

from __future__ import annotations

import numpy as np

__all__ = [
    "RCOND",
    "Coherence",
    "centred_courses",
    "chessboard",
    "inverse_of",
    "spatial_regression",
]

# Of the largest singular value: below it maps or courses say the same twice.
RCOND = 1e-6
# mm: voxels of two neighbouring blocks hardly share their noise.
_BLOCK = 45.0
# Where the boards lie, in blocks: none splits every network evenly.
_OFFSETS = ((0.0, 0.0, 0.0), (0.5, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 0.5))
# Of a correlation: what is closer to 1 is the same course.
_HIGHEST = 1 - 1e-6


def inverse_of(maps: np.ndarray) -> np.ndarray:
    """What volumes are multiplied with for least squares on maps (K, V), (V, K).

    The mean over voxels is taken out of the maps.
    """
    if maps.shape[1] == 0:
        return np.zeros(maps.T.shape)
    centred = maps - maps.mean(axis=1, keepdims=True)
    return np.linalg.pinv(centred.astype(np.float64), rcond=RCOND)


def spatial_regression(volumes: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Courses (T, K) of volumes (T, V), without their mean over voxels: the first step of dual
    regression. The inverse is that of :func:`inverse_of`."""
    if volumes.shape[1] == 0:
        return np.zeros((len(volumes), inverse.shape[1]))
    return np.asarray((volumes - volumes.mean(axis=1, keepdims=True)) @ inverse)


def centred_courses(volumes: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Least squares (T, K) of volumes (T, V) on maps (K, V), their means over T taken out."""
    courses = spatial_regression(volumes, inverse_of(maps))
    return np.asarray(courses - courses.mean(axis=0))


def chessboard(places: np.ndarray, offset: tuple[float, ...] = _OFFSETS[0]) -> np.ndarray:
    """One half of the voxels, in blocks of 45 mm like those of a chessboard.

    Parameters
    ----------
    places : ndarray (V, 3)
        mm.
    offset : tuple of float
        Of the board, in blocks.

    Returns
    -------
    ndarray (V,) of bool
    """
    blocks = np.floor((places - places.min(axis=0)) / _BLOCK + offset)
    return np.asarray(blocks.sum(axis=1) % 2 == 0)


class Coherence:
    """Whether the voxels of networks go together: r of the courses that two halves of them give.

    A set of maps is fitted to the volumes in each half of the brain's voxels by itself, all maps
    at once, as in dual regression. If there is such a network its two courses are one; of maps
    without one they share the noise that blocks have in common, and what maps of that smoothness
    share in this brain. So r is no evidence by itself: it wants to be held against other maps.

    Parameters
    ----------
    volumes : ndarray (T, V)
    places : ndarray (V, 3)
        Of the voxels, mm.
    """

    def __init__(self, volumes: np.ndarray, places: np.ndarray) -> None:
        centred = volumes - volumes.mean(axis=0)
        self._volumes = centred.astype(np.float32)
        first = np.array([chessboard(places, offset) for offset in _OFFSETS])
        self._halves = np.concatenate([first, ~first])

    def of(self, maps: np.ndarray) -> np.ndarray:
        """Of maps (K, V): Fisher's z of r, mean over four positions of the board, (K,).

        0 of a map that a half has nothing of.
        """
        n_halves, n_maps = len(self._halves), len(maps)
        inverse = np.zeros((maps.shape[1], n_halves, n_maps), dtype=np.float32)
        for number, half in enumerate(self._halves):
            inverse[half, number] = inverse_of(maps[:, half])
        # The inverse of maps without a mean takes none from the volumes either.
        courses = (self._volumes @ inverse.reshape(len(inverse), -1)).astype(np.float64)
        first, second = courses.reshape(-1, 2, n_halves // 2, n_maps).swapaxes(0, 1)
        power = np.sqrt((first**2).sum(axis=0) * (second**2).sum(axis=0))
        r = (first * second).sum(axis=0) / np.where(power > 0, power, 1)
        return np.asarray(np.arctanh(r.clip(-_HIGHEST, _HIGHEST)).mean(axis=0))
