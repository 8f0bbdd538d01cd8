"""How much of other volumes do maps of a participant explain, and are they that participant's?

    python benchmarks/individual.py DATASET [--components K] [--seeds [--keep DIR]] [--rows FILE]
    python benchmarks/individual.py DATASET --untrained

K maps, made from a half of a run and from 30 volumes of it. The networks are those of a template
set or, with --components, K components of a group ICA of the training participants. Methods that
are told of them: the group maps themselves, the mean of the others' maps, dual regression,
template ICA by EM, shrinkage (the posterior mean of UDR's prior, nothing learned) and UDR. Methods
that are not: ICA and dictionary learning of the same volumes and, with --seeds, STCA and SCAAE
trained on them, whose maps are then matched one to one to the group maps by |r|. Their training is
most of the time and knows nothing of the networks: with --keep DIR another call finds it there.

With --untrained no UDR is trained. It is shown by how often courses and maps are fitted to each
other and for how many volumes those of others count; and shrinkage likewise, by how much more
noise there is taken to be than if volumes were independent, and with and without a ridge.

With --figure the maps of one network in four participants are drawn, of the first fold.

Group maps, prior and UDR are made of other participants, in folds. Between volumes that make maps
and those that they have to explain are 20 s. One run a participant, all of the same length.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import cleaned, write_rows
from joblib import Memory, Parallel, delayed
from torch import Tensor

from bids_fbn import models
from bids_fbn.config import ModelOptions
from bids_fbn.environment import prepare_environment
from bids_fbn.models.compute import Compute, choose_compute
from bids_fbn.models.template_ica import template_ica
from bids_fbn.models.udr import UDR
from bids_fbn.models.udr_network import (
    UnrolledDualRegression,
    covered_in,
    explained,
    fit_courses,
    fit_maps,
    predicted,
)
from bids_fbn.networks.dynamics import network_courses
from bids_fbn.networks.maps import zscore_maps
from bids_fbn.networks.overlap import assign_one_to_one
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
    "r_group": "r to group map",
    "r_group_least": "lowest",
}
VARIANCE = list(MEASURES)[:4]
N_BOOTSTRAP = 10_000
SEEDS = ("stca", "scaae")
# Of shrinkage, with --untrained; the ridge as a share of the mean square of a course.
REPETITIONS, NOISES = (1, 2, 3), (1.0, 2.0, 4.0)
RIDGES = (1e-3, 0.15)
# Volumes that those of others count for.
OTHERS = (15, 30, 60, 120)
# Of a stretch, a window of STCA at most: the rest is what there is to train on.
WINDOW = 2 / 3


def told(model: UDR, *, untrained: bool) -> dict[str, Maker]:
    """Each method that knows the networks, by name."""
    group, mean, spread = (getattr(model.network, name) for name in ("group", "mean", "spread"))

    def courses_of(volumes: Tensor) -> Tensor:
        return fit_courses(volumes, group[None], covered_in(volumes))

    def as_they_are(volumes: Tensor) -> Tensor:
        return torch.stack([scaled(group, of_one) for of_one in volumes])

    def dual_regression(volumes: Tensor) -> Tensor:
        return fit_maps(volumes, courses_of(volumes), 0.0)[0]

    def by_em(volumes: Tensor) -> Tensor:
        both = zip(volumes, courses_of(volumes), strict=True)
        return torch.stack(
            [template_ica(of_one, mean, spread, courses).maps for of_one, courses in both]
        )

    shown: dict[str, Maker] = {
        "group maps": as_they_are,
        "mean of the others": lambda volumes: mean.expand(len(volumes), -1, -1),
        "dual regression": dual_regression,
        "template ICA": by_em,
    }
    if untrained:
        return (
            shown
            | {
                f"beside others, {r} x, as {n} volumes": beside_others(model, r, n)
                for r, n in itertools.product(REPETITIONS, OTHERS)
            }
            | {
                f"shrinkage, {r} x, noise x {f:g}, ridge {a:g}": shrinkage(model, r, f, a)
                for r, f, a in itertools.product(REPETITIONS, NOISES, RIDGES)
            }
        )
    return shown | {
        "shrinkage": shrinkage(model),
        "udr": lambda volumes: model.network(volumes)[0],
    }


def shrinkage(
    model: UDR, repetitions: int = 1, noise: float = NOISES[0], ridge: float = RIDGES[0]
) -> Maker:
    """The posterior mean of UDR's prior, with a factor of the noise and a ridge that are given."""
    n_networks, n_voxels = model.network.group.shape
    network = UnrolledDualRegression(n_networks, n_voxels, repetitions)
    network.set_prior(model.network.group, model.network.mean, model.network.spread)
    torch.nn.init.constant_(network.log_noise, math.log(noise))
    torch.nn.init.constant_(network.log_ridge, math.log(ridge))
    return lambda volumes: network(volumes)[0]


