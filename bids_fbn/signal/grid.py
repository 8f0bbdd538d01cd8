"""The analysis grid: the voxels that every run, model and map of a study share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import nibabel as nib

__all__ = ["Grid", "grid_geometry"]

# Centre of the first voxel and extent (last centre − first centre) of the 4 mm MNI box of the seed
# papers (49×58×47); every other resolution covers the same box.
_ORIGIN_MM = (96.0, -132.0, -70.0)
_EXTENT_MM = (192.0, 228.0, 184.0)


def grid_geometry(resolution: float) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Affine and shape of the MNI analysis grid.

    Parameters
    ----------
    resolution : float
        Edge of a voxel, mm.

    Returns
    -------
    affine : ndarray (4, 4)
        ``diag(-r, r, r)`` with origin (96, −132, −70) mm.
    shape : tuple of int
        As many voxels as cover the box of the 4 mm grid.

    Examples
    --------
    >>> grid_geometry(4)[1]
    (49, 58, 47)
    >>> grid_geometry(8)[1]
    (25, 30, 24)
    """
    affine = np.diag([-resolution, resolution, resolution, 1.0])
    affine[:3, 3] = _ORIGIN_MM
    shape = tuple(int(np.ceil(extent / resolution - 1e-6)) + 1 for extent in _EXTENT_MM)
    return affine, (shape[0], shape[1], shape[2])


@dataclass(frozen=True, eq=False)
class Grid:
    """A box of voxels in MNI space and the brain mask in it.

    Parameters
    ----------
    affine : ndarray (4, 4)
        Voxel index → mm.
    mask : ndarray (X, Y, Z) of bool
        The analysis mask; V voxels are set.
    space : str
        BIDS name of the standard space, e.g. ``MNI152NLin2009cAsym``.
    mask_source : str
        Where the mask came from, in words; written to sidecars and logs.
    """

    affine: np.ndarray
    mask: np.ndarray
    space: str = "MNI152NLin2009cAsym"
    mask_source: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        x, y, z = self.mask.shape
        return x, y, z

    @property
    def resolution(self) -> float:
        """Edge of a voxel, mm."""
        return float(np.linalg.norm(self.affine[:3, 0]))

    @cached_property
    def n_voxels(self) -> int:
        """V, the number of voxels in the mask."""
        return int(self.mask.sum())

    @cached_property
    def bounding_box(self) -> tuple[slice, slice, slice]:
        """The smallest box that holds the mask."""
        return tuple(  # type: ignore[return-value]
            slice(int(where.min()), int(where.max()) + 1) for where in np.nonzero(self.mask)
        )

    @cached_property
    def coordinates(self) -> np.ndarray:
        """MNI coordinates of the voxels in the mask, (V, 3), mm."""
        ijk = np.argwhere(self.mask)
        return ijk @ self.affine[:3, :3].T + self.affine[:3, 3]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of affine, shape and mask: two results fit together only if theirs are equal."""
        digest = hashlib.sha256()
        digest.update(np.asarray(self.affine, dtype=np.float64).round(6).tobytes())
        digest.update(repr(self.shape).encode())
        digest.update(np.packbits(self.mask).tobytes())
        return digest.hexdigest()[:16]

    def gather(self, volumes: np.ndarray) -> np.ndarray:
        """Values in the mask: (X, Y, Z) → (V,), (X, Y, Z, T) → (T, V)."""
        return np.ascontiguousarray(volumes[self.mask].T)

    def scatter(self, values: np.ndarray, fill: float = 0) -> np.ndarray:
        """Inverse of :meth:`gather`: (V,) → (X, Y, Z), (T, V) → (X, Y, Z, T)."""
        values = np.asarray(values)
        volumes = np.full(self.shape + values.shape[:-1], fill, dtype=values.dtype)
        volumes[self.mask] = values.T
        return volumes

    def image(self, values: np.ndarray) -> nib.Nifti1Image:
        """NIfTI image of values in the mask, (V,) or (T, V), 0 outside.

        Both form codes are set to 4 (MNI).
        """
        import nibabel as nib

        image = nib.Nifti1Image(self.scatter(values), self.affine)
        image.header.set_xyzt_units("mm", "sec")
        image.set_sform(self.affine, code=4)
        image.set_qform(self.affine, code=4)
        return image

    def save(self, path: Path) -> None:
        """Write to an ``.npz`` file."""
        np.savez_compressed(
            path,
            affine=self.affine,
            mask=self.mask,
            space=np.array(self.space),
            mask_source=np.array(self.mask_source),
        )

    @classmethod
    def load(cls, path: Path) -> Grid:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(
                affine=stored["affine"],
                mask=stored["mask"],
                space=str(stored["space"]),
                mask_source=str(stored["mask_source"]),
            )
