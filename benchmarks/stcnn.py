"""ST-CNN, trained on half of a resting-state dataset: does it find networks in the other half, and
in a task of another dataset, and does it look at the data to do so?

    python benchmarks/stcnn.py REST_DIR TASK_DIR [--resolution 10] [--epochs N] [--seed 0]

Beside it stand the dictionary learning that it was taught by, the network before training, and the
mean of the maps that it was taught, which one that says the same of every run cannot surpass.
IoU is size-matched (as many voxels as the template has).

REST_DIR is cleaned without nuisance regressors, TASK_DIR with those of motion.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from common import cleaned

from bids_fbn import logs, models
from bids_fbn.config import ModelOptions
from bids_fbn.models.compute import Compute, choose_compute
from bids_fbn.models.neural import NeuralModel
from bids_fbn.models.stcnn import STCNN
from bids_fbn.models.targets import Targets, find_targets
from bids_fbn.networks.dynamics import network_courses
from bids_fbn.networks.maps import SupportRule, zscore_maps
from bids_fbn.networks.overlap import (
    assign_one_to_one,
    overlap_with_templates,
    support_iou,
    support_of,
)
from bids_fbn.networks.templates import TemplateSet, load_templates
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals

NETWORK = "DefaultMode"
# Volumes from one window to the next where maps are averaged over a run.
STRIDE = 10
RULE = SupportRule(either_sign=False)
DUAL_REGRESSION = "dual regression from that mean"
RESIDUALS = f"""
r of a run's map, less the method's mean map of the training runs, with a target, less the mean
training target: the run's own target, and those of the other runs

| method | runs | {NETWORK}, own | of others | all networks, own | of others |
|---|---|---|---|---|---|"""


@dataclass(frozen=True, eq=False)
class Found:
    """What a method says of a run: maps (K, V) and courses (T, K)."""

    maps: np.ndarray
    courses: np.ndarray


def mean_maps(model: NeuralModel, signals: Signals, compute: Compute) -> np.ndarray:
    """(K, V): mean over the windows of a run."""
    maps = [batch.cpu().numpy() for _, batch in model.maps(signals, compute, STRIDE)]
    return np.concatenate(maps).mean(axis=0)


def as_assigned(maps: np.ndarray, signals: Signals, templates: TemplateSet) -> np.ndarray:
    """Maps in the order of the templates that they fit best, either way up: what the app makes of
    maps that nobody has told what to be."""
    covered = signals.covered
    found = overlap_with_templates(
        zscore_maps(maps[:, covered]),
        templates.maps[:, covered],
        templates.supports[:, covered],
        SupportRule(),
    )
    chosen = assign_one_to_one(found.iou)
    sign = found.sign[chosen, np.arange(len(chosen))]
    return maps[chosen] * sign[:, None]


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson r of rows, (…, N); 0 where one does not vary."""
    return (zscore_maps(first) * zscore_maps(second)).mean(axis=-1)


@dataclass(frozen=True, eq=False)
class Scores:
    """Of one method in one run, each (K,); NaN where the run has no target for the network."""

    iou_target: np.ndarray
    r_target: np.ndarray
    iou_template: np.ndarray
    r_template: np.ndarray
    r_course: np.ndarray


def score(found: Found, signals: Signals, targets: Targets, templates: TemplateSet) -> Scores:
    """Compare with the run's own targets and with the templates, in the voxels that it covers."""
    covered = signals.covered
    maps, wanted = found.maps[:, covered], targets.maps[:, covered]
    supports = templates.supports[:, covered]

    def largest(values: np.ndarray) -> np.ndarray:
        return np.stack(
            [support_of(v, RULE, int(s.sum())) for v, s in zip(values, supports, strict=True)]
        )

    def taught(values: np.ndarray) -> np.ndarray:
        return np.where(targets.found, values, np.nan)

    rows = np.isfinite(found.courses).all(axis=1)
    r_course = correlation(found.courses[rows].T, targets.courses[rows].T)
    return Scores(
        taught(support_iou(largest(maps), largest(wanted))),
        taught(correlation(maps, wanted)),
        support_iou(largest(maps), supports),
        correlation(maps, templates.maps[:, covered]),
        taught(r_course),
    )


