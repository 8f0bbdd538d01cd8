"""The models: their published sizes, what their maps are, and that training can be trusted."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from small_models import (
    CPU,
    all_maps,
    assert_same,
    one_line,
    run_of,
    small,
    weights_of,
)

from bids_fbn import models
from bids_fbn.config import ModelOptions
from bids_fbn.errors import InputError
from bids_fbn.models import inference
from bids_fbn.models.blocks import conv3d, crop_to, pad_to
from bids_fbn.models.card import card_path, weights_hash
from bids_fbn.models.compute import Compute, choose_compute
from bids_fbn.models.neural import NeuralModel
from bids_fbn.signal.grid import Grid, grid_geometry
from bids_fbn.signal.signals import Signals

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def mni_4mm() -> Grid:
    """The published box, with a brain-sized ellipsoid for the brain."""
    affine, shape = grid_geometry(4.0)
    x, y, z = np.indices(shape)
    mask = ((x - 24) / 18) ** 2 + ((y - 29) / 22.5) ** 2 + ((z - 21) / 18) ** 2 <= 1
    return Grid(affine, mask)


# --- at full size -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "parameters"), [("stca", 5_932_720), ("scaae", 2_702_961)])
def test_published_sizes(mni_4mm: Grid, name: str, parameters: int) -> None:
    model = models.create(name, ModelOptions(preset="as-published"), mni_4mm)
    assert model.n_parameters == parameters
    assert model.box_shape == (49, 58, 47)
    assert model.network.padded == (64, 64, 64)


@pytest.mark.parametrize(("name", "n_maps"), [("stca", 64), ("scaae", 2)])
def test_one_step_and_one_window_at_the_published_size(
    mni_4mm: Grid, name: str, n_maps: int
) -> None:
    model = models.create(name, ModelOptions(preset="as-published", epochs=1), mni_4mm)
    model.recipe = replace(model.recipe, batch=1)
    torch.set_num_threads(os.cpu_count() or 1)
    rng = np.random.default_rng(0)
    data = rng.standard_normal((model.window, mni_4mm.n_voxels)).astype(np.float32)
    kept = np.arange(model.window)
    run = Signals(data, mni_4mm, 2.0, kept, len(kept), np.ones(mni_4mm.n_voxels, dtype=bool))
    model.fit([run], CPU)
    assert len(model.training["LossCurve"]["Loss"]) == 1
    assert all(np.isfinite(values).all() for values in weights_of(model).values())
    ((steps, maps),) = model.maps(run, CPU)
    assert steps.tolist() == [0]
    assert maps.shape == (1, n_maps, mni_4mm.n_voxels)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()


@pytest.mark.parametrize(("name", "n_maps"), [("stca", 64), ("scaae", 2)])
def test_corrected_models_compute_on_the_box_of_the_brain(
    mni_4mm: Grid, name: str, n_maps: int
) -> None:
    model = models.create(name, ModelOptions(), mni_4mm)
    assert model.preset == "corrected"
    assert model.box_shape == (37, 45, 37)
    assert model.network.padded == (48, 48, 48)
    assert model.n_candidates == n_maps


def test_what_is_asked_for_replaces_the_recipe(ball_grid: Grid) -> None:
    options = ModelOptions(window=8, channels=6, epochs=2, training_stride=3)
    stca = models.create("stca", options, ball_grid).recipe
    assert (stca.window, stca.channels, stca.epochs, stca.stride) == (8, 6, 2, 3)
    scaae = models.create("scaae", options, ball_grid).recipe
    assert (scaae.window, scaae.channels) == (1, 6)
    with pytest.raises(InputError, match="even"):
        models.create("scaae", ModelOptions(channels=5), ball_grid)


# --- maps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stca", "scaae"])
def test_a_network_gives_back_the_shape_that_it_takes(ball_grid: Grid, name: str) -> None:
    model = small(name, ball_grid)
    assert model.box_shape == (11, 11, 11)
    assert model.network.padded == (16, 16, 16)
    batch = torch.randn(3, model.window, *model.box_shape)
    assert model.network(batch).shape == batch.shape


def test_padding_is_undone_by_cropping() -> None:
    features = torch.randn(2, 3, 5, 6, 7)
    padded = pad_to(features, (16, 8, 7))
    assert padded.shape == (2, 3, 16, 8, 7)
    assert padded.abs().sum() == pytest.approx(float(features.abs().sum()), rel=1e-5)
    assert torch.equal(crop_to(padded, (5, 6, 7)), features)


def test_voxels_go_into_the_box_and_come_back(ball_grid: Grid) -> None:
    for changes in ({}, {"whole_box": True}):
        model = small("stca", ball_grid, **changes)
        values = torch.randn(2, 3, ball_grid.n_voxels)
        box = model._to_box(values)
        assert box.shape == (2, 3, *model.box_shape)
        assert torch.equal(model._in_mask(box), values)
        whole = ball_grid.scatter(values[1, 2].numpy())
        if not changes:
            whole = whole[ball_grid.bounding_box]
        assert np.array_equal(box[1, 2].numpy(), whole)


@pytest.mark.parametrize(
    ("name", "candidates", "n_maps"),
    [("stca", "fbn", 4), ("scaae", "fbn", 2), ("scaae", "channels", 4)],
)
@pytest.mark.parametrize("stride", [1, 3])
def test_every_step_with_a_window_has_its_maps_in_order(
    ball_grid: Grid,
    name: str,
    candidates: str,
    n_maps: int,
    stride: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small(name, ball_grid, candidates)
    signals = run_of(ball_grid, 30, left_out=(2, 18))
    steps = model.steps(signals, stride)
    at_once = all_maps(model, signals, stride=stride)
    assert list(at_once) == np.flatnonzero(steps.valid).tolist()
    assert not steps.valid.all()
    assert all(maps.shape == (n_maps, ball_grid.n_voxels) for maps in at_once.values())
    assert model.n_candidates == n_maps
    monkeypatch.setattr(inference, "_CPU_BYTES", 1)
    one_by_one = all_maps(model, signals, stride=stride)
    for step, maps in at_once.items():
        np.testing.assert_allclose(one_by_one[step], maps, rtol=1e-4, atol=1e-5)


def attended(model: NeuralModel, signals: Signals, row: int) -> Any:
    window = torch.from_numpy(signals.data[None, row : row + model.window])
    with torch.no_grad():
        return model.network.eval().attend(model._to_box(window))


def test_stca_maps_are_the_logits_of_its_attention(ball_grid: Grid) -> None:
    model = small("stca", ball_grid)
    signals = run_of(ball_grid)
    _, logits = attended(model, signals, 3)
    by_hand = logits[0].numpy()[:, ball_grid.mask[ball_grid.bounding_box]]
    np.testing.assert_allclose(all_maps(model, signals)[3], by_hand, atol=1e-5)


def test_published_stca_takes_z_over_the_whole_box(ball_grid: Grid) -> None:
    model = small("stca", ball_grid, whole_box=True)
    signals = run_of(ball_grid)
    logits = attended(model, signals, 0)[1][0].numpy()
    axes = (1, 2, 3)
    z = (logits - logits.mean(axis=axes, keepdims=True)) / logits.std(axis=axes, keepdims=True)
    np.testing.assert_allclose(all_maps(model, signals)[0], z[:, ball_grid.mask], atol=1e-2)


@pytest.mark.parametrize("whole_box", [True, False])
def test_scaae_networks_are_channels_weighted_by_attention(
    ball_grid: Grid, whole_box: bool
) -> None:
    model = small("scaae", ball_grid, whole_box=whole_box)
    signals = run_of(ball_grid)
    _, logits, weights = attended(model, signals, 5)
    mask = ball_grid.mask if whole_box else ball_grid.mask[ball_grid.bounding_box]
    channels = logits[0].numpy()[:, mask]
    weighted = channels * weights[0].flatten().numpy()[:, None]
    by_hand = np.stack([weighted[:2].sum(axis=0), weighted[2:].sum(axis=0)])
    found = all_maps(model, signals)[5]
    if whole_box:  # min-max, squared
        low, high = by_hand.min(axis=1, keepdims=True), by_hand.max(axis=1, keepdims=True)
        np.testing.assert_allclose(found, ((by_hand - low) / (high - low)) ** 2, atol=1e-4)
        assert found.min(axis=1) == pytest.approx(0)
        assert found.max(axis=1) == pytest.approx(1)
    else:  # what is beyond a thousandth of the voxels on either side is cut: half a voxel here
        np.testing.assert_allclose(found, by_hand, atol=1e-5)


def test_corrected_scaae_cuts_a_thousandth_of_either_tail(coarse_grid: Grid) -> None:
    model = small("scaae", coarse_grid)
    maps = next(iter(all_maps(model, run_of(coarse_grid, 3)).values()))
    cut = round(0.001 * coarse_grid.n_voxels)
    for values in maps:
        assert (values == values.max()).sum() == cut
        assert (values == values.min()).sum() == cut


@pytest.mark.parametrize("name", ["stca", "scaae"])
def test_maps_without_variation_are_0_not_nan(ball_grid: Grid, name: str) -> None:
    model = small(name, ball_grid, whole_box=True)
    for parameter in model.network.spatial_attention.parameters():
        torch.nn.init.zeros_(parameter)
    for maps in all_maps(model, run_of(ball_grid)).values():
        assert not maps.any()


@pytest.mark.parametrize("name", ["stca", "scaae"])
def test_bf16_gives_the_same_maps(ball_grid: Grid, name: str) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch does not compute in bf16 on the CPU")
    signals = run_of(ball_grid)
    model = small(name, ball_grid).fit([signals], CPU)
    fine = all_maps(model, signals)
    coarse = {
        int(step): maps
        for steps, batch in model.maps(signals, Compute("cpu", "bf16"))
        for step, maps in zip(steps, batch.numpy(), strict=True)
    }
    for step, maps in fine.items():
        for one, other in zip(maps, coarse[step], strict=True):
            assert np.corrcoef(one, other)[0, 1] > 0.99


def _leave_in_memory(value: float) -> None:
    """What is allocated next finds this where it does not write itself."""
    blocks = [torch.full((10**power,), value) for power in (3, 4, 5, 6, 7) for _ in range(4)]
    del blocks


@pytest.mark.parametrize("groups", [1, 32])
@pytest.mark.parametrize(
    ("kernel", "shape"), [(3, (2, 2, 2)), (5, (2, 3, 2)), (5, (4, 6, 4)), (5, (6, 6, 6))]
)
def test_gradients_in_bf16_of_features_smaller_than_the_kernel(
    kernel: int, shape: tuple[int, ...], groups: int
) -> None:
    torch.manual_seed(0)
    layer = conv3d(32, 32, kernel, groups)
    features = torch.randn(3, 32, *shape).bfloat16()
    slope = torch.randn(3, 32, *shape)
    wanted = torch.autograd.grad(layer(features.float()), list(layer.parameters()), slope)
    for left in (0.0, 1e3, float("nan")):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = layer(features)
        _leave_in_memory(left)
        found = torch.autograd.grad(output, list(layer.parameters()), slope.to(output.dtype))
        for one, other in zip(found, wanted, strict=True):
            assert (one - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize("name", ["stca", "scaae"])
def test_training_in_bf16_does_not_depend_on_what_was_in_memory(
    ball_grid: Grid, name: str
) -> None:
    trained = []
    for left in (0.0, 1e3):
        _leave_in_memory(left)
        model = small(name, ball_grid, channels=32, epochs=1)
        trained.append(model.fit([run_of(ball_grid)], Compute("cpu", "bf16")))
    assert_same(*map(weights_of, trained))


# --- weights ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(ball_grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = small("scaae", ball_grid, epochs=1).fit([run_of(ball_grid)], CPU)
    weights = tmp_path_factory.mktemp("trained") / "desc-scaae_model.safetensors"
    model.save(weights)
    return weights


@pytest.fixture
def saved(trained: Path, tmp_path: Path) -> Path:
    """Weights and card that a test may spoil."""
    shutil.copytree(trained.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / trained.name


@pytest.mark.parametrize("name", ["stca", "scaae"])
def test_saved_models_come_back(ball_grid: Grid, name: str, tmp_path: Path) -> None:
    signals = run_of(ball_grid)
    model = small(name, ball_grid, "channels", epochs=1).fit([signals], CPU)
    weights = tmp_path / "folder" / "weights.safetensors"
    card = model.save(weights)
    again = models.load(weights, ball_grid, "channels")
    assert_same(all_maps(again, signals), all_maps(model, signals))
    assert again.recipe == model.recipe
    assert again.n_candidates == model.n_candidates
    assert again.training == json.loads(json.dumps(model.training))
    assert card["WeightsSHA256"] == weights_hash(weights)
    assert {path.name for path in weights.parent.iterdir()} == {
        *("weights.safetensors", "weights.json")
    }


def test_weights_are_plain_numbers(saved: Path) -> None:
    # safetensors: a length, a JSON header, bytes. Nothing in it can run.
    content = saved.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert {entry["dtype"] for entry in header.values()} <= {"F32", "I64"}
    assert load_file(saved).keys() == header.keys()


def change_card(weights: Path, **changes: Any) -> None:
    path = card_path(weights)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tamper(weights: Path) -> None:
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def lose_card(weights: Path) -> None:
    card_path(weights).unlink()


def lose_weights(weights: Path) -> None:
    weights.unlink()


def break_card(weights: Path) -> None:
    card_path(weights).write_text("{")


def other_json(weights: Path) -> None:
    card_path(weights).write_text("[1, 2]")


def card_of_other_recipe(weights: Path) -> None:
    recipe = json.loads(card_path(weights).read_text())["Recipe"]
    change_card(weights, Recipe=recipe | {"channels": 6})


def card_of_odd_recipe(weights: Path) -> None:
    recipe = json.loads(card_path(weights).read_text())["Recipe"]
    change_card(weights, Recipe=recipe | {"channels": 5})


def card_of_unknown_recipe(weights: Path) -> None:
    change_card(weights, Recipe={"depth": 3})


def card_of_unknown_model(weights: Path) -> None:
    change_card(weights, Model="resnet")


def card_of_other_model(weights: Path) -> None:
    change_card(weights, Model="stca")


def card_without_grid(weights: Path) -> None:
    change_card(weights, Grid={})


def card_with_text_for_grid(weights: Path) -> None:
    change_card(weights, Grid="MNI")


def fewer_weights(weights: Path) -> None:
    kept = load_file(weights)
    del kept["embed.weight"]
    save_file(kept, weights)
    change_card(weights, WeightsSHA256=weights_hash(weights))


def no_safetensors(weights: Path) -> None:
    weights.write_bytes(b"\x80\x04}\x94.")  # a pickle
    change_card(weights, WeightsSHA256=weights_hash(weights))


@pytest.mark.parametrize(
    "spoil",
    [
        *(tamper, lose_card, lose_weights, break_card, other_json, card_of_other_recipe),
        *(card_of_odd_recipe, card_of_unknown_recipe, card_of_unknown_model, card_of_other_model),
        *(card_without_grid, card_with_text_for_grid, fewer_weights, no_safetensors),
    ],
)
def test_weights_that_cannot_be_trusted_are_refused_in_one_line(
    saved: Path, ball_grid: Grid, spoil: Any
) -> None:
    spoil(saved)
    with pytest.raises(InputError) as error:
        models.load(saved, ball_grid)
    assert saved.stem in one_line(error)


def test_weights_of_another_grid_are_refused_in_one_line(saved: Path, coarse_grid: Grid) -> None:
    with pytest.raises(InputError) as error:
        models.load(saved, coarse_grid)
    text = one_line(error)
    assert str(saved) in text
    assert "--resolution" in text


# --- where it is computed -----------------------------------------------------------------------


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device cuda"):
        choose_compute("cuda", "auto")
    assert choose_compute("auto", "fp32") == CPU
    assert choose_compute("cpu", "bf16") == Compute("cpu", "bf16")
