"""ST-CNN: its published size, its targets, what it is taught, and its courses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import CPU, all_maps, assert_same, blobs, one_line, run_of, weights_of

from bids_fbn import models
from bids_fbn.config import ModelOptions
from bids_fbn.errors import InputError, RunError
from bids_fbn.models.fitting import Stage
from bids_fbn.models.sampling import Batch
from bids_fbn.models.stcnn import STCNN, STCNNRecipe
from bids_fbn.models.stcnn_network import (
    SpatialPart,
    STCNNNetwork,
    TemporalPart,
    pearson,
    synchronize,
)
from bids_fbn.models.targets import LEAST_MATCH, Targets, find_targets
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals

SMALL = STCNNRecipe(
    window=12, channels=4, learning_rate=1.0, epochs=2, batch=2, stride=6, components=3
)

pytestmark = pytest.mark.usefixtures("one_thread")


def template_set(grid: Grid, **networks: np.ndarray) -> TemplateSet:
    maps = np.stack(list(networks.values())).astype(np.float32)
    return TemplateSet("Test", tuple(networks), maps, maps > 0.3, "", "", "")


@pytest.fixture
def two(ball_grid: Grid) -> TemplateSet:
    first, second = blobs(ball_grid)
    return template_set(ball_grid, DefaultMode=first, Visual=second)


def small(grid: Grid, templates: TemplateSet, **changes: Any) -> STCNN:
    recipe = replace(SMALL, **changes)
    return STCNN(recipe, "test", grid, networks=templates.networks, templates=templates)


# --- the network --------------------------------------------------------------------------------


def test_published_size(ball_grid: Grid, two: TemplateSet) -> None:
    model = models.create("stcnn", ModelOptions(preset="as-published"), ball_grid, two)
    # Of the default mode alone, over the whole box, "about 6 million".
    assert isinstance(model, STCNN)
    assert model.networks == ("DefaultMode",)
    assert model.n_candidates == 1
    assert model.window == 284
    assert model.n_parameters == 6_086_410
    assert model.box_shape == ball_grid.shape


def test_maps_have_the_shape_of_the_box() -> None:
    part = SpatialPart(5, 2, 3, (11, 9, 14))
    assert part.padded == (16, 16, 16)
    assert part(torch.randn(2, 5, 11, 9, 14)).shape == (2, 3, 11, 9, 14)


@pytest.mark.parametrize("length", [4, 13, 40, 351])
def test_courses_may_be_of_any_length(length: int) -> None:
    part = TemporalPart()
    courses = torch.randn(3, length)
    found = part(courses)
    assert found.shape == (3, length)
    # Each is treated by itself.
    torch.testing.assert_close(part(courses[1:2]), found[1:2])


@pytest.mark.parametrize("standardize", [False, True])
def test_the_course_is_a_mean_weighted_by_the_map(standardize: bool) -> None:
    network = STCNNNetwork(6, 2, 2, (4, 5, 3), standardize=standardize)
    rng = np.random.default_rng(0)
    maps, windows = rng.normal(size=(1, 2, 4, 5, 3)), rng.normal(size=(1, 6, 4, 5, 3))
    expected = np.stack(
        [(windows[0] * np.maximum(map_ - 0.1, 0)).mean(axis=(1, 2, 3)) for map_ in maps[0]]
    )
    if standardize:
        expected -= expected.mean(axis=1, keepdims=True)
        expected /= expected.std(axis=1, keepdims=True)
    found = network.weighted_courses(torch.from_numpy(maps), torch.from_numpy(windows))
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_a_map_without_a_voxel_above_a_tenth_spoils_no_gradient() -> None:
    network = STCNNNetwork(8, 2, 2, (9, 8, 8))
    network.spatial.project.get_parameter("bias").data.fill_(-100.0)
    _, courses = network(torch.randn(1, 8, 9, 8, 8))
    pearson(courses, torch.randn(1, 2, 8)).sum().backward()
    assert all(
        torch.isfinite(parameter.grad).all()
        for parameter in network.parameters()
        if parameter.grad is not None
    )


def test_windows_are_turned_to_the_reference() -> None:
    rng = torch.Generator().manual_seed(0)
    reference = torch.randn(6, 60, generator=rng)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=rng))
    turned = (turn @ reference).unflatten(1, (4, 5, 3))
    other = torch.randn(6, 4, 5, 3, generator=rng)
    found = synchronize(torch.stack([turned, other]), reference)
    torch.testing.assert_close(found[0].flatten(1), reference, rtol=1e-4, atol=1e-5)
    # What two voxels of a window have in common stays.
    before, after = (window.flatten(1) for window in (other, found[1]))
    torch.testing.assert_close(after.T @ after, before.T @ before, rtol=1e-4, atol=1e-4)
    assert (after - reference).norm() < (before - reference).norm()


# --- targets ------------------------------------------------------------------------------------


def test_targets_are_the_components_that_match_the_right_way_up(
    ball_grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = blobs(ball_grid)
    rng = np.random.default_rng(0)
    noise, absent = rng.standard_normal((2, len(first))).astype(np.float32)
    components = np.stack([noise, -2 * first, 3 * second])
    series = rng.standard_normal((60, 3)) + 5
    monkeypatch.setattr(
        "bids_fbn.models.targets.learn_dictionary", lambda *options: (components, series)
    )
    templates = template_set(ball_grid, One=first, Absent=absent, Other=second)
    targets = find_targets(run_of(ball_grid, 60), templates)
    assert targets.found.tolist() == [True, False, True]
    for network, blob, course in ((0, first, -series[:, 1]), (2, second, series[:, 2])):
        peak = np.percentile(blob, 99.5)
        np.testing.assert_allclose(targets.maps[network], blob / peak, rtol=1e-5)
        zscored = (course - course.mean()) / course.std()
        np.testing.assert_allclose(targets.courses[:, network], zscored, atol=1e-5)
        assert targets.match[network] == pytest.approx(1, abs=1e-5)


def test_a_map_with_nothing_the_right_way_up_is_no_target(
    ball_grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = blobs(ball_grid)
    monkeypatch.setattr(
        "bids_fbn.models.targets.learn_dictionary",
        lambda *options: (first[None], np.ones((30, 1))),
    )
    targets = find_targets(run_of(ball_grid, 30), template_set(ball_grid, Upside=-first))
    assert not targets.found.any()


def test_a_component_is_the_target_of_one_network_only(ball_grid: Grid) -> None:
    first, _ = blobs(ball_grid)
    templates = template_set(ball_grid, One=first, Same=first)
    targets = find_targets(run_of(ball_grid, 60), templates, n_components=3)
    assert not np.array_equal(targets.maps[0], targets.maps[1])


def test_a_network_that_is_not_modelled_keeps_its_component(
    ball_grid: Grid, two: TemplateSet
) -> None:
    model = STCNN(SMALL, "test", ball_grid, networks=["Visual"], templates=two)
    signals = run_of(ball_grid, 30)
    model.prepare([signals], seed=0)
    everything = find_targets(signals, two, n_components=3)
    assert np.array_equal(model._targets[0].maps, everything.maps[1:])
    assert np.array_equal(model._targets[0].courses, everything.courses[:, 1:])


def test_runs_without_any_network_are_an_error_of_the_run(ball_grid: Grid) -> None:
    noise = np.random.default_rng(0).standard_normal(ball_grid.n_voxels).astype(np.float32)
    model = small(ball_grid, template_set(ball_grid, Absent=noise))
    with pytest.raises(RunError) as error:
        model.fit([run_of(ball_grid, 30)], CPU)
    assert "Absent" in one_line(error)


# --- the loss -----------------------------------------------------------------------------------


class Answers(torch.nn.Module):
    """Stands for the network: says what it was given to say."""

    def __init__(self, maps: torch.Tensor, courses: torch.Tensor) -> None:
        super().__init__()
        self.answers = maps, courses

    def forward(self, windows: torch.Tensor, with_courses: bool = True) -> Any:
        maps, courses = self.answers
        return maps, courses if with_courses else None


@pytest.fixture
def taught(ball_grid: Grid, two: TemplateSet) -> STCNN:
    """A model with targets for a run of 30 volumes, of which the second network is unusable."""
    model = small(ball_grid, two)
    rng = np.random.default_rng(1)
    covered = np.ones(ball_grid.n_voxels, dtype=bool)
    covered[:50] = False
    maps = np.where(covered, rng.random((2, ball_grid.n_voxels)), 0).astype(np.float32)
    courses = rng.standard_normal((30, 2)).astype(np.float32)
    model._targets = [Targets(maps, courses, np.array([0.5, LEAST_MATCH - 0.01]), covered)]
    return model


def loss_of(model: STCNN, maps: torch.Tensor, courses: torch.Tensor, stage: str) -> float:
    windows = torch.zeros(1, 12, model.grid.n_voxels)
    batch = Batch(windows, np.array([0]), np.array([7]))
    return float(model.loss(Answers(model._to_box(maps), courses), batch, stage))


@pytest.mark.parametrize(("stage", "least"), [("spatial", 0), ("both", -0.1 / 2)])
def test_the_loss_is_that_of_maps_and_courses(taught: STCNN, stage: str, least: float) -> None:
    targets = taught._targets[0]
    maps = torch.from_numpy(targets.maps)[None].clone()
    # Scale and level of a course do not count.
    courses = 3 * torch.from_numpy(targets.courses[7:19].T)[None] + 1
    assert loss_of(taught, maps, courses, stage) == pytest.approx(least, abs=1e-6)
    maps[0, 1] += 5  # no component of the run is that network
    courses[0, 1] = 0
    maps[0, 0, :50] += 5  # voxels that the run does not cover
    assert loss_of(taught, maps, courses, stage) == pytest.approx(least, abs=1e-6)
    maps[0, 0, 60] += 3
    expected = least + 9 / targets.covered.sum() / 2  # a mean over both networks
    assert loss_of(taught, maps, courses, stage) == pytest.approx(expected, rel=1e-4)
    flipped = loss_of(taught, maps, -courses, stage)
    assert flipped - expected == pytest.approx(-2 * least, abs=1e-5)


def test_the_published_loss_is_that_of_the_whole_box(ball_grid: Grid, two: TemplateSet) -> None:
    model = small(ball_grid, two, whole_box=True)
    maps = np.zeros((2, ball_grid.n_voxels), dtype=np.float32)
    covered = np.ones(ball_grid.n_voxels, dtype=bool)
    model._targets = [Targets(maps, np.zeros((30, 2), np.float32), np.ones(2), covered)]
    answer = torch.zeros(1, 2, *ball_grid.shape)
    answer[0, 0, 0, 0, 0] = 2  # a corner, outside the mask
    batch = Batch(torch.zeros(1, 12, ball_grid.n_voxels), np.array([0]), np.array([0]))
    loss = float(model.loss(Answers(answer, torch.zeros(1, 2, 12)), batch, "spatial"))
    assert loss == pytest.approx(4 / np.prod(ball_grid.shape) / 2)


# --- training -----------------------------------------------------------------------------------


def part_of(model: STCNN, name: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in weights_of(model).items() if key.startswith(name)}


def test_the_second_stage_leaves_the_spatial_part_alone(ball_grid: Grid, two: TemplateSet) -> None:
    after = []
    for n_stages in (1, 2, 3):

        class Shortened(STCNN):
            def stages(self, number: int = n_stages) -> list[Stage]:
                return super().stages()[:number]

        model = Shortened(SMALL, "test", ball_grid, networks=two.networks, templates=two)
        after.append(model.fit([run_of(ball_grid, 30)], CPU))
    first, second, third = after
    assert_same(part_of(first, "spatial"), part_of(second, "spatial"))  # batch norms too
    for key, values in part_of(second, "temporal").items():
        assert not np.array_equal(values, part_of(first, "temporal")[key])
    for name in ("spatial.down.0.0.weight", "temporal.first.weight"):
        assert not np.array_equal(part_of(third, name)[name], part_of(second, name)[name])


def test_maps_and_courses_of_the_targets_are_learnt(ball_grid: Grid, two: TemplateSet) -> None:
    signals = run_of(ball_grid, 40)
    model = small(ball_grid, two, epochs=20, stride=3).fit([signals], CPU)
    maps = np.mean(list(all_maps(model, signals).values()), axis=0)
    targets = find_targets(signals, two, n_components=3)
    for found, wanted in zip(maps, targets.maps, strict=True):
        assert np.corrcoef(found, wanted)[0, 1] > 0.8
    for found, wanted in zip(model.courses(signals, CPU).T, targets.courses.T, strict=True):
        assert np.corrcoef(found, wanted)[0, 1] > 0.5


def test_the_reference_is_the_middle_window_of_the_first_run(
    ball_grid: Grid, two: TemplateSet, tmp_path: Path
) -> None:
    runs = [run_of(ball_grid, n_volumes, seed=n_volumes) for n_volumes in (10, 30, 36)]
    model = small(ball_grid, two, epochs=1, synchronize=True, components=3)
    model.fit(runs[1:2], CPU, validation=runs[2:])
    window = torch.from_numpy(runs[1].data[None, 9:21])
    wanted = model._to_box(window)[0].flatten(1)
    torch.testing.assert_close(model.network.spatial.reference, wanted)
    # What is turned in time has the same maps, since nothing but the order of volumes differs.
    model.save(tmp_path / "weights.safetensors")
    again = models.load(tmp_path / "weights.safetensors", ball_grid)
    backwards = replace(runs[2], data=runs[2].data[::-1].copy())
    maps, mirrored = all_maps(again, runs[2]), all_maps(again, backwards)
    for step, found in maps.items():
        np.testing.assert_allclose(mirrored[24 - step], found, atol=2e-3)


def test_participants_to_validate_on_have_targets_of_their_own(
    ball_grid: Grid, two: TemplateSet
) -> None:
    model = small(ball_grid, two)
    held_out = run_of(ball_grid, 36, seed=1)
    model.fit([run_of(ball_grid, 30)], CPU, validation=[held_out])
    assert len(model._targets) == 2
    assert len(model._targets[1].courses) == 36
    assert len(model.training["ValidationCurve"]["Loss"]) == 3 * SMALL.epochs


def test_a_saved_model_comes_back_with_its_networks(
    ball_grid: Grid, two: TemplateSet, tmp_path: Path
) -> None:
    signals = run_of(ball_grid, 30)
    model = small(ball_grid, two, epochs=1).fit([signals], CPU)
    card = model.save(tmp_path / "weights.safetensors")
    assert card["Architecture"]["Networks"] == ["DefaultMode", "Visual"]
    again = models.load(tmp_path / "weights.safetensors", ball_grid)
    assert isinstance(again, STCNN)
    assert again.networks == model.networks
    assert_same(all_maps(again, signals), all_maps(model, signals))
    np.testing.assert_array_equal(again.courses(signals, CPU), model.courses(signals, CPU))
    with pytest.raises(RunError, match="templates"):
        again.fit([signals], CPU)


# --- which networks -----------------------------------------------------------------------------


def test_all_networks_of_the_set_or_those_asked_for(ball_grid: Grid, two: TemplateSet) -> None:
    def networks(**options: Any) -> tuple[str, ...]:
        model = models.create("stcnn", ModelOptions(**options), ball_grid, two)
        assert isinstance(model, STCNN)
        return model.networks

    assert networks(channels=4) == ("DefaultMode", "Visual")
    assert networks(channels=4, target_networks=("visual",)) == ("Visual",)
    with pytest.raises(InputError) as error:
        networks(channels=4, target_networks=("Auditory",))
    assert "DefaultMode, Visual" in one_line(error)
    with pytest.raises(InputError):
        models.create("stcnn", ModelOptions(channels=4), ball_grid)


def test_the_published_model_needs_a_default_mode(ball_grid: Grid) -> None:
    first, second = blobs(ball_grid)
    options = ModelOptions(preset="as-published", channels=4, window=12)
    with pytest.raises(InputError, match="default mode"):
        models.create("stcnn", options, ball_grid, template_set(ball_grid, A=first, B=second))


# --- maps and courses ---------------------------------------------------------------------------


def test_every_step_has_a_map_of_each_network(ball_grid: Grid, two: TemplateSet) -> None:
    model = small(ball_grid, two)
    signals = run_of(ball_grid, 30)
    maps = all_maps(model, signals)
    assert list(maps) == list(range(19))
    window = torch.from_numpy(signals.data[None, 4:16])
    with torch.no_grad():
        by_hand, _ = model.network.eval()(model._to_box(window))
    np.testing.assert_allclose(maps[4], model._in_mask(by_hand)[0].numpy(), atol=1e-5)


def test_courses_are_means_over_windows(ball_grid: Grid, two: TemplateSet) -> None:
    model = small(ball_grid, two)
    # A gap of three volumes is more than a tenth of a window: no window lies over it.
    signals = run_of(ball_grid, 40, left_out=(14, 15, 16))
    starts = model._course_starts(signals)
    assert starts == [0, 2, 14, 17, 20, 23, 25]  # rows of the kept volumes
    found = model.courses(signals, CPU)
    assert found.shape == (37, 2)
    assert np.isfinite(found).all()
    total, count = np.zeros((37, 2)), np.zeros((37, 1))
    model.network.eval()
    for start in starts:
        window = torch.from_numpy(signals.data[None, start : start + 12])
        with torch.no_grad():
            courses = model.network(model._to_box(window))[1][0].numpy().T
        total[start : start + 12] += (courses - courses.mean(axis=0)) / courses.std(axis=0)
        count[start : start + 12] += 1
    by_hand = total / count
    by_hand = (by_hand - by_hand.mean(axis=0)) / by_hand.std(axis=0)
    np.testing.assert_allclose(found, by_hand, atol=1e-2)


def test_volumes_that_are_in_no_window_have_no_course(ball_grid: Grid, two: TemplateSet) -> None:
    model = small(ball_grid, two)
    signals = run_of(ball_grid, 40, left_out=(5, 6, 7))  # five volumes before the gap
    found = model.courses(signals, CPU)
    assert np.isnan(found[:5]).all()
    assert np.isfinite(found[5:]).all()
    nothing: Signals = run_of(ball_grid, 10)
    assert np.isnan(model.courses(nothing, CPU)).all()