Method = Callable[[Signals, Targets], Found]


def methods(
    trained: dict[str, STCNN],
    untrained: STCNN,
    mean_target: np.ndarray,
    templates: TemplateSet,
    compute: Compute,
) -> dict[str, Method]:
    """Every method by its name."""

    def least_squares(maps: np.ndarray, signals: Signals) -> Found:
        data = np.asarray(signals.data)
        return Found(maps, network_courses(maps, data, signals.covered))

    def of_model(model: STCNN) -> Method:
        return lambda signals, _: Found(
            mean_maps(model, signals, compute), model.courses(signals, compute)
        )

    def of_its_maps(model: STCNN) -> Method:
        return lambda signals, _: least_squares(mean_maps(model, signals, compute), signals)

    def dual_regression(signals: Signals) -> Found:
        courses = least_squares(mean_target, signals).courses
        maps, *_ = np.linalg.lstsq(courses, np.asarray(signals.data), rcond=None)
        return least_squares(maps, signals)

    by_name: dict[str, Method] = {}
    for name, model in trained.items():
        by_name[name] = of_model(model)
        by_name[f"{name}; courses by least squares"] = of_its_maps(model)
    return by_name | {
        "untrained": of_model(untrained),
        "untrained, maps assigned to templates": lambda signals, _: least_squares(
            as_assigned(mean_maps(untrained, signals, compute), signals, templates), signals
        ),
        "mean of the training targets": lambda signals, _: least_squares(mean_target, signals),
        DUAL_REGRESSION: lambda signals, _: dual_regression(signals),
        "dictionary learning (the target)": lambda _, targets: Found(
            targets.maps, targets.courses
        ),
    }


def summary(values: Sequence[float] | np.ndarray) -> str:
    """Mean ± standard deviation over participants; the mean alone of one."""
    finite = np.asarray(values)[np.isfinite(values)]
    if not len(finite):
        return "–"
    if len(finite) == 1:
        return f"{finite[0]:.2f}"
    return f"{finite.mean():.2f} ± {finite.std(ddof=1):.2f}"


def print_scores(title: str, scores: dict[str, list[Scores]], network: int) -> None:
    """A table: the default mode, then the mean over the other networks."""
    fields = ("iou_target", "r_target", "iou_template", "r_template", "r_course")
    heads = ("IoU target", "r target", "IoU template", "r template", "r course")
    for part in (NETWORK, "mean of the other networks"):
        print(f"\n{title}, {part}\n")
        print("| method | " + " | ".join(heads) + " |")
        print("|---|" + "---|" * len(heads))
        for method, of_runs in scores.items():
            cells = []
            for field in fields:
                values = np.array([getattr(of_run, field) for of_run in of_runs])
                own = values[:, network]
                rest = np.delete(values, network, axis=1)
                others = np.array(
                    [
                        row[np.isfinite(row)].mean() if np.isfinite(row).any() else np.nan
                        for row in rest
                    ]
                )
                cells.append(summary(own if part == NETWORK else others))
            print(f"| {method} | " + " | ".join(cells) + " |")


