"""Which volumes are kept, and what is regressed out of them."""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bids_fbn.config import NUISANCE_PRESETS, SignalOptions
from bids_fbn.errors import RunError

__all__ = [
    "HEAD_RADIUS_MM",
    "NuisanceModel",
    "cosine_drifts",
    "expand_confounds",
    "framewise_displacement",
    "nuisance_model",
    "power_displacement",
    "read_confounds",
]

_MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
_EXPANDED = (*_MOTION, "csf", "white_matter", "global_signal")
# Radius of the sphere on which rotations become millimetres (Power et al. 2012, section 2.4).
HEAD_RADIUS_MM = 50.0
# fMRIPrep's high-pass cut-off.
_HIGH_PASS_PERIOD_S = 128.0

# Column names of fMRIPrep before 1.2, whose files are still in use.
_OLD_NAMES = {
    "X": "trans_x",
    "Y": "trans_y",
    "Z": "trans_z",
    "RotX": "rot_x",
    "RotY": "rot_y",
    "RotZ": "rot_z",
    "CSF": "csf",
    "WhiteMatter": "white_matter",
    "GlobalSignal": "global_signal",
    "FramewiseDisplacement": "framewise_displacement",
    "stdDVARS": "std_dvars",
    "non-stdDVARS": "dvars",
    "vx-wisestdDVARS": "vx_wisestd_dvars",
}
_OLD_PATTERNS = (
    (r"^Cosine(\d+)$", r"cosine\1"),
    (r"^NonSteadyStateOutlier(\d+)$", r"non_steady_state_outlier\1"),
    (r"^aCompCor(\d+)$", r"a_comp_cor_\1"),
    (r"^tCompCor(\d+)$", r"t_comp_cor_\1"),
    (r"^AROMAAggrComp(\d+)$", r"aroma_motion_\1"),
)


@dataclass(frozen=True, eq=False)
class NuisanceModel:
    """What cleaning a run takes.

    Parameters
    ----------
    regressors : DataFrame (T, R)
        One row for each volume of the run; R may be 0.
    outliers : DataFrame (T, reasons) of int
        1 where a volume is left out, a column for each reason: ``dummy_scan``, ``high_motion``,
        ``scrubbing``, ``empty_volume``.
    displacement : ndarray (T,) or None
        Framewise displacement, mm; NaN in the first volume.
    """

    regressors: pd.DataFrame
    outliers: pd.DataFrame
    displacement: np.ndarray | None

    @property
    def kept(self) -> np.ndarray:
        """Indices of the volumes that are kept."""
        return np.flatnonzero(self.outliers.to_numpy().sum(axis=1) == 0)


def read_confounds(path: Path, n_volumes: int) -> pd.DataFrame:
    """Read a confounds table of any fMRIPrep version under today's column names.

    Raises
    ------
    RunError
        If it cannot be read, or does not have a row for each volume.
    """
    try:
        table = pd.read_csv(path, sep="\t", na_values=["n/a"])
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: not a readable table ({str(error).splitlines()[0]})") from None
    if len(table) != n_volumes:
        raise RunError(
            f"{path}: {len(table)} rows for the {n_volumes} volumes of the run; "
            "rerun the preprocessing of this run, or use --nuisance none"
        )
    text = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
    if text:
        raise RunError(f"{path}: column {text[0]} holds something that is not a number")
    # Infinity is no value either.
    return table.rename(columns=_modern_name).replace([np.inf, -np.inf], np.nan)


def _modern_name(name: str) -> str:
    if name in _OLD_NAMES:
        return _OLD_NAMES[name]
    for pattern, modern in _OLD_PATTERNS:
        renamed, count = re.subn(pattern, modern, name)
        if count:
            return renamed
    return name


def framewise_displacement(confounds: pd.DataFrame) -> np.ndarray | None:
    """Framewise displacement, (T,), mm; from its column, or from the motion parameters.

    The definition of Power et al. (2012): the sum of the absolute backward differences of the
    three translations (mm) and of the three rotations (rad) on a sphere of 50 mm. None where
    neither the column nor all six parameters exist.
    """
    if "framewise_displacement" in confounds:
        return confounds["framewise_displacement"].to_numpy(dtype=float)
    if not set(_MOTION) <= set(confounds.columns):
        return None
    return power_displacement(confounds[list(_MOTION)].to_numpy(dtype=float))


