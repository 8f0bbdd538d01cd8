"""The results of all participants in an output dataset, and what is missing among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_fbn.bids.boldrun import PREFIX_ENTITIES
from bids_fbn.bids.filenames import NamedFile, parse_name
from bids_fbn.bids.filters import Filter, apply_filters, option_filters, read_filter_file
from bids_fbn.bids.inputs import participants
from bids_fbn.bids.reading import output_layout
from bids_fbn.config import Config
from bids_fbn.errors import InputError, RunError
from bids_fbn.group.people import listed
from bids_fbn.reports.results import ModelResults, Table, read_model, read_table

__all__ = ["KIND", "Cell", "Collected", "collect", "participant_id"]

# Entities that tell kinds of runs apart. Of a participant's sessions, runs and phase-encoding
# directions of one kind, values are averaged.
KIND = tuple(
    name for name in PREFIX_ENTITIES if name not in ("subject", "session", "direction", "run")
)


@dataclass(frozen=True, eq=False)
class Cell:
    """Results of one model on one kind of run: what may be compared over participants.

    Parameters
    ----------
    model : str
        As in ``desc-``.
    entities : mapping
        What its runs have in common: those of :data:`KIND` that they have.
    results : tuple of ModelResults
        By name of the run. All are of one configuration.
    """

    model: str
    entities: Mapping[str, str]
    results: tuple[ModelResults, ...]

    @property
    def first(self) -> ModelResults:
        """Any of them, for what all have in common."""
        return self.results[0]


@dataclass(frozen=True, eq=False)
class Collected:
    """What the participant level has left.

    Parameters
    ----------
    out : Path
        The output dataset.
    cells : tuple of Cell
    quality : mapping
        Name of the run → its table of quality, one row.
    notes : tuple of str
        Lines on what is missing.
    """

    out: Path
    cells: tuple[Cell, ...]
    quality: Mapping[str, Table]
    notes: tuple[str, ...]


def participant_id(results: ModelResults) -> str:
    """``sub-01``."""
    return f"sub-{results.run.subject}"


def collect(config: Config) -> Collected:
    """Find the results of a dataset that a call asks for.

    A run counts as done when its ``decomposition.json`` is there, which is written last.

    Parameters
    ----------
    config : Config
        Folders, filters, and the models, if any were named.

    Raises
    ------
    InputError
        If there is nothing, a filter matches nothing, or results of one model are of different
        configurations: with the list of who differs.
    """
    out = config.output_dir
    if not out.is_dir():
        raise InputError(
            f"OUTPUT_DIR {out} does not exist; run the participant level first, with this folder"
        )
    kinds = ("decomposition", "qc")
    paths = output_layout(out, kinds).get(
        suffix=list(kinds), return_type="filename", invalid_filters="allow"
    )
    files = [parse_name(Path(path)) for path in sorted(paths)]
    known = sorted({file.entities["subject"] for file in files})
    filters = _filters(config, known)
    done, steps = apply_filters([f for f in files if f.suffix == "decomposition"], filters)
    if not done:
        left = "; ".join(f"{step.label}: {step.left}" for step in steps)
        raise InputError(
            f"OUTPUT_DIR {out}: no results"
            + (f" left ({left})" if left else "")
            + "; run the participant level first"
        )
    models = _models(config, done)
    of_quality = [f for f in files if (f.suffix, f.extension) == ("qc", ".tsv")]
    qualities, _ = apply_filters(of_quality, filters)
    notes = [*_missing(config, known), *_incomplete(done, qualities, models)]
    results, faults = _read(out, [f for f in done if f.entities["desc"] in models], config)
    notes += faults
    if not results:
        raise InputError(f"OUTPUT_DIR {out}: no results that can be used", *notes)
    _check_alike(out, results)
    quality, faults = _quality(qualities)
    return Collected(out, tuple(_cells(results)), quality, (*notes, *faults))


def _filters(config: Config, known: Sequence[str]) -> tuple[Filter, ...]:
    data = config.data
    unknown = sorted(set(data.participant_label) - set(known))
    if unknown:
        raise InputError(
            f"--participant-label {' '.join(unknown)}: no results in {config.output_dir}, which "
            f"has those of {listed(known)}"
        )
    asked = Filter("--participant-label", "subject", tuple(data.participant_label))
    return (
        *((asked,) if data.participant_label else ()),
        *option_filters(data),
        *(read_filter_file(data.bids_filter_file) if data.bids_filter_file else ()),
    )


def _models(config: Config, done: Sequence[NamedFile]) -> list[str]:
    """Labels of the models that were named, else of all that there are."""
    there = sorted({file.entities["desc"] for file in done})
    if "model" not in config.models.model_fields_set:
        return there
    asked = [name.replace("-", "") for name in config.models.model]
    lacking = [name for name in asked if name not in there]
    if lacking:
        raise InputError(
            f"--model {' '.join(lacking)}: no results in {config.output_dir}, which has those of "
            f"{', '.join(there)}"
        )
    return asked


def _missing(config: Config, known: Sequence[str]) -> list[str]:
    """Participants of the input without any result."""
    if not config.bids_dir.is_dir():
        return []
    asked = config.data.participant_label
    expected = [label for label in participants(config.bids_dir) if not asked or label in asked]
    missing = sorted(set(expected) - set(known))
    if not missing:
        return []
    return [
        f"{listed([f'sub-{label}' for label in missing])}: in {config.bids_dir}, but without "
        "results; run the participant level for them"
    ]


def _incomplete(
    done: Sequence[NamedFile], qualities: Sequence[NamedFile], models: Sequence[str]
) -> list[str]:
    """Runs of which some models are not finished."""
    has: dict[str, set[str]] = {_run_name(file): set() for file in (*qualities, *done)}
    for file in done:
        has[_run_name(file)].add(file.entities["desc"])
    lines = []
    for model in models:
        lacking = [run for run, finished in sorted(has.items()) if model not in finished]
        if lacking:
            lines.append(
                f"{listed(lacking)}: no finished results of {model} (still being computed, or "
                "failed); left out for it"
            )
    return lines


def _run_name(file: NamedFile) -> str:
    return file.path.name.partition("_desc-")[0]


def _read(
    out: Path, files: Sequence[NamedFile], config: Config
) -> tuple[list[ModelResults], list[str]]:
    space = (config.data.space or "").partition(":")[0]
    results, faults = [], []
    for file in files:
        try:
            found = read_model(out, file.path)
        except RunError as error:
            faults.append(f"{error}; left out")
            continue
        if not space or found.run.space == space:
            results.append(found)
    return results, faults


def _check_alike(out: Path, results: Sequence[ModelResults]) -> None:
    """One configuration for each model."""
    faults = []
    by_model: dict[str, dict[str, list[str]]] = {}
    for found in results:
        config_hash = str(found.facts.get("ConfigurationHash", "unknown"))
        by_model.setdefault(found.label, {}).setdefault(config_hash, []).append(found.run.prefix)
    for model, hashes in by_model.items():
        if len(hashes) > 1:
            # The others differ from what most have.
            groups = sorted(hashes.items(), key=lambda item: (-len(item[1]), item[0]))
            shown = "; ".join(f"{key}: {listed(sorted(runs))}" for key, runs in groups)
            faults.append(
                f"OUTPUT_DIR {out}: results of {model} are of {len(hashes)} configurations, which "
                f"cannot be compared: {shown}. sub-*/log has the options of each; compute the "
                "fewer again with the others' (--overwrite), or leave them out with "
                "--participant-label or --bids-filter-file"
            )
    if faults:
        raise InputError(*faults)


def _cells(results: Sequence[ModelResults]) -> Iterator[Cell]:
    alike: dict[tuple[str, tuple[tuple[str, str], ...]], list[ModelResults]] = {}
    for found in results:
        shared = tuple((k, v) for k, v in found.run.entities.items() if k in KIND)
        alike.setdefault((found.label, shared), []).append(found)
    for (model, shared), of_cell in sorted(alike.items()):
        of_cell.sort(key=lambda found: found.run.prefix)
        yield Cell(model, dict(shared), tuple(of_cell))


def _quality(files: Sequence[NamedFile]) -> tuple[dict[str, Table], list[str]]:
    tables, faults = {}, []
    for file in files:
        try:
            tables[_run_name(file)] = read_table(file.path)
        except RunError as error:
            faults.append(f"{error}; its quality is not known")
    return tables, faults
