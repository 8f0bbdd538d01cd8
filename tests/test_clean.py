"""From a BOLD file to signals: what is removed, what is kept, and what does not matter."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.image import resample_img, smooth_img
from nilearn.signal import clean as nilearn_clean

from bids_fbn.config import SignalOptions
from bids_fbn.errors import RunError, RunSkipped
from bids_fbn.signal import resample
from bids_fbn.signal.clean import clean_run, clean_signals
from bids_fbn.signal.confounds import NuisanceModel
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.resample import resample_run
from bids_fbn.signal.signals import Signals

T, V = 150, 12
TR = 2.0
BANDS = [(None, None), (0.01, 0.1), (0.01, None), (None, 0.1)]


def nuisance(
    n_volumes: int = T,
    left_out: Sequence[int] = (),
    regressors: np.ndarray | None = None,
) -> NuisanceModel:
    flags = np.isin(np.arange(n_volumes), left_out).astype(int)
    columns = np.zeros((n_volumes, 0)) if regressors is None else regressors
    return NuisanceModel(pd.DataFrame(columns), pd.DataFrame({"high_motion": flags}), None)


def cleaned(
    folder: Path,
    data: np.ndarray,
    model: NuisanceModel,
    band: tuple[float | None, float | None] = (None, None),
) -> np.ndarray:
    covered = np.ones(data.shape[1], dtype=bool)
    return np.array(clean_signals(data, covered, model, TR, folder / "data.npy", *band))


@pytest.fixture
def data() -> np.ndarray:
    rng = np.random.default_rng(0)
    walk = rng.standard_normal((T, V)).cumsum(axis=0)
    return (1000 + walk + np.linspace(0, 20, T)[:, None]).astype(np.float32)


@pytest.fixture
def regressors() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((T, 3))


# --- clean_signals ------------------------------------------------------------------------------


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize(
    "left_out",
    [[70], [20, T - 1 - 20], [0, 1, 2], [T - 2, T - 1], [0, 5, 40, 41, 42, T - 6, T - 1]],
)
def test_what_a_volume_left_out_holds_does_not_matter(
    tmp_path: Path,
    data: np.ndarray,
    regressors: np.ndarray,
    band: tuple[float | None, float | None],
    left_out: list[int],
) -> None:
    expected = cleaned(tmp_path, data, nuisance(T, left_out, regressors), band)
    data[left_out], regressors[left_out] = 1e6, -1e6
    spoiled = cleaned(tmp_path, data, nuisance(T, left_out, regressors), band)
    assert expected.shape == (T - len(left_out), V)
    assert np.array_equal(spoiled, expected)


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("left_out", [[], [3, 50, 51, 52, 99]])
def test_signals_have_mean_0_and_sd_1(
    tmp_path: Path,
    data: np.ndarray,
    regressors: np.ndarray,
    band: tuple[float | None, float | None],
    left_out: list[int],
) -> None:
    signals = cleaned(tmp_path, data, nuisance(T, left_out, regressors), band)
    assert signals.dtype == np.float32
    assert np.allclose(signals.mean(axis=0), 0, atol=1e-5)
    assert np.allclose(signals.std(axis=0, ddof=1), 1, atol=1e-5)


@pytest.mark.parametrize("left_out", [[], [3, 50, 51, 52, 99]])
def test_nothing_of_a_regressor_or_of_a_trend_is_left(
    tmp_path: Path, data: np.ndarray, regressors: np.ndarray, left_out: list[int]
) -> None:
    model = nuisance(T, left_out, regressors)
    signals = cleaned(tmp_path, data, model)
    removed = np.column_stack([np.arange(T), regressors])[model.kept]
    centred = removed - removed.mean(axis=0)
    correlation = (centred / np.linalg.norm(centred, axis=0)).T @ signals / np.sqrt(T)
    assert np.abs(correlation).max() < 1e-5


def test_a_drift_in_time_goes_though_volumes_are_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((T, V))
    left_out = list(range(40, 80))
    drift = 50 * np.arange(T)[:, None] + 1000
    with_drift = cleaned(tmp_path, (noise + drift).astype(np.float32), nuisance(T, left_out))
    without = cleaned(tmp_path, noise.astype(np.float32), nuisance(T, left_out))
    assert np.allclose(with_drift, without, atol=1e-2)


def test_a_filter_removes_what_is_outside_its_band_and_keeps_what_is_inside(
    tmp_path: Path,
) -> None:
    times = np.arange(T) * TR
    slow, inside, fast = (np.sin(2 * np.pi * f * times) for f in (0.004, 0.05, 0.2))
    data = (100 + np.stack([inside, inside + 3 * slow + 3 * fast], axis=1)).astype(np.float32)
    for left_out in ([], [60, 61, 100]):
        model = nuisance(T, left_out)
        alone, mixed = cleaned(tmp_path, data, model, (0.01, 0.1)).T
        middle = slice(20, -20)  # the filter needs some volumes to settle
        assert np.corrcoef(alone[middle], inside[model.kept][middle])[0, 1] > 0.99
        if not left_out:
            # A spline does not follow 0.2 Hz at 2 s across a gap.
            assert np.corrcoef(alone[middle], mixed[middle])[0, 1] > 0.95


@pytest.mark.parametrize("band", BANDS)
def test_with_nothing_left_out_it_is_nilearns_cleaning(
    tmp_path: Path,
    data: np.ndarray,
    regressors: np.ndarray,
    band: tuple[float | None, float | None],
) -> None:
    for confounds in (None, regressors):
        expected = nilearn_clean(
            data.astype(np.float64),
            confounds=confounds,
            t_r=TR,
            high_pass=band[0],
            low_pass=band[1],
            filter="butterworth" if any(band) else False,
            detrend=True,
            standardize="zscore_sample",
        )
        signals = cleaned(tmp_path, data, nuisance(T, [], confounds), band)
        assert np.allclose(signals, expected, atol=1e-4)


@pytest.mark.parametrize("left_out", [[], [3, 50, 51, 52, 99]])
def test_regressors_that_say_the_same_take_nothing_more(
    tmp_path: Path, data: np.ndarray, regressors: np.ndarray, left_out: list[int]
) -> None:
    redundant = np.column_stack(
        [regressors, regressors @ [1, 2, -3], np.full(T, 5.0), 1e9 * regressors[:, 0] + 1e9]
    )
    signals = cleaned(tmp_path, data, nuisance(T, left_out, redundant))
    kept = np.setdiff1d(np.arange(T), left_out)
    for confounds in (regressors, redundant):
        expected = nilearn_clean(
            data[kept].astype(np.float64),
            confounds=np.column_stack([kept, confounds[kept]]),
            standardize="zscore_sample",
            detrend=False,
        )
        assert np.allclose(signals, expected, atol=1e-5)


def test_rounding_is_not_blown_up_into_signal(tmp_path: Path, regressors: np.ndarray) -> None:
    explained = 1e4 + 10 * regressors @ [1.0, -2.0, 0.5]
    constant = np.full(T, 10000.37)
    constant_where_kept = np.where(np.arange(T) == 7, 9000.0, 10000.37)
    data = np.stack([explained, constant, constant_where_kept], axis=1).astype(np.float32)
    signals = cleaned(tmp_path, data, nuisance(T, [7], regressors))
    assert (signals == 0).all()


def test_blocks_of_voxels_do_not_show(
    tmp_path: Path,
    data: np.ndarray,
    regressors: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = cleaned(tmp_path, data, nuisance(T, [9], regressors))
    monkeypatch.setattr("bids_fbn.signal.clean._VOXEL_BLOCK", 5)
    assert np.allclose(cleaned(tmp_path, data, nuisance(T, [9], regressors)), whole, atol=1e-6)


# --- resample_run -------------------------------------------------------------------------------


@pytest.fixture
def fine_bold() -> np.ndarray:
    """Volumes of 4 mm voxels over the box of the ball grid: 27 × 25 × 23, 12 of them."""
    rng = np.random.default_rng(2)
    return (1000 + 20 * rng.standard_normal((27, 25, 23, 12))).astype(np.float32)


FINE = np.array([[-4, 0, 0, 96], [0, 4, 0, -132], [0, 0, 4, -70], [0, 0, 0, 1]], dtype=float)


def save(
    folder: Path, volumes: np.ndarray, name: str = "bold.nii.gz", affine: np.ndarray = FINE
) -> Path:
    nib.save(nib.Nifti1Image(volumes, affine), folder / name)
    return folder / name


def resampled(folder: Path, volumes: np.ndarray, grid: Grid, **options: Any) -> Any:
    return resample_run(save(folder, volumes), grid, folder / "out.npy", **options)


@pytest.mark.parametrize("smoothing", [0.0, 6.0])
@pytest.mark.parametrize("volumes_at_once", [1, 5, 12])
def test_in_chunks_it_is_what_nilearn_does_to_the_whole_run(
    tmp_path: Path,
    fine_bold: np.ndarray,
    ball_grid: Grid,
    smoothing: float,
    volumes_at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resample, "_CHUNK_BYTES", volumes_at_once * 4 * 27 * 25 * 23)
    ours = resampled(tmp_path, fine_bold, ball_grid, smoothing=smoothing)
    image = nib.Nifti1Image(fine_bold, FINE)
    if smoothing:
        image = smooth_img(image, smoothing)
    whole = resample_img(
        image,
        target_affine=ball_grid.affine,
        target_shape=ball_grid.shape,
        interpolation="continuous",
        force_resample=True,
        copy_header=True,
    )
    assert ours.covered.all()
    assert np.allclose(ours.data, ball_grid.gather(whole.get_fdata()), rtol=1e-5)


def test_a_run_on_the_grid_is_taken_as_it_is(tmp_path: Path, ball_grid: Grid) -> None:
    volumes = np.random.default_rng(0).standard_normal((*ball_grid.shape, 6)).astype(np.float32)
    bold = save(tmp_path, volumes, affine=ball_grid.affine)
    run = resample_run(bold, ball_grid, tmp_path / "out.npy")
    assert np.array_equal(run.data, ball_grid.gather(volumes))


def test_a_voxel_with_nan_is_left_out_and_does_not_touch_the_others(
    tmp_path: Path, fine_bold: np.ndarray, ball_grid: Grid
) -> None:
    spoiled = fine_bold.copy()
    spoiled[12, 14, 10, :] = np.nan  # always
    expected = np.array(resampled(tmp_path, spoiled, ball_grid, smoothing=6.0).data)
    spoiled[12, 14, 10, 1:] = 1e7  # only in the first volume
    spoiled[12, 14, 10, 3] = np.inf
    run = resampled(tmp_path, spoiled, ball_grid, smoothing=6.0)
    assert run.n_not_finite == 1
    assert np.array_equal(run.data, expected)
    assert (~run.covered).sum() == 1
    (lost,) = np.flatnonzero(~run.covered)
    assert np.array_equal(ball_grid.coordinates[lost], FINE[:3, :3] @ [12, 14, 10] + FINE[:3, 3])
    assert (run.data[:, ~run.covered] == 0).all()
    assert run.empty_volumes == ()


@pytest.mark.parametrize("nothing", [0.0, 500.0, np.nan])
def test_volumes_without_signal_are_found_and_spoil_no_voxel(
    tmp_path: Path, fine_bold: np.ndarray, ball_grid: Grid, nothing: float
) -> None:
    fine_bold[10:14, 12:16, 8:12] = 700  # a block that never varies
    fine_bold[..., [4, 9]] = nothing
    run = resampled(tmp_path, fine_bold, ball_grid)
    assert run.empty_volumes == (4, 9)
    assert run.n_not_finite == 0
    block = np.all(np.abs(ball_grid.coordinates - [50, -78, -32]) <= 6, axis=1)
    assert block.any()
    assert np.array_equal(~run.covered, block)
    assert np.isfinite(run.data).all()


def test_voxels_outside_the_runs_mask_are_not_covered_and_0(
    tmp_path: Path, fine_bold: np.ndarray, ball_grid: Grid
) -> None:
    mask = np.zeros(fine_bold.shape[:3], dtype=np.uint8)
    mask[:13] = 1  # x from 96 down to 48 mm
    path = save(tmp_path, mask, "mask.nii.gz")
    run = resampled(tmp_path, fine_bold, ball_grid, mask=path)
    assert np.array_equal(run.covered, ball_grid.coordinates[:, 0] >= 48)
    assert (run.data[:, ~run.covered] == 0).all()


def test_what_the_scanner_did_not_see_is_not_covered(
    tmp_path: Path, fine_bold: np.ndarray, ball_grid: Grid
) -> None:
    run = resampled(tmp_path, fine_bold[:, :, :10], ball_grid)  # up to -34 mm
    assert not run.covered[ball_grid.coordinates[:, 2] > -34].any()
    assert run.covered[ball_grid.coordinates[:, 2] < -36].all()


def spoil_truncated(folder: Path, good: Path) -> Path:
    good.write_bytes(good.read_bytes()[:-2000])
    return good


def spoil_truncated_plain(folder: Path, good: Path) -> Path:
    plain = folder / "plain.nii"
    plain.write_bytes(gzip.decompress(good.read_bytes())[:-2000])
    return plain


def spoil_middle(folder: Path, good: Path) -> Path:
    save(folder, np.rint(nib.load(good).get_fdata()).astype(np.int16))  # so that it compresses
    content = bytearray(good.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 500] = b"\xff" * 500
    good.write_bytes(content)
    return good


def spoil_empty(folder: Path, good: Path) -> Path:
    good.write_bytes(b"")
    return good


def spoil_text(folder: Path, good: Path) -> Path:
    good.write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 20)
    return good


def spoil_away(folder: Path, good: Path) -> Path:
    good.unlink()
    return good


def spoil_3d(folder: Path, good: Path) -> Path:
    return save(folder, np.ones((27, 25, 23), dtype=np.float32))


def spoil_zero(folder: Path, good: Path) -> Path:
    return save(folder, np.zeros((27, 25, 23, 12), dtype=np.float32))


def spoil_place(folder: Path, good: Path) -> Path:
    elsewhere = FINE.copy()
    elsewhere[:3, 3] += 1000
    return save(folder, nib.load(good).get_fdata(dtype=np.float32), affine=elsewhere)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_truncated, "truncated"),
        (spoil_truncated_plain, "truncated"),
        (spoil_middle, "corrupt"),
        (spoil_empty, "not a readable"),
        (spoil_text, "not a readable"),
        (spoil_away, "does not exist"),
        (spoil_3d, "3-D"),
        (spoil_zero, "no signal in any volume"),
        (spoil_place, "in this space"),
    ],
)
def test_a_bad_run_is_refused_in_one_line_and_nothing_is_left_behind(
    tmp_path: Path, fine_bold: np.ndarray, ball_grid: Grid, spoil: Any, says: str
) -> None:
    bad = spoil(tmp_path, save(tmp_path, fine_bold))
    folder = tmp_path / "work"
    folder.mkdir()
    with pytest.raises(RunError) as error:
        clean_run(bad, TR, ball_grid, PLAIN, folder)
    assert says in str(error.value)
    assert str(bad) in str(error.value)
    assert "\n" not in str(error.value)
    assert list(folder.iterdir()) == []


def other_shape(folder: Path) -> Path:
    return save(folder, np.ones((27, 25, 22), dtype=np.uint8), "mask.nii.gz")


def other_place(folder: Path) -> Path:
    return save(
        folder, np.ones((27, 25, 23), dtype=np.uint8), "mask.nii.gz", FINE + np.eye(4, k=3)
    )


def no_voxel(folder: Path) -> Path:
    return save(folder, np.zeros((27, 25, 23), dtype=np.uint8), "mask.nii.gz")


def cut_off(folder: Path) -> Path:
    path = save(folder, np.random.default_rng(0).random((27, 25, 23)), "mask.nii.gz")
    path.write_bytes(path.read_bytes()[:-3000])
    return path


def cut_off_plain(folder: Path) -> Path:
    path = save(folder, np.random.default_rng(0).random((27, 25, 23)), "mask.nii")
    path.write_bytes(path.read_bytes()[:-3000])
    return path


@pytest.mark.parametrize("bad", [other_shape, other_place, no_voxel, cut_off, cut_off_plain])
def test_a_bad_mask_is_refused_in_one_line(
    tmp_path: Path, fine_bold: np.ndarray, ball_grid: Grid, bad: Any
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    mask = bad(tmp_path)
    with pytest.raises(RunError) as error:
        clean_run(save(tmp_path, fine_bold), TR, ball_grid, PLAIN, folder, mask)
    assert str(mask) in str(error.value)
    assert "\n" not in str(error.value)
    assert list(folder.iterdir()) == []


def test_a_run_is_never_in_memory_at_full_resolution(
    tmp_path: Path, ball_grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    shape = (52, 50, 46, 80)  # 2 mm
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = ball_grid.affine[:3, 3]
    bold = save(tmp_path, rng.integers(0, 999, shape, dtype=np.int16), "big.nii", affine)
    monkeypatch.setattr(resample, "_CHUNK_BYTES", 4 * int(np.prod(shape[:3])))
    tracemalloc.start()
    resample_run(bold, ball_grid, tmp_path / "out.npy", smoothing=6.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.25 * 4 * np.prod(shape)


# --- clean_run ----------------------------------------------------------------------------------

PLAIN = SignalOptions(nuisance=("none",), smoothing=0, min_time=0)


def options(**changes: Any) -> SignalOptions:
    return SignalOptions.model_validate(PLAIN.model_dump() | changes)


def test_a_simulated_run_becomes_signals(
    tmp_path: Path, simulated: Path, coarse_grid: Grid
) -> None:
    (bold,) = simulated.rglob("*_bold.nii.gz")
    (mask,) = simulated.glob("sub-*/func/*_mask.nii.gz")
    (confounds,) = simulated.rglob("*_desc-confounds_timeseries.tsv")
    (metadata,) = simulated.rglob("*_desc-confounds_timeseries.json")
    asked = options(nuisance=("simple",), fd_thresh=0.5, smoothing=6.0)
    run = clean_run(bold, TR, coarse_grid, asked, tmp_path, mask, confounds, metadata, name="run")
    stored = Signals.load(tmp_path)
    table = pd.read_csv(confounds, sep="\t", na_values="n/a")
    gone = (table["framewise_displacement"] > 0.5) | (
        table.filter(like="non_steady").sum(axis=1) > 0
    )
    assert np.array_equal(stored.kept, np.flatnonzero(~gone))
    assert 0 < gone.sum() < 20
    assert stored.data.shape == (len(stored.kept), coarse_grid.n_voxels)
    assert (stored.n_volumes, stored.repetition_time, stored.name) == (100, TR, "run")
    assert stored.grid.fingerprint == coarse_grid.fingerprint
    assert np.array_equal(stored.covered, run.signals.covered)
    # The run's voxels at the edge of its mask are no worse than the others.
    assert stored.covered.mean() > 0.95
    assert np.allclose(stored.data[:, stored.covered].std(axis=0, ddof=1), 1, atol=1e-4)
    assert (stored.data[:, ~stored.covered] == 0).all()
    assert {path.name for path in tmp_path.iterdir()} == {
        *("data.npy", "grid.npz", "volumes.npz", "signals.json")
    }


def test_empty_volumes_are_left_out(
    tmp_path: Path, fine_bold: np.ndarray, ball_grid: Grid
) -> None:
    fine_bold[..., 6] = 0
    run = clean_run(save(tmp_path, fine_bold), TR, ball_grid, PLAIN, tmp_path)
    assert run.signals.kept.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert run.signals.covered.all()


def test_temporal_snr_is_mean_by_standard_deviation(
    tmp_path: Path, fine_bold: np.ndarray, ball_grid: Grid
) -> None:
    volumes = (
        1000 + 20 * np.random.default_rng(3).standard_normal((*ball_grid.shape, 200))
    ).astype(np.float32)
    bold = save(tmp_path, volumes, affine=ball_grid.affine)
    run = clean_run(bold, TR, ball_grid, PLAIN, tmp_path)
    assert run.temporal_snr == pytest.approx(50, rel=0.05)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"dummy_scans": 11}, "1 of 12 volumes left (11 by dummy scan)"),
        ({"dummy_scans": 40}, "0 of 12 volumes left"),
        ({"lower_bpf": 0.3}, "--lower-bpf"),
        ({"upper_bpf": 0.25}, "--upper-bpf"),
        ({"lower_bpf": 0.01}, "too few to filter"),
    ],
)
def test_what_cannot_be_done_with_a_run_is_said_in_one_line(
    tmp_path: Path, fine_bold: np.ndarray, ball_grid: Grid, asked: dict[str, Any], says: str
) -> None:
    bold = save(tmp_path, fine_bold)
    folder = tmp_path / "work"
    folder.mkdir()
    with pytest.raises(RunError) as error:
        clean_run(bold, TR, ball_grid, options(**asked), folder)
    assert says in str(error.value)
    assert str(bold) in str(error.value)
    assert "\n" not in str(error.value)
    assert list(folder.iterdir()) == []


def test_more_regressors_than_volumes_are_refused(
    tmp_path: Path, fine_bold: np.ndarray, ball_grid: Grid
) -> None:
    rng = np.random.default_rng(0)
    names = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]
    table = pd.DataFrame(rng.standard_normal((12, 6)), columns=names)
    table.to_csv(tmp_path / "confounds.tsv", sep="\t", index=False)
    bold = save(tmp_path, fine_bold)
    asked = options(nuisance=("motion",))
    with pytest.raises(RunError, match=r"12 of 12 volumes left for 24 nuisance regressors") as e:
        clean_run(bold, TR, ball_grid, asked, tmp_path, None, tmp_path / "confounds.tsv")
    assert str(bold) in str(e.value)
    few = options(nuisance=("motion",), motion="basic")
    run = clean_run(bold, TR, ball_grid, few, tmp_path, None, tmp_path / "confounds.tsv")
    assert run.nuisance.regressors.shape == (12, 6)


def test_a_run_that_is_too_short_is_skipped(
    tmp_path: Path, fine_bold: np.ndarray, ball_grid: Grid
) -> None:
    bold = save(tmp_path, fine_bold)
    clean_run(bold, TR, ball_grid, options(min_time=24), tmp_path)
    with pytest.raises(RunSkipped, match=r"22 s, less than --min-time 24") as error:
        clean_run(bold, TR, ball_grid, options(min_time=24, dummy_scans=1), tmp_path)
    assert str(bold) in str(error.value)


def test_a_window_needs_as_many_volumes(
    tmp_path: Path, fine_bold: np.ndarray, ball_grid: Grid
) -> None:
    bold = save(tmp_path, fine_bold)
    with pytest.raises(RunError, match="fewer than the 20"):
        clean_run(bold, TR, ball_grid, PLAIN, tmp_path, minimum_volumes=20)
