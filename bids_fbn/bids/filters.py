"""Which BOLD files the user wants: ``--session-id``, ``--task-id``, ``--run-id``, filter file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_fbn.bids.filenames import (
    KNOWN_ENTITIES,
    LONG_NAMES,
    NamedFile,
    read_json,
    same_value,
)
from bids_fbn.config import DataOptions
from bids_fbn.errors import InputError

__all__ = [
    "PREPROCESSED",
    "Filter",
    "Step",
    "apply_filters",
    "describe",
    "option_filters",
    "read_filter_file",
]

# The queries of fMRIPrep that a filter file can change; one file may serve both apps.
FILTER_FILE_KEYS = ("fmap", "bold", "sbref", "flair", "t2w", "t1w", "roi")


@dataclass(frozen=True)
class Filter:
    """One condition on an entity.

    Parameters
    ----------
    label : str
        The condition as the user wrote it.
    entity : str
        Long name.
    wanted : tuple of str or None
        Accepted values; None stands for "absent", ``"*"`` for "any".
    """

    label: str
    entity: str
    wanted: tuple[str | None, ...]

    def accepts(self, file: NamedFile) -> bool:
        """Whether a file fulfils the condition."""
        found = file.value(self.entity)
        if found is None:
            return None in self.wanted
        return any(
            value == "*" or same_value(self.entity, value, found)
            for value in self.wanted
            if value is not None
        )


@dataclass(frozen=True)
class Step:
    """How many files a filter left, and what values it had to choose from."""

    label: str
    left: int
    found: tuple[str, ...] = ()


# Only these are analysed: ICA-AROMA's `smoothAROMAnonaggr` and other pipelines' denoised files
# have been filtered once already.
PREPROCESSED = Filter("desc-preproc", "desc", ("preproc",))


def option_filters(data: DataOptions) -> tuple[Filter, ...]:
    """Filters of the command line, in the order in which they are applied."""
    options = (
        ("--session-id", "session", data.session_id),
        ("--task-id", "task", data.task_id),
        ("--run-id", "run", data.run_id),
    )
    return tuple(
        Filter(f"{option} {' '.join(labels)}", entity, tuple(labels))
        for option, entity, labels in options
        if labels
    )


def read_filter_file(path: Path) -> tuple[Filter, ...]:
    """Filters of the key ``bold`` of a filter file.

    Raises
    ------
    InputError
        With one line for each fault.
    """
    content = read_json(path)
    faults = [
        f"{path}: unknown key {key!r}; the known ones are {', '.join(FILTER_FILE_KEYS)}"
        for key in content
        if key not in FILTER_FILE_KEYS
    ]
    wanted = content.get("bold", {})
    if not isinstance(wanted, dict):
        faults.append(f'{path}: "bold" must hold an object such as {{"session": "01"}}')
        wanted = {}
    filters = []
    for entity, value in wanted.items():
        values = value if isinstance(value, list) else [value]
        if entity not in KNOWN_ENTITIES:
            faults.append(f"{path}: {_unknown_entity(entity)}")
        elif not values or not all(_is_label(item) for item in values):
            faults.append(
                f'{path}: "bold", {entity!r}: expected a label, "*" (any), null (none) or a list '
                f"of them, got {value!r}"
            )
        else:
            labels = tuple(None if item is None else str(item) for item in values)
            shown = " or ".join("none" if label is None else label for label in labels)
            filters.append(Filter(f"{path.name}: {entity} {shown}", entity, labels))
    if faults:
        raise InputError(*faults)
    return tuple(filters)


def _unknown_entity(entity: str) -> str:
    guess = LONG_NAMES.get(entity)
    close = [guess] if guess else difflib.get_close_matches(entity, KNOWN_ENTITIES, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(KNOWN_ENTITIES)}"
    return f'"bold" has the unknown entity {entity!r}{hint}'


def _is_label(value: Any) -> bool:
    return value is None or (isinstance(value, str | int) and not isinstance(value, bool))


def apply_filters(
    files: Sequence[NamedFile], filters: Sequence[Filter]
) -> tuple[list[NamedFile], list[Step]]:
    """Files that every filter accepts, and how many each step left."""
    left = list(files)
    steps = []
    for condition in filters:
        found = {file.value(condition.entity) for file in left}
        left = [file for file in left if condition.accepts(file)]
        values = sorted("none" if value is None else value for value in found)
        steps.append(Step(condition.label, len(left), tuple(values)))
    return left, steps


def describe(steps: Sequence[Step]) -> list[str]:
    """Each step with the files that it left, up to the one that left none."""
    told = []
    for step in steps:
        if step.left:
            told.append(f"{step.label}: {step.left}")
            continue
        there = f" (there: {', '.join(step.found[:10])})" if step.found else ""
        told.append(f"{step.label}: 0{there}")
        break
    return told
