"""How much of the truth do methods recover, and what do they see that is not there?

    python -m bids_fbn.evaluate OUT --model ica dualregression --noise 0.5 1 2 --participants 5

Simulates runs (:mod:`bids_fbn.simulate`) for every combination of the settings, applies every
model to every run as the app does, and compares with the truth.

``OUT/evaluation.tsv`` has a row for each run and model, ``OUT/summary.tsv`` means over
participants with their intervals, ``OUT/figures`` each measure against each setting. What is in
the table is not computed again: a call that was interrupted goes on, and one with more values,
models or participants adds to it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from bids_fbn import __version__, logs
from bids_fbn.cli import Parser, add_device_options, report_faults, with_hyphens
from bids_fbn.config import MODELS, RESULTS_VERSION, Config, file_hash
from bids_fbn.environment import prepare_environment
from bids_fbn.errors import FBNError, InputError, RunError
from bids_fbn.resources import available_processors

if TYPE_CHECKING:
    import pandas as pd

    from bids_fbn.evaluation.simulated import Cell
    from bids_fbn.evaluation.truth import Truth
    from bids_fbn.signal.signals import Signals

__all__ = ["evaluate", "main"]

# Not __name__, which is "__main__" in the command.
logger = logging.getLogger("bids_fbn.evaluate")

TEMPLATES = "seitzman2018"  # of which the simulated networks are
# No participant has the seed of another one under another --random-seed.
_SEEDS_APART = 10_000


def evaluate(out: Path, config: Config, cells: Sequence[Cell], n_participants: int) -> list[str]:
    """Fill the table; see the module.

    Parameters
    ----------
    out : Path
        A folder.
    config : Config
        Models, nulls, resolution, device and seed.
    cells : sequence of Cell
    n_participants : int
        Participants 1 to this number of each cell.

    Returns
    -------
    list of str
        What failed, a line for each run and model. Its measures are n/a, and it is tried again by
        the next call.

    Raises
    ------
    InputError
        If `out` has results of other settings, is in use, or cannot be written.
    RunError
        If the disk is full.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = FileLock(out / ".evaluation.lock").acquire(timeout=0)
    except Timeout:
        raise InputError(f"{out}: another call is at work on it; wait for it") from None
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error}); name another folder"
        ) from None
    with held:
        try:
            return _Evaluation(out, config).run(cells, n_participants)
        except OSError as error:
            raise RunError(f"{out}: cannot be written ({error.strerror or error})") from None


