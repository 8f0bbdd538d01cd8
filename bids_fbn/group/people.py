"""Who the participants are: groups and covariates of ``participants.tsv``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bids_fbn.errors import InputError

__all__ = ["MAX_LEVELS", "People", "as_text", "listed", "read_people"]

# More different values than this are no categories that a group study could adjust for.
MAX_LEVELS = 10
_ID = "participant_id"
# BIDS has n/a only; the others are what spreadsheets and pandas leave behind.
_MISSING = ["n/a", "N/A", "NA", "NaN", "nan", ""]
_NAMED = 10


@dataclass(frozen=True, eq=False)
class People:
    """What is known about participants.

    Attributes
    ----------
    table : DataFrame
        Index ``participant_id`` ("sub-01"), a column for each covariate: float where it is a
        number, else text; NaN where it is not known.
    notes : tuple of str
        One line for each thing that the user should know of.
    """

    table: pd.DataFrame
    notes: tuple[str, ...]


def read_people(path: Path | None, participants: Sequence[str], columns: Sequence[str]) -> People:
    """Read columns of ``participants.tsv`` (BIDS 1.10, "Participants file").

    A column is categorical where ``participants.json`` beside it gives it ``Levels``, or where
    its values are not numbers. One with more than :data:`MAX_LEVELS` different values, most of
    which are numbers, is a number; the others of its values ("89+") then count as missing.

    Parameters
    ----------
    path : Path or None
        None, or a file that is not there: all values are missing, and a note says so.
    participants : sequence of str
        Of the results, with or without "sub-".
    columns : sequence of str

    Returns
    -------
    People
        Of these participants and columns, in this order.

    Raises
    ------
    InputError
        The file cannot be read, has no ``participant_id`` or not every one of the columns, or none
        of the participants is in it.
    """
    asked = list(dict.fromkeys(columns))
    index = pd.Index([_with_prefix(name) for name in participants], name=_ID)
    if not asked:
        return People(pd.DataFrame(index=index), ())
    if path is None or not path.exists():
        note = (
            f"{path or 'participants.tsv'}: no such file, so nothing is known of "
            f"{', '.join(asked)}; add it to the dataset to compare by them"
        )
        return People(pd.DataFrame(np.nan, index=index, columns=asked), (note,))
    file = _read(path)
    if unknown := [name for name in asked if name not in file]:
        there = ", ".join(map(str, file.columns.drop(_ID))) or "none"
        raise InputError(
            *(f"{path}: no column {name!r}; the columns are: {there}" for name in unknown)
        )
    file = file[file[_ID].notna()]
    file.index = pd.Index([_with_prefix(name) for name in file[_ID]], name=_ID)
    if not index.isin(file.index).any():
        raise InputError(
            f"{path}: none of the participants of the results ({listed(index)}) is in it; it has "
            f"{listed(file.index.unique())}"
        )
    notes = []
    if absent := [name for name in index if name not in file.index]:
        notes.append(
            f"{path}: {listed(absent)} not in it; add them, or they take part in no comparison by "
            f"{', '.join(asked)}"
        )
    table = _one_row_each(file.loc[file.index.isin(index), asked], path, notes).reindex(index)
    categorical = _with_levels(path.with_suffix(".json"), notes)
    for name in asked:
        if name not in categorical:
            table[name] = _as_numbers(table[name], path, notes)
    return People(table, tuple(notes))


def listed(names: Iterable[str]) -> str:
    """Names with commas, the first ten of them."""
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def as_text(column: pd.Series) -> pd.Series:
    """Names of groups or sites, where they may be numbers: 1.0 is "1"; NaN stays."""
    if not pd.api.types.is_numeric_dtype(column):
        return column
    # Not "g" alone: 1000001 and 1000002 would be the same site.
    return column.map(lambda code: f"{code:.15g}", na_action="ignore").astype(object)


def _with_prefix(name: str) -> str:
    return name if name.startswith("sub-") else f"sub-{name}"


def _read(path: Path) -> pd.DataFrame:
    try:
        # utf-8-sig: spreadsheets begin a file with a byte order mark.
        table = pd.read_csv(
            path,
            sep="\t",
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
            index_col=False,
        )
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(
            f"{path}: cannot be read ({reason}); it must be a table in UTF-8, its columns "
            "separated by tabs"
        ) from error
    table.columns = table.columns.str.strip()
    if _ID not in table:
        raise InputError(
            f"{path}: no column participant_id, but {', '.join(map(repr, table.columns))}; "
            "columns must be separated by tabs"
        )
    table = table.apply(lambda column: column.str.strip())
    return table.mask(table.isin(_MISSING))


def _one_row_each(table: pd.DataFrame, path: Path, notes: list[str]) -> pd.DataFrame:
    """Of rows of the same participant: what they agree in."""
    rows = table.groupby(level=0)
    # Datasets with sessions repeat participants; a value that is in one row only is known.
    first, differing = rows.first(), rows.nunique().gt(1)
    for name in table.columns:
        if differing[name].any():
            notes.append(
                f"{path}: {listed(differing.index[differing[name]])} in several rows with "
                f"different {name}, which counts as missing; keep one row for each participant"
            )
    return first.mask(differing)


def _with_levels(sidecar: Path, notes: list[str]) -> set[str]:
    """Columns that the sidecar says are categorical, even if numbers stand in them."""
    if not sidecar.exists():
        return set()
    try:
        described = json.loads(sidecar.read_text(encoding="utf-8-sig"))
        return {name for name, facts in described.items() if "Levels" in facts}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        notes.append(
            f"{sidecar}: cannot be read ({error}), so columns of numbers count as numbers, not as "
            "categories"
        )
        return set()


def _as_numbers(column: pd.Series, path: Path, notes: list[str]) -> pd.Series:
    """The column as float if it is one of numbers, else as it is."""
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    numbers = numbers.where(np.isfinite(numbers))
    text = column[column.notna() & numbers.isna()]
    if text.empty:
        return numbers
    if column.nunique() <= MAX_LEVELS or len(text) > column.notna().sum() / 2:
        return column
    notes.append(
        f"{path}: {column.name} is not a number for {listed(text.index)} "
        f"({listed(map(repr, text.unique()))}), which counts as missing; give a number or n/a"
    )
    return numbers
