"""Transitions of a group: the graph of all, and how groups differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from bids_fbn.nulls.pvalues import ALPHA
from bids_fbn.reports.group_page import GroupPage, GroupSection, kind_of_groups
from bids_fbn.reports.group_strips import Lanes
from bids_fbn.reports.palette import network_colour
from bids_fbn.reports.templating import fixed, p_value
from bids_fbn.reports.transitions import ArrowStyle, transition_graph

__all__ = ["transitions_view"]

# Arrows for each network; more cannot be told apart. Of differences that do not stand, fewer.
_ARROWS, _ARROWS_GREY = 3, 1
_GREY_WIDTH = 1.2  # pixels
_GREY = "#c3cad5"
# Where arrows have the colours of groups, nodes have none.
_NODE = "#7a8394"


def transitions_view(
    section: GroupSection, page: GroupPage, lanes: Lanes
) -> dict[str, Any] | None:
    """Graphs and the table of probabilities; None without transitions."""
    table = section.transitions
    if table.empty:
        return None
    tests = section.tests
    if len(tests):
        tests = kind_of_groups(tests)
        tests = tests[tests["measure"] == "transition_probability"]
    occupancy = _occupancy(section)
    graphs = [_graph_of_all(section, occupancy)]
    if len(tests):
        graphs += [
            _graph_of_difference(section, rows, str(name), occupancy, lanes)
            for name, rows in tests.groupby("comparison", sort=False)
        ]
    least = tests.groupby("network")["p_corrected"].min() if len(tests) else pd.Series(dtype=float)
    return {
        "graphs": graphs,
        "tested": len(tests) > 0,
        "n_stand": int((tests["p_corrected"] < ALPHA).sum()) if len(tests) else 0,
        "n_tested": int(tests["p_corrected"].notna().sum()) if len(tests) else 0,
        **_table(section, least),
    }


def _occupancy(section: GroupSection) -> np.ndarray:
    """Mean fractional occupancy of each network, (P,); 0 where it is not known."""
    features = section.features
    return np.array(
        [
            np.nan_to_num(features[column].mean()) if (column in features.columns) else 0.0
            for column in (("fractional_occupancy", name) for name in section.networks)
        ]
    )


def _matrix(section: GroupSection, values: dict[tuple[str, str], float]) -> np.ndarray:
    """From pairs of names to (P, P); 0 where there is none and on the diagonal."""
    names = section.networks
    matrix = np.array([[values.get((a, b), 0.0) for b in names] for a in names], dtype=float)
    matrix = np.nan_to_num(matrix)
    np.fill_diagonal(matrix, 0)
    return matrix


def _strongest(strength: np.ndarray, per_network: int) -> np.ndarray:
    """The strongest arrows alone; the others 0."""
    kept = np.argsort(-strength, axis=None, kind="stable")[: per_network * len(strength)]
    alone = np.zeros_like(strength)
    alone.flat[kept] = strength.flat[kept]
    return alone


def _graph_of_all(section: GroupSection, occupancy: np.ndarray) -> dict[str, str]:
    rows = section.transitions[section.transitions["group"] == "all"]
    found = {(row.origin, row.destination): row for row in rows.itertuples(index=False)}
    probability = _strongest(
        _matrix(section, {pair: row.probability for pair, row in found.items()}), _ARROWS
    )
    names = section.networks

    def style(a: int, b: int) -> ArrowStyle:
        row = found[names[a], names[b]]
        text = (
            f"{names[a]} to {names[b]}: probability {_interval(row)}, "
            f"{int(row.n_participants)} participants"
        )
        return ArrowStyle(text, "arrow")

    title = "Transitions between states, mean over participants"
    return {
        "title": "All participants",
        "picture": transition_graph(names, occupancy, probability, title, style),
        "caption": (
            "Node: network, larger with more time in it. Arrow: transition, in the colour of the "
            f"state it leaves, wider with its probability. The {_ARROWS * len(names)} most "
            "probable; staying is left out."
        ),
    }


def _graph_of_difference(
    section: GroupSection,
    tests: pd.DataFrame,
    comparison: str,
    occupancy: np.ndarray,
    lanes: Lanes,
) -> dict[str, str]:
    """Arrows as wide as the difference, in the colour of the group where it is more probable."""
    names = section.networks
    pairs = [tuple(str(name).split(" > ", 1)) for name in tests["network"]]
    found = dict(zip(pairs, tests.itertuples(index=False), strict=True))
    size = np.abs(_matrix(section, {(p[0], p[1]): row.estimate for p, row in found.items()}))
    standing = _matrix(
        section, {(p[0], p[1]): float(row.p_corrected < ALPHA) for p, row in found.items()}
    )
    shown = np.where(standing > 0, size, _strongest(size, _ARROWS_GREY))
    first, second = section.levels.get(comparison, ("", ""))
    colours = dict(zip(lanes.names, lanes.colours, strict=True))
    higher = (colours.get(first, network_colour(0)), colours.get(second, network_colour(1)))

    def style(a: int, b: int) -> ArrowStyle:
        row = found[names[a], names[b]]
        text = (
            f"{names[a]} to {names[b]}: difference of probability {_signed(row.estimate)}, "
            f"p corrected {p_value(row.p_corrected)}"
        )
        if not row.p_corrected < ALPHA:
            return ArrowStyle(text, "arrow chance", _GREY, _GREY_WIDTH)
        return ArrowStyle(text, "arrow stands", higher[0 if row.estimate > 0 else 1])

    n_stand = int(standing.sum())
    versus = section.compared(comparison)
    title = f"Differences of transition probabilities, {versus}: {n_stand} stand"
    return {
        "title": f"Difference, {versus}",
        "picture": transition_graph(names, occupancy, shown, title, style, _NODE),
        "first": first,
        "second": second,
        "colour_first": higher[0],
        "colour_second": higher[1],
        "caption": (
            f"Arrow: wider with the difference. {n_stand or 'None'} of "
            f"{int(tests['p_corrected'].notna().sum())} "
            f"{'stands' if n_stand in (0, 1) else 'stand'}"
            " (p corrected < 0.05), in colour; thin and grey: the largest of the others."
        ),
    }


def _interval(row: Any) -> str:
    if pd.isna(row.probability):
        return "n/a"
    between = "" if pd.isna(row.ci_low) else f" [{fixed(row.ci_low, 2)}, {fixed(row.ci_high, 2)}]"
    return fixed(row.probability, 2) + between


def _signed(value: float) -> str:
    return fixed(value, 3).replace("-", "−") if value < 0 else f"+{fixed(value, 3)}"


def _table(section: GroupSection, least: pd.Series) -> dict[str, Any]:
    table = section.transitions
    groups = [str(name) for name in dict.fromkeys(table["group"])]
    cells = {
        (str(row.group), str(row.origin), str(row.destination)): row
        for row in table.itertuples(index=False)
    }
    rows = []
    for a, origin in enumerate(section.networks):
        for destination in section.networks:
            here = [cells.get((group, origin, destination)) for group in groups]
            if all(row is None or pd.isna(row.probability) for row in here):
                continue
            p = float(least.get(f"{origin} > {destination}", np.nan))
            rows.append(
                {
                    "origin": origin,
                    "colour": network_colour(a),
                    "destination": destination,
                    "stay": origin == destination,
                    "cells": [
                        ("n/a", "") if row is None else (_interval(row), f"{row.probability:.5g}")
                        for row in here
                    ],
                    "p": "" if np.isnan(p) else p_value(p),
                    "p_value": "" if np.isnan(p) else f"{p:.6g}",
                    "grey": len(least) > 0 and not p < ALPHA,
                }
            )
    return {"groups": groups, "rows": rows}
