"""Results in the form in which the templates of the page take them.

Each function takes what was read back and gives plain values: what stands in a heading, a cell, a
chart. Nothing is computed here that is not in the dataset already, but sums and shares of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bids_fbn.config import Config
from bids_fbn.reports.interactive import courses_chart, motion_chart, overlap_chart
from bids_fbn.reports.palette import network_colour
from bids_fbn.reports.pictures import BrainFigures, FigureFolder
from bids_fbn.reports.printed import (
    courses_picture,
    loss_picture,
    motion_picture,
    overlap_picture,
)
from bids_fbn.reports.results import ModelResults, RunResults, Table
from bids_fbn.reports.series import Overlap, courses_of, motion_of, overlap_of
from bids_fbn.reports.transitions import transition_graph

__all__ = ["Chart", "model_view", "run_view", "summary_row"]

# Columns of the table of networks: group → (column, heading).
_METRIC_GROUPS: Mapping[str, Sequence[tuple[str, str]]] = {
    "FBN map and template": (
        ("iou", "IoU"),
        ("dice", "Dice"),
        ("r", "r"),
        ("iou_fixed", "IoU, fixed z"),
        ("dice_fixed", "Dice, fixed z"),
    ),
    "present": (("steps_present", "steps"), ("fraction_present", "share")),
    "over time": (
        ("iou_mean", "mean IoU"),
        ("iou_previous_mean", "with step before"),
        ("iou_window_apart_mean", "with a window apart"),
    ),
    "search, no evidence": (("iou_best_of_all", "best IoU"),),
    "peak of the map": (
        ("peak_place", "place"),
        ("peak_x", "x"),
        ("peak_y", "y"),
        ("peak_z", "z"),
        ("peak_value", "value"),
    ),
}
# Said elsewhere: in the first column, in its mark, and above the table.
_METRICS_ELSEWHERE = ("network", "weak", "n_candidates")
_SHARES = ("fraction_present", "fractional_occupancy", "without_state", "coverage")
_STATE_TILES = (
    ("without_state", "steps without a state"),
    ("switching_rate", "changes of state per minute"),
    ("occupancy_entropy", "entropy of occupancy, bit"),
    ("transition_entropy", "entropy of transitions, bit"),
)


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
    return {
        "id": _model_id(results),
        "model": results.model,
        "present": int((~overlap.weak).sum()),
        "networks": len(overlap.networks),
        "share_with_state": _share_with_state(overlap),
        "seen": [
            {"name": overlap.networks[p], "colour": network_colour(p)} for p in overlap.states_seen
        ],
        "threshold": overlap.threshold,
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
        "reasons": [] if run.outliers is None else _reasons(run.outliers),
        "quality": [] if run.quality is None else _quality_rows(run.quality),
    }


def _reasons(outliers: Table) -> list[tuple[str, int, str]]:
    return [
        (name.replace("_", " "), int(outliers.data[name].sum()), outliers.describe(name))
        for name in outliers.data.columns
        if name not in ("framewise_displacement", "left_out")
    ]


def _quality_rows(quality: Table) -> list[tuple[str, Any, str]]:
    return [
        (str(name), quality.data[name].iloc[0], quality.describe(str(name)))
        for name in quality.data.columns
    ]


def model_view(
    results: ModelResults, overlap: Overlap, brains: BrainFigures, folder: FigureFolder
) -> dict[str, Any]:
    """Everything of a model in a run."""
    facts = results.facts
    window, stride = int(facts["Window"]), int(facts["Stride"])
    prefix = f"{results.run.prefix}_desc-{results.label}"
    return {
        "id": _model_id(results),
        "model": results.model,
        "preset": str(facts.get("Preset", "")),
        "threshold": overlap.threshold,
        "templates": str(facts["Templates"]),
        "has_templates": brains.templates(results) is not None,
        "background": brains.background(results.run.space).source,
        "facts_line": _facts_line(results, overlap),
        "cards": _cards(results, brains),
        "n_weak": int(overlap.weak.sum()),
        "overlap": Chart(
            id=f"{prefix}_overlap",
            figure=overlap_chart(overlap, "window" if window > 1 else "volume"),
            picture=folder.write(f"{prefix}_timeseries.png", overlap_picture(overlap)),
            alt=_overlap_alt(overlap),
            link=results.run.prefix,
        ),
        "courses": _courses(results, folder, prefix),
        "any_state": bool(overlap.states_seen),
        "transitions": _transitions(results),
        "metrics": _metrics(results),
        "n_candidates": _n_candidates(results),
        "overlap_sentence": _overlap_sentence(window, stride),
        "states": _states(results),
        "loss": _loss(results, folder, prefix),
        "settings": _settings(results),
    }


def _model_id(results: ModelResults) -> str:
    return f"{results.run.prefix}_{results.label}"


def _facts_line(results: ModelResults, overlap: Overlap) -> list[str]:
    facts = results.facts
    window = int(facts["Window"])
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
        f"{_steps(overlap, with_state=True):,} have a state (IoU ≥ {overlap.threshold:g})",
        f"{facts.get('CandidatesPerStep', '?')} candidate maps a step",
    ]


def _cards(results: ModelResults, brains: BrainFigures) -> list[dict[str, Any]]:
    figures = brains.draw(results)
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
                "figure": figure,
                "alt": (
                    f"{name}: FBN map above, template below; slices at x {x:g}, y {y:g}, z {z:g} "
                    f"mm. IoU {row['iou']:.2f}." + (" Not reliably present." if weak else "")
                ),
                "iou": f"{row['iou']:.2f}",
                "dice": f"{row['dice']:.2f}",
                "r": f"{row['r']:.2f}",
                "steps": int(row["steps_present"]),
                "share": row["fraction_present"],
            }
        )
    return cards


def _overlap_alt(overlap: Overlap) -> str:
    if not np.isfinite(overlap.iou).any():
        return "IoU over time: no step has a value"
    highest = np.nanmax(np.where(np.isfinite(overlap.iou), overlap.iou, -1), axis=0)
    best = int(highest.argmax())
    shares = [
        f"{overlap.networks[p]} {sum(v.steps for v in overlap.visits if v.state == p)} steps"
        for p in overlap.states_seen
    ]
    return (
        f"IoU of {len(overlap.networks)} networks over {len(overlap.onset)} steps; the highest is "
        f"{highest[best]:.2f} ({overlap.networks[best]}). States: "
        + (", ".join(shares) or f"none, no time step reached {overlap.threshold:g}")
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


def _cell(column: str, value: Any) -> Any:
    if isinstance(value, str):
        return value
    missing = value is None or pd.isna(value)
    if column in _SHARES:
        return {"share": None if missing else float(value)}
    return None if missing else float(value)


def _metrics(results: ModelResults) -> dict[str, Any]:
    table = results.metrics
    columns = [str(name) for name in table.data.columns]
    placed = {name for group in _METRIC_GROUPS.values() for name, _ in group}
    groups = [
        (title, [(name, heading) for name, heading in group if name in columns])
        for title, group in _METRIC_GROUPS.items()
    ]
    # What a later version writes is shown before it has a place.
    others = [name for name in columns if name not in placed and name not in _METRICS_ELSEWHERE]
    if others:
        groups.append(("other", [(name, name.replace("_", " ")) for name in others]))
    groups = [(title, group) for title, group in groups if group]
    shown = [name for _, group in groups for name, _ in group]
    return {
        "groups": [(title, len(group)) for title, group in groups],
        "headings": [
            (heading, table.describe(name), name) for _, group in groups for name, heading in group
        ],
        "rows": [
            {
                "name": row["network"],
                "colour": network_colour(p),
                "weak": bool(row["weak"]),
                "cells": [_cell(name, row[name]) for name in shown],
            }
            for p, (_, row) in enumerate(table.data.iterrows())
        ],
        "definitions": table.definitions,
    }


def _n_candidates(results: ModelResults) -> int | None:
    data = results.metrics.data
    if "n_candidates" not in data or data["n_candidates"].isna().all():
        return None
    return int(data["n_candidates"].max())


def _overlap_sentence(window: int, stride: int) -> str:
    if window == 1:
        return (
            "Time steps are single volumes, so the step before is also the nearest that shares no "
            "volume: both columns of IoU between steps say the same."
        )
    shared = max(0.0, 1 - stride / window)
    if shared == 0:
        return "Neighbouring windows share no volume."
    return (
        f"Neighbouring windows share {shared:.1%} of their volumes, so IoU with the step before is "
        "high for anything; only IoU with a window apart, which shares no volume, says whether a "
        "network stays."
    )


def _states(results: ModelResults) -> dict[str, Any]:
    table = results.state_metrics
    data = table.data.set_index("state")
    whole = data.loc["all"] if "all" in data.index else None
    columns = [
        name
        for name in data.columns
        if name not in dict(_STATE_TILES) and not data[name].drop("all", errors="ignore").empty
    ]
    headings = {
        "fractional_occupancy": "occupancy",
        "dwell_mean": "mean dwell, s",
        "dwell_median": "median dwell, s",
    }
    rows = [
        {
            "name": name,
            "colour": network_colour(p),
            "cells": [_cell(column, data.loc[name, column]) for column in columns],
            "visited": bool(data.loc[name, "fractional_occupancy"] > 0),
        }
        for p, name in enumerate(results.networks)
        if name in data.index
    ]
    return {
        "tiles": [
            (label, _cell(name, whole[name]), table.describe(name))
            for name, label in _STATE_TILES
            if whole is not None and name in data.columns
        ],
        "headings": [
            (headings.get(name, name.replace("_", " ")), table.describe(name)) for name in columns
        ],
        "rows": rows,
        "definitions": table.definitions,
    }


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


def _settings(results: ModelResults) -> list[tuple[str, str]]:
    facts = results.facts
    training = facts.get("Training") or {}
    grid = facts.get("Grid") or {}
    recipe = facts.get("Recipe") or {}
    weights = facts.get("Weights")
    rows: list[tuple[str, Any]] = [
        ("Preset", facts.get("Preset")),
        ("Recipe", ", ".join(f"{k.replace('_', ' ')} {_plain(v)}" for k, v in recipe.items())),
        ("Parameters", f"{facts['Parameters']:,}" if facts.get("Parameters") else None),
        ("Templates", f"{facts['Templates']}: {facts.get('TemplateSource', '')}"),
        ("Template voxels", facts.get("TemplateRule")),
        ("Candidate voxels", facts.get("SupportRule")),
        ("State threshold", f"IoU ≥ {facts['StateThreshold']:g}"),
        (
            "Grid",
            f"{grid.get('Space')}, {grid.get('ResolutionMM')} mm, {grid.get('Voxels'):,} voxels; "
            f"mask: {grid.get('MaskSource')}"
            if grid.get("Voxels")
            else None,
        ),
        ("Trained on", ", ".join(training.get("Runs") or [])),
        ("Training", _where(training.get("Device"), training.get("Precision"))),
        (
            "Inference",
            _where(facts.get("InferenceDevice"), facts.get("InferencePrecision")),
        ),
        ("Random seed", training.get("Seed")),
        ("Weights", ", ".join(weights) if isinstance(weights, list) else weights),
        ("Weights, sha256", facts.get("WeightsSHA256")),
        ("Hash of the settings", facts.get("ConfigurationHash")),
        ("Input", ", ".join(facts.get("Sources") or [])),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _where(device: Any, precision: Any) -> str:
    return ", ".join(str(part) for part in (device, precision) if part)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
