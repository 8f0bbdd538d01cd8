"""The page of a participant."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bids_fbn import __version__
from bids_fbn.bids.writing import write_text
from bids_fbn.config import Config
from bids_fbn.data import read_data
from bids_fbn.reports.bibliography import cited_keys, references
from bids_fbn.reports.evidence import evidence_of
from bids_fbn.reports.methods import markdown_to_html, methods_text
from bids_fbn.reports.pictures import BrainFigures, FigureFolder, share_plotly
from bids_fbn.reports.results import ModelResults, RunResults, read_participant
from bids_fbn.reports.series import Overlap, overlap_of
from bids_fbn.reports.templating import render
from bids_fbn.reports.views import model_view, run_view, summary_row

__all__ = ["Problem", "write_report"]

# Those whose version can change a number or a figure.
_PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "nilearn",
    "nibabel",
    "nipype",
    "pybids",
    "pandas",
    "templateflow",
    "matplotlib",
    "plotly",
)


@dataclass(frozen=True)
class Problem:
    """A run that failed or was left out.

    Parameters
    ----------
    run : str
        Its name, ``sub-…_task-…``, perhaps with the model.
    message : str
        What was wrong and what to do, as the user was told.
    crash_file : Path or None
    """

    run: str
    message: str
    crash_file: Path | None = None


def write_report(
    out: Path,
    subject: str,
    *,
    config: Config,
    problems: Sequence[Problem] = (),
    skipped: Sequence[Problem] = (),
) -> Path:
    """Write ``sub-X.html`` and its figures from what the output dataset holds.

    Parameters
    ----------
    out : Path
        The output dataset.
    subject : str
        Label without ``sub-``.
    config : Config
        What was asked for.
    problems : sequence of Problem
        Runs that failed.
    skipped : sequence of Problem
        Runs left out by a limit that the user set.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    RunError
        If a file of the dataset is missing or broken, or the page cannot be written.
    """
    runs = read_participant(out, subject)
    folder = FigureFolder(out, subject)
    brains = BrainFigures(config, folder)
    views, summary = [], []
    for run in runs:
        overlaps = {results.label: overlap_of(results) for results in run.models}
        summary.append(summary_row(run, overlaps))
        views.append(
            {**run_view(run, folder, config), "models": _models(run, overlaps, brains, folder)}
        )
    facts = [results.facts for run in runs for results in run.models]
    methods = methods_text(config, facts, _surrogates(runs))
    cited = references(cited_keys(methods))
    page = out / f"sub-{subject}.html"
    write_text(
        page,
        render(
            "report.html.jinja",
            subject=subject,
            dataset=_dataset_name(out),
            input_folder=config.bids_dir,
            version=__version__,
            date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            summary=summary,
            runs=views,
            problems=[_shown(problem, out) for problem in problems],
            skipped=[_shown(problem, out) for problem in skipped],
            sloppy=any(results.facts.get("Preset") == "sloppy" for results in _results(runs)),
            methods=markdown_to_html(methods, cited),
            references=cited,
            settings=config.to_toml(),
            packages=_versions(),
            plotly=share_plotly(out),
            style=read_data("report.css"),
            script=read_data("report.js"),
        ),
    )
    return page


def _results(runs: Sequence[RunResults]) -> list[ModelResults]:
    return [results for run in runs for results in run.models]


def _surrogates(runs: Sequence[RunResults]) -> dict[str, int]:
    """Claim of the evidence → surrogates, the most in any run."""
    found: dict[str, int] = {}
    for results in _results(runs):
        evidence = evidence_of(results)
        for claim, n in evidence.surrogates().items() if evidence else ():
            found[claim] = max(n, found.get(claim, 0))
    return found


def _models(
    run: RunResults,
    overlaps: dict[str, Overlap],
    brains: BrainFigures,
    folder: FigureFolder,
) -> list[dict[str, Any]]:
    return [model_view(results, overlaps[results.label], brains, folder) for results in run.models]


def _shown(problem: Problem, out: Path) -> dict[str, str]:
    crash = problem.crash_file
    if crash is not None and crash.is_absolute() and crash.is_relative_to(out.absolute()):
        crash = crash.relative_to(out.absolute())
    return {
        "run": problem.run,
        "message": problem.message,
        "crash": "" if crash is None else crash.as_posix(),
    }


def _dataset_name(out: Path) -> str:
    try:
        return str(json.loads((out / "dataset_description.json").read_text())["Name"])
    except (OSError, ValueError, KeyError, TypeError):
        return out.absolute().name


def _versions() -> list[tuple[str, str]]:
    found = []
    for package in _PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            # An optional one, or one that a container carries without its metadata.
            continue
    return found
