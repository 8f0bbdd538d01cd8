"""How often does an interval around a map of a network hold the truth?

    python benchmarks/uncertainty.py [--seed 0 …] [--train 24] [--test 12] [--dynamics static]

UDR is trained on some simulated participants and applied to others, of whom the truth is known:
the noise-free signal, cleaned as the run was, in standard deviations of the voxel's cleaned
series, for one standard deviation of the network's course over the stretch. For halves of the
runs, and for windows of 40 and 20 volumes: of the values of the ten networks in all voxels, and in
those where the truth is above 0.2 or below −0.2, the share within the intervals of nominally
50, 68, 90 and 95 %; beside it dual regression with its own standard error, and UDR with that of
the normal model alone; and of the squared error the share of its mean over participants, which is
wrong in the same way in all of them. Below it the same of amplitudes, by which states are: how
often is the largest truly the largest, beside how certain that is said to be? Nothing is smoothed,
so that cleaning is linear in each voxel by itself. Of several seeds, each a study of its own, the
means are shown: what a study's participants have in common is another thing in the next.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import write_rows
from scipy.stats import norm

from bids_fbn import models
from bids_fbn.config import ModelOptions, SignalOptions
from bids_fbn.environment import prepare_environment
from bids_fbn.evaluation.simulated import SPACE
from bids_fbn.evaluation.truth import read_truth
from bids_fbn.models.compute import choose_compute
from bids_fbn.models.udr import UDR
from bids_fbn.models.udr_error import limits_of
from bids_fbn.models.udr_network import covered_in, fit_courses, fit_maps
from bids_fbn.networks.amplitude import certainty_of_largest, window_amplitudes
from bids_fbn.networks.states import StateRule
from bids_fbn.networks.templates import load_templates
from bids_fbn.signal.clean import clean_run
from bids_fbn.signal.signals import Signals
from bids_fbn.signal.standard import analysis_grid, load_image
from bids_fbn.signal.windows import steps_of
from bids_fbn.simulate import simulate_dataset
from bids_fbn.simulation.noise import mni_head, saturation
from bids_fbn.simulation.run import EFFECT, Dynamics

TEMPLATES = "seitzman2018"
NOMINAL = (0.5, 0.68, 0.9, 0.95)
FEW = (40, 20)
INSIDE = 0.2


@dataclass(frozen=True, eq=False)
class KnownRun:
    """A cleaned run and its truth.

    Parameters
    ----------
    signals : Signals
    noise_free : ndarray (T, V)
        What the cleaned series hold of networks, in their units.
    courses : ndarray (T, P)
        Of the networks, cleaned as the series were.
    networks : tuple of str
        P names.
    """

    signals: Signals
    noise_free: np.ndarray
    courses: np.ndarray
    networks: tuple[str, ...]

    def maps(self, start: int, stop: int) -> np.ndarray:
        """True maps (P, V) of a stretch."""
        courses, signal = (
            part[start:stop] - part[start:stop].mean(axis=0)
            for part in (self.courses, self.noise_free)
        )
        found: np.ndarray = np.linalg.lstsq(courses / courses.std(axis=0), signal, rcond=None)[0]
        return found


def known_runs(
    dynamics: Dynamics, seed: int, options: argparse.Namespace, folder: Path
) -> list[KnownRun]:
    """Simulated runs, cleaned, with their truth."""
    grid = analysis_grid(SPACE, options.resolution)
    head = mni_head(options.resolution, SPACE)
    how = SignalOptions(resolution=options.resolution, smoothing=0.0, min_time=0)
    dataset = simulate_dataset(
        folder / dynamics,
        n_participants=options.train + options.test,
        n_volumes=options.volumes,
        resolution=options.resolution,
        space=SPACE,
        dynamics=dynamics,
        seed=seed,
    )
    baseline = grid.gather(head.grid.scatter(head.baseline))
    found = []
    for func in sorted(dataset.glob("sub-*/func")):
        prefix = f"{func.parent.name}_task-rest"
        confounds = func / f"{prefix}_desc-confounds_timeseries.tsv"
        bold = next(func.glob("*_desc-preproc_bold.nii.gz"))
        truth = read_truth(dataset, prefix, grid)
        work = folder / f"{dynamics}-{prefix}"
        work.mkdir()
        cleaned = clean_run(
            bold,
            truth.repetition_time,
            grid,
            how,
            work,
            next(func.glob("*_desc-brain_mask.nii.gz")),
            confounds,
            confounds.with_suffix(".json"),
            name=prefix,
        )
        signals = replace(cleaned.signals, data=np.array(cleaned.signals.data))
        kept, covered = signals.kept, signals.covered
        design = np.column_stack([kept, cleaned.nuisance.regressors.to_numpy(dtype=float)[kept]])
        design = (design - design.mean(axis=0)) / design.std(axis=0)
        basis, _ = np.linalg.qr(design)

        def clean(values: np.ndarray, basis: np.ndarray = basis) -> np.ndarray:
            centred = values - values.mean(axis=0)
            return np.asarray(centred - basis @ (basis.T @ centred))

        series = clean(grid.gather(load_image(bold).get_fdata())[kept])
        size = np.where(covered, series.std(axis=0, ddof=1), np.inf)
        # That the truth has gone through what the run has gone through.
        np.testing.assert_allclose(series / size, signals.data, atol=1e-3)
        bright = saturation(options.volumes, truth.repetition_time, 1.0)[:, None]
        signal = EFFECT / 100 * bright * baseline * (truth.courses @ truth.maps)
        found.append(
            KnownRun(
                signals, clean(signal[kept]) / size, clean(truth.courses[kept]), truth.networks
            )
        )
    return found


@torch.no_grad()
def estimates(model: UDR, volumes: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Maps (K, V) of volumes (T, V) and the standard deviation of their error, by each method."""
    network = model.network
    batch = torch.from_numpy(volumes)[None]
    maps, sd, _ = network.estimate(batch)
    parts = network.maps_and_parts(batch)[1]
    raw, noise = fit_maps(batch, fit_courses(batch, network.group[None], covered_in(batch)), 0.0)
    error = noise.sqrt()[:, :, None].expand_as(raw)
    return {
        "dual regression": (raw[0].numpy(), error[0].numpy()),
        "UDR": (maps[0].numpy(), sd[0].numpy()),
        # Noise and shrinkage, with factors of 1.
        "UDR, normal model": (maps[0].numpy(), parts[0, :2].sum(dim=0).sqrt().numpy()),
    }


