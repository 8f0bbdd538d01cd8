"""The stages between the rooms: which voxels of a candidate count."""

from __future__ import annotations

from pathlib import Path

import pytest

from bids_fbn.config import Config
from bids_fbn.models.stca import STCA
from bids_fbn.networks.maps import SupportRule
from bids_fbn.stages import support_rule


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
    preset: str, support: float | str | None, rule: SupportRule
) -> None:
    config = Config(bids_dir=Path(), output_dir=Path(), networks={"support": support})
    assert support_rule(config, STCA.recipes[preset]) == rule
