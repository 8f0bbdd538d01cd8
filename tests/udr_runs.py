"""Runs in which each participant has three networks a little elsewhere, and models of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bids_fbn.config import Config
from bids_fbn.models.udr import UDR, UDRRecipe
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals

# mm² of the blobs; those that an ICA is to tell apart overlap less.
WIDE, NARROW = 600.0, 200.0
CONFIG = Config.from_options({"bids_dir": Path(), "output_dir": Path(), "model": ("udr",)})
RECIPE = UDRRecipe(window=24, learning_rate=3e-2, epochs=3, batch=4, stride=8)


# With a prior on the maps, and on the volumes.
both_priors = pytest.fixture(scope="module", params=[0, 30], ids=["shrunk", "beside modes"])


def own_maps(grid: Grid, participant: int, width: float = WIDE) -> np.ndarray:
    """Maps of a participant, (K, V): blobs of which each lies a little elsewhere and differs in
    size."""
    rng = np.random.default_rng(participant)
    middle = grid.coordinates.mean(axis=0)
    centres = np.array([[22, 0, 0], [-22, 0, 8], [0, 22, -8]])
    moved = middle + centres + 4 * rng.standard_normal(centres.shape)
    distance = ((grid.coordinates - moved[:, None]) ** 2).sum(axis=2)
    size = 1 + 0.2 * rng.standard_normal((len(centres), 1))
    return np.asarray(size * np.exp(-distance / width))


def runs_of(
    grid: Grid, n: int, n_volumes: int = 90, noise: float = 1.5, width: float = WIDE
) -> list[Signals]:
    runs = []
    for participant in range(n):
        rng = np.random.default_rng(1000 + participant)
        courses = rng.standard_normal((n_volumes, 3))
        data = 2 * courses @ own_maps(grid, participant, width)
        data += noise * rng.standard_normal(data.shape)
        data = (data - data.mean(axis=0)) / data.std(axis=0)
        covered = np.ones(grid.n_voxels, dtype=bool)
        name = f"sub-{participant:02d}_task-rest"
        kept = np.arange(n_volumes)
        runs.append(Signals(data.astype(np.float32), grid, 2.0, kept, n_volumes, covered, name))
    return runs


def templates_of(grid: Grid, width: float = WIDE) -> TemplateSet:
    maps = np.mean([own_maps(grid, number, width) for number in range(100, 140)], axis=0)
    maps = maps.astype(np.float32)
    return TemplateSet("own", ("A", "B", "C"), maps, maps > 0.5, "above", "", "test")


def model_of(grid: Grid, **changes: object) -> UDR:
    recipe = replace(RECIPE, **changes)
    templates = templates_of(grid)
    return UDR(recipe, "test", grid, networks=templates.networks, templates=templates)


def model_of_components(grid: Grid, n_components: int = 3, **changes: object) -> UDR:
    return UDR(replace(RECIPE, components=n_components, **changes), "test", grid)


def tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


# With a prior on the maps, and on the volumes.
both_priors = pytest.fixture(scope="module", params=[0, 30], ids=["shrunk", "beside modes"])


def similarity(maps: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(maps, truth, strict=True)]))
