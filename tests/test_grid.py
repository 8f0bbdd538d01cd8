"""The analysis grid: where its voxels are, and what the mask does."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_fbn.signal import standard
from bids_fbn.signal.grid import Grid, grid_geometry
from bids_fbn.signal.standard import analysis_grid, background_image, load_parcels

SPACE = "MNI152NLin2009cAsym"


@pytest.fixture
def no_templateflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standard, "_from_templateflow", lambda *_args, **_query: None)


@pytest.fixture
def templateflow(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official files, as if TemplateFlow's cache were there."""
    api = pytest.importorskip("templateflow.api")
    folder = real_data / "templateflow"
    try:
        monkeypatch.setenv("TEMPLATEFLOW_HOME", str(folder))
        found = api.get(SPACE, resolution=2, desc="brain", suffix="mask")
    except Exception:
        found = None
    if not found or folder not in Path(found).parents:
        pytest.skip("TEMPLATEFLOW_HOME was not set to the folder's templateflow at the start")


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * (first & second).sum() / (first.sum() + second.sum())


def test_the_default_box_is_that_of_the_seed_papers() -> None:
    affine, shape = grid_geometry(4.0)
    assert shape == (49, 58, 47)
    assert np.array_equal(np.diag(affine), [-4, 4, 4, 1])
    assert np.array_equal(affine[:3, 3], [96, -132, -70])


@pytest.mark.parametrize("resolution", [2.0, 2.5, 3.0, 5.0, 6.0, 10.0])
def test_every_resolution_covers_the_same_box(resolution: float) -> None:
    affine, shape = grid_geometry(resolution)
    last = affine[:3, :3] @ (np.array(shape) - 1) + affine[:3, 3]
    over = np.array([-1, 1, 1]) * (last - [-96, 96, 114])
    assert (over >= -1e-6).all()
    assert (over < resolution).all()


def test_gather_and_scatter_are_inverse(ball_grid: Grid) -> None:
    rng = np.random.default_rng(0)
    one = rng.standard_normal(ball_grid.n_voxels)
    many = rng.standard_normal((5, ball_grid.n_voxels)).astype(np.float32)
    assert np.array_equal(ball_grid.gather(ball_grid.scatter(one)), one)
    assert np.array_equal(ball_grid.gather(ball_grid.scatter(many)), many)
    assert ball_grid.scatter(many).shape == (*ball_grid.shape, 5)
    outside = ball_grid.scatter(many, fill=np.nan)[~ball_grid.mask]
    assert np.isnan(outside).all()


def test_coordinates_are_where_gather_takes_the_values_from(ball_grid: Grid) -> None:
    indices = np.stack(np.indices(ball_grid.shape), axis=-1).astype(float)
    millimetres = nib.affines.apply_affine(ball_grid.affine, indices)
    by_hand = np.stack([ball_grid.gather(millimetres[..., axis]) for axis in range(3)], axis=1)
    assert np.array_equal(ball_grid.coordinates, by_hand)


def test_images_say_that_they_are_in_mni(ball_grid: Grid) -> None:
    image = ball_grid.image(np.ones((2, ball_grid.n_voxels), dtype=np.float32))
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (4, 4)
    assert image.header.get_xyzt_units() == ("mm", "sec")
    assert np.allclose(image.affine, ball_grid.affine)
    assert image.shape == (*ball_grid.shape, 2)


def test_the_fingerprint_knows_mask_and_place(ball_grid: Grid) -> None:
    same = Grid(ball_grid.affine.copy(), ball_grid.mask.copy())
    assert same.fingerprint == ball_grid.fingerprint
    mask = ball_grid.mask.copy()
    mask[6, 7, 5] = False
    assert Grid(ball_grid.affine, mask).fingerprint != ball_grid.fingerprint
    moved = ball_grid.affine.copy()
    moved[0, 3] += 1
    assert Grid(moved, ball_grid.mask).fingerprint != ball_grid.fingerprint


def test_the_bounding_box_is_the_smallest(ball_grid: Grid) -> None:
    box = ball_grid.bounding_box
    assert [(side.start, side.stop) for side in box] == [(1, 12), (2, 13), (0, 11)]
    assert ball_grid.mask[box].sum() == ball_grid.n_voxels
    for axis in range(3):
        ends = np.take(ball_grid.mask[box], [0, -1], axis=axis)
        assert ends.any(axis=tuple(i for i in range(3) if i != axis)).all()


def test_a_grid_comes_back_from_its_file(ball_grid: Grid, tmp_path: Path) -> None:
    ball_grid.save(tmp_path / "grid.npz")
    again = Grid.load(tmp_path / "grid.npz")
    assert again.fingerprint == ball_grid.fingerprint
    assert (again.space, again.mask_source) == (ball_grid.space, ball_grid.mask_source)


@pytest.mark.usefixtures("no_templateflow")
def test_without_templateflow_the_bundled_brain_serves_and_says_so() -> None:
    grid = analysis_grid(SPACE, 4.0)
    assert grid.shape == (49, 58, 47)
    assert "nilearn" in grid.mask_source
    assert grid.n_voxels == pytest.approx(28_500, rel=0.1)
    _, source = background_image(SPACE)
    assert "nilearn" in source


@pytest.mark.usefixtures("no_templateflow")
def test_places_are_named_after_the_nearest_region(coarse_grid: Grid) -> None:
    parcels = load_parcels(coarse_grid)
    assert "Dosenbach" in parcels.source
    at = {
        tuple(mm): str(label)
        for mm, label in zip(coarse_grid.coordinates, parcels.labels, strict=True)
    }
    # Dosenbach's post cingulate 1 is at (1, -26, 31), the nearest voxel at (0, -28, 34).
    assert at[(0.0, -28.0, 34.0)] == "post cingulate"
    assert at[(0.0, -28.0, 34.0)] != at[(0.0, 60.0, 2.0)]


@pytest.mark.realdata
def test_at_4_mm_the_bundled_brain_is_that_of_the_seed_papers(
    real_data: Path, no_templateflow: None
) -> None:
    theirs = nib.load(real_data / "reference" / "seed_papers_mask_4mm.nii.gz")
    grid = analysis_grid(SPACE, 4.0)
    assert np.allclose(theirs.affine, grid.affine)
    assert dice(theirs.get_fdata() > 0, grid.mask) > 0.9


@pytest.mark.realdata
@pytest.mark.usefixtures("templateflow")
def test_the_mask_of_templateflow_is_taken_where_there_is_one(real_data: Path) -> None:
    grid = analysis_grid(SPACE, 4.0)
    assert grid.mask_source == (
        "TemplateFlow: tpl-MNI152NLin2009cAsym_res-02_desc-brain_mask.nii.gz"
    )
    assert grid.n_voxels == pytest.approx(28_500, rel=0.05)
    theirs = nib.load(real_data / "reference" / "seed_papers_mask_4mm.nii.gz").get_fdata() > 0
    assert dice(theirs, grid.mask) > 0.9
    parcels = load_parcels(grid)
    assert "Schaefer" in parcels.source
    # Cortex holds the 400 parcels, about half of the brain.
    assert len(set(parcels.labels)) == 401
