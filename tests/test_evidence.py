"""What speaks for networks: on a run that has some, and on noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from evidence_runs import NAMES, blob_templates, method_of, noise, run_of, table
from small_models import CPU, small

from bids_fbn.config import MODELS, Config
from bids_fbn.evaluation.assess import fitted
from bids_fbn.evidence import Method, half_evidence, network_evidence
from bids_fbn.networks.courses import Coherence
from bids_fbn.networks.maps import SupportRule
from bids_fbn.networks.states import StateRule
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.nulls.pvalues import claim_of_networks, network_p
from bids_fbn.nulls.spatial import random_maps_null
from bids_fbn.reports import methods_evidence
from bids_fbn.signal.grid import Grid


@pytest.fixture(scope="module")
def templates(ball_grid: Grid) -> TemplateSet:
    return blob_templates(ball_grid)


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


def test_coherence_is_taken_up_again_where_it_was_left(
    ball_grid: Grid, templates: TemplateSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(ball_grid, 60)
    method = method_of("dualregression", run, templates, window=10)
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