class _Evaluation:
    def __init__(self, out: Path, config: Config) -> None:
        from bids_fbn import models
        from bids_fbn.evaluation.simulated import SPACE
        from bids_fbn.networks.templates import load_templates
        from bids_fbn.signal.standard import analysis_grid
        from bids_fbn.stages import compute_for

        self.path = out / "evaluation.tsv"
        self.figures = out / "figures"
        self.work = out / ".work"
        self.config = config
        self.settings = _settings(config)
        self.rows = _read_rows(self.path, self.settings)
        self.compute = compute_for(config)
        # As the participant level has it, so that weights fit that were trained there.
        self.grid = analysis_grid(SPACE, config.signal.resolution)
        self.templates = load_templates(TEMPLATES, self.grid)
        # Before hours of work: weights that do not fit are a fault of the call.
        models.weights_given(config.models, self.grid)

    def run(self, cells: Sequence[Cell], n_participants: int) -> list[str]:
        failed = []
        try:
            for cell, participant, models in self._missing(cells, n_participants):
                failed += self._assess(cell, participant, models)
        finally:
            shutil.rmtree(self.work, ignore_errors=True)
        self._summarise(cells)
        return failed

    def _missing(
        self, cells: Sequence[Cell], n_participants: int
    ) -> Iterator[tuple[Cell, int, list[str]]]:
        for cell, participant in itertools.product(cells, range(1, n_participants + 1)):
            models: list[str] = [
                name
                for name in self.config.models.model
                if _key(cell, participant, name) not in self.rows
            ]
            if models:
                yield cell, participant, models

    def _assess(self, cell: Cell, participant: int, names: Sequence[str]) -> list[str]:
        """Add the rows of a run; returns what failed."""
        from bids_fbn.evaluation.assess import assess
        from bids_fbn.evaluation.recovery import recovery
        from bids_fbn.evaluation.simulated import simulate_signals

        failed = []
        seed = self.config.compute.random_seed * _SEEDS_APART + participant
        run: tuple[Signals, Truth] | RunError
        try:
            shutil.rmtree(self.work, ignore_errors=True)
            run = simulate_signals(cell, seed, self.grid, self.config.signal, self.work)
        except RunError as error:
            run = error
        for name in names:
            row: dict[str, Any] = {
                **asdict(cell),
                "model": name,
                "participant": participant,
                "seed": seed,
            }
            try:
                if isinstance(run, RunError):
                    raise run
                signals, truth = run
                found = assess(name, signals, self.templates, self.config, self.compute)
                row["window"] = found.model.window
                row |= recovery(found, truth, signals, self.templates)
                logger.info(
                    "%s, participant %d, %s: r of maps %.2f, %.1f s",
                    cell,
                    participant,
                    name,
                    row["map_r"],
                    row["seconds"],
                )
            except RunError as error:
                failed.append(f"{cell}, participant {participant}, {name}: {error}")
                logger.warning("%s", failed[-1])
            self.rows[_key(cell, participant, name)] = row
            self._write()
        return failed

    def _table(self) -> pd.DataFrame:
        import pandas as pd

        from bids_fbn.evaluation.table import ROW_COLUMNS, ordered

        return ordered(pd.DataFrame(list(self.rows.values()), columns=list(ROW_COLUMNS)))

    def _write(self) -> None:
        from bids_fbn.bids.writing import write_table
        from bids_fbn.evaluation.table import ROW_COLUMNS

        write_table(
            self.path,
            self._table(),
            ROW_COLUMNS,
            {"Description": "Methods against the truth of simulations", **self.settings},
        )

    def _summarise(self, cells: Sequence[Cell]) -> None:
        from bids_fbn.bids.writing import write_table, write_text
        from bids_fbn.evaluation.figures import draw_figures
        from bids_fbn.evaluation.table import SUMMARY_COLUMNS, summarise

        summary = summarise(self._table())
        write_table(
            self.path.with_name("summary.tsv"),
            summary,
            SUMMARY_COLUMNS,
            {"Description": "Means over participants of evaluation.tsv", **self.settings},
        )
        with_networks = [cell for cell in cells if cell.dynamics != "none"]
        first = asdict((with_networks or list(cells))[0])
        for name, svg in draw_figures(summary, first).items():
            write_text(self.figures / f"{name}.svg", svg)


def _key(cell: Cell, participant: int, model: str) -> tuple[str, ...]:
    from bids_fbn.evaluation.table import key_of

    return key_of({**asdict(cell), "participant": participant, "model": model})


def _settings(config: Config) -> dict[str, Any]:
    """What all rows of a table have in common."""
    return {
        "Settings": {
            "Version": RESULTS_VERSION,
            "Templates": TEMPLATES,
            "Signal": config.signal.model_dump(mode="json"),
            "Models": config.models.model_dump(mode="json", exclude={"model", "weights"}),
            "Weights": sorted(map(file_hash, config.models.weights)),
            "Networks": {
                "StateThreshold": config.networks.state_threshold,
                "StateCertainty": config.networks.state_certainty,
            },
            "Nulls": config.nulls.model_dump(mode="json"),
            "Seed": config.compute.random_seed,
            "Precision": config.compute.precision,
        },
        "GeneratedBy": {"Name": "bids_fbn.evaluate", "Version": __version__},
    }


