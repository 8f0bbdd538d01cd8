"""Results in the form in which the templates of the page take them.

Each function takes what was read back and gives plain values: what stands in a heading, a cell, a
chart. Nothing is computed here that is not in the dataset already, but sums and shares of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bids_fbn.config import Config
from bids_fbn.reports.evidence import Evidence, evidence_of
from bids_fbn.reports.evidence_view import evidence_view
from bids_fbn.reports.interactive import courses_chart, motion_chart, overlap_chart
from bids_fbn.reports.palette import network_colour
from bids_fbn.reports.pictures import BrainFigures, FigureFolder
from bids_fbn.reports.printed import (
    courses_picture,
    loss_picture,
    motion_picture,
    overlap_picture,
)
from bids_fbn.reports.results import ModelResults, RunResults
from bids_fbn.reports.series import Overlap, courses_of, motion_of
from bids_fbn.reports.tables import (
    metrics_table,
    quality_rows,
    reasons_left_out,
    settings_list,
    states_table,
)
from bids_fbn.reports.templating import fixed
from bids_fbn.reports.transitions import transition_graph

__all__ = ["Chart", "model_view", "run_view", "summary_row"]


@dataclass(frozen=True)
class Chart:
    """A chart to explore and the picture that stands in for it.

    Parameters
    ----------
    id : str
    figure : mapping
        For plotly.js.
    picture : str
        Path relative to the page.
    alt : str
    link : str
        Charts of one link zoom in time together; empty for none.
    """

    id: str
    figure: Mapping[str, Any]
    picture: str
    alt: str
    link: str


def summary_row(run: RunResults, overlaps: Mapping[str, Overlap]) -> dict[str, Any]:
    """A run in the table at the top of the page.

    Parameters
    ----------
    run : RunResults
    overlaps : mapping
        Label of the model → its series in this run.
    """
    total, kept = run.quality_of("n_volumes"), run.quality_of("n_kept")
    return {
        "id": run.prefix,
        "title": run.title,
        "kept": kept,
        "total": total,
        "share_kept": kept / total if kept is not None and total else None,
        "seconds": run.quality_of("kept_seconds"),
        "fd_mean": run.quality_of("fd_mean"),
        "fd_max": run.quality_of("fd_max"),
        "coverage": run.quality_of("coverage"),
        "models": [_summary_of_model(model, overlaps[model.label]) for model in run.models],
    }


def _summary_of_model(results: ModelResults, overlap: Overlap) -> dict[str, Any]:
    evidence = evidence_of(results)
    whole_run = results.window is None
    return {
        "whole_run": whole_run,
        "beyond": evidence and evidence.n_networks,
        "changes": (
            (evidence.n_changes, len(evidence.whole))
            if evidence and evidence.tests_change
            else None
        ),
        "id": _model_id(results),
        "model": results.model,
        "present": sum(not weak for weak in results.weak.values()),
        "networks": len(overlap.networks),
        "share_with_state": None if whole_run else _share_with_state(overlap),
        "seen": [
            {"name": overlap.networks[p], "colour": network_colour(p)} for p in overlap.states_seen
        ],
    }


def _steps(overlap: Overlap, with_state: bool) -> int:
    return sum(v.steps for v in overlap.visits if v.state is not None or not with_state)


def _share_with_state(overlap: Overlap) -> float | None:
    with_window = _steps(overlap, with_state=False)
    return _steps(overlap, with_state=True) / with_window if with_window else None


def run_view(run: RunResults, folder: FigureFolder, config: Config) -> dict[str, Any]:
    """Quality of a run."""
    motion = motion_of(run)
    chart = None
    if motion is not None:
        threshold = config.signal.fd_thresh
        n_left_out = int(motion.left_out.sum())
        chart = Chart(
            id=f"{run.prefix}_motion",
            figure=motion_chart(motion, threshold),
            picture=folder.write(
                f"{run.prefix}_desc-fbn_motion.png", motion_picture(motion, threshold)
            ),
            alt=(
                f"Framewise displacement over {len(motion.onset)} volumes, "
                f"{n_left_out} of them left out"
            ),
            link=run.prefix if motion.unit == "s" else "",
        )
    return {
        "id": run.prefix,
        "title": run.title,
        "motion": chart,
        "has_displacement": motion is not None and bool(np.isfinite(motion.displacement).any()),
        "reasons": [] if run.outliers is None else reasons_left_out(run.outliers),
        "quality": [] if run.quality is None else quality_rows(run.quality),
    }


def model_view(
    results: ModelResults, overlap: Overlap, brains: BrainFigures, folder: FigureFolder
) -> dict[str, Any]:
    """Everything of a model in a run."""
    facts = results.facts
    window, stride = results.window, int(facts["Stride"])
    evidence = evidence_of(results)
    shown = None if evidence is None else evidence_view(evidence)
    grey = _grey(results, evidence)
    prefix = f"{results.run.prefix}_desc-{results.label}"
    return {
        "id": _model_id(results),
        "model": results.model,
        "preset": str(facts.get("Preset", "")),
        "threshold": results.threshold,
        "measure": overlap.measure,
        "no_state": overlap.no_state,
        "templates": str(facts["Templates"]),
        "has_templates": brains.templates(results) is not None,
        "background": brains.background(results.run.space).source,
        "facts_line": _facts_line(results, overlap),
        "evidence": shown,
        "unsupported": shown["change"]["line"] if shown else "",
        "whole_run": window is None,
        "cards": _cards(results, brains, evidence, grey),
        "n_weak": sum(results.weak.values()),
        "overlap": None if window is None else _overlap(results, overlap, folder, prefix),
        "courses": _courses(results, folder, prefix),
        "courses_caption": _courses_caption(results),
        "any_state": bool(overlap.states_seen),
        "transitions": _transitions(results),
        "metrics": metrics_table(results, grey),
        "n_candidates": _n_candidates(results),
        "overlap_sentence": _overlap_sentence(window, stride),
        "states": states_table(results),
        "loss": _loss(results, folder, prefix),
        "trained": "epochs" in (facts.get("Recipe") or {}),
        "settings": settings_list(results),
    }


def _model_id(results: ModelResults) -> str:
    return f"{results.run.prefix}_{results.label}"


def _overlap(results: ModelResults, overlap: Overlap, folder: FigureFolder, prefix: str) -> Chart:
    return Chart(
        id=f"{prefix}_overlap",
        figure=overlap_chart(overlap, "volume" if results.window == 1 else "window"),
        picture=folder.write(f"{prefix}_timeseries.png", overlap_picture(overlap)),
        alt=_overlap_alt(overlap),
        link=results.run.prefix,
    )


def _facts_line(results: ModelResults, overlap: Overlap) -> list[str]:
    facts = results.facts
    window = results.window
    if window is None:
        return [
            "the whole run at once: one time step, and no states over time",
            f"{facts.get('CandidatesPerStep', '?')} candidate maps",
        ]
    seconds = overlap.step_seconds / int(facts["Stride"])
    step = (
        f"windows of {window} volumes ({window * seconds:g} s), one every "
        f"{overlap.step_seconds:g} s"
        if window > 1
        else f"single volumes, one every {overlap.step_seconds:g} s"
    )
    with_window = _steps(overlap, with_state=False)
    return [
        step,
        f"{with_window:,} of {len(overlap.onset):,} steps have a "
        + ("window" if window > 1 else "volume"),
        f"{_steps(overlap, with_state=True):,} have a state ({results.state_rule})",
        f"{facts.get('CandidatesPerStep', '?')} candidate maps a step",
    ]


def _grey(results: ModelResults, evidence: Evidence | None) -> set[str]:
    """Networks that are shown without colour.

    Those that do not stand, and weak ones. But where there is one time step, weak says only that
    the IoU is below a threshold, of which the null knows more.
    """
    weak = {name for name, is_weak in results.weak.items() if is_weak}
    if evidence is None:
        return weak
    chance = set(evidence.not_standing)
    return chance if results.window is None else chance | weak


def _cards(
    results: ModelResults, brains: BrainFigures, evidence: Evidence | None, grey: set[str]
) -> list[dict[str, Any]]:
    chance = {} if evidence is None else evidence.not_standing
    figures = brains.draw(results, grey)
    rows = results.metrics.data.set_index("network")
    cards = []
    for p, name in enumerate(results.networks):
        figure, row = figures[name], rows.loc[name]
        x, y, z = figure.cuts
        weak = bool(row["weak"])
        cards.append(
            {
                "name": name,
                "colour": network_colour(p),
                "weak": weak,
                "chance": chance.get(name, ""),
                "grey": name in grey,
                "figure": figure,
                "alt": (
                    f"{name}: FBN map above, template below; slices at x {x:g}, y {y:g}, z {z:g} "
                    f"mm. IoU {row['iou']:.2f}."
                    + (" Not reliably present." if weak else "")
                    + (f" {chance[name].capitalize()}." if name in chance else "")
                ),
                "iou": fixed(row["iou"], 2),
                "dice": fixed(row["dice"], 2),
                "r": fixed(row["r"], 2),
                "steps": int(row["steps_present"]),
                "share": row["fraction_present"],
            }
        )
    return cards


def _overlap_alt(overlap: Overlap) -> str:
    presence = overlap.presence
    if not np.isfinite(presence).any():
        return f"{overlap.measure} over time: no step has a value"
    highest = np.nanmax(np.where(np.isfinite(presence), presence, -1), axis=0)
    best = int(highest.argmax())
    shares = [
        f"{overlap.networks[p]} {sum(v.steps for v in overlap.visits if v.state == p)} steps"
        for p in overlap.states_seen
    ]
    return (
        f"{overlap.measure} of {len(overlap.networks)} networks over {len(overlap.onset)} steps; "
        f"the highest is {highest[best]:.2f} ({overlap.networks[best]}). States: "
        + (", ".join(shares) or f"none, {overlap.no_state}")
    )


def _courses(results: ModelResults, folder: FigureFolder, prefix: str) -> Chart:
    courses = courses_of(results)
    return Chart(
        id=f"{prefix}_courses",
        figure=courses_chart(courses),
        picture=folder.write(f"{prefix}_mixing.png", courses_picture(courses)),
        alt=f"Courses of {len(courses.networks)} networks over {len(courses.onset)} volumes",
        link=results.run.prefix,
    )


def _courses_caption(results: ModelResults) -> str:
    how = results.table("mixing").describe(results.networks[0])
    by = how.removeprefix("Course of the network: ").partition(";")[0]
    return (
        f"{by[:1].upper()}{by[1:]}. Each course in its own standard deviations; the value under "
        "the pointer is as in the table."
    )


def _transitions(results: ModelResults) -> dict[str, Any]:
    networks = results.networks
    counts = results.matrix("transition_count")
    probabilities = results.matrix("transition_probability")
    occupancy = results.state_metrics.data.set_index("state")["fractional_occupancy"]
    shares = occupancy.reindex(list(networks)).to_numpy(dtype=float)
    moves = counts.sum() - np.trace(counts)
    visited = [p for p in range(len(networks)) if np.nan_to_num(shares[p]) > 0]
    title = (
        f"Transitions between states: {int(moves)} between different states, "
        f"{int(np.trace(counts))} from a step to the next in the same state"
    )
    return {
        "graph": transition_graph(networks, shares, counts, title),
        "moves": int(moves),
        "total": int(counts.sum()),
        # Rows and columns of states never visited hold nothing.
        "names": [networks[p] for p in visited],
        "colours": [network_colour(p) for p in visited],
        "rows": [
            [
                {"count": int(counts[a, b]), "probability": float(probabilities[a, b])}
                for b in visited
            ]
            for a in visited
        ],
        "never": [name for p, name in enumerate(networks) if p not in visited],
    }


def _n_candidates(results: ModelResults) -> int | None:
    data = results.metrics.data
    if "n_candidates" not in data or data["n_candidates"].isna().all():
        return None
    return int(data["n_candidates"].max())


def _overlap_sentence(window: int | None, stride: int) -> str:
    if window is None:
        return "There is one time step, the whole run."
    if window == 1:
        return (
            "Time steps are single volumes, so the step before is also the nearest that shares no "
            "volume: both columns of IoU between steps say the same."
        )
    shared = max(0.0, 1 - stride / window)
    if shared == 0:
        return "Neighbouring windows share no volume."
    return (
        f"Neighbouring windows share {shared:.1%} of their volumes, so IoU with the step before "
        "is high for anything; only IoU with a window apart, which shares no volume, says whether "
        "a network stays."
    )


def _loss(results: ModelResults, folder: FigureFolder, prefix: str) -> dict[str, str] | None:
    training = results.facts.get("Training") or {}
    curve = training.get("LossCurve") or {}
    steps, losses = curve.get("Step") or [], curve.get("Loss") or []
    if not steps or len(steps) != len(losses):
        return None
    # Signals are standardized, so predicting zero costs 1; but not where the loss is taken over
    # the whole box, most of which is empty.
    in_mask = not (results.facts.get("Recipe") or {}).get("whole_box", False)
    return {
        "picture": folder.write(
            f"{prefix}_loss.svg", loss_picture(steps, losses, 1.0 if in_mask else None)
        ),
        "alt": (
            f"Loss over {int(steps[-1])} training steps, from {losses[0]:.3g} to {losses[-1]:.3g}"
        ),
    }