def print_residuals(
    method: str,
    groups: dict[str, list[Signals]],
    found: dict[str, np.ndarray],
    targets: dict[str, Targets],
    network: int,
) -> None:
    """Rows of a table: is what sets a run's map apart what sets its target apart?"""
    training = groups["training"]
    mean_found = np.mean([found[run.name] for run in training], axis=0)
    mean_target = np.mean([targets[run.name].maps for run in training], axis=0)
    for title, runs in groups.items():
        covered = np.all([run.covered for run in runs], axis=0)
        off = np.stack([(found[run.name] - mean_found)[:, covered] for run in runs])
        wanted = np.stack([(targets[run.name].maps - mean_target)[:, covered] for run in runs])
        usable = np.stack([targets[run.name].found for run in runs])
        r = np.where(usable, correlation(off[:, None], wanted[None]), np.nan)
        own = np.stack([r[i, i] for i in range(len(runs))])
        others = [np.delete(r[i], i, axis=0) for i in range(len(runs))]
        cells = [
            summary(own[:, network]),
            summary([np.nanmean(of_run[:, network]) for of_run in others if of_run.size]),
            summary(np.nanmean(own, axis=1)),
            summary([np.nanmean(of_run) for of_run in others if of_run.size]),
        ]
        print(f"| {method} | {title} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rest", type=Path)
    parser.add_argument("task", type=Path)
    parser.add_argument("--resolution", type=float, default=10.0, help="mm (10)")
    parser.add_argument("--epochs", type=int, help="of each stage (the recipe's)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the training (0)")
    asked = parser.parse_args()
    logs.configure(0)

    with tempfile.TemporaryDirectory() as folder:
        study(asked, Path(folder))


def study(asked: argparse.Namespace, work: Path) -> None:
    compute = choose_compute(asked.device, asked.precision)
    rest = cleaned(asked.rest, "none", asked.resolution, work)
    task = cleaned(asked.task, "motion", asked.resolution, work, rest[0].grid)
    templates = load_templates("smith2009", rest[0].grid)
    network = templates.networks.index(NETWORK)
    half = len(rest) // 2
    order = np.random.default_rng(asked.seed).permutation(len(rest))
    training = [rest[i] for i in np.sort(order[:half])]
    test = [rest[i] for i in np.sort(order[half:])]

    began = time.monotonic()
    targets = {run.name: find_targets(run, templates) for run in (*rest, *task)}
    seconds = (time.monotonic() - began) / len(targets)
    print(
        f"{len(training)} runs to train on, {len(test)} to test on; {rest[0].grid.n_voxels} voxels"
    )
    print(f"dictionary learning: {seconds:.1f} s a run")
    matches = np.array([targets[run.name].match for run in rest])
    share = np.array([targets[run.name].found for run in rest]).mean(axis=0)
    print(
        "\n| network | r of the component with the template | runs that teach it |\n|---|---|---|"
    )
    for name, of_runs, taught in zip(templates.networks, matches.T, share, strict=True):
        print(f"| {name} | {summary(of_runs)} | {taught:.0%} |")

    trained = {}
    for name, turned in (("ST-CNN", True), ("ST-CNN, windows not turned", False)):
        model = new_model(asked, rest[0].grid, templates)
        model.recipe = replace(model.recipe, synchronize=turned)
        began = time.monotonic()
        trained[name] = model.fit(training, compute, asked.seed)
        print(f"\n{name}: trained in {time.monotonic() - began:.0f} s, targets included")
    print(f"\n{compute.name}, {compute.precision}; {model.n_parameters / 1e6:.2f} M parameters")
    print(model.recipe)

    untrained = new_model(asked, rest[0].grid, templates)
    mean_target = np.mean([targets[run.name].maps for run in training], axis=0)
    # Few windows: in fp32 the precision of a map has no part in the comparison.
    exact = replace(compute, precision="fp32")
    by_method = methods(trained, untrained, mean_target, templates, exact)
    groups = {"training": training, "test": test, "task": task}
    for title in ("test", "task"):
        scores = {
            name: [
                score(method(run, targets[run.name]), run, targets[run.name], templates)
                for run in groups[title]
            ]
            for name, method in by_method.items()
        }
        print_scores(title, scores, network)
    print(RESIDUALS)
    for name in (*trained, DUAL_REGRESSION):
        found = {
            run.name: by_method[name](run, targets[run.name]).maps
            for runs in groups.values()
            for run in runs
        }
        print_residuals(name, groups, found, targets, network)


def new_model(asked: argparse.Namespace, grid: Grid, templates: TemplateSet) -> STCNN:
    """An untrained model, the same each time."""
    torch.manual_seed(asked.seed)
    model = models.create("stcnn", ModelOptions(epochs=asked.epochs), grid, templates)
    assert isinstance(model, STCNN)
    return model


if __name__ == "__main__":
    main()
