"""Blocks of volumes are what the file holds, whatever it is stored as; a bad file is refused."""

from __future__ import annotations

import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_fbn.errors import RunError
from bids_fbn.signal import reading
from bids_fbn.signal.reading import open_run

SHAPE = (7, 6, 5, 11)


def save(path: Path, values: np.ndarray, dtype: str, scaling: tuple[float, float]) -> Path:
    """Store numbers as they are; with a slope and an intercept of their own."""
    header = nib.Nifti1Header(endianness=dtype[0])
    header.set_data_dtype(dtype)
    header.set_slope_inter(*scaling)
    header.set_data_shape(values.shape)
    header["vox_offset"] = 352
    content = header.binaryblock + bytes(4) + values.astype(dtype).tobytes(order="F")
    with nib.openers.Opener(str(path), "wb") as file:
        file.write(content)
    return path


@pytest.fixture
def numbers() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 120, SHAPE)


@pytest.fixture(params=["isal", "gzip"])
def decompressor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "gzip":
        monkeypatch.setattr(reading, "igzip", None)
    elif reading.igzip is None:
        pytest.skip("isal is not installed")
    return str(request.param)


@pytest.mark.parametrize("name", ["bold.nii", "bold.nii.gz"])
@pytest.mark.parametrize("scaling", [(1.0, 0.0), (0.25, -3.0)])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<u1", "<u2", "<i4", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("at_once", [1, 4, 50])
def test_blocks_hold_what_nibabel_reads(
    tmp_path: Path,
    numbers: np.ndarray,
    name: str,
    scaling: tuple[float, float],
    dtype: str,
    at_once: int,
) -> None:
    path = save(tmp_path / name, numbers, dtype, scaling)
    run = open_run(path)
    assert run.shape == SHAPE
    values, starts = [], []
    for start, block in run.blocks(at_once):
        assert block.dtype.isnative
        assert block.dtype.itemsize <= 4
        starts.append(start)
        values.append(run.slope * block.T + run.inter)  # a new array: the block is written over
        block[:] = 0  # it is the caller's for so long
    assert starts == list(range(0, SHAPE[3], at_once))
    assert np.array_equal(np.concatenate(values, axis=3), nib.load(path).get_fdata())


def test_not_finite_numbers_come_through(tmp_path: Path, numbers: np.ndarray) -> None:
    values = numbers.astype(np.float32)
    values[1, 2, 3, 4:7] = np.nan, np.inf, -np.inf
    for scaling in ((1.0, 0.0), (2.0, 5.0)):
        run = open_run(save(tmp_path / "bold.nii", values, "<f4", scaling))
        (_, block) = next(run.blocks(11))
        assert np.array_equal(block[4:7, 3, 2, 1], values[1, 2, 3, 4:7], equal_nan=True)


def test_a_wrong_checksum_is_noticed(
    tmp_path: Path, numbers: np.ndarray, decompressor: str
) -> None:
    path = save(tmp_path / "bold.nii.gz", numbers, "<i2", (1.0, 0.0))
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # of the four bytes before the length
    path.write_bytes(content)
    run = open_run(path)
    with pytest.raises(RunError, match="corrupt") as error:
        list(run.blocks(4))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", [3, 8, 500])
@pytest.mark.parametrize("at_once", [1, 50])
def test_a_file_that_ends_early_is_refused(
    tmp_path: Path, numbers: np.ndarray, decompressor: str, missing: int, at_once: int
) -> None:
    path = save(tmp_path / "bold.nii.gz", numbers, "<i2", (1.0, 0.0))
    path.write_bytes(path.read_bytes()[:-missing])
    run = open_run(path)
    with pytest.raises(RunError, match=f"volume .* of {SHAPE[3]} on, truncated"):
        list(run.blocks(at_once))


def test_complex_numbers_are_refused(tmp_path: Path, numbers: np.ndarray) -> None:
    path = save(tmp_path / "bold.nii", numbers, "<c8", (1.0, 0.0))
    with pytest.raises(RunError, match="real numbers"):
        open_run(path)


def test_who_stops_early_leaves_no_thread_behind(tmp_path: Path, numbers: np.ndarray) -> None:
    run = open_run(save(tmp_path / "bold.nii.gz", numbers, "<i2", (1.0, 0.0)))
    before = threading.active_count()
    blocks = run.blocks(2)
    next(blocks)
    assert threading.active_count() == before + 1
    blocks.close()
    assert threading.active_count() == before
