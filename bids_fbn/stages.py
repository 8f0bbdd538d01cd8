"""The stages of a participant, each a plain function: what a notebook calls, and what the nodes of
the workflow call.

=====================  ==============================================================
:func:`clean`          BOLD file → signals, in a work folder
:func:`fit`            signals → trained model
:func:`analyse`        signals, model, templates → networks
:func:`weigh`          the same and surrogates → what speaks for the networks
:func:`write_signal`   quality and nuisance design → files of the output dataset
:func:`write_networks` networks → files of the output dataset
=====================  ==============================================================
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bids_fbn.bids.boldrun import BoldRun
from bids_fbn.bids.naming import model_weights_path
from bids_fbn.bids.outputs import NetworkResults, RunWriter, denoised_image
from bids_fbn.bids.writing import GENERATED_BY, copy_file
from bids_fbn.config import Config
from bids_fbn.errors import RunError
from bids_fbn.evidence import Method, state_rule
from bids_fbn.evidence import weigh as weigh_networks
from bids_fbn.models.card import grid_facts
from bids_fbn.networks.dynamics import RunNetworks
from bids_fbn.networks.maps import SupportRule, find_peaks
from bids_fbn.networks.overlap import overlap_with_templates
from bids_fbn.networks.states import StateRule, summarize_states
from bids_fbn.networks.templates import TemplateSet, load_templates
from bids_fbn.signal.clean import CleanedRun, clean_run
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals
from bids_fbn.signal.standard import Parcels
from bids_fbn.signal.windows import Steps, steps_of

if TYPE_CHECKING:
    from bids_fbn.models.base import Model
    from bids_fbn.models.compute import Compute

__all__ = [
    "analyse",
    "clean",
    "compute_for",
    "fit",
    "load_model",
    "weigh",
    "write_networks",
    "write_signal",
]

logger = logging.getLogger(__name__)

# The published 3.6 over the whole box, of which the brain is a fifth, comes to about this in the
# mask.
FIXED_Z = 1.7
# Power et al. (2012): volumes over it count as moved.
_HIGH_MOTION_MM = 0.5
# In the folder of a model's results.
_COURSES = "courses.npy"
_EFFECTS = "effects.npz"


def clean(run: BoldRun, config: Config, grid: Grid, folder: Path, minimum_volumes: int) -> str:
    """Clean a run; signals, nuisance design and quality are left in `folder`.

    Returns
    -------
    str
        Hash of the signals.

    Raises
    ------
    RunError, RunSkipped
        See :func:`bids_fbn.signal.clean.clean_run`.
    """
    cleaned = clean_run(
        run.bold,
        run.repetition_time,
        grid,
        config.signal,
        folder,
        run.mask,
        run.confounds,
        run.confounds_metadata,
        minimum_volumes,
        run.prefix,
    )
    cleaned.nuisance.regressors.to_csv(folder / "regressors.tsv", sep="\t", index=False)
    cleaned.nuisance.outliers.to_csv(folder / "outliers.tsv", sep="\t", index=False)
    (folder / "qc.json").write_text(json.dumps(_quality(cleaned)))
    if cleaned.nuisance.displacement is not None:
        np.save(folder / "displacement.npy", cleaned.nuisance.displacement)
    return hashlib.sha256((folder / "data.npy").read_bytes()).hexdigest()[:16]


def _quality(cleaned: CleanedRun) -> dict[str, tuple[Any, str, str]]:
    """Name → (value, what it is, units)."""
    signals, nuisance = cleaned.signals, cleaned.nuisance
    outliers = nuisance.outliers
    displacement = nuisance.displacement
    moved = None if displacement is None else np.nan_to_num(displacement) > _HIGH_MOTION_MM
    n_regressors = nuisance.regressors.shape[1]
    return {
        "n_volumes": (signals.n_volumes, "Volumes of the run", ""),
        "n_dummy": (int(outliers["dummy_scan"].sum()), "Volumes before the steady state", ""),
        "n_empty": (int(outliers["empty_volume"].sum()), "Volumes that hold no signal", ""),
        "n_left_out": (
            signals.n_volumes - signals.n_kept,
            "Volumes left out for any reason",
            "",
        ),
        "n_kept": (signals.n_kept, "Volumes that were analysed", ""),
        "kept_seconds": (
            signals.n_kept * signals.repetition_time,
            "Time that was analysed",
            "s",
        ),
        "fd_mean": (
            None if displacement is None else float(np.nanmean(displacement)),
            "Mean framewise displacement (Power)",
            "mm",
        ),
        "fd_max": (
            None if displacement is None else float(np.nanmax(displacement)),
            "Largest framewise displacement",
            "mm",
        ),
        "fd_share_over_0p5": (
            None if moved is None else float(moved.mean()),
            "Share of volumes with a framewise displacement over 0.5 mm",
            "",
        ),
        "n_voxels": (signals.grid.n_voxels, "Voxels of the analysis mask", ""),
        "n_voxels_not_covered": (
            int((~signals.covered).sum()),
            "Voxels of the analysis mask in which the run has no signal",
            "",
        ),
        "coverage": (float(signals.covered.mean()), "Share of the mask that the run covers", ""),
        "n_voxels_not_finite": (
            cleaned.resampled.n_not_finite,
            "Voxels of the input file, in the run's mask, that hold NaN or infinity",
            "",
        ),
        "n_regressors": (n_regressors, "Nuisance regressors", ""),
        "degrees_of_freedom": (
            signals.n_kept - n_regressors - 2,
            "Volumes kept less regressors, mean and trend; a band-pass filter takes more",
            "",
        ),
        "tsnr_median": (
            cleaned.temporal_snr,
            "Median over voxels of mean by standard deviation over time, kept volumes, "
            "smoothed, before cleaning",
            "",
        ),
    }


def compute_for(config: Config) -> Compute:
    """The device and precision that a config asks for."""
    from bids_fbn.models.compute import choose_compute

    options = config.compute
    return choose_compute(options.device, options.precision, options.omp_nthreads)


def fit(
    model_name: str,
    folders: Sequence[Path],
    config: Config,
    compute: Compute,
    weights: Path,
    checkpoint: Path | None = None,
) -> None:
    """Train a model on cleaned runs and write its weights and card."""
    from bids_fbn import models

    signals = [Signals.load(folder) for folder in folders]
    grid = signals[0].grid
    templates = load_templates(config.networks.templates, grid)
    model = models.create(model_name, config.models, grid, templates)
    model.fit(signals, compute, config.compute.random_seed, checkpoint)
    model.save(weights)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)


def load_model(weights: Path, folder: Path, config: Config) -> Model:
    """A trained model on the grid of a cleaned run."""
    from bids_fbn import models

    return models.load(weights, Grid.load(folder / "grid.npz"), config.models.candidates)


def analyse(
    model: Model,
    folder: Path,
    config: Config,
    compute: Compute,
    results: Path,
    names: Path | None = None,
) -> dict[str, Any]:
    """Find the networks of a cleaned run; they are left in the folder `results`.

    `names` is a folder that keeps what components are called, for other runs.

    Returns
    -------
    dict
        What ``decomposition.json`` will say.
    """
    signals = Signals.load(folder)
    templates = load_templates(config.networks.templates, signals.grid)
    method = Method.of(model, config, templates, compute, names=names)
    model = method.model
    steps = model.steps(signals, config.models.stride)
    dynamic = None
    if config.networks.save_dynamic_maps:
        dynamic = np.lib.format.open_memmap(
            results / "dynamic.npy",
            mode="w+",
            dtype=np.float32,
            shape=(len(templates.networks), len(steps), signals.grid.n_voxels),
        )
    networks, _ = method.networks(model, signals, dynamic)
    np.save(results / _COURSES, method.courses(networks, signals))
    if (effects := model.effects(signals, compute)) is not None:
        np.savez(results / _EFFECTS, maps=effects[0], sd=effects[1], networks=model.networks)
    stored = {f.name: getattr(networks, f.name) for f in fields(networks)}
    np.savez(
        results / "networks.npz",
        **{name: value for name, value in stored.items() if value is not None},
    )
    return {
        "Method": model.name,
        "Preset": model.preset,
        "Candidates": model.candidate_kind,
        "CandidatesPerStep": model.n_candidates,
        "CoursesByModel": model.has_courses,
        "Window": model.window,
        "Stride": config.models.stride,
        "Parameters": model.n_parameters,
        "Recipe": {key: value for key, value in vars(model.recipe).items() if value is not None},
        "Box": list(model.box_shape),
        "Training": model.training,
        "TrainedOnThisRun": signals.name in model.training.get("Runs", []),
        "MapsFoundInThisParticipant": model.found_in(signals),
        "InferenceDevice": compute.name,
        "InferencePrecision": model.inference.get("Precision", compute.precision),
        "PrecisionCheck": model.inference.get("PrecisionCheck"),
        "Templates": templates.name,
        "TemplateReference": templates.reference,
        "TemplateSource": templates.source,
        "TemplateRule": templates.support_rule,
        "Networks": list(templates.networks),
        "SupportRule": str(method.rule),
        **_state_facts(networks, method.state_rule),
        "Grid": grid_facts(signals.grid),
    }


def _state_facts(networks: RunNetworks, rule: StateRule) -> dict[str, Any]:
    if networks.amplitude is None:
        return {"StateMeasure": "iou", "StateThreshold": rule.threshold}
    return {
        "StateMeasure": "amplitude",
        "StateCertainty": rule.certainty,
        # From which on a step counts for the map of a network.
        "StateThreshold": rule.threshold,
    }


def weigh(
    model: Model,
    folder: Path,
    results: Path,
    config: Config,
    compute: Compute,
    table: Path,
    events: Path | None = None,
    store: Path | None = None,
    names: Path | None = None,
) -> None:
    """Hold the networks of a run against nulls, and write the table of :mod:`bids_fbn.evidence`.

    Parameters
    ----------
    model : Model
    folder : Path
        Of the cleaned run.
    results : Path
        Folder in which :func:`analyse` left the networks.
    config : Config
    compute : Compute
    table : Path
        TSV to write.
    events : Path, optional
    store : Path, optional
        Folder that keeps what is measured of each surrogate as it comes.
    names : Path, optional
        Folder that keeps what components are called, for other runs.
    """
    signals = Signals.load(folder)
    templates = load_templates(config.networks.templates, signals.grid)
    found = weigh_networks(
        Method.of(model, config, templates, compute, names=names),
        signals,
        _load_networks(results),
        np.load(results / _COURSES),
        config.nulls,
        events=None if events is None else _events(events),
        store=store,
    )
    found.to_csv(table, sep="\t", index=False)


def _events(path: Path) -> pd.DataFrame | None:
    """Events of a run; None, with a warning, where they are of no use: the networks still are."""
    from bids_fbn.nulls.task import read_events

    try:
        return read_events(path)
    except RunError as error:
        logger.warning("%s; nothing is held against the task", error)
        return None


def _load_networks(results: Path) -> RunNetworks:
    with np.load(results / "networks.npz", allow_pickle=False) as stored:
        values: dict[str, Any] = {name: stored[name] for name in stored.files}
    values["n_candidates"] = int(values["n_candidates"])
    return RunNetworks(**values)


def _final_overlap(
    networks: RunNetworks, templates: TemplateSet, covered: np.ndarray
) -> pd.DataFrame:
    """Each FBN map against its own template."""
    columns: dict[str, np.ndarray] = {}
    own = np.arange(len(templates.networks))
    arrays = (
        networks.maps[:, covered],
        templates.maps[:, covered],
        templates.supports[:, covered],
    )
    matched = overlap_with_templates(*arrays, SupportRule(either_sign=False))
    fixed = overlap_with_templates(*arrays, SupportRule(FIXED_Z, either_sign=False))
    columns["iou"] = matched.iou[own, own]
    columns["dice"] = matched.dice[own, own]
    columns["r"] = matched.r[own, own]
    columns["iou_fixed"] = fixed.iou[own, own]
    columns["dice_fixed"] = fixed.dice[own, own]
    return pd.DataFrame(columns, index=list(templates.networks))


def interpret(
    model_name: str,
    networks: RunNetworks,
    signals: Signals,
    templates: TemplateSet,
    parcels: Parcels,
    steps: Steps,
    rule: StateRule,
    courses: np.ndarray,
    evidence: pd.DataFrame,
    courses_by_model: bool = False,
) -> NetworkResults:
    """States and places of the networks of a run, with their courses (T_kept, P)."""
    states = networks.states(rule)
    return NetworkResults(
        model=model_name,
        networks=networks,
        steps=steps,
        states=states,
        summary=summarize_states(states, steps.valid, len(templates.networks), steps.seconds),
        courses=courses,
        courses_by_model=courses_by_model,
        evidence=evidence,
        peaks=find_peaks(networks.maps, signals.grid.coordinates, parcels.labels),
        final_overlap=_final_overlap(networks, templates, signals.covered),
    )


def _signal_facts(config: Config, config_hash: str) -> dict[str, Any]:
    return {
        "Settings": config.signal.model_dump(mode="json", exclude_none=True),
        "ConfigurationHash": config_hash,
    }


def write_signal(
    run: BoldRun, folder: Path, config: Config, source: str, config_hash: str
) -> None:
    """Write what the cleaning of a run found: mask, design, volumes left out, quality."""
    signals = Signals.load(folder)
    writer = _writer(run, signals.grid, config, source)
    regressors = folder / "regressors.tsv"
    design = (
        pd.read_csv(regressors, sep="\t") if regressors.read_text().strip() else pd.DataFrame()
    )
    if config.networks.save_denoised:
        writer.write_denoised(
            denoised_image(
                np.asarray(signals.data),
                signals.kept,
                signals.n_volumes,
                signals.grid,
                run.repetition_time,
            )
        )
    displacement = folder / "displacement.npy"
    writer.write_signal(
        design,
        pd.read_csv(folder / "outliers.tsv", sep="\t"),
        np.load(displacement) if displacement.is_file() else None,
        json.loads((folder / "qc.json").read_text()),
        _signal_facts(config, config_hash),
    )


def _writer(run: BoldRun, grid: Grid, config: Config, source: str) -> RunWriter:
    templates = load_templates(config.networks.templates, grid)
    return RunWriter(config.output_dir, run, grid, templates, source)


def write_networks(
    run: BoldRun,
    model_name: str,
    folder: Path,
    results: Path,
    weights: Path,
    facts: dict[str, Any],
    evidence: Path,
    parcels: Parcels,
    config: Config,
    source: str,
    config_hash: str,
) -> None:
    """Write the networks of a run, what speaks for them, and the weights that found them."""
    signals = Signals.load(folder)
    networks = _load_networks(results)
    templates = load_templates(config.networks.templates, signals.grid)
    steps = steps_of(signals, facts["Window"], facts["Stride"])
    writer = RunWriter(config.output_dir, run, signals.grid, templates, source)
    stored = config.output_dir / model_weights_path(model_name, run)
    given = config.models.weighted(model_name)
    if not given:
        copy_file(weights, stored)
        copy_file(weights.with_suffix(".json"), stored.with_suffix(".json"))
    if config.networks.save_dynamic_maps:
        writer.write_dynamic_maps(
            model_name, np.load(results / "dynamic.npy", mmap_mode="r"), steps
        )
    if (results / _EFFECTS).is_file():
        with np.load(results / _EFFECTS, allow_pickle=False) as effects:
            writer.write_effects(
                model_name, effects["maps"], effects["sd"], effects["networks"].tolist()
            )
    card = json.loads(weights.with_suffix(".json").read_text())
    interpreted = interpret(
        model_name,
        networks,
        signals,
        templates,
        parcels,
        steps,
        state_rule(config),
        np.load(results / _COURSES),
        pd.read_csv(evidence, sep="\t"),
        facts["CoursesByModel"],
    )
    writer.write_networks(
        interpreted,
        {
            **facts,
            "PeakPlaces": parcels.source,
            "WeightsSHA256": card["WeightsSHA256"],
            "Weights": (
                f"bids::{stored.relative_to(config.output_dir).as_posix()}"
                if not given
                else [path.name for path in config.models.weights]
            ),
            "ConfigurationHash": config_hash,
            "GeneratedBy": GENERATED_BY,
        },
        signals.kept,
        signals.n_volumes,
    )
