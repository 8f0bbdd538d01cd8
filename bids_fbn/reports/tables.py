"""The tables of the page: which columns, in which order, and what they are called."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from bids_fbn.reports.palette import network_colour
from bids_fbn.reports.results import ModelResults, Table
from bids_fbn.reports.templating import fixed, p_value

__all__ = ["metrics_table", "quality_rows", "reasons_left_out", "settings_list", "states_table"]

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
        ("iou_previous_mean", "step before"),
        ("iou_window_apart_mean", "window apart"),
    ),
    "search, equal budget": (
        ("iou_search", "IoU"),
        ("p_corrected", "p corrected"),
        ("iou_other_half", "IoU, other half"),
    ),
    "best of all, no evidence": (("iou_best_of_all", "IoU"),),
    "peak of the map": (
        ("peak_place", "place"),
        ("peak_x", "x"),
        ("peak_y", "y"),
        ("peak_z", "z"),
        ("peak_value", "value"),
    ),
}
# Said elsewhere: in the first column, in its mark, above the table, in the evidence.
_METRICS_ELSEWHERE = ("network", "weak", "n_candidates", "p")
# Of time steps; without meaning where there is one.
_OVER_TIME = ("present", "over time")
# First word of a column → decimals, the same in every row, so that a column can be compared.
_DECIMALS = {
    "iou": 3,
    "dice": 3,
    "r": 3,
    "dwell": 1,
    "switching": 2,
    "occupancy": 2,
    "transition": 2,
}
_SHARES = ("fraction_present", "fractional_occupancy", "without_state", "coverage")
_STATE_TILES = (
    ("without_state", "steps without a state"),
    ("switching_rate", "changes of state per minute"),
    ("occupancy_entropy", "entropy of occupancy, bit"),
    ("transition_entropy", "entropy of transitions, bit"),
)


def reasons_left_out(outliers: Table) -> list[tuple[str, int, str]]:
    """Reason, how many volumes it left out, what it means."""
    return [
        (name.replace("_", " "), int(outliers.data[name].sum()), outliers.describe(name))
        for name in outliers.data.columns
        if name not in ("framewise_displacement", "left_out")
    ]


def quality_rows(quality: Table) -> list[tuple[str, Any, str]]:
    """Measure, value, what it is."""
    return [
        (str(name), quality.data[name].iloc[0], quality.describe(str(name)))
        for name in quality.data.columns
    ]


def _cell(column: str, value: Any) -> Any:
    if isinstance(value, str):
        return value
    missing = value is None or pd.isna(value)
    if column in _SHARES:
        return {"share": None if missing else float(value)}
    if column == "p_corrected":
        return None if missing else p_value(float(value))
    decimals = _DECIMALS.get(column.partition("_")[0])
    if decimals is not None and not missing:
        return fixed(float(value), decimals)
    return None if missing else float(value)


def metrics_table(results: ModelResults, grey: Collection[str]) -> dict[str, Any]:
    """Each FBN and its template, by groups of columns.

    Parameters
    ----------
    results : ModelResults
    grey : collection of str
        Networks that are shown without colour.
    """
    table = results.metrics
    columns = [str(name) for name in table.data.columns]
    placed = {name for group in _METRIC_GROUPS.values() for name, _ in group}
    groups = [
        (title, [(name, heading) for name, heading in group if name in columns])
        for title, group in _METRIC_GROUPS.items()
        if results.window is not None or title not in _OVER_TIME
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
                "grey": row["network"] in grey,
                "cells": [_cell(name, row[name]) for name in shown],
            }
            for p, (_, row) in enumerate(table.data.iterrows())
        ],
        "definitions": table.definitions,
    }


def states_table(results: ModelResults) -> dict[str, Any]:
    """What belongs to a state, and what belongs to the run as a whole."""
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


def settings_list(results: ModelResults) -> list[tuple[str, str]]:
    """How the model was made and applied."""
    facts = results.facts
    training = facts.get("Training") or {}
    grid = facts.get("Grid") or {}
    weights = facts.get("Weights")
    rows: list[tuple[str, Any]] = [
        ("Preset", facts.get("Preset")),
        ("Recipe", _recipe(facts.get("Recipe") or {})),
        ("Parameters", f"{facts['Parameters']:,}" if facts.get("Parameters") else None),
        ("Templates", f"{facts['Templates']}: {facts.get('TemplateSource', '')}"),
        ("Template voxels", facts.get("TemplateRule")),
        ("Candidate voxels", facts.get("SupportRule")),
        ("State of a step", results.state_rule),
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


def _recipe(recipe: Mapping[str, Any]) -> str:
    """What was set; of no components are those that take the templates' own."""
    return ", ".join(
        f"{name.replace('_', ' ')} {_plain(value)}"
        for name, value in recipe.items()
        if value is not None and (name, value) != ("components", 0)
    )


def _where(device: Any, precision: Any) -> str:
    return ", ".join(str(part) for part in (device, precision) if part)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
