"""The classical methods as models: what they learn, what they offer, and weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import CPU, all_maps, assert_same, blobs, one_line, run_of

from bids_fbn import models
from bids_fbn.baselines.base import Baseline
from bids_fbn.baselines.decomposition import learn_dictionary, principal_maps
from bids_fbn.baselines.regression import dual_regression
from bids_fbn.config import BASELINES, GIVEN_MAPS, MODELS, TOLD, TRAINED, WINDOWED, ModelOptions
from bids_fbn.errors import InputError, RunError
from bids_fbn.models.base import Model
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals

WHOLE = ("pca", "ica", "sdl")
STATES = ("cap", "hmm")


def make(name: str, grid: Grid, **options: Any) -> models.Model:
    maps = blobs(grid).astype(np.float32)
    templates = TemplateSet("blobs", ("one", "two"), maps, maps > 0.5, "", "", "")
    return models.create(name, ModelOptions(model=(name,), **options), grid, templates)


def best_r(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Highest |r| of each wanted row among those found."""
    r = np.corrcoef(wanted, found)[: len(wanted), len(wanted) :]
    return np.abs(r).max(axis=1)


def test_maps_and_courses_of_a_run_are_found(ball_grid: Grid) -> None:
    signals = run_of(ball_grid, 60)
    maps, courses = learn_dictionary(signals, 3)
    assert maps.shape == (3, ball_grid.n_voxels)
    assert courses.shape == (60, 3)
    middle = ball_grid.coordinates.mean(axis=0)
    wanted = [
        np.exp(-((ball_grid.coordinates - middle - shift) ** 2).sum(axis=1) / 800)
        for shift in ([20, 0, 0], [-20, 0, 10])
    ]
    assert (best_r(maps, np.array(wanted)) > 0.8).all()
    wanted = [np.sin(np.arange(60) / 3.0), np.sin(np.arange(60) / 5.0)]
    assert (best_r(courses.T, np.array(wanted)) > 0.9).all()
    # Least squares: what is left over is orthogonal to every map.
    left = signals.data - courses @ maps
    assert np.abs(left @ maps.T).max() < 1e-3 * np.abs(signals.data @ maps.T).max()


def test_sparsity_does_not_depend_on_how_long_a_run_is(ball_grid: Grid) -> None:
    once = run_of(ball_grid, 40)
    longer = replace(once, data=np.tile(once.data, (8, 1)), kept=np.arange(320), n_volumes=320)
    zeros = [np.mean(learn_dictionary(run, 4)[0] == 0) for run in (once, longer)]
    assert zeros[0] > 0.3
    # With the same penalty whatever the length it is 0.08; processors differ by some 0.1.
    assert zeros[1] == pytest.approx(zeros[0], abs=0.15)


def test_voxels_that_a_run_does_not_cover_take_no_part(ball_grid: Grid) -> None:
    signals = run_of(ball_grid, 30)
    covered = np.ones(ball_grid.n_voxels, dtype=bool)
    covered[:100] = False
    data = np.where(covered, signals.data, 0).astype(np.float32)
    maps, _ = learn_dictionary(replace(signals, data=data, covered=covered), 3)
    assert not maps[:, :100].any()
    assert maps[:, 100:].any(axis=1).all()


def test_the_same_seed_gives_the_same_dictionary(ball_grid: Grid) -> None:
    first, again = (learn_dictionary(run_of(ball_grid, 30), 3, seed=1) for _ in range(2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])


def test_a_run_that_is_too_short_is_an_error_of_the_run(ball_grid: Grid) -> None:
    with pytest.raises(RunError) as error:
        learn_dictionary(run_of(ball_grid, 12), 20)
    assert "12 volumes" in one_line(error)


@pytest.mark.parametrize("name", WHOLE)
def test_the_components_of_a_run(name: str, ball_grid: Grid) -> None:
    run = run_of(ball_grid, 60)
    model = make(name, ball_grid, channels=2).fit([run], CPU)
    maps = all_maps(model, run)
    assert list(maps) == [0]
    assert model.window is None
    assert len(model.steps(run)) == 1
    assert model.steps(run).onset == 59.0  # the middle of 60 volumes of 2 s
    # Two components span the two blobs.
    basis, wanted = (
        np.linalg.qr((values - values.mean(axis=1, keepdims=True)).T)[0]
        for values in (maps[0].astype(float), blobs(ball_grid))
    )
    inside = np.linalg.norm(basis.T @ wanted, axis=0)
    assert (inside > 0.7).all()  # z-scores of voxels flatten the blobs
    # The longer tail is positive.
    centred = maps[0] - maps[0].mean(axis=1, keepdims=True)
    assert ((centred**3).mean(axis=1) >= 0).all()


