"""Unrolled dual regression that starts from components of a group: their names, and evidence."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import skew
from small_models import CPU, all_maps, one_line
from udr_runs import (
    CONFIG,
    NARROW,
    both_priors,
    model_of,
    model_of_components,
    own_maps,
    runs_of,
    similarity,
    templates_of,
)

from bids_fbn import evidence, models
from bids_fbn.config import Config, ModelOptions
from bids_fbn.errors import RunError
from bids_fbn.evidence.method import Method, support_rule
from bids_fbn.models import naming
from bids_fbn.models.udr import UDR
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.reports import methods_evidence, methods_models
from bids_fbn.signal.grid import Grid

pytestmark = pytest.mark.usefixtures("one_thread")


@both_priors
def of_components(ball_grid: Grid, request: pytest.FixtureRequest) -> UDR:
    model = model_of_components(ball_grid, modes=request.param)
    return model.fit(runs_of(ball_grid, 8, width=NARROW), CPU, seed=1)


def order_of(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Which found map is each true one, by correlation with its sign."""
    n = len(truth)
    return np.asarray(np.corrcoef(truth, found)[:n, n:].argmax(axis=1))


def test_components_are_the_networks_of_the_group_whatever_they_are_called(
    ball_grid: Grid, of_components: UDR
) -> None:
    group = of_components.network.group.numpy()
    truth = np.mean([own_maps(ball_grid, number, NARROW) for number in range(8)], axis=0)
    order = order_of(group, truth)
    assert sorted(order) == [0, 1, 2]
    assert similarity(group[order], truth) > 0.85
    # Each the way up of its longer tail, and z-scored, as template maps are.
    assert (skew(group, axis=1) > 0).all()
    np.testing.assert_allclose(group.std(axis=1), 1, rtol=1e-3)


def test_a_component_keeps_its_place_over_windows_and_participants(
    ball_grid: Grid, of_components: UDR
) -> None:
    order = order_of(of_components.network.group.numpy(), templates_of(ball_grid, NARROW).maps)
    for run, participant in zip(runs_of(ball_grid, 11, width=NARROW)[8:], (8, 9, 10), strict=True):
        for maps in all_maps(of_components, run, stride=20).values():
            np.testing.assert_array_equal(
                order_of(maps, own_maps(ball_grid, participant, NARROW)), order
            )


def test_components_need_no_templates_and_have_no_names(
    ball_grid: Grid, of_components: UDR
) -> None:
    asked = ModelOptions(model=("udr",), sloppy=True, components=5)
    model = models.create("udr", asked, ball_grid)
    assert (model.networks, model.n_candidates, model.candidate_kind) == ((), 5, "components")
    # Templates are what its maps are searched with, not what it is made of.
    model = models.create("udr", asked, ball_grid, templates_of(ball_grid, NARROW))
    assert (model.networks, model.n_candidates) == ((), 5)
    (run,) = runs_of(ball_grid, 1, width=NARROW)
    assert not of_components.has_courses
    assert of_components.courses(run, CPU) is None
    assert model_of(ball_grid).has_courses


def test_components_of_a_run_are_searched_for_networks_in_either_sign(ball_grid: Grid) -> None:
    assert not support_rule(CONFIG, model_of(ball_grid)).either_sign
    (run,) = runs_of(ball_grid, 9, width=NARROW)[8:]
    templates = templates_of(ball_grid, NARROW)
    method = Method.of(model_of_components(ball_grid).fit([run], CPU), CONFIG, templates, CPU)
    # What was found in the run is no evidence for what is in it by being coherent there.
    assert (method.model.networks, method.model.course_maps) == ((), None)
    assert method.rule.either_sign
    # It is searched, and tested by that.
    assert not method.model.found_in(run)
    networks, _ = method.networks(method.model, run)
    # Courses are those of the maps found for the templates, by least squares.
    courses = method.courses(networks, run)
    truth = np.random.default_rng(1008).standard_normal((90, 3))
    assert (np.diag(np.corrcoef(courses.T, truth.T)[:3, 3:]) > 0.9).all()


