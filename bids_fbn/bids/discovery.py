"""From what was asked to the runs that will be analysed.

BOLD files are found by pybids (:mod:`~bids_fbn.bids.inputs`), chosen by the user's filters
(:mod:`~bids_fbn.bids.filters`) and by space (:mod:`~bids_fbn.bids.spaces`), and each is checked
and joined with its companion files (:mod:`~bids_fbn.bids.runfiles`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import pandas as pd

from bids_fbn.bids.boldrun import BoldRun
from bids_fbn.bids.filenames import Folders, NamedFile
from bids_fbn.bids.filters import (
    PREPROCESSED,
    Filter,
    Step,
    apply_filters,
    describe,
    option_filters,
    read_filter_file,
)
from bids_fbn.bids.inputs import (
    Dataset,
    Inputs,
    find_bold,
    find_inputs,
    has_old_names,
    participants,
)
from bids_fbn.bids.runfiles import (
    BoldHeader,
    brain_mask,
    check_content,
    confounds_table,
    events_table,
    read_bold_header,
    repetition_time,
    voxel_size,
)
from bids_fbn.bids.spaces import Space, SpaceRequest, choose_space, parse_space, space_of
from bids_fbn.config import Config
from bids_fbn.errors import FBNError, InputError

__all__ = ["Discovery", "RunFault", "discover", "runs_table"]

# More lines than this hide the first ones, which tell as much.
MOST_LINES = 20

Result = TypeVar("Result")


@dataclass(frozen=True)
class RunFault:
    """Something wrong with one run, known before it is read; the other runs go on.

    Parameters
    ----------
    prefix : str
        The run, as in :attr:`BoldRun.prefix`; a participant that was asked for by label and
        has no run left stands here as ``sub-…``.
    message : str
        One line: what, in which file, and what to do.
    """

    prefix: str
    message: str

    def __str__(self) -> str:
        return f"{self.prefix}: {self.message}"


@dataclass(frozen=True)
class Discovery:
    """The runs to analyse and what is wrong with others, both sorted by name."""

    runs: tuple[BoldRun, ...]
    faults: tuple[RunFault, ...]


@dataclass(frozen=True)
class _Candidate:
    """A BOLD file and the dataset that it is in."""

    file: NamedFile
    dataset: Dataset

    @property
    def prefix(self) -> str:
        return _as_run(self.file).prefix


def discover(config: Config) -> Discovery:
    """Find the runs that a call asks for.

    Parameters
    ----------
    config : Config
        The call.

    Returns
    -------
    Discovery
        At least one run.

    Raises
    ------
    InputError
        If the request is wrong, one line for each fault, or if no run can be analysed.
    """
    request = _Request(config)
    candidates, space = request.choose()
    faults = request.participant_faults(candidates)

    folders = Folders()
    runs: list[BoldRun] = []
    by_run: dict[str, list[_Candidate]] = {}
    for candidate in candidates:
        by_run.setdefault(candidate.prefix, []).append(candidate)
    for prefix, files in by_run.items():
        chosen = [candidate for candidate in files if space_of(candidate.file) == space]
        wrong = _choice_faults(files, chosen, space)
        if not wrong:
            run, wrong = _examine(chosen[0], request.inputs.raw, config, folders)
            if run is not None:
                runs.append(run)
        faults += [RunFault(prefix, message) for message in wrong]
    faults.sort(key=lambda fault: fault.prefix)
    if not runs:
        raise InputError(*_nothing_left(faults))
    return Discovery(tuple(sorted(runs, key=lambda run: run.prefix)), tuple(faults))


class _Request:
    """What was asked, checked against what is there; faults are gathered, not raised."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.faults: list[str] = []
        inputs = self._attempt(partial(find_inputs, config))
        file = config.data.bids_filter_file
        self.filters: tuple[Filter, ...] = (
            PREPROCESSED,
            *option_filters(config.data),
            *((self._attempt(lambda: read_filter_file(file)) or ()) if file else ()),
        )
        text = config.data.space
        self.space_request: SpaceRequest | None = (
            self._attempt(lambda: parse_space(text)) if text else None
        )
        if inputs is None:
            raise InputError(*self.faults)
        self.inputs: Inputs = inputs
        self.files: list[NamedFile] = []

    def _attempt(self, action: Callable[[], Result]) -> Result | None:
        try:
            return action()
        except InputError as error:
            self.faults.extend(error.faults)
            return None

    def choose(self) -> tuple[list[_Candidate], Space]:
        """BOLD files that pass all filters, of every space, and the space to take them in.

        Raises
        ------
        InputError
            With all faults of the request.
        """
        readable = not self.faults
        labels = self._labels()
        found: dict[Path, _Candidate] = {}
        for dataset in self.inputs.bold:
            where = self.config.data.bids_database_dir
            if where is not None and dataset.name:
                where = where / dataset.name
            files = self._attempt(partial(find_bold, dataset, labels, where))
            readable &= files is not None
            found |= {file.path: _Candidate(file, dataset) for file in files or []}
        self.files = [candidate.file for candidate in found.values()]
        left, steps = apply_filters(self.files, self.filters)
        space = None
        # Where a filter, --space or an index could not be read, what follows says nothing.
        if left and readable:
            resolution = self.config.signal.resolution
            request = self.space_request
            space = self._attempt(lambda: choose_space(left, request, resolution, voxel_size))
        elif labels and readable:
            self.faults.append(self._nothing_matches(labels, steps))
        if self.faults or space is None:
            raise InputError(*self.faults)
        return [found[file.path] for file in left], space

    def participant_faults(self, candidates: Sequence[_Candidate]) -> list[RunFault]:
        """Participants that were asked for by label, of whom no file is left."""
        there = {candidate.file.entities["subject"] for candidate in candidates}
        faults = []
        for label in dict.fromkeys(self.config.data.participant_label):
            if label not in there:
                files = [file for file in self.files if file.entities["subject"] == label]
                _, steps = apply_filters(files, self.filters)
                faults.append(
                    RunFault(
                        f"sub-{label}",
                        f"no BOLD is left: files: "
                        f"{' → '.join([str(len(files)), *describe(steps)])}",
                    )
                )
        return faults

    def _nothing_matches(self, labels: Sequence[str], steps: Sequence[Step]) -> str:
        if not self.files and any(has_old_names(dataset.root) for dataset in self.inputs.bold):
            return (
                f"{self._places()}: has the file names of fMRIPrep before 1.2 "
                "(…_bold_space-…_preproc.nii.gz); rename them to "
                "…_space-…_desc-preproc_bold.nii.gz, or run a newer fMRIPrep"
            )
        return (
            f"no BOLD is left: files of {_count(len(labels), 'participant')} in "
            f"{self._places()}: {' → '.join([str(len(self.files)), *describe(steps)])}"
        )

    def _labels(self) -> list[str]:
        """The participants asked for that are there; all of them where none was named."""
        known: set[str] = set()
        for dataset in self.inputs.bold:
            known |= set(self._attempt(partial(participants, dataset.root)) or [])
        if not known:
            self.faults.append(f"no participant (folder sub-…) in {self._places()}")
        asked = dict.fromkeys(self.config.data.participant_label)
        unknown = [label for label in asked if label not in known]
        if known and unknown:
            self.faults.append(
                f"--participant-label {' '.join(unknown)}: not in {self._places()}; "
                f"there {'are' if len(known) > 1 else 'is'} {_abbreviated(sorted(known))}"
            )
        return [label for label in asked if label in known] if asked else sorted(known)

    def _places(self) -> str:
        return ", ".join(str(dataset.root) for dataset in self.inputs.bold)


