"""Distributions: a row for each network, a lane for each group, a dot for each participant.

The page draws them from numbers, so that a thousand participants stay small; the picture that
stands there without JavaScript is drawn here, of one measure, from the same numbers.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from bids_fbn.nulls.pvalues import ALPHA
from bids_fbn.reports.group_page import GroupPage, GroupSection, kind_of_groups
from bids_fbn.reports.palette import network_colour
from bids_fbn.reports.templating import number, p_value

__all__ = [
    "GEOMETRY",
    "MEASURES",
    "Lanes",
    "harmonised_strips",
    "lanes_of",
    "measure_label",
    "quality_strip",
    "section_strips",
    "strip_picture",
]

# Pixels: columns of names and of notes, a lane, the space of the axis and between rows. The script
# of the page takes them from here.
GEOMETRY: Mapping[str, float] = {"label": 138, "note": 78, "lane": 15, "axis": 24, "between": 9}
_WIDTH = 960
_ONE_GROUP = "#2f4b7c"
_NO_GROUP = "#9aa3b2"
# Where neighbouring participants land in their lane: a golden-ratio sequence never clusters.
_GOLDEN = 0.618034

MEASURES: Mapping[str, str] = {
    "iou_mean": "mean IoU over time",
    "iou_search": "IoU, equal budget",
    "iou_other_half": "IoU in the other half",
    "iou_best_of_all": "IoU, best of all candidates (no evidence)",
    "iou": "IoU of FBN and template",
    "dice": "Dice of FBN and template",
    "r": "r of FBN and template",
    "iou_previous_mean": "IoU with the step before",
    "iou_window_apart_mean": "IoU with a window apart",
    "fraction_present": "share of steps present",
    "fractional_occupancy": "fractional occupancy",
    "visits": "visits",
    "dwell_mean": "mean dwell, s",
    "dwell_median": "median dwell, s",
    "switching_rate": "changes of state per minute",
    "occupancy_entropy": "entropy of occupancy, bit",
    "transition_entropy": "entropy of transitions, bit",
    "without_state": "share of steps without a state",
    "held_out_variance": "held-out variance explained",
    "transition_probability": "transition probability",
    "transition_count": "number of transitions",
    "fd_mean": "mean framewise displacement, mm",
    "share_kept": "share of volumes left",
    "kept_seconds": "time left, s",
}


def measure_label(measure: str) -> str:
    """A measure in words, with its unit."""
    return MEASURES.get(measure, measure.replace("_", " "))


@dataclass(frozen=True)
class Lanes:
    """Groups in the order of their lanes.

    Parameters
    ----------
    names, colours : list of str
    of_participant : list of int
        Lane of each participant of the page.
    """

    names: list[str]
    colours: list[str]
    of_participant: list[int]

    def split(self, values: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Who, and their values, by lane; those without a value are left out."""
        lane, known = np.asarray(self.of_participant), np.isfinite(values)
        who = [np.flatnonzero((lane == k) & known) for k in range(len(self.names))]
        return [(chosen, values[chosen]) for chosen in who]


def lanes_of(page: GroupPage) -> Lanes:
    """A lane for each group; one for all where there is no group."""
    if page.groups is None or page.groups.isna().all():
        return Lanes(["all"], [_ONE_GROUP], [0] * len(page.participants))
    names = sorted(page.groups.dropna().unique())
    colours = [network_colour(k) for k in range(len(names))]
    places = {name: k for k, name in enumerate(names)}
    if page.groups.isna().any():
        names, colours = [*names, "no group"], [*colours, _NO_GROUP]
    return Lanes(names, colours, [places.get(level, len(places)) for level in page.groups])


def _compact(values: np.ndarray) -> list[float | int | None]:
    """Four digits, whole numbers without a point, None where there is none."""
    plain: list[float | int | None] = []
    for value in values.tolist():
        if not np.isfinite(value):
            plain.append(None)
        else:
            short = float(f"{value:.4g}")
            plain.append(int(short) if short.is_integer() else short)
    return plain


def _quartiles(values: np.ndarray) -> list[float] | None:
    return None if len(values) == 0 else np.percentile(values, (25, 50, 75)).tolist()


def _axis(values: np.ndarray) -> dict[str, Any]:
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if 0 < low < 0.5 * high:
        low = 0.0
    if high == low:
        low, high = low - 0.5, high + 0.5
    margin = 0.02 * (high - low)
    ticks = [
        tick
        for tick in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        if low - margin <= tick <= high + margin
    ]
    return {
        "low": low - margin,
        "high": high + margin,
        "ticks": [[tick, f"{round(tick, 10) + 0.0:g}".replace("-", "−")] for tick in ticks],
    }


def _row(name: str, values: np.ndarray, lanes: Lanes, note: str, stands: bool) -> dict[str, Any]:
    return {
        "name": name,
        "note": note,
        "stands": stands,
        "values": _compact(values),
        "quartiles": [_quartiles(of_lane) for _, of_lane in lanes.split(values)],
    }