def beside_others(model: UDR, repetitions: int, n_volumes: float) -> Maker:
    """UDR with nothing learned: volumes of others count for as many as is given."""
    modes = model.network.modes
    n_networks, n_voxels = model.network.group.shape
    network = UnrolledDualRegression(n_networks, n_voxels, repetitions, len(modes))
    network.set_prior(model.network.group, model.network.mean, model.network.spread, modes)
    torch.nn.init.constant_(network.log_volumes, math.log(n_volumes))
    return lambda volumes: network(volumes)[0]


def scaled(maps: Tensor, volumes: Tensor) -> Tensor:
    """Maps (K, V) in units of the volumes (T, V) for a standard deviation of their courses."""
    covered = (volumes != 0).any(dim=0).numpy()
    centred = volumes - volumes.mean(dim=0)
    courses = network_courses(maps.numpy(), centred.numpy(), covered)
    return maps * torch.from_numpy(courses.std(axis=0)).float()[:, None]


def learned(
    name: str,
    volumes: Tensor,
    group: Tensor,
    run: Signals,
    options: argparse.Namespace,
    compute: Compute,
) -> Tensor:
    """Maps (B, K, V) that a model finds in volumes (B, T, V), whatever the group maps (K, V).

    Of a method of components there are K, or as many as the volumes allow; of STCA and SCAAE all
    maps of all steps are candidates. A group map that none is left for gets a map of 0.
    """
    n_volumes = volumes.shape[1]
    asked = ModelOptions(model=(name,), sloppy=options.sloppy, epochs=options.epochs)
    if name in SEEDS:
        window = min(models.create(name, asked, run.grid).window or 1, int(WINDOW * n_volumes))
        asked = asked.model_copy(update={"window": window if window > 1 else None})
    else:
        asked = asked.model_copy(update={"channels": min(len(group), n_volumes - 1)})
    fitted = _candidates
    if name in SEEDS:
        fitted = Memory(options.keep, verbose=0).cache(_candidates, ignore=["run", "compute"])
    found = Parallel(options.processes)(
        delayed(fitted)(name, of_one.numpy(), asked.model_dump_json(), options.seed, run, compute)
        for of_one in volumes
    )
    return torch.stack(
        [
            scaled(_matched(torch.from_numpy(maps), group), of_one)
            for maps, of_one in zip(found, volumes, strict=True)
        ]
    )


def _candidates(
    name: str, volumes: np.ndarray, asked: str, seed: int, run: Signals, compute: Compute
) -> np.ndarray:
    """Maps (N, V) of a model with the options `asked` (JSON), fitted to volumes (T, V)."""
    torch.set_num_threads(1)
    data = volumes - volumes.mean(axis=0)
    n = len(data)
    stretch = Signals(data, run.grid, run.repetition_time, np.arange(n), n, data.any(axis=0))
    options = ModelOptions.model_validate_json(asked)
    with torch.enable_grad():
        model = models.create(name, options, run.grid).fit([stretch], compute, seed)
    maps = torch.cat([maps.flatten(0, 1) for _, maps in model.maps(stretch, compute)])
    # The logits of STCA and SCAAE have no zero of their own.
    return (zscore_maps(maps) if name in SEEDS else maps).numpy()


def _matched(candidates: Tensor, group: Tensor) -> Tensor:
    """One candidate (N, V) for each group map (K, V), each the way up that they correlate."""
    r = _unit(candidates) @ _unit(group).T
    chosen = assign_one_to_one(r.abs().numpy())
    matched = torch.zeros_like(group)
    for k in np.flatnonzero(chosen >= 0):
        matched[k] = candidates[chosen[k]] * r[chosen[k], k].sign()
    return matched


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

    unit, of_group = _unit(first), _unit(group[None])
    r = torch.einsum("ikv,jkv->ijk", unit, _unit(second)).mean(dim=2).numpy()
    n = len(r)
    r_group = (unit * of_group).sum(dim=2)
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
    train: Sequence[Signals],
    test: Sequence[Signals],
    options: argparse.Namespace,
    figure: Path | None,
) -> pd.DataFrame:
    """Scores of the participants of a fold; their maps are drawn if there is a path to do so."""
    grid = train[0].grid
    templates = None if options.components else load_templates(options.templates, grid)
    asked = ModelOptions(
        model=("udr",),
        epochs=options.epochs,
        sloppy=options.sloppy,
        components=options.components,
    )
    compute = choose_compute(options.device, options.precision, options.threads)
    model = models.create("udr", asked, grid, templates)
    assert isinstance(model, UDR)
    if options.untrained:
        model.prepare(train, options.seed)
    else:
        model.fit(train, compute, options.seed)
    volumes = torch.from_numpy(np.stack([np.asarray(run.data) for run in test]))
    gap = int(np.ceil(GAP / test[0].repetition_time))
    group = model.network.group
    makers: dict[str, Maker] = {
        name: partial(learned, name, group=group, run=test[0], options=options, compute=compute)
        for name in ("ica", "sdl", *(SEEDS if options.seeds else ()))
    }
    knowing = told(model, untrained=options.untrained)
    rows = [
        scores(maker, group, volumes, gap).assign(
            method=name, participant=[run.name for run in test]
        )
        for name, maker in (makers | knowing).items()
    ]
    if figure:
        draw(knowing, model, test, options, figure)
    return pd.concat(rows, ignore_index=True)


