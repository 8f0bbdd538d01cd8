"""The evidence of a model in the form the page takes it.

What a null does not support is shown in grey, with the reason in words; it is never left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bids_fbn.nulls.pvalues import ALPHA, lowest_p, network_p
from bids_fbn.reports.evidence import (
    NETWORK_BADGES,
    Evidence,
    count_surrogates,
    verdicts_of,
)
from bids_fbn.reports.intervals import Scale, axis_picture, interval_picture
from bids_fbn.reports.palette import network_colour
from bids_fbn.reports.templating import fixed, listed, number, p_value, percent

__all__ = ["evidence_view"]

# Share of a normal distribution between the percentiles of the table, in standard deviations.
_INTERVAL = 2 * 1.96
_WIDEST = 4.0
# Measures of change over time: name, decimals.
_MEASURES: Mapping[str, tuple[str, int]] = {
    "iou_previous": ("IoU with the step before", 3),
    "iou_window_apart": ("IoU with a window apart", 3),
    "iou_variation": ("variation of IoU over time", 3),
    "amplitude_variation": ("variation of amplitude over time", 3),
    "switching_rate": ("changes of state per minute", 2),
    "dwell_mean": ("mean dwell, s", 1),
    "occupancy_entropy": ("entropy of occupancy, bit", 2),
    "transition_entropy": ("entropy of transitions, bit", 2),
    "states_visited": ("states visited", 0),
    "without_state": ("share of steps without a state", 3),
}
_OF_NETWORKS = ("iou_previous", "iou_window_apart", "iou_variation", "amplitude_variation")
_SERIES = {
    "r_course": "Course and expected response",
    "r_iou": "IoU over time and expected response",
    "r_amplitude": "Amplitude over time and expected response",
}
_NULLS: Mapping[str, str] = {
    "fields": "{} sets of random maps as smooth as the candidates",
    "turned": "{} places elsewhere in this brain",
    "mirrored": "{} that are alike on both sides",
    "noise": "{} runs of smooth noise, cleaned and analysed in the same way",
    "phase": "{} surrogates of the run with random phases",
    "var": "{} surrogates of the run by an autoregressive model",
}
_SHORT: Mapping[str, str] = {
    "fields": "random maps",
    "turned": "other places",
    "mirrored": "mirrored places",
    "noise": "runs of noise",
}
# Measure that networks stand by → its symbol, what the dot is, how networks do that stand.
_CLAIMS: Mapping[str, tuple[str, str, str]] = {
    "iou_search": (
        "IoU",
        "IoU of the template with the map assigned to it, among an equal budget of maps",
        "overlap with their template more than the same search finds",
    ),
    "coherence": (
        "r",
        "correlation of the courses that two halves of the network's voxels give",
        "are more coherent than",
    ),
}
_LEARNED_BY_NAME = (
    "IoU",
    "IoU of the template with the mean map of its network",
    "overlap with their template more than the method finds",
)
_NO_SURROGATES = "No surrogates were made"
_OF_THIS_RUN = (
    "Not tested, since the model was trained on this run and surrogates need models of their own "
    "(--refit-surrogates, or --weights of other runs)"
)
_OF_THIS_PARTICIPANT = (
    "Not tested, since the model was trained on this participant too: its components go together "
    "here in any case. Train it on others, and apply the weights"
)
_CHANGE_BADGES = {
    "stands": "differs from static",
    "chance": "as in a static run",
    "undecided": "too few surrogates to tell",
    "untested": "not tested",
}


def evidence_view(evidence: Evidence) -> dict[str, Any]:
    """Everything that a model's section says of it."""
    return {
        "tiles": _tiles(evidence),
        "networks": _networks(evidence),
        "change": _change(evidence),
        "task": _task(evidence),
        "definitions": list(_levels(evidence).items()),
    }