def power_displacement(motion: np.ndarray) -> np.ndarray:
    """Framewise displacement of motion parameters, (T, 6) in mm and rad → (T,), mm.

    Power et al. 2012, NeuroImage 59:2142, doi:10.1016/j.neuroimage.2011.10.018. NaN for the first
    volume.
    """
    steps = np.abs(np.diff(motion, axis=0, prepend=np.full((1, 6), np.nan)))
    return steps[:, :3].sum(axis=1) + HEAD_RADIUS_MM * steps[:, 3:].sum(axis=1)


def cosine_drifts(n_volumes: int, repetition_time: float) -> np.ndarray:
    """Discrete cosines with periods of 128 s and longer, without the constant, (T, C)."""
    from nilearn.signal import create_cosine_drift

    times = np.arange(n_volumes) * repetition_time
    return create_cosine_drift(1 / _HIGH_PASS_PERIOD_S, times)[:, :-1]


def expand_confounds(confounds: pd.DataFrame, repetition_time: float) -> pd.DataFrame:
    """Add what fMRIPrep would have written, where the file lacks it.

    Backward differences and squares of motion and tissue signals (the first difference is
    missing, NaN, as fMRIPrep has it), and the cosines of a high-pass filter at 128 s.
    """
    columns = dict(confounds.items())
    for name in _EXPANDED:
        if name not in columns:
            continue
        columns.setdefault(f"{name}_derivative1", columns[name].diff())
        columns.setdefault(f"{name}_power2", columns[name] ** 2)
        columns.setdefault(f"{name}_derivative1_power2", columns[f"{name}_derivative1"] ** 2)
    if not any(str(name).startswith("cosine") for name in columns):
        for index, drift in enumerate(cosine_drifts(len(confounds), repetition_time).T):
            columns[f"cosine{index:02d}"] = pd.Series(drift, index=confounds.index)
    return pd.DataFrame(columns)


def _dummy_scans(confounds: pd.DataFrame | None, n_volumes: int, option: int | str) -> np.ndarray:
    """1 for volumes before the scanner's steady state, (T,)."""
    flags = np.zeros(n_volumes, dtype=int)
    if option != "auto":
        flags[: int(option)] = 1
    elif confounds is not None:
        marked = confounds.filter(regex=r"^non_steady_state_outlier\d+$").to_numpy()
        if marked.size:
            flags[(marked > 0).any(axis=1)] = 1
    return flags


def _strategy(options: SignalOptions) -> dict[str, Any]:
    """The arguments of nilearn's ``load_confounds`` for what was asked."""
    from nilearn.interfaces.fmriprep.load_confounds_strategy import preset_strategies

    fd_threshold = {"fd_threshold": options.fd_thresh} if options.fd_thresh else {}
    first = options.nuisance[0]
    # "compcor" alone is a preset; beside others it is a component.
    if len(options.nuisance) > 1 or first not in NUISANCE_PRESETS:
        wanted = [name for name in options.nuisance if name != "non_steady_state"]
        return {"strategy": wanted, "motion": options.motion, **fd_threshold}
    preset = {key: value for key, value in preset_strategies[first].items() if value is not None}
    if "motion" in preset["strategy"]:
        preset["motion"] = options.motion
    if "ica_aroma" in preset["strategy"]:
        # "full" is for images that AROMA has cleaned already; ours are `desc-preproc`.
        preset["ica_aroma"] = "basic"
    return {**preset, **fd_threshold}


