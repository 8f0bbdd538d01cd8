"""How sure unrolled dual regression is of its maps: in which units, and how rightly."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import CPU
from udr_runs import both_priors, model_of, runs_of, templates_of

from bids_fbn import models
from bids_fbn.baselines.regression import DualRegression
from bids_fbn.bids.boldrun import BoldRun
from bids_fbn.bids.outputs import RunWriter
from bids_fbn.bids.writing import sidecar_path
from bids_fbn.models import udr_error
from bids_fbn.models.udr import UDR
from bids_fbn.models.udr_error import DrawnRun, _factors, _scales, draw_run, limits_of
from bids_fbn.models.udr_network import covered_in, fit_courses, fit_maps
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.standard import load_image

pytestmark = pytest.mark.usefixtures("one_thread")


@both_priors
def trained(ball_grid: Grid, request: pytest.FixtureRequest) -> UDR:
    return model_of(ball_grid, modes=request.param).fit(runs_of(ball_grid, 10), CPU, seed=1)


def test_without_factors_it_is_the_posterior_of_the_normal_model(ball_grid: Grid) -> None:
    network = model_of(ball_grid).network
    shape = (3, ball_grid.n_voxels)
    spread = torch.tensor([0.1, 0.3, 0.5])[:, None].expand(shape)
    # Means of known parts of the group maps, so that the three sizes differ whatever is drawn.
    group = torch.randn(shape)
    network.set_prior(group, torch.tensor([0.5, 1.0, 2.0])[:, None] * group, spread)
    volumes = torch.randn(1, 40, 3) @ group + torch.randn(1, 40, ball_grid.n_voxels)
    with torch.no_grad():
        courses = fit_courses(volumes, network.group[None], covered_in(volumes))
        own, noise = fit_maps(volumes, courses, network.log_ridge.exp())
        noise = noise[:, :, None] * network.log_noise.exp()
        maps, sd, found = network.estimate(volumes)
    size = network.size_in(volumes)
    assert size.std() > 0.1
    precision = 1 / (size * spread).square() + 1 / noise
    expected = (network.mean / (size * spread.square()) + own / noise) / precision
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sd, precision.rsqrt(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found, courses)


def test_the_truth_of_drawn_runs_is_what_their_signal_is(ball_grid: Grid, trained: UDR) -> None:
    (run,) = runs_of(ball_grid, 11)[10:]
    sizes = []
    for seed in range(20):
        drawn = draw_run(trained.network, run, [0, seed])
        data = np.asarray(drawn.signals.data)
        np.testing.assert_allclose(data.std(axis=0, ddof=1), 1, rtol=1e-4)
        # Least squares on its own courses errs by noise alone, whatever the size of the maps.
        for start, stop in ((0, 90), (30, 60)):
            courses = drawn.courses[start:stop] - drawn.courses[start:stop].mean(axis=0)
            volumes = data[start:stop] - data[start:stop].mean(axis=0)
            found = np.linalg.lstsq(courses / courses.std(axis=0), volumes, rcond=None)[0]
            true = drawn.maps_of(start, stop)
            sizes.append((found * true).sum(axis=1) / (true**2).sum(axis=1))
    np.testing.assert_allclose(np.mean(sizes, axis=0), 1, atol=0.05)


@pytest.fixture(scope="module")
def of_known(ball_grid: Grid, trained: UDR) -> tuple[UDR, list[DrawnRun]]:
    """Trained on runs whose truth is known, and others of that kind."""
    drawn = [
        draw_run(trained.network, run, [7, number])
        for number, run in enumerate(runs_of(ball_grid, 22))
    ]
    model = model_of(ball_grid, modes=trained.recipe.modes)
    with pytest.MonkeyPatch.context() as patched:
        # In proportion to the map is what is wrong in the same way in everybody, of which drawn
        # runs have nothing: benchmarks/uncertainty.py has runs that do.
        patched.setattr(udr_error, "COMMON_BESIDE_MODES", (udr_error.COMMON, 0.0))
        model.fit([run.signals for run in drawn[:10]], CPU, seed=1)
    return model, drawn[10:]


@pytest.mark.parametrize("nominal", [0.5, 0.68, 0.9, 0.95])
@pytest.mark.parametrize("length", [12, 24, 45])
def test_intervals_hold_the_truth_as_often_as_they_say(
    of_known: tuple[UDR, list[DrawnRun]], nominal: float, length: int
) -> None:
    model, runs = of_known
    limit = limits_of(np.array(nominal), float(model.network.error_degrees))
    inside = []
    for run in runs:
        for start in range(0, 91 - length, length):
            maps, sd = model.effects_of(run.signals, start, start + length, CPU)
            inside.append((np.abs(maps - run.maps_of(start, start + length)) <= limit * sd).mean())
    assert np.mean(inside) == pytest.approx(nominal, abs=0.08)


def test_more_volumes_make_it_surer(ball_grid: Grid, trained: UDR) -> None:
    for run in runs_of(ball_grid, 13)[10:]:
        sds = [trained.effects_of(run, 0, stop, CPU)[1].mean() for stop in (15, 30, 60, 90)]
        assert sds[-1] < sds[0]
        # Beside modes a longer stretch also counts for more: not every step need be down.
        assert trained.recipe.modes or (np.diff(sds) < 0).all()


def test_it_is_in_the_units_of_the_map(ball_grid: Grid, trained: UDR) -> None:
    (run,) = runs_of(ball_grid, 11)[10:]
    maps, sd = trained.effects(run, CPU)
    # As many units of the signal as there were: both double, but for the noise's share of them.
    network = copy.deepcopy(trained.network)
    units = [network.mean, network.spread, *([network.modes] if network.n_modes else [])]
    for values in units:
        values.mul_(2)
    with torch.no_grad():
        volumes = torch.from_numpy(np.asarray(run.data))[None]
        large, of_large, _ = network.estimate(2 * volumes)
        for values in units:
            values.div_(2)
        small, of_small, _ = network.estimate(volumes)
    torch.testing.assert_close(large, 2 * small, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(of_large, 2 * of_small, rtol=1e-3, atol=1e-4)
    assert maps.shape == sd.shape == (3, ball_grid.n_voxels)


def test_it_is_nothing_where_the_run_covers_nothing(ball_grid: Grid, trained: UDR) -> None:
    (run,) = runs_of(ball_grid, 11)[10:]
    covered = np.arange(ball_grid.n_voxels) % 7 != 0
    run = replace(run, data=np.where(covered, np.asarray(run.data), 0), covered=covered)
    maps, sd = trained.effects(run, CPU)
    assert not maps[:, ~covered].any()
    assert ((sd > 0) == covered).all()


def test_it_comes_with_the_weights(ball_grid: Grid, trained: UDR, tmp_path: Path) -> None:
    trained.save(tmp_path / "model.safetensors")
    loaded = models.load(tmp_path / "model.safetensors", ball_grid)
    (run,) = runs_of(ball_grid, 11)[10:]
    ours, theirs = trained.effects(run, CPU), loaded.effects(run, CPU)
    assert theirs is not None
    np.testing.assert_array_equal(theirs[1], ours[1])
    assert loaded.training["Error"]["Volumes"] == [12, 24, 45]


def test_one_run_is_enough_to_find_it(ball_grid: Grid) -> None:
    (run,) = runs_of(ball_grid, 1)
    model = model_of(ball_grid, epochs=1).fit([run], CPU, seed=1)
    _, sd = model.effects(run, CPU)
    assert np.isfinite(sd).all()
    assert (sd > 0).all()


def test_factors_of_parts_are_found_again() -> None:
    parts = np.random.default_rng(0).gamma(1.0, size=(4, 3, 4000)) * [[[1]], [[0.1]], [[2]], [[1]]]
    factors = np.array([0.5, 3.0, 0.0, 0.2])
    squares = np.einsum("n,nkv->kv", factors, parts)
    squares *= np.random.default_rng(1).chisquare(40, squares.shape) / 40
    np.testing.assert_allclose(_factors(parts, squares), factors, atol=0.03)


def test_size_and_tails_of_errors_are_found_again() -> None:
    chance = np.random.default_rng(0)
    normal = np.abs(chance.standard_normal(100_000))
    tailed = np.abs(chance.standard_t(5, 100_000)) / np.sqrt(5 / 3)
    degrees, scales = _scales([[1.3 * normal], [0.8 * normal]])
    assert degrees >= 20
    assert scales == pytest.approx([1.3, 0.8], rel=0.03)
    degrees, scales = _scales([[1.3 * tailed]])
    assert degrees in (4, 5, 6)
    assert scales == pytest.approx([1.3], rel=0.05)
    # In two sets that differ: between what either asks for.
    _, (between,) = _scales([[1.3 * normal, 0.8 * normal]])
    assert 0.8 < between < 1.3


def test_models_that_do_not_know_say_nothing(ball_grid: Grid) -> None:
    (run,) = runs_of(ball_grid, 1)
    recipe = DualRegression.recipes["classical"]
    templates = templates_of(ball_grid)
    model = DualRegression(
        recipe, "classical", ball_grid, networks=templates.networks, templates=templates
    )
    assert model.effects(run, CPU) is None


def test_map_and_sd_are_written_beside_each_other(
    ball_grid: Grid, trained: UDR, tmp_path: Path
) -> None:
    (run,) = runs_of(ball_grid, 11)[10:]
    bold = BoldRun({"subject": "01", "task": "rest"}, Path("x.nii.gz"), 2.0, "MNI", 90)
    writer = RunWriter(tmp_path, bold, ball_grid, templates_of(ball_grid), "bids:in:x.nii.gz")
    maps, sd = trained.effects(run, CPU)
    writer.write_effects("udr", maps, sd, trained.networks)
    start = tmp_path / "sub-01" / "func" / "sub-01_task-rest_space-MNI_res-8"
    for stat, values in (("effect", maps), ("sd", sd)):
        path = Path(f"{start}_stat-{stat}_desc-udr_components.nii.gz")
        written = load_image(path).get_fdata()[ball_grid.mask].T
        np.testing.assert_allclose(written, values, rtol=1e-6)
        assert '"Units": "standard deviations' in sidecar_path(path).read_text()