def _levels(evidence: Evidence) -> dict[str, str]:
    """Measure → what it is, of those in the table."""
    levels = (evidence.table.facts.get("measure") or {}).get("Levels") or {}
    present = set(evidence.table.data["measure"])
    return {str(name): str(text) for name, text in levels.items() if name in present}


def _tiles(evidence: Evidence) -> list[dict[str, Any]]:
    tiles = [
        {
            "value": f"{evidence.n_networks} of {len(evidence.networks)}",
            "label": "networks beyond chance",
            "stands": evidence.n_networks > 0,
        }
    ]
    if evidence.tests_change:
        tiles.append(
            {
                "value": f"{evidence.n_changes} of {len(evidence.whole)}",
                "label": "measures of change differ from a static run",
                "stands": evidence.n_changes > 0,
            }
        )
    task = evidence.rows("task", "r_course")
    if len(task):
        following = task.loc[task["p_corrected"] < ALPHA, "network"].nunique()
        tiles.append(
            {
                "value": f"{following} of {task['network'].nunique()}",
                "label": "courses follow the task",
                "stands": following > 0,
            }
        )
    fit = evidence.of_fit
    if "held_out_variance" in fit:
        tiles.append(
            {
                "value": percent(fit["held_out_variance"]),
                "label": f"of one half explained by {number(fit['budget'])} maps of the other",
                "stands": True,
            }
        )
    return tiles


def _networks(evidence: Evidence) -> dict[str, Any]:
    searches = evidence.networks_beside
    symbol, dot, stand = (
        _LEARNED_BY_NAME if len(searches) == 1 else _CLAIMS[evidence.claim_of_networks]
    )
    observed = next(iter(searches.values()))["observed"]
    corrected = network_p(evidence.table.data)
    other = evidence.of_networks("iou_other_half")["observed"]
    like = evidence.of_networks("reproducibility")["observed"]
    ends = [end for found in searches.values() for end in found["null_high"]]
    lows = [low for found in searches.values() for low in found["null_low"]]
    # IoU has its other half beside it, and is never negative.
    beside = other if symbol == "IoU" else []
    lowest = float(np.nanmin([*observed, *lows, 0.0]))
    highest = float(np.nanmax([*observed, *ends, *beside, 0.1]))
    scale = Scale(np.floor(lowest * 10 + 1e-6) / 10, np.ceil(highest * 10 + 1e-6) / 10)
    rows = []
    for p, (name, verdict) in enumerate(evidence.verdicts.items()):
        nulls = {null: found.loc[name] for null, found in searches.items()}
        chance = "; ".join(f"{_SHORT[null]} {_between(row, 2)}" for null, row in nulls.items())
        picture = interval_picture(
            scale,
            observed[name],
            [_interval(row) for row in nulls.values()],
            network_colour(p) if verdict == "stands" else None,
            f"{name}: {symbol} {_fixed(observed[name], 2)}; {chance}",
        )
        rows.append(
            {
                "name": name,
                "colour": network_colour(p),
                "verdict": verdict,
                "badge": NETWORK_BADGES[verdict],
                "picture": picture,
                "cells": [
                    _fixed(observed[name], 2),
                    *(_fixed(row["null_high"], 2) for row in nulls.values()),
                    p_value(corrected[name]),
                    _fixed(other[name], 2),
                    _fixed(like[name], 2),
                ],
            }
        )
    tested = [found for found in searches.values() if count_surrogates(found)]
    if evidence.found_here:
        sentence = f"{_OF_THIS_PARTICIPANT}."
    elif len(tested) < len(searches):
        sentence = f"{_NO_SURROGATES} of {_missing(searches)}: nothing says what chance gives."
    else:
        sentence = (
            f"{evidence.n_networks or 'None'} of {len(rows)} networks {stand} in "
            f"{' and in '.join(map(_of_null, tested))}."
        )
    if lacking := [name for name in evidence.networks if np.isnan(observed[name])]:
        sentence += f" The model has no map of its own for {listed(lacking)}."
    return {
        "rows": rows,
        "symbol": symbol,
        "dot": dot,
        "nulls": [(_SHORT[null], _of_null(found)) for null, found in searches.items()],
        "axis": axis_picture(scale, 0.1 if scale.high - scale.low <= 0.6 else 0.2),
        "sentence": sentence,
        "too_few": next(filter(None, map(_too_few, tested)), ""),
        "tested": bool(tested),
        "halves": "held_out_variance" in evidence.of_fit,
    }


