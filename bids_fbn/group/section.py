"""One model on one kind of run: what is computed of it is written, and shown in one section."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bids_fbn.bids.group_naming import group_table_path
from bids_fbn.bids.group_writing import write_comparison_maps, write_group_maps
from bids_fbn.bids.writing import GENERATED_BY, Columns, write_table
from bids_fbn.config import Config, GroupOptions
from bids_fbn.errors import InputError
from bids_fbn.group.collect import Cell, participant_id
from bids_fbn.group.columns import MAP_TESTS, MAPS, TESTS, TRANSITIONS
from bids_fbn.group.design import Comparison, comparisons
from bids_fbn.group.maps import GroupMaps
from bids_fbn.group.study import (
    MapStack,
    compare,
    compare_maps,
    compare_sessions,
    harmonise,
    map_table,
    maps_of,
    peaks,
    transition_table,
)
from bids_fbn.group.tables import COMPARED, features, metric_name, wide_columns
from bids_fbn.networks.templates import TemplateSet, load_templates
from bids_fbn.reports.group_page import GroupSection

__all__ = ["write_section"]


def write_section(
    config: Config, cell: Cell, here: pd.DataFrame, people: pd.DataFrame
) -> tuple[GroupSection, list[str]]:
    """Compare participants in one cell, and write tables and maps of the group.

    Parameters
    ----------
    config : Config
    cell : Cell
    here : DataFrame
        Its rows of the long table, see :func:`bids_fbn.group.tables.of_kind`.
    people : DataFrame
        Index ``participant_id``, all of the call; a column for each that was asked for, those of
        groups and sites as text.

    Returns
    -------
    section : GroupSection
        What the page shows.
    notes : list of str
        What could not be computed, and why.

    Raises
    ------
    RunError
        If something cannot be written.
    """
    made = _Section(config, cell, here, people)
    return made.write(), made.notes


@dataclass(frozen=True, eq=False)
class _Compared:
    """What came of the tests."""

    tests: pd.DataFrame
    comparisons: Sequence[Comparison]
    harmonised: pd.DataFrame | None
    asked: GroupOptions


class _Section:
    def __init__(
        self, config: Config, cell: Cell, here: pd.DataFrame, people: pd.DataFrame
    ) -> None:
        self._config = config
        self._asked = config.group
        self._seed = config.compute.random_seed
        self._cell = cell
        self._grid = cell.first.grid
        self._networks = cell.first.networks
        self._here = here
        self._values = features(here)
        self._n_participants = len(people)
        self._people = people.reindex(self._values.index)
        self.notes: list[str] = []

    def write(self) -> GroupSection:
        compared = self._compare()
        transitions = self._transitions()
        if len(compared.tests):
            self._write("tests", compared.tests, TESTS, "Comparisons of participants")
        templates = self._templates()
        if templates is None:
            maps, mean = pd.DataFrame({"network": list(self._networks)}), None
        else:
            maps, mean = self._maps(compared, templates)
        return GroupSection(
            entities=self._cell.entities,
            model=self._cell.model,
            networks=self._networks,
            maps=maps.set_index("network"),
            long=self._shown(),
            tests=compared.tests,
            transitions=transitions,
            levels={c.name: (c.levels[1], c.levels[0]) for c in compared.comparisons if c.levels},
            grid=self._grid,
            mean_maps=mean,
            templates=templates,
            harmonised=compared.harmonised,
        )

    def _write(self, what: str, table: pd.DataFrame, columns: Columns, description: str) -> None:
        cell = self._cell
        path = self._config.output_dir / group_table_path(f"{cell.model}{what}", cell.entities)
        facts = {
            "Description": description,
            "Participants": self._n_participants,
            "Runs": len(cell.results),
            "NumberOfParticipants": len(set(map(participant_id, cell.results))),
            "GeneratedBy": GENERATED_BY,
        }
        write_table(path, table, columns, facts)

    def _shown(self) -> pd.DataFrame:
        """What the page draws of each participant; it has transitions elsewhere."""
        shown = [measure for measure in COMPARED if measure != "transition_probability"]
        return self._here[self._here["measure"].isin(shown) & self._here["value"].notna()]

    def _transitions(self) -> pd.DataFrame:
        if self._cell.first.window is None:
            return pd.DataFrame(columns=list(TRANSITIONS))
        groups = self._people[self._asked.group_by] if self._asked.group_by else None
        table = transition_table(
            self._here, self._networks, groups, self._asked.n_bootstrap, self._seed
        )
        self._write("transitions", table, TRANSITIONS, "Transitions between states")
        return table

    def _templates(self) -> TemplateSet | None:
        asked = self._config.networks
        name = (
            asked.templates
            if "templates" in asked.model_fields_set
            else str(self._cell.first.facts["Templates"])
        )
        try:
            templates = load_templates(name, self._grid)
        except InputError as error:
            self.notes.append(
                f"{self._cell.model}: {'; '.join(error.faults)}; no maps of the group"
            )
            return None
        if templates.networks != self._networks:
            self.notes.append(
                f"{self._cell.model}: templates {name} have other networks than the results; give "
                "those of the participant level with --templates; no maps of the group"
            )
            return None
        return templates

    # --- comparisons

    def _compare(self) -> _Compared:
        asked, values, people = self._asked, self._values, self._people
        found, notes = comparisons(people, asked.group_by, asked.covariates)
        self.notes += notes
        before_after = None
        if asked.combat is not None and (n := people[asked.combat].nunique()) < 2:
            self.notes.append(f"--combat {asked.combat}: {n} sites, so nothing to harmonise")
            asked = asked.model_copy(update={"combat": None, "combat_fit_on": None})
        if asked.combat is not None:
            harmonised = self._harmonise()
            if harmonised is None:
                found = []
            else:
                before_after = _before_after(values, harmonised, people[asked.combat])
                self._write_harmonised(harmonised)
                values = harmonised
        tests = compare(values, found, asked, self._seed)
        paired, of_sessions, notes = compare_sessions(self._here, asked, self._seed)
        self.notes += notes
        if len(paired):
            tests = pd.concat([tests, paired], ignore_index=True) if len(tests) else paired
        return _Compared(tests, (*found, *of_sessions), before_after, asked)

    def _harmonise(self) -> pd.DataFrame | None:
        """None where sites cannot be told from what is compared: then nothing may be compared."""
        try:
            return harmonise(self._values, self._people, self._asked)
        except InputError as error:
            self._note_combat(error, "nothing is compared")
            return None

    def _note_combat(self, error: InputError, consequence: str) -> None:
        start = f"--combat {self._asked.combat}"
        self.notes += [f"{start}: {line}; {consequence}" for line in error.faults]

    def _write_harmonised(self, harmonised: pd.DataFrame) -> None:
        table = harmonised.copy()
        table.columns = [metric_name(measure, network) for measure, network in table.columns]
        table = table.reset_index(names="participant_id")
        words = f"Features without the effects of {self._asked.combat}, by ComBat"
        self._write("harmonised", table, wide_columns(table, {}), words)

    # --- maps

    def _maps(
        self, compared: _Compared, templates: TemplateSet
    ) -> tuple[pd.DataFrame, np.ndarray]:
        """Maps of the group, what they overlap with, and the comparisons voxel by voxel."""
        cell = self._cell
        maps = GroupMaps(templates.supports)
        between = [one for one in compared.comparisons if one.kind != "paired"]
        work = self._config.compute.work_dir
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work, prefix="group-maps-") as folder:
            names = sorted(set(map(participant_id, cell.results)))
            shape = (len(self._networks), self._grid.n_voxels)
            stack = MapStack(Path(folder) / "maps.npy", names, shape) if between else None
            for name, own in maps_of(cell, self._grid, self.notes):
                maps.add(own)
                if stack is not None:
                    stack.add(name, own)
            if stack is not None:
                try:
                    self._compare_maps(stack, between, compared.asked)
                except InputError as error:  # maps that cannot be read may be all of a site
                    self._note_combat(error, "maps are not compared")
        result = maps.result()
        table = map_table(self._here, result, templates)
        write_group_maps(
            self._config.output_dir,
            cell.model,
            cell.entities,
            self._grid,
            self._networks,
            result,
            {"Templates": templates.name, "GeneratedBy": GENERATED_BY},
        )
        self._write("maps", table, MAPS, "Maps of the group and their templates")
        return table, np.nan_to_num(result.mean)

    def _compare_maps(
        self, stack: MapStack, found: Sequence[Comparison], asked: GroupOptions
    ) -> None:
        rows: list[dict[str, Any]] = []
        for comparison, t, p in compare_maps(stack, self._people, found, asked, self._seed):
            facts: Mapping[str, Any] = {
                "Formula": comparison.formula,
                "Term": comparison.term,
                "NumberOfParticipants": len(comparison.participants),
                "Permutations": asked.n_permutations,
                "GeneratedBy": GENERATED_BY,
            }
            write_comparison_maps(
                self._config.output_dir,
                self._cell.model,
                self._cell.entities,
                self._grid,
                self._networks,
                comparison.name,
                t,
                p,
                facts,
            )
            rows += peaks(comparison, self._networks, t, p, self._grid.coordinates)
        table = pd.DataFrame(rows, columns=list(MAP_TESTS))
        self._write("maptests", table, MAP_TESTS, "Comparisons of maps, voxel by voxel")


def _before_after(
    values: pd.DataFrame, harmonised: pd.DataFrame, sites: pd.Series
) -> pd.DataFrame:
    """Both in one long table, with ``site``, for the page."""
    parts = []
    for measure, network in values.columns:
        both = pd.DataFrame(
            {
                "before": values[(measure, network)].reindex(harmonised.index),
                "after": harmonised[(measure, network)],
                "site": sites.reindex(harmonised.index),
            }
        ).rename_axis("participant_id")
        parts.append(both.reset_index().assign(measure=measure, network=network))
    return pd.concat(parts, ignore_index=True)
