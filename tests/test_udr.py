"""Unrolled dual regression: its algebra, its prior, and that it learns what it is to learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import CPU, all_maps, one_line
from udr_runs import (
    both_priors,
    model_of,
    own_maps,
    runs_of,
    similarity,
    templates_of,
    tensor,
)

from bids_fbn import models
from bids_fbn.baselines.regression import dual_regression
from bids_fbn.config import ModelOptions
from bids_fbn.errors import InputError, RunError
from bids_fbn.models.compute import Compute
from bids_fbn.models.udr import UDR, _prior
from bids_fbn.models.udr_network import explained, fit_courses, fit_maps, predicted
from bids_fbn.networks.maps import zscore_maps
from bids_fbn.signal.grid import Grid

pytestmark = pytest.mark.usefixtures("one_thread")


@both_priors
def trained(ball_grid: Grid, request: pytest.FixtureRequest) -> UDR:
    return model_of(ball_grid, modes=request.param).fit(runs_of(ball_grid, 8), CPU, seed=1)


def test_its_steps_are_those_of_dual_regression(ball_grid: Grid) -> None:
    (run,) = runs_of(ball_grid, 1)
    group = zscore_maps(templates_of(ball_grid).maps)
    volumes = np.asarray(run.data)
    maps, courses = dual_regression(volumes, group)
    weights = torch.ones(1, 1, ball_grid.n_voxels)
    found = fit_courses(tensor(volumes)[None], tensor(group)[None], weights)
    np.testing.assert_allclose(found[0].numpy(), zscore_maps(courses.T).T, atol=2e-3)
    own, _ = fit_maps(tensor(volumes)[None], found, 0.0)
    np.testing.assert_allclose(own[0].numpy(), maps, atol=2e-3)


def test_once_more_is_to_fit_courses_to_the_maps_of_the_first_time(ball_grid: Grid) -> None:
    (run,) = runs_of(ball_grid, 1)
    once, twice = (model_of(ball_grid, repetitions=n) for n in (1, 2))
    for model in (once, twice):
        model._n_training = 1
        model.prepare([run], 0)
    volumes = tensor(np.asarray(run.data))[None]
    with torch.no_grad():
        first, _ = once.network(volumes)
        maps, courses = twice.network(volumes)
        refitted = fit_courses(volumes, first, torch.ones(1, 1, ball_grid.n_voxels))
    torch.testing.assert_close(courses, refitted)
    # And they are not those of the group maps any longer.
    assert not torch.allclose(maps, first, atol=1e-3)


def test_modes_are_volumes_beside_those_of_the_stretch(ball_grid: Grid) -> None:
    rng = np.random.default_rng(2)
    network = model_of(ball_grid, modes=6).network
    group = zscore_maps(templates_of(ball_grid).maps)
    modes = rng.standard_normal((6, ball_grid.n_voxels))
    (run,) = runs_of(ball_grid, 1)
    own = np.asarray(run.data[:40]) - run.data[:40].mean(axis=0)
    network.set_prior(*map(tensor, (group, group, np.ones_like(group), modes)))
    for n_others in (1e-6, 25.0):
        torch.nn.init.constant_(network.log_volumes, np.log(n_others))
        with torch.no_grad():
            maps, courses = network(tensor(own)[None])
        volumes = np.concatenate([own, np.sqrt(n_others) * modes])
        centred = group - group.mean(axis=1, keepdims=True)
        together = volumes @ np.linalg.pinv(centred)
        by_hand = np.linalg.lstsq(together, volumes, rcond=None)[0]
        by_hand *= together[:40].std(axis=0)[:, None]
        np.testing.assert_allclose(maps[0].numpy(), by_hand, atol=5e-3)
        if n_others < 1:
            plain, _ = fit_maps(tensor(own)[None], courses, 0.0)
            torch.testing.assert_close(maps, plain, atol=1e-3, rtol=1e-3)


def test_modes_hold_what_volumes_have_in_common(ball_grid: Grid) -> None:
    runs = runs_of(ball_grid, 5, n_volumes=60, noise=0.1)
    # A voxel that a run does not cover has the covariance that it has in the others.
    covered = np.arange(ball_grid.n_voxels) > 50
    runs[0] = replace(runs[0], covered=covered, data=runs[0].data * covered)
    group = zscore_maps(templates_of(ball_grid).maps)
    *_, every = _prior(runs, group, 300)
    *_, few = _prior(runs, group, 8)
    assert (every.shape[0], few.shape[0]) == (300, 8)
    assert len(_prior(runs, group)) == 2
    own = [run.data - run.data.mean(axis=0) for run in runs]
    expected = np.mean([volumes.T @ volumes / 60 for volumes in own], axis=0)
    there = np.where(covered, 1, np.sqrt(5 / 4))
    expected *= there[:, None] * there
    np.testing.assert_allclose(every.T @ every, expected, atol=0.02)
    # Three networks, a little elsewhere in each of five people.
    share = (few**2).sum() / np.trace(expected)
    assert 0.9 < share < 1
    assert (few**2).sum() > 0.99 * np.linalg.eigvalsh(expected)[-8:].sum()


def test_one_participant_has_no_others(ball_grid: Grid, tmp_path: Path) -> None:
    first = runs_of(ball_grid, 1)
    again = [*first, replace(first[0], name="sub-00_task-rest_run-2")]
    for runs in (first, again):
        alone = model_of(ball_grid, modes=10).fit(runs, CPU, seed=1)
        plain = model_of(ball_grid).fit(runs, CPU, seed=1)
        maps = all_maps(alone, first[0], stride=30)
        for step, expected in all_maps(plain, first[0], stride=30).items():
            np.testing.assert_array_equal(maps[step], expected)
    # Nor does the card claim any.
    alone.save(tmp_path / "model.safetensors")
    loaded = models.load(tmp_path / "model.safetensors", ball_grid)
    assert loaded.recipe.modes == 0


def test_modes_come_with_the_prior(ball_grid: Grid) -> None:
    network = model_of(ball_grid, modes=6).network
    group = tensor(templates_of(ball_grid).maps)
    with pytest.raises(ValueError, match="modes"):
        network.set_prior(group, group, group)


def test_nothing_of_it_is_said_to_be_in_bf16(ball_grid: Grid) -> None:
    (run,) = runs_of(ball_grid, 1)
    half = Compute("cpu", "bf16")
    model = model_of(ball_grid, epochs=1).fit([run], half, seed=1)
    list(model.maps(run, half, 20))
    assert model.training["Precision"] == model.inference["Precision"] == "fp32"


def test_the_noise_of_raw_maps_is_that_of_repeated_stretches(ball_grid: Grid) -> None:
    courses = tensor(np.random.default_rng(0).standard_normal((1, 30, 3)))
    courses = (courses - courses.mean(dim=1)) / courses.std(dim=1, correction=0)
    signal = courses @ tensor(own_maps(ball_grid, 0))[None]
    noise = torch.randn(200, 30, ball_grid.n_voxels, generator=torch.manual_seed(0))
    maps, variance = fit_maps(signal + noise, courses.expand(200, -1, -1), 0.0)
    np.testing.assert_allclose(variance.mean(dim=0), maps.var(dim=0).mean(dim=1), rtol=0.05)


def test_what_maps_explain_is_the_projection_on_them(ball_grid: Grid) -> None:
    rng = np.random.default_rng(3)
    maps = rng.standard_normal((3, ball_grid.n_voxels))
    volumes = rng.standard_normal((12, 3)) @ maps + rng.standard_normal((12, ball_grid.n_voxels))
    share = explained(tensor(volumes)[None], tensor(maps)[None])
    maps, volumes = (x - x.mean(axis=1, keepdims=True) for x in (maps, volumes))
    fitted = volumes @ np.linalg.pinv(maps) @ maps
    assert share.item() == pytest.approx((fitted**2).sum() / (volumes**2).sum(), rel=1e-3)


def test_the_global_signal_is_no_merit_of_maps(ball_grid: Grid) -> None:
    rng = np.random.default_rng(3)
    maps = rng.standard_normal((3, ball_grid.n_voxels))
    volumes = rng.standard_normal((12, 3)) @ maps + rng.standard_normal((12, ball_grid.n_voxels))
    share = explained(tensor(volumes)[None], tensor(maps)[None])
    brighter = volumes + 3 * rng.standard_normal((12, 1))
    for changed in (maps, maps + 1):
        again = explained(tensor(brighter)[None], tensor(changed)[None])
        assert again.item() == pytest.approx(share.item(), rel=1e-4)


def test_the_prior_takes_noise_for_noise(ball_grid: Grid) -> None:
    group = zscore_maps(templates_of(ball_grid).maps)
    few, many = (_prior(runs_of(ball_grid, 24, n_volumes=n, noise=3.0), group) for n in (40, 400))
    # Raw maps of 40 volumes are noisier by far; what is said of the participants is not.
    assert similarity(few[0], many[0]) > 0.9
    ratio = np.sqrt((few[1] ** 2).mean() / (many[1] ** 2).mean())
    raw = [
        np.std([dual_regression(np.asarray(r.data), group)[0] for r in runs], axis=0, ddof=1)
        for runs in (runs_of(ball_grid, 24, n_volumes=n, noise=3.0) for n in (40, 400))
    ]
    assert np.sqrt((raw[0] ** 2).mean() / (raw[1] ** 2).mean()) > 1.5 * ratio


def test_one_participant_has_a_prior_of_the_shape_of_the_template(ball_grid: Grid) -> None:
    group = zscore_maps(templates_of(ball_grid).maps)
    mean, spread = _prior(runs_of(ball_grid, 1), group)
    assert similarity(mean, group) == pytest.approx(1, abs=1e-4)
    assert (spread.std(axis=1) < 1e-6).all()
    assert (spread > 0).all()


def test_its_maps_are_nearer_the_truth_than_those_of_dual_regression(
    ball_grid: Grid, trained: UDR
) -> None:
    group = zscore_maps(templates_of(ball_grid).maps)
    for run, participant in zip(runs_of(ball_grid, 11)[8:], (8, 9, 10), strict=True):
        truth = own_maps(ball_grid, participant)
        maps = all_maps(trained, run, stride=10)
        assert len(maps) == 7
        starts = trained.steps(run, 10).start
        raw = {
            step: dual_regression(run.rows(starts[step], starts[step] + 24), group)[0]
            for step in maps
        }
        ours = np.mean([similarity(found, truth) for found in maps.values()])
        theirs = np.mean([similarity(found, truth) for found in raw.values()])
        assert ours > theirs + 0.05


def test_training_explains_more_of_other_volumes(ball_grid: Grid, trained: UDR) -> None:
    curve = trained.training["LossCurve"]["Loss"]
    assert np.mean(curve[-6:]) < np.mean(curve[:6])
    untrained = model_of(ball_grid, modes=trained.recipe.modes)
    runs = runs_of(ball_grid, 12)
    untrained._n_training = 8
    untrained.prepare(runs[:8], 1)
    shares = {}
    for name, model in (("prior", untrained), ("trained", trained)):
        of_runs = []
        for run in runs[8:]:
            volumes = tensor(np.asarray(run.data))[None]
            with torch.no_grad():
                maps = model.network(volumes[:, :24])[0]
            of_runs.append(explained(volumes[:, 40:], maps).item())
        shares[name] = np.mean(of_runs)
    assert shares["trained"] > shares["prior"]


def test_what_other_volumes_lose_to_maps_and_courses(ball_grid: Grid) -> None:
    rng = np.random.default_rng(4)
    maps = rng.standard_normal((2, ball_grid.n_voxels))
    courses = zscore_maps(rng.standard_normal((2, 50))).T
    weights = np.arange(ball_grid.n_voxels) % 5 > 0
    volumes = tensor(courses @ maps * weights)[None]
    courses_, maps_ = tensor(courses)[None], tensor(maps)[None]
    assert predicted(volumes, courses_, maps_).item() == pytest.approx(1, abs=1e-4)
    assert predicted(volumes, courses_, 0 * maps_).item() == pytest.approx(0, abs=1e-4)
    # What spans the same space under other names explains as much, and predicts less.
    swapped = maps_.flip(1)
    assert explained(volumes, swapped).item() == pytest.approx(1, abs=1e-3)
    assert predicted(volumes, courses_, swapped).item() < 0


def test_a_network_keeps_its_place(ball_grid: Grid, trained: UDR) -> None:
    group = templates_of(ball_grid).maps
    for run in runs_of(ball_grid, 10)[8:]:
        for maps in all_maps(trained, run, stride=20).values():
            r = np.corrcoef(maps, group)[:3, 3:]
            assert (r.argmax(axis=1) == np.arange(3)).all()


def test_participants_stay_themselves(ball_grid: Grid, trained: UDR) -> None:
    halves: list[list[np.ndarray]] = [[], []]
    for run in runs_of(ball_grid, 20, n_volumes=180, noise=0.5)[8:]:
        for half, rows in enumerate((slice(0, 90), slice(90, 180))):
            with torch.no_grad():
                maps = trained.network(tensor(run.data[rows])[None])[0][0].numpy()
            halves[half].append(zscore_maps(maps).ravel())
    r = np.corrcoef(*halves)[:12, 12:]
    # By chance it is one in twelve.
    assert (r.argmax(axis=1) == np.arange(12)).mean() > 0.9


def test_voxels_that_a_run_does_not_cover_change_nothing(ball_grid: Grid, trained: UDR) -> None:
    (run,) = runs_of(ball_grid, 9)[8:]
    covered = np.arange(ball_grid.n_voxels) % 7 != 0
    data = np.where(covered, np.asarray(run.data), 0)
    first = all_maps(trained, replace(run, data=data, covered=covered), stride=30)
    for maps in first.values():
        assert (maps[:, ~covered] == 0).all()
        assert np.isfinite(maps).all()


def test_courses_are_of_the_networks(ball_grid: Grid, trained: UDR) -> None:
    (run,) = runs_of(ball_grid, 9)[8:]
    courses = trained.courses(run, CPU)
    assert courses is not None
    assert courses.shape == (90, 3)
    truth = np.random.default_rng(1008).standard_normal((90, 3))
    r = np.corrcoef(courses.T, truth.T)[:3, 3:]
    assert (np.diag(r) > 0.9).all()


def test_weights_and_card_make_the_same_model(
    ball_grid: Grid, trained: UDR, tmp_path: Path
) -> None:
    trained.save(tmp_path / "model.safetensors")
    loaded = models.load(tmp_path / "model.safetensors", ball_grid)
    assert loaded.networks == ("A", "B", "C")
    (run,) = runs_of(ball_grid, 1)
    for step, maps in all_maps(trained, run, stride=20).items():
        np.testing.assert_array_equal(all_maps(loaded, run, stride=20)[step], maps)
    with pytest.raises(RunError, match="applied, not trained"):
        loaded.fit([run], CPU)


def test_the_same_seed_gives_the_same_weights(ball_grid: Grid) -> None:
    runs = runs_of(ball_grid, 2)
    first, again, other = (
        model_of(ball_grid, epochs=1).fit(runs, CPU, seed=seed).network.state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_maps_never_explain_volumes_that_made_them_or_their_neighbours(ball_grid: Grid) -> None:
    (run,) = runs_of(ball_grid, 1)
    # A volume holds its own number.
    data = np.repeat(np.arange(90, dtype=np.float32)[:, None], ball_grid.n_voxels, axis=1)
    run = replace(run, data=data)
    model = model_of(ball_grid)
    chance = np.random.default_rng(0)
    starts = model._training_starts(run)
    seen = set()
    for start in np.repeat(starts, 20):
        others = model._others(run, int(start), chance)[:, 0].numpy()
        assert ((others < start - 9) | (others > start + 24 + 9)).all()
        assert 10 <= len(others) <= 24
        seen |= set(others.astype(int))
    assert len(seen) > 80


def test_a_run_too_short_is_refused_in_one_line(ball_grid: Grid) -> None:
    (run,) = runs_of(ball_grid, 1, n_volumes=40)
    with pytest.raises(RunError) as caught:
        model_of(ball_grid).fit([run], CPU)
    assert "44 volumes" in one_line(caught)


def test_it_needs_templates(ball_grid: Grid) -> None:
    with pytest.raises(InputError, match="give --templates"):
        models.create("udr", ModelOptions(model=("udr",)), ball_grid)


def test_it_is_made_of_a_template_set(ball_grid: Grid) -> None:
    options = ModelOptions(model=("udr",), sloppy=True)
    model = models.create("udr", options, ball_grid, templates_of(ball_grid))
    assert (model.window, model.n_candidates, model.preset) == (20, 3, "sloppy")


def test_channels_are_not_asked_of_models_that_have_none() -> None:
    (line,) = ModelOptions(model=("udr", "dualregression"), channels=8).idle()
    assert "--channels: none of the models" in line
    assert ModelOptions(model=("udr", "ica"), channels=8).idle() == []


def test_models_that_were_not_published_with_code_have_no_such_preset() -> None:
    (line,) = ModelOptions(preset="as-published").idle()
    assert "--preset: none of the models" in line
    assert ModelOptions(model=("udr", "untrained-scaae"), preset="as-published").idle() == []


def test_maps_are_of_the_size_that_a_network_has_in_the_stretch(
    ball_grid: Grid, trained: UDR
) -> None:
    network = trained.network
    usual = [network.size_in(tensor(run.data)[None])[0, :, 0] for run in runs_of(ball_grid, 8)]
    assert torch.stack(usual).mean(dim=0).numpy() == pytest.approx(1, abs=0.02)

    rng = np.random.default_rng(5)
    courses = rng.standard_normal((200, 3))
    courses[100:, 1] *= 3
    noise = rng.standard_normal((200, ball_grid.n_voxels))
    data = tensor(courses @ own_maps(ball_grid, 50) + 0.5 * noise)
    with torch.no_grad():
        small, large = network(torch.stack([data[:100], data[100:]]))[0].numpy()
        sizes = network.size_in(torch.stack([data[:100], data[100:]]))[:, :, 0].numpy()
    grown = courses[100:].std(axis=0) / courses[:100].std(axis=0)
    assert sizes[1] / sizes[0] == pytest.approx(grown, rel=0.1)
    ratio = np.sqrt((large**2).mean(axis=1) / (small**2).mean(axis=1))
    assert ratio == pytest.approx(grown, rel=0.1)


def test_a_network_that_the_prior_has_not_gets_no_size(ball_grid: Grid) -> None:
    network = model_of(ball_grid).network
    group = tensor(zscore_maps(templates_of(ball_grid).maps))
    network.set_prior(group, torch.zeros_like(group), torch.ones_like(group))
    volumes = tensor(np.asarray(runs_of(ball_grid, 1)[0].data))[None]
    assert (network.size_in(volumes) == 1).all()
