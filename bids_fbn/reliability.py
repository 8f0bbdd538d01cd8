"""Do two measurements of the same participant agree?

    python -m bids_fbn.reliability OUT [--model M]

``OUT`` is an output dataset in which participants have two or more sessions, or runs. For each
model, ``OUT/group`` gets a table with the intraclass correlation of every metric, and one that
says how much more alike the maps of one participant are than those of two (fingerprinting).

Sessions are compared if three participants have two of them, else runs; of each participant the
first two by name, all other entities being equal. Where there are several tasks (or other
entities), the one with the most such participants, the first by name of these.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import f as f_distribution

from bids_fbn.cli import Parser, report_faults
from bids_fbn.errors import FBNError, InputError

if TYPE_CHECKING:
    from bids_fbn.bids.writing import Columns
    from bids_fbn.reports.results import ModelResults

__all__ = ["fingerprint", "icc_3_1", "main", "write_reliability"]

_FEWEST_PARTICIPANTS = 3
_CONFIDENCE = 0.95
_N_PERMUTATIONS = 10_000

_RELIABILITY: Columns = {
    "metric": {"Description": "Column of the table of metrics, or of that of states"},
    "network": {"Description": "Network or state; `all` is what belongs to no single state"},
    "n_participants": {"Description": "Participants for whom both measurements have a value"},
    "icc": {
        "Description": "ICC(3,1), consistency of single measurements (Shrout & Fleiss 1979, "
        "Psychol Bull 86:420); n/a for fewer than 3 participants, or without any variance"
    },
    "ci_low": {"Description": "Lower end of its 95 % confidence interval"},
    "ci_high": {"Description": "Upper end of its 95 % confidence interval"},
}
_FINGERPRINT: Columns = {
    "network": {"Description": "Network; `all` is all maps together"},
    "n_participants": {"Description": "Participants with two measurements"},
    "similarity_within": {
        "Description": "Mean Pearson correlation over voxels, of a participant's two measurements"
    },
    "similarity_between": {
        "Description": "The same of one participant's first and another's second measurement"
    },
    "difference": {"Description": "Similarity within minus between participants"},
    "p": {
        "Description": "Of the difference, one-sided, by exchanging who the second measurements "
        "belong to"
    },
    "identified_forward": {
        "Description": "Share of the first measurements to which, of all second ones, that of the "
        "same participant is the most similar (chance: 1 / n_participants)"
    },
    "identified_backward": {"Description": "The same, of the second among all first ones"},
}


def icc_3_1(values: np.ndarray, confidence: float = _CONFIDENCE) -> tuple[float, float, float]:
    """Intraclass correlation ICC(3,1): consistency of single measurements.

    Sessions are fixed, and a shift that all participants share between them does not count
    (Shrout & Fleiss 1979, Psychol Bull 86:420). Interval from the F distribution (McGraw & Wong
    1996, Psychol Methods 1:30, Table 7, ICC(C,1)).

    Parameters
    ----------
    values : ndarray (participants, sessions)
        Participants with a NaN are left out.
    confidence : float

    Returns
    -------
    icc, low, high : float
        NaN for fewer than 3 participants, or where all values are equal but for that shift.

    Examples
    --------
    >>> ratings = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8],
    ...                     [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
    >>> "%.2f %.2f %.2f" % icc_3_1(ratings)
    '0.71 0.34 0.95'
    """
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values).all(axis=1)]
    n, k = values.shape
    if n < _FEWEST_PARTICIPANTS:
        return np.nan, np.nan, np.nan
    scale = np.abs(values).max()
    centred = values - values.mean(axis=0)
    participants = centred.mean(axis=1)
    between = k * (participants**2).sum() / (n - 1)
    error = ((centred - participants[:, None]) ** 2).sum() / ((n - 1) * (k - 1))
    rounding = (1e-12 * scale) ** 2
    if between <= rounding and error <= rounding:
        return np.nan, np.nan, np.nan
    if error <= rounding:
        return 1.0, 1.0, 1.0
    icc = (between - error) / (between + (k - 1) * error)
    ratio, tail = between / error, (1 + confidence) / 2
    low = ratio / f_distribution.ppf(tail, n - 1, (n - 1) * (k - 1))
    high = ratio * f_distribution.ppf(tail, (n - 1) * (k - 1), n - 1)
    return float(icc), float((low - 1) / (low + k - 1)), float((high - 1) / (high + k - 1))


def fingerprint(
    maps_first: np.ndarray,
    maps_second: np.ndarray,
    n_permutations: int = _N_PERMUTATIONS,
    seed: int = 0,
) -> dict[str, float]:
    """Are two measurements of a participant more alike than those of two participants?

    Parameters
    ----------
    maps_first, maps_second : ndarray (N, …)
        Of N participants in the same order, on the same voxels.
    n_permutations : int
    seed : int

    Returns
    -------
    dict
        ``similarity_within`` and ``similarity_between`` participants (mean Pearson r of flattened
        maps), their ``difference``, its one-sided ``p`` over exchanges of participants, and the
        share ``identified_forward`` and ``identified_backward`` (Finn et al. 2015, Nat Neurosci
        18:1664).
    """
    first, second = _unit_rows(maps_first), _unit_rows(maps_second)
    similarity = first @ second.T
    n = len(similarity)
    own = np.arange(n)
    within = similarity.diagonal().mean()
    between = (similarity.sum() - similarity.trace()) / (n * (n - 1))
    rng = np.random.default_rng(seed)
    # The difference is linear in the mean of the diagonal, whose permutations suffice.
    exchanged = rng.permuted(np.tile(own, (n_permutations, 1)), axis=1)
    null = similarity[own, exchanged].mean(axis=1)
    return {
        "similarity_within": float(within),
        "similarity_between": float(between),
        "difference": float(within - between),
        "p": float((1 + (null >= within - 1e-12).sum()) / (n_permutations + 1)),
        "identified_forward": float((similarity.argmax(axis=1) == own).mean()),
        "identified_backward": float((similarity.argmax(axis=0) == own).mean()),
    }


def _unit_rows(maps: np.ndarray) -> np.ndarray:
    rows = np.asarray(maps, dtype=float).reshape(len(maps), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    # A map without variance is like no other.
    unit: np.ndarray = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    return unit


# -- An output dataset -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Two measurements of each of N participants.

    Parameters
    ----------
    what : {"session", "run"}
        What tells the two apart.
    results : mapping
        Participant → first and second.
    """

    what: Literal["session", "run"]
    results: Mapping[str, tuple[ModelResults, ModelResults]]


def _find_results(out: Path) -> dict[str, dict[str, list[ModelResults]]]:
    """Model → participant → results by name."""
    from bids_fbn.reports.results import read_participant

    found: dict[str, dict[str, list[ModelResults]]] = {}
    for folder in sorted(out.glob("sub-*/")):
        subject = folder.name.removeprefix("sub-")
        for run in read_participant(out, subject):
            for results in run.models:
                found.setdefault(results.label, {}).setdefault(subject, []).append(results)
    return found


def _find_pairs(out: Path, model: str, found: Mapping[str, list[ModelResults]]) -> _Pairs:
    most = 0
    comparisons: tuple[Literal["session", "run"], ...] = ("session", "run")
    for what in comparisons:
        # The other entities → participant → results.
        alike: dict[tuple[tuple[str, str], ...], dict[str, list[ModelResults]]] = {}
        for subject, measured in found.items():
            for results in measured:
                entities = results.run.entities
                if what in entities:
                    others = {k: v for k, v in entities.items() if k not in ("subject", what)}
                    key = tuple(sorted(others.items()))
                    alike.setdefault(key, {}).setdefault(subject, []).append(results)
        twice = [
            {subject: (of[0], of[1]) for subject, of in alike[key].items() if len(of) > 1}
            for key in sorted(alike)
        ]
        best = max(twice, key=len, default={})
        if len(best) >= _FEWEST_PARTICIPANTS:
            pairs = _Pairs(what, best)
            _check_alike(pairs)
            return pairs
        most = max(most, len(best))
    raise InputError(
        f"{out}: {most} participants have two sessions or runs of one task by {model}, "
        f"reliability needs {_FEWEST_PARTICIPANTS}; analyse more, or name another model with "
        "--model"
    )


def _check_alike(pairs: _Pairs) -> None:
    """Same templates, grid and model settings throughout."""
    every = [results for pair in pairs.results.values() for results in pair]
    first = every[0]
    for name in ("Templates", "Networks", "Grid", "Preset", "Window", "Stride"):
        for other in every[1:]:
            if other.facts.get(name) != first.facts.get(name):
                raise InputError(
                    f"{other.path('decomposition')}: {name} is not that of {first.run.prefix}; "
                    "compute one of them again"
                )


def _tables(pairs: _Pairs) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    facts = {
        "Compared": f"two {pairs.what}s",
        "Pairs": {f"sub-{s}": [r.run.prefix for r in of] for s, of in pairs.results.items()},
    }
    return _reliability(pairs), _fingerprints(pairs), facts


def _reliability(pairs: _Pairs) -> pd.DataFrame:
    """ICC of each metric of each network that any participant has a value of."""
    rows = []
    for kind, label in (("metrics", "network"), ("state_metrics", "state")):
        tables = [
            [results.table(kind).data.set_index(label) for results in pair]
            for pair in pairs.results.values()
        ]
        template = tables[0][0]
        # In all of them: a column of text that is n/a throughout one table looks numeric there.
        numeric = [
            name
            for name in template.columns
            if all(
                name in t and pd.api.types.is_numeric_dtype(t[name])
                for pair in tables
                for t in pair
            )
        ]
        for name in numeric:
            for network in template.index:
                values = np.array([[t.loc[network, name] for t in pair] for pair in tables], float)
                if np.isnan(values).all():
                    continue
                n = int(np.isfinite(values).all(axis=1).sum())
                rows.append((name, network, n, *icc_3_1(values)))
    return pd.DataFrame(rows, columns=list(_RELIABILITY))


def _fingerprints(pairs: _Pairs) -> pd.DataFrame:
    results = list(pairs.results.values())
    # (N, 2, P, V); what one run does not cover is 0 and would tell who it was.
    maps = np.array([[measurement.maps() for measurement in pair] for pair in results])
    maps = maps[..., (maps != 0).any(axis=2).all(axis=(0, 1))]
    if not maps.size:
        raise InputError("no voxel is covered by all runs; leave runs of another part out")
    networks = results[0][0].networks
    chosen = {"all": slice(None), **{name: slice(i, i + 1) for i, name in enumerate(networks)}}
    rows = [
        {
            "network": name,
            "n_participants": len(results),
            **fingerprint(maps[:, 0, which], maps[:, 1, which]),
        }
        for name, which in chosen.items()
    ]
    return pd.DataFrame(rows)


# -- The command -----------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m bids_fbn.reliability",
        description="Reliability of metrics and maps over sessions or runs of an output dataset.",
        allow_abbrev=False,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="an output dataset of bids_fbn")
    parser.add_argument("--model", metavar="M", help="only this one (every model that is there)")
    return parser


