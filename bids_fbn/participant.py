"""The participant level: check everything, run the workflows, say how it went."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bids_fbn import __version__, logs
from bids_fbn.bids.boldrun import BoldRun
from bids_fbn.bids.discovery import Discovery, discover, runs_table
from bids_fbn.bids.finished import (
    has_model_results,
    has_signal_results,
    results_of_other_settings,
)
from bids_fbn.bids.naming import output_path, run_outputs
from bids_fbn.bids.writing import update_dataset_description, write_bidsignore, write_text
from bids_fbn.config import Config, ModelOptions
from bids_fbn.environment import prepare_environment
from bids_fbn.errors import FBNError, InputError
from bids_fbn.resources import (
    available_memory_gb,
    available_processors,
    read_plugin_settings,
)

if TYPE_CHECKING:
    from bids_fbn.networks.templates import TemplateSet
    from bids_fbn.outcomes import Outcomes
    from bids_fbn.signal.grid import Grid
    from bids_fbn.workflows.participant import Plan, RunToDo

__all__ = ["run_participant_level"]

logger = logging.getLogger(__name__)

# Beyond this many threads the convolutions gain little, and other runs could use the processors.
_MOST_THREADS = 8


@dataclass(frozen=True)
class _Request:
    """A call that has been checked: what can be done, with what."""

    config: Config
    found: Discovery
    grid: Grid
    templates: TemplateSet
    weights: dict[str, Path]
    minimum_volumes: int

    @property
    def subjects(self) -> list[str]:
        """Participants with a run, good or bad."""
        bad = {fault.prefix.partition("_")[0].removeprefix("sub-") for fault in self.found.faults}
        return sorted({run.subject for run in self.found.runs} | bad)

    def hashes(self, run: BoldRun) -> tuple[str, dict[str, str]]:
        """Of the settings behind the signals, and behind each model's results."""
        source = f"{run.space}:res-{run.entities.get('resolution')}|{self.grid.fingerprint}"
        models = self.config.models.model
        return (
            self.config.signal_hash(source),
            {model: self.config.model_hash(model, source) for model in models},
        )


def run_participant_level(config: Config) -> int:
    """Do what a call asks for; returns the exit code (0 or 1).

    Raises
    ------
    InputError
        With all faults at once, before anything is started (exit code 2).
    """
    processors = config.compute.nprocs or available_processors()
    threads = config.compute.omp_nthreads or min(processors, _MOST_THREADS)
    prepare_environment(threads)
    logs.configure(config.run.verbose)
    compute = config.compute.model_copy(
        update={
            "nprocs": processors,
            "omp_nthreads": threads,
            "mem_gb": config.compute.mem_gb or available_memory_gb(),
        }
    )
    config = config.model_copy(update={"compute": compute})

    request = _check(config)
    if config.run.dry_run:
        _print_plan(request)
        return 1 if request.found.faults else 0
    _check_hashes(request)
    _begin_output(request)
    if config.run.boilerplate_only:
        _write_boilerplate(request)
        print(f"methods text: {config.output_dir / 'logs' / 'CITATION.md'}")
        return 0

    from bids_fbn.outcomes import Outcomes

    outcomes = Outcomes(request.found.faults)
    to_do = _to_do(request)
    plan = _plan(request)
    try:
        if to_do and not config.run.reports_only:
            _compute(plan, to_do, outcomes)
        if not config.run.signals_only:
            _write_reports(plan, request, outcomes)
            _write_boilerplate(request)
    except FBNError as error:  # of the main process: the disk is full, say
        print(f"error: {error}", file=sys.stderr)
        outcomes.keep_crash_files(config.output_dir)
        outcomes.print_summary(config.output_dir)
        return 1
    outcomes.print_summary(config.output_dir)
    if config.run.signals_only:
        print(f"cleaned signals: {plan.work / 'signals'}")
    return 1 if outcomes.failed else 0


# -- Before anything is started --------------------------------------------------------------