def elsewhere(templates: TemplateSet, name: str) -> TemplateSet:
    """The set with one network where no run has any."""
    maps, supports = templates.maps.copy(), templates.supports.copy()
    k = templates.networks.index(name)
    maps[k] = maps.sum(axis=0).max() - maps.sum(axis=0)
    supports[k] = maps[k] >= np.sort(maps[k])[-supports[k].sum()]
    return replace(templates, maps=maps, supports=supports)


def test_components_of_a_group_are_called_after_the_networks_that_they_are(
    ball_grid: Grid, of_components: UDR
) -> None:
    templates = templates_of(ball_grid, NARROW)
    named = of_components.named(templates)
    order = order_of(of_components.network.group.numpy(), templates.maps)
    assert [named.networks[k] for k in order] == ["A", "B", "C"]
    assert (named.candidate_kind, named.has_courses) == ("named components", True)
    assert of_components.networks == ()
    other = of_components.named(elsewhere(templates, "B")).networks
    assert [other[k] for k in order] == ["A", f"component-{order[1] + 1:02d}", "C"]


def test_names_are_found_once_for_all_runs(
    ball_grid: Grid, of_components: UDR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []
    search = naming.elsewhere_null
    monkeypatch.setattr(
        naming, "elsewhere_null", lambda *asked: (searched.append(asked), search(*asked))[1]
    )
    templates = templates_of(ball_grid, NARROW)
    found = of_components.named(templates).networks
    for folder in ("one", "one", "other"):
        of_components.save(tmp_path / "model.safetensors")
        loaded = models.load(tmp_path / "model.safetensors", ball_grid)
        assert loaded.named(templates, tmp_path / folder).networks == found
    assert len(searched) == 3
    # Of other templates they are others.
    assert of_components.named(elsewhere(templates, "B"), tmp_path / "one").networks != found
    assert len(searched) == 4


def test_a_component_with_a_name_stands_by_its_coherence(
    ball_grid: Grid, of_components: UDR
) -> None:
    templates = elsewhere(templates_of(ball_grid, NARROW), "B")
    (run,) = runs_of(ball_grid, 9, width=NARROW)[8:]
    method = Method.of(of_components, CONFIG, templates, CPU)
    assert not method.rule.either_sign
    networks, _ = method.networks(method.model, run)
    courses = method.courses(networks, run)
    truth = np.random.default_rng(1008).standard_normal((90, 3))
    r = np.diag(np.corrcoef(courses.T, truth.T)[:3, 3:])
    assert (r[[0, 2]] > 0.9).all()
    assert np.isnan(courses[:, 1]).all()
    assert networks.amplitude is not None
    assert np.isfinite(networks.amplitude).any(axis=0).tolist() == [True, False, True]
    rows = pd.DataFrame(evidence.network_evidence(method, run, 19, 38), columns=evidence.COLUMNS)
    coherence = rows[rows["measure"] == "coherence"].set_index(["null", "network"])
    for null in ("turned", "mirrored", "noise"):
        of_null = coherence.loc[null]
        assert (of_null.loc[["A", "C"], "observed"] > 0.5).all()
        assert of_null.loc["B", ["observed", "p", "p_corrected"]].isna().all()
    assert (coherence.loc["noise"].loc[["A", "C"], "p_corrected"] == 0.05).all()


def test_components_are_no_evidence_in_those_in_whom_they_were_found(
    ball_grid: Grid, of_components: UDR, caplog: pytest.LogCaptureFixture
) -> None:
    of_templates = model_of(ball_grid, modes=of_components.recipe.modes)
    of_templates.fit(runs_of(ball_grid, 8), CPU, seed=1)
    templates = templates_of(ball_grid, NARROW)
    run = runs_of(ball_grid, 1, width=NARROW)[0]
    for model, tested in ((of_components, False), (of_templates, True)):
        method = Method.of(model, CONFIG, templates, CPU)
        rows = pd.DataFrame(evidence.network_evidence(method, run, 2, 2))
        coherence = rows[rows["measure"] == "coherence"]
        assert coherence["observed"].notna().all()
        assert set(coherence["null"]) == {"turned", "mirrored", "noise"}
        assert coherence["p_corrected"].notna().all() == tested
        assert coherence["p_corrected"].isna().all() != tested
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "sub-00_task-rest: udr was trained on this participant" in record.getMessage()


def test_weights_and_card_make_the_same_model_of_components(
    ball_grid: Grid, of_components: UDR, tmp_path: Path
) -> None:
    of_components.save(tmp_path / "model.safetensors")
    loaded = models.load(tmp_path / "model.safetensors", ball_grid)
    assert isinstance(loaded, UDR)
    assert (loaded.networks, loaded.n_candidates, loaded.has_courses) == ((), 3, False)
    assert torch.equal(loaded.network.group, of_components.network.group)
    (run,) = runs_of(ball_grid, 1, width=NARROW)
    for step, maps in all_maps(of_components, run, stride=20).items():
        np.testing.assert_array_equal(all_maps(loaded, run, stride=20)[step], maps)


def test_more_components_than_the_runs_span_are_refused_in_one_line(ball_grid: Grid) -> None:
    # Without noise a run is its three networks and nothing else.
    runs = runs_of(ball_grid, 1, noise=0)
    with pytest.raises(RunError, match="do not span 5 components") as caught:
        model_of_components(ball_grid, 5).fit(runs, CPU)
    one_line(caught)


def test_components_are_asked_of_udr_alone() -> None:
    asked = {"components": 20}
    assert ModelOptions(model=("udr",), **asked).idle() == []
    (line,) = ModelOptions(model=("stca",), **asked).idle()
    assert "--components: is about udr" in line


@pytest.mark.parametrize("components", [None, 20])
def test_the_methods_text_says_what_it_starts_from(components: int | None) -> None:
    config = Config.from_options(
        {
            "bids_dir": Path(),
            "output_dir": Path(),
            "model": ("udr",),
            "components": components,
        }
    )
    text = methods_models.networks(config, [])
    held_against = methods_evidence.weighing(config, [], None)
    assert ("group ICA" in text) == bool(components)
    assert (
        ("from the templates" in text) == ("Courses of the networks" in text) == (not components)
    )
    assert ("instead its coherence" in held_against) == (not components)


def test_the_methods_text_says_what_its_prior_is(ball_grid: Grid, of_components: UDR) -> None:
    of_templates = model_of(ball_grid, modes=of_components.recipe.modes)
    for model in (of_templates, of_components):
        facts = {"Method": "udr", "Recipe": asdict(model.recipe)}
        text = methods_models.networks(CONFIG, [facts])
        beside = bool(model.recipe.modes)
        assert ("the 30 leading modes" in text) == ("@Ledoit2004" in text) == beside
        assert ("shrinks the maps towards" in text) == ("@Mejia2020" in text) == (not beside)
        assert "fitted to each other" not in text
    named = {**facts, "Candidates": "named components"}
    text = methods_models.networks(CONFIG, [named])
    assert "called after the template" in text
    assert "those of dual regression, over the run" in text
    assert "start from those of a group" in methods_evidence.weighing(CONFIG, [named], None)
    twice = {**facts, "Recipe": {**facts["Recipe"], "modes": 40, "repetitions": 2}}
    assert "to each other 2 times, with the 40" in methods_models.networks(CONFIG, [twice])


def test_components_beside_others_are_fitted_twice(ball_grid: Grid) -> None:
    of_networks = UDR.recipe_from(ModelOptions(model=("udr",)))
    assert (of_networks.modes, of_networks.repetitions) == (100, 1)
    many = UDR.recipe_from(ModelOptions(model=("udr",), components=70))
    assert (many.modes, many.repetitions) == (140, 2)
    alone = model_of_components(ball_grid, modes=10, repetitions=2)
    alone.fit(runs_of(ball_grid, 1, width=NARROW), CPU)
    assert (alone.recipe.modes, alone.recipe.repetitions) == (0, 1)
