"""Figures of an evaluation: each measure against each setting, a line for each model; SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bids_fbn.config import MODELS
from bids_fbn.evaluation.table import AXES, CELL, DYNAMICS, RATES
from bids_fbn.nulls.pvalues import ALPHA
from bids_fbn.reports.palette import network_colour

__all__ = ["draw_figures"]

# A second cue beside the colour.
_MARKERS = "osD^vP*X<>dph"
# Measure → axis label. Those that are not here have no figure.
_LABELS = {
    "map_r": "r of maps, matched",
    "map_r_by_name": "r of maps, by name",
    "course_r": "r of courses",
    "state_accuracy": "state accuracy",
    "adjusted_rand": "adjusted Rand index",
    "occupancy_error": "error of occupancy",
    "dwell_error": "error of dwell (s)",
    "dwell_bias": "bias of dwell (s)",
    "switching_bias": "bias of switching (1/min)",
    "networks_found": "networks found",
    "networks_false": "false networks",
    "false_network": "runs with a false network",
    "dynamics_p": "smallest p of dynamics",
    "false_dynamics": "runs with false dynamics",
    "held_out_variance": "held-out variance",
    "iou_best_of_all": "IoU, best of all",
    "iou_search": "IoU, equal budget",
    "iou_other_half": "IoU, other half",
    "seconds": "time of a run (s)",
}
_OVERVIEW = (
    "map_r",
    "course_r",
    "state_accuracy",
    "adjusted_rand",
    "dwell_bias",
    "networks_found",
    "iou_other_half",
    "held_out_variance",
)
_AXIS_LABELS = {
    "noise": "noise",
    "volumes": "volumes",
    "dwell": "dwell (s)",
    "overlap": "overlap",
    "variation": "variation of maps",
}
_TITLES = {"states": "with states", "static": "static networks", "none": "noise only"}
# Where chance, or none of the error, is.
_REFERENCE = {
    "adjusted_rand": 0.0,
    "dwell_bias": 0.0,
    "switching_bias": 0.0,
    "held_out_variance": 0.0,
    "dynamics_p": ALPHA,
    "false_network": ALPHA,
    "false_dynamics": ALPHA,
}
_SIGNED = ("map_r_by_name", "course_r", *_REFERENCE)
# Of the axis, over which models stand apart so that their intervals can be told.
_APART = 0.08
_PANEL = (3.1, 2.5)  # inches


def draw_figures(summary: pd.DataFrame, first: Mapping[str, Any]) -> dict[str, str]:
    """All figures.

    Parameters
    ----------
    summary : DataFrame
        From :func:`~bids_fbn.evaluation.table.summarise`.
    first : mapping
        Value of each setting that is kept while another one changes.

    Returns
    -------
    dict
        Name → SVG. One for each measure, and ``overview``: with one setting along the horizontal
        axis, noise unless only another one changes.
    """
    models = [name for name in MODELS if (summary["model"] == name).any()]
    axes = [axis for axis in AXES if len(summary[axis].dropna().unique()) > 1] or ["noise"]
    figures = {}
    for measure in _LABELS:
        there = summary[summary["measure"] == measure]
        rows = [
            # Without networks there is nothing to dwell or overlap.
            [(measure, kind, axis) for axis in axes if own[axis].notna().any()]
            for kind in DYNAMICS
            if len(own := there[there["dynamics"] == kind])
        ]
        if rows := [row for row in rows if row]:
            figures[measure] = _draw(rows, summary, first, models)
    if panels := _overview(summary, axes[0]):
        rows = [panels[at : at + 4] for at in range(0, len(panels), 4)]
        figures["overview"] = _draw(rows, summary, first, models)
    return figures


def _overview(summary: pd.DataFrame, axis: str) -> list[tuple[str, str, str]]:
    wanted = [(measure, "states", axis) for measure in _OVERVIEW]
    wanted += [("false_dynamics", kind, axis) for kind in ("static", "none")]
    wanted.append(("false_network", "none", axis))
    known = summary[summary[axis].notna()]
    there = set(zip(known["measure"], known["dynamics"], strict=True))
    return [panel for panel in wanted if panel[:2] in there]


def _draw(
    rows: Sequence[Sequence[tuple[str, str, str]]],
    summary: pd.DataFrame,
    first: Mapping[str, Any],
    models: Sequence[str],
) -> str:
    """Panels of (measure, dynamics, setting along the horizontal axis)."""
    n_columns = max(len(row) for row in rows)
    figure = Figure(
        figsize=(_PANEL[0] * n_columns + 1.5, _PANEL[1] * len(rows)), layout="constrained"
    )
    one_measure = len({measure for row in rows for measure, *_ in row}) == 1
    panels = figure.subplots(len(rows), n_columns, squeeze=False, sharey=one_measure)
    lines: dict[str, Any] = {}
    for of_row, row in zip(panels, rows, strict=True):
        for panel in of_row[len(row) :]:
            panel.set_axis_off()
        for panel, (measure, kind, axis) in zip(of_row, row, strict=False):
            own = summary[(summary["measure"] == measure) & (summary["dynamics"] == kind)]
            lines |= _panel(panel, _with_others_at(own, axis, first), axis, models)
            panel.set_xlabel(_AXIS_LABELS[axis])
            panel.set_ylabel(_LABELS[measure])
            panel.set_title(_TITLES[kind], fontsize=9)
            _scale(panel, measure)
    figure.legend(
        [lines[name] for name in models if name in lines],
        [name for name in models if name in lines],
        loc="outside right upper",
        fontsize=8,
        frameon=False,
    )
    stream = io.StringIO()
    # Identifiers are drawn at random otherwise: the same figure has the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "bids_fbn"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def _with_others_at(rows: pd.DataFrame, axis: str, first: Mapping[str, Any]) -> pd.DataFrame:
    """Rows in which only the setting `axis` differs from `first`."""
    for other in CELL:
        if other not in ("dynamics", axis):
            # Without networks some settings have no value.
            rows = rows[rows[other].isna() | (rows[other] == first[other])]
    return rows[rows[axis].notna()]


def _panel(axes: Axes, rows: pd.DataFrame, axis: str, models: Sequence[str]) -> dict[str, Any]:
    values = np.sort(rows[axis].unique().astype(float))
    apart = _APART * np.ptp(values) if len(values) > 1 else 1.0
    shift = np.linspace(-apart / 2, apart / 2, len(models)) if len(models) > 1 else [0.0]
    lines = {}
    for name, offset in zip(models, shift, strict=True):
        own = rows[rows["model"] == name].sort_values(axis)
        if own.empty:
            continue
        index = MODELS.index(name)
        mean = own["mean"].to_numpy(dtype=float)
        spread = np.abs(own[["low", "high"]].to_numpy(dtype=float).T - mean)
        lines[name] = axes.errorbar(
            own[axis].to_numpy(dtype=float) + offset,
            mean,
            yerr=np.nan_to_num(spread),
            color=network_colour(index),
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=4,
            linewidth=1.2,
            elinewidth=0.7,
        )
    axes.set_xticks(values, [f"{value:g}" for value in values])
    return lines


def _scale(axes: Axes, measure: str) -> None:
    if measure in RATES:
        axes.set_ylim(-0.03, 1.03)
    elif measure == "seconds":
        axes.set_yscale("log")
    elif measure not in _SIGNED:
        axes.set_ylim(bottom=0)
    if measure in _REFERENCE:
        axes.axhline(_REFERENCE[measure], color="#9aa3b2", linewidth=0.8, linestyle="--")
    axes.tick_params(labelsize=8)
    axes.grid(color="#e6e9ef")
    axes.set_axisbelow(True)
