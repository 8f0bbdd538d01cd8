"""nipype interfaces: each a thin shell over one function of :mod:`bids_fbn.stages`.

Inputs and outputs are paths and text, so that a node can be hashed, and run in another process or
on another machine.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from bids_fbn import stages
from bids_fbn.bids.boldrun import BoldRun
from bids_fbn.config import Config
from bids_fbn.errors import RunSkipped
from bids_fbn.logs import configure_worker, quieten_nipype
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.standard import Parcels

if TYPE_CHECKING:
    from bids_fbn.models.compute import Compute

__all__ = [
    "OUTCOME",
    "CleanRun",
    "FindNetworks",
    "FitModel",
    "ReportParticipant",
    "WeighNetworks",
    "WriteNetworks",
    "WriteSignal",
]

# A worker knows no more than this module when it takes up its first node.
quieten_nipype()

# Written last by CleanRun: what became of a run.
OUTCOME = "outcome.json"


class _CleanInputs(BaseInterfaceInputSpec):
    run = traits.Str(mandatory=True, desc="the run, as BoldRun.to_json")
    # Files that the run names, here too so that a changed one is noticed.
    bold = File(exists=True, mandatory=True)
    mask = File(exists=True)
    confounds = File(exists=True)
    config = traits.Str(mandatory=True, desc="signal settings, JSON of a Config")
    grid = File(exists=True, mandatory=True)
    minimum_volumes = traits.Int(mandatory=True)


class _CleanOutputs(TraitedSpec):
    outcome = File(exists=True)


class CleanRun(SimpleInterface):
    """BOLD file → signals in the node's folder."""

    input_spec = _CleanInputs
    output_spec = _CleanOutputs

    def _run_interface(self, runtime: Any) -> Any:
        configure_worker()
        folder = Path(runtime.cwd)
        outcome = {"fingerprint": "", "skipped": ""}
        try:
            outcome["fingerprint"] = stages.clean(
                BoldRun.from_json(self.inputs.run),
                Config.model_validate_json(self.inputs.config),
                Grid.load(Path(self.inputs.grid)),
                folder,
                self.inputs.minimum_volumes,
            )
        except RunSkipped as reason:
            outcome["skipped"] = str(reason)
        path = folder / OUTCOME
        path.write_text(json.dumps(outcome))
        self._results["outcome"] = str(path)
        return runtime


class _ComputingInputs(BaseInterfaceInputSpec):
    folder = traits.Str(mandatory=True, desc="folder of the cleaned run")
    fingerprint = traits.Str(mandatory=True, desc="of the signals in it")
    config = traits.Str(mandatory=True, desc="JSON of a Config")
    # nipype knows by this name that a node takes GPU slots. On what it was computed changes no
    # result: a call is taken up where there are other GPUs, or none.
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)
    gpus = traits.List(traits.Str, nohash=True, desc="GPUs to take one of, see GpuPool")
    gpu_locks = traits.Str(nohash=True, desc="folder of their locks")


@contextlib.contextmanager
def _chosen_compute(inputs: Any, config: Config) -> Iterator[Compute]:
    """What a node computes with: a GPU of its own, where there are any to share."""
    if not inputs.use_gpu:
        yield stages.compute_for(config)
        return
    from bids_fbn.devices import GpuPool

    with GpuPool(tuple(inputs.gpus), Path(inputs.gpu_locks)).take() as device:
        options = config.compute.model_copy(update={"device": device})
        yield stages.compute_for(config.model_copy(update={"compute": options}))


class _FitInputs(_ComputingInputs):
    model = traits.Str(mandatory=True)
    checkpoint = traits.Str(nohash=True, desc="file to go on from after an interruption")


class _FitOutputs(TraitedSpec):
    weights = File(exists=True)


class FitModel(SimpleInterface):
    """Signals of a run → trained weights and their card."""

    input_spec = _FitInputs
    output_spec = _FitOutputs

    def _run_interface(self, runtime: Any) -> Any:
        configure_worker()
        config = Config.model_validate_json(self.inputs.config)
        weights = Path(runtime.cwd) / f"{self.inputs.model}.safetensors"
        with _chosen_compute(self.inputs, config) as compute:
            stages.fit(
                self.inputs.model,
                [Path(self.inputs.folder)],
                config,
                compute,
                weights,
                Path(self.inputs.checkpoint),
            )
        self._results["weights"] = str(weights)
        return runtime


class _FindInputs(_ComputingInputs):
    weights = File(exists=True, mandatory=True)
    names = traits.Str(mandatory=True, nohash=True, desc="folder of the names of components")


class _FindOutputs(TraitedSpec):
    facts = File(exists=True)


