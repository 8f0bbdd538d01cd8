"""A BOLD file on the analysis grid: stream, smooth, resample.

The run is never in memory at full resolution: volumes are read, smoothed and resampled a few at a
time into a matrix on disk.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_fbn.errors import RunError
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.standard import load_image, resample_to_grid

__all__ = ["ResampledRun", "resample_run", "whole_or_not_at_all"]

# Volumes are read in chunks of about this size as float32: large enough that the overhead of a
# chunk does not show, small beside the memory that a cluster gives to one task.
_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True, eq=False)
class ResampledRun:
    """A run on the analysis grid, not yet cleaned.

    Parameters
    ----------
    data : ndarray (T, V) of float32, memory-mapped
    covered : ndarray (V,) of bool
        Voxels inside the run's own mask with signal that is finite and varies.
    empty_volumes : tuple of int
        Volumes without any signal.
    n_not_finite : int
        Voxels (of the file) that hold NaN or infinity in a volume with signal.
    """

    data: np.ndarray
    covered: np.ndarray
    empty_volumes: tuple[int, ...]
    n_not_finite: int


def _chunks(image: nib.Nifti1Image, path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Successive volumes as float32, each (start, (X, Y, Z, n))."""
    n_volumes = image.shape[3]
    volume_bytes = 4 * int(np.prod(image.shape[:3]))
    step = max(1, _CHUNK_BYTES // volume_bytes)
    for start in range(0, n_volumes, step):
        try:
            volumes = image.dataobj[..., start : start + step]
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise RunError(
                f"{path}: cannot be read from volume {start} of {n_volumes} on, truncated or "
                f"corrupt ({_one_line(error)}); copy it again or rerun its preprocessing"
            ) from None
        # A copy: what nibabel gives of a float32 file cannot be written to.
        yield start, np.array(volumes, dtype=np.float32)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _open(path: Path) -> nib.Nifti1Image:
    try:
        image = load_image(path, keep_file_open=True)
    except FileNotFoundError:
        raise RunError(f"{path}: does not exist") from None
    except (nib.filebasedimages.ImageFileError, OSError, EOFError, zlib.error) as error:
        raise RunError(f"{path}: not a readable NIfTI image ({_one_line(error)})") from None
    if len(image.shape) != 4:
        raise RunError(f"{path}: {len(image.shape)}-D, where a run of volumes is 4-D")
    return image


def _run_mask(path: Path | None, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """The run's own brain mask, (X, Y, Z) of bool; everywhere where there is none."""
    if path is None:
        return np.ones(shape, dtype=bool)
    try:
        image = load_image(path)
        mask = np.asanyarray(image.dataobj) > 0
    except (
        nib.filebasedimages.ImageFileError,
        OSError,
        EOFError,
        ValueError,
        zlib.error,
    ) as error:
        raise RunError(f"{path}: not a readable mask ({_one_line(error)})") from None
    if mask.shape != shape or not np.allclose(image.affine, affine, atol=1e-3):
        raise RunError(
            f"{path}: shape {mask.shape} or position differ from its run's {shape}; "
            "rerun the preprocessing of this run, or remove the mask"
        )
    if not mask.any():
        raise RunError(f"{path}: the mask is empty; rerun the preprocessing of this run")
    return mask


def resample_run(
    bold: Path, grid: Grid, out: Path, smoothing: float = 0.0, mask: Path | None = None
) -> ResampledRun:
    """Smooth a run and resample it to the analysis grid, a few volumes at a time.

    Smoothing comes first, at the run's own resolution: on a coarser grid it is what keeps
    noise above the grid's resolution from folding into the samples.

    Parameters
    ----------
    bold : Path
        4-D NIfTI.
    grid : Grid
    out : Path
        ``.npy`` file for the (T, V) float32 matrix.
    smoothing : float
        FWHM, mm; 0 for none.
    mask : Path, optional
        The run's brain mask.

    Raises
    ------
    RunError
        If a file cannot be read, or the run has no signal in the analysis mask.
    """
    from nilearn.image import smooth_img
    from nilearn.image.resampling import BoundingBoxError

    image = _open(bold)
    in_run = _run_mask(mask, image.shape[:3], image.affine)
    survey = _survey(image, bold, in_run)
    if len(survey.empty_volumes) == image.shape[3]:
        raise RunError(f"{bold}: no signal in any volume; rerun the preprocessing of this run")
    has_signal = nib.Nifti1Image(
        (in_run & survey.finite & survey.varies).astype(np.float32), image.affine
    )
    try:
        covered = resample_to_grid(has_signal, grid) >= 0.5
    except BoundingBoxError:
        covered = np.zeros(grid.n_voxels, dtype=bool)
    if not covered.any():
        raise RunError(
            f"{bold}: no voxel with signal inside the brain of {grid.space}; is the run really "
            "in this space?"
        )
    with whole_or_not_at_all(out):
        data = np.lib.format.open_memmap(
            out, mode="w+", dtype=np.float32, shape=(image.shape[3], grid.n_voxels)
        )
        for start, volumes in _chunks(image, bold):
            # A voxel that is NaN now and then would be a spike in all that smoothing reaches.
            volumes[~survey.finite] = 0
            np.nan_to_num(volumes, copy=False, nan=0, posinf=0, neginf=0)
            chunk = nib.Nifti1Image(volumes, image.affine)
            if smoothing:
                chunk = smooth_img(chunk, smoothing)
            data[start : start + volumes.shape[3]] = resample_to_grid(chunk, grid, "continuous")
        data[:, ~covered] = 0
        data.flush()
    return ResampledRun(data, covered, survey.empty_volumes, int((in_run & ~survey.finite).sum()))


@dataclass(frozen=True, eq=False)
class _Survey:
    """What the volumes of a run hold.

    Parameters
    ----------
    finite : ndarray (X, Y, Z) of bool
        Voxels that are finite in all volumes with signal.
    varies : ndarray (X, Y, Z) of bool
        Voxels that change over the volumes with signal.
    empty_volumes : tuple of int
        Volumes without any signal in the run's mask.
    """

    finite: np.ndarray
    varies: np.ndarray
    empty_volumes: tuple[int, ...]


def _survey(image: nib.Nifti1Image, path: Path, in_run: np.ndarray) -> _Survey:
    finite = np.ones(in_run.shape, dtype=bool)
    lowest = np.full(in_run.shape, np.inf, dtype=np.float32)
    highest = -lowest
    empty: list[int] = []
    for start, volumes in _chunks(image, path):
        good = np.isfinite(volumes)
        volumes[~good] = 0
        is_empty = np.ptp(volumes[in_run], axis=0) == 0
        empty.extend(int(start + i) for i in np.flatnonzero(is_empty))
        # A volume without signal would make every voxel vary, and one of NaN leave none.
        if not is_empty.all():
            finite &= good[..., ~is_empty].all(axis=3)
            np.minimum(lowest, volumes[..., ~is_empty].min(axis=3), out=lowest)
            np.maximum(highest, volumes[..., ~is_empty].max(axis=3), out=highest)
    return _Survey(finite, highest > lowest, tuple(empty))


@contextlib.contextmanager
def whole_or_not_at_all(*paths: Path) -> Iterator[None]:
    """Leave nothing half-written behind."""
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
