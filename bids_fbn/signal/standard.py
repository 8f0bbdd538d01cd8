"""Brain mask, background and parcels of a standard space.

TemplateFlow has them for each space; where it cannot give them (nothing cached and no network, or
a space that it does not hold) the MNI brain that nilearn bundles serves, since all spaces that the
app accepts share MNI's coordinates. What was used is said in words beside every result.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bids_fbn.signal.grid import Grid, grid_geometry

__all__ = [
    "Parcels",
    "analysis_grid",
    "background_image",
    "load_image",
    "load_parcels",
    "resample_to_grid",
]

logger = logging.getLogger(__name__)

_BUNDLED = "the MNI152 brain bundled with nilearn"


@dataclass(frozen=True, eq=False)
class Parcels:
    """Names of places in the brain.

    Parameters
    ----------
    labels : ndarray (V,) of str
        Name of the place of each voxel, empty where none.
    source : str
        Where they came from, in words.
    """

    labels: np.ndarray
    source: str

    def save(self, path: Path) -> None:
        """Write to an ``.npz`` file."""
        np.savez_compressed(path, labels=self.labels.astype(str), source=np.array(self.source))

    @classmethod
    def load(cls, path: Path) -> Parcels:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(stored["labels"], str(stored["source"]))


def _from_templateflow(space: str, **query: Any) -> Path | None:
    """File of a template, from the cache or the network; None where neither has it."""
    os.environ.setdefault("TEMPLATEFLOW_AUTOUPDATE", "false")
    words = " ".join(f"{key}={value}" for key, value in query.items())
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),  # progress bars of downloads
        ):
            warnings.simplefilter("ignore")
            from templateflow import api

            found = api.get(space, **query)
    except Exception as error:  # templateflow raises bare Exceptions and those of requests
        logger.debug("TemplateFlow has no %s for %s here: %s", words, space, _first_line(error))
        return None
    paths = [found] if isinstance(found, Path | str) else list(found)
    return Path(paths[0]) if len(paths) == 1 else None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def load_image(path: Path, keep_file_open: bool = False) -> nib.Nifti1Image:
    """Open an image of volumes; its voxels stay on disk until they are asked for."""
    image: Any = nib.load(path, keep_file_open=keep_file_open)  # nibabel's type says less
    return image


def resample_to_grid(
    image: nib.Nifti1Image, grid: Grid, interpolation: str = "linear"
) -> np.ndarray:
    """Values of an image in the mask of the grid.

    Parameters
    ----------
    image : 3-D or 4-D image
    grid : Grid
    interpolation : {"linear", "continuous", "nearest"}
        As in :func:`nilearn.image.resample_img`; "continuous" overshoots at edges.

    Returns
    -------
    ndarray (V,) or (T, V)
    """
    from nilearn.image import resample_img

    if image.shape[:3] == grid.shape and np.allclose(image.affine, grid.affine):
        return grid.gather(np.asanyarray(image.dataobj))
    with warnings.catch_warnings():
        # Masks are interpolated on purpose: a voxel of the grid is in where half of it is.
        warnings.filterwarnings("ignore", message="Resampling binary images")
        resampled = resample_img(
            image,
            target_affine=grid.affine,
            target_shape=grid.shape,
            interpolation=interpolation,
            # Its range would be that of the volumes which happen to be in the image.
            clip=False,
            force_resample=True,
            copy_header=True,
        )
    return grid.gather(np.asanyarray(resampled.dataobj))


def analysis_grid(space: str, resolution: float) -> Grid:
    """The grid of a study: MNI box, brain mask of the template.

    Parameters
    ----------
    space : str
        BIDS name of the runs' standard space.
    resolution : float
        mm.
    """
    from nilearn.datasets import load_mni152_brain_mask

    path = _from_templateflow(
        space, resolution=2, desc="brain", suffix="mask", extension=".nii.gz"
    )
    if path is not None:
        mask_image, source = load_image(path), f"TemplateFlow: {path.name}"
    else:
        mask_image = load_mni152_brain_mask(resolution=2)
        source = _BUNDLED
    logger.info("analysis mask of %s from %s", space, source)
    affine, shape = grid_geometry(resolution)
    whole_box = Grid(affine=affine, mask=np.ones(shape, dtype=bool))
    as_float = nib.Nifti1Image(
        (np.asanyarray(mask_image.dataobj) > 0).astype(np.float32), mask_image.affine
    )
    inside = resample_to_grid(as_float, whole_box) >= 0.5
    return Grid(affine=affine, mask=inside.reshape(shape), space=space, mask_source=source)


def background_image(space: str) -> tuple[nib.Nifti1Image, str]:
    """T1-weighted brain to draw maps on, and where it came from."""
    from nilearn.datasets import load_mni152_template

    for query in ({"desc": "brain"}, {"desc": None}):
        path = _from_templateflow(space, resolution=2, suffix="T1w", extension=".nii.gz", **query)
        if path is not None:
            return load_image(path), f"TemplateFlow: {path.name}"
    return load_mni152_template(resolution=2), _BUNDLED


def load_parcels(grid: Grid, reach: float = 20.0) -> Parcels:
    """Names of cortical places, for saying where a map peaks.

    The 400 parcels of Schaefer et al. (2018) where TemplateFlow has them for the space, else the
    nearest of the 160 named regions of Dosenbach et al. (2010), whose coordinates nilearn bundles,
    within `reach` mm.
    """
    import pandas as pd
    from nilearn.datasets import fetch_coords_dosenbach_2010
    from scipy.spatial import cKDTree

    query = {"atlas": "Schaefer2018", "desc": "400Parcels7Networks", "suffix": "dseg"}
    image_path = _from_templateflow(grid.space, resolution=2, extension=".nii.gz", **query)
    table_path = _from_templateflow(grid.space, extension=".tsv", **query)
    if image_path is not None and table_path is not None:
        table = pd.read_csv(table_path, sep="\t")
        names = dict(
            zip(table["index"], table["name"].str.removeprefix("7Networks_"), strict=True)
        )
        index = resample_to_grid(load_image(image_path), grid, "nearest").astype(int)
        labels = np.array([names.get(value, "") for value in index], dtype=object)
        return Parcels(labels, f"TemplateFlow: {image_path.name}")
    regions = fetch_coords_dosenbach_2010()
    coordinates = np.array([[roi["x"], roi["y"], roi["z"]] for roi in _records(regions.rois)])
    # Labels read "vmPFC 1": the number counts regions of one name.
    names_of = [str(label).rsplit(" ", 1)[0] for label in regions.labels]
    distance, nearest = cKDTree(coordinates).query(grid.coordinates)
    labels = np.array(
        [names_of[i] if d <= reach else "" for d, i in zip(distance, nearest, strict=True)],
        dtype=object,
    )
    return Parcels(labels, "Dosenbach et al. (2010), coordinates bundled with nilearn")


def _records(rois: Any) -> list[Any]:
    return rois.to_dict("records") if hasattr(rois, "to_dict") else list(rois)
