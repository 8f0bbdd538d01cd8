"""Batch scripts for a dataset on a SLURM cluster.

    python -m bids_fbn.slurm BIDS_DIR OUTPUT_DIR --jobs JOBS --image bids_fbn.sif --gpus 1 \\
        -- --model stca ica -- --group-by diagnosis

The first ``--`` is followed by options of the participant level, the second by those of the group
level. All of them are checked here, as the app does before it starts: what is wrong is told now,
not at night. In ``JOBS`` there are then

=======================  ====================================================================
``participants.txt``     a label a line; the line is the number of the task
``participant.sbatch``   the array: one participant for each task
``group.sbatch``         the group level
``submit.sh``            submits both, the second to start when all of the first ended well
``collect.sh``           which tasks failed, why, and the line that repeats only these
``status/``, ``logs/``   what each task has left
=======================  ====================================================================

They are plain shell scripts, to be read and changed.

The work folder of each participant is on a file system that all nodes see, since a task that is
queued again starts on any of them and has to find what it had. With ``--scratch`` the task works
on the node's own disk: it takes the work folder there, and brings it back when it ends unfinished.
What it did since it started is then lost if it is killed without warning (too much memory, a node
that fails); results in ``OUTPUT_DIR`` never are.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from bids_fbn.cli import Parser, parse_arguments, report_faults, with_hyphens
from bids_fbn.config import Config
from bids_fbn.data import read_data
from bids_fbn.environment import prepare_environment
from bids_fbn.errors import FBNError, InputError

__all__ = ["Resources", "main", "write_jobs"]

# Where the administrator has not raised MaxArraySize, tasks are numbered up to 1000.
_MOST_TASKS = 1000


@dataclass(frozen=True)
class Resources:
    """What a task of the array asks SLURM for.

    Parameters
    ----------
    cpus : int
    memory : str
        As ``--mem`` of sbatch has it.
    time : str
        As ``--time`` of sbatch has it.
    gpus : str
        As in ``--gres=gpu:…``: ``"1"``, ``"a100:1"``; empty for none.
    scratch : str
        Folder on the node's own disk; may name a variable, such as ``$SLURM_TMPDIR``. Empty: the
        work folder is used where it is.
    warning : int
        Seconds before the end of the time at which a task has itself queued again.
    requeues : int
        How often, at most.
    most_at_once : int
        Tasks that may run at the same time; 0 for no limit.
    sbatch : tuple of str
        More options of sbatch, one each: ``"--partition=long"``.
    """

    cpus: int = 8
    memory: str = "16G"
    time: str = "24:00:00"
    gpus: str = ""
    scratch: str = ""
    warning: int = 300
    requeues: int = 5
    most_at_once: int = 0
    sbatch: tuple[str, ...] = ()

    def faults(self) -> list[str]:
        """A line for each value that SLURM, or a shell, would not take."""
        patterns = (
            ("--mem", self.memory, r"\d+[KMGT]?", "16G"),
            ("--time", self.time, r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}", "24:00:00"),
            ("--gpus", self.gpus, r"|(\w[\w.-]*:)?\d+", "1 or a100:1"),
            ("--scratch", self.scratch, r"|(\$\{?\w+\}?|/)[\w./${}-]*", "'$SLURM_TMPDIR'"),
        )
        lines = [
            f"{option} {value!r}: not of the form {example}"
            for option, value, pattern, example in patterns
            if not re.fullmatch(pattern, value)
        ]
        lines += [
            f"--sbatch={option}: is one option of sbatch, such as --sbatch=--partition=long"
            for option in self.sbatch
            if not re.fullmatch(r"--?\w[^\n]*", option)
        ]
        # SLURM looks at the clock every half minute, and warns that much early.
        if not lines and self.scheduled_seconds() < self.warning + 60:
            lines.append(
                f"--time {self.time}: leaves nothing before --warning {self.warning}; give more"
            )
        return lines

    def scheduled_seconds(self) -> int:
        """``time`` in s, by the forms of sbatch.

        Examples
        --------
        >>> [Resources(time=t).scheduled_seconds() for t in ("10", "10:30", "2:00:00", "1-12")]
        [600, 630, 7200, 129600]
        """
        days, dash, rest = self.time.rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        if dash or len(parts) == 3:  # hours first
            parts += [0] * (3 - len(parts))
        else:
            parts = [0, *parts, *[0] * (2 - len(parts))]
        hours, minutes, seconds = parts
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def write_jobs(
    jobs: Path,
    bids_dir: Path,
    out: Path,
    *,
    participant_options: Sequence[str] = (),
    group_options: Sequence[str] | None = (),
    resources: Resources | None = None,
    image: Path | None = None,
    command: str = "bids-fbn",
) -> list[str]:
    """Check a call and write its batch scripts.

    Parameters
    ----------
    jobs : Path
        Folder for the scripts; those of an earlier call are replaced, ``status`` and ``logs`` are
        kept.
    bids_dir, out : Path
        As for the app.
    participant_options, group_options : sequence of str
        Options of the app. ``--participant-label`` and ``--work-dir`` of the first count as they
        do there. None: no group job.
    resources : Resources, optional
    image : Path, optional
        Apptainer or Singularity image to run.
    command : str
        What runs the app where there is no image; put into the scripts as it is.

    Returns
    -------
    list of str
        Labels of the participants, in the order of the tasks.

    Raises
    ------
    InputError
        With all faults of the call and of the options.
    """
    resources = resources or Resources()
    jobs, bids_dir, out = (Path(os.path.abspath(path)) for path in (jobs, bids_dir, out))
    faults = resources.faults()
    if image is not None and not image.is_file():
        faults.append(f"{image}: no such image; build it, or leave out --image")
    paths = (jobs, bids_dir, out, Path.cwd(), *((image,) if image else ()))
    if strange := [path for path in paths if re.search(r'[\n"%\\,:]', str(path))]:
        faults += [f'{path}: sbatch or --bind cannot take , : % " in a path' for path in strange]
    _, rest = _taken_out(participant_options)
    config: Config | None = None
    labels: list[str] = []
    try:
        config = _checked(bids_dir, out, participant_options)
        labels = _labels(config)
        if group_options is not None:
            _check_group(bids_dir, out, group_options)
    except InputError as error:
        faults += error.faults
    if len(labels) > _MOST_TASKS:
        print(
            f"warning: {len(labels)} tasks, of which SLURM numbers {_MOST_TASKS} unless "
            "MaxArraySize is raised (scontrol show config); else make several folders of jobs, "
            "each with --participant-label",
            file=sys.stderr,
        )
    if faults or config is None:
        raise InputError(*faults)
    if resources.gpus and config.compute.device == "auto":
        # On a node that lends no GPU after all, days on a CPU would look like work.
        rest = ["--device", "cuda", *rest]
    signals_only = config.run.signals_only
    values = {
        "bids_dir": str(bids_dir),
        "out": str(out),
        "jobs": str(jobs),
        "here": str(Path.cwd()),
        "work": os.path.abspath(config.compute.work_dir),
        "cpus": resources.cpus,
        "memory": resources.memory,
        "time": resources.time,
        "gpus": resources.gpus,
        "gpu_lines": [f"--gres=gpu:{resources.gpus}"] if resources.gpus else [],
        "scratch": resources.scratch,
        "warning": resources.warning,
        "requeues": resources.requeues,
        "most_at_once": resources.most_at_once,
        "sbatch_options": resources.sbatch,
        "image": str(image.absolute()) if image else "",
        "binds": _binds(bids_dir, out, config) if image else [],
        "command": command,
        "options": _as_words(rest),
        "group_options": _as_words(group_options or ()),
        "with_group": group_options is not None and not signals_only,
        "signals_only": signals_only,
        "n_participants": len(labels),
    }
    _write(jobs, labels, values)
    return labels


def _taken_out(options: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options that the scripts give themselves, and all others in their order."""
    own = Parser(add_help=False, allow_abbrev=False)
    own.add_argument("--participant-label", nargs="+")
    own.add_argument("-w", "--work-dir")
    return own.parse_known_args(with_hyphens(options))


