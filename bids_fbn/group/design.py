"""What is compared with what, and adjusted for what: the linear models of a group study."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd

from bids_fbn.group.people import MAX_LEVELS, as_text, listed

__all__ = ["FEWEST_DF", "Comparison", "comparisons", "paired"]

# Residual degrees of freedom below which nothing is tested: variances are guesses there.
FEWEST_DF = 3
_FEWEST_IN_GROUP = 2
# What is left of a column, relative to its length, when it is a combination of others.
_COLLINEAR = 1e-8
# The same of its mean: only rounding is below.
_CONSTANT = 1e-12


@dataclass(frozen=True, eq=False)
class Comparison:
    """One regressor that is tested, and those that are adjusted for.

    Attributes
    ----------
    name : str
        Letters and digits, for file names.
    kind : {"groups", "covariate", "paired"}
    term : str
        What the estimate is of: "diagnosis: patient − control", "age", "ses-2 − ses-1".
    formula : str
        The model for a reader, in the notation of Wilkinson and Rogers (1973, Appl Stat 22:392).
    participants : tuple of str
        n of them, in the order of the rows below.
    tested : ndarray (n, 1)
        1 in the second group and 0 else; the covariate; or 1, for differences between sessions.
    confounds : ndarray (n, k)
        Intercept, dummies of the other groups and of categorical covariates, other covariates.
        No column is a combination of others and of ``tested``. k = 0 if paired.
    levels : tuple of str
        Reference and other, of groups or sessions; else empty.
    groups : tuple of str
        Of each participant, if groups are compared; else empty.
    """

    name: str
    kind: Literal["groups", "covariate", "paired"]
    term: str
    formula: str
    participants: tuple[str, ...]
    tested: np.ndarray
    confounds: np.ndarray
    levels: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


def comparisons(
    people: pd.DataFrame, group_by: str | None, covariates: Sequence[str]
) -> tuple[list[Comparison], list[str]]:
    """Every pair of groups, and every covariate that is a number, given all the rest.

    Participants with a missing value leave. With more than two groups all stay in the model, so
    that the error variance is that of all; the comparison is of two.

    Parameters
    ----------
    people : DataFrame
        Index ``participant_id``; columns are numeric or text. See
        :func:`bids_fbn.group.people.read_people`.
    group_by : str or None
        Column of the groups, whatever is in it.
    covariates : sequence of str
        Columns to adjust for. Text is categorical.

    Returns
    -------
    found : list of Comparison
        Groups in alphabetical order, the first one the reference; then covariates.
    notes : list of str
        What was left out, and why.
    """
    notes: list[str] = []
    names = list(dict.fromkeys(([group_by] if group_by else []) + list(covariates)))
    if not names:
        return [], notes
    used = {}
    for name in names:
        column = as_text(people[name]) if name == group_by else people[name]
        if problem := _unusable(column):
            notes.append(f"{name}: {problem}; left out of the model")
        else:
            used[name] = column
    table = pd.DataFrame(used, index=people.index)
    if len(missing := table.index[table.isna().any(axis=1)]):
        what = ", ".join(table.columns[table.isna().any()])
        notes.append(f"{listed(missing)}: no value of {what}; not in the statistics")
        table = table.dropna()

    left_out: list[str] = []
    columns, kept = _independent(table, left_out)
    if used and len(table) - len(columns) - 1 < FEWEST_DF:
        notes.append(
            f"{len(table)} participants are too few to compare by {' + '.join(used)}; ask for "
            "fewer covariates"
        )
        kept = []
    else:
        notes += left_out
    formula = f"metric ~ {' + '.join(kept)}"
    participants = tuple(map(str, table.index))
    found: list[Comparison] = []
    if group_by in kept:
        groups = tuple(table[group_by])
        for reference, other in _pairs(groups, str(group_by), notes):
            rest = {key: x for key, x in columns.items() if key[0] != group_by}
            dummies = _dummies(table[group_by], [g for g in set(groups) if g != reference])
            found.append(
                Comparison(
                    name=_file_safe(str(group_by), other, "vs", reference),
                    kind="groups",
                    term=f"{group_by}: {other} − {reference}",
                    formula=formula,
                    participants=participants,
                    tested=dummies.pop(other)[:, None],
                    confounds=_matrix([*dummies.values(), *rest.values()], len(table)),
                    levels=(reference, other),
                    groups=groups,
                )
            )
    elif group_by:
        notes.append(f"no comparison of groups by {group_by}")
    for name in kept:
        if name != group_by and pd.api.types.is_numeric_dtype(table[name]):
            rest = {key: x for key, x in columns.items() if key[0] != name}
            found.append(
                Comparison(
                    name=_file_safe(name),
                    kind="covariate",
                    term=name,
                    formula=formula,
                    participants=participants,
                    tested=columns[name, ""][:, None],
                    confounds=_matrix(rest.values(), len(table)),
                )
            )
    return _with_own_names(found), notes


def paired(
    first: pd.DataFrame, second: pd.DataFrame, sessions: tuple[str, str]
) -> tuple[pd.DataFrame, Comparison, list[str]]:
    """Two sessions of the same participants.

    Parameters
    ----------
    first, second : DataFrame
        Features of either session; index ``participant_id``.
    sessions : tuple of str
        Their names.

    Returns
    -------
    differences : DataFrame
        Second − first, of participants and features that both have.
    comparison : Comparison
        Is their mean 0?
    notes : list of str
        Participants with one session only.
    """
    both = first.index.intersection(second.index).sort_values()
    features = [column for column in first.columns if column in second.columns]
    difference = second.loc[both, features] - first.loc[both, features]
    term = f"{sessions[1]} − {sessions[0]}"
    comparison = Comparison(
        name=_file_safe(sessions[1], "vs", sessions[0]),
        kind="paired",
        term=term,
        formula=f"metric({sessions[1]}) − metric({sessions[0]}) ~ 1",
        participants=tuple(map(str, both)),
        tested=np.ones((len(both), 1)),
        confounds=np.empty((len(both), 0)),
        levels=sessions,
    )
    notes = []
    if single := sorted(set(first.index) ^ set(second.index)):
        notes.append(f"{listed(single)}: not in both of {' and '.join(sessions)}; not compared")
    return difference, comparison, notes


def _unusable(column: pd.Series) -> str | None:
    values = column.dropna()
    n_levels = values.nunique()
    if not n_levels:
        return "no participant has a value"
    if n_levels == 1:
        return f"the same for all participants ({values.iloc[0]})"
    if pd.api.types.is_numeric_dtype(column):
        return None
    if n_levels == len(values):
        return f"not a number, and different in each of {len(values)} participants"
    if n_levels > MAX_LEVELS:
        return f"not a number, and {n_levels} different values are too many for categories"
    return None


def _independent(
    table: pd.DataFrame, notes: list[str]
) -> tuple[dict[tuple[str, str], np.ndarray], list[str]]:
    """Columns (name, level) of which none is a combination of the others and an intercept."""
    columns: dict[tuple[str, str], np.ndarray] = {}
    kept: list[str] = []
    for name in table.columns:
        if pd.api.types.is_numeric_dtype(table[name]):
            candidates = {"": table[name].to_numpy(float)}
        else:
            candidates = _dummies(table[name], sorted(table[name].unique())[1:])
        fitting: dict[str, np.ndarray] = {}
        for level, x in candidates.items():
            if _adds(x, _matrix([*columns.values(), *fitting.values()], len(table))):
                fitting[level] = x
        columns |= {(name, level): x for level, x in fitting.items()}
        others = f"a combination of {', '.join(kept)}: their effects cannot be told apart"
        if fitting:
            kept.append(name)
            if dropped := [level for level in candidates if level not in fitting]:
                notes.append(f"{name}, {', '.join(dropped)}: {others}; left out of the model")
        elif len(set(table[name])) == 1:
            notes.append(
                f"{name}: the same for all participants with all values "
                f"({table[name].iloc[0]}); left out of the model"
            )
        elif len(table):
            notes.append(f"{name}: {others}; left out of the model")
    return columns, kept


def _adds(x: np.ndarray, others: np.ndarray) -> bool:
    """Whether a column is no combination of others, the first of which is an intercept."""
    uncentred, x = np.linalg.norm(x), x - x.mean()
    length = np.linalg.norm(x)
    if len(x) <= others.shape[1] or length <= _CONSTANT * uncentred:
        return False
    # In units of their own, columns could differ by orders of magnitude.
    scaled = others - np.r_[0, others[:, 1:].mean(axis=0)]
    scaled /= np.linalg.norm(scaled, axis=0)
    left = x - scaled @ np.linalg.lstsq(scaled, x, rcond=None)[0]
    return bool(np.linalg.norm(left) > _COLLINEAR * length)


def _dummies(column: pd.Series, levels: Iterable[str]) -> dict[str, np.ndarray]:
    return {level: (column == level).to_numpy(float) for level in sorted(levels)}


def _matrix(columns: Iterable[np.ndarray], n: int) -> np.ndarray:
    return np.column_stack([np.ones(n), *columns])


def _pairs(groups: tuple[str, ...], group_by: str, notes: list[str]) -> list[tuple[str, str]]:
    """Pairs of groups that are large enough, the reference first."""
    levels = sorted(set(groups))
    large = [level for level in levels if groups.count(level) >= _FEWEST_IN_GROUP]
    for level in levels:
        if level not in large:
            notes.append(
                f"{group_by} {level}: one participant only; not compared with other groups"
            )
    return list(combinations(large, 2))


def _file_safe(*words: str) -> str:
    parts = [part for word in words for part in re.split("[^A-Za-z0-9]+", word) if part]
    return "".join(part[:1].upper() + part[1:] if i else part for i, part in enumerate(parts)) or (
        "comparison"
    )


def _with_own_names(found: list[Comparison]) -> list[Comparison]:
    """Groups "a-b" and "ab" are the same in a file name: the second is numbered."""
    seen: dict[str, int] = {}
    named = []
    for comparison in found:
        key = comparison.name.lower()
        seen[key] = seen.get(key, 0) + 1
        number = f"N{seen[key]}" if seen[key] > 1 else ""
        named.append(replace(comparison, name=comparison.name + number))
    return named
