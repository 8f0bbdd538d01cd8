"""How often is something claimed that is not there? Of noise without networks, and static runs.

    python benchmarks/calibration.py [--runs 200] [--model NAME …] [--processes 2]
                                     [--data static] [--no-motion-spikes] [--noise FACTOR]
                                     [--seed 1] [--epochs 1]

Every method is applied to simulated runs, cleaned as real ones are. Of noise-only runs any network
that stands out (corrected p < 0.05) is a false one; of these and of static ones, whose
correlations do not change, any measure of change that does. With 20 surrogates a correct test errs
in 1 of 21 runs, 4.8 %; with 100 and 99 turns of either kind in 5 of 101 and 4 of 100. The
intervals are of Clopper and Pearson, 95 %. The mean of the lowest p of each run is 0.52 with 20
surrogates and 0.50 with 100 if the test is right; it shows sooner than the share if it is not.

Jumps of the head and noise make a static run uneven in time too: --no-motion-spikes and --noise
say how much of what is found comes from there. --seed gives other runs, with other surrogates: are
8 % chance, or will they come again?

Models are small, so that hundreds of runs can be had; the nulls are the app's. Rows are kept in
--rows as they come, and taken up from there: a call that was killed goes on, if its other options
are the same.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import as_completed
from pathlib import Path

import numpy as np
import pandas as pd
from common import cleaned, processes, read_rows, write_rows

from bids_fbn import evidence
from bids_fbn.config import MODELS, TRAINED, Config
from bids_fbn.environment import prepare_environment
from bids_fbn.errors import RunError
from bids_fbn.evaluation.assess import fitted
from bids_fbn.evaluation.truth import false_positive_rate
from bids_fbn.models.card import read_card
from bids_fbn.models.compute import choose_compute
from bids_fbn.networks.templates import TemplateSet, load_templates
from bids_fbn.nulls.pvalues import ALPHA, network_p
from bids_fbn.signal.signals import Signals
from bids_fbn.simulate import simulate_dataset

TEMPLATES = "seitzman2018"
# What is claimed, of which data.
CLAIMS = (
    ("noise", "turned", "a network in noise, by other places"),
    ("noise", "mirrored", "mirrored"),
    ("noise", "noise", "by noise"),
    ("noise", "network", "by all"),
    ("noise", "dynamics", "dynamics in noise"),
    ("static", "dynamics", "dynamics in static data"),
)


def config_of(name: str, options: argparse.Namespace, seed: int) -> Config:
    """A small model, so that hundreds of runs can be had, unless there are weights of it."""
    small = {"sloppy": True, "epochs": options.epochs, "channels": 4}
    trained = name.removeprefix("untrained-") in TRAINED
    weights = [path for path in options.weights if read_card(path)["Model"] == name]
    return Config.from_options(
        {
            "bids_dir": Path(),
            "output_dir": Path(),
            "model": (name,),
            "templates": TEMPLATES,
            "stride": options.stride,
            "n_surrogates": options.surrogates,
            "n_surrogate_maps": options.maps,
            "surrogates": options.kind,
            "refit_surrogates": options.refit,
            "random_seed": seed,
            "weights": tuple(weights),
            **(small if trained and not weights else {}),
        }
    )


def claims_of(
    name: str,
    folder: Path,
    data: str,
    number: int,
    templates: TemplateSet,
    options: argparse.Namespace,
) -> dict[str, object]:
    """Lowest corrected p of each kind of claim on one run."""
    signals = Signals.load(folder)
    # No two runs have the same surrogates: what is chance in these would be in both.
    config = config_of(name, options, options.runs * options.seed + number)
    start = time.perf_counter()
    row: dict[str, object] = {"model": name, "data": data, "run": number}
    try:
        method = fitted(name, signals, templates, config, choose_compute("cpu", "auto", 1))
    except RunError as error:
        # A run in which the method finds nothing to learn from makes no claim.
        return {**row, "failed": str(error), "seconds": np.nan}
    if "dynamics" in options.claims:
        networks, _ = method.networks(method.model, signals)
        changes = pd.DataFrame(
            evidence.dynamic_evidence(method, signals, networks, options.surrogates, options.kind),
            columns=list(evidence.COLUMNS),
        )
        whole = changes[changes["network"] == "all"]
        row["dynamics"] = whole["p_corrected"].min()
    if data == "noise" and "network" in options.claims:
        search = pd.DataFrame(
            evidence.network_evidence(method, signals, options.surrogates, options.maps)
        )
        row |= search.groupby("null")["p_corrected"].min().to_dict()
        row["network"] = network_p(search).min()
    return {**row, "seconds": time.perf_counter() - start}


def cleaned_runs(data: str, options: argparse.Namespace, work: Path) -> list[Path]:
    """Folders of the simulated and cleaned runs; those that are there are not made again."""
    made = [data, f"{options.runs}x{options.volumes}", f"{options.resolution:g}mm"]
    made += [options.nuisance, f"noise{options.noise:g}"]
    made += [] if options.motion_spikes else ["nospikes"]
    made += [f"seed{options.seed}"] if options.seed else []
    folder = work / "-".join(made)
    if not folder.is_dir():
        with tempfile.TemporaryDirectory() as name:
            dataset = simulate_dataset(
                Path(name) / data,
                n_participants=options.runs,
                n_volumes=options.volumes,
                resolution=options.resolution,
                noise=options.noise,
                motion_spikes=options.motion_spikes,
                networks=data != "noise",
                dynamics="static",
                seed=options.seed,
            )
            part = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            cleaned(dataset, options.nuisance, options.resolution, part)
            part.rename(folder)
    return sorted(folder.iterdir())


def table(rows: pd.DataFrame) -> str:
    """Markdown: share of the runs with a false claim."""
    lines = [
        "| method | " + " | ".join(words for *_, words in CLAIMS) + " | s a run |",
        "|---" * (len(CLAIMS) + 2) + "|",
    ]
    for model in dict.fromkeys(rows["model"]):
        of_model = rows[rows["model"] == model]
        cells = []
        for data, claim, _ in CLAIMS:
            here = of_model[of_model["data"] == data]
            p = here[claim].to_numpy(dtype=float) if claim in here else np.full(len(here), np.nan)
            found_nothing = "failed" in here and here["failed"].notna().all() and len(here)
            if not np.isfinite(p).any() and not found_nothing:
                cells.append("–")
                continue
            # A run of which nothing could be said makes no claim.
            rate = false_positive_rate(np.nan_to_num(p, nan=1.0), ALPHA)
            cells.append(
                f"{100 * rate.share:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f})"
                + (f", p {np.nanmean(p):.2f}" if np.isfinite(p).any() else "")
            )
        lines.append(f"| {model} | {' | '.join(cells)} | {of_model['seconds'].mean():.1f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--volumes", type=int, default=120)
    parser.add_argument("--resolution", type=float, default=12.0)
    parser.add_argument("--nuisance", default="simple")
    parser.add_argument(
        "--noise",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="scales all that is not a network",
    )
    parser.add_argument(
        "--no-motion-spikes",
        dest="motion_spikes",
        action="store_false",
        help="the head drifts but does not jump",
    )
    parser.add_argument("--seed", type=int, default=0, help="other runs, as many")
    parser.add_argument("--stride", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=1, help="of models that are trained")
    parser.add_argument("--surrogates", type=int, default=20)
    parser.add_argument("--maps", type=int, default=199)
    parser.add_argument("--kind", choices=["phase", "var"], default="phase")
    parser.add_argument("--refit", action="store_true", help="--refit-surrogates")
    parser.add_argument(
        "--data", nargs="+", choices=["noise", "static"], default=["noise", "static"]
    )
    parser.add_argument(
        "--claims", nargs="+", choices=["network", "dynamics"], default=["network", "dynamics"]
    )
    parser.add_argument("--weights", nargs="+", type=Path, default=[], help="of models, if any")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--most", type=float, default=math.inf, help="fail above this share")
    parser.add_argument("--work", type=Path, help="keep the cleaned runs there")
    parser.add_argument("--rows", type=Path, help="keep a row for each run and method there")
    options = parser.parse_args(arguments)
    # Each process has one processor; set before the libraries of its children are loaded.
    prepare_environment(1)
    rows = read_rows(options.rows)
    done = {(row["model"], row["data"], row["run"]) for row in rows}
    with tempfile.TemporaryDirectory() as name, processes(options.processes) as pool:
        jobs = []
        for data in options.data:
            folders = cleaned_runs(data, options, options.work or Path(name))
            # To put them on the grid of all runs takes as long as a quick method.
            templates = load_templates(TEMPLATES, Signals.load(folders[0]).grid)
            jobs += [
                pool.submit(claims_of, model, folder, data, number, templates, options)
                for model in options.model
                for number, folder in enumerate(folders)
                if (model, data, number) not in done
            ]
        for job in as_completed(jobs):
            rows.append(job.result())
            write_rows(options.rows, rows)
    results = pd.DataFrame(rows)
    results = results[results["model"].isin(options.model)].copy()
    results["order"] = [options.model.index(model) for model in results["model"]]
    results = results.sort_values(["order", "data", "run"])
    jumps = "with" if options.motion_spikes else "without"
    print(
        f"{options.runs} runs of {options.volumes} volumes at {options.resolution:g} mm, "
        f"{options.noise:g} times the usual noise, {jumps} jumps of the head, "
        f"{options.surrogates} surrogates ({options.kind}), {options.maps} sets of maps\n"
    )
    print(table(results))
    # Of static data alone there is no network to claim.
    claimed = results.set_index(["data", "model"]).filter(["network", "dynamics"]) < ALPHA
    worst = claimed.groupby(level=[0, 1]).mean().to_numpy().max(initial=0.0)
    if worst > options.most:
        print(f"\nmore false claims than {options.most:g}: {worst:g}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