def rows_of(model: UDR, runs: Sequence[KnownRun], dynamics: str) -> list[dict[str, object]]:
    """Coverage by length, method and voxels."""
    rows: list[dict[str, object]] = []
    for length in (None, *FEW):
        pooled: dict[str, list[np.ndarray]] = {}
        for run in runs:
            index = [model.networks.index(name) for name in run.networks]
            n, covered = run.signals.n_kept, run.signals.covered
            volumes = n // 2 if length is None else length
            for start in range(0, n - volumes + 1, volumes):
                stretch = run.signals.rows(start, start + volumes)
                true = run.maps(start, start + volumes)[:, covered].ravel()
                for name, (maps, sd) in estimates(model, stretch).items():
                    error = maps[index][:, covered].ravel() - true
                    pooled.setdefault(name, []).append(
                        np.stack([error, sd[index][:, covered].ravel(), true])
                    )
        for name, parts in pooled.items():
            error, sd, true = np.concatenate(parts, axis=1)
            # All runs cover the whole mask and have as many stretches.
            by_run = error.reshape(len(runs), -1)
            common = np.sum(by_run.mean(axis=0) ** 2) / np.mean(np.sum(by_run**2, axis=1))
            degrees = float(model.network.error_degrees) if name == "UDR" else np.inf
            limits = dict(zip(NOMINAL, limits_of(np.array(NOMINAL), degrees), strict=True))
            for where, which in (("all", true == true), ("networks", np.abs(true) > INSIDE)):
                away = np.abs(error[which]) / sd[which]
                rows.append(
                    {
                        "data": dynamics,
                        "stretch": "half" if length is None else f"{length} volumes",
                        "maps": name,
                        "voxels": where,
                        **{
                            f"{100 * share:g} %": np.mean(away <= limit)
                            for share, limit in limits.items()
                        },
                        "error": np.sqrt(np.mean(error[which] ** 2)),
                        "sd": np.sqrt(np.mean(sd[which] ** 2)),
                        "in common": common if where == "all" else np.nan,
                    }
                )
    return rows


