"""The command line: ``run.py BIDS_DIR OUTPUT_DIR participant [options]``.

Options are spelled as in fMRIPrep and XCP-D where those have them. Nothing heavy is imported
before the arguments are known to be right.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bids_fbn import __version__
from bids_fbn.config import MODELS, NUISANCE_COMPONENTS, NUISANCE_PRESETS, Config
from bids_fbn.errors import FBNError, InputError

__all__ = [
    "Parser",
    "add_device_options",
    "add_recipe_options",
    "main",
    "parse_arguments",
    "report_faults",
    "with_hyphens",
]

_EPILOG = """\
examples:
  run.py /data/fmriprep /out participant --dry-run
  run.py /data/fmriprep /out participant --participant-label 01 --model stca scaae -w /tmp/work
  run.py --demo demo/input        (makes a small dataset with known networks to try things on)

other commands, each with a --help of its own:
  python -m bids_fbn.slurm        batch scripts for a cluster
  python -m bids_fbn.train        one model for many participants
  python -m bids_fbn.reliability  repeated runs of the same participants
  python -m bids_fbn.evaluate     methods on simulated data
  python -m bids_fbn.simulate     a dataset with known networks

exit codes: 0 all was written; 1 a run failed, the others are done; 2 the command line or an
input is wrong, nothing was started.
"""


class Parser(argparse.ArgumentParser):
    """argparse, with its complaints in the form of all our others."""

    def error(self, message: str) -> Any:
        raise InputError(f"{message} (see --help)")


def _memory_mb(text: str) -> float:
    """``8GB``, ``8000`` (MB) → GB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a memory size such as 8000 or 8GB")
    factor = {"K": 1e-6, "": 1e-3, "M": 1e-3, "G": 1.0, "T": 1e3}[match[2].upper()]
    return float(match[1]) * factor


