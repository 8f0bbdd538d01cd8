"""Train one model on the runs of many participants.

    python -m bids_fbn.train WORK_DIR OUT.safetensors --model scaae [options]

``WORK_DIR`` is where ``run.py … participant --signals-only -w WORK_DIR`` left the cleaned runs.
The weights are for ``run.py … participant --weights OUT.safetensors``. Started by ``torchrun`` or
SLURM's ``srun``, all processes train the model together, each on a device of its own.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bids_fbn import __version__, logs
from bids_fbn.cli import (
    Parser,
    add_device_options,
    add_recipe_options,
    report_faults,
    with_hyphens,
)
from bids_fbn.config import BASELINES, MODELS, TRAINED, Config
from bids_fbn.environment import prepare_environment
from bids_fbn.errors import FBNError, InputError
from bids_fbn.resources import Processes, available_processors, launched_processes

if TYPE_CHECKING:
    from bids_fbn.models.base import Model
    from bids_fbn.models.compute import Compute
    from bids_fbn.signal.signals import Signals

__all__ = ["fit_shared", "main", "signals_below"]

# Not by __name__: that is __main__ for the command, which nothing listens to.
logger = logging.getLogger("bids_fbn.train")


def build_parser() -> argparse.ArgumentParser:
    """The parser; what is not given stays absent, so that the recipe decides."""
    parser = Parser(
        prog="python -m bids_fbn.train",
        description="Train one model on the runs of many participants, for run.py --weights.",
        epilog=(
            "several GPUs: torchrun --standalone --nproc-per-node=4 -m bids_fbn.train …\n"
            "several nodes: srun --nodes=2 --ntasks-per-node=4 python -m bids_fbn.train …\n"
            "The batch is that of one process. A training that was killed goes on when it is "
            "called again."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "signals", nargs="+", type=Path, help="work folders with cleaned runs (--signals-only)"
    )
    parser.add_argument("weights", type=Path, help="file to write, *.safetensors")
    parser.add_argument("--version", action="version", version=f"bids_fbn {__version__}")
    model = parser.add_argument_group("model")
    model.add_argument("--model", required=True, metavar="NAME", help=", ".join(MODELS))
    add_recipe_options(model)
    training = parser.add_argument_group("training")
    training.add_argument(
        "--validation",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the participants: held out, to keep the epoch that does best on them (0)",
    )
    training.add_argument(
        "--patience",
        type=int,
        default=None,
        metavar="N",
        help="end after N epochs without a better loss on the participants held out (never)",
    )
    training.add_argument(
        "--accumulate",
        type=int,
        default=1,
        metavar="N",
        help="compute a batch in N parts, where memory is short (1)",
    )
    add_device_options(parser.add_argument_group("compute"))
    parser.add_argument("-v", "--verbose", action="count", default=0, help="more messages")
    return parser


def signals_below(folders: Sequence[Path]) -> list[Signals]:
    """The cleaned runs in some folders, in the order of their names.

    Raises
    ------
    InputError
        If there are none, a run is there twice, or they are on different grids.
    """
    from bids_fbn.signal.signals import Signals

    found: dict[str, tuple[Path, Signals]] = {}
    faults = []
    grid = None
    for folder in folders:
        runs = sorted(path.parent for path in folder.rglob("signals.json"))
        if not runs:
            faults.append(
                f"{folder}: no cleaned runs; make them with run.py … participant --signals-only "
                f"-w {folder}"
            )
        for path in runs:
            signals = Signals.load(path, grid)
            grid = grid or signals.grid
            if signals.name in found:
                faults.append(f"{signals.name}: cleaned twice: {found[signals.name][0]}, {path}")
            if signals.grid.fingerprint != grid.fingerprint:
                faults.append(f"{path}: on another grid than the runs before it")
            found[signals.name] = (path, signals)
    if faults:
        raise InputError(*faults)
    return [signals for _, (_, signals) in sorted(found.items())]


def _options(arguments: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    asked = build_parser().parse_args(with_hyphens(arguments))
    options = {
        key: value
        for key, value in vars(asked).items()
        if key
        not in ("signals", "weights", "validation", "patience", "accumulate", "model", "verbose")
    }
    # The folders are those of the call on a dataset; here there is none.
    config = Config.from_options(
        {**options, "model": [asked.model], "bids_dir": Path(), "output_dir": Path()}
    )
    faults = config.models.idle()
    if asked.weights.suffix != ".safetensors":
        faults.append(f"{asked.weights}: the name of weights ends in .safetensors")
    if asked.model not in (*TRAINED, *BASELINES) or asked.model == "dualregression":
        faults.append(f"--model {asked.model}: learns nothing; give it to run.py")
    elif asked.model in BASELINES:
        faults += [
            f"{option}: has no effect on {asked.model}, which is not trained in epochs"
            for option, given in (
                ("--validation", asked.validation),
                ("--patience", asked.patience is not None),
                ("--accumulate", asked.accumulate != 1),
            )
            if given
        ]
    if not 0 <= asked.validation < 1:
        faults.append(f"--validation {asked.validation:g}: a share, from 0 to below 1")
    if asked.patience is not None and not asked.validation:
        faults.append("--patience: needs --validation, on which it waits for a better loss")
    if asked.patience is not None and asked.patience < 1:
        faults.append(f"--patience {asked.patience}: at least 1 epoch")
    if asked.accumulate < 1:
        faults.append(f"--accumulate {asked.accumulate}: at least 1 part")
    if faults:
        raise InputError(*faults)
    return config, asked


def fit_shared(
    config: Config,
    runs: Sequence[Signals],
    compute: Compute,
    weights: Path,
    *,
    validation: Sequence[Signals] = (),
    patience: int | None = None,
    accumulate: int = 1,
    held_out: Sequence[str] = (),
    write: bool = True,
) -> Model:
    """Fit the model of a config to runs of many participants, and write its weights.

    Parameters
    ----------
    config : Config
        With one model.
    runs : sequence of Signals
    compute : Compute
    weights : Path
        File to write; a checkpoint lies beside it until the training ends.
    validation, patience, accumulate
        See :meth:`~bids_fbn.models.base.Model.fit`.
    held_out : sequence of str
        Names of runs that are kept from it, for the card.
    write : bool
        False in all but one of several processes.

    Returns
    -------
    Model
    """
    from bids_fbn import models
    from bids_fbn.networks.templates import load_templates

    (name,) = config.models.model
    grid = runs[0].grid
    told = config.models.told(name)
    templates = load_templates(config.networks.templates, grid) if told else None
    model = models.create(name, config.models, grid, templates)
    checkpoint = weights.with_suffix(".checkpoint")
    model.fit(
        runs,
        compute,
        config.compute.random_seed,
        checkpoint,
        validation=validation,
        patience=patience,
        accumulate=accumulate,
    )
    if held_out:
        model.training["HeldOut"] = list(held_out)
    if write:
        model.save(weights)
        checkpoint.unlink(missing_ok=True)
    return model


def _train(config: Config, asked: argparse.Namespace, processes: Processes) -> None:
    from bids_fbn.models.compute import choose_compute
    from bids_fbn.models.sampling import split_participants

    options = config.compute
    compute = choose_compute(options.device, options.precision, options.omp_nthreads, processes)
    runs = signals_below([path.expanduser().resolve() for path in asked.signals])
    try:
        training, validation = split_participants(runs, asked.validation, options.random_seed)
    except ValueError as error:
        raise InputError(f"--validation {asked.validation:g}: {error}") from None
    weights: Path = asked.weights.expanduser().resolve()
    if processes.rank == 0:
        logger.info(
            "%s: %d runs to train on, %d to validate on, %d processes on %s, %s",
            asked.model,
            len(training),
            len(validation),
            processes.total,
            compute.name,
            compute.precision,
        )
    fit_shared(
        config,
        training,
        compute,
        weights,
        validation=validation,
        patience=asked.patience,
        accumulate=asked.accumulate,
        write=processes.rank == 0,
    )
    if processes.rank == 0:
        print(f"weights: {weights}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    try:
        config, asked = _options(sys.argv[1:] if arguments is None else arguments)
        processes = launched_processes()
        share = max(1, available_processors() // processes.per_node)
        prepare_environment(config.compute.omp_nthreads or share)
        logs.configure(asked.verbose)
        if processes.rank > 0:  # all would say the same
            logging.getLogger("bids_fbn").setLevel(logging.WARNING)
        # Of the layout of single numbers, in which several processes sum their gradients.
        warnings.filterwarnings("ignore", message="Grad strides do not match")
        _train(config, asked, processes)
    except (FBNError, KeyboardInterrupt) as error:
        return report_faults(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