def amplitude_rows(model: UDR, runs: Sequence[KnownRun], dynamics: str) -> list[dict[str, object]]:
    """Amplitudes in windows against those of the true courses."""
    group = model.network.group.numpy()
    rows: list[dict[str, object]] = []
    for length in FEW:
        pooled: list[np.ndarray] = []
        states: list[pd.DataFrame] = []
        for run in runs:
            index = [model.networks.index(name) for name in run.networks]
            steps = steps_of(run.signals, length, length // 4)
            amplitude, sd = window_amplitudes(run.signals, group, steps)
            amplitude, sd = amplitude[steps.valid][:, index], sd[index]
            courses = run.courses / run.courses.std(axis=0)
            truth = np.sqrt(
                [(courses[s : s + length] ** 2).mean(axis=0) for s in steps.start[steps.valid]]
            )
            pooled.append(
                np.stack([amplitude.ravel(), truth.ravel(), np.tile(sd, len(amplitude))])
            )
            right = amplitude.argmax(axis=1) == truth.argmax(axis=1)
            certain = certainty_of_largest(amplitude, sd)
            states.append(pd.DataFrame({"certain, %": certain, "right, %": right}))
        amplitude, truth, sd = np.concatenate(pooled, axis=1)
        of_states = pd.concat(states)
        claimed = of_states["certain, %"] >= StateRule().certainty
        away = np.abs(amplitude - truth) / sd
        rows.append(
            {
                "data": dynamics,
                "window": f"{length} volumes",
                "r": np.corrcoef(amplitude, truth)[0, 1],
                **{
                    f"{100 * share:g} %": np.mean(away <= norm.ppf(0.5 + share / 2))
                    for share in NOMINAL
                },
                "error": np.sqrt(np.mean((amplitude - truth) ** 2)),
                "sd": np.sqrt(np.mean(sd**2)),
                "with state, %": claimed.mean(),
                **of_states[claimed].mean(),
                **of_states[~claimed].mean().add_prefix("without: "),
            }
        )
    return rows


def over_seeds(rows: Sequence[dict[str, object]]) -> pd.DataFrame:
    """The mean of what the studies say."""
    all_rows = pd.DataFrame(rows).drop(columns="seed")
    words = list(all_rows.columns[[isinstance(value, str) for value in all_rows.iloc[0]]])
    return all_rows.groupby(words, sort=False).mean().reset_index()


def table(rows: pd.DataFrame) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(rows.columns) + " |", "|---" * len(rows.columns) + "|"]
    for row in rows.itertuples(index=False):
        cells = [
            value
            if isinstance(value, str)
            else "–"
            if np.isnan(value)
            else (f"{100 * value:.1f}" if name.endswith("%") else f"{value:.3f}")
            for name, value in zip(rows.columns, row, strict=True)
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=24, help="participants")
    parser.add_argument("--test", type=int, default=12, help="participants")
    parser.add_argument("--dynamics", nargs="+", default=["static", "states"])
    parser.add_argument("--volumes", type=int, default=200)
    parser.add_argument("--resolution", type=float, default=12.0)
    parser.add_argument("--epochs", type=int, help="of the recipe")
    parser.add_argument("--training-stride", type=int, help="of the recipe")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="a study for each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=Path, help="write the rows there")
    options = parser.parse_args(arguments)
    prepare_environment(options.threads)
    logging.getLogger("bids_fbn").setLevel(logging.WARNING)
    asked = ModelOptions(
        model=("udr",),
        epochs=options.epochs,
        training_stride=options.training_stride,
    )
    rows: list[dict[str, object]] = []
    of_amplitudes: list[dict[str, object]] = []
    for dynamics, seed in itertools.product(options.dynamics, options.seed):
        with tempfile.TemporaryDirectory() as name:
            runs = known_runs(dynamics, seed, options, Path(name))
            grid = runs[0].signals.grid
            model = models.create("udr", asked, grid, load_templates(TEMPLATES, grid))
            assert isinstance(model, UDR)
            model.fit(
                [run.signals for run in runs[: options.train]],
                choose_compute("cpu", "fp32", options.threads),
                seed,
            )
            print(f"{dynamics}, seed {seed}: {model.training['Error']}", flush=True)
            test = runs[options.train :]
            rows += [{"seed": seed, **row} for row in rows_of(model, test, dynamics)]
            of_amplitudes += [
                {"seed": seed, **row} for row in amplitude_rows(model, test, dynamics)
            ]
            write_rows(options.rows, rows)
    print(f"\n{table(over_seeds(rows))}\n\n{table(over_seeds(of_amplitudes))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
