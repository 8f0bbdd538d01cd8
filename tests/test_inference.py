"""Maps are those of the network on the whole box, whatever was left out to make them sooner."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import BF16, SMALL, all_maps, run_of, small
from torch import Tensor, nn
from torch.nn import functional

from bids_fbn.config import SignalOptions
from bids_fbn.models import spectral, stca
from bids_fbn.models.folding import fold
from bids_fbn.models.geometry import Region
from bids_fbn.models.inference import lowest_correlation
from bids_fbn.models.neural import NeuralModel
from bids_fbn.models.scaae import SCAAE, cut_tails
from bids_fbn.models.spectral import SpectralConv3d
from bids_fbn.signal.clean import clean_run
from bids_fbn.signal.grid import Grid, grid_geometry
from bids_fbn.signal.signals import Signals
from bids_fbn.signal.standard import analysis_grid

pytestmark = pytest.mark.usefixtures("one_thread")


def ball_in(shape: tuple[int, int, int], centre: tuple[int, int, int], radius: float) -> Grid:
    affine, _ = grid_geometry(8.0)
    distance = sum((i - c) ** 2 for i, c in zip(np.indices(shape), centre, strict=True))
    return Grid(affine, distance <= radius**2)


# In the middle of a large box; at its edges; and nearer to them than the kernels reach.
PLACES = {
    "middle": ball_in((21, 19, 18), (10, 9, 9), 3),
    "edge": ball_in((16, 15, 14), (2, 12, 7), 3),
    "near": ball_in((12, 13, 11), (6, 6, 5), 4),
}


# --- the networks on the whole box, by their formulas -------------------------------------------


def conv(features: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    weight = weights[f"{name}.weight"]
    return functional.conv3d(features, weight, weights[f"{name}.bias"], padding="same")


def channel_weights(features: Tensor, weights: dict[str, Tensor]) -> Tensor:
    values = features.mean(dim=(2, 3, 4))
    for layer, after in ((0, functional.gelu), (2, functional.gelu), (4, torch.sigmoid)):
        name = f"channel_attention.weigh.{layer}"
        values = after(values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])
    return values[:, :, None, None, None]


def spatial_logits(features: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return conv(
        functional.gelu(conv(features, weights, f"{name}.wide")), weights, f"{name}.narrow"
    )


def stca_logits(windows: Tensor, weights: dict[str, Tensor]) -> Tensor:
    features = functional.gelu(conv(windows, weights, "embed"))
    features = features * channel_weights(features, weights)
    return spatial_logits(features, weights, "spatial_attention")


def shortcut(features: Tensor, weights: dict[str, Tensor], name: str, keeps: bool) -> Tensor:
    total = features if keeps else torch.zeros(())
    for branch in range(3):
        norm = f"{name}.branches.{branch}.1"
        total = total + functional.batch_norm(
            conv(features, weights, f"{name}.branches.{branch}.0"),
            *(weights[f"{norm}.{part}"] for part in ("running_mean", "running_var")),
            *(weights[f"{norm}.{part}"] for part in ("weight", "bias")),
        )
    return functional.gelu(total)


def scaae_logits(volumes: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    features = functional.gelu(conv(volumes, weights, "embed"))
    for block in range(2):
        features = shortcut(features, weights, f"trunk.{block}", keeps=True)
    halves = [shortcut(features, weights, f"branches.{b}", keeps=False) for b in range(2)]
    logits = [
        spatial_logits(half, weights, f"spatial_attention.{b}") for b, half in enumerate(halves)
    ]
    gated = torch.cat([h * g.sigmoid() for h, g in zip(halves, logits, strict=True)], dim=1)
    return torch.cat(logits, dim=1), channel_weights(gated, weights)


def whole_box(signals: Signals, start: int, window: int) -> Tensor:
    volumes = signals.grid.scatter(signals.data[start : start + window])
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(volumes, -1, 0)))[None]


def sides_of(model: NeuralModel) -> list[tuple[int, int]]:
    """Voxels by which the box is continued along each axis."""
    region, brain = model.region, Region.of(model.grid.shape, model.grid.bounding_box)
    return [
        (mine - low, whole - side - (mine - low))
        for mine, low, whole, side in zip(
            region.low, brain.low, region.whole, brain.whole, strict=True
        )
    ]


@torch.no_grad()
def expected(
    model: NeuralModel,
    signals: Signals,
    start: int,
    sides: list[tuple[int, int]] | None = None,
) -> np.ndarray:
    weights = dict(model.network.state_dict())
    sides = sides_of(model) if sides is None else sides
    within = [margin for side in reversed(sides) for margin in side]
    volumes = functional.pad(whole_box(signals, start, model.window), within)
    if model.name == "stca":
        maps = stca_logits(volumes, weights)
    else:
        maps, channels = scaae_logits(volumes, weights)
        if model.candidates == "fbn":
            maps = (maps * channels).unflatten(1, (2, -1)).sum(dim=2)
    return maps[0].numpy()[:, np.pad(signals.grid.mask, sides)]


def lively(model: NeuralModel) -> NeuralModel:
    """Batch norms that do something, as after training."""
    generator = torch.Generator().manual_seed(1)
    for module in model.network.modules():
        if isinstance(module, nn.BatchNorm3d):
            for values in (module.running_mean, module.bias):
                values.data.normal_(0, 0.1, generator=generator)
            for values in (module.running_var, module.weight):
                values.data.uniform_(0.5, 2, generator=generator)
    return model


# --- only the brain is computed -----------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("name", "candidates"), [("stca", "fbn"), ("scaae", "fbn"), ("scaae", "channels")]
)
def test_maps_are_those_of_the_network_on_the_whole_box(
    name: str, candidates: str, place: str
) -> None:
    signals = run_of(PLACES[place], 10)
    model = lively(small(name, PLACES[place], candidates))
    for start, maps in all_maps(model, signals, stride=4).items():
        by_formula = expected(model, signals, 4 * start)
        np.testing.assert_allclose(maps, by_formula, rtol=1e-4, atol=2e-5)


def test_a_margin_continues_the_box_with_zeros() -> None:
    grid = PLACES["edge"]
    signals = run_of(grid, 3)
    model = lively(small("scaae", grid, margin=6))
    # The ball of radius 3 has its middle at 2, 12 and 7 of 16, 15 and 14 voxels.
    sides = [(6, 0), (0, 6), (2, 3)]
    assert model.region.whole == (22, 21, 19)
    found = all_maps(model, signals)[0]
    np.testing.assert_allclose(found, expected(model, signals, 0, sides), rtol=1e-4, atol=2e-5)
    in_the_box = expected(model, signals, 0, [(0, 0)] * 3)
    assert not np.allclose(found, in_the_box, atol=1e-3)


def test_the_published_box_has_no_margin_and_the_corrected_one_has() -> None:
    assert SCAAE.recipes["as-published"].margin == 0
    for resolution in (4.0, 12.0):
        grid = analysis_grid("MNI152NLin2009cAsym", resolution)
        region = SCAAE(replace(SCAAE.recipes["corrected"], channels=2), "corrected", grid).region
        for low, high, side in zip(region.low, region.high, region.whole, strict=True):
            assert min(low, side - high) >= 6
        assert region.shape == Region.of(grid.shape, grid.bounding_box).shape


def test_stca_must_see_what_is_round_the_brain(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = PLACES["middle"]
    signals = run_of(grid, 6)
    monkeypatch.setattr(stca, "_NEAR", 3)
    model = lively(small("stca", grid))
    assert not np.allclose(all_maps(model, signals)[0], expected(model, signals, 0), atol=1e-4)


@pytest.mark.parametrize("place", PLACES)
def test_training_follows_the_gradient_of_the_whole_box(place: str) -> None:
    grid = PLACES[place]
    signals = run_of(grid, 6)
    model = small("stca", grid)
    parameters = dict(model.network.named_parameters())
    weights = {key: values.detach().clone().requires_grad_() for key, values in parameters.items()}
    aim = torch.randn(4, grid.n_voxels)
    window = torch.from_numpy(signals.data[None])
    (model._in_mask(model.network.attend(model._to_box(window))[1])[0] * aim).sum().backward()
    logits = stca_logits(whole_box(signals, 0, 6), weights)
    (logits[0][:, torch.from_numpy(grid.mask)] * aim).sum().backward()
    for key, values in parameters.items():
        if key.split(".")[0] in ("embed", "channel_attention", "spatial_attention"):
            gradient, by_formula = values.grad, weights[key].grad
            assert gradient is not None
            assert by_formula is not None
            atol = 1e-4 * float(by_formula.abs().max())
            torch.testing.assert_close(gradient, by_formula, rtol=1e-3, atol=atol)


def test_a_region_grows_up_to_the_edge_of_the_box() -> None:
    region = Region((10, 12, 9), (1, 4, 5), (6, 8, 9))
    assert region.grown(2) == Region((10, 12, 9), (0, 2, 3), (8, 10, 9))
    assert region.within(3) == Region((12, 12, 12), (3, 4, 5), (8, 8, 9))
    assert region.shape == (5, 4, 4)
    assert region.n_voxels + region.n_outside == 10 * 12 * 9


# --- fewer multiplications ----------------------------------------------------------------------


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 3), (3, 2)])
@torch.no_grad()
def test_parallel_convolutions_fold_into_one(inputs: int, outputs: int) -> None:
    branches = []
    for kernel in (5, 3, 1):
        norm = nn.BatchNorm3d(outputs).eval()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.2, 3)
        norm.weight.uniform_(-2, 2)
        norm.bias.normal_()
        branches.append((nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2), norm))
    features = torch.randn(2, inputs, 6, 7, 8)
    total = sum(norm(convolution(features)) for convolution, norm in branches)
    keeps_input = inputs == outputs
    folded = fold(branches, keeps_input)
    assert folded.weight.shape == (outputs, inputs, 5, 5, 5)
    expected_sum = total + features if keeps_input else total
    torch.testing.assert_close(folded(features), expected_sum, rtol=1e-5, atol=1e-5)


def test_making_maps_leaves_the_network_as_it_was() -> None:
    grid = PLACES["near"]
    model = small("scaae", grid)
    before = {key: values.clone() for key, values in model.network.state_dict().items()}
    all_maps(model, run_of(grid, 3))
    after = model.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("shape", [(7, 9, 8), (31, 13, 20)])
@torch.no_grad()
def test_a_convolution_by_fourier_transform_is_the_same(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = nn.Conv3d(3, 5, 7)
    features = torch.randn(2, 3, *shape)
    by_definition = layer(features)
    for tile in (8, 24):
        monkeypatch.setattr(spectral, "_TILE", tile)
        by_transform = SpectralConv3d(layer)(features)
        torch.testing.assert_close(by_transform, by_definition, rtol=1e-4, atol=1e-5)


def test_wide_layers_by_fourier_transform_give_the_same_maps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spectral, "_CHANNELS", 1)
    made: list[SpectralConv3d] = []
    forward = SpectralConv3d.forward
    monkeypatch.setattr(
        SpectralConv3d, "forward", lambda layer, x: made.append(layer) or forward(layer, x)
    )
    for name in SMALL:
        made.clear()
        grid = PLACES["edge"]
        model = small(name, grid, "channels")
        signals = run_of(grid, 7)
        for start, maps in all_maps(model, signals).items():
            by_formula = expected(model, signals, start)
            np.testing.assert_allclose(maps, by_formula, rtol=1e-4, atol=2e-5)
        assert len(set(made)) == 2  # embedding and attention, or the two attentions


# --- full size ----------------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["stca", "scaae"])
def test_maps_of_real_data_at_full_size(real_data: Path, tmp_path: Path, name: str) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    grid = analysis_grid("MNI152NLin2009cAsym", 4.0)
    folder = real_data / "task-faces-3mm" / "sub-M03953" / "func"
    start = folder / "sub-M03953_task-facerep_space-MNI152Lin_desc-preproc_bold"
    time = json.loads(start.with_suffix(".json").read_text())["RepetitionTime"]
    options = SignalOptions(nuisance=("none",))
    whole = clean_run(start.with_suffix(".nii.gz"), time, grid, options, tmp_path).signals
    model = lively(base_class(name)(base_class(name).recipes["corrected"], "corrected", grid))
    rows = slice(100, 100 + model.window)
    kept = np.arange(model.window)
    run = Signals(np.array(whole.data[rows]), grid, time, kept, model.window, whole.covered)
    model.candidates = "channels"
    by_formula = torch.from_numpy(expected(model, run, 0))
    if name == "scaae":
        by_formula = cut_tails(by_formula)
    precise = torch.from_numpy(all_maps(model, run)[0])
    assert lowest_correlation(precise, by_formula) > 0.9999
    ((_, coarse),) = model.maps(run, BF16)
    assert lowest_correlation(coarse[0], by_formula) > 0.999


def base_class(name: str) -> type[NeuralModel]:
    return type(small(name, PLACES["near"]))