class FindNetworks(SimpleInterface):
    """Signals and weights → networks, in the node's folder."""

    input_spec = _FindInputs
    output_spec = _FindOutputs

    def _run_interface(self, runtime: Any) -> Any:
        configure_worker()
        config = Config.model_validate_json(self.inputs.config)
        folder, results = Path(self.inputs.folder), Path(runtime.cwd)
        model = stages.load_model(Path(self.inputs.weights), folder, config)
        with _chosen_compute(self.inputs, config) as compute:
            facts = stages.analyse(
                model, folder, config, compute, results, Path(self.inputs.names)
            )
        path = results / "facts.json"
        path.write_text(json.dumps(facts))
        self._results["facts"] = str(path)
        return runtime


class _WeighInputs(_FindInputs):
    facts = File(exists=True, mandatory=True, desc="beside the networks")
    events = File(exists=True)
    store = traits.Str(nohash=True, desc="folder that keeps what is measured of surrogates")


class _WeighOutputs(TraitedSpec):
    evidence = File(exists=True)


class WeighNetworks(SimpleInterface):
    """Networks, signals and weights → a table of what speaks for the networks."""

    input_spec = _WeighInputs
    output_spec = _WeighOutputs

    def _run_interface(self, runtime: Any) -> Any:
        configure_worker()
        config = Config.model_validate_json(self.inputs.config)
        folder, table = Path(self.inputs.folder), Path(runtime.cwd) / "evidence.tsv"
        store = Path(self.inputs.store)
        with _chosen_compute(self.inputs, config) as compute:
            stages.weigh(
                stages.load_model(Path(self.inputs.weights), folder, config),
                folder,
                Path(self.inputs.facts).parent,
                config,
                compute,
                table,
                Path(self.inputs.events) if isdefined(self.inputs.events) else None,
                store,
                Path(self.inputs.names),
            )
        shutil.rmtree(store, ignore_errors=True)
        self._results["evidence"] = str(table)
        return runtime


class _WriteSignalInputs(BaseInterfaceInputSpec):
    run = traits.Str(mandatory=True)
    folder = traits.Str(mandatory=True)
    config = traits.Str(mandatory=True)
    source = traits.Str(mandatory=True, desc="BIDS URI of the input")
    config_hash = traits.Str(mandatory=True)


class WriteSignal(SimpleInterface):
    """What cleaning found → files of the output dataset."""

    input_spec = _WriteSignalInputs
    output_spec = TraitedSpec
    # The output dataset may have lost files that the work folder knows nothing of.
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        configure_worker()
        stages.write_signal(
            BoldRun.from_json(self.inputs.run),
            Path(self.inputs.folder),
            Config.model_validate_json(self.inputs.config),
            self.inputs.source,
            self.inputs.config_hash,
        )
        return runtime


class _WriteNetworksInputs(_WriteSignalInputs):
    model = traits.Str(mandatory=True)
    weights = File(exists=True, mandatory=True)
    facts = File(exists=True, mandatory=True)
    evidence = File(exists=True, mandatory=True)
    parcels = File(exists=True, mandatory=True)


class WriteNetworks(SimpleInterface):
    """Networks of a run → files of the output dataset."""

    input_spec = _WriteNetworksInputs
    output_spec = TraitedSpec
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        configure_worker()
        facts = Path(self.inputs.facts)
        stages.write_networks(
            BoldRun.from_json(self.inputs.run),
            self.inputs.model,
            Path(self.inputs.folder),
            facts.parent,
            Path(self.inputs.weights),
            json.loads(facts.read_text()),
            Path(self.inputs.evidence),
            Parcels.load(Path(self.inputs.parcels)),
            Config.model_validate_json(self.inputs.config),
            self.inputs.source,
            self.inputs.config_hash,
        )
        return runtime


class _ReportInputs(BaseInterfaceInputSpec):
    subject = traits.Str(mandatory=True)
    config = traits.Str(mandatory=True)
    problems = traits.Str("[]", usedefault=True, desc="JSON list of Problems")
    skipped = traits.Str("[]", usedefault=True, desc="JSON list of Problems")


class ReportParticipant(SimpleInterface):
    """What was written for a participant → its report."""

    input_spec = _ReportInputs
    output_spec = TraitedSpec
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        from bids_fbn.reports.participant import Problem, write_report

        configure_worker()
        config = Config.model_validate_json(self.inputs.config)

        def problems(text: str) -> list[Problem]:
            return [
                Problem(p["run"], p["message"], Path(p["crash_file"]) if p["crash_file"] else None)
                for p in json.loads(text)
            ]

        write_report(
            config.output_dir,
            self.inputs.subject,
            config=config,
            problems=problems(self.inputs.problems),
            skipped=problems(self.inputs.skipped),
        )
        return runtime
