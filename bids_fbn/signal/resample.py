"""A BOLD file on the analysis grid: stream, smooth, resample.

The run is never in memory at full resolution: volumes are read, smoothed and resampled a few at a
time into a matrix on disk. What has to be known of the whole run is gathered on the way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from threadpoolctl import threadpool_limits

from bids_fbn.errors import RunError
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.reading import READ_ERRORS, StoredRun, one_line, open_run
from bids_fbn.signal.separable import SeparableResampling
from bids_fbn.signal.standard import load_image, resample_to_grid

__all__ = ["ResampledRun", "resample_run", "whole_or_not_at_all"]

# Volumes are read in blocks of about this size as float32: large enough that the overhead of a
# block does not show, small beside the memory that a cluster gives to one task.
_CHUNK_BYTES = 64 * 2**20
# Voxels that show, for nearly every volume and without looking at all of it, that it has signal.
_PROBES = 512

# Values in the mask, (n, V), of volumes as they are stored, (n, Z, Y, X).
_Resampling = Callable[[np.ndarray], np.ndarray]


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


def _run_mask(path: Path | None, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """The run's own brain mask, (X, Y, Z) of bool; everywhere where there is none."""
    if path is None:
        return np.ones(shape, dtype=bool)
    try:
        image = load_image(path)
        mask = np.asanyarray(image.dataobj) > 0
    except READ_ERRORS as error:
        raise RunError(f"{path}: not a readable mask ({one_line(error)})") from None
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
    run = open_run(bold)
    in_run = _run_mask(mask, run.shape[:3], run.affine)
    elsewhere = RunError(
        f"{bold}: no voxel with signal inside the brain of {grid.space}; is the run really in "
        "this space?"
    )
    # What holds no signal cannot cover more than the mask does: known before anything is read.
    if not _covered(in_run, run.affine, grid).any():
        raise elsewhere
    resampling = _resampling(run, grid, smoothing)
    with whole_or_not_at_all(out):
        data = np.lib.format.open_memmap(
            out, mode="w+", dtype=np.float32, shape=(run.shape[3], grid.n_voxels)
        )
        # Products of small matrices: more threads would mostly wait for each other, and by
        # spinning take the processor from the one that reads.
        with threadpool_limits(1, user_api="blas"):
            survey = _pass_over(run, in_run, resampling, data)
            if survey.spoiling.any():
                # A voxel that is NaN now and then would be a spike in all that smoothing reaches.
                again = _pass_over(run, in_run, resampling, data, left_out=survey.spoiling)
                survey = replace(survey, extremes=again.extremes)
        if len(survey.empty_volumes) == run.shape[3]:
            raise RunError(f"{bold}: no signal in any volume; rerun the preprocessing of this run")
        # A spline overshoots; as in resample_img, the values of the run and 0 are the limits.
        np.clip(data, *survey.extremes, out=data)
        covered = _covered(in_run & survey.finite & survey.varies, run.affine, grid)
        if not covered.any():
            raise elsewhere
        # Not flushed: who reads it does so soon, and a disk can take longer than all of the above.
        data[:, np.flatnonzero(~covered)] = 0
    return ResampledRun(data, covered, survey.empty_volumes, int((in_run & ~survey.finite).sum()))


def _covered(voxels: np.ndarray, affine: np.ndarray, grid: Grid) -> np.ndarray:
    """Voxels of the mask of which at least half lies in voxels of the file, (V,) of bool."""
    from nilearn.image.resampling import BoundingBoxError

    image = nib.Nifti1Image(voxels.astype(np.float32), affine)
    try:
        return resample_to_grid(image, grid) >= 0.5
    except BoundingBoxError:
        return np.zeros(grid.n_voxels, dtype=bool)


def _resampling(run: StoredRun, grid: Grid, smoothing: float) -> _Resampling:
    """Smoothing and resampling: by matrices where the axes allow it, else by nilearn."""
    matrices = SeparableResampling.plan(run.affine, run.shape[:3], grid, smoothing)
    if matrices is None:
        return partial(_by_nilearn, run, grid, smoothing)
    # All is linear, so that stored numbers are scaled where there are few of them left.
    intercept = run.inter * matrices(np.ones(run.shape[2::-1], dtype=np.float32))
    return partial(_by_matrices, matrices, run, intercept)


