"""Maps are those of the network on the whole box, whatever was left out to make them sooner."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import CPU, SMALL, all_maps, run_of, small
from torch import Tensor, nn
from torch.nn import functional

from bids_fbn.config import SignalOptions
from bids_fbn.errors import RunError
from bids_fbn.models import inference, neural, spectral, stca
from bids_fbn.models.compute import Compute
from bids_fbn.models.folding import fold
from bids_fbn.models.geometry import Region
from bids_fbn.models.inference import Batches, lowest_correlation, stretches, windows_over
from bids_fbn.models.neural import NeuralModel
from bids_fbn.models.scaae import SCAAE, cut_tails
from bids_fbn.models.spectral import SpectralConv3d
from bids_fbn.signal.clean import clean_run
from bids_fbn.signal.grid import Grid, grid_geometry
from bids_fbn.signal.signals import Signals
from bids_fbn.signal.standard import analysis_grid

pytestmark = pytest.mark.usefixtures("one_thread")

BF16 = Compute("cpu", "bf16")


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


# --- windows without copies ---------------------------------------------------------------------


def test_windows_are_views() -> None:
    volumes = torch.randn(12, 2, 3, 4)
    windows = windows_over(volumes, 5, 3)
    assert windows.shape == (3, 5, 2, 3, 4)
    assert windows.untyped_storage().data_ptr() == volumes.untyped_storage().data_ptr()
    for number, window in enumerate(windows):
        assert torch.equal(window, volumes[3 * number : 3 * number + 5])


@pytest.mark.parametrize("most_rows", [1, 9, 14, 1000])
def test_stretches_hold_every_window_once_and_in_order(most_rows: int) -> None:
    starts = np.array([0, 1, 2, 3, 9, 10, 13, 16, 19, 22, 60])
    seen: list[int] = []
    for chosen, gap in stretches(starts, 6, most_rows):
        these = starts[chosen]
        assert np.array_equal(these, these[0] + gap * np.arange(len(these)))
        assert len(these) == 1 or these[-1] + 6 - these[0] <= most_rows
        seen += these.tolist()
    assert seen == starts.tolist()
    assert list(stretches(starts[:0], 6, 9)) == []


class Watched:
    """Rows of an array, and how many were taken at once."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data
        self.most = 0

    def __getitem__(self, rows: slice) -> np.ndarray:
        taken = self.data[rows]
        self.most = max(self.most, len(taken))
        return taken


@pytest.mark.parametrize("stride", [1, 2])
def test_no_more_rows_are_in_memory_for_a_longer_run(
    ball_grid: Grid, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "_CPU_BYTES", 1)
    most = []
    for n_volumes in (40, 80):
        signals = run_of(ball_grid, n_volumes)
        watched = Watched(signals.data)
        model = small("stca", ball_grid)
        n_steps = len(all_maps(model, replace(signals, data=watched), stride=stride))
        assert n_steps == (n_volumes - 6) // stride + 1
        most.append(watched.most)
    assert most[0] == most[1] <= 12


def test_a_batch_is_as_large_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda:0")
    monkeypatch.setattr(inference, "_CPU_BYTES", 1000)
    assert [inference.batch_size(cpu, size) for size in (100, 300, 5000, 1)] == [10, 3, 1, 64]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4000, 9000))
    assert inference.batch_size(cuda, 100) == 20


class SmallMemory:
    """Makes maps of at most so many windows at once, as a GPU whose memory does for no more."""

    def __init__(self, model: NeuralModel, most: int) -> None:
        self.mapper = model._mapper(CPU)
        self.most = most
        self.asked: list[int] = []

    def __call__(self, batch: Tensor) -> Tensor:
        self.asked.append(len(batch))
        if len(batch) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return self.mapper._mapped(batch, CPU)