def _read_rows(path: Path, settings: dict[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
    """Rows that are there, by their key; not those that failed, which are tried again.

    Raises
    ------
    InputError
        If they are of other settings, or cannot be read.
    """
    import pandas as pd

    from bids_fbn.bids.writing import sidecar_path
    from bids_fbn.evaluation.table import ROW_COLUMNS, key_of

    if not path.is_file():
        return {}
    try:
        there = json.loads(sidecar_path(path).read_text())["Settings"]
        table = pd.read_csv(path, sep="\t", keep_default_na=False, na_values="n/a")
        rows = table[list(ROW_COLUMNS)].to_dict("records")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); name another folder") from None
    if there != settings["Settings"]:
        wanted = settings["Settings"]
        other = [name for name in wanted if there.get(name) != wanted[name]]
        raise InputError(
            f"{path}: has results of other settings ({', '.join(other)}); name another folder"
        )
    return {key_of(row): row for row in rows if math.isfinite(row["seconds"])}


# -- The command -----------------------------------------------------------------------------

_AXES: dict[str, tuple[type, tuple[float, ...], str]] = {
    "noise": (float, (0.5, 1.0, 2.0), "scale of all that is not a network"),
    "volumes": (int, (300,), "volumes of a run"),
    "dwell": (float, (20.0,), "mean length of a state, s"),
    "overlap": (float, (0.0,), "probability that a second network is on too"),
    "variation": (float, (0.1,), "of maps between participants, a share of them"),
}
_OWN = ("out", "participants", "static", "noise_only", "verbose", *_AXES)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m bids_fbn.evaluate",
        description="Compare methods with the truth of simulated runs.",
        epilog="Called again, it goes on where it was; more values, models or participants are "
        "added to the table.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for table and figures")
    parser.add_argument("--version", action="version", version=f"bids_fbn {__version__}")
    runs = parser.add_argument_group("simulated runs; all combinations are made")
    for name, (kind, values, words) in _AXES.items():
        shown = " ".join(f"{value:g}" for value in values)
        runs.add_argument(
            f"--{name}",
            nargs="+",
            type=kind,
            default=list(values),
            metavar=name.upper(),
            help=f"{words} ({shown})",
        )
    runs.add_argument(
        "--participants", type=int, default=5, metavar="N", help="of each combination (5)"
    )
    runs.add_argument(
        "--static",
        action="store_true",
        default=False,
        help="each combination also with networks that have no states: any dynamics are false",
    )
    runs.add_argument(
        "--noise-only",
        action="store_true",
        default=False,
        help="each noise and number of volumes also without networks: any network is false",
    )
    runs.add_argument("--resolution", type=float, default=8.0, metavar="MM", help="voxels (8)")
    models = parser.add_argument_group("models")
    models.add_argument(
        "--model", nargs="+", required=True, metavar="NAME", help=f"any of {', '.join(MODELS)}"
    )
    models.add_argument(
        "--weights",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="of models trained on other runs; the others are trained on each run by itself",
    )
    models.add_argument("--sloppy", action="store_true", help="tiny models, for trying things out")
    models.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="volumes in a window (by recipe: the whole run for some)",
    )
    models.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="volumes from step to step (1); more are quicker, and blind to shorter states",
    )
    models.add_argument(
        "--channels", type=int, metavar="N", help="maps, components or states (by recipe)"
    )
    models.add_argument(
        "--epochs", type=int, metavar="N", help="of models that are trained (by recipe)"
    )
    models.add_argument(
        "--n-surrogates",
        type=int,
        metavar="N",
        help="static surrogates of each run; 20 at least for p < 0.05 (39)",
    )
    models.add_argument(
        "--n-surrogate-maps", type=int, metavar="N", help="turns of the templates (1000)"
    )
    add_device_options(parser.add_argument_group("compute"))
    parser.add_argument("-v", "--verbose", action="count", default=0, help="more messages")
    return parser


def _config(asked: argparse.Namespace) -> tuple[Config | None, list[str]]:
    """The config and what is wrong with it."""
    given = {name: value for name, value in vars(asked).items() if name not in _OWN}
    # The folders are those of the call on a dataset; here there is none.
    folders = {"bids_dir": Path(), "output_dir": Path()}
    try:
        config = Config.from_options({**given, **folders, "templates": TEMPLATES, "min_time": 0.0})
    except InputError as error:
        return None, list(error.faults)
    return config, config.models.idle()


def _cells(asked: argparse.Namespace) -> tuple[list[Cell], list[str]]:
    """The combinations, and why they cannot be simulated."""
    from bids_fbn.evaluation.simulated import combine, simulation_faults

    cells = combine(
        *(getattr(asked, axis) for axis in _AXES),
        static=asked.static,
        noise_only=asked.noise_only,
    )
    return cells, simulation_faults(cells, asked.participants, asked.resolution)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    try:
        asked = _parser().parse_args(
            with_hyphens(sys.argv[1:] if arguments is None else arguments)
        )
        config, faults = _config(asked)
        threads = config.compute.omp_nthreads if config else None
        # Before anything is imported that counts processors.
        prepare_environment(threads or available_processors())
        cells, more = _cells(asked)
        if config is None or faults or more:
            raise InputError(*faults, *more)
        logs.configure(asked.verbose)
        if not asked.verbose:  # every surrogate has a line
            logging.getLogger("bids_fbn").setLevel(logging.WARNING)
            logger.setLevel(logging.INFO)
        out = asked.out.expanduser().resolve()
        failed = evaluate(out, config, cells, asked.participants)
    except (FBNError, KeyboardInterrupt) as error:
        return report_faults(error)
    print(f"{out / 'evaluation.tsv'}\n{out / 'summary.tsv'}\n{out / 'figures' / 'overview.svg'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
