"""Maps are made window by window, in batches that fit the memory, in the precision that does."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_models import BF16, CPU, all_maps, run_of, small
from torch import Tensor

from bids_fbn.errors import RunError
from bids_fbn.models import inference, neural, stca
from bids_fbn.models.compute import Compute
from bids_fbn.models.inference import Batches, lowest_correlation, stretches, windows_over
from bids_fbn.models.neural import NeuralModel
from bids_fbn.signal.grid import Grid

pytestmark = pytest.mark.usefixtures("one_thread")


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


# --- other devices ------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", ["stca", "scaae"])
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.9999), ("bf16", 0.999)])
def test_a_gpu_gives_the_same_maps(
    ball_grid: Grid, name: str, precision: Any, least: float
) -> None:
    signals = run_of(ball_grid, 20)
    model = small(name, ball_grid)
    precise = torch.from_numpy(np.stack(list(all_maps(model, signals).values())))
    batches = list(model.maps(signals, Compute("cuda:0", precision)))
    assert all(maps.device.type == "cuda" for _, maps in batches)
    assert lowest_correlation(torch.cat([maps for _, maps in batches]).cpu(), precise) > least


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_with_too_little_memory_gives_the_same_maps(
    ball_grid: Grid, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    signals = run_of(ball_grid, 80)
    model = small("stca", ball_grid, channels=32)
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
