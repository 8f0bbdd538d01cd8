"""Runs with two networks, for tests of what speaks for these."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from small_models import CPU

from bids_fbn import evidence, models
from bids_fbn.config import ModelOptions
from bids_fbn.evidence import Method
from bids_fbn.networks.maps import SupportRule
from bids_fbn.networks.states import StateRule
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals

NAMES = ("one", "two")


def blobs(grid: Grid) -> np.ndarray:
    """Two places, 40 mm apart, about 20 mm wide."""
    middle = grid.coordinates.mean(axis=0)
    shifts = ([20, 0, 0], [-20, 0, 10])
    return np.stack(
        [np.exp(-((grid.coordinates - middle - s) ** 2).sum(axis=1) / 150) for s in shifts]
    )


def run_of(grid: Grid, n_volumes: int, courses: np.ndarray | None = None) -> Signals:
    """The two blobs go up and down, and noise."""
    rng = np.random.default_rng(0)
    if courses is None:
        courses = np.sin(np.arange(n_volumes)[:, None] / [3.0, 5.0])
    data = 2 * courses @ blobs(grid) + 0.3 * rng.standard_normal((n_volumes, grid.n_voxels))
    data = ((data - data.mean(axis=0)) / data.std(axis=0)).astype(np.float32)
    everywhere = np.ones(grid.n_voxels, dtype=bool)
    return Signals(data, grid, 2.0, np.arange(n_volumes), n_volumes, everywhere, "run")


def blob_templates(grid: Grid) -> TemplateSet:
    maps = blobs(grid).astype(np.float32)
    return TemplateSet("blobs", NAMES, maps, maps > 0.5, "", "", "")


def method_of(name: str, run: Signals, templates: TemplateSet, **options: Any) -> Method:
    asked = ModelOptions(model=(name,), **options)

    def create() -> models.Model:
        return models.create(name, asked, run.grid, templates)

    model = create().fit([run], CPU, 0)
    rule = SupportRule(either_sign=not model.networks)
    return Method(model, create, model.fits_anew, CPU, templates, rule, StateRule(), 1, 6, 0)


def noise(grid: Grid, n_volumes: int = 60, seed: int = 0) -> Signals:
    run = run_of(grid, n_volumes)
    data = np.random.default_rng(seed).standard_normal(run.data.shape).astype(np.float32)
    return replace(run, data=(data - data.mean(axis=0)) / data.std(axis=0))


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(evidence.COLUMNS))
