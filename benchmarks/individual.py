"""How much of other volumes do maps of a participant explain, and are they that participant's?

    python benchmarks/individual.py DATASET [--folds 3] [--epochs N] [--rows FILE]

Maps of the networks of a template set, made from a half of a run, and from 30 volumes of it, by
those of the others as they are, dual regression, shrinkage (the prior of UDR, untrained) and UDR.
Prior and UDR are made of other participants, in folds. Between volumes that make maps and those
that they have to explain are 20 s. One run a participant, all of the same length.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import cleaned, write_rows
from torch import Tensor

from bids_fbn import models
from bids_fbn.config import ModelOptions
from bids_fbn.environment import prepare_environment
from bids_fbn.models.compute import choose_compute
from bids_fbn.models.udr import UDR
from bids_fbn.models.udr_network import (
    covered_in,
    explained,
    fit_courses,
    fit_maps,
    predicted,
)
from bids_fbn.networks.maps import zscore_maps
from bids_fbn.networks.templates import load_templates
from bids_fbn.signal.signals import Signals

Maker = Callable[[Tensor], Tensor]  # volumes (B, T, V) → maps (B, K, V)

FEW = 30
GAP = 20.0  # s
MEASURES = {
    "explained_half": "explained, half",
    "explained_few": f"explained, {FEW} volumes",
    "predicted_half": "predicted, half",
    "predicted_few": f"predicted, {FEW} volumes",
    "within": "r within",
    "across": "r across",
    "identified": "identified",
    "r_group": "r to template",
    "r_group_least": "lowest",
}
N_BOOTSTRAP = 10_000


def makers(model: UDR, prior: UDR) -> Mapping[str, Maker]:
    """Each method, by name."""
    group = model.network.group[None]

    def dual_regression(volumes: Tensor) -> Tensor:
        maps, _ = fit_maps(volumes, fit_courses(volumes, group, covered_in(volumes)), 0.0)
        return maps

    return {
        "mean of the others": lambda volumes: model.network.mean.expand(len(volumes), -1, -1),
        "dual regression": dual_regression,
        "shrinkage": lambda volumes: prior.network(volumes)[0],
        "udr": lambda volumes: model.network(volumes)[0],
    }


@torch.no_grad()
def scores(maker: Maker, group: Tensor, volumes: Tensor, gap: int) -> pd.DataFrame:
    """A row for each participant, of volumes (N, T, V)."""
    n_volumes = volumes.shape[1]
    middle = n_volumes // 2
    halves = volumes[:, : middle - gap // 2], volumes[:, middle + (gap + 1) // 2 :]
    first, second = (maker(half) for half in halves)
    low = (n_volumes - FEW) // 2
    few = maker(volumes[:, low : low + FEW])
    rest = torch.cat([volumes[:, : low - gap], volumes[:, low + FEW + gap :]], dim=1)

    def foretold(volumes: Tensor, maps: Tensor) -> Tensor:
        return predicted(volumes, fit_courses(volumes, group[None], covered_in(volumes)), maps)

    unit, template = _unit(first), _unit(group[None])
    r = torch.einsum("ikv,jkv->ijk", unit, _unit(second)).mean(dim=2).numpy()
    n = len(r)
    r_group = (unit * template).sum(dim=2)
    return pd.DataFrame(
        {
            "explained_half": (explained(halves[1], first) + explained(halves[0], second)) / 2,
            "explained_few": explained(rest, few),
            "predicted_half": (foretold(halves[1], first) + foretold(halves[0], second)) / 2,
            "predicted_few": foretold(rest, few),
            "within": r.diagonal(),
            "across": (r.sum(axis=1) - r.diagonal()) / max(1, n - 1),
            "identified": (r.argmax(axis=1) == np.arange(n)).astype(float),
            "r_group": r_group.mean(dim=1),
            "r_group_least": r_group.amin(dim=1),
        }
    )


def _unit(maps: Tensor) -> Tensor:
    centred = maps - maps.mean(dim=-1, keepdim=True)
    return centred / centred.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def of_fold(
    train: Sequence[Signals], test: Sequence[Signals], options: argparse.Namespace
) -> pd.DataFrame:
    """Scores of the participants of a fold."""
    templates = load_templates(options.templates, train[0].grid)
    asked = ModelOptions(model=("udr",), epochs=options.epochs, sloppy=options.sloppy)
    compute = choose_compute(options.device, options.precision, options.threads)
    model, prior = (models.create("udr", asked, train[0].grid, templates) for _ in range(2))
    assert isinstance(model, UDR)
    assert isinstance(prior, UDR)
    model.fit(train, compute, options.seed)
    # The denoisers that a network starts with change nothing: shrinkage is left.
    prior.network.set_prior(model.network.group, model.network.mean, model.network.spread)
    volumes = torch.from_numpy(np.stack([np.asarray(run.data) for run in test]))
    gap = int(np.ceil(GAP / test[0].repetition_time))
    group = torch.from_numpy(zscore_maps(templates.maps))
    rows = [
        scores(maker, group, volumes, gap).assign(
            method=name, participant=[run.name for run in test]
        )
        for name, maker in makers(model, prior).items()
    ]
    return pd.concat(rows, ignore_index=True)


def table(rows: pd.DataFrame) -> str:
    """Markdown: means, and differences to dual regression with 95 % bootstrap intervals."""
    means = rows.groupby("method", sort=False)[list(MEASURES)].mean()
    lines = [
        "| maps | " + " | ".join(MEASURES.values()) + " |",
        "|---" * (len(MEASURES) + 1) + "|",
    ]
    lines += [
        f"| {name} | " + " | ".join(f"{value:.3f}" for value in row) + " |"
        for name, row in zip(means.index, means.to_numpy(), strict=True)
    ]
    by_method = {name: of.set_index("participant") for name, of in rows.groupby("method")}
    chance = np.random.default_rng(0)
    lines.append("")
    for measure in list(MEASURES)[:4]:
        difference = (by_method["udr"][measure] - by_method["dual regression"][measure]).to_numpy()
        drawn = chance.choice(difference, (N_BOOTSTRAP, len(difference))).mean(axis=1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        lines.append(
            f"udr over dual regression, {MEASURES[measure]}: {difference.mean():+.3f} "
            f"({low:+.3f} to {high:+.3f})"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--label", nargs="+", default=[], help="participants (all)")
    parser.add_argument("--nuisance", default="none")
    parser.add_argument("--resolution", type=float, default=10.0)
    parser.add_argument("--templates", default="smith2009")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="of the recipe")
    parser.add_argument("--sloppy", action="store_true", help="small models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=Path, help="write a row for each participant there")
    options = parser.parse_args(arguments)
    prepare_environment(options.threads)
    logging.getLogger("bids_fbn").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        runs = cleaned(
            options.dataset,
            options.nuisance,
            options.resolution,
            Path(name),
            participants=tuple(options.label),
        )
        order = np.random.default_rng(options.seed).permutation(len(runs))
        found = []
        for number, fold in enumerate(np.array_split(order, options.folds), 1):
            train = [runs[i] for i in order if i not in fold]
            found.append(of_fold(train, [runs[i] for i in fold], options))
            print(f"fold {number} of {options.folds}", flush=True)
    rows = pd.concat(found, ignore_index=True)
    write_rows(options.rows, rows.to_dict("records"))
    print(f"\n{table(rows)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