def _named_path(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not separator:  # fMRIPrep takes a bare path as well
        name, path = Path(text).name, text
    return re.sub(r"[^0-9a-zA-Z]", "", name) or "derivatives", Path(path)


def _support(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _dummy_scans(text: str) -> str | int:
    return int(text) if text.isdigit() else text


def build_parser() -> argparse.ArgumentParser:
    """The parser; what is not given stays absent, so that a configuration file can give it."""
    parser = Parser(
        prog="run.py",
        description="Functional brain networks in preprocessed fMRI, and how they come and go.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "bids_dir", nargs="?", type=Path, help="derivatives dataset (fMRIPrep's), or a raw one"
    )
    parser.add_argument("output_dir", nargs="?", type=Path, help="folder for the results")
    # argparse holds a suppressed default against the choices: the level is checked with the rest.
    parser.add_argument(
        "analysis_level",
        nargs="?",
        metavar="{participant,group}",
        help="each participant, or all that are done together",
    )
    parser.add_argument("--version", action="version", version=f"bids_fbn {__version__}")
    _add_data_options(parser.add_argument_group("which data"))
    _add_signal_options(parser.add_argument_group("signal"))
    _add_network_options(parser.add_argument_group("networks"))
    _add_null_options(parser.add_argument_group("what results are held against"))
    _add_group_options(parser.add_argument_group("group level"))
    _add_compute_options(parser.add_argument_group("compute"))
    _add_run_options(parser.add_argument_group("how it goes"))
    parser.add_argument_group("trying out").add_argument(
        "--demo", type=Path, metavar="OUT", help="make a small simulated dataset in OUT and stop"
    )
    return parser


def _add_data_options(group: Any) -> None:
    labels: dict[str, Any] = {"nargs": "+", "metavar": "LABEL"}
    group.add_argument("--participant-label", **labels, help="with or without sub-")
    group.add_argument("--session-id", "--session-label", **labels, dest="session_id")
    group.add_argument("-t", "--task-id", "--task-label", **labels, dest="task_id")
    group.add_argument("--run-id", "--run-label", **labels, dest="run_id")
    group.add_argument(
        "--space", metavar="NAME[:res-LABEL]", help="standard space of the input to take"
    )
    group.add_argument(
        "--bids-filter-file",
        type=Path,
        metavar="JSON",
        help="entity filters under the key bold; null = none, * = any",
    )
    group.add_argument(
        "-d",
        "--derivatives",
        nargs="+",
        type=_named_path,
        metavar="NAME=PATH",
        help="derivatives to take the BOLD from, where BIDS_DIR is a raw dataset",
    )
    group.add_argument(
        "--bids-database-dir",
        type=Path,
        metavar="DIR",
        help="keep the index of all participants there, and use the one that is",
    )
    group.add_argument(
        "--skip-bids-validation",
        action="store_true",
        help="go on without a dataset_description.json",
    )


def _add_signal_options(group: Any) -> None:
    group.add_argument(
        "--resolution", type=float, metavar="MM", help="voxel size of the analysis grid (4)"
    )
    group.add_argument("--smoothing", type=float, metavar="MM", help="FWHM, 0 for none (6)")
    group.add_argument(
        "--nuisance",
        nargs="+",
        metavar="NAME",
        help=f"what is regressed out: {', '.join(NUISANCE_PRESETS)} (a strategy of nilearn), or "
        f"any of {', '.join(NUISANCE_COMPONENTS)}, or none (simple)",
    )
    group.add_argument(
        "--motion",
        choices=["basic", "derivatives", "power2", "full"],
        help="form of the motion regressors (full)",
    )
    group.add_argument(
        "--fd-thresh",
        type=float,
        metavar="MM",
        help="leave out volumes of a larger framewise displacement (none are)",
    )
    group.add_argument("--lower-bpf", type=float, metavar="HZ", help="lower edge of a pass band")
    group.add_argument("--upper-bpf", type=float, metavar="HZ", help="upper edge of a pass band")
    group.add_argument(
        "--dummy-scans",
        type=_dummy_scans,
        metavar="N|auto",
        help="volumes to leave out at the start; auto: those the confounds name (auto)",
    )
    group.add_argument(
        "--min-time",
        type=float,
        metavar="S",
        help="skip runs of which less is left (240)",
    )


def _add_network_options(group: Any) -> None:
    group.add_argument(
        "--model", nargs="+", metavar="NAME", help=f"any of {', '.join(MODELS)} (dualregression)"
    )
    group.add_argument(
        "--weights",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="apply these trained models (.safetensors, one for each model) instead of training",
    )
    add_recipe_options(group)
    group.add_argument("--stride", type=int, metavar="N", help="volumes from step to step (1)")
    group.add_argument(
        "--state-threshold",
        type=float,
        metavar="IOU",
        help="IoU of a state, at least (0.3)",
    )
    group.add_argument(
        "--state-certainty",
        type=float,
        metavar="P",
        help="of models that are told of their networks, whose states are by amplitude: how "
        "probable it must be that the largest is the largest (0.5)",
    )
    group.add_argument(
        "--support",
        type=_support,
        metavar="size-matched|Z",
        help="voxels of a map that count: as many as in the template, or those over z (by preset)",
    )
    group.add_argument(
        "--candidates",
        choices=["fbn", "channels"],
        help="of SCAAE: its two networks of each volume, or all its channel maps (fbn)",
    )
    group.add_argument(
        "--save-dynamic-maps", action="store_true", help="write the maps of every time step"
    )
    group.add_argument("--save-denoised", action="store_true", help="write the cleaned signal")


def _add_null_options(group: Any) -> None:
    group.add_argument(
        "--n-surrogates",
        type=int,
        metavar="N",
        help="surrogates of each run, to which the model is applied as to the run: takes most of "
        "the time; 0 leaves networks and change without a p, 39 is the least for 0.05 (39)",
    )
    group.add_argument(
        "--surrogates",
        choices=["phase", "var"],
        help="static runs, by random phases or by a Gaussian autoregressive model (phase)",
    )
    group.add_argument(
        "--refit-surrogates",
        action="store_true",
        help="train models on every surrogate and half anew, not only the classical methods",
    )
    group.add_argument(
        "--n-surrogate-maps",
        type=int,
        metavar="N",
        help="turns of the templates, half of them mirrored, or sets of random maps, that the "
        "search is repeated with (1000)",
    )
    group.add_argument(
        "--surrogate-maps",
        choices=["turned", "fields"],
        help="hold a search against the templates turned elsewhere in the brain, or against "
        "random maps as smooth, by which networks stand in the wrong place too (turned)",
    )
    group.add_argument(
        "--budget",
        type=int,
        metavar="N",
        help="maps with which every method is searched for the templates (20)",
    )


def _add_group_options(group: Any) -> None:
    group.add_argument(
        "--group-by", metavar="COLUMN", help="column of participants.tsv whose groups are compared"
    )
    group.add_argument(
        "--covariates",
        nargs="+",
        metavar="COLUMN",
        help="columns of participants.tsv, or measures of quality such as fd_mean: each is "
        "tested, and taken out of all other tests",
    )
    group.add_argument(
        "--participants-file",
        type=Path,
        metavar="TSV",
        help="(participants.tsv of BIDS_DIR)",
    )
    group.add_argument(
        "--correction",
        choices=["max", "fdr"],
        help="over the networks of a metric: by the maximum, or false discovery rate (max)",
    )
    group.add_argument("--n-permutations", type=int, metavar="N", help="(5000)")
    group.add_argument(
        "--n-bootstrap", type=int, metavar="N", help="resampled groups for intervals (2000)"
    )
    group.add_argument(
        "--combat",
        metavar="COLUMN",
        help="column of the sites or scanners, whose effects ComBat takes out of what is tested",
    )
    group.add_argument(
        "--combat-fit-on",
        metavar="LEVEL",
        help="group of --group-by from which ComBat learns the sites (all participants)",
    )
    group.add_argument(
        "--train",
        action="store_true",
        help="train the one --model on all cleaned runs in the work folder, for --weights",
    )
    group.add_argument(
        "--held-out",
        type=float,
        metavar="SHARE",
        help="of the participants: never trained on; what scores are reported for (0.2)",
    )


def add_recipe_options(group: Any) -> None:
    """Options on what is trained, and on what; for training alone too."""
    group.add_argument(
        "--preset",
        choices=["corrected", "as-published"],
        help="the models mended, or as the papers have them, faults included (corrected)",
    )
    group.add_argument(
        "--templates",
        metavar="SET",
        help="smith2009, seitzman2018 (needs no download), or a 4-D NIfTI with a TSV of names "
        "beside it (smith2009)",
    )
    group.add_argument(
        "--target-networks",
        nargs="+",
        metavar="NAME",
        help="networks of the templates that ST-CNN learns to map (all)",
    )
    group.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="volumes in a window (40; pca, ica and sdl take the whole run at once)",
    )
    group.add_argument(
        "--channels",
        type=int,
        metavar="N",
        help="maps, components or states of a model (by recipe)",
    )
    group.add_argument(
        "--components",
        type=int,
        metavar="K",
        help="start UDR from K components of a group ICA of the runs that it is trained on (it "
        "starts from the templates)",
    )
    group.add_argument("--epochs", type=int, metavar="N", help="training epochs (by recipe)")
    group.add_argument(
        "--batch", type=int, metavar="N", help="windows in a training step (by recipe)"
    )
    group.add_argument(
        "--training-stride",
        type=int,
        metavar="N",
        help="volumes from one training window to the next (by recipe)",
    )
    group.add_argument("--sloppy", action="store_true", help="tiny models, for trying things out")


def add_device_options(group: Any) -> None:
    """Options on what it is computed with; for training alone too."""
    group.add_argument(
        "--device", metavar="auto|cpu|cuda[:N]", help="auto takes GPUs if it sees any (auto)"
    )
    group.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16"],
        help="auto takes bf16 where the processor computes with it (auto)",
    )
    group.add_argument(
        "--omp-nthreads", type=int, metavar="N", help="threads of one computation (at most 8)"
    )
    group.add_argument("--random-seed", type=int, metavar="N", help="(0)")


def _add_compute_options(group: Any) -> None:
    add_device_options(group)
    group.add_argument(
        "--nprocs",
        "--nthreads",
        "--n-cpus",
        type=int,
        dest="nprocs",
        metavar="N",
        help="processors to use (what the control group or SLURM gives)",
    )
    group.add_argument(
        "--mem",
        "--mem-mb",
        type=_memory_mb,
        dest="mem_gb",
        metavar="MB",
        help="memory to plan with; also 8GB (what the control group or SLURM gives)",
    )
    group.add_argument(
        "--use-plugin", type=Path, metavar="FILE", help="nipype plugin settings, YAML"
    )
    group.add_argument("-w", "--work-dir", type=Path, metavar="DIR", help="(./work)")


def _add_run_options(group: Any) -> None:
    group.add_argument("--config-file", type=Path, metavar="TOML", help="settings; options win")
    group.add_argument(
        "--dry-run", action="store_true", help="say what would run and be written, and stop"
    )
    group.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        help="take up what the work folder holds (yes)",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="make results again that are there already"
    )
    group.add_argument("--stop-on-first-crash", action="store_true")
    group.add_argument(
        "--reports-only", action="store_true", help="write the reports from results that are there"
    )
    group.add_argument(
        "--boilerplate-only", action="store_true", help="write the methods text and stop"
    )
    group.add_argument(
        "--write-graph", action="store_true", help="draw the workflow (needs graphviz)"
    )
    group.add_argument(
        "--signals-only",
        action="store_true",
        help="clean the runs and stop: for python -m bids_fbn.train, which trains on all of them",
    )
    group.add_argument("-v", "--verbose", action="count", help="more messages")
    group.add_argument("--notrack", action="store_true", help="accepted; nothing is ever tracked")