def _by_nilearn(run: StoredRun, grid: Grid, smoothing: float, block: np.ndarray) -> np.ndarray:
    from nilearn.image import smooth_img

    volumes = (block.T * run.slope + run.inter).astype(np.float32)
    chunk = nib.Nifti1Image(volumes, run.affine)
    if smoothing:
        chunk = smooth_img(chunk, smoothing)
    return resample_to_grid(chunk, grid, "continuous")


def _by_matrices(
    matrices: SeparableResampling, run: StoredRun, intercept: np.ndarray, block: np.ndarray
) -> np.ndarray:
    values = np.empty((len(block), len(intercept)), dtype=np.float32)
    for volume, row in zip(block, values, strict=True):
        row[:] = matrices(volume)
        row *= run.slope
        row += intercept
    return values


@dataclass(frozen=True, eq=False)
class _Survey:
    """What the volumes of a run hold.

    Parameters
    ----------
    finite : ndarray (X, Y, Z) of bool
        Voxels that are finite in all volumes with signal.
    varies : ndarray (X, Y, Z) of bool
        Voxels that change over the volumes with signal.
    spoiling : ndarray (X, Y, Z) of bool
        Voxels that are not finite in some volumes and not 0 in others.
    empty_volumes : tuple of int
        Volumes without any signal in the run's mask.
    extremes : tuple of float
        The lowest and the highest value of the volumes with signal, or 0.
    """

    finite: np.ndarray
    varies: np.ndarray
    spoiling: np.ndarray
    empty_volumes: tuple[int, ...]
    extremes: tuple[float, float]


def _pass_over(
    run: StoredRun,
    in_run: np.ndarray,
    resampling: _Resampling,
    data: np.ndarray,
    left_out: np.ndarray | None = None,
) -> _Survey:
    """Fill `data` (T, V) from the file, voxels (X, Y, Z) left out set to 0; → what was seen."""
    in_run = np.ascontiguousarray(in_run.T)
    step = max(1, _CHUNK_BYTES // (4 * in_run.size))
    finite = np.ones(in_run.shape, dtype=bool)
    lowest: np.ndarray | None = None
    highest: np.ndarray | None = None
    empty: list[int] = []
    for start, block in run.blocks(step):
        if left_out is not None:
            block[:, left_out.T] = 0
        low, high = block.min(axis=0), block.max(axis=0)
        good = np.isfinite(low) & np.isfinite(high)  # of the extremes: NaN is either
        all_good = good.all()
        if not all_good:
            good = np.isfinite(block)
            block[~good] = 0
        is_empty = _without_signal(block, in_run)
        empty.extend(int(start + i) for i in np.flatnonzero(is_empty))
        # A volume without signal would make every voxel vary, and one of NaN leave none.
        if not is_empty.all():
            if is_empty.any() or not all_good:
                low, high = (extreme(block[~is_empty], axis=0) for extreme in (np.min, np.max))
            if not all_good:
                finite &= good[~is_empty].all(axis=0)
            lowest = low if lowest is None else np.minimum(lowest, low, out=lowest)
            highest = high if highest is None else np.maximum(highest, high, out=highest)
        data[start : start + len(block)] = resampling(block)
    if lowest is None or highest is None:
        nowhere = np.zeros_like(finite.T)
        return _Survey(finite.T, nowhere, nowhere, tuple(empty), (0.0, 0.0))
    # Stored numbers that are not the same can be so as float32.
    scaled = [
        (end * np.float64(run.slope) + run.inter).astype(np.float32) for end in (lowest, highest)
    ]
    low, high = scaled if run.slope > 0 else scaled[::-1]
    spoiling = ~finite & ((lowest != 0) | (highest != 0))
    extremes = (min(float(low.min()), 0.0), max(float(high.max()), 0.0))
    return _Survey(finite.T, (low != high).T, spoiling.T, tuple(empty), extremes)


def _without_signal(block: np.ndarray, in_run: np.ndarray) -> np.ndarray:
    """Volumes (n, Z, Y, X) that have one value all over the run's mask, (n,) of bool."""
    where = np.flatnonzero(in_run)
    volumes = block.reshape(len(block), -1)
    alike = np.ptp(volumes[:, where[:: max(1, len(where) // _PROBES)]], axis=1) == 0
    for i in np.flatnonzero(alike):
        alike[i] = np.ptp(volumes[i, where]) == 0
    return alike


@contextlib.contextmanager
def whole_or_not_at_all(*paths: Path) -> Iterator[None]:
    """Leave nothing half-written behind."""
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