def _check(config: Config) -> _Request:
    """Look at everything that can be looked at without starting; all faults in one error."""
    from bids_fbn.networks.templates import load_templates
    from bids_fbn.signal.standard import analysis_grid

    faults: list[str] = _folder_faults(config)
    found: Discovery | None = None
    if config.bids_dir.resolve() != config.output_dir.resolve():
        try:
            found = discover(config)
        except InputError as error:
            faults += error.faults
    if not config.run.dry_run:
        faults += _device_faults(config)
    if found is None:
        raise InputError(*faults)
    space = found.runs[0].space
    grid = analysis_grid(space, config.signal.resolution)
    templates: TemplateSet | None = None
    try:
        templates = load_templates(config.networks.templates, grid)
    except InputError as error:
        faults += error.faults
    weights: dict[str, Path] = {}
    try:
        weights = _weights(config, grid)
    except InputError as error:
        faults += error.faults
    if templates is not None:
        faults += _model_faults(config, grid, templates, weights)
    if faults or templates is None:
        raise InputError(*faults)
    return _Request(config, found, grid, templates, weights, _largest_window(config, weights))


def _folder_faults(config: Config) -> list[str]:
    faults = []
    bids_dir, out, work = (
        path.resolve() for path in (config.bids_dir, config.output_dir, config.compute.work_dir)
    )
    if out == bids_dir:
        faults.append(f"{out}: the output folder is the input; choose another, results never mix")
    inputs = [bids_dir, *(path.resolve() for path in config.data.derivatives.values())]
    for folder in inputs:
        if folder in (work, *work.parents) and out not in (work, *work.parents):
            faults.append(f"{work}: the work folder is inside the input; choose another with -w")
            break
    if not config.run.dry_run:
        for folder in dict.fromkeys((out, work)):
            if reason := _why_not_writable(folder):
                faults.append(f"{folder}: cannot be written ({reason}); choose another folder")
    plugin = config.compute.use_plugin
    if plugin is not None:
        try:
            read_plugin_settings(plugin)
        except InputError as error:
            faults += error.faults
    if config.run.write_graph and shutil.which("dot") is None:
        faults.append("--write-graph: needs graphviz, whose command dot is not there; install it")
    faults += _idle_options(config.models)
    return faults


def _idle_options(options: ModelOptions) -> list[str]:
    """What was asked for and would change nothing."""
    faults = []
    if options.model == ("scaae",) and options.window is not None:
        faults.append("--window: none of the models asked for uses windows")
    if "stcnn" not in options.model and options.target_networks:
        faults.append("--target-networks: is about stcnn, which is not asked for")
    if "scaae" not in options.model and options.candidates != "fbn":
        faults.append("--candidates: is about scaae, which is not asked for")
    if options.weights:
        for name in (
            "window",
            "channels",
            "epochs",
            "batch",
            "training_stride",
            "target_networks",
        ):
            if getattr(options, name) not in (None, ()):
                option = name.replace("_", "-")
                faults.append(
                    f"--{option}: has no effect with --weights, which are trained already"
                )
    return faults


def _why_not_writable(folder: Path) -> str:
    """Looks without making anything: a call that is refused leaves no trace."""
    above = next(path for path in (folder, *folder.parents) if path.exists())
    if not above.is_dir():
        return f"{above} is a file"
    return "" if os.access(above, os.W_OK | os.X_OK) else f"no permission to write in {above}"


def _device_faults(config: Config) -> list[str]:
    if config.run.reports_only or config.run.boilerplate_only:
        return []
    from bids_fbn.models.compute import choose_compute

    try:
        compute = choose_compute(config.compute.device, config.compute.precision)
    except InputError as error:
        return list(error.faults)
    no_gpu = config.compute.device == "auto" and compute.device == "cpu"
    logger.info(
        "computing on %s%s, %s", compute.name, " (no GPU here)" * no_gpu, compute.precision
    )
    return []


def _model_faults(
    config: Config, grid: Grid, templates: TemplateSet, weights: dict[str, Path]
) -> list[str]:
    """What is wrong with the models that are to be trained, told before anything is cleaned."""
    run = config.run
    if run.dry_run or run.reports_only or run.boilerplate_only or run.signals_only:
        return []
    from bids_fbn import models

    faults: list[str] = []
    for name in config.models.model:
        if name not in weights and not config.models.weights:
            try:
                models.create(name, config.models, grid, templates)
            except InputError as error:
                faults += error.faults
    return faults


