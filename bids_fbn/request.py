"""What a call asks for, checked before anything is started: all that is wrong, at once."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bids_fbn.bids.boldrun import BoldRun
from bids_fbn.bids.discovery import Discovery, discover, runs_table
from bids_fbn.bids.finished import results_of_other_settings
from bids_fbn.bids.naming import run_outputs
from bids_fbn.config import TRAINED, Config, GroupOptions
from bids_fbn.errors import InputError
from bids_fbn.resources import read_plugin_settings

if TYPE_CHECKING:
    from bids_fbn.networks.templates import TemplateSet
    from bids_fbn.signal.grid import Grid

__all__ = ["Request", "check", "check_hashes", "print_plan"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
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


def check(config: Config) -> Request:
    """Look at everything that can be looked at without starting; all faults in one error."""
    from bids_fbn.networks.templates import load_templates
    from bids_fbn.signal.standard import analysis_grid

    faults: list[str] = _folder_faults(config)
    if config.group != GroupOptions():
        faults.append("options of the group level have no effect on participants; leave them out")
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
        faults += _model_faults(config, grid, templates)
    if faults or templates is None:
        raise InputError(*faults)
    return Request(config, found, grid, templates, weights, _largest_window(config, weights))


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
    return faults + config.models.idle() + config.nulls.idle(config.models)


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


def _model_faults(config: Config, grid: Grid, templates: TemplateSet) -> list[str]:
    """What is wrong with the models that are to be trained, told before anything is cleaned."""
    run = config.run
    if run.dry_run or run.reports_only:
        return []
    if run.boilerplate_only or run.signals_only:
        return []
    from bids_fbn import models

    faults: list[str] = []
    for name in config.models.model:
        if config.models.weighted(name):
            continue
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

    found = models.weights_given(config.models, grid)
    lacking = [name for name in config.models.model if name in TRAINED and name not in found]
    if lacking:
        names = ", ".join(lacking)
        raise InputError(f"--weights: none given for {names}; give one for each model")
    return found


def _largest_window(config: Config, weights: dict[str, Path]) -> int:
    """Volumes that a run must keep for every model to have one window."""
    from bids_fbn import models
    from bids_fbn.models.card import read_card

    needed = [2]
    for name in config.models.model:
        if name in weights:
            needed.append(int(read_card(weights[name])["Architecture"]["Window"] or 0))
        else:
            needed.append(models.volumes_needed(name, config.models))
    return max(needed)


def check_hashes(request: Request) -> None:
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


def print_plan(request: Request) -> None:
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
