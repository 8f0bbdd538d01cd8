"""The group level: read what the participant level has left, compare, write, report."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bids_fbn import __version__, logs
from bids_fbn.bids.group_naming import group_table_path
from bids_fbn.bids.writing import Columns, write_bidsignore, write_table
from bids_fbn.config import Config, GroupOptions
from bids_fbn.environment import prepare_environment
from bids_fbn.errors import InputError, RunError
from bids_fbn.group.columns import MAP_TESTS, MAPS, TESTS, TRANSITIONS
from bids_fbn.resources import available_processors

if TYPE_CHECKING:
    from bids_fbn.group.collect import Cell, Collected
    from bids_fbn.group.design import Comparison
    from bids_fbn.group.study import MapStack
    from bids_fbn.networks.templates import TemplateSet
    from bids_fbn.reports.group_page import GroupSection
    from bids_fbn.signal.grid import Grid

__all__ = ["run_group_level"]

logger = logging.getLogger(__name__)

_GENERATED_BY = {"Name": "bids_fbn", "Version": __version__}
# Of our tables of quality, by names that other programs have for them.
_QUALITY_NAMES = {"mean_fd": "fd_mean"}


def run_group_level(config: Config) -> int:
    """Do what a call asks for; returns the exit code (0 or 1).

    Raises
    ------
    InputError
        With all faults at once, before anything is written (exit code 2).
    """
    prepare_environment(config.compute.omp_nthreads or available_processors())
    logs.configure(config.run.verbose)
    if faults := config.group.idle():
        raise InputError(*faults)
    if config.group.train:
        from bids_fbn.group.training import train_shared

        return train_shared(config)
    from bids_fbn.group.collect import collect

    collected = collect(config)
    if config.run.dry_run:
        _print_plan(config, collected)
        return 0
    level = _Level(config, collected)
    try:
        level.write()
    except RunError as error:  # the disk is full, say
        print(f"error: {error}", file=sys.stderr)
        return 1
    for note in level.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"report: {level.report}")
    return 0


def _print_plan(config: Config, collected: Collected) -> None:
    for cell in collected.cells:
        shared = " ".join(f"{name}-{value}" for name, value in cell.entities.items())
        people = {results.run.subject for results in cell.results}
        print(f"{cell.model} {shared}: {len(people)} participants, {len(cell.results)} runs")
    for note in collected.notes:
        print(f"note: {note}")
    print(f"would be written in {config.output_dir}: group/, tpl-*/, atlas-*_description.json")


@dataclass(frozen=True, eq=False)
class _Compared:
    """What came of the tests of a cell."""

    tests: pd.DataFrame
    comparisons: Sequence[Comparison]
    harmonised: pd.DataFrame | None
    asked: GroupOptions


class _Level:
    """One call, cell by cell."""

    def __init__(self, config: Config, collected: Collected) -> None:
        from bids_fbn.group.tables import long_table

        self._config = config
        self._asked = config.group
        self._seed = config.compute.random_seed
        self._out = config.output_dir
        logger.info("reading %d results", sum(len(cell.results) for cell in collected.cells))
        self._long, self._collected = long_table(collected)
        self.notes = list(dict.fromkeys(self._collected.notes))
        self._participants = sorted(map(str, self._long["participant_id"].unique()))
        # Before anything is written: an unknown column is a fault of the call.
        self._people = self._read_people()
        self.report = Path()

    def _note(self, lines: Sequence[str]) -> None:
        self.notes += [line for line in lines if line not in self.notes]

    # --- participants

    def _asked_columns(self) -> list[str]:
        asked = self._asked
        names = [asked.group_by, *asked.covariates, asked.combat]
        return list(dict.fromkeys(name for name in names if name))

    def _quality_names(self) -> dict[str, str]:
        """Asked columns that are measures of quality, by the name that our tables have."""
        of_quality = set(self._long.loc[self._long["model"].isna(), "measure"])
        names = {name: _QUALITY_NAMES.get(name, name) for name in self._asked_columns()}
        return {name: measure for name, measure in names.items() if measure in of_quality}

    def _read_people(self) -> pd.DataFrame:
        from bids_fbn.group.people import read_people

        path = self._asked.participants_file
        if path is not None and not path.is_file():
            raise InputError(f"--participants-file {path}: no such file")
        path = path or self._config.bids_dir / "participants.tsv"
        quality = self._quality_names()
        columns = [name for name in self._asked_columns() if name not in quality]
        people = read_people(path, self._participants, columns)
        self._note(people.notes)
        return people.table

    def _people_of(self, cell: Cell, values: pd.DataFrame) -> pd.DataFrame:
        """Groups and covariates of those who have values, quality included."""
        from bids_fbn.group.tables import quality_of

        people = self._people.reindex(values.index)
        for name, measure in self._quality_names().items():
            people[name] = quality_of(self._long, cell, measure).reindex(values.index)
        return people[self._asked_columns()]

    # --- everything, one after the other

    def write(self) -> None:
        """Compute and write all of it."""
        write_bidsignore(self._out)
        self._write_tables()
        sections: list[GroupSection] = []
        grid = None
        for cell in self._collected.cells:
            logger.info("%s %s", cell.model, dict(cell.entities))
            section, grid = self._cell(cell)
            sections.append(section)
        published = self._write_published()
        self._write_report(sections, published, grid)

    def _write_tables(self) -> None:
        from bids_fbn.group.tables import LONG, wide_columns, wide_table

        facts = self._facts("Every metric of every participant, run, model and network")
        write_table(self._out / group_table_path("long", {}), self._long, LONG, facts)
        wide = wide_table(self._long)
        columns = wide_columns(wide, self._collected.quality)
        facts = self._facts("Every metric of every run and model, a row for each of these")
        write_table(self._out / group_table_path("wide", {}), wide, columns, facts)

    def _facts(self, description: str, **more: Any) -> dict[str, Any]:
        return {
            "Description": description,
            "Participants": len(self._participants),
            **more,
            "GeneratedBy": _GENERATED_BY,
        }

    def _cell(self, cell: Cell) -> tuple[GroupSection, Grid]:
        from bids_fbn.group.study import transition_table
        from bids_fbn.group.tables import features
        from bids_fbn.reports.group_page import GroupSection

        values = features(self._long, cell)
        people = self._people_of(cell, values)
        compared = self._compare(cell, values, people)
        groups = None if self._asked.group_by is None else people[self._asked.group_by]
        transitions = pd.DataFrame(columns=list(TRANSITIONS))
        if cell.first.window is not None:
            transitions = transition_table(
                self._long, cell, groups, self._asked.n_bootstrap, self._seed
            )
            words = "Transitions between states"
            self._write(cell, "transitions", transitions, TRANSITIONS, words)
        if len(compared.tests):
            self._write(cell, "tests", compared.tests, TESTS, "Comparisons of participants")
        grid = cell.first.grid
        templates = self._templates(cell, grid)
        maps, mean = self._maps(cell, people, compared, grid, templates)
        section = GroupSection(
            task=cell.entities.get("task"),
            model=cell.model,
            networks=cell.first.networks,
            maps=maps.set_index("network"),
            long=self._shown(cell),
            tests=compared.tests,
            transitions=transitions,
            levels={c.name: (c.levels[1], c.levels[0]) for c in compared.comparisons if c.levels},
            mean_maps=mean,
            templates=templates,
            harmonised=compared.harmonised,
        )
        return section, grid

    def _write(
        self, cell: Cell, what: str, table: pd.DataFrame, columns: Columns, description: str
    ) -> None:
        path = self._out / group_table_path(f"{cell.model}{what}", cell.entities)
        people = len({results.run.subject for results in cell.results})
        facts = self._facts(description, Runs=len(cell.results), NumberOfParticipants=people)
        write_table(path, table, columns, facts)

    def _of_kind(self, entities: Mapping[str, str], model: str | None = None) -> pd.DataFrame:
        """Rows of one kind of run, of one model or all."""
        here = self._long if model is None else self._long[self._long["model"] == model]
        for name, value in entities.items():
            here = here[here[name] == value]
        return here

    def _shown(self, cell: Cell) -> pd.DataFrame:
        """What the page draws of each participant; it has transitions elsewhere."""
        from bids_fbn.group.tables import COMPARED

        long = self._of_kind(cell.entities, cell.model)
        shown = [measure for measure in COMPARED if measure != "transition_probability"]
        return long[long["measure"].isin(shown) & long["value"].notna()]

    def _templates(self, cell: Cell, grid: Grid) -> TemplateSet | None:
        from bids_fbn.networks.templates import load_templates

        asked = self._config.networks
        name = (
            asked.templates
            if "templates" in asked.model_fields_set
            else str(cell.first.facts["Templates"])
        )
        try:
            templates = load_templates(name, grid)
        except InputError as error:
            self._note([f"{cell.model}: {'; '.join(error.faults)}; no maps of the group"])
            return None
        if templates.networks != cell.first.networks:
            self._note(
                [
                    f"{cell.model}: templates {name} have other networks than the results; give "
                    "those of the participant level with --templates; no maps of the group"
                ]
            )
            return None
        return templates

    # --- comparisons

    def _compare(self, cell: Cell, values: pd.DataFrame, people: pd.DataFrame) -> _Compared:
        from bids_fbn.group.design import comparisons
        from bids_fbn.group.study import compare, compare_sessions

        asked = self._asked
        found, notes = comparisons(people, asked.group_by, asked.covariates)
        self._note(notes)
        before_after = None
        if asked.combat is not None and people[asked.combat].nunique() < 2:
            n = people[asked.combat].nunique()
            self._note([f"--combat {asked.combat}: {n} sites, so nothing to harmonise"])
            asked = asked.model_copy(update={"combat": None, "combat_fit_on": None})
        if asked.combat is not None:
            harmonised = self._harmonise(values, people)
            if harmonised is None:
                found = []
            else:
                before_after = self._before_after(values, harmonised, people[asked.combat])
                self._write_harmonised(cell, harmonised)
                values = harmonised
        tests = compare(values, found, asked, self._seed)
        paired, of_sessions, notes = compare_sessions(self._long, cell, asked, self._seed)
        self._note(notes)
        if len(paired):
            tests = pd.concat([tests, paired], ignore_index=True) if len(tests) else paired
        return _Compared(tests, (*found, *of_sessions), before_after, asked)

    def _harmonise(self, values: pd.DataFrame, people: pd.DataFrame) -> pd.DataFrame | None:
        """None where sites cannot be told from what is compared: then nothing may be compared."""
        from bids_fbn.group.study import harmonise

        try:
            return harmonise(values, people, self._asked)
        except InputError as error:
            start = f"--combat {self._asked.combat}"
            self._note([f"{start}: {line}; nothing is compared" for line in error.faults])
            return None

    def _before_after(
        self, values: pd.DataFrame, harmonised: pd.DataFrame, sites: pd.Series
    ) -> pd.DataFrame:
        parts = []
        for measure, network in values.columns:
            both = pd.DataFrame(
                {
                    "before": values[(measure, network)].reindex(harmonised.index),
                    "after": harmonised[(measure, network)],
                    "site": sites.reindex(harmonised.index).astype(str),
                }
            ).rename_axis("participant_id")
            parts.append(both.reset_index().assign(measure=measure, network=network))
        return pd.concat(parts, ignore_index=True)

    def _write_harmonised(self, cell: Cell, harmonised: pd.DataFrame) -> None:
        from bids_fbn.group.tables import metric_name, wide_columns

        table = harmonised.copy()
        table.columns = [metric_name(measure, network) for measure, network in table.columns]
        table = table.reset_index(names="participant_id")
        columns = wide_columns(table, self._collected.quality)
        words = f"Features without the effects of {self._asked.combat}, by ComBat"
        self._write(cell, "harmonised", table, columns, words)

    # --- maps

    def _maps(
        self,
        cell: Cell,
        people: pd.DataFrame,
        compared: _Compared,
        grid: Grid,
        templates: TemplateSet | None,
    ) -> tuple[pd.DataFrame, np.ndarray | None]:
        """Maps of the group, what they overlap with, and the comparisons voxel by voxel."""
        from bids_fbn.bids.group_writing import write_group_maps
        from bids_fbn.group.maps import GroupMaps
        from bids_fbn.group.study import MapStack, map_table, maps_of

        if templates is None:
            return pd.DataFrame({"network": list(cell.first.networks)}), None
        maps = GroupMaps(templates.supports)
        between = [one for one in compared.comparisons if one.kind != "paired"]
        work = self._config.compute.work_dir
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work, prefix="group-maps-") as folder:
            names = sorted({f"sub-{results.run.subject}" for results in cell.results})
            shape = (len(templates.networks), grid.n_voxels)
            stack = MapStack(Path(folder) / "maps.npy", names, shape) if between else None
            unread: list[str] = []
            for name, own in maps_of(cell, grid, unread):
                maps.add(own)
                if stack is not None:
                    stack.add(name, own)
            self._note(unread)
            if stack is not None:
                self._compare_maps(cell, stack, people, between, compared.asked, grid)
        result = maps.result()
        table = map_table(self._of_kind(cell.entities, cell.model), result, templates)
        write_group_maps(
            self._out,
            cell.model,
            cell.entities,
            grid,
            templates.networks,
            result,
            {"Templates": templates.name, "GeneratedBy": _GENERATED_BY},
        )
        self._write(cell, "maps", table, MAPS, "Maps of the group and their templates")
        return table, np.nan_to_num(result.mean)

    def _compare_maps(
        self,
        cell: Cell,
        stack: MapStack,
        people: pd.DataFrame,
        found: Sequence[Comparison],
        asked: GroupOptions,
        grid: Grid,
    ) -> None:
        from bids_fbn.bids.group_writing import write_comparison_maps
        from bids_fbn.group.study import compare_maps, peaks

        rows: list[dict[str, Any]] = []
        networks = cell.first.networks
        for comparison, t, p in compare_maps(stack, people, found, asked, self._seed):
            facts = {
                "Formula": comparison.formula,
                "Term": comparison.term,
                "NumberOfParticipants": len(comparison.participants),
                "Permutations": self._asked.n_permutations,
                "GeneratedBy": _GENERATED_BY,
            }
            write_comparison_maps(
                self._out,
                cell.model,
                cell.entities,
                grid,
                networks,
                comparison.name,
                t,
                p,
                facts,
            )
            rows += peaks(comparison, networks, t, p, grid.coordinates)
        table = pd.DataFrame(rows, columns=list(MAP_TESTS))
        self._write(cell, "maptests", table, MAP_TESTS, "Comparisons of maps, voxel by voxel")

    # --- what is about all models together

    def _write_published(self) -> list[tuple[str, pd.DataFrame, str]]:
        from bids_fbn.group.published import METHODS, SITES, change_by_site, method_table

        kinds = {tuple(cell.entities.items()): cell.entities for cell in self._collected.cells}
        shown = []
        sites = self._people[self._asked.combat] if self._asked.combat else None
        for entities in kinds.values():
            here = self._of_kind(entities)
            words = " ".join(f"{name}-{value}" for name, value in entities.items())
            methods, change = method_table(here), change_by_site(here, sites)
            for desc, table, columns, title in (
                ("methods", methods, METHODS, "Overlap with the templates by method"),
                ("sites", change, SITES, "Gradual change by site"),
            ):
                if len(table):
                    path = self._out / group_table_path(desc, entities)
                    write_table(path, table, columns, self._facts(title))
                    note = "; ".join(
                        f"{name}: {text['Description']}" for name, text in columns.items()
                    )
                    shown.append((f"{title} ({words})", table, note))
        return shown

    def _write_report(
        self,
        sections: Sequence[GroupSection],
        published: Sequence[tuple[str, pd.DataFrame, str]],
        grid: Grid | None,
    ) -> None:
        from bids_fbn.group.methods import paragraphs
        from bids_fbn.reports.group import GroupPage, write_group_report

        page = GroupPage(
            dataset=self._config.bids_dir.name,
            version=__version__,
            sections=sections,
            quality=self._quality(),
            people=self._people,
            group_by=self._asked.group_by,
            grid=grid,
            published=published,
            notes=self.notes,
            methods=paragraphs(self._config, self._collected),
        )
        self.report = write_group_report(self._out, page)

    def _quality(self) -> pd.DataFrame:
        """A row for each run."""
        from bids_fbn.bids.filenames import parse_name

        rows = []
        for prefix, table in sorted(self._collected.quality.items()):
            entities = dict(parse_name(Path(f"{prefix}_qc.tsv")).entities)
            name = f"sub-{entities.pop('subject')}"
            entities.pop("desc", None)
            rows.append({"participant_id": name, **entities, **table.data.iloc[0].to_dict()})
        return pd.DataFrame(rows)