@pytest.mark.parametrize("name", ["stca", "scaae"])
def test_a_batch_too_large_for_the_gpu_is_halved_and_maps_stay_the_same(
    ball_grid: Grid, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = small(name, ball_grid)
    signals = run_of(ball_grid, 30)
    box = model._to_box(torch.from_numpy(signals.rows(0, 30))[None])[0]
    windows = windows_over(box, model.window, 1)
    memory = SmallMemory(model, 3)
    batches = Batches(name, 10)
    steps = np.arange(len(windows))
    with caplog.at_level(logging.WARNING):
        found = [(s.copy(), m.clone()) for s, m in batches.maps(steps, windows, memory)]
    assert np.array_equal(np.concatenate([s for s, _ in found]), steps)
    expected_maps = torch.from_numpy(np.stack(list(all_maps(model, signals).values())))
    torch.testing.assert_close(
        torch.cat([maps for _, maps in found]), expected_maps, rtol=1e-4, atol=1e-5
    )
    # Smaller for good, and each time it is said.
    assert memory.asked[:3] == [10, 5, 3]
    assert max(memory.asked[3:]) == batches.size == 3
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"{name}: out of GPU memory with 10 windows in a batch; going on with 5",
        f"{name}: out of GPU memory with 5 windows in a batch; going on with 3",
    ]


