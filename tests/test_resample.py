"""Smoothing and resampling by matrices is what nilearn does, wherever the file lies."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nilearn.image import resample_img, smooth_img

from bids_fbn.signal import resample
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.resample import resample_run
from bids_fbn.signal.separable import SeparableResampling

SHAPE = (31, 29, 27)


def placed(columns: list[list[float]], origin: list[float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.array(columns).T, origin
    return affine


# The ball of the grid is 80 mm wide, around (48, -76, -30) mm.
AFFINES = {
    "off the grid": placed([[-3.3, 0, 0], [0, 3.1, 0], [0, 0, 3.5]], [97.1, -120.3, -76.9]),
    "every other voxel": placed([[-4, 0, 0], [0, 4, 0], [0, 0, 4]], [104, -132, -70]),
    "flipped": placed([[3.3, 0, 0], [0, -3.1, 0], [0, 0, 3.5]], [-1.5, -31, -76.9]),
    "axes in another order": placed([[0, 0, 3.3], [-3.1, 0, 0], [0, -3.5, 0]], [92, -30.6, -80.2]),
    "partly beside the grid": placed([[-3, 0, 0], [0, 3, 0], [0, 0, 3]], [60, -80.5, -51]),
    "coarser than the grid": placed([[-9, 0, 0], [0, 9, 0], [0, 0, 10]], [190, -202, -150]),
    "parallel but for rounding": placed(
        [[-3.3, 1e-7, 0], [0, 3.1, -2e-7], [0, 1e-7, 3.5]], [97.1, -120.3, -76.9]
    ),
}
OBLIQUE = placed([[-3.3, 0.1, 0], [0.1, 3.3, 0], [0, 0, 3.5]], [97.1, -120.3, -76.9])


@pytest.fixture
def volume() -> np.ndarray:
    return 1000 + 50 * np.random.default_rng(0).standard_normal(SHAPE)


def by_nilearn(
    volume: np.ndarray, affine: np.ndarray, grid: Grid, smoothing: float, clip: bool
) -> np.ndarray:
    image = nib.Nifti1Image(volume, affine)
    if smoothing:
        image = smooth_img(image, smoothing)
    resampled = resample_img(
        image, grid.affine, grid.shape, interpolation="continuous", clip=clip, copy_header=True
    )
    return grid.gather(resampled.get_fdata())


@pytest.mark.parametrize("smoothing", [0.0, 6.0])
@pytest.mark.parametrize("where", AFFINES)
def test_matrices_do_what_nilearn_does(
    volume: np.ndarray, ball_grid: Grid, where: str, smoothing: float
) -> None:
    affine = AFFINES[where]
    matrices = SeparableResampling.plan(affine, SHAPE, ball_grid, smoothing)
    assert matrices is not None
    expected = by_nilearn(volume, affine, ball_grid, smoothing, clip=False)
    assert np.allclose(matrices(volume.T), expected, rtol=0, atol=2e-3)  # of 1000
    outside = (expected == 0).mean()
    assert (0.1 < outside < 0.9) if where == "partly beside the grid" else outside == 0


def test_on_the_grid_only_the_smoothing_is_left(ball_grid: Grid) -> None:
    volume = np.random.default_rng(0).standard_normal(ball_grid.shape)
    image = smooth_img(nib.Nifti1Image(volume, ball_grid.affine), 12.0)
    matrices = SeparableResampling.plan(ball_grid.affine, ball_grid.shape, ball_grid, 12.0)
    assert matrices is not None
    assert not matrices.resamples
    assert np.allclose(matrices(volume.T), ball_grid.gather(image.get_fdata()), atol=1e-6)


def test_oblique_axes_have_no_matrices_and_are_resampled_all_the_same(
    tmp_path: Path, volume: np.ndarray, ball_grid: Grid
) -> None:
    assert SeparableResampling.plan(OBLIQUE, SHAPE, ball_grid, 6.0) is None
    volumes = np.stack([volume, volume[::-1]], axis=3).astype(np.float32)
    nib.save(nib.Nifti1Image(volumes, OBLIQUE), tmp_path / "bold.nii.gz")
    run = resample_run(tmp_path / "bold.nii.gz", ball_grid, tmp_path / "out.npy", smoothing=6.0)
    for row, each in zip(run.data, (volume, volume[::-1]), strict=True):
        expected = by_nilearn(each, OBLIQUE, ball_grid, 6.0, clip=False)
        assert np.allclose(row[run.covered], expected[run.covered], atol=1e-2)


@pytest.mark.parametrize("where", ["off the grid", "axes in another order"])
def test_integers_with_a_slope_come_out_in_their_unit(
    tmp_path: Path, volume: np.ndarray, ball_grid: Grid, where: str
) -> None:
    volumes = np.stack([volume, volume[::-1]], axis=3)
    image = nib.Nifti1Image(volumes, AFFINES[where])
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "bold.nii.gz")  # nibabel takes a slope that fills the 16 bits
    stored = nib.load(tmp_path / "bold.nii.gz")
    assert stored.dataobj.slope != 1
    assert stored.dataobj.inter != 0
    run = resample_run(tmp_path / "bold.nii.gz", ball_grid, tmp_path / "out.npy", smoothing=6.0)
    for row, each in zip(run.data, stored.get_fdata().transpose(3, 0, 1, 2), strict=True):
        expected = by_nilearn(each, AFFINES[where], ball_grid, 6.0, clip=True)
        assert np.allclose(row[run.covered], expected[run.covered], rtol=0, atol=2e-3)


def test_what_a_spline_overshoots_is_cut_off_as_nilearn_cuts_it(
    tmp_path: Path, ball_grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    affine = AFFINES["off the grid"]
    edges = 500.0 + 400 * np.sign(np.sin(np.indices(SHAPE)[0] * 0.9))
    other = edges[:, :, ::-1] * 3 - 500
    volumes = np.stack([edges, other], axis=3).astype(np.float32)
    nib.save(nib.Nifti1Image(volumes, affine), tmp_path / "bold.nii")
    monkeypatch.setattr(resample, "_CHUNK_BYTES", 1)  # volumes one by one
    run = resample_run(tmp_path / "bold.nii", ball_grid, tmp_path / "out.npy")
    free = by_nilearn(volumes, affine, ball_grid, 0, clip=False)
    expected = by_nilearn(volumes, affine, ball_grid, 0, clip=True)
    assert (free > volumes.max() + 1).any()
    assert np.allclose(run.data, expected, atol=5e-3)  # of up to 2200


def test_a_volume_with_one_voxel_that_differs_has_signal(tmp_path: Path, ball_grid: Grid) -> None:
    volumes = np.random.default_rng(0).standard_normal((*SHAPE, 4)).astype(np.float32)
    volumes[..., 1] = volumes[..., 2] = 7
    volumes[17, 11, 13, 2] = 8
    bold = tmp_path / "bold.nii"
    nib.save(nib.Nifti1Image(volumes, AFFINES["every other voxel"]), bold)
    run = resample_run(bold, ball_grid, tmp_path / "out.npy")
    assert run.empty_volumes == (1,)


def test_a_voxel_that_varies_only_in_empty_volumes_does_not_vary(
    tmp_path: Path, ball_grid: Grid
) -> None:
    rng = np.random.default_rng(0)
    affine = AFFINES["every other voxel"]
    volumes = rng.integers(100, 900, (*SHAPE, 5)).astype(np.int16)
    volumes[14:18, 14:18, 10:14] = 300
    volumes[..., 3] = 0
    nib.save(nib.Nifti1Image(volumes, affine), tmp_path / "bold.nii")
    run = resample_run(tmp_path / "bold.nii", ball_grid, tmp_path / "out.npy")
    ijk = np.rint(nib.affines.apply_affine(np.linalg.inv(affine), ball_grid.coordinates))
    constant = np.all((ijk >= [14, 14, 10]) & (ijk < [18, 18, 14]), axis=1)
    assert constant.any()
    assert np.array_equal(~run.covered, constant)
