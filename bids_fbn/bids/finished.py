"""Which results are there already, and whether they are of the same settings."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from bids_fbn.bids.boldrun import BoldRun
from bids_fbn.bids.naming import MODEL_OUTPUTS, SIGNAL_OUTPUTS, output_path
from bids_fbn.bids.writing import sidecar_path

__all__ = ["has_model_results", "has_signal_results", "results_of_other_settings"]


def _hash_in(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text()).get("ConfigurationHash", ""))
    except (OSError, ValueError):
        return None


def _all_there(paths: Collection[Path]) -> bool:
    return all(path.is_file() and sidecar_path(path).is_file() for path in paths)


def has_signal_results(
    out: Path, run: BoldRun, resolution: float, config_hash: str, denoised: bool = False
) -> bool:
    """Whether what belongs to a run, whatever the model, is whole and of these settings."""
    kinds = [*SIGNAL_OUTPUTS, *(["denoised"] if denoised else [])]
    paths = [out / output_path(kind, run, resolution=resolution) for kind in kinds]
    quality = out / output_path("qc", run, resolution=resolution)
    return _all_there(paths) and _hash_in(sidecar_path(quality)) == config_hash


def has_model_results(
    out: Path,
    run: BoldRun,
    model: str,
    resolution: float,
    atlas: str,
    config_hash: str,
    dynamic: Collection[str] = (),
) -> bool:
    """Whether the results of a model on a run are whole and of these settings.

    Parameters
    ----------
    dynamic : collection of str
        Networks whose maps of every time step were asked for.
    """
    paths = {
        kind: out / output_path(kind, run, resolution=resolution, model=model, atlas=atlas)
        for kind in MODEL_OUTPUTS
    }
    of_steps = [
        out
        / output_path("dynamic_components", run, resolution=resolution, model=model, label=label)
        for label in dynamic
    ]
    whole = _all_there([*paths.values(), *of_steps])
    return whole and _hash_in(paths["decomposition"]) == config_hash


def results_of_other_settings(
    out: Path, model_hashes: Mapping[str, str], remade: Collection[str]
) -> list[str]:
    """Runs with results of these models by other settings.

    Parameters
    ----------
    out : Path
    model_hashes : mapping
        Model → hash of the settings of this call.
    remade : collection of str
        Prefixes of runs whose results will be made again: those do not count.

    Returns
    -------
    list of str
        ``run (model)``.
    """
    found = []
    for model, config_hash in model_hashes.items():
        ending = f"_desc-{model.replace('-', '')}_decomposition.json"
        for pattern in (f"sub-*/func/*{ending}", f"sub-*/ses-*/func/*{ending}"):
            for path in sorted(out.glob(pattern)):
                prefix = path.name.removesuffix(ending)
                if prefix not in remade and _hash_in(path) not in (config_hash, None):
                    found.append(f"{prefix} ({model})")
    return found
