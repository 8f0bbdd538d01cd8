"""Smoothing and resampling as one matrix for each axis.

A Gaussian and a cubic spline are linear and act on one axis at a time. Where the axes of the file
are those of the grid, whatever their order and direction, both together are three small matrices,
and only what the analysis mask needs is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import inv
from scipy.ndimage import affine_transform, gaussian_filter1d

from bids_fbn.signal.grid import Grid

__all__ = ["SeparableResampling"]

# Voxels by which the axes may part over the whole grid and still count as parallel; what float32
# in a header makes of an angle of 0 is far less.
_PARALLEL = 1e-3
# Smaller weights are taken for 0. The tail of a spline has no end; as float32 it becomes subnormal
# numbers, with which the product took ten times longer.
_NEGLIGIBLE = 1e-9
_FWHM_PER_SIGMA = np.sqrt(8 * np.log(2))


@dataclass(frozen=True, eq=False)
class SeparableResampling:
    """:func:`nilearn.image.smooth_img` and :func:`~nilearn.image.resample_img`, for one volume.

    Parameters
    ----------
    matrices : tuple of three ndarray (N', N) of float32
        For Z, Y and X of the file: weights of its voxels in those of the mask's bounding box.
    used : slice
        The planes along Z that the first matrix refers to.
    index : ndarray (V,) of int
        Where the voxels of the mask lie in the flattened result.
    resamples : bool
        False where the file is on the grid already.
    """

    matrices: tuple[np.ndarray, np.ndarray, np.ndarray]
    used: slice
    index: np.ndarray
    resamples: bool

    @classmethod
    def plan(
        cls, affine: np.ndarray, shape: Sequence[int], grid: Grid, smoothing: float
    ) -> SeparableResampling | None:
        """Matrices for volumes of a shape (X, Y, Z), smoothed by a FWHM in mm.

        None where the axes of the file are oblique to those of the grid.
        """
        resamples = not (tuple(shape) == grid.shape and np.allclose(affine, grid.affine))
        # File voxel = turn @ grid voxel + offset, as resample_img has it.
        to_file = inv(affine) @ grid.affine if resamples else np.eye(4)
        turn, offset = to_file[:3, :3], to_file[:3, 3]
        axes = np.abs(turn).argmax(axis=1)  # of the grid, for each of the file
        aside = np.abs(turn) * (np.array(grid.shape) - 1)
        aside[range(3), axes] = 0
        if len(set(axes)) < 3 or aside.max() > _PARALLEL:
            return None
        sigma = smoothing / _FWHM_PER_SIGMA / np.linalg.norm(affine[:3, :3], axis=0)
        matrices = []
        for axis, grid_axis in enumerate(axes):
            weights = np.eye(shape[axis])
            if smoothing:
                weights = gaussian_filter1d(weights, sigma[axis], axis=0)
            if resamples:
                step = turn[axis, grid_axis]
                weights = _spline(weights, step, offset[axis], grid.shape[grid_axis])
            weights = weights[grid.bounding_box[grid_axis]]
            weights[np.abs(weights) < _NEGLIGIBLE] = 0
            matrices.append(weights.astype(np.float32))
        # Files are stored with X fastest, so that an array of a volume is (Z, Y, X).
        first = np.array([box.start for box in grid.bounding_box])
        inside = (np.argwhere(grid.mask) - first)[:, axes[::-1]]
        index = np.ravel_multi_index(tuple(inside.T), tuple(len(m) for m in matrices[::-1]))
        z, y, x = matrices[::-1]
        planes = np.flatnonzero(z.any(axis=0))
        used = slice(int(planes.min(initial=len(z.T) - 1)), int(planes.max(initial=0)) + 1)
        return cls((np.ascontiguousarray(z[:, used]), y, x), used, index, resamples)

    def __call__(self, volume: np.ndarray) -> np.ndarray:
        """Values in the mask, (V,) of float32, of a volume (Z, Y, X)."""
        along_z, along_y, along_x = self.matrices
        part = np.ascontiguousarray(volume[self.used], dtype=np.float32)
        n_z, n_y, n_x = part.shape
        # The largest product first, and with the longest rows.
        part = along_z @ part.reshape(n_z, n_y * n_x)
        part = part.reshape(-1, n_x) @ along_x.T
        part = along_y @ part.reshape(len(along_z), n_y, len(along_x))
        return part.reshape(-1)[self.index]


def _spline(weights: np.ndarray, step: float, offset: float, n: int) -> np.ndarray:
    """Each column at ``offset + step × (0 … n − 1)`` by cubic spline, 0 outside."""
    return np.stack(
        [
            affine_transform(column, np.array([[step]]), offset, (n,), order=3)
            for column in np.ascontiguousarray(weights.T)
        ],
        axis=1,
    )