def test_all_maps_of_a_run_are_made_though_batches_had_to_be_halved(
    ball_grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small("stca", ball_grid)
    signals = run_of(ball_grid, 60, left_out=(31,))
    whole = all_maps(model, signals)
    mapped = NeuralModel._mapped

    def small_memory(mapper: NeuralModel, batch: Tensor, compute: Compute) -> Tensor:
        if len(batch) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return mapped(mapper, batch, compute)

    monkeypatch.setattr(NeuralModel, "_mapped", small_memory)
    halved = all_maps(model, signals)
    assert halved.keys() == whole.keys()
    for step, maps in whole.items():
        np.testing.assert_allclose(halved[step], maps, rtol=1e-4, atol=1e-5)


def test_memory_that_does_not_do_for_one_window_is_an_error_of_the_run(ball_grid: Grid) -> None:
    model = small("stca", ball_grid)
    windows = torch.zeros(4, model.window, *model.box_shape)
    with pytest.raises(RunError, match="stca: the GPU's memory does not do for a single window"):
        list(Batches("stca", 4).maps(np.arange(4), windows, SmallMemory(model, 0)))


# --- bf16 ---------------------------------------------------------------------------------------


def test_the_lowest_correlation_is_that_of_the_worst_map() -> None:
    reference = torch.randn(2, 3, 500)
    assert lowest_correlation(5 * reference + 2, reference) == pytest.approx(1)
    maps = reference.clone()
    maps[1, 2] = torch.randn(500)
    worst = np.corrcoef(maps[1, 2], reference[1, 2])[0, 1]
    assert lowest_correlation(maps, reference) == pytest.approx(worst)
    constant = torch.ones(1, 2, 500)
    assert lowest_correlation(torch.randn(1, 2, 500), constant) == 1
    assert lowest_correlation(constant, torch.randn(1, 2, 500)) == 0


@pytest.fixture
def _bf16() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch does not compute in bf16 on the CPU")


@pytest.mark.usefixtures("_bf16")
@pytest.mark.parametrize("name", ["stca", "scaae"])
def test_bf16_is_compared_with_fp32(
    ball_grid: Grid, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = small(name, ball_grid)
    signals = run_of(ball_grid, 12)
    (_, first), *_ = model.maps(signals, BF16)
    lowest = model.inference["PrecisionCheck"]
    precise = torch.from_numpy(all_maps(model, signals)[0])
    assert model.inference == {"Precision": "fp32"}
    assert 0.999 < lowest < 1
    assert lowest == pytest.approx(lowest_correlation(first[0], precise), abs=1e-4)
    assert not caplog.records


@pytest.mark.usefixtures("_bf16")
@pytest.mark.parametrize("automatic", [True, False])
def test_bf16_that_is_not_precise_enough(
    ball_grid: Grid,
    automatic: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(neural, "LOWEST_R", 1.0)
    model = small("stca", ball_grid)
    signals = run_of(ball_grid, 12)
    compute = replace(BF16, automatic=automatic)
    with caplog.at_level(logging.WARNING):
        found = torch.cat([maps for _, maps in model.maps(signals, compute)])
    used = model.inference["Precision"]
    precise = torch.from_numpy(np.stack(list(all_maps(model, signals).values())))
    (record,) = caplog.records
    assert "in bf16" in record.getMessage()
    assert torch.equal(found, precise) == automatic
    assert used == ("fp32" if automatic else "bf16")


def test_the_precision_is_settled_once_for_all_runs_until_the_weights_change(
    ball_grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = []
    check = NeuralModel._checked_mapper
    monkeypatch.setattr(
        NeuralModel, "_checked_mapper", lambda *a: (checks.append(a), check(*a))[1]
    )
    model = small("stca", ball_grid)
    first = all_maps(model, run_of(ball_grid, 12))
    other = all_maps(model, run_of(ball_grid, 20))
    assert np.array_equal(all_maps(model, run_of(ball_grid, 12))[0], first[0])
    assert len(other) > len(first)
    assert len(checks) == 1
    with torch.no_grad():
        model.network.spatial_attention.narrow.weight.mul_(2)
    changed = all_maps(model, run_of(ball_grid, 12))
    assert not np.allclose(changed[0], first[0])
    model.load_state(small("stca", ball_grid).state())
    assert np.array_equal(all_maps(model, run_of(ball_grid, 12))[0], first[0])
    assert len(checks) == 3
    list(model.maps(run_of(ball_grid, 12), replace(CPU, automatic=True)))
    assert len(checks) == 4


@pytest.mark.usefixtures("_bf16")
@pytest.mark.parametrize(("amx", "used"), [(False, "fp32"), (True, "bf16")])
def test_wide_kernels_are_transformed_where_bf16_is_slower(
    ball_grid: Grid, amx: bool, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neural, "has_amx", lambda: amx)
    monkeypatch.setattr(neural, "LOWEST_R", 0)
    recipe = replace(stca.STCA.recipes["sloppy"], channels=32, window=32)
    model = stca.STCA(recipe, "corrected", ball_grid)
    signals = run_of(ball_grid, 32)
    automatic = [maps for _, maps in model.maps(signals, replace(BF16, automatic=True))]
    assert model.inference["Precision"] == used
    precise = [maps for _, maps in model.maps(signals, CPU)]
    assert torch.equal(automatic[0], precise[0]) == (not amx)
    # What was asked for is done.
    list(model.maps(signals, BF16))
    assert model.inference["Precision"] == "bf16"


# --- other devices and full size ----------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", ["stca", "scaae"])
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.9999), ("bf16", 0.999)])
def test_a_gpu_gives_the_same_maps(name: str, precision: Any, least: float) -> None:
    grid = PLACES["near"]
    signals = run_of(grid, 20)
    model = small(name, grid)
    precise = torch.from_numpy(np.stack(list(all_maps(model, signals).values())))
    batches = list(model.maps(signals, Compute("cuda:0", precision)))
    assert all(maps.device.type == "cuda" for _, maps in batches)
    assert lowest_correlation(torch.cat([maps for _, maps in batches]).cpu(), precise) > least


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_with_too_little_memory_gives_the_same_maps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    grid = PLACES["middle"]
    signals = run_of(grid, 80)
    model = small("stca", grid, channels=32)
    compute = Compute("cuda:0", "fp32")
    whole = torch.cat([maps.cpu() for _, maps in model.maps(signals, compute)])
    torch.cuda.empty_cache()
    # More than there is, in one batch.
    monkeypatch.setattr(neural, "batch_size", lambda device, bytes_each: 64)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(64 * 2**20 / total)
    try:
        with caplog.at_level(logging.WARNING):
            halved = torch.cat([maps.cpu() for _, maps in model.maps(signals, compute)])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of GPU memory" in caplog.text
    torch.testing.assert_close(halved, whole, rtol=1e-3, atol=1e-4)


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
