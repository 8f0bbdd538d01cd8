"""What the template of the group's page needs: plain values for cells, cards and charts."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bids_fbn.evidence.table import ALL
from bids_fbn.nulls.pvalues import ALPHA
from bids_fbn.reports.evidence import NETWORK_BADGES
from bids_fbn.reports.figures import Background, draw_network, load_background
from bids_fbn.reports.group_graph import transitions_view
from bids_fbn.reports.group_page import GroupPage, GroupSection
from bids_fbn.reports.group_quality import (
    motion_limit,
    outliers,
    quality_by_group,
    quality_of_effects,
)
from bids_fbn.reports.group_strips import (
    GEOMETRY,
    harmonised_strips,
    lanes_of,
    measure_label,
    quality_strip,
    section_strips,
)
from bids_fbn.reports.intervals import Scale, axis_picture, interval_picture
from bids_fbn.reports.palette import network_colour
from bids_fbn.reports.templating import fixed, number, p_value, percent

__all__ = ["group_view"]

_EFFECTS: Mapping[str, str] = {"hedges_g": "g", "partial_r": "r", "d_z": "dz"}
_EFFECT_NAMES: Mapping[str, str] = {
    "hedges_g": "Hedges' g",
    "partial_r": "partial r",
    "d_z": "standardised mean of the differences, d_z",
}
_WIDEST = 3.0


def group_view(page: GroupPage) -> dict[str, Any]:
    """Everything that ``group.html.jinja`` shows."""
    lanes = lanes_of(page)
    spaces = {s.grid.space for s in page.sections if s.grid and s.mean_maps is not None}
    backgrounds = {space: load_background(space) for space in sorted(spaces)}
    far = outliers(page)
    grouped = len(lanes.names) > 1
    return {
        "dataset": page.dataset,
        "version": page.version,
        "tiles": _tiles(page),
        "notes": list(page.notes),
        "groups": list(zip(lanes.names, lanes.colours, strict=True)) if grouped else [],
        "group_by": page.group_by or "",
        "participants": page.participants,
        "people": {
            "participants": page.participants,
            "links": [f"../{name}.html" for name in page.participants],
            "lanes": {"names": lanes.names, "colours": lanes.colours},
            "of": lanes.of_participant,
            "geometry": GEOMETRY,
        },
        "sections": [_section(section, page, backgrounds) for section in page.sections],
        "quality": _quality(page, far),
        "published": [
            {"title": title, "note": note, **_any_table(table)}
            for title, table, note in page.published
        ],
        "methods": list(page.methods),
        "comparisons": _comparisons(page),
    }


def _tiles(page: GroupPage) -> list[tuple[str, str]]:
    models = {section.model for section in page.sections}
    tasks = {section.entities.get("task") for section in page.sections}
    tiles = [
        (number(len(page.participants)), _plural("participant", len(page.participants))),
        (number(len(page.quality)), _plural("run", len(page.quality))),
        (number(len(models)), _plural("model", len(models))),
        (number(len(tasks)), _plural("task", len(tasks))),
    ]
    if page.groups is not None:
        sizes = page.groups.value_counts()
        tiles += [(number(int(sizes[level])), str(level)) for level in sorted(sizes.index)]
        if page.groups.isna().any():
            tiles.append((number(int(page.groups.isna().sum())), "without a group"))
    return tiles


def _plural(word: str, n: int) -> str:
    return word if n == 1 else f"{word}s"


def _section(
    section: GroupSection, page: GroupPage, backgrounds: Mapping[str, Background]
) -> dict[str, Any]:
    lanes = lanes_of(page)
    drawn = section.grid is not None and section.mean_maps is not None
    background = backgrounds[section.grid.space] if section.grid and drawn else None
    return {
        "id": section.id,
        "title": section.title,
        "cards": _cards(section, background),
        "background": "" if background is None else background.source,
        "has_templates": section.templates is not None,
        "any_tested": "p_corrected" in section.maps
        and bool(section.maps["p_corrected"].notna().any()),
        "strips": section_strips(section, page, lanes) if section.features.size else None,
        "effects": _effects(section, page),
        "transitions": transitions_view(section, page, lanes),
        "harmonised": harmonised_strips(section, page),
        "numbers": _numbers(section, page),
    }


def _cards(section: GroupSection, background: Background | None) -> list[dict[str, Any]]:
    cards = []
    for k, name in enumerate(section.networks):
        if name not in section.maps.index or "iou" not in section.maps:
            continue
        row = section.maps.loc[name]
        p = float(row["p_corrected"])
        verdict = "untested" if np.isnan(p) else "stands" if p < ALPHA else "chance"
        if verdict == "chance" and row.get("p_lowest", 0) >= ALPHA:
            verdict = "undecided"
        grey = verdict != "stands"
        cards.append(
            {
                "name": name,
                "colour": network_colour(k),
                "stands": verdict == "stands",
                "grey": grey,
                "badge": NETWORK_BADGES[verdict],
                "p": "" if np.isnan(p) else p_value(p),
                "n": int(row["n_participants"]),
                "standing": percent(row["standing"]) if row.get("n_runs", 0) else "",
                **{key: _fixed(row[key], 2) for key in ("iou", "dice", "r")},
                "picture": _picture(section, background, k, grey),
            }
        )
    return cards


def _picture(
    section: GroupSection, background: Background | None, k: int, grey: bool
) -> dict[str, Any] | None:
    if section.mean_maps is None or section.grid is None or background is None:
        return None
    templates = section.templates
    drawn = draw_network(
        section.mean_maps[k],
        None if templates is None else templates.maps[k],
        None if templates is None else templates.supports[k],
        section.grid,
        background,
        grey,
    )
    x, y, z = drawn.cuts
    return {
        "source": "data:image/png;base64," + base64.b64encode(drawn.png).decode("ascii"),
        "width": drawn.width,
        "height": drawn.height,
        "cuts": drawn.cuts,
        "alt": (
            f"{section.networks[k]}: mean z of the participants above, template below; slices at "
            f"x {x:g}, y {y:g}, z {z:g} mm"
        ),
    }


def _effects(section: GroupSection, page: GroupPage) -> dict[str, Any] | None:
    tests = section.tests
    if tests.empty:
        return None
    scales = {name: _scale(rows) for name, rows in tests.groupby("effect", sort=False)}
    colours = {name: network_colour(k) for k, name in enumerate(section.networks)}
    rows = [
        _effect(test, quality, section, scales[test.effect], colours)
        for test, quality in zip(
            tests.itertuples(index=False), quality_of_effects(section, page), strict=True
        )
    ]
    # Those that stand first, then by p; ties by size.
    rows.sort(key=lambda row: row["order"])
    tested = int(tests["p_corrected"].notna().sum())
    stand = int((tests["p_corrected"] < ALPHA).sum())
    # All measures that are of no single network are one family.
    of_family = tests["measure"].where(tests["network"] != ALL, ALL)
    n_families = (
        tests.assign(family=of_family)[tests["p_corrected"].notna()][["comparison", "family"]]
        .drop_duplicates()
        .shape[0]
    )
    return {
        "rows": rows,
        "n_stand": stand,
        "n_tested": tested,
        "untested": len(tests) - tested,
        "n_families": n_families,
        "by_chance": f"{ALPHA * n_families:.1f}",
        "names": [_EFFECT_NAMES.get(str(name), str(name)) for name in scales],
        "axis": axis_picture(next(iter(scales.values())), 1.0) if len(scales) == 1 else "",
        "pairs": any(len(levels) == 2 for levels in section.levels.values()),
    }


def _scale(rows: pd.DataFrame) -> Scale:
    if str(rows["effect"].iloc[0]) == "partial_r":
        return Scale(-1.0, 1.0)
    ends = np.abs(rows[["ci_low", "ci_high"]].to_numpy(dtype=float))
    widest = float(np.nanmax(ends)) if np.isfinite(ends).any() else 1.0
    edge = min(max(1.0, float(np.ceil(widest))), _WIDEST)
    return Scale(-edge, edge)


def _effect(
    test: Any,
    quality: Mapping[str, str],
    section: GroupSection,
    scale: Scale,
    colours: Mapping[str, str],
) -> dict[str, Any]:
    stands = bool(test.p_corrected < ALPHA)
    effect = _EFFECTS.get(str(test.effect), str(test.effect))
    interval = f"{_signed(test.ci_low, 2)} to {_signed(test.ci_high, 2)}"
    label = measure_label(str(test.measure))
    colour = colours.get(str(test.network).partition(" > ")[0])
    picture = interval_picture(
        scale,
        float(test.effect_size),
        [(float(test.ci_low), float(test.effect_size), float(test.ci_high))],
        (colour or "#1f4e9c") if stands else None,
        f"{label}, {test.network}: {effect} {_signed(test.effect_size, 2)}, {interval}",
    )
    p = float(test.p_corrected)
    return {
        "order": (np.isnan(p), p if p == p else 0.0, -abs(np.nan_to_num(test.effect_size))),
        "stands": stands,
        "measure": label,
        "network": "whole run" if test.network == "all" else str(test.network),
        "colour": colour or "",
        "comparison": section.compared(test.comparison, getattr(test, "term", None)),
        "formula": str(test.formula),
        "n": number(test.n),
        "estimate": _estimate(test.estimate),
        "estimate_value": _plain(test.estimate),
        "effect": effect,
        "effect_size": _signed(test.effect_size, 2),
        "effect_value": _plain(test.effect_size),
        "interval": "n/a" if pd.isna(test.ci_low) else interval,
        "picture": picture,
        "p": p_value(float(test.p)),
        "p_value": _plain(test.p),
        "corrected": p_value(p),
        "corrected_value": _plain(p),
        "motion": quality["motion"],
        "kept": quality["kept"],
    }


def _plain(value: float) -> str:
    """For sorting; empty goes last."""
    return "" if pd.isna(value) else f"{float(value):.6g}"


def _fixed(value: float, decimals: int) -> str:
    return "n/a" if pd.isna(value) else fixed(float(value), decimals)


def _signed(value: float, decimals: int) -> str:
    return _fixed(value, decimals).replace("-", "−")


def _estimate(value: float) -> str:
    return number(float(value)).replace("-", "−").replace("e−0", "e−")


def _numbers(section: GroupSection, page: GroupPage) -> list[dict[str, Any]]:
    """Median and quartiles of every measure, by group; transitions have a table of their own."""
    lanes = lanes_of(page)
    features = section.features.reindex(page.participants)
    rows = []
    for measure, network in features.columns:
        if measure in ("transition_probability", "transition_count"):
            continue
        split = lanes.split(features[(measure, network)].to_numpy(dtype=float))
        rows.append(
            {
                "measure": measure_label(measure),
                "network": "whole run" if network == "all" else network,
                "cells": [_quartiles(values) for _, values in split],
            }
        )
    return rows


def _quartiles(values: np.ndarray) -> tuple[str, str, str]:
    """How many, the median and quartiles in words, the median for sorting."""
    if len(values) == 0:
        return "0", "n/a", ""
    first, median, third = np.percentile(values, (25, 50, 75))
    spread = f" [{number(first)}, {number(third)}]" if len(values) > 1 else ""
    return number(len(values)), number(median) + spread, _plain(median)


def _quality(page: GroupPage, far: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    quality = page.quality_of_participants
    reasons = {row["name"]: row for row in far}
    limit = motion_limit(page)
    covariates = [str(name) for name in page.people.columns]
    people = page.people.reindex(page.participants)
    rows = []
    for name, row in quality.iterrows():
        found = reasons.get(name, {})
        rows.append(
            {
                "name": name,
                "runs": number(row["n_runs"]),
                "motion": _fixed(row["fd_mean"], 3),
                "kept": number(row["n_kept"]),
                "total": number(row["n_volumes"]),
                "share": percent(None if pd.isna(row["share_kept"]) else row["share_kept"]),
                "share_value": _plain(row["share_kept"]),
                "minutes": _fixed(row["kept_seconds"] / 60, 1),
                "covariates": [_any(people.loc[name, column]) for column in covariates],
                "why": found.get("quality", ""),
                "far": int(found.get("n", 0)),
            }
        )
    return {
        "groups": quality_by_group(page),
        "motion": _strip(page, "fd_mean", limit),
        "kept": _strip(page, "share_kept", 0.5),
        "limit": None if np.isnan(limit) else fixed(limit, 2),
        "rows": rows,
        "covariates": covariates,
        "outliers": list(far),
        "n_moved": sum(bool(row["quality"]) for row in far),
        "n_far": sum(row["n"] > 0 for row in far),
    }


def _strip(page: GroupPage, measure: str, limit: float) -> dict[str, Any] | None:
    if page.quality_of_participants[measure].isna().all():
        return None
    return quality_strip(page, measure, lanes_of(page), limit)


def _any(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "n/a" if pd.isna(value) else number(value)


def _any_table(table: pd.DataFrame) -> dict[str, Any]:
    """A table with whatever columns, the index first where it has a name."""
    shown = table.reset_index() if any(table.index.names) else table
    columns = [_column(str(name), shown[name]) for name in shown.columns]
    return {
        "headings": [
            (str(name).replace("_", " "), bool(pd.api.types.is_numeric_dtype(shown[name])))
            for name in shown.columns
        ],
        "rows": list(zip(*columns, strict=True)),
    }


def _column(name: str, values: pd.Series) -> list[str]:
    """Cells of a column, with as many decimals in each, so that they can be compared."""
    known = values.dropna()
    if not pd.api.types.is_float_dtype(values) or (known == known.round()).all():
        return [_any(value) for value in values]
    if name == "p" or name.startswith("p_"):
        return [p_value(value) for value in values]
    decimals = 3 if known.abs().max() < 10 else 1
    return [_fixed(value, decimals) for value in values]


def _comparisons(page: GroupPage) -> list[dict[str, Any]]:
    """What was compared with which formula, and how much of it stands."""
    rows = []
    for section in page.sections:
        if section.tests.empty:
            continue
        for (name, formula, kind), tests in section.tests.groupby(
            ["comparison", "formula", "kind"], sort=False
        ):
            term = tests["term"].iloc[0] if "term" in tests else None
            rows.append(
                {
                    "section": section.title,
                    "id": section.id,
                    "name": section.compared(name, term),
                    "formula": str(formula),
                    "kind": str(kind),
                    "n": number(int(tests["n"].max())),
                    "tests": number(int(tests["p_corrected"].notna().sum())),
                    "stand": number(int((tests["p_corrected"] < ALPHA).sum())),
                }
            )
    return rows
