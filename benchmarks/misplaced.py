"""Which networks stand by coherence, and which would in the wrong place?

    python benchmarks/misplaced.py DATASET [--templates NAME] [--turns 1] [--processes 2]

Dual regression of every run on the templates as they are, and on the same templates turned about
the middle of the brain, each by itself, by an angle of more than a radian in any direction.
Nothing makes these coherent but what any place in a brain has, or that one has come to lie on a
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
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from bids_fbn.config import Config
from bids_fbn.environment import prepare_environment
from bids_fbn.evaluation.assess import fitted
from bids_fbn.evidence import network_evidence
from bids_fbn.models.compute import choose_compute
from bids_fbn.networks.templates import TemplateSet, load_templates
from bids_fbn.nulls.pvalues import ALPHA
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals

LEAST_ANGLE = 1.0  # rad


def turned(templates: TemplateSet, grid: Grid, rng: np.random.Generator) -> TemplateSet:
    """The same maps elsewhere; what comes from outside the brain is 0."""
    places = grid.coordinates
    middle = places.mean(axis=0)
    to_voxels = np.linalg.inv(grid.affine)
    maps = []
    for of_network in templates.maps:
        turn = Rotation.random(random_state=rng)
        while turn.magnitude() < LEAST_ANGLE:
            turn = Rotation.random(random_state=rng)
        volume = np.zeros(grid.mask.shape)
        volume[grid.mask] = of_network
        source = (turn.apply(places - middle) + middle) @ to_voxels[:3, :3].T + to_voxels[:3, 3]
        maps.append(map_coordinates(volume, source.T, order=1))
    return replace(templates, maps=np.array(maps, dtype=np.float32))


def claims_of(
    folder: Path, run: int, turn: int, templates: TemplateSet, options: argparse.Namespace
) -> dict[str, object]:
    """Corrected p of each network by each null, of a run and a turn (0: none)."""
    signals = Signals.load(folder)
    if turn:
        rng = np.random.default_rng([options.seed, run, turn])
        templates = turned(templates, signals.grid, rng)
    config = Config.from_options(
        {
            "bids_dir": Path(),
            "output_dir": Path(),
            "model": ("dualregression",),
            "templates": options.templates,
            "random_seed": options.seed + run,
        }
    )
    method = fitted("dualregression", signals, templates, config, choose_compute("cpu", "auto", 1))
    rows = pd.DataFrame(network_evidence(method, signals, options.surrogates, options.maps))
    coherence = rows[rows["measure"] == "coherence"]
    p = coherence.pivot_table("p_corrected", "network", "null")
    both = p.max(axis=1) < ALPHA
    return {
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
        "| templates | networks | by random maps | by runs of noise | by both | runs with any |",
        "|---|---|---|---|---|---|",
    ]
    for name, of_kind in (("as they are", rows["turn"] == 0), ("turned", rows["turn"] > 0)):
        found = rows[of_kind]
        means = [f"{found[column].mean():.2f}" for column in ("fields", "noise", "both")]
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
    parser.add_argument("--turns", type=int, default=1, help="of each run")
    parser.add_argument("--surrogates", type=int, default=20, help="runs of noise")
    parser.add_argument("--maps", type=int, default=199, help="sets of random maps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rows", type=Path, help="write a row for each run and turn there")
    options = parser.parse_args(arguments)
    prepare_environment(1)
    logging.getLogger("bids_fbn").setLevel(logging.WARNING)
    rows = []
    with tempfile.TemporaryDirectory() as name, processes(options.processes) as pool:
        work = Path(name)
        asked = (options.dataset, options.nuisance, options.resolution, work)
        runs = cleaned(*asked, participants=tuple(options.label))
        templates = load_templates(options.templates, runs[0].grid)
        jobs = [
            pool.submit(claims_of, work / run.name, number, turn, templates, options)
            for number, run in enumerate(runs)
            for turn in range(options.turns + 1)
        ]
        for job in as_completed(jobs):
            rows.append(job.result())
    found = pd.DataFrame(rows).sort_values(["run", "turn"])
    write_rows(options.rows, found.to_dict("records"))
    print(table(found))
    for kind, of_kind in found.groupby(found["turn"] > 0):
        names = found.loc[of_kind.index, "standing"].str.split(", ").explode()
        print(f"\n{'turned' if kind else 'as they are'}:")
        print(names[names != ""].value_counts().to_string())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
