"""The tables of an evaluation: a row for each run and model, and their means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from bids_fbn.bids.writing import Columns
from bids_fbn.config import MODELS
from bids_fbn.evaluation.truth import false_positive_rate
from bids_fbn.nulls.pvalues import ALPHA

__all__ = [
    "AXES",
    "CELL",
    "DYNAMICS",
    "KEY",
    "MEASURES",
    "RATES",
    "ROW_COLUMNS",
    "SUMMARY_COLUMNS",
    "key_of",
    "ordered",
    "summarise",
]

DYNAMICS = ("states", "static", "none")
# Which networks the means over networks are of.
_OF_NETWORKS = "mean over the networks that are on at some time in the run (of noise, all ten)"

AXES: Columns = {
    "noise": {"Description": "All that is not a network, 1 being usual"},
    "volumes": {"Description": "Volumes of the run"},
    "dwell": {
        "Description": "Mean length of a state; n/a without networks, where it changes nothing",
        "Units": "s",
    },
    "overlap": {
        "Description": "Probability that a second network is on too; n/a without networks"
    },
    "variation": {
        "Description": "Standard deviation of a network's map over participants, as a share of "
        "its values; n/a without networks"
    },
}
CELL: Columns = {
    "dynamics": {
        "Description": "What the networks do",
        "Levels": {
            "states": "They take turns",
            "static": "They fluctuate, with correlations that do not change",
            "none": "There are none",
        },
    },
    **AXES,
}
KEY: Columns = {
    **CELL,
    "model": {"Description": "Name of the method"},
    "participant": {"Description": "Number of the simulated participant"},
}
MEASURES: Columns = {
    "map_r": {
        "Description": "Correlation over voxels of a true map and the found one, regardless of "
        f"sign, matched one to one for the highest sum; {_OF_NETWORKS}"
    },
    "map_r_by_name": {
        "Description": "Correlation over voxels of a true map and the found one of its name; "
        f"{_OF_NETWORKS}"
    },
    "course_r": {
        "Description": "Correlation over volumes of the courses of matched networks; "
        f"{_OF_NETWORKS}"
    },
    "state_accuracy": {
        "Description": "Share of the steps with a true state at their centre that are given it"
    },
    "adjusted_rand": {"Description": "Adjusted Rand index of the states of these steps"},
    "occupancy_error": {"Description": "Mean absolute error of occupancy over the networks"},
    "dwell_error": {
        "Description": "Mean absolute error of mean dwell over networks that are visited in truth "
        "and found",
        "Units": "s",
    },
    "dwell_bias": {"Description": "The same, signed: found less true", "Units": "s"},
    "switching_bias": {
        "Description": "Changes of state, found less true",
        "Units": "1/min",
    },
    "networks_on": {"Description": "Networks that are on at some time in the run"},
    "networks_found": {"Description": f"Those of them that stand out at corrected p < {ALPHA:g}"},
    "networks_false": {
        "Description": f"Templates at corrected p < {ALPHA:g} that no simulated network is of"
    },
    "false_network": {"Description": "Of runs without networks: 1 if any stands out, else 0"},
    "dynamics_p": {
        "Description": "Smallest corrected p of the measures of change of the run as a whole"
    },
    "false_dynamics": {
        "Description": f"Of runs without dynamics: 1 if dynamics_p < {ALPHA:g}, else 0"
    },
    "held_out_variance": {
        "Description": "Share of the variance of a half of the run that maps of the other explain"
    },
    "iou_best_of_all": {
        "Description": "As published: best IoU with the template over all candidates of all "
        f"steps, a search, not an estimate; {_OF_NETWORKS}"
    },
    "iou_search": {
        "Description": "IoU with the template of the map assigned to it from an equal budget; "
        f"{_OF_NETWORKS}"
    },
    "iou_other_half": {
        "Description": "IoU in one half of the run of what was chosen in the other; "
        f"{_OF_NETWORKS}"
    },
    "seconds": {"Description": "To fit the model and find networks, without nulls", "Units": "s"},
}
# Those that are 1 or 0: their mean is a rate.
RATES = ("false_network", "false_dynamics")
ROW_COLUMNS: Columns = {
    **KEY,
    "seed": {
        "Description": "The same run is made by bids_fbn.simulate with --participants 1, this "
        "--seed and the settings of the row"
    },
    "window": {"Description": "Volumes in a window; n/a: the whole run at once"},
    **MEASURES,
}
SUMMARY_COLUMNS: Columns = {
    **CELL,
    "model": KEY["model"],
    "measure": {
        "Description": "Column of evaluation.tsv",
        "Levels": {name: text["Description"] for name, text in MEASURES.items()},
    },
    "n": {"Description": "Participants that have a value"},
    "mean": {"Description": "Over participants; of false_network and false_dynamics the rate"},
    "low": {
        "Description": "Lower end of the 95 % interval: by Student's t, of rates that of Clopper "
        "and Pearson"
    },
    "high": {"Description": "Upper end of the interval"},
}
_CONFIDENCE = 0.95


def key_of(row: Mapping[str, object]) -> tuple[str, ...]:
    """What a row is of; the same for values that have been in a file."""
    return tuple(_as_text(row[name]) for name in KEY)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "n/a" if pd.isna(value) else f"{value:g}"


def ordered(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of their settings, whatever order they came in."""
    rank = {name: number for number, name in enumerate((*DYNAMICS, *MODELS))}
    in_words = ("dynamics", "model")
    return rows.sort_values(
        list(KEY), key=lambda column: column.map(rank) if column.name in in_words else column
    ).reset_index(drop=True)


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean of each measure over participants, with its interval; cells without one are left out.

    Parameters
    ----------
    rows : DataFrame
        Columns :data:`ROW_COLUMNS`.

    Returns
    -------
    DataFrame
        Columns :data:`SUMMARY_COLUMNS`.
    """
    return pd.DataFrame(list(_summary(rows)), columns=list(SUMMARY_COLUMNS))


def _summary(rows: pd.DataFrame) -> Iterator[dict[str, object]]:
    names = [*CELL, "model"]
    for cell, own in rows.groupby(names, sort=False, dropna=False):
        for measure in MEASURES:
            values = own[measure].to_numpy(dtype=float)
            values = values[np.isfinite(values)]
            if not len(values):
                continue
            low, high = _interval(values, measure)
            yield {
                **dict(zip(names, cell, strict=True)),
                "measure": measure,
                "n": len(values),
                "mean": values.mean(),
                "low": low,
                "high": high,
            }


def _interval(values: np.ndarray, measure: str) -> tuple[float, float]:
    if measure in RATES:
        # As a p on either side of the limit.
        rate = false_positive_rate(1 - values, ALPHA, _CONFIDENCE)
        return rate.low, rate.high
    n = len(values)
    if n < 2:
        return np.nan, np.nan
    half = student_t.ppf((1 + _CONFIDENCE) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
    return float(values.mean() - half), float(values.mean() + half)