@pytest.mark.parametrize("name", ["pca", "ica"])
def test_windows_are_decomposed_each_by_itself(name: str, ball_grid: Grid) -> None:
    run = run_of(ball_grid, 40)
    model = make(name, ball_grid, channels=2, window=20).fit([run], CPU)
    found = all_maps(model, run, stride=5)
    assert list(found) == [0, 1, 2, 3, 4]
    start = model.steps(run, 5).start[3]
    alone = replace(run, data=run.data[start : start + 20], kept=np.arange(20), n_volumes=20)
    by_itself = all_maps(make(name, ball_grid, channels=2).fit([alone], CPU), alone)[0]
    assert np.allclose(found[3], by_itself, atol=1e-4 * abs(by_itself).max())


def test_components_learned_elsewhere_take_the_form_of_the_run(ball_grid: Grid) -> None:
    first, second = run_of(ball_grid, 60), replace(run_of(ball_grid, 60, seed=1), name="other")
    model = make("ica", ball_grid, channels=2).fit([first], CPU)
    learned = all_maps(model, first)[0]
    adapted = all_maps(model, second)[0]
    expected, _ = dual_regression(second.data, learned)
    assert np.allclose(adapted, expected, atol=1e-6)
    assert not np.allclose(adapted, learned, atol=1e-3)


def test_several_runs_share_components(ball_grid: Grid) -> None:
    runs = [replace(run_of(ball_grid, 30, seed=i), name=str(i)) for i in range(3)]
    model = make("ica", ball_grid, channels=2).fit(runs, CPU)
    assert model.training["Runs"] == ["0", "1", "2"]
    assert best_r(model.state()["maps"].numpy(), blobs(ball_grid)).min() > 0.6


def test_principal_maps_are_those_of_the_singular_values(ball_grid: Grid) -> None:
    data = np.asarray(run_of(ball_grid, 30).data)
    _, values, right = np.linalg.svd(data, full_matrices=False)
    maps = principal_maps([data], 5)
    assert np.allclose(np.linalg.norm(maps, axis=1), values[:5], rtol=1e-4)
    assert np.allclose(abs((maps @ right[:5].T) / values[:5]), np.eye(5), atol=1e-3)
    # No more than there are.
    assert len(principal_maps([data[:3]], 5)) == 3


def test_dual_regression_gives_back_maps_and_courses(ball_grid: Grid) -> None:
    rng = np.random.default_rng(0)
    maps = blobs(ball_grid)
    courses = rng.standard_normal((50, 2))
    own, found = dual_regression(courses @ maps, maps)
    assert np.allclose(np.corrcoef(found.T, courses.T)[:2, 2:], np.corrcoef(courses.T), atol=1e-6)
    spread = courses.std(axis=0)[:, None]
    assert np.allclose(own, maps * spread, atol=1e-5 * abs(maps).max())


def test_dual_regression_knows_which_map_is_which(ball_grid: Grid) -> None:
    run = run_of(ball_grid, 60)
    model = make("dualregression", ball_grid, window=30).fit([run], CPU)
    assert model.networks == ("one", "two")
    r = np.corrcoef(np.concatenate([all_maps(model, run)[4], blobs(ball_grid)]))[:2, 2:]
    assert r.diagonal().min() > 0.7 > abs(r - np.diag(r.diagonal())).max() + 0.3
    courses = model.courses(run, CPU)
    assert courses is not None
    assert np.allclose(courses.std(axis=0), 1)
    true = np.sin(np.arange(60)[:, None] / [3.0, 5.0])
    assert np.corrcoef(courses.T, true.T)[:2, 2:].diagonal().min() > 0.8


@pytest.mark.parametrize("name", STATES)
def test_volumes_in_one_state_share_the_mean_of_them(name: str, ball_grid: Grid) -> None:
    """First one blob is on, then the other."""
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 0], 20)
    on = (truth[:, None] == np.arange(2)) - 0.5
    data = 2 * on @ blobs(ball_grid) + 0.3 * rng.standard_normal((60, ball_grid.n_voxels))
    data = ((data - data.mean(axis=0)) / data.std(axis=0)).astype(np.float32)
    run = replace(run_of(ball_grid, 60), data=data)
    model = make(name, ball_grid, channels=2).fit([run], CPU)
    maps = all_maps(model, run)
    assert len(maps) == 60
    assert maps[0].shape == (1, ball_grid.n_voxels)
    for state in (0, 1):
        expected = data[truth == state].mean(axis=0)
        for step in np.flatnonzero(truth == state):
            assert np.allclose(maps[step][0], expected, atol=1e-5)


