"""From a BOLD file to :class:`Signals`: stream, smooth, resample, regress, filter, z-score.

The run is never in memory at full resolution: volumes are read, smoothed and resampled a few at a
time into a matrix on disk, which is then cleaned a block of voxels at a time.
"""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.interpolate import CubicSpline

from bids_fbn.config import SignalOptions
from bids_fbn.errors import RunError, RunSkipped
from bids_fbn.signal.confounds import NuisanceModel, nuisance_model
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals
from bids_fbn.signal.standard import resample_to_grid

__all__ = ["CleanedRun", "ResampledRun", "clean_run", "clean_signals", "resample_run"]

logger = logging.getLogger(__name__)

# Volumes are read in chunks of about this size as float32: large enough that the overhead of a
# chunk does not show, small beside the memory that a cluster gives to one task.
_CHUNK_BYTES = 64 * 2**20
# Columns of the (T, V) matrix cleaned at once.
_VOXEL_BLOCK = 4096


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
        Voxels (of the file) that hold NaN or infinity somewhere.
    """

    data: np.ndarray
    covered: np.ndarray
    empty_volumes: tuple[int, ...]
    n_not_finite: int


@dataclass(frozen=True, eq=False)
class CleanedRun:
    """Signals and how they came about."""

    signals: Signals
    nuisance: NuisanceModel
    resampled: ResampledRun
    temporal_snr: float
    """Median over covered voxels of mean / standard deviation, before cleaning."""


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
        yield start, np.asarray(volumes, dtype=np.float32)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _open(path: Path) -> nib.Nifti1Image:
    try:
        image = nib.load(path, keep_file_open=True)
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
        image = nib.load(path)
        mask = np.asanyarray(image.dataobj) > 0
    except (nib.filebasedimages.ImageFileError, OSError, EOFError, zlib.error) as error:
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

    image = _open(bold)
    finite = _run_mask(mask, image.shape[:3], image.affine)
    in_run = finite.copy()
    lowest = np.full(image.shape[:3], np.inf, dtype=np.float32)
    highest = -lowest
    data = np.lib.format.open_memmap(
        out, mode="w+", dtype=np.float32, shape=(image.shape[3], grid.n_voxels)
    )
    empty: list[int] = []
    for start, volumes in _chunks(image, bold):
        good = np.isfinite(volumes)
        finite &= good.all(axis=3)
        volumes[~good] = 0
        np.minimum(lowest, volumes.min(axis=3), out=lowest)
        np.maximum(highest, volumes.max(axis=3), out=highest)
        flat = np.ptp(volumes[in_run], axis=0) == 0
        empty.extend(int(start + i) for i in np.flatnonzero(flat))
        chunk = nib.Nifti1Image(volumes, image.affine)
        if smoothing:
            chunk = smooth_img(chunk, smoothing)
        data[start : start + volumes.shape[3]] = resample_to_grid(chunk, grid, "continuous")
    # A volume without signal makes every voxel vary: only the others tell which are constant.
    if len(empty) == image.shape[3]:
        raise RunError(f"{bold}: no signal in any volume; rerun the preprocessing of this run")
    varies = highest > lowest if not empty else _varies(image, bold, empty)
    has_signal = nib.Nifti1Image((finite & varies).astype(np.float32), image.affine)
    covered = (resample_to_grid(has_signal, grid) >= 0.5) & np.isfinite(data[0])
    if not covered.any():
        raise RunError(
            f"{bold}: no voxel with signal inside the brain of {grid.space}; is the run really "
            "in this space?"
        )
    data[:, ~covered] = 0
    data.flush()
    return ResampledRun(data, covered, tuple(empty), int((in_run & ~finite).sum()))


def _varies(image: nib.Nifti1Image, path: Path, skip: list[int]) -> np.ndarray:
    """Voxels whose value changes over the volumes that are not skipped."""
    lowest = np.full(image.shape[:3], np.inf, dtype=np.float32)
    highest = -lowest
    for start, volumes in _chunks(image, path):
        use = [i for i in range(volumes.shape[3]) if start + i not in set(skip)]
        if use:
            values = np.nan_to_num(volumes[..., use])
            np.minimum(lowest, values.min(axis=3), out=lowest)
            np.maximum(highest, values.max(axis=3), out=highest)
    return highest > lowest


def clean_signals(
    data: np.ndarray,
    covered: np.ndarray,
    nuisance: NuisanceModel,
    repetition_time: float,
    out: Path,
    lower_bpf: float | None = None,
    upper_bpf: float | None = None,
) -> np.ndarray:
    """Regress out nuisance, filter, z-score; only kept volumes take part in any fit.

    Parameters
    ----------
    data : ndarray (T, V)
    covered : ndarray (V,) of bool
    nuisance : NuisanceModel
    repetition_time : float
        Seconds.
    out : Path
        ``.npy`` file for the result.
    lower_bpf, upper_bpf : float, optional
        Edges of the pass band, Hz.

    Returns
    -------
    ndarray (T_kept, V) of float32, memory-mapped
        Linear trend removed, zero mean and unit (sample) standard deviation over the kept volumes;
        0 where not covered.

    Notes
    -----
    By :func:`nilearn.signal.clean`: the filter is a fifth-order Butterworth, applied to the
    regressors too (Lindquist et al. 2019). It needs evenly sampled volumes; those left out are
    replaced by a cubic spline through the kept ones beforehand, and by nothing else of them.
    """
    from nilearn.signal import clean

    kept = nuisance.kept
    # Outside the first and last kept volume a spline would extrapolate.
    inside = slice(int(kept[0]), int(kept[-1]) + 1)
    sample_mask = kept - kept[0]
    gaps = np.setdiff1d(np.arange(sample_mask[-1] + 1), sample_mask)
    band = lower_bpf is not None or upper_bpf is not None

    def bridge(series: np.ndarray) -> np.ndarray:
        if len(gaps):
            series[gaps] = CubicSpline(sample_mask, series[sample_mask])(gaps)
        return series

    regressors = None
    if nuisance.regressors.shape[1]:
        regressors = bridge(nuisance.regressors.to_numpy(dtype=float)[inside].copy())
    cleaned = np.lib.format.open_memmap(
        out, mode="w+", dtype=np.float32, shape=(len(kept), data.shape[1])
    )
    columns = np.flatnonzero(covered)
    for first in range(0, len(columns), _VOXEL_BLOCK):
        block = columns[first : first + _VOXEL_BLOCK]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nilearn's advice on combining its options
            cleaned[:, block] = clean(
                bridge(np.asarray(data[inside, block], dtype=np.float64)),
                confounds=regressors,
                sample_mask=sample_mask.copy() if len(gaps) else None,
                t_r=repetition_time,
                filter="butterworth" if band else False,
                high_pass=lower_bpf,
                low_pass=upper_bpf,
                detrend=True,
                standardize="zscore_sample",
            )
    cleaned.flush()
    return cleaned


def clean_run(
    bold: Path,
    repetition_time: float,
    grid: Grid,
    options: SignalOptions,
    folder: Path,
    mask: Path | None = None,
    confounds: Path | None = None,
    confounds_metadata: Path | None = None,
    minimum_volumes: int = 2,
    name: str = "",
) -> CleanedRun:
    """Everything between a BOLD file and its :class:`Signals`, which are left in `folder`.

    Raises
    ------
    RunError
        If a file is bad, or too few volumes are left to work with.
    RunSkipped
        If less than ``options.min_time`` seconds are left.
    """
    raw_path = folder / "resampled.npy"
    resampled = resample_run(bold, grid, raw_path, options.smoothing, mask)
    n_volumes = resampled.data.shape[0]
    if resampled.n_not_finite:
        logger.warning(
            "%s: %d voxels hold NaN or infinity and are left out", bold, resampled.n_not_finite
        )
    if resampled.empty_volumes:
        logger.warning(
            "%s: %d volumes hold no signal and are left out", bold, len(resampled.empty_volumes)
        )
    nuisance = nuisance_model(
        n_volumes, repetition_time, options, confounds, confounds_metadata, resampled.empty_volumes
    )
    _check_enough(bold, nuisance, repetition_time, options, minimum_volumes)
    nyquist = 0.5 / repetition_time
    if options.upper_bpf is not None and options.upper_bpf >= nyquist:
        raise RunError(
            f"{bold}: --upper-bpf {options.upper_bpf} Hz is not below {nyquist:.3g} Hz, the "
            f"highest frequency at a repetition time of {repetition_time} s"
        )
    kept = nuisance.kept
    raw = np.asarray(resampled.data[kept][:, resampled.covered], dtype=np.float32)
    spread = raw.std(axis=0)
    temporal_snr = float(np.median(raw.mean(axis=0)[spread > 0] / spread[spread > 0]))
    del raw
    data = clean_signals(
        resampled.data,
        resampled.covered,
        nuisance,
        repetition_time,
        folder / "data.npy",
        options.lower_bpf,
        options.upper_bpf,
    )
    # A voxel that is constant over the kept volumes alone has come out as 0 everywhere.
    covered = resampled.covered & (data[: min(len(kept), 64)] != 0).any(axis=0)
    signals = Signals(data, grid, repetition_time, kept, n_volumes, covered, name)
    signals.save(folder)
    raw_path.unlink()
    return CleanedRun(signals, nuisance, resampled, temporal_snr)


def _check_enough(
    bold: Path,
    nuisance: NuisanceModel,
    repetition_time: float,
    options: SignalOptions,
    minimum_volumes: int,
) -> None:
    n_kept, n_volumes = len(nuisance.kept), len(nuisance.outliers)
    reasons = ", ".join(
        f"{int(count)} by {str(reason).replace('_', ' ')}"
        for reason, count in nuisance.outliers.sum().items()
        if count
    )
    left = f"{n_kept} of {n_volumes} volumes left" + (f" ({reasons})" if reasons else "")
    if n_kept < max(minimum_volumes, 2):
        raise RunError(
            f"{bold}: {left}, fewer than the {max(minimum_volumes, 2)} that the models need; "
            "choose a smaller --window or looser censoring, or leave the run out"
        )
    seconds = n_kept * repetition_time
    if seconds < options.min_time:
        raise RunSkipped(
            f"{bold}: {left}, {seconds:.0f} s, less than --min-time {options.min_time:.0f}; skipped"
        )
    n_regressors = nuisance.regressors.shape[1]
    # Mean and trend take two more.
    if n_regressors + 2 >= n_kept:
        raise RunError(
            f"{bold}: {left} for {n_regressors} nuisance regressors; choose fewer with --nuisance"
        )