def _missing(searches: Mapping[str, pd.DataFrame]) -> str:
    return listed([_SHORT[null] for null, of in searches.items() if not count_surrogates(of)])


def _interval(row: pd.Series) -> tuple[float, float, float]:
    return row["null_low"], row["null_mean"], row["null_high"]


def _of_null(rows: pd.DataFrame) -> str:
    names = rows["null"].dropna()
    words = _NULLS.get(str(names.iloc[0]), "{} surrogates") if len(names) else "{} surrogates"
    return words.format(f"{count_surrogates(rows):,}")


def _too_few(rows: pd.DataFrame) -> str:
    n = count_surrogates(rows)
    if not n or lowest_p(rows) < ALPHA:
        return ""
    return (
        f"With {n} surrogates no p can fall below {ALPHA:g}, whatever there is; ask for more with "
        "--n-surrogates or --n-surrogate-maps."
    )


def _fixed(value: float, decimals: int) -> str:
    return "n/a" if pd.isna(value) else fixed(float(value), decimals).replace("-", "−")


def _between(row: pd.Series, decimals: int) -> str:
    if pd.isna(row["null_low"]):
        return "n/a"
    return f"{_fixed(row['null_low'], decimals)} to {_fixed(row['null_high'], decimals)}"


def _change(evidence: Evidence) -> dict[str, Any]:
    """Change over time; `line` is what sections on states say, empty where the null is left."""
    if evidence.window is None:
        sentence = "The maps are of the whole run at once: they say nothing of change over time."
        return {"sentence": sentence, "line": sentence, "rows": [], "too_few": ""}
    whole = evidence.whole
    if not len(whole):
        sentence = "There are too few time steps to say anything of change over time."
        return {"sentence": sentence, "line": sentence, "rows": [], "too_few": ""}
    if not evidence.tests_change:
        # As many are made of noise as of the run, if any.
        noise = evidence.networks_beside.get("noise")
        could = noise is not None and count_surrogates(noise) > 0
        why = _OF_THIS_RUN if could else _NO_SURROGATES
        sentence = line = f"{why}: nothing speaks for change over time."
    elif evidence.n_changes:
        stand = [_MEASURES[m][0].split(",")[0] for m in whole.index[whole["p_corrected"] < ALPHA]]
        differ = "differs" if len(stand) == 1 else "differ"
        sentence = (
            f"{len(stand)} of {len(whole)} measures of change over time {differ} from those of "
            f"{_of_null(whole)}, whose correlations are static: {'; '.join(stand)}."
        )
        line = ""
    else:
        sentence = (
            f"None of {len(whole)} measures of change over time differs from those of "
            f"{_of_null(whole)}, whose correlations are static."
        )
        line = (
            "No measure of change over time differs from a static run: what follows describes "
            "this run, and is no evidence of change."
        )
    scale = Scale(-_WIDEST, _WIDEST)
    return {
        "sentence": sentence,
        "line": line,
        "too_few": _too_few(whole),
        "tested": evidence.tests_change,
        "axis": axis_picture(scale, 2.0) if evidence.tests_change else "",
        "rows": [
            _change_row(measure, verdict, row, scale, _levels(evidence).get(measure, ""))
            for verdict, (measure, row) in zip(verdicts_of(whole), whole.iterrows(), strict=True)
        ],
        "of_networks": _change_of_networks(evidence),
    }


