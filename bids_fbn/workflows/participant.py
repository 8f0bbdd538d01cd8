"""The participant level as three nipype workflows.

First every run is cleaned; then the models are fitted to each run that could be, applied and
written; last come the reports. Between them it is known which runs have failed or were skipped.

A model is trained on the run that it is applied to, as STCA was published: the result of a run
does not depend on which other runs a call happens to ask for, and repeated runs stay independent
measurements.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nipype.pipeline import engine as pe

from bids_fbn.bids.boldrun import BoldRun
from bids_fbn.config import BASELINES, RESULTS_VERSION, Config
from bids_fbn.interfaces import (
    CleanRun,
    FindNetworks,
    FitModel,
    ReportParticipant,
    WeighNetworks,
    WriteNetworks,
    WriteSignal,
)

if TYPE_CHECKING:
    from bids_fbn.devices import GpuPool

__all__ = [
    "CleanedFolder",
    "Plan",
    "RunToDo",
    "networks_workflow",
    "node_name",
    "reports_workflow",
    "signals_workflow",
]

# Highest resident size, measured at 4 mm in fp32: training STCA as published (a 64³ box, 64
# channels), SCAAE as published (the same box, 12 volumes) and ST-CNN, maps of STCA (with the
# spectra of its kernels); and cleaning a run of 1,200 volumes of 91×109×91.
_FIT_GB = {"stca": 6.0, "scaae": 10.6}
_FIT_GB_OF_OTHERS = 2.0
_MAPS_GB = 2.2
_CLEAN_GB = 1.0
# Signals of 1,200 volumes at 4 mm in memory, a surrogate of them, and what makes it.
_SURROGATE_GB = 0.6


@dataclass(frozen=True)
class RunToDo:
    """A run, the models still to be applied to it, and what is written beside its results."""

    run: BoldRun
    models: tuple[str, ...]
    source: str
    signal_hash: str
    model_hashes: Mapping[str, str]
    minimum_volumes: int


@dataclass(frozen=True)
class CleanedFolder:
    """Where a cleaned run lies."""

    to_do: RunToDo
    folder: Path
    fingerprint: str


@dataclass(frozen=True)
class Plan:
    """What all nodes share.

    Parameters
    ----------
    config : Config
    work : Path
        Folder of the workflows.
    grid, parcels : Path
        Files with the analysis grid and the names of places.
    weights : mapping
        Model → weights given by the user.
    threads : int
        For a node that computes with several.
    crashes : Path
        Folder for crash files.
    gpus : GpuPool, optional
        That nodes with a neural network share; without one each computes on what the config says.
    """

    config: Config
    work: Path
    grid: Path
    parcels: Path
    weights: Mapping[str, Path]
    threads: int
    crashes: Path
    gpus: GpuPool | None = None

    @property
    def gpu_slots(self) -> int:
        """What nipype calls ``n_gpu_procs``: a node takes as many of them as it has threads."""
        return 0 if self.gpus is None else len(self.gpus.devices) * self.threads

    def workflow(self, name: str) -> pe.Workflow:
        workflow = pe.Workflow(name=name, base_dir=str(self.work))
        workflow.config["execution"] = {
            "crashdump_dir": str(self.crashes),
            "crashfile_format": "txt",
            "stop_on_first_crash": str(self.config.run.stop_on_first_crash).lower(),
            "remove_unnecessary_outputs": "false",
            "create_report": "false",
            "hash_method": "timestamp",
        }
        if self.config.compute.use_plugin is None:
            # A run is a handful of nodes of seconds each; nipype's two seconds would add up. A
            # scheduler is not asked that often.
            workflow.config["execution"]["poll_sleep_duration"] = "0.1"
        return workflow


def node_name(stage: str, run: str, model: str = "") -> str:
    """Name of a node, from which its run can be told.

    Examples
    --------
    >>> node_name("find", "sub-01_task-rest", "stca")
    'find_stca_sub_01_task_rest'
    """
    return re.sub(r"[^0-9a-zA-Z]", "_", "_".join(filter(None, [stage, model, run])))


def signals_workflow(plan: Plan, runs: Iterable[RunToDo]) -> pe.Workflow:
    """A node for each run that cleans it."""
    workflow = plan.workflow("signals")
    config = plan.config.only("signal").model_dump_json()
    nodes = []
    for to_do in runs:
        node = pe.Node(
            CleanRun(
                run=to_do.run.to_json(),
                bold=str(to_do.run.bold),
                config=config,
                grid=str(plan.grid),
                minimum_volumes=to_do.minimum_volumes,
            ),
            name=node_name("clean", to_do.run.prefix),
            mem_gb=_CLEAN_GB,
        )
        for name in ("mask", "confounds"):
            path = getattr(to_do.run, name)
            if path is not None:
                setattr(node.inputs, name, str(path))
        nodes.append(node)
    workflow.add_nodes(nodes)
    return workflow


def networks_workflow(plan: Plan, cleaned: Sequence[CleanedFolder]) -> pe.Workflow:
    """For each cleaned run: fit every model, apply it, hold it against its nulls, write."""
    workflow = plan.workflow("networks")
    computing = plan.config.only("signal", "models", "networks", "compute").model_dump_json()
    weighing = plan.config.only(
        "signal", "models", "networks", "nulls", "compute"
    ).model_dump_json()
    writing = plan.config.model_dump_json()
    for item in cleaned:
        workflow.add_nodes([_write_signal(item, writing)])
        for model in item.to_do.models:
            find = _find(plan, item, model, computing)
            weigh = _weigh(plan, item, model, weighing)
            write = _write(plan, item, model, writing)
            fit = None if model in plan.weights else _fit(plan, item, model, computing)
            if plan.gpus is not None and model not in BASELINES:
                for node in (find, weigh) if fit is None else (fit, find, weigh):
                    node.inputs.use_gpu = True
                    node.inputs.gpus = list(plan.gpus.devices)
                    node.inputs.gpu_locks = str(plan.gpus.locks)
            for node in (find, weigh, write):
                if fit is None:
                    node.inputs.weights = str(plan.weights[model])
                else:
                    workflow.connect(fit, "weights", node, "weights")
            workflow.connect(find, "facts", weigh, "facts")
            workflow.connect(find, "facts", write, "facts")
            workflow.connect(weigh, "evidence", write, "evidence")
    return workflow


def _write_signal(item: CleanedFolder, config: str) -> pe.Node:
    return pe.Node(
        WriteSignal(
            run=item.to_do.run.to_json(),
            folder=str(item.folder),
            config=config,
            source=item.to_do.source,
            config_hash=item.to_do.signal_hash,
        ),
        name=node_name("write", item.to_do.run.prefix, "signal"),
        mem_gb=0.5,
    )


def _kept_file(plan: Plan, item: CleanedFolder, model: str, kind: str) -> str:
    """What outlives a killed call; of just this signal with just these settings."""
    marks = f"{item.fingerprint}_{item.to_do.model_hashes[model]}"
    return str(plan.work / f"{item.to_do.run.prefix}_{model}_{marks}.{kind}")


def _names(plan: Plan) -> str:
    return str(plan.work / f"names-{RESULTS_VERSION}")


def _fit(plan: Plan, item: CleanedFolder, model: str, config: str) -> pe.Node:
    run = item.to_do.run.prefix
    return pe.Node(
        FitModel(
            model=model,
            folder=str(item.folder),
            fingerprint=item.fingerprint,
            config=config,
            checkpoint=_kept_file(plan, item, model, "checkpoint"),
        ),
        name=node_name("fit", run, model),
        n_procs=plan.threads,
        mem_gb=_fit_gb(model),
    )


def _find(plan: Plan, item: CleanedFolder, model: str, config: str) -> pe.Node:
    return pe.Node(
        FindNetworks(
            folder=str(item.folder),
            fingerprint=item.fingerprint,
            config=config,
            names=_names(plan),
        ),
        name=node_name("find", item.to_do.run.prefix, model),
        n_procs=plan.threads,
        mem_gb=_MAPS_GB,
    )


def _fit_gb(model: str) -> float:
    return _FIT_GB.get(model, _FIT_GB_OF_OTHERS)


def _weigh(plan: Plan, item: CleanedFolder, model: str, config: str) -> pe.Node:
    run = item.to_do.run
    trains = plan.config.nulls.refit_surrogates and model not in plan.weights
    node = pe.Node(
        WeighNetworks(
            folder=str(item.folder),
            fingerprint=item.fingerprint,
            config=config,
            store=_kept_file(plan, item, model, "surrogate-values"),
            names=_names(plan),
        ),
        name=node_name("weigh", run.prefix, model),
        n_procs=plan.threads,
        mem_gb=max(_MAPS_GB, _fit_gb(model) if trains else 0.0) + _SURROGATE_GB,
    )
    if run.events is not None:
        node.inputs.events = str(run.events)
    return node


def _write(plan: Plan, item: CleanedFolder, model: str, config: str) -> pe.Node:
    return pe.Node(
        WriteNetworks(
            run=item.to_do.run.to_json(),
            model=model,
            folder=str(item.folder),
            parcels=str(plan.parcels),
            config=config,
            source=item.to_do.source,
            config_hash=item.to_do.model_hashes[model],
        ),
        name=node_name("write", item.to_do.run.prefix, model),
        mem_gb=1.0,
    )


def reports_workflow(
    plan: Plan,
    subjects: Iterable[str],
    problems: Mapping[str, list[dict[str, str]]],
    skipped: Mapping[str, list[dict[str, str]]],
) -> pe.Workflow:
    """A node for each participant that writes the report.

    Parameters
    ----------
    problems, skipped : mapping
        Participant → runs that failed, or were left out, as ``run``, ``message``, ``crash_file``.
    """
    workflow = plan.workflow("reports")
    config = plan.config.model_dump_json()
    workflow.add_nodes(
        [
            pe.Node(
                ReportParticipant(
                    subject=subject,
                    config=config,
                    problems=json.dumps(problems.get(subject, [])),
                    skipped=json.dumps(skipped.get(subject, [])),
                ),
                name=node_name("report", f"sub-{subject}"),
                mem_gb=1.0,
            )
            for subject in subjects
        ]
    )
    return workflow