def _checked(bids_dir: Path, out: Path, options: Sequence[str]) -> Config:
    config = parse_arguments([str(bids_dir), str(out), "participant", *options])
    if isinstance(config, Path):
        raise InputError("--demo: is no option for a cluster; leave it out")
    return config


def _check_group(bids_dir: Path, out: Path, options: Sequence[str]) -> None:
    config = parse_arguments([str(bids_dir), str(out), "group", *options])
    if isinstance(config, Config) and (idle := config.group.idle()):
        raise InputError(*idle)


def _labels(config: Config) -> list[str]:
    """Participants that the app would take up, good or bad, as for ``--dry-run``."""
    from bids_fbn.request import check

    run = config.run.model_copy(update={"dry_run": True})
    request = check(config.model_copy(update={"run": run}))
    for fault in request.found.faults:
        print(f"warning: will fail: {fault}", file=sys.stderr)
    return request.subjects


def _binds(bids_dir: Path, out: Path, config: Config) -> list[str]:
    """Folders that the container must see, under the names they have outside."""
    named: list[Path] = [
        *config.data.derivatives.values(),
        *config.models.weights,
        *(
            path
            for path in (
                config.data.bids_filter_file,
                config.group.participants_file,
                config.compute.use_plugin,
                Path(config.networks.templates),
            )
            if path is not None and path.exists()
        ),
    ]
    readable = [bids_dir, *(path if path.is_dir() else path.parent for path in named)]
    writable = [out, Path.cwd()]
    if config.data.bids_database_dir is not None:
        writable.append(config.data.bids_database_dir)
    binds = {os.path.abspath(path): ":ro" for path in readable}
    binds |= {os.path.abspath(path): "" for path in writable}
    return [f"{path}:{path}{mode}" for path, mode in sorted(binds.items())]


