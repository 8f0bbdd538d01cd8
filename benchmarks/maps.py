"""How long do maps of windows take by UDR, beside STCA?

    python benchmarks/maps.py [--windows 24] [--networks 20] [--resolution 4] [--threads 2]

Windows of 40 volumes at stride 1, of noise: what is computed does not depend on the data. Weights
are new ones. Each model makes the maps of all windows once, in turn with the other one; the time
of a window is that between two of its batches, so that what happens once in a run (the first
batch, which for STCA also compares bf16 with fp32) is not in it. Ratios of medians.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence

import numpy as np
import torch

from bids_fbn import models
from bids_fbn.config import ModelOptions
from bids_fbn.environment import prepare_environment
from bids_fbn.evaluation.simulated import SPACE
from bids_fbn.models.base import Model
from bids_fbn.models.compute import Compute, choose_compute
from bids_fbn.models.udr import UDR
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.signal.signals import Signals
from bids_fbn.signal.standard import analysis_grid

WINDOW = 40


def seconds_a_window(model: Model, run: Signals, compute: Compute) -> list[float]:
    """Between two batches of maps, by their windows; without the first."""
    found: list[float] = []
    before = time.perf_counter()
    for number, (steps, _) in enumerate(model.maps(run, compute, 1)):
        now = time.perf_counter()
        if number:
            found.append((now - before) / len(steps))
        before = now
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--resolution", type=float, default=4.0)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    prepare_environment(options.threads)
    logging.getLogger("bids_fbn").setLevel(logging.WARNING)
    grid = analysis_grid(SPACE, options.resolution)
    chance = np.random.default_rng(0)
    n_volumes, n_voxels = WINDOW + options.windows - 1, grid.n_voxels
    maps = chance.standard_normal((options.networks, n_voxels)).astype(np.float32)
    names = tuple(f"network {number}" for number in range(options.networks))
    templates = TemplateSet("noise", names, maps, maps > 1, "above", "", "noise")
    data = chance.standard_normal((n_volumes, n_voxels)).astype(np.float32)
    covered = np.ones(n_voxels, dtype=bool)
    run = Signals(data, grid, 2.0, np.arange(n_volumes), n_volumes, covered, "noise")
    compute = choose_compute(options.device, options.precision, options.threads)
    made = {
        name: models.create(name, ModelOptions(model=(name,), window=WINDOW), grid, templates)
        for name in ("stca", "udr")
    }
    udr = made["udr"]
    assert isinstance(udr, UDR)
    # As of several participants to train on, whose volumes take more time than the windows' own.
    modes = chance.standard_normal((udr.recipe.modes, n_voxels)).astype(np.float32)
    udr.network.set_prior(*map(torch.from_numpy, (maps, maps, np.ones_like(maps), modes)))
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(options.runs):
        for name, model in made.items():
            seconds[name] += seconds_a_window(model, run, compute)
    for name, of_model in seconds.items():
        if not of_model:
            parser.error(f"{name} takes all windows in one batch: ask for more with --windows")
    medians = {name: float(np.median(of_model)) for name, of_model in seconds.items()}
    print(
        f"{n_voxels} voxels, {options.networks} networks, {options.windows} windows: "
        + ", ".join(f"{name} {value:.3f} s a window" for name, value in medians.items())
        + f"; STCA takes {medians['stca'] / medians['udr']:.1f} times as long"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
