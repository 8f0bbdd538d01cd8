"""Template sets: what they hold on which grid, and what is refused."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_fbn.errors import InputError
from bids_fbn.networks.templates import TemplateSet, load_templates
from bids_fbn.signal.grid import Grid, grid_geometry
from bids_fbn.simulation.noise import mni_head


@pytest.fixture(scope="module")
def grid() -> Grid:
    return mni_head(8, "MNI152NLin2009cAsym").grid


@pytest.fixture
def smith(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NILEARN_DATA", str(real_data / "nilearn_data"))


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * (first & second).sum() / (first.sum() + second.sum())


def user_templates(
    folder: Path, grid: Grid, names: list[str], *, column: str = "name", stem: str = "my_set-2"
) -> Path:
    """As many 4×4×4-voxel cubes as there are names, one behind the other."""
    maps = np.zeros((*grid.shape, len(names)), dtype=np.float32)
    for number in range(len(names)):
        maps[10:14, 4 + 4 * number : 8 + 4 * number, 10:14, number] = 2.0
    path = folder / f"{stem}.nii.gz"
    nib.save(nib.Nifti1Image(maps, grid.affine), path)
    pd.DataFrame({"index": range(len(names)), column: names}).to_csv(
        folder / f"{stem}.tsv", sep="\t", index=False
    )
    return path


def assert_whole(templates: TemplateSet, grid: Grid, n_networks: int) -> None:
    assert templates.maps.shape == templates.supports.shape == (n_networks, grid.n_voxels)
    assert templates.maps.dtype == np.float32
    assert templates.supports.dtype == bool
    assert templates.supports.any(axis=1).all()
    assert np.isfinite(templates.maps).all()
    assert len(set(templates.networks)) == n_networks
    assert all(name.isalnum() and name[0].isupper() for name in templates.networks)
    assert templates.name.isalnum()


@pytest.mark.parametrize("resolution", [3, 4, 6, 8, 10])
def test_seitzman_has_thirteen_networks_at_every_resolution(resolution: int) -> None:
    grid = mni_head(resolution, "MNI152NLin2009cAsym").grid
    templates = load_templates("seitzman2018", grid)
    assert_whole(templates, grid, 13)
    volumes = templates.supports.sum(axis=1) * resolution**3 / 1000
    assert templates.networks[0] == "DefaultMode"
    assert volumes[0] == volumes.max()
    # The volume of a network in ml hardly depends on the resolution.
    assert volumes[0] == pytest.approx(200, rel=0.1)
    assert volumes.sum() == pytest.approx(830, rel=0.1)


def test_seitzman_networks_do_not_overlap_and_lie_near_their_rois(grid: Grid) -> None:
    from nilearn.datasets import fetch_coords_seitzman_2018

    atlas = fetch_coords_seitzman_2018()
    templates = load_templates("seitzman2018", grid)
    assert templates.supports.sum(axis=0).max() == 1
    assert np.array_equal(templates.maps, templates.supports)
    for network, support in zip(templates.networks, templates.supports, strict=True):
        rois = atlas["rois"].to_numpy()[np.asarray(atlas["networks"]) == network]
        voxels = grid.coordinates[support]
        distance = np.linalg.norm(voxels[:, None] - rois[None], axis=2).min(axis=1)
        assert distance.max() <= 10


def test_seitzman_orders_networks_by_their_number_of_rois(grid: Grid) -> None:
    networks = load_templates("Seitzman2018", grid).networks
    assert networks[:4] == ("DefaultMode", "SomatomotorDorsal", "Visual", "FrontoParietal")
    assert set(networks[10:]) == {"ParietoMedial", "SomatomotorLateral", "MedialTemporalLobe"}


def test_a_network_outside_the_mask_is_named() -> None:
    affine, shape = grid_geometry(8)
    frontal = np.zeros(shape, dtype=bool)
    frontal[:, 20:] = True
    with pytest.raises(InputError, match=r"no voxel of .*Visual.*--resolution"):
        load_templates("seitzman2018", Grid(affine, frontal))


@pytest.mark.realdata
@pytest.mark.usefixtures("smith")
def test_smith_supports_are_those_of_the_seed_papers(real_data: Path) -> None:
    theirs = nib.load(real_data / "reference" / "seed_papers_rsn10_4mm.nii.gz")
    mask = nib.load(real_data / "reference" / "seed_papers_mask_4mm.nii.gz").get_fdata() > 0
    grid = Grid(theirs.affine, mask)
    templates = load_templates("smith2009", grid)
    assert_whole(templates, grid, 10)
    maps = grid.gather(theirs.get_fdata())
    for number, reference in enumerate(maps):
        support = reference >= 0.3 * reference.max()
        assert dice(support, templates.supports[number]) > 0.99


@pytest.mark.realdata
@pytest.mark.usefixtures("smith")
@pytest.mark.parametrize(
    ("network", "inside"),
    [
        ("Visual1", (0, -86, 4)),
        ("DefaultMode", (0, -56, 28)),
        ("Cerebellum", (-28, -64, -32)),
        ("Sensorimotor", (-38, -26, 56)),
        ("Auditory", (-54, -18, 8)),
        ("FrontoparietalRight", (48, -52, 48)),
        ("FrontoparietalLeft", (-46, -56, 48)),
    ],
)
def test_smith_networks_bear_the_right_names(network: str, inside: tuple[int, int, int]) -> None:
    grid = mni_head(4, "MNI152NLin6Asym").grid
    templates = load_templates("smith2009", grid)
    support = templates.supports[templates.networks.index(network)]
    distance = np.linalg.norm(grid.coordinates[support] - inside, axis=1)
    assert distance.min() <= 8


def test_smith_without_a_network_says_how_to_get_it(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("requests.Session.send", no_network)
    monkeypatch.delenv("NILEARN_SHARED_DATA", raising=False)
    monkeypatch.setenv("NILEARN_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError) as caught:
        load_templates("smith2009", grid)
    message = str(caught.value)
    assert "\n" not in message
    for needed in ("fetch_atlas_smith_2009()", "NILEARN_DATA", "--templates seitzman2018"):
        assert needed in message


@pytest.mark.parametrize("column", ["name", "network", "label"])
def test_user_templates(grid: Grid, tmp_path: Path, column: str) -> None:
    path = user_templates(
        tmp_path, grid, ["default mode", "dorsal_attention", "V1"], column=column
    )
    templates = load_templates(str(path), grid)
    assert_whole(templates, grid, 3)
    assert templates.name == "MySet2"
    assert templates.networks == ("DefaultMode", "DorsalAttention", "V1")
    assert templates.source == "my_set-2.nii.gz"
    cubes = grid.gather(np.asarray(nib.load(path).dataobj)) > 0
    assert np.array_equal(templates.supports, cubes)


def test_user_templates_on_another_grid_keep_their_place(grid: Grid, tmp_path: Path) -> None:
    path = user_templates(tmp_path, grid, ["A", "B"])
    fine = mni_head(4, grid.space).grid
    on_own, on_fine = load_templates(str(path), grid), load_templates(str(path), fine)
    for coarse_support, fine_support in zip(on_own.supports, on_fine.supports, strict=True):
        centre = grid.coordinates[coarse_support].mean(axis=0)
        assert np.allclose(fine.coordinates[fine_support].mean(axis=0), centre, atol=4)


def test_unknown_name(grid: Grid) -> None:
    with pytest.raises(InputError, match=r"smith2010: unknown; choose smith2009"):
        load_templates("smith2010", grid)


def test_missing_file(grid: Grid, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.nii\.gz: no such file"):
        load_templates(str(tmp_path / "nowhere.nii.gz"), grid)


def test_a_3d_image(grid: Grid, tmp_path: Path) -> None:
    path = tmp_path / "flat.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros(grid.shape, dtype=np.float32), grid.affine), path)
    with pytest.raises(InputError, match=r"flat\.nii\.gz: is 3-D"):
        load_templates(str(path), grid)


def test_not_an_image(grid: Grid, tmp_path: Path) -> None:
    path = tmp_path / "text.nii.gz"
    path.write_text("hello")
    with pytest.raises(InputError, match=r"text\.nii\.gz: cannot be read as NIfTI"):
        load_templates(str(path), grid)


def test_a_cut_off_image(grid: Grid, tmp_path: Path) -> None:
    path = user_templates(tmp_path, grid, ["A", "B"])
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(InputError, match="cannot be read as NIfTI"):
        load_templates(str(path), grid)


def test_table_missing(grid: Grid, tmp_path: Path) -> None:
    path = user_templates(tmp_path, grid, ["A", "B"])
    path.with_name("my_set-2.tsv").unlink()
    with pytest.raises(InputError, match=r"my_set-2\.tsv: missing"):
        load_templates(str(path), grid)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name\nA\n", r"1 rows for the 2 volumes"),
        ("name\nA\nB\nC\n", r"3 rows for the 2 volumes"),
        ("title\nA\nB\n", r"no column name, network or label"),
        ("name\nA b\nA_B\n", r"more than one network is called AB"),
        ("name\nA\n?\n", r"row 2 has the name '\?'"),
        ("", r"not a readable TSV"),
    ],
)
def test_bad_table(grid: Grid, tmp_path: Path, table: str, message: str) -> None:
    path = user_templates(tmp_path, grid, ["A", "B"])
    path.with_name("my_set-2.tsv").write_text(table)
    with pytest.raises(InputError, match=rf"my_set-2\.tsv: .*{message}") as caught:
        load_templates(str(path), grid)
    assert "\n" not in str(caught.value)


def test_template_outside_the_brain(grid: Grid, tmp_path: Path) -> None:
    path = user_templates(tmp_path, grid, ["A", "B"])
    image = nib.load(path)
    maps = image.get_fdata(dtype=np.float32)
    maps[..., 1] = 0
    maps[0, 0, 0, 1] = 5
    nib.save(nib.Nifti1Image(maps, image.affine), path)
    with pytest.raises(InputError, match=r"my_set-2\.nii\.gz: no voxel of B on the 8 mm grid"):
        load_templates(str(path), grid)
