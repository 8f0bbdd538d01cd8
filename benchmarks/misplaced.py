"""Which networks stand, and which would in the wrong place?

    python benchmarks/misplaced.py DATASET [--model ica dualregression] [--surrogate-maps fields]
                                   [--templates NAME] [--turns 1] [--processes 2]

Every run with the templates as they are, and with the same templates elsewhere in the brain:
turned about its middle, and in either hemisphere about its own, mirrored; all of them alike, as
the nulls have them, and each by itself, as they have not. Nothing makes a map overlap with these,
or makes them coherent, but what any place in a brain has, or that one has come to lie on a
network: few of them should stand.
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
from bids_fbn.evidence import network_evidence
from bids_fbn.models.compute import choose_compute
from bids_fbn.networks.templates import TemplateSet, load_templates
from bids_fbn.networks.tissue import grey_quarters
from bids_fbn.nulls.pvalues import ALPHA, claim_of_networks, network_p
from bids_fbn.nulls.turned import turning
from bids_fbn.signal.signals import Signals

PLACES = (
    "as they are",
    "turned, each by itself",
    "turned, all alike",
    "mirrored, each by itself",
    "mirrored, all alike",
)
# What they are called here.
WORDS = {
    "turned": "by other places",
    "mirrored": "by mirrored ones",
    "fields": "by random maps",
    "noise": "by runs of noise",
}


def misplaced(
    templates: TemplateSet, signals: Signals, places: str, seed: list[int]
) -> TemplateSet:
    """Templates as they are or turned, in one of two ways, each by itself or all alike."""
    everything = range(len(templates.networks))
    alone, alike = [[k] for k in everything], [list(everything)]
    sets = dict(zip(PLACES, ([], alone, alike, alone, alike), strict=True))
    maps, supports = templates.maps.copy(), templates.supports.copy()
    everywhere, tissue = np.ones(signals.grid.n_voxels, dtype=bool), grey_quarters(signals.grid)
    for own in sets[places]:
        # The last number keeps them apart from the null's: trailing zeros do not.
        here = [*seed, own[0], 1]
        for values in (maps, supports):
            turn = turning(values[own], signals.grid, everywhere, tissue)
            values[own] = turn(np.random.default_rng(here), mirrored=places in PLACES[3:])
    return replace(templates, maps=maps, supports=supports)


def claims_of(
    name: str,
    folder: Path,
    run: int,
    places: str,
    turn: int,
    templates: TemplateSet,
    options: argparse.Namespace,
) -> dict[str, object]:
    """How many networks of a run stand, by each null."""
    signals = Signals.load(folder)
    elsewhere = misplaced(templates, signals, places, [options.seed, run, turn])
    config = Config.from_options(
        {
            "bids_dir": Path(),
            "output_dir": Path(),
            "model": (name,),
            "surrogate_maps": options.surrogate_maps,
            "templates": options.templates,
            "random_seed": options.seed + run,
        }
    )
    method = fitted(name, signals, elsewhere, config, choose_compute("cpu", "auto", 1))
    rows = pd.DataFrame(network_evidence(method, signals, options.surrogates, options.maps))
    standing = network_p(rows) < ALPHA
    claimed = rows[rows["measure"] == claim_of_networks(rows)]
    p = claimed.pivot_table("p_corrected", "network", "null", sort=False)
    return {
        "model": name,
        "places": places,
        "run": run,
        "turn": turn,
        "networks": len(p),
        **{WORDS[null]: int((p[null] < ALPHA).sum()) for null in p},
        "by all": int(standing.sum()),
        "standing": ", ".join(standing.index[standing]),
    }


def table(rows: pd.DataFrame) -> str:
    """Markdown: networks that stand, mean over runs."""
    nulls = [words for words in (*WORDS.values(), "by all") if words in rows]
    titles = ["method", "templates", "networks", *nulls, *(f"any {words}" for words in nulls)]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for (model, name), found in rows.groupby(["model", "places"], sort=False, observed=True):
        means = [f"{found[null].mean():.2f}" for null in nulls]
        any_ = [f"{100 * (found[null] > 0).mean():.0f} %" for null in nulls]
        cells = [model, name, str(found["networks"].iloc[0]), *means, *any_]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--label", nargs="+", default=[], help="participants (all)")
    parser.add_argument("--model", nargs="+", default=["dualregression", "ica"])
    parser.add_argument("--surrogate-maps", choices=["turned", "fields"], default="turned")
    parser.add_argument("--nuisance", default="none")
    parser.add_argument("--resolution", type=float, default=10.0)
    parser.add_argument("--templates", default="smith2009")
    parser.add_argument("--turns", type=int, default=1, help="of each run, either way")
    parser.add_argument("--surrogates", type=int, default=20, help="runs of noise")
    parser.add_argument("--maps", type=int, default=199, help="turns, or sets of random maps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rows", type=Path, help="write a row for each run and turn there")
    options = parser.parse_args(arguments)
    prepare_environment(1)
    logging.getLogger("bids_fbn").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, processes(options.processes) as pool:
        work = Path(folder)
        asked = (options.dataset, options.nuisance, options.resolution, work)
        runs = cleaned(*asked, participants=tuple(options.label))
        templates = load_templates(options.templates, runs[0].grid)
        jobs = [
            pool.submit(claims_of, name, work / run.name, number, places, turn, templates, options)
            for name in options.model
            for number, run in enumerate(runs)
            for places in PLACES
            for turn in range(1 if places == PLACES[0] else options.turns)
        ]
        rows = pd.DataFrame([job.result() for job in as_completed(jobs)])
    rows["places"] = pd.Categorical(rows["places"], PLACES)
    rows = rows.sort_values(["model", "places", "run", "turn"])
    write_rows(options.rows, rows.to_dict("records"))
    print(table(rows))
    for (model, place), found in rows.groupby(["model", "places"], sort=False, observed=True):
        names = found["standing"].str.split(", ").explode()
        print(f"\n{model}, {place}:\n{names[names != ''].value_counts().to_string()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
