"""One model on one kind of run, over all participants: what is computed of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from bids_fbn.config import GroupOptions
from bids_fbn.errors import InputError, RunError
from bids_fbn.group.collect import Cell, participant_id
from bids_fbn.group.columns import TESTS
from bids_fbn.group.design import Comparison, paired
from bids_fbn.group.harmonise import Combat
from bids_fbn.group.maps import (
    GroupResult,
    ParticipantMaps,
    combined_p,
    mean_over_runs,
    template_overlap,
)
from bids_fbn.group.statistics import compare_features, compare_voxels, families
from bids_fbn.group.tables import ENTITIES, features, pair
from bids_fbn.group.transitions import group_transitions
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.nulls.pvalues import ALPHA
from bids_fbn.reports.results import ModelResults
from bids_fbn.signal.grid import Grid

__all__ = [
    "MapStack",
    "compare",
    "compare_maps",
    "compare_sessions",
    "harmonise",
    "has_site",
    "map_table",
    "maps_of",
    "peaks",
    "transition_table",
]


def kept_effects(people: pd.DataFrame, asked: GroupOptions, reference: bool) -> pd.DataFrame:
    """Groups and covariates as numbers, for ComBat to leave alone."""
    columns: dict[str, pd.Series] = {}
    names = [name for name in (asked.group_by, *asked.covariates) if name and name != asked.combat]
    for name in names:
        if reference and name == asked.group_by:
            continue
        column = people[name]
        if pd.api.types.is_numeric_dtype(column):
            columns[name] = column.astype(float)
            continue
        for level in sorted(column.dropna().unique())[1:]:
            columns[f"{name} {level}"] = (column == level).astype(float).where(column.notna())
    return pd.DataFrame(columns, index=people.index)


def has_site(people: pd.DataFrame, asked: GroupOptions) -> pd.Series:
    """Who can be harmonised: those of known site, group and covariates; all without ComBat."""
    if asked.combat is None:
        return pd.Series(True, index=people.index)
    kept = kept_effects(people, asked, asked.combat_fit_on is not None)
    return people[asked.combat].notna() & kept.notna().all(axis=1)


def harmonise(values: pd.DataFrame, people: pd.DataFrame, asked: GroupOptions) -> pd.DataFrame:
    """Take the effects of sites out of features, or of voxels.

    Parameters
    ----------
    values : DataFrame
        By participant; features of a measure inform one another, as do all voxels.
    people : DataFrame
        With the column of the sites, the groups (both text) and covariates.
    asked : GroupOptions

    Returns
    -------
    DataFrame
        Of participants whose site, group and covariates are known.

    Raises
    ------
    InputError
        If that is not possible; the message says why.
    """
    assert asked.combat is not None
    reference = asked.combat_fit_on is not None
    kept = kept_effects(people, asked, reference)
    here = people.index[has_site(people, asked) & people.index.isin(values.index)]
    fit_on = None
    if reference:
        groups = people.loc[here, asked.group_by]
        fit_on = (groups == asked.combat_fit_on).to_numpy()
        if not fit_on.any():
            raise InputError(
                f"--combat-fit-on {asked.combat_fit_on}: nobody of this group is among those of "
                f"known {' and '.join([asked.combat, *kept.columns])} who have results here"
            )
    data, effects = values.reindex(here), kept.loc[here] if kept.shape[1] else None
    at_site = people.loc[here, asked.combat].to_numpy()
    pools = values.columns.get_level_values(0) if values.columns.nlevels > 1 else None
    combat = Combat.fit(data, at_site, effects, fit_on, pools)
    applied = combat.apply(data, at_site, effects)
    return pd.DataFrame(applied, index=data.index, columns=data.columns)


def compare(
    values: pd.DataFrame, found: Sequence[Comparison], asked: GroupOptions, seed: int
) -> pd.DataFrame:
    """Every comparison in every family of features; a table with the columns ``TESTS``."""
    parts = []
    for comparison in found:
        for columns in families(values).values():
            table = compare_features(
                values[columns],
                comparison,
                correction=asked.correction,
                n_permutations=asked.n_permutations,
                seed=seed,
            )
            parts.append(_with_comparison(table, comparison))
    if not parts:
        return pd.DataFrame(columns=list(TESTS))
    return pd.concat(parts, ignore_index=True)[list(TESTS)]


def _with_comparison(table: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    return table.assign(
        comparison=comparison.name,
        kind=comparison.kind,
        term=comparison.term,
        formula=comparison.formula,
    )


def compare_sessions(
    here: pd.DataFrame, asked: GroupOptions, seed: int
) -> tuple[pd.DataFrame, list[Comparison], list[str]]:
    """Each session with the one before, in the same participants.

    `here` are rows of one model and kind of run.
    """
    if "session" not in here:
        return pd.DataFrame(columns=list(TESTS)), [], []
    sessions = sorted(here["session"].dropna().unique())
    tables, found, notes = [], [], []
    for first, second in pairwise(sessions):
        difference, comparison, more = paired(
            features(here[here["session"] == first]),
            features(here[here["session"] == second]),
            (f"ses-{first}", f"ses-{second}"),
        )
        notes += more
        if len(comparison.participants) < 2:
            notes.append(f"ses-{first}, ses-{second}: fewer than two participants have both")
            continue
        tables.append(compare(difference, [comparison], asked, seed))
        found.append(comparison)
    if not tables:
        return pd.DataFrame(columns=list(TESTS)), found, notes
    return pd.concat(tables, ignore_index=True), found, notes


def transition_table(
    here: pd.DataFrame,
    names: Sequence[str],
    groups: pd.Series | None,
    n_bootstrap: int,
    seed: int,
) -> pd.DataFrame:
    """Mean transition probabilities with intervals, of all participants and of each group.

    Parameters
    ----------
    here : DataFrame
        Rows of one model and kind of run.
    names : sequence of str
        P networks.
    groups : Series or None
        Text, by participant.
    n_bootstrap, seed : int

    Returns
    -------
    DataFrame
        With the columns ``TRANSITIONS``.
    """
    here = here[here["measure"] == "transition_count"]
    counts = here.groupby(["participant_id", "network"], observed=True)["value"].sum()
    # A participant's runs together: their counts add up.
    table = counts.unstack("network")  # noqa: PD010 (a Series with two keys)
    ordered = table[[pair(a, b) for a in names for b in names]].to_numpy(dtype=float)
    matrices = ordered.reshape(len(table), len(names), len(names))
    total = matrices.sum(axis=2, keepdims=True)
    probabilities = np.divide(matrices, total, out=np.zeros_like(matrices), where=total > 0)
    parts = {"all": np.ones(len(table), dtype=bool)}
    if groups is not None:
        of_people = groups.reindex(table.index.astype(str))
        for level in sorted(of_people.dropna().unique()):
            parts[level] = (of_people == level).to_numpy()
    rows = []
    for group, members in parts.items():
        mean = group_transitions(probabilities[members], matrices[members], n_bootstrap, seed)
        for i, origin in enumerate(names):
            for j, destination in enumerate(names):
                rows.append(
                    {
                        "group": group,
                        "origin": origin,
                        "destination": destination,
                        "n_participants": int(mean.n[i, j]),
                        "probability": mean.mean[i, j],
                        "ci_low": mean.ci_low[i, j],
                        "ci_high": mean.ci_high[i, j],
                    }
                )
    return pd.DataFrame(rows)


def maps_of(cell: Cell, grid: Grid, unread: list[str]) -> Iterator[tuple[str, ParticipantMaps]]:
    """Maps of one participant after the other, the mean over runs.

    Those that cannot be read are left out, with a line in `unread`.
    """
    by_participant: dict[str, list[ModelResults]] = {}
    for results in cell.results:
        by_participant.setdefault(participant_id(results), []).append(results)
    for name, runs in by_participant.items():
        read = []
        for results in runs:
            try:
                read.append(_run_maps(results, grid))
            except RunError as error:
                unread.append(f"{error}; not in the maps of the group")
        if read:
            yield name, mean_over_runs(read)


def _run_maps(results: ModelResults, grid: Grid) -> ParticipantMaps:
    try:
        maps = results.maps()
        image: Any = nib.load(results.path("probseg"))
        membership = grid.gather(np.asarray(image.dataobj, dtype=np.float32))
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
        raise RunError(
            f"{results.run.prefix}, {results.label}: maps cannot be read "
            f"({str(error).splitlines()[0]}); compute this run again"
        ) from None
    return ParticipantMaps(maps, membership, (maps != 0).any(axis=0))


def map_table(here: pd.DataFrame, result: GroupResult, templates: TemplateSet) -> pd.DataFrame:
    """Overlap of the group maps with their templates, and whether the networks are there.

    `here` are rows of one model and kind of run.
    """
    of_p = here[here["measure"] == "p"]
    runs = [name for name in ("participant_id", *ENTITIES) if name in of_p]
    keys = [of_p[name].astype(object).where(of_p[name].notna(), "") for name in runs]
    p = of_p.groupby([*keys, of_p["network"].astype(str)])["value"].first().unstack()  # noqa: PD010
    names = list(templates.networks)
    table = template_overlap(result, templates).join(combined_p(p.reindex(columns=names)))
    table["n_participants"] = result.n_participants
    floor = here.loc[here["measure"] == "p_lowest", "value"].to_numpy()
    lowest = combined_p(pd.DataFrame(np.repeat(floor[:, None], len(names), axis=1), columns=names))
    table["p_lowest"] = lowest["p_corrected"].max()
    return table.reset_index()


@dataclass(eq=False)
class MapStack:
    """Maps of all participants on the disk, one network at a time in memory.

    Parameters
    ----------
    path : Path
        File to make; the caller removes it.
    participants : sequence of str
    shape : tuple of int
        (P, V).
    """

    path: Path
    participants: Sequence[str]
    shape: tuple[int, int]
    _rows: Mapping[str, int] = field(init=False)
    _filled: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        networks, voxels = self.shape
        self._stack = np.lib.format.open_memmap(
            self.path,
            mode="w+",
            dtype=np.float32,
            shape=(networks, len(self.participants), voxels),
        )
        self._rows = {name: row for row, name in enumerate(self.participants)}

    def add(self, name: str, maps: ParticipantMaps) -> None:
        """NaN where the participant's runs do not cover."""
        self._stack[:, self._rows[name]] = np.where(maps.covered, maps.maps, np.nan)
        self._filled.add(name)

    def has(self, name: str) -> bool:
        """Whether there are maps of a participant."""
        return name in self._filled

    def network(self, position: int, participants: Sequence[str]) -> np.ndarray:
        """Maps (n, V) of one network."""
        return np.asarray(self._stack[position, [self._rows[name] for name in participants]])


