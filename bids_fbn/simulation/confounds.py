"""The confounds file that fMRIPrep would write for a simulated run.

Names, order and metadata are those of fMRIPrep 20.2 and later
(https://fmriprep.org/en/stable/outputs.html#confounds); every column is computed from the volumes
and the motion parameters, not drawn beside them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from bids_fbn.signal.confounds import cosine_drifts, power_displacement
from bids_fbn.simulation.noise import FD_OUTLIER_MM, Head

__all__ = ["confounds_table", "dvars"]

_MOTION_COLUMNS = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
_TISSUE_SHARE = 0.02  # of the brain, as the mask of a tissue
_TISSUE_MINIMUM = 10  # voxels
_COMPONENTS = {"a": 5, "c": 2, "w": 2}
_COMPONENT_MASK = {"a": "combined", "c": "CSF", "w": "WM"}


def confounds_table(
    series: np.ndarray,
    head: Head,
    quiet: np.ndarray,
    motion: np.ndarray,
    repetition_time: float,
    n_non_steady: int,
) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """Confounds of one run.

    Parameters
    ----------
    series : ndarray (T, V)
        The volumes in the brain.
    head : Head
    quiet : ndarray (V,) of bool
        Voxels without a network, from which tissue signals may be taken.
    motion : ndarray (T, 6)
        mm and rad.
    repetition_time : float
        In s.
    n_non_steady : int
        Volumes before the steady state.

    Returns
    -------
    table : DataFrame of T rows
        NaN where fMRIPrep has n/a.
    metadata : dict
        The JSON sidecar: column → description.
    """
    inside = quiet & head.core
    csf, white = _purest(head.csf, inside), _purest(head.white, inside)
    steady = slice(n_non_steady, None)
    basis = cosine_drifts(len(series) - n_non_steady, repetition_time)
    cosines = np.zeros((len(series), basis.shape[1]))
    cosines[steady] = basis

    columns: dict[str, np.ndarray] = {}
    metadata: dict[str, dict[str, Any]] = {}
    whole = np.ones(series.shape[1], dtype=bool)
    for name, voxels in (("global_signal", whole), ("csf", csf), ("white_matter", white)):
        columns |= _expansions(name, series[:, voxels].mean(axis=1, dtype=np.float64))
        metadata[name] = {"Method": "Mean"}
    columns["csf_wm"] = series[:, csf | white].mean(axis=1, dtype=np.float64)
    metadata["csf_wm"] = {"Method": "Mean"}
    columns["dvars"], columns["std_dvars"] = dvars(series)
    displacement = power_displacement(motion)
    columns["framewise_displacement"] = displacement

    for prefix, voxels in (("a", csf | white), ("c", csf), ("w", white)):
        components, descriptions = _compcor(series[steady, voxels], basis, _COMPONENTS[prefix])
        for number, description in enumerate(descriptions):
            name = f"{prefix}_comp_cor_{number:02d}"
            columns[name] = np.zeros(len(series))
            columns[name][steady] = components[:, number]
            metadata[name] = {"Mask": _COMPONENT_MASK[prefix], **description}
    for number, cosine in enumerate(cosines.T):
        columns[f"cosine{number:02d}"] = cosine
    for number in range(n_non_steady):
        columns[f"non_steady_state_outlier{number:02d}"] = _one_hot(number, len(series))
    for name, course in zip(_MOTION_COLUMNS, motion.T, strict=True):
        columns |= _expansions(name, course)
    with np.errstate(invalid="ignore"):
        outliers = np.flatnonzero(displacement > FD_OUTLIER_MM)
    for number, volume in enumerate(outliers):
        columns[f"motion_outlier{number:02d}"] = _one_hot(int(volume), len(series))
    return pd.DataFrame(columns), metadata


def dvars(series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DVARS, and DVARS relative to what independent changes would give.

    Nichols 2017, Notes on creating a standardized version of DVARS, arXiv:1704.01469: the
    denominator is the mean over voxels of sqrt(2(1 − AR(1))) times the robust standard deviation.

    Parameters
    ----------
    series : ndarray (T, V)

    Returns
    -------
    dvars : ndarray (T,)
        In units of a median intensity of 1000; NaN for the first volume.
    std_dvars : ndarray (T,)
    """
    scaled = series * np.float32(1000 / np.median(series))
    lower, upper = np.percentile(scaled, [25, 75], axis=0)
    robust_sd = (upper - lower) / 1.349  # interquartile range of the normal distribution
    varies = robust_sd > 0
    if not varies.any():
        flat = np.concatenate([[np.nan], np.zeros(len(series) - 1)])
        return flat, flat.copy()
    scaled, robust_sd = scaled[:, varies], robust_sd[varies]
    centred = scaled - scaled.mean(axis=0)
    lag1 = (centred[1:] * centred[:-1]).sum(axis=0) / (centred**2).sum(axis=0)
    expected = float(np.mean(np.sqrt(2 * (1 - lag1)) * robust_sd))
    observed = np.sqrt(np.mean(np.diff(scaled, axis=0) ** 2, axis=1, dtype=np.float64))
    observed = np.concatenate([[np.nan], observed])
    return observed, observed / expected


def _purest(fraction: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The voxels that hold most of a tissue, (V,) of bool."""
    n_voxels = max(_TISSUE_MINIMUM, round(_TISSUE_SHARE * fraction.size))
    order = np.argsort(np.where(allowed, -fraction, np.inf), kind="stable")
    voxels = np.zeros(fraction.size, dtype=bool)
    voxels[order[:n_voxels]] = True
    return voxels


def _expansions(name: str, course: np.ndarray) -> dict[str, np.ndarray]:
    """A course, its backward difference, and the squares of both (Satterthwaite et al. 2013)."""
    derivative = np.concatenate([[np.nan], np.diff(course)])
    return {
        name: course,
        f"{name}_derivative1": derivative,
        f"{name}_power2": course**2,
        f"{name}_derivative1_power2": derivative**2,
    }


def _compcor(
    series: np.ndarray, cosines: np.ndarray, n_components: int
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Principal components after the high-pass filter (Behzadi et al. 2007), (T, n_components)."""
    nuisance = np.hstack([np.ones((len(series), 1)), cosines])
    residual = series - nuisance @ np.linalg.lstsq(nuisance, series, rcond=None)[0]
    components, singular, _ = np.linalg.svd(residual, full_matrices=False)
    variance = singular**2
    # Without noise nothing is left but rounding, whose "components" would be single volumes.
    real = singular > 1e-6 * np.linalg.norm(series)
    total = variance[real].sum() or 1.0
    explained = np.where(real, variance / total, 0.0)
    descriptions = [
        {
            "Method": "aCompCor",
            "Retained": True,
            "SingularValue": round(float(singular[number] * real[number]), 6),
            "VarianceExplained": round(float(explained[number]), 6),
            "CumulativeVarianceExplained": round(float(explained[: number + 1].sum()), 6),
        }
        for number in range(min(n_components, singular.size))
    ]
    return (components * real)[:, :n_components], descriptions


def _one_hot(volume: int, n_volumes: int) -> np.ndarray:
    column = np.zeros(n_volumes, dtype=int)
    column[volume] = 1
    return column