def _weights(config: Config, grid: Grid) -> dict[str, Path]:
    """Model → weights file given for it.

    Raises
    ------
    InputError
        If a file is damaged, of another grid, or of a model that was not asked for.
    """
    if not config.models.weights:
        return {}
    from bids_fbn import models

    found: dict[str, Path] = {}
    faults: list[str] = []
    for path in config.models.weights:
        try:
            model = models.load(path.resolve(), grid)
        except InputError as error:
            faults += error.faults
            continue
        if model.name not in config.models.model:
            faults.append(f"{path}: weights of {model.name}, which --model does not ask for")
        elif model.name in found:
            faults.append(f"{path}: a second file of weights of {model.name}")
        else:
            found[model.name] = path.resolve()
    lacking = [name for name in config.models.model if name not in found]
    if lacking and not faults:
        faults.append(f"--weights: none given for {', '.join(lacking)}; give one for each model")
    if faults:
        raise InputError(*faults)
    return found


def _largest_window(config: Config, weights: dict[str, Path]) -> int:
    """Volumes that a run must keep for every model to have one window."""
    if weights:
        from bids_fbn.models.card import read_card

        windows = [int(read_card(path)["Architecture"]["Window"]) for path in weights.values()]
    else:
        from bids_fbn import models

        windows = [models.window_of(name, config.models) for name in config.models.model]
    return max(2, *windows)


def _check_hashes(request: _Request) -> None:
    """Refuse to mix results of other settings with those of this call.

    Raises
    ------
    InputError
    """
    config = request.config
    if config.run.reports_only or config.run.boilerplate_only or config.run.signals_only:
        return
    remade = {run.prefix for run in request.found.runs} if config.run.overwrite else set()
    _, model_hashes = request.hashes(request.found.runs[0])
    others = results_of_other_settings(config.output_dir, model_hashes, remade)
    if others:
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        remedy = (
            "ask for all of them together with --overwrite"
            if config.run.overwrite
            else "or make them again with --overwrite"
        )
        raise InputError(
            f"{config.output_dir}: holds results by other settings (options, templates or brain "
            f"mask; sub-*/log has them): {shown}; choose another output folder, {remedy}"
        )


def _print_plan(request: _Request) -> None:
    config = request.config
    table = runs_table(request.found.runs)
    print(table.to_string(index=False))
    print(
        f"\nanalysis grid: {request.grid.resolution:g} mm, {request.grid.n_voxels} voxels, mask "
        f"from {request.grid.mask_source}\ntemplates: {request.templates.name} "
        f"({len(request.templates.networks)} networks)\nmodels: {', '.join(config.models.model)}"
    )
    print(f"\nwould be written in {config.output_dir}:")
    for run in request.found.runs:
        for path in run_outputs(
            run,
            config.models.model,
            resolution=config.signal.resolution,
            atlas=request.templates.name,
        ):
            print(f"  {path}")
    for subject in sorted({run.subject for run in request.found.runs}):
        print(f"  sub-{subject}.html")
    for fault in request.found.faults:
        print(f"cannot be analysed: {fault}", file=sys.stderr)


# -- The work --------------------------------------------------------------------------------


def _to_do(request: _Request) -> list[RunToDo]:
    """Runs and models without whole results of these settings."""
    config, out = request.config, request.config.output_dir
    to_do = []
    for run in request.found.runs:
        signal_hash, model_hashes = request.hashes(run)
        done_signal = has_signal_results(
            out, run, config.signal.resolution, signal_hash, config.networks.save_denoised
        )
        if config.run.signals_only:
            # The work folder is what is asked for, whatever the output dataset holds.
            to_do.append(_run_to_do(request, run, ()))
            continue
        models = tuple(
            model
            for model in config.models.model
            if config.run.overwrite
            or not has_model_results(
                out,
                run,
                model,
                config.signal.resolution,
                request.templates.name,
                model_hashes[model],
                request.templates.networks if config.networks.save_dynamic_maps else (),
            )
        )
        if models or not done_signal:
            to_do.append(_run_to_do(request, run, models))
        else:
            logger.info("%s: results are there already (--overwrite makes them again)", run.prefix)
    return to_do


