"""What the page of a group is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from bids_fbn.group.people import as_text
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.signal.grid import Grid

__all__ = ["GroupPage", "GroupSection", "kind_of_groups"]

_QUALITY = ("fd_mean", "n_volumes", "n_kept", "kept_seconds")


@dataclass(frozen=True, eq=False)
class GroupSection:
    """A model and a kind of run.

    Parameters
    ----------
    entities : mapping
        What all its runs have in common, by long names: ``task``, ``acquisition``, …
    model : str
    networks : sequence of str
        P names, in the order of the template set.
    maps : DataFrame
        By network: ``iou``, ``dice``, ``r`` with the template, ``p_corrected`` (NaN where nothing
        was tested), ``n_participants``.
    long : DataFrame
        ``participant_id``, ``measure``, ``network``, ``value``, a row for each run.
    tests : DataFrame
        ``comparison``, ``kind`` (``groups``, ``covariate``, ``paired``), ``formula``, ``measure``,
        ``network``, ``n``, ``estimate``, ``effect``, ``effect_size``, ``ci_low``, ``ci_high``,
        ``t``, ``p``, ``p_corrected``; may be empty.
    transitions : DataFrame
        ``group`` (``all`` or a level), ``origin``, ``destination``, ``n_participants``,
        ``probability``, ``ci_low``, ``ci_high``; may be empty.
    levels : mapping
        Comparison → its two groups or sessions; the estimate is of the first minus the second.
    grid : Grid or None
        V voxels; None without maps.
    mean_maps : ndarray (P, V) or None
        Mean z of the participants.
    templates : TemplateSet or None
        On the same grid.
    harmonised : DataFrame or None
        ``measure``, ``network``, ``site``, ``participant_id``, ``before``, ``after``.
    """

    entities: Mapping[str, str]
    model: str
    networks: Sequence[str]
    maps: pd.DataFrame
    long: pd.DataFrame
    tests: pd.DataFrame
    transitions: pd.DataFrame
    levels: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    grid: Grid | None = None
    mean_maps: np.ndarray | None = None
    templates: TemplateSet | None = None
    harmonised: pd.DataFrame | None = None

    @property
    def id(self) -> str:
        """Its place in the page, unique in it."""
        named = {**self.entities, "desc": self.model}
        return "_".join(f"{key}-{value}" for key, value in named.items())

    @property
    def title(self) -> str:
        """Its heading."""
        return ", ".join([self.model, *(f"{key} {value}" for key, value in self.entities.items())])

    def compared(self, comparison: object, term: object = None) -> str:
        """What a comparison is of, in words: its groups or sessions, or its term."""
        levels = self.levels.get(str(comparison))
        return f"{levels[0]} − {levels[1]}" if levels else str(term or comparison)

    @cached_property
    def features(self) -> pd.DataFrame:
        """Participant × (measure, network), runs averaged, measure by measure."""
        if self.long.empty:
            return pd.DataFrame(
                columns=pd.MultiIndex.from_tuples([], names=["measure", "network"])
            )
        keys = ["participant_id", "measure", "network"]
        long = self.long[[*keys, "value"]].astype(dict.fromkeys(keys, object))
        order = dict.fromkeys(zip(long["measure"], long["network"], strict=True))
        measures = list(dict.fromkeys(measure for measure, _ in order))
        columns = sorted(order, key=lambda column: measures.index(column[0]))
        wide = long.pivot_table(
            index="participant_id", columns=["measure", "network"], values="value", aggfunc="mean"
        )
        return wide.reindex(
            columns=pd.MultiIndex.from_tuples(columns, names=["measure", "network"])
        )


@dataclass(frozen=True, eq=False)
class GroupPage:
    """Everything that the page shows; nothing is read from files but template brains.

    No date: the same input gives the same bytes.

    Parameters
    ----------
    dataset : str
    version : str
        Of this software.
    sections : sequence of GroupSection
    quality : DataFrame
        ``participant_id``, the entities of the run, ``fd_mean`` (mm), ``n_volumes``, ``n_kept``,
        ``kept_seconds`` (s).
    people : DataFrame
        Covariates by participant_id; may have no column.
    group_by : str or None
        Column of `people` that the dots are coloured by.
    published : sequence of (str, DataFrame, str)
        Title, table, note.
    notes : sequence of str
        Who is missing, what is incomplete, what could not be computed.
    methods : sequence of str
        Paragraphs on how it was done.
    """

    dataset: str
    version: str
    sections: Sequence[GroupSection]
    quality: pd.DataFrame
    people: pd.DataFrame
    group_by: str | None = None
    published: Sequence[tuple[str, pd.DataFrame, str]] = ()
    notes: Sequence[str] = ()
    methods: Sequence[str] = ()

    @cached_property
    def participants(self) -> list[str]:
        """Everyone who has any result, sorted."""
        found = set(self.quality["participant_id"]) if len(self.quality) else set()
        return sorted(found.union(*(section.long["participant_id"] for section in self.sections)))

    @cached_property
    def groups(self) -> pd.Series | None:
        """Level of each participant, NaN where it is not known; None without groups."""
        if self.group_by is None or self.group_by not in self.people:
            return None
        return as_text(self.people[self.group_by]).reindex(self.participants)

    @cached_property
    def quality_of_participants(self) -> pd.DataFrame:
        """Runs of a participant put together: FD by its mean, volumes and seconds by their sum."""
        return combine_runs(self.quality).reindex(self.participants)


def combine_runs(quality: pd.DataFrame) -> pd.DataFrame:
    """Quality by participant: mean FD, sums of volumes and seconds, how many runs."""
    if quality.empty:
        return pd.DataFrame(columns=[*_QUALITY, "n_runs", "share_kept"], dtype=float)
    # A measure that no run has is NaN, not a fault.
    known = quality.reindex(columns=list(_QUALITY)).apply(pd.to_numeric, errors="coerce")
    runs = known.groupby(quality["participant_id"].astype(object))
    sums = runs[["n_volumes", "n_kept", "kept_seconds"]].sum(min_count=1)
    return sums.assign(
        fd_mean=runs["fd_mean"].mean(),
        n_runs=runs.size(),
        share_kept=sums["n_kept"] / sums["n_volumes"].where(sums["n_volumes"] > 0),
    )


def kind_of_groups(tests: pd.DataFrame) -> pd.DataFrame:
    """The tests between groups or sessions, which a picture by group can show."""
    return tests[tests["kind"].isin(("groups", "paired"))] if len(tests) else tests
