"""What speaks for change over time: on a run that has some, and on what is static."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from evidence_runs import blob_templates, method_of, run_of, table

from bids_fbn.config import MODELS, Config
from bids_fbn.evidence import Method, dynamic_evidence
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.reports import methods_evidence
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals


@pytest.fixture(scope="module")
def templates(ball_grid: Grid) -> TemplateSet:
    return blob_templates(ball_grid)


@pytest.fixture(scope="module")
def windowed(ball_grid: Grid, templates: TemplateSet) -> tuple[Method, Signals]:
    run = run_of(ball_grid, 60)
    return method_of("dualregression", run, templates, window=10), run


def test_dynamics_are_taken_up_again_where_they_were_left(
    windowed: tuple[Method, Signals], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, run = windowed
    networks, _ = method.networks(method.model, run)
    whole = dynamic_evidence(method, run, networks, 5, "phase")
    store = tmp_path / "done"
    dynamic_evidence(method, run, networks, 2, "phase", store)
    store.write_text(store.read_text() + "[0.1, 0.")  # killed while it wrote
    computed = []
    original = Method.networks

    def counted(self: Method, *args: Any) -> Any:
        computed.append(1)
        return original(self, *args)

    monkeypatch.setattr(Method, "networks", counted)
    again = dynamic_evidence(method, run, networks, 5, "phase", store)
    assert len(computed) == 3
    pd.testing.assert_frame_equal(table(again), table(whole))


def test_dynamics_of_a_run_that_has_some(ball_grid: Grid, templates: TemplateSet) -> None:
    """First one blob alone, then the other: static surrogates cannot do that."""
    rng = np.random.default_rng(0)
    n = 240
    first = np.arange(n) < n // 2
    courses = rng.standard_normal((n, 2)) * np.where([first, ~first], 2.0, 0.1).T
    run = run_of(ball_grid, n, courses)
    # Candidates that follow the window's covariance: its first components.
    method = method_of("pca", run, templates, window=20, channels=2)
    networks, _ = method.networks(method.model, run)
    rows = table(dynamic_evidence(method, run, networks, 99, "phase"))
    assert set(rows["claim"]) == {"dynamics"}
    whole = rows[rows["network"] == "all"].set_index("measure")
    assert whole.loc["iou_variation", "p_corrected"] < 0.05
    assert whole.loc["iou_variation", "observed"] > whole.loc["iou_variation", "null_high"]


def test_a_whole_run_has_no_dynamics(ball_grid: Grid, templates: TemplateSet) -> None:
    run = run_of(ball_grid, 40)
    method = method_of("ica", run, templates, channels=3)
    networks, _ = method.networks(method.model, run)
    assert dynamic_evidence(method, run, networks, 3, "phase") == []


def test_without_surrogates_measures_stand_alone(windowed: tuple[Method, Signals]) -> None:
    method, run = windowed
    networks, _ = method.networks(method.model, run)
    rows = table(dynamic_evidence(method, run, networks, 0, "phase"))
    assert rows["observed"].notna().any()
    assert rows["p"].isna().all()
    assert rows["p_corrected"].isna().all()


def test_surrogates_say_nothing_of_a_model_that_fits_its_own_run_better(
    windowed: tuple[Method, Signals],
) -> None:
    method, run = windowed
    networks, _ = method.networks(method.model, run)
    rows = table(dynamic_evidence(replace(method, tests_change=False), run, networks, 3, "phase"))
    assert rows["observed"].notna().any()
    assert rows["p"].isna().all()


def test_what_surrogates_can_say_of_change() -> None:
    def says(name: str, **options: Any) -> bool:
        given = {"bids_dir": Path(), "output_dir": Path(), "model": (name,), **options}
        return Config.from_options(given).tests_change(name)

    assert all(says(name) == (name != "stcnn") for name in MODELS)
    assert says("stcnn", refit_surrogates=True)
    config = Config.from_options({"bids_dir": Path(), "output_dir": Path(), "model": ("stcnn",)})
    text = methods_evidence.weighing(config, [], None)
    assert "stcnn was trained on the run itself" in text
    assert "correlations in these are static" not in text.lower()


def test_where_windows_do_not_overlap_a_number_stands_once(
    ball_grid: Grid, templates: TemplateSet
) -> None:
    run = run_of(ball_grid, 60)
    measures = {}
    for name, options in (
        ("untrained-scaae", {"channels": 4}),
        ("dualregression", {"window": 20}),
    ):
        method = method_of(name, run, templates, **options)
        networks, _ = method.networks(method.model, run)
        rows = dynamic_evidence(method, run, networks, 1, "phase")
        measures[name] = {row["measure"] for row in rows}
    assert measures["dualregression"] - measures["untrained-scaae"] == {
        "iou_window_apart",
        "amplitude_variation",
    }