def _load_with_nilearn(
    confounds: pd.DataFrame, metadata: dict[str, object], options: SignalOptions, origin: Path
) -> tuple[pd.DataFrame, np.ndarray | None]:
    """Regressors and kept volumes by nilearn's rules.

    nilearn reads files by fMRIPrep's names, and neither old column names nor files without
    expansions: it is given a copy that has been mended.
    """
    from nilearn.interfaces.fmriprep import load_confounds

    strategy = _strategy(options)
    with tempfile.TemporaryDirectory(prefix="bids_fbn-") as folder:
        stem = Path(folder, "sub-1_task-1")
        confounds.to_csv(
            f"{stem}_desc-confounds_timeseries.tsv", sep="\t", na_rep="n/a", index=False
        )
        Path(f"{stem}_desc-confounds_timeseries.json").write_text(json.dumps(metadata))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                regressors, kept = load_confounds(f"{stem}_desc-preproc_bold.nii.gz", **strategy)
        except (KeyError, ValueError) as error:
            raise RunError(
                f"{origin}: {_needed(error, confounds)} for --nuisance "
                f"{' '.join(options.nuisance)}; choose other --nuisance components"
            ) from None
    if regressors is None:
        regressors = pd.DataFrame(index=range(len(confounds)))
    return regressors, kept


def _needed(error: KeyError | ValueError, confounds: pd.DataFrame) -> str:
    """What nilearn says is missing, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyError):
        named = re.findall(r"'(\w+)'", text)
        return f"lacks the columns {', '.join(named) or text}"
    named = re.findall(r"[a-z_]+_?\w*", " ".join(re.findall(r"\[([^\]]*)\]", text)))
    absent = [name for name in dict.fromkeys(named) if name not in confounds.columns]
    return f"lacks the columns {', '.join(absent)}" if absent else f"{text.rstrip('.')}; needed"


def nuisance_model(
    n_volumes: int,
    repetition_time: float,
    options: SignalOptions,
    confounds_path: Path | None = None,
    metadata_path: Path | None = None,
    empty_volumes: Iterable[int] = (),
) -> NuisanceModel:
    """Decide which volumes are kept and what is regressed out.

    Parameters
    ----------
    n_volumes : int
        T, volumes of the run.
    repetition_time : float
        Seconds.
    options : SignalOptions
    confounds_path, metadata_path : Path, optional
        fMRIPrep's table and its JSON.
    empty_volumes : iterable of int
        Volumes without any signal.

    Raises
    ------
    RunError
        If the table is missing, does not fit, or lacks what was asked for.
    """
    needs_table = options.nuisance != ("none",) or options.fd_thresh is not None
    if confounds_path is None and needs_table:
        raise RunError("no confounds table; use --nuisance none to go without")
    confounds = None if confounds_path is None else read_confounds(confounds_path, n_volumes)
    displacement = None if confounds is None else framewise_displacement(confounds)

    outliers = pd.DataFrame(
        {"dummy_scan": _dummy_scans(confounds, n_volumes, options.dummy_scans)}
    )
    if options.fd_thresh is not None:
        if displacement is None:
            raise RunError(
                f"{confounds_path}: neither framewise_displacement nor the six motion parameters, "
                "which --fd-thresh needs"
            )
        outliers["high_motion"] = np.nan_to_num(displacement) > options.fd_thresh
    regressors = pd.DataFrame(index=range(n_volumes))
    if confounds is not None and options.nuisance != ("none",):
        assert confounds_path is not None
        regressors, kept = _load_with_nilearn(
            expand_confounds(confounds, repetition_time),
            _read_metadata(metadata_path),
            options,
            confounds_path,
        )
        if options.nuisance == ("scrubbing",) and kept is not None:
            outliers["scrubbing"] = ~np.isin(np.arange(n_volumes), kept)
    empty = np.zeros(n_volumes, dtype=int)
    empty[list(empty_volumes)] = 1
    outliers["empty_volume"] = empty
    model = NuisanceModel(regressors, outliers.astype(int), displacement)
    missing = regressors.columns[regressors.iloc[model.kept].isna().any()]
    if len(missing):
        raise RunError(
            f"{confounds_path}: column {missing[0]} has no value in a volume that is kept; "
            "choose other --nuisance components"
        )
    return model


def _read_metadata(path: Path | None) -> dict[str, object]:
    if path is None:
        return {}
    try:
        metadata: dict[str, object] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not valid JSON ({error})") from None
    return metadata