def _notes_of(tests: pd.DataFrame) -> dict[tuple[str, str], float]:
    """(measure, network) → the smallest corrected p of all comparisons of groups."""
    compared = kind_of_groups(tests)
    if not len(compared):
        return {}
    least = compared.groupby(["measure", "network"])["p_corrected"].min()
    return {(str(m), str(n)): float(p) for (m, n), p in least.items()}


def section_strips(section: GroupSection, page: GroupPage, lanes: Lanes) -> dict[str, Any]:
    """Every measure of a section for the script, and the picture of the first.

    Returns
    -------
    dict
        ``data`` for the script, ``options`` as (heading, [(place, label)]), ``picture``.
    """
    features = section.features.reindex(page.participants)
    p_of = _notes_of(section.tests)
    measures: list[dict[str, Any]] = []
    options: dict[str, list[tuple[int, str]]] = {}
    for measure, label, heading, columns in _rows_of_measures(section):
        rows = []
        for network, name in columns:
            p = p_of.get((measure, network), np.nan)
            note = f"p {p_value(p)}" if np.isfinite(p) else ""
            values = features[(measure, network)].to_numpy(dtype=float)
            rows.append(_row(name, values, lanes, note, bool(p < ALPHA)))
        together = features[[(measure, network) for network, _ in columns]].to_numpy(dtype=float)
        measures.append({"label": label, "rows": rows, **_axis(together)})
        stand = sum(row["stands"] for row in rows)
        mark = f" ({stand} of {len(rows)} stand)" if stand else ""
        options.setdefault(heading, []).append((len(measures) - 1, label + mark))
    first = _first(measures)
    return {
        "first": first,
        "options": list(options.items()),
        "data": {"first": first, "measures": measures},
        "picture": strip_picture(measures[first], lanes) if measures else "",
        "tested": bool(p_of),
    }


def _rows_of_measures(
    section: GroupSection,
) -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    """Measure, its label, the heading it is listed under, [(network, name of the row)]."""
    found: dict[str, list[str]] = {}
    for measure, network in section.features.columns:
        found.setdefault(str(measure), []).append(str(network))
    listed = []
    for measure, networks in found.items():
        label = measure_label(measure)
        if measure.startswith("transition_") and any(" > " in name for name in networks):
            by_origin: dict[str, list[tuple[str, str]]] = {}
            for name in networks:
                origin, _, destination = name.partition(" > ")
                by_origin.setdefault(origin, []).append((name, f"to {destination}"))
            listed += [
                (measure, f"{label} from {origin}", label.capitalize(), rows)
                for origin, rows in by_origin.items()
            ]
        elif networks == ["all"]:
            listed.append((measure, label, "Of the run as a whole", [("all", "whole run")]))
        else:
            listed.append((measure, label, "Of each network", [(n, n) for n in networks]))
    order = {"Of each network": 0, "Of the run as a whole": 1}
    return sorted(listed, key=lambda item: order.get(item[2], 2))


def _first(measures: Sequence[Mapping[str, Any]]) -> int:
    """The measure that is shown first: one in which something stands, else that of most rows."""
    stand = [sum(row["stands"] for row in measure["rows"]) for measure in measures]
    if any(stand):
        return stand.index(max(stand))
    sizes = [len(measure["rows"]) for measure in measures]
    return sizes.index(max(sizes)) if sizes else 0


def quality_strip(page: GroupPage, measure: str, lanes: Lanes, limit: float) -> dict[str, Any]:
    """A measure of quality, with a line where outliers begin."""
    values = page.quality_of_participants[measure].to_numpy(dtype=float)
    known = np.append(values, limit)
    row = _row("", values, lanes, "", True)
    line = limit if np.isfinite(limit) else None
    shown = {"label": measure_label(measure), "rows": [row], "limit": line, **_axis(known)}
    return {
        "first": 0,
        "options": [],
        "data": {"first": 0, "measures": [shown]},
        "picture": strip_picture(shown, lanes),
    }