def compare_maps(
    stack: MapStack,
    people: pd.DataFrame,
    found: Sequence[Comparison],
    asked: GroupOptions,
    seed: int,
) -> Iterator[tuple[Comparison, np.ndarray, np.ndarray]]:
    """Voxel by voxel: comparison, t and corrected p, both (P, V).

    The correction is over the voxels of a network. Sites are taken out of the maps as they are of
    features.
    """
    known = has_site(people, asked)
    for comparison in found:
        there = np.array([stack.has(name) and known[name] for name in comparison.participants])
        here = _only(comparison, there)
        t, p = np.full(stack.shape, np.nan), np.full(stack.shape, np.nan)
        for position in range(stack.shape[0]):
            maps = stack.network(position, here.participants)
            if asked.combat is not None:
                table = pd.DataFrame(maps, index=pd.Index(here.participants))
                harmonised = harmonise(table, people, asked).reindex(here.participants)
                maps = harmonised.to_numpy(np.float32)
            t[position], p[position] = compare_voxels(maps, here, asked.n_permutations, seed)
        yield here, t, p


def _only(comparison: Comparison, kept: np.ndarray) -> Comparison:
    if kept.all():
        return comparison
    return replace(
        comparison,
        participants=tuple(np.array(comparison.participants)[kept].tolist()),
        tested=comparison.tested[kept],
        confounds=comparison.confounds[kept],
        groups=tuple(np.array(comparison.groups)[kept].tolist()) if comparison.groups else (),
    )


def peaks(
    comparison: Comparison,
    networks: Sequence[str],
    t: np.ndarray,
    p: np.ndarray,
    coordinates: np.ndarray,
) -> Iterator[dict[str, Any]]:
    """Of each network, how much differs and where most; rows of ``MAP_TESTS``."""
    for position, network in enumerate(networks):
        tested = np.isfinite(p[position])
        row: dict[str, Any] = {
            "comparison": comparison.name,
            "term": comparison.term,
            "formula": comparison.formula,
            "network": network,
            "n": len(comparison.participants),
            "n_voxels": int(tested.sum()),
            "n_below": int((p[position] < ALPHA).sum()),
        }
        if tested.any():
            height = np.where(tested, np.abs(np.nan_to_num(t[position])), -1)
            peak = int(height.argmax())
            x, y, z = coordinates[peak]
            row |= {"peak_t": t[position, peak], "peak_x": x, "peak_y": y, "peak_z": z}
            row["p_corrected"] = p[position, peak]
        yield row