def _as_words(options: Iterable[str]) -> str:
    return "".join(f" {shlex.quote(option)}" for option in options)


def _write(jobs: Path, labels: Sequence[str], values: dict[str, Any]) -> None:
    scripts = Environment(
        loader=FunctionLoader(read_data),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    scripts.filters["quote"] = shlex.quote
    names = ["participant.sbatch", "submit.sh", "collect.sh"]
    if values["with_group"]:
        names.insert(1, "group.sbatch")
    try:
        for folder in (jobs / "logs", jobs / "status", Path(values["out"])):
            folder.mkdir(parents=True, exist_ok=True)
        (jobs / "participants.txt").write_text("".join(f"{label}\n" for label in labels))
        for name in names:
            text = scripts.get_template(f"slurm-{name}.jinja").render(values)
            (jobs / name).write_text(re.sub(r"\n{3,}", "\n\n", text))
    except OSError as error:
        raise InputError(
            f"{error.filename or jobs}: cannot be written ({error.strerror}); choose another "
            "folder with --jobs"
        ) from None


def build_parser() -> argparse.ArgumentParser:
    """The parser of what stands before the first ``--``."""
    default = Resources()
    parser = Parser(
        prog="python -m bids_fbn.slurm",
        usage="%(prog)s BIDS_DIR OUTPUT_DIR [options] [-- options of the participant level "
        "[-- options of the group level]]",
        description="Write batch scripts for a SLURM cluster: an array with a task for each "
        "participant, and the group level after it.",
        allow_abbrev=False,
    )
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument(
        "--jobs", type=Path, default=Path("slurm"), metavar="DIR", help="for the scripts (./slurm)"
    )
    program = parser.add_mutually_exclusive_group()
    program.add_argument("--image", type=Path, metavar="SIF", help="Apptainer/Singularity image")
    program.add_argument(
        "--command", metavar="WORDS", help="what runs the app (bids-fbn of this Python)"
    )
    parser.add_argument("--cpus", type=int, default=default.cpus, help=f"({default.cpus})")
    parser.add_argument("--mem", default=default.memory, help=f"({default.memory})")
    parser.add_argument("--time", default=default.time, help=f"of a task ({default.time})")
    parser.add_argument("--gpus", default="", metavar="[TYPE:]N", help="for each task (none)")
    parser.add_argument(
        "--scratch",
        default="",
        metavar="DIR",
        help="work on the node's own disk, such as '$SLURM_TMPDIR' or /tmp, and bring back what "
        "is unfinished (work in --work-dir, which all nodes must see)",
    )
    parser.add_argument(
        "--warning",
        type=int,
        default=default.warning,
        metavar="S",
        help="seconds before the end of its time that a task is queued again, to go on from "
        f"there ({default.warning})",
    )
    parser.add_argument(
        "--requeues",
        type=int,
        default=default.requeues,
        metavar="N",
        help=f"so often at most ({default.requeues})",
    )
    parser.add_argument(
        "--at-once", type=int, default=0, metavar="N", help="tasks at the same time (no limit)"
    )
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="of sbatch, for both jobs, one each time: --sbatch=--partition=long",
    )
    parser.add_argument("--no-group", action="store_true", help="no group job")
    return parser


def _parts(arguments: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """What stands before, between and after two ``--``."""
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    part = 0
    for argument in arguments:
        if argument == "--" and part < 2:
            part += 1
        else:
            parts[part].append(argument)
    return parts


def _own_command() -> str:
    """The app of the Python that runs this."""
    beside = Path(sys.executable).with_name("bids-fbn")
    return shlex.quote(str(beside)) if beside.is_file() else "bids-fbn"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    prepare_environment()
    own, of_participants, of_group = _parts(sys.argv[1:] if arguments is None else arguments)
    try:
        asked = build_parser().parse_args(with_hyphens(own))
        if asked.no_group and of_group:
            raise InputError("--no-group: options of the group level are given; leave one out")
        labels = write_jobs(
            asked.jobs,
            asked.bids_dir,
            asked.output_dir,
            participant_options=of_participants,
            group_options=None if asked.no_group else of_group,
            resources=Resources(
                cpus=asked.cpus,
                memory=asked.mem,
                time=asked.time,
                gpus=asked.gpus,
                scratch=asked.scratch,
                warning=asked.warning,
                requeues=asked.requeues,
                most_at_once=asked.at_once,
                sbatch=tuple(asked.sbatch),
            ),
            image=asked.image,
            command=asked.command or _own_command(),
        )
    except FBNError as error:
        return report_faults(error)
    print(f"{len(labels)} tasks; look at {asked.jobs}/participant.sbatch, then: ")
    print(f"  sh {asked.jobs}/submit.sh")
    if shutil.which("sbatch") is None:
        print("(sbatch is not here: submit where it is)", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