def draw(
    makers: Mapping[str, Maker],
    model: UDR,
    test: Sequence[Signals],
    options: argparse.Namespace,
    path: Path,
) -> None:
    """Maps of one network, z-scored: a row for each of four participants."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from nilearn.plotting import plot_stat_map

    which = model.networks.index(options.network)
    runs = test[:4]
    n_volumes = runs[0].n_kept
    low = (n_volumes - FEW) // 2
    stretches = {"half": (0, n_volumes // 2), f"{FEW} volumes": (low, low + FEW)}
    shown = [("dual regression", "half"), ("udr", "half")]
    shown += [(name, f"{FEW} volumes") for name in ("dual regression", "shrinkage", "udr")]
    figure, axes = plt.subplots(len(runs), len(shown), figsize=(3.2 * len(shown), 2.2 * len(runs)))
    # Before anything is drawn: nilearn puts its own axes where these are.
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.94, 0.02, 0.02)
    for row, run in zip(axes, runs, strict=True):
        for axis, (name, words) in zip(row, shown, strict=True):
            volumes = torch.from_numpy(run.rows(*stretches[words]))[None]
            with torch.no_grad():
                of_network = zscore_maps(makers[name](volumes)[0].numpy())[which]
            plot_stat_map(
                run.grid.image(of_network),
                display_mode="x",
                cut_coords=[options.cut],
                axes=axis,
                threshold=1,
                vmax=4,
                colorbar=False,
                annotate=False,
            )
    for axis, (name, words) in zip(axes[0], shown, strict=True):
        axis.set_title(f"{name}, {words}")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def table(rows: pd.DataFrame) -> str:
    """Markdown: means, and differences of UDR to each other method with 95 % intervals."""
    means = rows.groupby("method", sort=False)[list(MEASURES)].mean()
    lines = [
        *_heading("maps", list(MEASURES)),
        *(_row(name, [f"{v:.3f}" for v in values]) for name, *values in means.itertuples()),
    ]
    if "udr" not in means.index:
        return "\n".join(lines)
    lines += ["", *_heading("UDR over", VARIANCE)]
    by_method = rows.set_index(["method", "participant"])[VARIANCE]
    chance = np.random.default_rng(0)
    for name in means.index.drop("udr"):
        differences = (by_method.loc["udr"] - by_method.loc[name]).to_numpy()
        drawn = chance.integers(0, len(differences), (N_BOOTSTRAP, len(differences)))
        intervals = np.quantile(differences[drawn].mean(axis=1), [0.025, 0.975], axis=0)
        cells = zip(differences.mean(axis=0), *intervals, strict=True)
        lines.append(
            _row(name, [f"{d:+.3f} ({low:+.3f} to {high:+.3f})" for d, low, high in cells])
        )
    return "\n".join(lines)


def _heading(first: str, measures: Sequence[str]) -> list[str]:
    return [_row(first, [MEASURES[name] for name in measures]), "|---" * (len(measures) + 1) + "|"]


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([name, *cells])} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--label", nargs="+", default=[], help="participants (all)")
    parser.add_argument("--nuisance", default="none")
    parser.add_argument("--resolution", type=float, default=10.0)
    parser.add_argument("--templates", default="smith2009")
    parser.add_argument(
        "--components", type=int, metavar="K", help="of a group ICA, rather than templates"
    )
    parser.add_argument("--seeds", action="store_true", help="STCA and SCAAE too (slow)")
    parser.add_argument("--keep", type=Path, help="folder for what they found; read if it has it")
    parser.add_argument("--processes", type=int, default=1, help="participants fitted at a time")
    parser.add_argument("--untrained", action="store_true", help="settings of shrinkage instead")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="of the recipe")
    parser.add_argument("--sloppy", action="store_true", help="small models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=Path, help="write a row for each participant there")
    parser.add_argument("--figure", type=Path, help="draw one network in four participants there")
    parser.add_argument("--network", default="DefaultMode", help="which")
    parser.add_argument("--cut", type=float, default=-4.0, help="where, mm to the right")
    options = parser.parse_args(arguments)
    if options.figure and (options.components or options.untrained):
        parser.error("--figure is of networks and of UDR: not with --components or --untrained")
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
            figure = options.figure if number == 1 else None
            found.append(of_fold(train, [runs[i] for i in fold], options, figure))
            print(f"fold {number} of {options.folds}", flush=True)
    rows = pd.concat(found, ignore_index=True)
    write_rows(options.rows, rows.to_dict("records"))
    print(f"\n{table(rows)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
