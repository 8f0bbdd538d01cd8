"""What speaks for networks: on a run that has some, on noise, and on what is static."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import CPU, small

from bids_fbn import evidence, models
from bids_fbn.config import MODELS, Config, ModelOptions
from bids_fbn.evaluation.assess import fitted
from bids_fbn.evidence import Method, dynamic_evidence, half_evidence, network_evidence
from bids_fbn.networks.courses import Coherence
from bids_fbn.networks.maps import SupportRule
from bids_fbn.networks.states import StateRule
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.nulls.pvalues import claim_of_networks, network_p
from bids_fbn.nulls.spatial import random_maps_null
from bids_fbn.reports import methods_evidence
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


@pytest.fixture(scope="module")
def templates(ball_grid: Grid) -> TemplateSet:
    maps = blobs(ball_grid).astype(np.float32)
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


@pytest.mark.parametrize("name", ["ica", "pca", "dualregression"])
def test_networks_that_are_there_stand_out(
    name: str, ball_grid: Grid, templates: TemplateSet
) -> None:
    run = run_of(ball_grid, 60)
    method = method_of(name, run, templates, channels=4, window=None)
    rows = table(network_evidence(method, run, 29, 99))
    found = rows[rows["measure"] == claim_of_networks(rows)]
    assert list(found["network"]) == 3 * [*NAMES]
    nulls = ("turned", "mirrored", "noise")
    assert list(found["null"]) == [null for null in nulls for _ in NAMES]
    # In a ball one of two networks comes to lie on the other now and then.
    assert (found["p_corrected"] < 0.1).all()
    assert (found["observed"] > found["null_mean"]).all()
    assert (found.loc[found["null"] == "noise", "p_corrected"] < 0.05).all()
    assert list(network_p(rows).index) == list(NAMES)


def test_a_search_may_be_held_against_random_maps_instead(
    ball_grid: Grid, templates: TemplateSet
) -> None:
    run = run_of(ball_grid, 60)
    method = method_of("ica", run, templates, channels=4, window=None)
    rows = table(network_evidence(replace(method, surrogate_maps="fields"), run, 4, 29))
    found = rows[rows["measure"] == "iou_search"]
    assert list(found["null"].unique()) == ["fields", "noise"]
    maps = method.budget_maps(method.model, run)
    candidates = np.zeros((len(maps), ball_grid.n_voxels), dtype=np.float32)
    candidates[:, run.covered] = maps
    seed = method.seed_of(run)
    null = random_maps_null(candidates, templates, ball_grid, run.covered, method.rule, 29, seed)
    by_fields = found[found["null"] == "fields"]
    np.testing.assert_allclose(by_fields["null_mean"], null.mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("name", ["ica", "dualregression"])
def test_each_run_has_surrogates_of_its_own(
    name: str, ball_grid: Grid, templates: TemplateSet
) -> None:
    run = run_of(ball_grid, 60)
    method = method_of(name, run, templates, channels=4, window=None)
    first, again, other = (
        table(network_evidence(method, replace(run, name=named), 4, 9)).dropna(subset="null")
        for named in ("run-1", "run-1", "run-2")
    )
    pd.testing.assert_frame_equal(first, again)
    assert (first["observed"] == other["observed"]).all()
    assert (first["null_mean"] != other["null_mean"]).all()


def test_methods_text_says_what_has_seen_both_halves() -> None:
    config = Config.from_options({"bids_dir": Path(), "output_dir": Path(), "model": MODELS})
    text = methods_evidence.weighing(config, [], None)
    assert "What stca, scaae, stcnn and udr learned is of the whole run" in text


def test_networks_whose_maps_are_given_stand_by_coherence(
    ball_grid: Grid, templates: TemplateSet
) -> None:
    run = run_of(ball_grid, 60)
    method = method_of("dualregression", run, templates, window=20)
    rows = table(network_evidence(method, run, 4, 9)).set_index("measure")
    assert claim_of_networks(rows.reset_index()) == "coherence"
    assert list(rows.index) == 6 * ["coherence"] + 2 * ["iou_search"]
    coherent = rows.loc["coherence"]
    assert list(coherent["n_surrogates"]) == [5, 5, 4, 4, 4, 4]
    covered = run.covered
    places = run.grid.coordinates[covered]
    of_run = Coherence(np.asarray(run.data)[:, covered], places).of(templates.maps[:, covered])
    assert np.allclose(coherent["observed"][:2], np.tanh(of_run), atol=1e-4)
    # It overlaps with its templates in anything.
    assert rows.loc["iou_search", "p"].isna().all()
    assert rows.loc["iou_search", "observed"].notna().all()


@pytest.mark.parametrize("name", ["ica", "dualregression"])
def test_of_noise_hardly_anything_stands_out(
    name: str, ball_grid: Grid, templates: TemplateSet
) -> None:
    claimed = 0
    for seed in range(6):
        run = noise(ball_grid, seed=seed)
        method = method_of(name, run, templates, channels=4, window=None)
        claimed += (network_p(table(network_evidence(method, run, 20, 49))) < 0.05).any()
    # By chance more than once in 30 times at most.
    assert claimed <= 1


def test_untrained_networks_are_held_against_noise_that_they_have_seen_too(
    ball_grid: Grid, templates: TemplateSet
) -> None:
    run = run_of(ball_grid, 30)
    model = small("stca", ball_grid)
    method = Method(
        model, lambda: model, False, CPU, templates, SupportRule(), StateRule(), 1, 4, 0
    )
    found = table(network_evidence(method, run, 3, 50))
    assert list(found["n_surrogates"]) == [25, 25, 25, 25, 3, 3]
    assert np.isfinite(found["null_mean"]).all()


def test_a_model_that_knows_its_networks_is_held_to_them(
    ball_grid: Grid, templates: TemplateSet
) -> None:
    run = run_of(ball_grid, 60)
    method = method_of("dualregression", run, templates, window=20)
    maps = method.budget_maps(method.model, run)
    every = np.concatenate([m.numpy() for _, m in method.model.maps(run, CPU)])
    mean = every.mean(axis=0)
    expected = (mean - mean.mean(axis=1, keepdims=True)) / mean.std(axis=1, keepdims=True)
    assert np.allclose(maps, expected, atol=1e-4)


def test_a_network_stands_by_what_both_nulls_allow() -> None:
    rows = pd.DataFrame(
        {
            "measure": ["iou_search"] * 4 + ["reproducibility"],
            "network": ["b", "a", "b", "a", "a"],
            "p_corrected": [0.01, 0.2, 0.03, np.nan, 0.9],
        }
    )
    p = network_p(rows)
    assert list(p.index) == ["b", "a"]
    assert p["b"] == 0.03
    assert np.isnan(p["a"])


def test_halves(ball_grid: Grid, templates: TemplateSet) -> None:
    run = run_of(ball_grid, 80)
    found = half_evidence(method_of("ica", run, templates, channels=3), run)
    assert found is not None
    chance = half_evidence(
        method_of("ica", noise(ball_grid, 80), templates, channels=3), noise(ball_grid, 80)
    )
    assert chance is not None
    assert found.scores.iou.min() > 2 * chance.scores.iou.max()
    assert found.held_out_variance > 2 * chance.held_out_variance
    rows = table(found.rows(NAMES))
    assert set(rows["claim"]) == {"network", "fit"}
    assert rows[rows["measure"] == "budget"]["observed"].item() == found.n_maps == 3


def test_halves_too_short_for_the_model_have_no_scores(
    ball_grid: Grid, templates: TemplateSet
) -> None:
    run = run_of(ball_grid, 40)
    assert half_evidence(method_of("ica", run, templates, channels=25), run) is None


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


def test_coherence_is_taken_up_again_where_it_was_left(
    windowed: tuple[Method, Signals], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, run = windowed
    whole = network_evidence(method, run, 5, 9)
    store = tmp_path / "kept" / "coherence"
    network_evidence(method, run, 2, 9, store)
    measured = []
    original = Coherence.__init__

    def counted(self: Coherence, *args: Any) -> None:
        measured.append(1)
        original(self, *args)

    monkeypatch.setattr(Coherence, "__init__", counted)
    again = network_evidence(method, run, 5, 9, store)
    assert len(measured) == 1 + 3  # the run itself, and the surrogates that were left
    pd.testing.assert_frame_equal(table(again), table(whole))


def test_the_search_is_taken_up_again_where_it_was_left(
    ball_grid: Grid, templates: TemplateSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(ball_grid, 60)
    method = method_of("pca", run, templates, window=10, channels=2)
    whole = network_evidence(method, run, 5, 9)
    store = tmp_path / "kept" / "search"
    network_evidence(method, run, 2, 9, store)
    searched = []
    original = Method.budget_maps

    def counted(self: Method, *args: Any) -> Any:
        searched.append(1)
        return original(self, *args)

    monkeypatch.setattr(Method, "budget_maps", counted)
    again = network_evidence(method, run, 5, 9, store)
    assert len(searched) == 1 + 3  # the run itself, and the surrogates that were left
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


@pytest.mark.parametrize("name", ["scaae", "pca"])
def test_weights_that_were_given_are_used_as_they_are(
    name: str, ball_grid: Grid, templates: TemplateSet, tmp_path: Path
) -> None:
    run, other = run_of(ball_grid, 30), run_of(ball_grid, 31)
    model = small(name, ball_grid) if name == "scaae" else method_of(name, other, templates).model
    model.fit([other], CPU, 0).save(tmp_path / "weights.safetensors")
    weights = (tmp_path / "weights.safetensors",)
    options = {"bids_dir": Path(), "output_dir": Path(), "model": (name,), "weights": weights}
    method = fitted(name, run, templates, Config.from_options(options), CPU)
    assert method.model.training["Runs"] == model.training["Runs"]
    assert all(torch.equal(v, model.state()[k]) for k, v in method.model.state().items())
    # Not for a surrogate or a half either: they are part of the method.
    assert method.on(replace(run, data=-np.asarray(run.data))) is method.model


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