def _run_to_do(request: _Request, run: BoldRun, models: tuple[str, ...]) -> RunToDo:
    from bids_fbn.workflows.participant import RunToDo

    signal_hash, model_hashes = request.hashes(run)
    return RunToDo(
        run, models, _source_uri(run), signal_hash, model_hashes, request.minimum_volumes
    )


def _source_uri(run: BoldRun) -> str:
    """The input as ``DatasetLinks`` of the output dataset has it."""
    _, name, path = run.bids_uri.split(":", 2)
    return f"bids:{name or 'preprocessed'}:{path}"


def _begin_output(request: _Request) -> None:
    config = request.config
    out = config.output_dir
    links = {name: path.resolve().as_uri() for name, path in config.data.derivatives.items()}
    links["raw" if links else "preprocessed"] = config.bids_dir.resolve().as_uri()
    _, model_hashes = request.hashes(request.found.runs[0])
    if config.run.signals_only:
        model_hashes = {}
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4()}"
    try:
        write_bidsignore(out)
        update_dataset_description(out, links, model_hashes)
        for subject in request.subjects:
            folder = out / f"sub-{subject}" / "log" / stamp
            write_text(folder / "config.toml", config.to_toml())
    except FBNError as error:
        raise InputError(str(error)) from None
    logger.info("bids_fbn %s: %d runs, output in %s", __version__, len(request.found.runs), out)


def _plan(request: _Request) -> Plan:
    from bids_fbn.signal.standard import load_parcels
    from bids_fbn.workflows.participant import Plan

    config = request.config
    work = config.compute.work_dir.resolve() / "bids_fbn"
    if not config.run.resume:
        for run in request.found.runs:
            for folder in work.glob(f"*/*_{_as_node(run.prefix)}*"):
                shutil.rmtree(folder, ignore_errors=True)
    grid = work / f"grid-{request.grid.fingerprint}.npz"
    parcels = work / f"parcels-{request.grid.fingerprint}.npz"
    work.mkdir(parents=True, exist_ok=True)
    if not grid.exists():
        _whole(grid, request.grid.save)
    if not parcels.exists():
        _whole(parcels, load_parcels(request.grid).save)
    threads = config.compute.omp_nthreads or 1
    crashes = work / "crashes" / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    return Plan(config, work, grid, parcels, request.weights, threads, crashes)


def _as_node(prefix: str) -> str:
    from bids_fbn.workflows.participant import node_name

    return node_name("", prefix)


def _whole(path: Path, save: Callable[[Path], None]) -> None:
    part = path.with_name(f"{os.getpid()}-{path.name}")
    save(part)
    os.replace(part, path)


def _compute(plan: Plan, to_do: Sequence[RunToDo], outcomes: Outcomes) -> None:
    from bids_fbn.outcomes import run_workflow
    from bids_fbn.workflows.participant import networks_workflow, signals_workflow

    logger.info("cleaning %d runs", len(to_do))
    run_workflow(signals_workflow(plan, to_do), plan)
    cleaned = outcomes.collect_cleaned(plan, to_do)
    if cleaned and not (outcomes.failed and plan.config.run.stop_on_first_crash):
        logger.info("finding networks in %d runs", len(cleaned))
        run_workflow(networks_workflow(plan, cleaned), plan)
        outcomes.collect_written(plan, cleaned)
    outcomes.keep_crash_files(plan.config.output_dir)


def _write_reports(plan: Plan, request: _Request, outcomes: Outcomes) -> None:
    from bids_fbn.outcomes import run_workflow
    from bids_fbn.workflows.participant import reports_workflow

    subjects = request.subjects
    logger.info("writing %d reports", len(subjects))
    run_workflow(
        reports_workflow(plan, subjects, outcomes.problems(), outcomes.skipped_by_subject()), plan
    )
    outcomes.collect_reports(plan, subjects)
    outcomes.keep_crash_files(plan.config.output_dir)


def _write_boilerplate(request: _Request) -> None:
    from bids_fbn.reports.methods import write_citation

    config = request.config
    facts = []
    for run in request.found.runs:
        for model in config.models.model:
            path = config.output_dir / output_path(
                "decomposition", run, resolution=config.signal.resolution, model=model
            )
            if path.is_file():
                facts.append(json.loads(path.read_text()))
    write_citation(config.output_dir, config, facts)
