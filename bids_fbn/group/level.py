"""The group level: read what the participant level has left, compare, write, report."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bids_fbn import __version__, logs
from bids_fbn.bids.group_naming import group_table_path
from bids_fbn.bids.writing import GENERATED_BY, write_bidsignore, write_table
from bids_fbn.config import Config
from bids_fbn.environment import prepare_environment
from bids_fbn.errors import InputError, RunError
from bids_fbn.resources import available_processors

if TYPE_CHECKING:
    from bids_fbn.group.collect import Cell, Collected
    from bids_fbn.reports.group_page import GroupSection

__all__ = ["run_group_level"]

logger = logging.getLogger(__name__)

# Of our tables of quality, by names that other programs have for them.
_QUALITY_NAMES = {"mean_fd": "fd_mean"}


def run_group_level(config: Config) -> int:
    """Do what a call asks for; returns the exit code (0 or 1).

    Raises
    ------
    InputError
        With all faults at once, before anything is written (exit code 2).
    """
    prepare_environment(
        config.compute.omp_nthreads or available_processors(), config.compute.work_dir
    )
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


class _Level:
    """One call, cell by cell."""

    def __init__(self, config: Config, collected: Collected) -> None:
        from bids_fbn.group.tables import long_table

        self._config = config
        self._asked = config.group
        self._out = config.output_dir
        logger.info("reading %d results", sum(len(cell.results) for cell in collected.cells))
        self._long, self._collected = long_table(collected)
        self.notes = list(dict.fromkeys(self._collected.notes))
        self._participants = sorted(map(str, self._long["participant_id"].unique()))
        # Covariates that are measures of quality, and the names that our tables have for these.
        of_quality = set(self._long.loc[self._long["model"].isna(), "measure"])
        categories = (config.group.group_by, config.group.combat)
        names = {
            n: _QUALITY_NAMES.get(n, n) for n in config.group.covariates if n not in categories
        }
        self._quality = {name: own for name, own in names.items() if own in of_quality}
        # Before anything is written: an unknown column or group is a fault of the call.
        self._people = self._read_people()
        self.report = Path()

    def _note(self, lines: Sequence[str]) -> None:
        self.notes += [line for line in dict.fromkeys(lines) if line not in self.notes]

    # --- participants

    def _read_people(self) -> pd.DataFrame:
        """Columns of participants.tsv that were asked for; groups and sites as text."""
        from bids_fbn.group.people import as_text, read_people

        asked = self._asked
        path = asked.participants_file
        if path is not None and not path.is_file():
            raise InputError(f"--participants-file {path}: no such file")
        path = path or self._config.bids_dir / "participants.tsv"
        categories = [name for name in (asked.group_by, asked.combat) if name]
        covariates = [name for name in asked.covariates if name not in self._quality]
        columns = dict.fromkeys([asked.group_by, *covariates, asked.combat])
        people = read_people(path, self._participants, [name for name in columns if name])
        table = people.table.assign(**{name: as_text(people.table[name]) for name in categories})
        if asked.combat_fit_on is not None:
            groups = sorted(table[asked.group_by].dropna().unique())
            if asked.combat_fit_on not in groups:
                raise InputError(
                    f"--combat-fit-on {asked.combat_fit_on}: no such group in {asked.group_by} of "
                    f"{path}; there are: {', '.join(groups) or 'none'}",
                    *people.notes,
                )
        self._note(people.notes)
        return table

    def _people_of(self, cell: Cell) -> pd.DataFrame:
        """What was asked for of everyone, the quality of these runs among it."""
        from bids_fbn.group.tables import of_kind, quality_of

        here = of_kind(self._long, cell.entities)
        quality = {name: quality_of(here, measure) for name, measure in self._quality.items()}
        return self._people.assign(**quality)

    # --- everything, one after the other

    def write(self) -> None:
        """Compute and write all of it."""
        from bids_fbn.group.section import write_section
        from bids_fbn.group.tables import of_kind

        write_bidsignore(self._out)
        self._write_tables()
        sections: list[GroupSection] = []
        for cell in self._collected.cells:
            logger.info("%s %s", cell.model, dict(cell.entities))
            here = of_kind(self._long, cell.entities, cell.model)
            section, notes = write_section(self._config, cell, here, self._people_of(cell))
            sections.append(section)
            self._note(notes)
        self._write_report(sections, self._write_published())

    def _write_tables(self) -> None:
        from bids_fbn.group.tables import LONG, wide_columns, wide_table

        facts = self._facts("Every metric of every participant, run, model and network")
        write_table(self._out / group_table_path("long", {}), self._long, LONG, facts)
        wide = wide_table(self._long)
        columns = wide_columns(wide, self._collected.quality)
        facts = self._facts("Every metric of every run and model, a row for each of these")
        write_table(self._out / group_table_path("wide", {}), wide, columns, facts)

    def _facts(self, description: str) -> dict[str, Any]:
        return {
            "Description": description,
            "Participants": len(self._participants),
            "GeneratedBy": GENERATED_BY,
        }

    # --- what is about all models together

    def _write_published(self) -> list[tuple[str, pd.DataFrame, str]]:
        from bids_fbn.group.published import METHODS, SITES, change_by_site, method_table
        from bids_fbn.group.tables import of_kind

        kinds = {tuple(cell.entities.items()): cell.entities for cell in self._collected.cells}
        shown = []
        sites = self._people[self._asked.combat] if self._asked.combat else None
        for entities in kinds.values():
            here = of_kind(self._long, entities)
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
    ) -> None:
        from bids_fbn.group.methods import paragraphs
        from bids_fbn.reports.group import GroupPage, write_group_report

        page = GroupPage(
            dataset=self._config.bids_dir.name,
            version=__version__,
            sections=sections,
            quality=self._quality_of_runs(),
            people=self._people,
            group_by=self._asked.group_by,
            published=published,
            notes=self.notes,
            methods=paragraphs(self._config, self._collected),
        )
        self.report = write_group_report(self._out, page)

    def _quality_of_runs(self) -> pd.DataFrame:
        """A row for each run."""
        from bids_fbn.bids.filenames import parse_name

        rows = []
        for prefix, table in sorted(self._collected.quality.items()):
            entities = dict(parse_name(Path(f"{prefix}_qc.tsv")).entities)
            name = f"sub-{entities.pop('subject')}"
            entities.pop("desc", None)
            rows.append({"participant_id": name, **entities, **table.data.iloc[0].to_dict()})
        return pd.DataFrame(rows)
