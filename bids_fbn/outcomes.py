"""What became of every run: running a workflow, and reading off what it left behind.

nipype says only that something crashed. Which run, why, and where the crash file lies is found
from what each node was to leave, so that the last lines of a call can name it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bids_fbn.bids.discovery import RunFault
from bids_fbn.bids.finished import has_model_results, has_signal_results
from bids_fbn.interfaces import OUTCOME
from bids_fbn.logs import quieten_nipype
from bids_fbn.networks.templates import load_templates
from bids_fbn.resources import read_plugin_settings
from bids_fbn.signal.grid import Grid
from bids_fbn.workflows.participant import CleanedFolder, Plan, RunToDo, node_name

__all__ = ["Failure", "Outcomes", "run_workflow"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A run that failed or was skipped."""

    run: str
    message: str
    crash_file: Path | None = None

    @property
    def subject(self) -> str:
        return self.run.partition("_")[0].removeprefix("sub-")

    def as_dict(self) -> dict[str, str]:
        return {
            "run": self.run,
            "message": self.message,
            "crash_file": str(self.crash_file or ""),
        }


class Outcomes:
    """Gathers what became of the runs of a call.

    Parameters
    ----------
    faults : sequence of RunFault
        What discovery found wrong.
    """

    def __init__(self, faults: Sequence[RunFault]) -> None:
        self.failed = [Failure(fault.prefix, fault.message) for fault in faults]
        self.skipped: list[Failure] = []
        self._reports: list[Path] = []

    def collect_cleaned(self, plan: Plan, to_do: Iterable[RunToDo]) -> list[CleanedFolder]:
        """Runs that were cleaned; the others are noted as failed or skipped."""
        cleaned = []
        for item in to_do:
            prefix = item.run.prefix
            folder = plan.work / "signals" / node_name("clean", prefix)
            crash = _crash_file(plan, [node_name("clean", prefix)])
            try:
                outcome = json.loads((folder / OUTCOME).read_text())
            except (OSError, ValueError):
                outcome = None
            if outcome is None or crash is not None:
                self._fail(prefix, crash)
            elif outcome["skipped"]:
                self.skipped.append(Failure(prefix, outcome["skipped"]))
                logger.warning("%s: %s", prefix, outcome["skipped"])
            else:
                cleaned.append(CleanedFolder(item, folder, outcome["fingerprint"]))
        return cleaned

    def collect_written(self, plan: Plan, cleaned: Iterable[CleanedFolder]) -> None:
        """Note as failed what should be in the output dataset and is not."""
        config, out = plan.config, plan.config.output_dir
        resolution = config.signal.resolution
        atlas = load_templates(config.networks.templates, Grid.load(plan.grid)).name
        for item in cleaned:
            to_do, prefix = item.to_do, item.to_do.run.prefix
            nodes = [node_name("write", prefix, "signal")]
            if not has_signal_results(out, to_do.run, resolution, to_do.signal_hash):
                self._fail(prefix, _crash_file(plan, nodes))
            for model in to_do.models:
                config_hash = to_do.model_hashes[model]
                stages = ("fit", "find", "weigh", "write")
                nodes = [node_name(stage, prefix, model) for stage in stages]
                crash = _crash_file(plan, nodes)
                written = has_model_results(out, to_do.run, model, resolution, atlas, config_hash)
                if crash is not None or not written:
                    self._fail(prefix, crash, model)

    def collect_reports(self, plan: Plan, subjects: Iterable[str]) -> None:
        """Note which reports there are."""
        for subject in subjects:
            crash = _crash_file(plan, [node_name("report", f"sub-{subject}")])
            path = plan.config.output_dir / f"sub-{subject}.html"
            if crash is not None or not path.is_file():
                self._fail(f"sub-{subject}", crash, "report")
            else:
                self._reports.append(path)

    def _fail(self, run: str, crash: Path | None, what: str = "") -> None:
        reason = _reason(crash) if crash else "did not finish: its process was stopped, or killed"
        self.failed.append(Failure(run, f"{what}: {reason}" if what else reason, crash))

    def problems(self) -> dict[str, list[dict[str, str]]]:
        """Participant → what failed."""
        return _by_subject(self.failed)

    def skipped_by_subject(self) -> dict[str, list[dict[str, str]]]:
        """Participant → what was skipped."""
        return _by_subject(self.skipped)

    def keep_crash_files(self, out: Path) -> None:
        """Copy crash files to the participant's log folder, as far as that can be written."""
        for index, failure in enumerate(self.failed):
            crash = failure.crash_file
            if crash is None or out in crash.parents:
                continue
            logs = sorted((out / f"sub-{failure.subject}" / "log").glob("*"))
            if not logs:
                continue
            kept = logs[-1] / crash.name
            with contextlib.suppress(OSError):
                shutil.copyfile(crash, kept)
                self.failed[index] = replace(failure, crash_file=kept)

    def print_summary(self, out: Path) -> None:
        """The last lines of a call: reports, and each run that failed, why, and its crash file."""
        for path in self._reports[:10]:
            print(f"report: {path}")
        if len(self._reports) > 10:
            print(f"and {len(self._reports) - 10} more reports in {out}")
        for failure in self.skipped:
            print(f"skipped: {failure.run}: {failure.message}", file=sys.stderr)
        for failure in self.failed:
            where = f" [{failure.crash_file}]" if failure.crash_file else ""
            print(f"failed: {failure.run}: {failure.message}{where}", file=sys.stderr)
        if self.failed:
            runs = len({failure.run for failure in self.failed})
            print(f"{runs} failed, all others are done", file=sys.stderr)


