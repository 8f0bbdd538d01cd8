"""Which networks stand by coherence, and which would in the wrong place?

    python benchmarks/misplaced.py DATASET [--templates NAME] [--turns 1] [--processes 2]

Dual regression of every run on the templates as they are, and on the same templates turned about
the middle of the brain: each by itself, as its null has them, and all of them alike, as it has
not. Nothing makes these coherent but what any place in a brain has, or that one has come to lie on
a network: few of them should stand.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from common import cleaned, processes, write_rows

from bids_fbn.config import Config
from bids_fbn.environment import prepare_environment
from bids_fbn.evaluation.assess import fitted
from bids_fbn.evidence.coherence import coherence_evidence
from bids_fbn.models.compute import choose_compute
from bids_fbn.networks.templates import TemplateSet, load_templates
from bids_fbn.nulls.pvalues import ALPHA
from bids_fbn.nulls.turned import turned_maps
from bids_fbn.signal.signals import Signals

PLACES = ("as they are", "turned, each by itself", "turned, all alike")


def claims_of(
    folder: Path,
    run: int,
    places: str,
    turn: int,
    templates: TemplateSet,
    options: argparse.Namespace,
) -> dict[str, object]:
    """How many networks of a run stand, by each null."""
    signals = Signals.load(folder)
    # The last number keeps them apart from the turned maps of the null: trailing zeros do not.
    seed = [options.seed, run, turn, 1]
    maps, grid = templates.maps, signals.grid
    if places == PLACES[1]:
        maps = turned_maps(maps, grid, np.random.default_rng(seed))
    elif places == PLACES[2]:
        alike = [turned_maps(one[None], grid, np.random.default_rng(seed)) for one in maps]
        maps = np.concatenate(alike)
    elsewhere = replace(templates, maps=maps)
    config = Config.from_options(
        {
            "bids_dir": Path(),
            "output_dir": Path(),
            "model": ("dualregression",),
            "templates": options.templates,
            "random_seed": options.seed + run,
        }
    )
    method = fitted("dualregression", signals, elsewhere, config, choose_compute("cpu", "auto", 1))
    rows = pd.DataFrame(coherence_evidence(method, signals, options.surrogates, options.maps))
    p = rows.pivot_table("p_corrected", "network", "null")
    both = p.max(axis=1) < ALPHA
    return {
        "places": places,
        "run": run,
        "turn": turn,
        "networks": len(p),
        **{null: int((of_null < ALPHA).sum()) for null, of_null in p.items()},
        "both": int(both.sum()),
        "standing": ", ".join(both.index[both]),
    }


def table(rows: pd.DataFrame) -> str:
    """Markdown: networks that stand, mean over runs."""
    lines = [
        "| templates | networks | by turned maps | by runs of noise | by both | runs with any |",
        "|---|---|---|---|---|---|",
    ]
    for name in PLACES:
        found = rows[rows["places"] == name]
        means = [f"{found[column].mean():.2f}" for column in ("turned", "noise", "both")]
        any_ = f"{100 * (found['both'] > 0).mean():.0f} %"
        lines.append(f"| {name} | {found['networks'].iloc[0]} | {' | '.join(means)} | {any_} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--label", nargs="+", default=[], help="participants (all)")
    parser.add_argument("--nuisance", default="none")
    parser.add_argument("--resolution", type=float, default=10.0)
    parser.add_argument("--templates", default="smith2009")
    parser.add_argument("--turns", type=int, default=1, help="of each run, either way")
    parser.add_argument("--surrogates", type=int, default=20, help="runs of noise")
    parser.add_argument("--maps", type=int, default=199, help="sets of turned maps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rows", type=Path, help="write a row for each run and turn there")
    options = parser.parse_args(arguments)
    prepare_environment(1)
    logging.getLogger("bids_fbn").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as name, processes(options.processes) as pool:
        work = Path(name)
        asked = (options.dataset, options.nuisance, options.resolution, work)
        runs = cleaned(*asked, participants=tuple(options.label))
        templates = load_templates(options.templates, runs[0].grid)
        jobs = [
            pool.submit(claims_of, work / run.name, number, places, turn, templates, options)
            for number, run in enumerate(runs)
            for places in PLACES
            for turn in range(1 if places == PLACES[0] else options.turns)
        ]
        rows = pd.DataFrame([job.result() for job in as_completed(jobs)])
    rows = rows.sort_values(["places", "run", "turn"])
    write_rows(options.rows, rows.to_dict("records"))
    print(table(rows))
    for place in PLACES:
        names = rows.loc[rows["places"] == place, "standing"].str.split(", ").explode()
        print(f"\n{place}:\n{names[names != ''].value_counts().to_string()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
