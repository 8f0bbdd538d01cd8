"""Where grey and white matter are, by the maps of them that nilearn brings along."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from bids_fbn.signal.grid import Grid

if TYPE_CHECKING:
    import nibabel as nib

__all__ = [
    "GREY_MATTER_THRESHOLD",
    "grey_fraction",
    "grey_quarters",
    "resampled",
    "tissue_fraction",
    "white_fraction",
]

# The MNI template is a mean over people, in which cortex is blurred: at half probability it loses
# about half of the 300 ROI centres of Seitzman et al. 2020. A quarter keeps 95 % of them at every
# resolution from 3 to 10 mm, and little white matter (1.5 to 1.8 litres in all).
GREY_MATTER_THRESHOLD = 0.25


def grey_fraction(grid: Grid) -> np.ndarray:
    """Mean probability of grey matter in each voxel, (V,); the grid is in an MNI space."""
    return _of_template("gm", grid)


def white_fraction(grid: Grid) -> np.ndarray:
    """Mean probability of white matter in each voxel, (V,); the grid is in an MNI space."""
    return _of_template("wm", grid)


def _of_template(tissue: str, grid: Grid) -> np.ndarray:
    return grid.gather(_in_box(tissue, tuple(grid.affine.ravel().tolist()), grid.shape))


# Takes a second or two, and every run and model asks for it.
@lru_cache(maxsize=4)
def _in_box(tissue: str, affine: tuple[float, ...], shape: tuple[int, int, int]) -> np.ndarray:
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template

    load = {"gm": load_mni152_gm_template, "wm": load_mni152_wm_template}[tissue]
    box = Grid(np.reshape(affine, (4, 4)), np.ones(shape, dtype=bool))
    return tissue_fraction(load(resolution=2), box)


def grey_quarters(grid: Grid) -> np.ndarray:
    """The quarter of the brain that a voxel is in, by its share of grey matter.

    Parameters
    ----------
    grid : Grid
        In an MNI space.

    Returns
    -------
    ndarray (V,) of int
        0, little of it, to 3.
    """
    grey = grey_fraction(grid)
    return np.digitize(grey, np.quantile(grey, [0.25, 0.5, 0.75]))


def tissue_fraction(tissue: nib.Nifti1Image, grid: Grid) -> np.ndarray:
    """Mean of a fine map over each voxel of a grid.

    A Gaussian of the voxel's width before linear interpolation stands for the mean over the voxel:
    without it a coarse grid samples points, and thin cortex falls between them.

    Parameters
    ----------
    tissue : Nifti1Image (X', Y', Z')
        For example the probability of grey matter at 2 mm.
    grid : Grid
        Where the fractions are wanted; its mask is not used.

    Returns
    -------
    ndarray (X, Y, Z) of float32
    """
    from nilearn.image import smooth_img

    return resampled(smooth_img(tissue, grid.resolution), grid)


def resampled(image: nib.Nifti1Image, grid: Grid) -> np.ndarray:
    """Values of an image at the grid's voxels, (X, Y, Z) or (X, Y, Z, P), float32.

    Linear: higher orders overshoot at the edges of a thresholded map, which moves the maximum that
    the support rule of templates refers to.
    """
    from nilearn.image import resample_img

    there = resample_img(
        image,
        target_affine=grid.affine,
        target_shape=grid.shape,
        interpolation="linear",
        force_resample=True,
        copy_header=True,
    )
    return np.nan_to_num(np.asarray(there.dataobj, dtype=np.float32))