def harmonised_strips(section: GroupSection, page: GroupPage) -> dict[str, Any] | None:
    """Before and after harmonisation: a row for each site, before above after."""
    table = section.harmonised
    if table is None or table.empty:
        return None
    place = {name: i for i, name in enumerate(page.participants)}
    measures: list[dict[str, Any]] = []
    options: dict[str, list[tuple[int, str]]] = {}
    for (measure, network), rows in table.groupby(["measure", "network"], sort=False):
        sites = []
        for site, of_site in rows.groupby("site"):
            who = [place[name] for name in of_site["participant_id"]]
            both = [of_site[when].to_numpy(dtype=float) for when in ("before", "after")]
            sites.append(
                {
                    "name": str(site),
                    "note": f"n {len(who)}",
                    "stands": True,
                    "lanes": [[who, _compact(values)] for values in both],
                    "quartiles": [_quartiles(values[np.isfinite(values)]) for values in both],
                }
            )
        label = measure_label(str(measure))
        axis = _axis(rows[["before", "after"]].to_numpy(dtype=float))
        title = label if network == "all" else f"{label}, {network}"
        measures.append({"label": title, "rows": sites, **axis})
        options.setdefault(label.capitalize(), []).append((len(measures) - 1, title))
    lanes = Lanes(["before", "after"], [_NO_GROUP, _ONE_GROUP], [])
    return {
        "first": 0,
        "options": list(options.items()),
        "data": {
            "first": 0,
            "measures": measures,
            "lanes": {"names": lanes.names, "colours": lanes.colours},
        },
        "lanes": lanes,
        "picture": strip_picture(measures[0], lanes),
    }


def strip_picture(measure: Mapping[str, Any], lanes: Lanes) -> str:
    """The picture of a measure without JavaScript; SVG, the dots of a lane in one path.

    Parameters
    ----------
    measure : mapping
        As made by this module.
    lanes : Lanes
    """
    label, note = GEOMETRY["label"], GEOMETRY["note"]
    lane, axis, between = GEOMETRY["lane"], GEOMETRY["axis"], GEOMETRY["between"]
    low, high = measure["low"], measure["high"]
    height = axis + len(measure["rows"]) * (len(lanes.names) * lane + between)

    def x(value: float) -> float:
        return label + (value - low) / (high - low) * (_WIDTH - label - note)

    parts = [
        f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{axis - 6:g}" '
        f'y2="{height:g}"/><text class="tick" x="{x(tick):.1f}" y="12">{text}</text>'
        for tick, text in measure["ticks"]
    ]
    many = (
        " many"
        if any(len(v) > 100 for r in measure["rows"] for _, v in _lanes_of_row(r, lanes))
        else ""
    )
    top = axis
    for row in measure["rows"]:
        middle = top + len(lanes.names) * lane / 2 + 4
        weak = "" if row["stands"] or not row["note"] else " chance"
        parts.append(
            f'<text class="name{weak}" x="{label - 10}" y="{middle:g}">{html.escape(row["name"])}'
            f'</text><text class="note{weak}" x="{_WIDTH - note + 10}" y="{middle:g}">'
            f"{html.escape(row['note'])}</text>"
        )
        for k, (who, values) in enumerate(_lanes_of_row(row, lanes)):
            centre = top + (k + 0.5) * lane
            quartiles = row["quartiles"][k]
            if quartiles:
                first, median, third = map(x, quartiles)
                parts.append(
                    f'<rect class="middle" x="{first:.1f}" width="{third - first:.1f}" '
                    f'y="{centre - lane / 2 + 1:g}" height="{lane - 2:g}"/>'
                )
            dots = "".join(
                f"M{x(v):.1f} {centre + (i * _GOLDEN % 1 - 0.5) * (lane - 7):.1f}h0"
                for i, v in zip(who, values, strict=True)
            )
            parts.append(f'<path class="dots{many}" stroke="{lanes.colours[k]}" d="{dots}"/>')
            if quartiles:
                parts.append(
                    f'<line class="median" x1="{median:.1f}" x2="{median:.1f}" '
                    f'y1="{centre - lane / 2 + 1:g}" y2="{centre + lane / 2 - 1:g}"/>'
                )
        top += len(lanes.names) * lane + between
    if measure.get("limit") is not None:
        at = x(measure["limit"])
        parts.append(
            f'<line class="limit" x1="{at:.1f}" x2="{at:.1f}" y1="{axis - 6:g}" y2="{height:g}"/>'
        )
    title = html.escape(_in_words(measure, lanes))
    return (
        f'<svg class="strip" viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{title}">'
        f"{''.join(parts)}</svg>"
    )


def _lanes_of_row(row: Mapping[str, Any], lanes: Lanes) -> list[tuple[Sequence[int], Any]]:
    if "lanes" in row:
        pairs = [
            [(i, v) for i, v in zip(*lane, strict=True) if v is not None] for lane in row["lanes"]
        ]
        return [([i for i, _ in lane], [v for _, v in lane]) for lane in pairs]
    values = np.array([np.nan if v is None else v for v in row["values"]], dtype=float)
    return [(who.tolist(), of_lane) for who, of_lane in lanes.split(values)]


def _in_words(measure: Mapping[str, Any], lanes: Lanes) -> str:
    medians = [
        f"{row['name']} "
        + ", ".join(
            f"{name} {number(quartiles[1])}"
            for name, quartiles in zip(lanes.names, row["quartiles"], strict=True)
            if quartiles
        )
        for row in measure["rows"]
    ]
    return f"{measure['label']}, medians: {'; '.join(medians)}"