def write_reliability(out: Path, model: str | None = None) -> list[Path]:
    """Write the tables of a model, or of each, into ``group`` of an output dataset.

    Parameters
    ----------
    out : Path
        The output dataset.
    model : str, optional
        As in ``desc-``.

    Returns
    -------
    list of Path
        The tables.

    Raises
    ------
    InputError
        If fewer than three participants have two measurements, or these do not fit together.
        Nothing is written then.
    RunError
        If a file cannot be read or written.
    """
    from bids_fbn.bids.writing import write_table

    found = _find_results(out)
    if not found:
        raise InputError(f"{out}: holds no results of bids_fbn; name its output dataset")
    asked = [model.replace("-", "")] if model else sorted(found)
    # All are looked at before anything is written.
    faults: list[str] = []
    every: dict[str, _Pairs] = {}
    for label in asked:
        try:
            every[label] = _find_pairs(out, label, found.get(label, {}))
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(*faults)
    written = []
    for label, pairs in every.items():
        reliability, prints, facts = _tables(pairs)
        start = f"group_desc-{label}"
        for name, table, columns, text in (
            ("reliability", reliability, _RELIABILITY, "Reliability of each metric"),
            ("fingerprint", prints, _FINGERPRINT, "Similarity of FBN maps"),
        ):
            path = out / "group" / f"{start}{name}_metrics.tsv"
            write_table(path, table, columns, {"Description": text, **facts})
            written.append(path)
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        asked = _parser().parse_args(arguments)
        written = write_reliability(asked.out, asked.model)
    except (FBNError, KeyboardInterrupt) as error:
        return report_faults(error)
    print("\n".join(map(str, written)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