def with_hyphens(arguments: Sequence[str]) -> list[str]:
    """``--participant_label`` → ``--participant-label``; values are left alone."""

    def respell(argument: str) -> str:
        if not argument.startswith("--"):
            return argument
        name, equals, value = argument.partition("=")
        return name.replace("_", "-") + equals + value

    return [respell(argument) for argument in arguments]


def parse_arguments(arguments: Sequence[str]) -> Config | Path:
    """Command line → Config; the folder to make for ``--demo``.

    Raises
    ------
    InputError
        With all faults that can be told from the command line alone.
    """
    options = vars(build_parser().parse_args(with_hyphens(arguments)))
    if "demo" in options:
        demo: Path = options["demo"]
        return demo
    options.pop("notrack", None)
    config_file = options.pop("config_file", None)
    if "derivatives" in options:
        options["derivatives"] = dict(options["derivatives"])
    if config_file is None:
        missing = [
            name for name in ("bids_dir", "output_dir", "analysis_level") if name not in options
        ]
        if missing:
            raise InputError(
                f"{', '.join(name.upper() for name in missing)} missing: "
                "run.py BIDS_DIR OUTPUT_DIR {participant,group} [options] (see --help)"
            )
    for name in ("bids_dir", "output_dir", "work_dir"):
        if name in options:
            options[name] = options[name].expanduser().resolve()
    return Config.from_options(options, config_file)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        build_parser().print_help()
        return 2
    try:
        asked = parse_arguments(arguments)
        if isinstance(asked, Path):
            return _make_demo(asked)
        if asked.analysis_level == "group":
            from bids_fbn.group.level import run_group_level

            return run_group_level(asked)
        from bids_fbn.participant import run_participant_level

        return run_participant_level(asked)
    except (FBNError, KeyboardInterrupt) as error:
        return report_faults(error)


def report_faults(error: FBNError | KeyboardInterrupt) -> int:
    """Say why a command ends; returns its exit code."""
    if isinstance(error, KeyboardInterrupt):
        print("interrupted; call again to go on from here", file=sys.stderr)
        return 130
    for fault in error.faults if isinstance(error, InputError) else (error,):
        print(f"error: {fault}", file=sys.stderr)
    return 2 if isinstance(error, InputError) else 1


def _make_demo(out: Path) -> int:
    from bids_fbn.simulate import simulate_dataset

    simulate_dataset(out)
    print(
        f"a simulated dataset is in {out}; try:\n"
        f"  run.py {out} {out}-out participant --sloppy --templates seitzman2018 --resolution 8"
    )
    return 0