def _change_row(
    measure: str, verdict: str, row: pd.Series, scale: Scale, text: str
) -> dict[str, Any]:
    label, decimals = _MEASURES.get(measure, (measure.replace("_", " "), 3))
    values = np.array([row[k] for k in ("observed", "null_low", "null_mean", "null_high")], float)
    shown = _standardised(values)
    picture = interval_picture(
        scale,
        shown[0],
        [(shown[1], shown[2], shown[3])],
        "#1f4e9c" if verdict == "stands" else None,
        f"{label}: {_fixed(values[0], decimals)}; in static surrogates {_between(row, decimals)}",
    )
    return {
        "name": label,
        "text": text,
        "verdict": verdict,
        "badge": _CHANGE_BADGES[verdict],
        "picture": picture,
        "cells": [
            _fixed(values[0], decimals),
            _between(row, decimals),
            p_value(row["p_corrected"]),
        ],
    }


def _standardised(values: np.ndarray) -> np.ndarray:
    """Observed, low, mean and high by the mean and spread of the null.

    Beyond any scale where the null has no spread and the observed value is another; NaN where
    there is no null.
    """
    _, low, mean, high = values
    spread = (high - low) / _INTERVAL
    if np.isnan(spread):
        return np.full(4, np.nan)
    if spread > 0:
        return np.asarray((values - mean) / spread)
    return np.sign(np.round(values - mean, 9)) * 2 * _WIDEST


def _change_of_networks(evidence: Evidence) -> dict[str, Any]:
    columns = {m: evidence.of_networks(m, "dynamics") for m in _OF_NETWORKS}
    measures = [
        m
        for m, rows in columns.items()
        if rows["observed"].notna().any() and (evidence.window != 1 or m != "iou_previous")
    ]
    verdicts = {m: verdicts_of(columns[m]) for m in measures}
    return {
        "headings": [_MEASURES[m][0] for m in measures],
        "any": any("stands" in of_measure for of_measure in verdicts.values()),
        "rows": [
            {
                "name": name,
                "colour": network_colour(p),
                "cells": [
                    {
                        "value": _fixed(columns[m].loc[name, "observed"], 3),
                        "null": _between(columns[m].loc[name], 3),
                        "p": p_value(columns[m].loc[name, "p_corrected"]),
                        "stands": verdicts[m][p] == "stands",
                    }
                    for m in measures
                ],
            }
            for p, name in enumerate(evidence.networks)
        ],
    }


def _task(evidence: Evidence) -> list[dict[str, Any]]:
    """A table of networks and conditions for each series that was held against the task."""
    tables = []
    for measure, title in _SERIES.items():
        rows = evidence.rows("task", measure)
        if len(rows):
            tables.append({"title": title, **_coupling(evidence.networks, rows)})
    return tables


def _coupling(networks: Sequence[str], rows: pd.DataFrame) -> dict[str, Any]:
    conditions = list(dict.fromkeys(rows["condition"].astype(str)))
    cells = {
        (str(row["network"]), str(row["condition"])): {
            "r": _fixed(row["observed"], 2),
            "p": p_value(row["p_corrected"]),
            "null": _between(row, 2),
            "stands": bool(row["p_corrected"] < ALPHA),
        }
        for _, row in rows.iterrows()
    }
    shown = [name for name in networks if any((name, c) in cells for c in conditions)]
    n_stand = sum(bool(cell["stands"]) for cell in cells.values())
    return {
        "conditions": [name.replace("_", " ") for name in conditions],
        "any": n_stand > 0,
        "sentence": (
            f"{n_stand or 'None'} of {len(cells)} couplings "
            f"{'goes' if n_stand in (0, 1) else 'go'} beyond those of {count_surrogates(rows):,} "
            "series with random phases (p corrected over networks and conditions)."
        ),
        "rows": [
            {
                "name": name,
                "colour": network_colour(p),
                "cells": [cells.get((name, c)) for c in conditions],
                "stands": any(
                    bool(cells[name, c]["stands"]) for c in conditions if (name, c) in cells
                ),
            }
            for p, name in enumerate(networks)
            if name in shown
        ],
    }
