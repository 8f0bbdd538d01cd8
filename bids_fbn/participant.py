"""The participant level: run the workflows for what a call asks, say how it went."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bids_fbn import __version__, logs
from bids_fbn.bids.boldrun import BoldRun
from bids_fbn.bids.finished import (
    has_model_results,
    has_signal_results,
)
from bids_fbn.bids.naming import output_path
from bids_fbn.bids.writing import update_dataset_description, write_bidsignore, write_text
from bids_fbn.config import Config
from bids_fbn.environment import prepare_environment
from bids_fbn.errors import FBNError, InputError
from bids_fbn.request import Request, check, check_hashes, print_plan
from bids_fbn.resources import (
    available_memory_gb,
    available_processors,
    read_plugin_settings,
)

if TYPE_CHECKING:
    from bids_fbn.config import ComputeOptions
    from bids_fbn.devices import GpuPool
    from bids_fbn.outcomes import Outcomes
    from bids_fbn.workflows.participant import Plan, RunToDo

__all__ = ["run_participant_level"]

logger = logging.getLogger(__name__)

# Beyond this many threads the convolutions gain little, and other runs could use the processors.
_MOST_THREADS = 8


def run_participant_level(config: Config) -> int:
    """Do what a call asks for; returns the exit code (0 or 1).

    Raises
    ------
    InputError
        With all faults at once, before anything is started (exit code 2).
    """
    processors = config.compute.nprocs or available_processors()
    threads = config.compute.omp_nthreads or min(processors, _MOST_THREADS)
    prepare_environment(threads, config.compute.work_dir)
    logs.configure(config.run.verbose)
    compute = config.compute.model_copy(
        update={
            "nprocs": processors,
            "omp_nthreads": threads,
            "mem_gb": config.compute.mem_gb or available_memory_gb(),
        }
    )
    config = config.model_copy(update={"compute": compute})

    request = check(config)
    if config.run.dry_run:
        print_plan(request)
        return 1 if request.found.faults else 0
    check_hashes(request)
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


def _to_do(request: Request) -> list[RunToDo]:
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


def _run_to_do(request: Request, run: BoldRun, models: tuple[str, ...]) -> RunToDo:
    from bids_fbn.workflows.participant import RunToDo

    signal_hash, model_hashes = request.hashes(run)
    return RunToDo(
        run, models, _source_uri(run), signal_hash, model_hashes, request.minimum_volumes
    )


def _source_uri(run: BoldRun) -> str:
    """The input as ``DatasetLinks`` of the output dataset has it."""
    _, name, path = run.bids_uri.split(":", 2)
    return f"bids:{name or 'preprocessed'}:{path}"


def _begin_output(request: Request) -> None:
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


def _plan(request: Request) -> Plan:
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
    call = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    return Plan(
        config,
        work,
        grid,
        parcels,
        request.weights,
        threads,
        work / "crashes" / call,
        _gpus(config.compute, work / "gpus" / call),
    )


def _gpus(compute: ComputeOptions, locks: Path) -> GpuPool | None:
    """The GPUs that the nodes of this call share; None without any."""
    from bids_fbn.devices import GpuPool, gpus_of

    plugin = compute.use_plugin
    if plugin is not None and read_plugin_settings(plugin)[0] != "MultiProc":
        # Each node is a job of its own, on a machine and with GPUs that the scheduler chooses.
        return None
    devices = gpus_of(compute.device)
    if len(devices) > 1:
        logger.info(
            "runs are spread over %d GPUs (fewer by CUDA_VISIBLE_DEVICES or --device cuda:N)",
            len(devices),
        )
    return GpuPool(devices, locks) if devices else None


def _as_node(prefix: str) -> str:
    from bids_fbn.workflows.participant import node_name

    return node_name("", prefix)


def _whole(path: Path, save: Callable[[Path], None]) -> None:
    # Processes of several nodes may share the folder, and their numbers.
    part = path.with_name(f"{uuid.uuid4().hex}-{path.name}")
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


def _write_reports(plan: Plan, request: Request, outcomes: Outcomes) -> None:
    from bids_fbn.outcomes import run_workflow
    from bids_fbn.workflows.participant import reports_workflow

    subjects = request.subjects
    logger.info("writing %d reports", len(subjects))
    run_workflow(
        reports_workflow(plan, subjects, outcomes.problems(), outcomes.skipped_by_subject()), plan
    )
    outcomes.collect_reports(plan, subjects)
    outcomes.keep_crash_files(plan.config.output_dir)


def _write_boilerplate(request: Request) -> None:
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
