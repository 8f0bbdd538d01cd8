"""Small models and a run to train them on, for tests of the models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bids_fbn.models.compute import Compute
from bids_fbn.models.neural import NeuralModel, Recipe
from bids_fbn.models.scaae import SCAAE
from bids_fbn.models.stca import STCA
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals

__all__ = [
    "BF16",
    "CLASSES",
    "CPU",
    "SMALL",
    "all_maps",
    "assert_same",
    "blobs",
    "one_line",
    "run_of",
    "small",
    "weights_of",
]

BF16 = Compute("cpu", "bf16")
CPU = Compute("cpu", "fp32")
SMALL = {
    "stca": Recipe(window=6, channels=4, learning_rate=2e-3, epochs=3, batch=2, stride=2),
    "scaae": Recipe(window=1, channels=4, learning_rate=2e-3, epochs=2, batch=4),
}
CLASSES: dict[str, type[NeuralModel]] = {"stca": STCA, "scaae": SCAAE}


def small(name: str, grid: Grid, candidates: str = "fbn", **changes: Any) -> NeuralModel:
    # The weights that a test starts from must not depend on the tests before it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLASSES[name](replace(SMALL[name], **changes), "test", grid, candidates)


def blobs(grid: Grid) -> np.ndarray:
    """The two networks of :func:`run_of`, (2, V), 40 mm apart."""
    middle = grid.coordinates.mean(axis=0)
    shifts = ([20, 0, 0], [-20, 0, 10])
    return np.stack(
        [np.exp(-((grid.coordinates - middle - s) ** 2).sum(axis=1) / 800) for s in shifts]
    )


def run_of(
    grid: Grid, n_volumes: int = 16, left_out: tuple[int, ...] = (), seed: int = 0
) -> Signals:
    """Two blobs that go up and down, and noise."""
    rng = np.random.default_rng(seed)
    courses = np.sin(np.arange(n_volumes)[:, None] / [3.0, 5.0])
    data = 2 * courses @ blobs(grid) + 0.3 * rng.standard_normal((n_volumes, grid.n_voxels))
    data = (data - data.mean(axis=0)) / data.std(axis=0)
    kept = np.setdiff1d(np.arange(n_volumes), left_out)
    covered = np.ones(grid.n_voxels, dtype=bool)
    return Signals(data[kept].astype(np.float32), grid, 2.0, kept, n_volumes, covered, "run")


def all_maps(model: NeuralModel, signals: Signals, **options: Any) -> dict[int, np.ndarray]:
    return {
        int(step): maps
        for steps, batch in model.maps(signals, CPU, **options)
        for step, maps in zip(steps, batch.cpu().numpy().copy(), strict=True)
    }


def weights_of(model: NeuralModel) -> dict[str, np.ndarray]:
    return {key: value.cpu().numpy() for key, value in model.network.state_dict().items()}


def assert_same(first: dict[Any, np.ndarray], second: dict[Any, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for key, values in first.items():
        assert np.array_equal(values, second[key]), key


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text