def _choice_faults(
    files: Sequence[_Candidate], chosen: Sequence[_Candidate], space: Space
) -> list[str]:
    """Why a run does not have exactly one proper file in the space."""
    if not chosen:
        others = sorted({str(space_of(candidate.file)) or "native" for candidate in files})
        return [
            f"{files[0].file.path.parent}: not there in space {space}, only in "
            f"{', '.join(others)}; run fMRIPrep again with --output-spaces {space}"
        ]
    if len(chosen) > 1:
        paths = " and ".join(str(candidate.file.path) for candidate in chosen)
        return [f"{paths} are the same run; remove one or choose with --bids-filter-file"]
    path = chosen[0].file.path
    entities = chosen[0].file.entities
    if "task" not in entities:
        return [f"{path}: no task- in its name; rename it as BIDS has it (…_task-rest_…)"]
    if path.relative_to(chosen[0].dataset.root).parts[0] != f"sub-{entities['subject']}":
        return [f"{path}: lies in the folder of another participant; move or rename it"]
    return []


def _examine(
    candidate: _Candidate, raw: Path | None, config: Config, folders: Folders
) -> tuple[BoldRun | None, list[str]]:
    """Read what is known of a run; all that is wrong with it."""
    file, dataset = candidate.file, candidate.dataset
    messages: list[str] = []

    def attempt(action: Callable[[], Result]) -> Result | None:
        try:
            return action()
        except FBNError as error:
            messages.append(str(error))
        except OSError as error:
            messages.append(f"{error.filename}: cannot be read ({error.strerror})")
        return None

    header: BoldHeader | None = attempt(lambda: read_bold_header(file.path))
    time = attempt(lambda: repetition_time(file, dataset.root, raw, folders, header))
    mask = attempt(lambda: brain_mask(file, folders))
    confounds, metadata = attempt(lambda: confounds_table(file, folders)) or (None, None)
    events = attempt(lambda: events_table(file, dataset.root, raw, folders))
    if mask is not None:
        attempt(lambda: check_content(mask))
    if _needs_confounds(config):
        if confounds is not None:
            attempt(lambda: check_content(confounds))
        else:
            messages.append(_no_confounds(file, config))
    if messages or header is None or time is None:
        return None, messages
    run = BoldRun(
        entities=file.entities,
        bold=file.path,
        repetition_time=time,
        space=file.entities["space"],
        n_volumes=header.n_volumes,
        mask=mask,
        confounds=confounds,
        confounds_metadata=metadata,
        events=events,
        bids_uri=dataset.uri(file.path),
    )
    return run, []


