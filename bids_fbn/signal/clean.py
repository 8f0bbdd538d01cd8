"""From a BOLD file to :class:`Signals`: resample, regress, filter, z-score.

What :mod:`~bids_fbn.signal.resample` has put on disk is cleaned a block of voxels at a time.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import linalg
from scipy.interpolate import CubicSpline

from bids_fbn.config import SignalOptions
from bids_fbn.errors import RunError, RunSkipped
from bids_fbn.signal.confounds import NuisanceModel, nuisance_model
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.resample import ResampledRun, resample_run, whole_or_not_at_all
from bids_fbn.signal.signals import Signals

__all__ = ["CleanedRun", "clean_run", "clean_signals"]

logger = logging.getLogger(__name__)

# Columns of the (T, V) matrix worked on at once: as float64 over 1,200 volumes 5 MB, which stay in
# the processor's cache between one step and the next.
_VOXEL_BLOCK = 512
# The filter reaches beyond both ends of a run by as many volumes, taken from inside it.
_FILTER_MARGIN = 33


@dataclass(frozen=True, eq=False)
class CleanedRun:
    """Signals and how they came about."""

    signals: Signals
    nuisance: NuisanceModel
    resampled: ResampledRun
    temporal_snr: float
    """Median over covered voxels of mean / standard deviation, before cleaning."""


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
    What :func:`nilearn.signal.clean` does, and with a filter by it: a fifth-order Butterworth,
    applied to the regressors too (Lindquist et al. 2019). It needs evenly sampled volumes; those
    left out are replaced by a cubic spline through the kept ones beforehand, and by nothing else
    of them. Without a filter the volumes left out are not looked at, the trend is linear in time,
    and all of it is one projection.
    """
    kept = nuisance.kept
    band = lower_bpf is not None or upper_bpf is not None
    # Outside the first and last kept volume a spline would extrapolate.
    rows = np.arange(kept[0], kept[-1] + 1) if band else kept
    sample_mask = np.flatnonzero(np.isin(rows, kept))
    gaps = np.setdiff1d(np.arange(len(rows)), sample_mask)

    def bridge(series: np.ndarray) -> np.ndarray:
        if len(gaps):
            series[gaps] = CubicSpline(sample_mask, series[sample_mask])(gaps)
        return series

    regressors = bridge(nuisance.regressors.to_numpy(dtype=float)[rows])
    if not band:
        explained = _orthonormal(np.column_stack([rows - rows.mean(), regressors]))
    cleaned = np.lib.format.open_memmap(
        out, mode="w+", dtype=np.float32, shape=(len(kept), data.shape[1])
    )
    columns = np.flatnonzero(covered)
    for first in range(0, len(columns), _VOXEL_BLOCK):
        block = columns[first : first + _VOXEL_BLOCK]
        series = bridge(np.asarray(data[:, block][rows], dtype=np.float64))
        highest = np.abs(series[sample_mask]).max(axis=0)
        if band:
            residual = _filtered(
                series, regressors, sample_mask, repetition_time, lower_bpf, upper_bpf
            )
        else:
            residual = series - series.mean(axis=0)
            residual -= explained @ (explained.T @ residual)
        residual = residual - residual.mean(axis=0)
        spread = residual.std(axis=0, ddof=1)
        # What is smaller than the resolution of the data is rounding, not signal.
        cleaned[:, block] = np.divide(
            residual,
            spread,
            out=np.zeros_like(residual),
            where=spread > np.finfo(np.float32).eps * highest,
        )
    cleaned.flush()
    return cleaned


def _orthonormal(regressors: np.ndarray) -> np.ndarray:
    """Orthonormal basis, (T, rank), of the centred columns of (T, R)."""
    scaled = regressors - regressors.mean(axis=0)
    spread = scaled.std(axis=0, ddof=1)
    # These limits are nilearn's.
    eps = np.finfo(np.float64).eps
    scaled /= np.where(spread < eps, 1, spread)
    basis, triangle, _ = linalg.qr(scaled, mode="economic", pivoting=True)
    return np.ascontiguousarray(basis[:, np.abs(np.diag(triangle)) > 100 * eps])


