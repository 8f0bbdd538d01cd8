"""All methods on the same runs: what they find, how much of it is search, how much is chance.

    python benchmarks/methods.py DATASET [--nuisance none] [--resolution 10] [--model NAME …]

Simulated runs, whose truth is known, are compared by ``python -m bids_fbn.evaluate``. A row for
each method, means over runs:

best of all   IoU with the template of the best of all candidates, as published; mean over
              templates
equal budget  IoU on the other half: 20 maps of each half, chosen without templates; each template
              gets one of one half, and what is most like it in the other half is scored. Models
              are trained on each half by itself
beyond chance networks of a run whose IoU among its 20 maps has a corrected p < 0.05 under the null
held out      variance of one half that the 20 maps of the other explain
dynamics      share of the runs in which a measure of change differs from static surrogates,
              corrected p < 0.05; and which does most often
changes/min   of state, and its mean over static surrogates
seconds       to fit the model and find the networks, without nulls

Then in how many runs each network is beyond chance; and where there are events, the networks whose
course follows them, p corrected over networks and conditions.

With --folds a model that is trained is trained on the participants of the other folds, all at
once, instead of on each run by itself, and named "shared". Its weights are kept in --work.

Rows are kept in --rows as they come, and taken up from there: a call that was killed goes on.
A table in which a method is of other settings is refused.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Sequence
from concurrent.futures import as_completed
from pathlib import Path

import numpy as np
import pandas as pd
from common import cleaned, processes, read_rows, write_rows

from bids_fbn.config import MODELS, TRAINED, Config
from bids_fbn.environment import prepare_environment
from bids_fbn.errors import InputError, RunError
from bids_fbn.evaluation.assess import Assessment, assess
from bids_fbn.models.compute import choose_compute
from bids_fbn.networks.templates import load_templates
from bids_fbn.nulls.pvalues import ALPHA, network_p
from bids_fbn.nulls.task import read_events
from bids_fbn.signal.signals import Signals
from bids_fbn.train import fit_shared

TEMPLATES = "smith2009"
TASK = ["network", "condition", "observed", "p_corrected"]


def facts_of(found: Assessment) -> dict[str, object]:
    """What the table says of one method on one run."""
    rows = found.evidence

    def observed(measure: str) -> float:
        values = rows.loc[rows["measure"] == measure, "observed"]
        return float(values.mean()) if len(values) else np.nan

    p = network_p(rows)
    whole = rows[(rows["claim"] == "dynamics") & (rows["network"] == "all")]
    differs = whole.loc[whole["p_corrected"] < ALPHA, "measure"]
    return {
        "best_of_all": float(found.networks.best_of_all.mean()),
        "search": observed("iou_search"),
        "equal_budget": observed("iou_other_half"),
        "beyond": int((p < ALPHA).sum()),
        "p_corrected": p.round(4).to_json(),
        "templates": len(p),
        "held_out": observed("held_out_variance"),
        "switching_rate": observed("switching_rate"),
        "switching_static": float(
            whole.loc[whole["measure"] == "switching_rate", "null_mean"].mean()
        ),
        "task": rows[rows["measure"] == "r_course"][TASK].round(4).to_json(orient="records"),
        "dynamics_tested": bool(whole["p_corrected"].notna().any()),
        "dynamics": ", ".join(differs),
        "seconds": found.seconds,
    }


def table(rows: pd.DataFrame) -> str:
    """Markdown, means over runs."""
    lines = [
        "| method | runs | best of all | equal budget | beyond chance | held out | dynamics "
        "| changes/min | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for label, of_method in rows.groupby("method", sort=False):
        tested = of_method[of_method["dynamics_tested"]]
        cell = changes = "–"
        if len(tested):
            # Of a table that was taken up, no measure at all is missing.
            differ = tested["dynamics"].astype(object).fillna("")
            measures = differ.str.split(", ").explode()
            most = measures[measures != ""].mode()
            some = (differ != "").mean()
            cell = f"{100 * some:.0f} %" + (f" ({most.iloc[0]})" if len(most) else "")
            rates = tested[["switching_rate", "switching_static"]].mean()
            changes = f"{rates.iloc[0]:.1f}, static {rates.iloc[1]:.1f}"
        lines.append(
            f"| {label} | {len(of_method)} | {of_method['best_of_all'].mean():.3f} "
            f"| {of_method['equal_budget'].mean():.3f} "
            f"| {of_method['beyond'].mean():.1f} of {of_method['templates'].max():.0f} "
            f"| {of_method['held_out'].mean():.3f} | {cell} | {changes} "
            f"| {of_method['seconds'].mean():.1f} |"
        )
    return "\n".join(lines)


def table_of_networks(rows: pd.DataFrame) -> str:
    """Markdown: in how many runs each network is beyond chance."""
    p = pd.DataFrame([json.loads(values) for values in rows["p_corrected"]])
    names = list(p)
    found = (p < ALPHA).groupby(rows["method"].to_numpy(), sort=False).sum()
    lines = [f"| method | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(map(str, count))} |" for name, count in found.iterrows()]
    return "\n".join(lines)


def lines_of_task(rows: pd.DataFrame) -> str:
    """What follows the task, a line for each method and run; empty without events."""
    lines = []
    for method, run, task in rows[["method", "run", "task"]].itertuples(index=False):
        coupled = pd.DataFrame(json.loads(task), columns=TASK)
        if not len(coupled):
            continue
        follows = coupled[coupled["p_corrected"] < ALPHA].sort_values("p_corrected")
        words = [f"{n} {c} r {r:.2f}, p {p:.4f}" for n, c, r, p in follows.itertuples(index=False)]
        lines.append(f"- {method}, {run}: {'; '.join(words) or 'none'}")
    return "\n".join(lines)


def config_of(name: str, options: argparse.Namespace, *weights: Path) -> Config:
    """One model, as asked."""
    return Config.from_options(
        {
            "bids_dir": Path(),
            "output_dir": Path(),
            "model": (name,),
            "weights": weights,
            "templates": TEMPLATES,
            "stride": options.stride,
            "n_surrogates": options.surrogates,
            "n_surrogate_maps": options.maps,
            **({"sloppy": True} if options.sloppy else {}),
            **({"window": options.window} if options.window else {}),
            **({"epochs": options.epochs} if options.epochs else {}),
            # Weights know what they are of.
            **({"components": options.components} if options.components and not weights else {}),
        }
    )


def row_of(
    name: str, folder: Path, options: argparse.Namespace, weights: Path | None
) -> dict[str, object]:
    """One method on one run."""
    logging.getLogger("bids_fbn").setLevel(logging.WARNING)
    signals = Signals.load(folder)
    config = config_of(name, options, *([weights] if weights else []))
    templates = load_templates(TEMPLATES, signals.grid)
    compute = choose_compute(options.device, options.precision, options.threads)
    task = folder / "events.tsv"
    events = read_events(task) if task.is_file() else None
    found = assess(name, signals, templates, config, compute, events=events)
    return {
        "method": label(name, options),
        "run": signals.name,
        "settings": settings_of(name, options),
        **facts_of(found),
    }


def label(name: str, options: argparse.Namespace) -> str:
    """Name of a method in the tables."""
    of = f" of {options.components}" if options.components and name == "udr" else ""
    return f"{name}{of}, shared" if options.folds and name in TRAINED else f"{name}{of}"


def settings_of(name: str, options: argparse.Namespace, runs: Sequence[Path] = ()) -> str:
    """Hash of all that changes the results of a method, and of the runs that it is trained on."""
    data = (options.dataset.resolve(), options.nuisance, options.resolution, options.folds)
    source = " ".join(map(str, (*data, *(folder.name for folder in runs))))
    return config_of(name, options).model_hash(name, source)


def shared_weights(
    name: str, fold: int, folders: Sequence[Path], options: argparse.Namespace, work: Path
) -> Path:
    """Weights of a model trained on the runs of the other folds."""
    others = [folder for k, folder in enumerate(folders) if k % options.folds != fold]
    # Weights of other settings, or of a run that they would be tested on, are not taken up.
    path = work / f"{name}-{settings_of(name, options, others)}.safetensors"
    if not path.is_file():
        compute = choose_compute(options.device, options.precision, options.threads)
        runs = [Signals.load(run) for run in others]
        fit_shared(config_of(name, options), runs, compute, path)
    return path


def rows_before(options: argparse.Namespace) -> list[dict[str, object]]:
    """Rows that an earlier call left.

    Raises
    ------
    InputError
        If some are of a method that is asked for, with other settings.
    """
    rows = read_rows(options.rows)
    asked = {label(name, options): settings_of(name, options) for name in options.model}
    for row in rows:
        if row["method"] in asked and row.get("settings") != asked[row["method"]]:
            raise InputError(
                f"{options.rows}: {row['method']} is of other settings; give another --rows"
            )
    return rows


def run_all(
    folders: Sequence[Path],
    rows: list[dict[str, object]],
    options: argparse.Namespace,
    work: Path,
) -> pd.DataFrame:
    """A row for each method and run, `rows` among them."""
    done = {(row["method"], row["run"]) for row in rows}
    todo = [
        (name, number, folder)
        for name in options.model
        for number, folder in enumerate(folders)
        if (label(name, options), folder.name) not in done
    ]
    with processes(options.processes) as pool:
        trained = {
            (name, fold): pool.submit(shared_weights, name, fold, folders, options, work)
            for name, fold in dict.fromkeys(
                (name, number % options.folds)
                for name, number, _ in todo
                if label(name, options) != name
            )
        }
        weights = {key: job.result() for key, job in trained.items()}
        jobs = {}
        for name, number, folder in todo:
            key = (name, number % options.folds) if options.folds else (name, 0)
            job = pool.submit(row_of, name, folder, options, weights.get(key))
            jobs[job] = label(name, options)
        for job in as_completed(jobs):
            try:
                rows.append(job.result())
            except RunError as error:
                print(f"{jobs[job]}: {error}", flush=True)
                continue
            write_rows(options.rows, rows)
            print(f"{rows[-1]['method']}, {rows[-1]['run']}", flush=True)
    results = pd.DataFrame(rows)
    labels = [label(name, options) for name in options.model]
    results = results[results["method"].isin(labels)]
    order = results["method"].map(labels.index)
    return results.assign(order=order).sort_values("order", kind="stable")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--label", nargs="+", default=[], help="participants (all)")
    parser.add_argument("--nuisance", default="none")
    parser.add_argument("--resolution", type=float, default=10.0)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--window", type=int, help="of models that can look at windows")
    parser.add_argument("--epochs", type=int, help="of models that are trained (by recipe)")
    parser.add_argument("--components", type=int, help="of UDR, in the place of templates")
    parser.add_argument("--folds", type=int, default=0, help="one model for many participants")
    parser.add_argument("--stride", type=int, default=5)
    parser.add_argument("--surrogates", type=int, default=39)
    parser.add_argument("--maps", type=int, default=999)
    parser.add_argument("--sloppy", action="store_true", help="small models")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--rows", type=Path, help="keep a row for each run and method there")
    parser.add_argument("--work", type=Path, help="keep shared weights there")
    options = parser.parse_args(arguments)
    # Set before the libraries of the processes are loaded.
    prepare_environment(options.threads)
    logging.getLogger("bids_fbn").setLevel(logging.WARNING)
    try:
        rows = rows_before(options)
    except InputError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        weights = options.work or work
        weights.mkdir(parents=True, exist_ok=True)
        runs = cleaned(
            options.dataset,
            options.nuisance,
            options.resolution,
            work,
            participants=tuple(options.label),
        )
        found = run_all([work / run.name for run in runs], rows, options, weights)
    print(f"\n{table(found)}\n\n{table_of_networks(found)}\n\n{lines_of_task(found)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