def _needs_confounds(config: Config) -> bool:
    return config.signal.nuisance != ("none",) or config.signal.fd_thresh is not None


def _no_confounds(file: NamedFile, config: Config) -> str:
    options = []
    if config.signal.nuisance != ("none",):
        options.append("--nuisance none")
    if config.signal.fd_thresh is not None:
        options.append("no --fd-thresh")
    return (
        f"{file.path.parent / _as_run(file).prefix}_desc-confounds_timeseries.tsv: not there, nor "
        f"…_desc-confounds_regressors.tsv, …_bold_confounds.tsv; add it, or use "
        f"{' and '.join(options)}"
    )


def _as_run(file: NamedFile) -> BoldRun:
    """For its name only: nothing else of the run is known yet."""
    return BoldRun(file.entities, file.path, repetition_time=0.0, space="", n_volumes=0)


def _nothing_left(faults: Sequence[RunFault]) -> list[str]:
    """One line for each fault; one for all runs that have the same."""
    alike: dict[str, list[RunFault]] = {}
    for fault in faults:
        alike.setdefault(_without_labels(fault), []).append(fault)
    lines = []
    for first, *others in alike.values():
        names = _abbreviated([fault.prefix for fault in others], 3)
        lines.append(f"{first} (likewise {names})" if others else str(first))
    more = len(lines) - MOST_LINES
    if more > 0:
        lines = [*lines[:MOST_LINES], f"… and {_count(more, 'more fault')}"]
    return ["no run can be analysed:", *lines]


def _without_labels(fault: RunFault) -> str:
    """The message without the labels of its run: what is wrong, not where."""
    message = fault.message
    for part in fault.prefix.split("_"):
        message = message.replace(part, part.partition("-")[0])
    return message


def _abbreviated(names: Sequence[str], limit: int = 10) -> str:
    if len(names) <= limit:
        return ", ".join(names)
    return f"{', '.join(names[:limit])}, … ({len(names)} in all)"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def runs_table(runs: Sequence[BoldRun]) -> pd.DataFrame:
    """What would run, one row for each run, for ``--dry-run``.

    Parameters
    ----------
    runs : sequence of BoldRun
        The runs.

    Returns
    -------
    pandas.DataFrame
        Columns ``run``, ``bold``, ``mask``, ``confounds`` (files, ``n/a`` where there is none),
        ``repetition_time`` (s), ``volumes``, ``space``.
    """
    rows: list[Mapping[str, object]] = [
        {
            "run": run.prefix,
            "bold": str(run.bold),
            "mask": str(run.mask or "n/a"),
            "confounds": str(run.confounds or "n/a"),
            "repetition_time": run.repetition_time,
            "volumes": run.n_volumes,
            "space": run.space,
        }
        for run in runs
    ]
    columns = ["run", "bold", "mask", "confounds", "repetition_time", "volumes", "space"]
    return pd.DataFrame(rows, columns=columns)
