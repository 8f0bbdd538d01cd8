"""All methods on the same runs: what they find, how much of it is search, how much is chance.

    python benchmarks/methods.py --simulated 0.5 1 2 [--participants N] [--model NAME …]
    python benchmarks/methods.py --dataset DIR --nuisance none|motion [--resolution 10] [--model …]

A row for each method, means over runs:

best of all   IoU with the template of the best of all candidates, as published; mean over
              templates
equal budget  IoU on the other half: 20 maps of each half, chosen without templates; each template
              gets one of one half, and what is most like it in the other half is scored. Models
              are trained on each half by itself
beyond chance networks of a run whose IoU among its 20 maps has a corrected p < 0.05 under the null
held out      variance of one half that the 20 maps of the other explain
dynamics      share of the runs in which a measure of change differs from static surrogates,
              corrected p < 0.05; and which does most often
seconds       to fit the model and find the networks, without nulls

Rows are kept in --rows as they come, and taken up from there: a call that was killed goes on.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from common import cleaned

from bids_fbn.config import MODELS, Config
from bids_fbn.environment import prepare_environment
from bids_fbn.errors import RunError
from bids_fbn.evaluation.assess import Assessment, assess
from bids_fbn.models.compute import choose_compute
from bids_fbn.networks.templates import load_templates
from bids_fbn.nulls.pvalues import ALPHA, network_p
from bids_fbn.signal.signals import Signals
from bids_fbn.simulate import simulate_dataset

# Methods of the whole run that can look at windows too stand in two rows.
BOTH_WAYS = ("pca", "ica")


def variants(names: Sequence[str]) -> Iterator[tuple[str, str, dict[str, object]]]:
    """Label of a row, model, and its options."""
    for name in names:
        yield name, name, {}
        if name in BOTH_WAYS:
            yield f"{name}, windows of 40", name, {"window": 40}


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
        "dynamics_tested": bool(whole["p_corrected"].notna().any()),
        "dynamics": ", ".join(differs),
        "seconds": found.seconds,
    }


def table(rows: pd.DataFrame) -> str:
    """Markdown, means over runs."""
    lines = [
        "| method | runs | best of all | equal budget | beyond chance | held out | dynamics | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label, of_method in rows.groupby("method", sort=False):
        tested = of_method[of_method["dynamics_tested"]]
        cell = "–"
        if len(tested):
            measures = tested["dynamics"].fillna("").str.split(", ").explode()
            most = measures[measures != ""].mode()
            some = (tested["dynamics"].fillna("") != "").mean()
            cell = f"{100 * some:.0f} %" + (f" ({most.iloc[0]})" if len(most) else "")
        lines.append(
            f"| {label} | {len(of_method)} | {of_method['best_of_all'].mean():.3f} "
            f"| {of_method['equal_budget'].mean():.3f} "
            f"| {of_method['beyond'].mean():.1f} of {of_method['templates'].max():.0f} "
            f"| {of_method['held_out'].mean():.3f} | {cell} "
            f"| {of_method['seconds'].mean():.1f} |"
        )
    return "\n".join(lines)


def row_of(
    label: str,
    name: str,
    more: dict[str, object],
    folder: Path,
    templates_name: str,
    options: argparse.Namespace,
) -> dict[str, object]:
    """One method on one run."""
    logging.getLogger("bids_fbn").setLevel(logging.WARNING)
    signals = Signals.load(folder)
    config = Config.from_options(
        {
            "bids_dir": Path(),
            "output_dir": Path(),
            "model": (name,),
            "templates": templates_name,
            "stride": options.stride,
            "n_surrogates": options.surrogates,
            "n_surrogate_maps": options.maps,
            **({"sloppy": True} if options.sloppy else {}),
            **more,
        }
    )
    templates = load_templates(templates_name, signals.grid)
    compute = choose_compute(options.device, options.precision, options.threads)
    found = assess(name, signals, templates, config, compute)
    return {"method": label, "run": signals.name, **facts_of(found)}


def run_all(
    folders: Sequence[Path], templates_name: str, options: argparse.Namespace, kept: Path
) -> pd.DataFrame:
    """A row for each method and run; `kept` has those that are there already."""
    rows: list[dict[str, object]] = []
    if kept.is_file():
        rows = pd.read_csv(kept, sep="\t").to_dict("records")
    done = {(row["method"], row["run"]) for row in rows}
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        jobs = {
            pool.submit(row_of, label, name, more, folder, templates_name, options): label
            for label, name, more in variants(options.model)
            for folder in folders
            if (label, folder.name) not in done
        }
        for job in as_completed(jobs):
            try:
                rows.append(job.result())
            except RunError as error:
                print(f"{jobs[job]}: {error}", flush=True)
                continue
            pd.DataFrame(rows).to_csv(kept, sep="\t", index=False)
            print(f"{rows[-1]['method']}, {rows[-1]['run']}", flush=True)
    results = pd.DataFrame(rows)
    order = [label for label, *_ in variants(options.model)]
    results = results[results["method"].isin(order)]
    return results.sort_values("method", key=lambda labels: labels.map(order.index), kind="stable")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulated", nargs="+", type=float, default=[], metavar="NOISE")
    parser.add_argument("--participants", type=int, default=4, help="simulated ones")
    parser.add_argument("--volumes", type=int, default=300, help="of a simulated run")
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--label", nargs="+", default=[], help="participants of the dataset (all)")
    parser.add_argument("--nuisance", default="none")
    parser.add_argument("--resolution", type=float, default=10.0)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--stride", type=int, default=5)
    parser.add_argument("--surrogates", type=int, default=39)
    parser.add_argument("--maps", type=int, default=999)
    parser.add_argument("--sloppy", action="store_true", help="small models")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--rows", type=Path, help="folder that keeps the rows of each table")
    options = parser.parse_args(arguments)
    # Set before the libraries of the processes are loaded.
    prepare_environment(options.threads)
    logging.getLogger("bids_fbn").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        rows_folder = options.rows or Path(name)
        rows_folder.mkdir(parents=True, exist_ok=True)
        for noise in options.simulated:
            work = Path(name) / f"noise-{noise:g}"
            work.mkdir()
            dataset = simulate_dataset(
                work / "data",
                n_participants=options.participants,
                n_volumes=options.volumes,
                resolution=options.resolution,
                noise=noise,
            )
            runs = cleaned(dataset, "motion", options.resolution, work)
            found = run_all(
                [work / run.name for run in runs],
                "seitzman2018",
                options,
                rows_folder / f"simulated-{noise:g}.tsv",
            )
            print(f"\nsimulated, noise {noise:g}\n\n{table(found)}\n", flush=True)
        if options.dataset:
            work = Path(name) / "dataset"
            work.mkdir()
            runs = cleaned(
                options.dataset,
                options.nuisance,
                options.resolution,
                work,
                participants=tuple(options.label),
            )
            kept = rows_folder / f"{options.dataset.resolve().name}.tsv"
            found = run_all([work / run.name for run in runs], "smith2009", options, kept)
            print(f"\n{options.dataset.resolve().name}\n\n{table(found)}\n", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