@pytest.mark.parametrize("name", [*WHOLE, *STATES, "dualregression"])
def test_weights_are_taken_up_again(name: str, ball_grid: Grid, tmp_path: Path) -> None:
    run = run_of(ball_grid, 40, left_out=(7,))
    options = {"window": 20} if name == "dualregression" else {"channels": 3}
    model = make(name, ball_grid, **options).fit([run], CPU)
    card = model.save(tmp_path / "weights.safetensors")
    again = models.load(tmp_path / "weights.safetensors", ball_grid)
    assert card["Model"] == again.name == name
    assert again.recipe == model.recipe
    for signals in (run, replace(run, name="another")):
        assert_same(all_maps(again, signals), all_maps(model, signals))


@pytest.mark.parametrize("name", [*WHOLE, *STATES, "dualregression"])
def test_voxels_that_the_run_does_not_cover_are_0(name: str, ball_grid: Grid) -> None:
    run = run_of(ball_grid, 40)
    covered = np.arange(ball_grid.n_voxels) > 30
    run = replace(run, data=np.where(covered, run.data, 0).astype(np.float32), covered=covered)
    options = {"window": 20} if name == "dualregression" else {"channels": 3}
    model = make(name, ball_grid, **options).fit([run], CPU)
    for maps in all_maps(model, run).values():
        assert not maps[:, ~covered].any()
        assert np.isfinite(maps).all()


@pytest.mark.parametrize("name", [*WHOLE, *STATES])
def test_too_few_volumes(name: str, ball_grid: Grid) -> None:
    with pytest.raises(RunError, match="are too few") as error:
        make(name, ball_grid).fit([run_of(ball_grid, 8)], CPU)
    assert name in one_line(error)


def test_windows_too_short_for_the_components(ball_grid: Grid) -> None:
    with pytest.raises(RunError, match="--channels"):
        make("ica", ball_grid, window=10, channels=12).fit([run_of(ball_grid, 40)], CPU)


def test_dual_regression_without_templates(ball_grid: Grid) -> None:
    with pytest.raises(InputError, match="--templates"):
        models.create("dualregression", ModelOptions(model=("dualregression",)), ball_grid)


@pytest.mark.parametrize("name", ["stca", "scaae"])
def test_untrained_networks_have_the_weights_they_start_with(name: str, ball_grid: Grid) -> None:
    run: Signals = run_of(ball_grid, 24)
    first, second = (
        make(f"untrained-{name}", ball_grid, sloppy=True, channels=4).fit([run], CPU, seed)
        for seed in (0, 0)
    )
    other = make(f"untrained-{name}", ball_grid, sloppy=True, channels=4).fit([run], CPU, 1)
    assert_same(all_maps(first, run), all_maps(second, run))
    assert any(
        not np.array_equal(all_maps(first, run)[step], maps)
        for step, maps in all_maps(other, run).items()
    )
    assert first.training["Volumes"] == 0


def test_what_the_configuration_says_of_models_is_what_they_are(ball_grid: Grid) -> None:
    for name in MODELS:
        model = make(name, ball_grid, window=12, channels=4)
        assert (name in BASELINES) == isinstance(model, Baseline) == model.fits_anew, name
        assert (name in WINDOWED) == (model.window == 12), name
        assert (name in TOLD) == bool(model.networks), name
        assert (name in GIVEN_MAPS) == (type(model).course_maps is not Model.course_maps), name
        epochs = "epochs" in vars(model.recipe) and not name.startswith("untrained")
        assert (name in TRAINED) == epochs, name


def test_a_hidden_markov_model_bears_a_state_without_a_way_out(ball_grid: Grid) -> None:
    run = run_of(ball_grid, 40)
    data = np.array(run.data)
    # Only the last volume is like this: its state is never left, and far from all others.
    data[-1] = 60 * blobs(ball_grid)[0]
    model = make("hmm", ball_grid, channels=3).fit([replace(run, data=data)], CPU)
    transitions = model.state()["transitions"].numpy()
    assert np.allclose(transitions.sum(axis=1), 1)
    maps = all_maps(model, replace(run, data=data))
    assert all(np.isfinite(values).all() for values in maps.values())