def _by_subject(failures: Iterable[Failure]) -> dict[str, list[dict[str, str]]]:
    grouped: dict[str, list[dict[str, str]]] = {}
    for failure in failures:
        grouped.setdefault(failure.subject, []).append(failure.as_dict())
    return grouped


def _crash_file(plan: Plan, nodes: Iterable[str]) -> Path | None:
    """The crash file of the first of these nodes that has one."""
    for node in nodes:
        for path in sorted(plan.crashes.glob(f"crash-*-{node}-*.txt")):
            return path
    return None


def _reason(crash: Path) -> str:
    """The last thing that a crash file says went wrong, in one line."""
    lines = [line.strip() for line in crash.read_text(errors="replace").splitlines()]
    for line in reversed(lines):
        ours = re.match(r"bids_fbn\.errors\.\w+: (.*)", line)
        if ours:
            return ours[1]
    for line in reversed(lines):
        if re.match(r"[\w.]*(Error|Exception|Interrupt|Exit)\b", line):
            return line
    return "crashed"


def run_workflow(workflow: Any, plan: Plan) -> None:
    """Run a workflow; crashes of nodes are left for :class:`Outcomes` to find."""
    compute = plan.config.compute
    if plan.config.run.write_graph:
        workflow.write_graph(graph2use="colored", format="svg", simple_form=True)
    quieten_nipype()
    # Workers come from a server that has imported everything and computed nothing: a process that
    # is forked from one in which torch has computed, or has looked for a GPU, hangs or fails.
    multiprocessing.set_forkserver_preload(
        ["bids_fbn.interfaces", "lightning_fabric", "nilearn.image"]
    )
    plugin: Any = "MultiProc"
    arguments: dict[str, Any] = {
        "n_procs": compute.nprocs,
        "memory_gb": compute.mem_gb,
        "raise_insufficient": False,
    }
    if compute.use_plugin is not None:
        plugin, arguments = read_plugin_settings(compute.use_plugin)
        # A network file system may show here only after a minute what another node has written.
        workflow.config["execution"]["job_finished_timeout"] = "65"
    if plugin == "SLURMGraph":
        from bids_fbn.slurm_graph import WaitingSLURMGraphPlugin

        plugin = WaitingSLURMGraphPlugin(arguments)
    if plugin == "MultiProc":
        arguments.setdefault("mp_context", "forkserver")
        # nipype would count all GPUs of the machine, by nvidia-smi.
        arguments.setdefault("n_gpu_procs", plan.gpu_slots)
    try:
        workflow.run(plugin=plugin, plugin_args=arguments)
    except Exception as error:  # nipype raises what the nodes raised, and its own
        logger.debug("workflow %s ended early: %s", workflow.name, error)
