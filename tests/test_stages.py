"""The stages between the rooms: which voxels of a candidate count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bids_fbn.baselines.regression import DualRegression
from bids_fbn.config import Config
from bids_fbn.evidence import support_rule
from bids_fbn.models.stca import STCA
from bids_fbn.networks.maps import SupportRule
from bids_fbn.signal.grid import Grid


def config_of(support: float | str | None) -> Config:
    return Config(bids_dir=Path(), output_dir=Path(), networks={"support": support})


@pytest.mark.parametrize(
    ("preset", "support", "rule"),
    [
        ("corrected", None, SupportRule()),
        ("corrected", 2.0, SupportRule(2.0)),
        ("as-published", None, SupportRule(3.6, standardize=False, either_sign=False)),
        ("as-published", 2.0, SupportRule(2.0, either_sign=False)),
        ("as-published", "size-matched", SupportRule(either_sign=False)),
    ],
)
def test_the_published_models_keep_the_positive_side(
    preset: str, support: float | str | None, rule: SupportRule, ball_grid: Grid
) -> None:
    model = STCA(replace(STCA.recipes[preset], channels=2), preset, ball_grid)
    assert support_rule(config_of(support), model) == rule


@pytest.mark.parametrize(
    ("support", "rule"),
    [(None, SupportRule(either_sign=False)), (2.0, SupportRule(2.0, either_sign=False))],
)
def test_a_model_that_knows_its_networks_knows_which_way_up_they_are(
    support: float | None, rule: SupportRule, ball_grid: Grid
) -> None:
    recipe = DualRegression.recipes["classical"]
    model = DualRegression(recipe, "classical", ball_grid, networks=("one", "two"))
    assert support_rule(config_of(support), model) == rule