def _filtered(
    series: np.ndarray,
    regressors: np.ndarray,
    sample_mask: np.ndarray,
    repetition_time: float,
    lower_bpf: float | None,
    upper_bpf: float | None,
) -> np.ndarray:
    """Detrended, filtered and regressed series of the rows in `sample_mask`."""
    from nilearn.signal import clean

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nilearn's advice on combining its options
        return clean(
            series,
            confounds=regressors if regressors.shape[1] else None,
            sample_mask=sample_mask.copy() if len(sample_mask) < len(series) else None,
            t_r=repetition_time,
            filter="butterworth",
            high_pass=lower_bpf,
            low_pass=upper_bpf,
            detrend=True,
            standardize=False,
        )


def _temporal_snr(data: np.ndarray, kept: np.ndarray, covered: np.ndarray) -> float:
    """Median over voxels that vary of mean / standard deviation over the kept volumes."""
    ratios = []
    columns = np.flatnonzero(covered)
    for first in range(0, len(columns), _VOXEL_BLOCK):
        series = data[:, columns[first : first + _VOXEL_BLOCK]][kept]
        spread = series.std(axis=0)
        ratios.append(series.mean(axis=0)[spread > 0] / spread[spread > 0])
    return float(np.median(np.concatenate(ratios)))


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
    _check_band(bold, repetition_time, options)
    raw_path, data_path = folder / "resampled.npy", folder / "data.npy"
    with whole_or_not_at_all(raw_path, data_path):
        resampled = resample_run(bold, grid, raw_path, options.smoothing, mask)
        n_volumes = resampled.data.shape[0]
        if resampled.n_not_finite:
            logger.warning(
                "%s: %d voxels hold NaN or infinity and are left out", bold, resampled.n_not_finite
            )
        if resampled.empty_volumes:
            logger.warning(
                "%s: %d volumes hold no signal and are left out",
                bold,
                len(resampled.empty_volumes),
            )
        nuisance = nuisance_model(
            n_volumes,
            repetition_time,
            options,
            confounds,
            confounds_metadata,
            resampled.empty_volumes,
        )
        _check_enough(bold, nuisance, repetition_time, options, minimum_volumes)
        kept = nuisance.kept
        temporal_snr = _temporal_snr(resampled.data, kept, resampled.covered)
        data = clean_signals(
            resampled.data,
            resampled.covered,
            nuisance,
            repetition_time,
            data_path,
            options.lower_bpf,
            options.upper_bpf,
        )
        # A voxel that is constant over the kept volumes alone has come out as 0 everywhere.
        covered = resampled.covered & (data[: min(len(kept), 64)] != 0).any(axis=0)
        signals = Signals(data, grid, repetition_time, kept, n_volumes, covered, name)
        signals.save(folder)
    raw_path.unlink()
    return CleanedRun(signals, nuisance, resampled, temporal_snr)


def _check_band(bold: Path, repetition_time: float, options: SignalOptions) -> None:
    nyquist = 0.5 / repetition_time
    for option, edge in (("lower", options.lower_bpf), ("upper", options.upper_bpf)):
        if edge is not None and edge >= nyquist:
            raise RunError(
                f"{bold}: --{option}-bpf {edge} Hz is not below {nyquist:.3g} Hz, the highest "
                f"frequency at a repetition time of {repetition_time} s"
            )


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
            f"{bold}: {left}, {seconds:.0f} s, less than --min-time {options.min_time:.0f}; "
            "skipped"
        )
    if options.lower_bpf or options.upper_bpf:
        span = int(nuisance.kept[-1] - nuisance.kept[0]) + 1
        if span <= _FILTER_MARGIN:
            raise RunError(
                f"{bold}: {left} are too few to filter, which takes more than {_FILTER_MARGIN}; "
                "leave out --lower-bpf and --upper-bpf"
            )
    n_regressors = nuisance.regressors.shape[1]
    # Mean and trend take two more.
    if n_regressors + 2 >= n_kept:
        raise RunError(
            f"{bold}: {left} for {n_regressors} nuisance regressors; choose fewer with --nuisance"
        )
