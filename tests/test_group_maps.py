"""Maps of a group: statistics over participants, what they say of templates, files."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from command import assert_valid_bids
from scipy import stats
from scipy.ndimage import gaussian_filter

from bids_fbn.bids.group_naming import atlas_path, group_image_path
from bids_fbn.bids.group_writing import write_comparison_maps, write_group_maps
from bids_fbn.bids.naming import BIDSIGNORE
from bids_fbn.bids.writing import sidecar_path, update_dataset_description, write_bidsignore
from bids_fbn.group.maps import (
    GroupMaps,
    GroupResult,
    ParticipantMaps,
    combined_p,
    mean_over_runs,
    template_overlap,
    z_of_t,
)
from bids_fbn.networks.maps import zscore_maps
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.signal.grid import Grid

NETWORKS = ("Front", "Back")


def of_group(supports: np.ndarray, participants: list[ParticipantMaps]) -> GroupResult:
    group = GroupMaps(supports)
    for participant in participants:
        group.add(participant)
    return group.result()


def random_group(
    n: int, n_voxels: int = 60, seed: int = 0
) -> tuple[np.ndarray, list[ParticipantMaps]]:
    """Supports (2, V) and participants, each of whom lacks a tenth of the voxels."""
    rng = np.random.default_rng(seed)
    supports = np.arange(n_voxels) % 5 == np.arange(2)[:, None]
    maps = rng.normal(0.5, 1, (n, 2, n_voxels)).astype(np.float32)
    covered = rng.random((n, n_voxels)) > 0.1
    return supports, [
        ParticipantMaps(one * mask, np.clip(one, 0, 1) * mask, mask)
        for one, mask in zip(maps, covered, strict=True)
    ]


def templates_on(grid: Grid) -> TemplateSet:
    """Two blobs."""
    centres = np.array([[0.0, 24, 0], [0, -24, 0]]) + grid.coordinates.mean(axis=0)
    distance = np.linalg.norm(grid.coordinates - centres[:, None], axis=2)
    maps = np.exp(-((distance / 20) ** 2)).astype(np.float32)
    return TemplateSet("Blobs", NETWORKS, maps, maps > 0.5, "", "", "")


def test_each_voxel_has_the_statistics_of_those_who_cover_it() -> None:
    supports, participants = random_group(12)
    found = of_group(supports, participants)
    covered = np.array([one.covered for one in participants])
    maps = np.where(covered[:, None], [one.maps for one in participants], np.nan)
    membership = np.where(covered[:, None], [one.membership for one in participants], np.nan)
    assert np.array_equal(found.n, covered.sum(axis=0))
    assert np.allclose(found.mean, np.nanmean(maps, axis=0))
    assert np.allclose(found.probability, np.nanmean(membership, axis=0))
    test = stats.ttest_1samp(maps.astype(float), 0, nan_policy="omit", alternative="greater")
    assert np.allclose(found.z, stats.norm.isf(test.pvalue), atol=1e-6)


def test_the_order_of_participants_does_not_matter() -> None:
    supports, participants = random_group(9)
    one, other = of_group(supports, participants), of_group(supports, participants[::-1])
    for name in ("mean", "z", "consistency", "probability", "n"):
        assert np.allclose(getattr(one, name), getattr(other, name), rtol=1e-12)


def test_consistency_is_the_share_of_supports_of_the_size_of_the_template() -> None:
    supports = np.array([[True, True, True, False, False, False]])
    rising = np.arange(6.0)[None]
    everywhere = np.ones(6, dtype=bool)
    # The second does not cover the first voxel: two of the template's are left.
    partly = everywhere & (np.arange(6) > 0)
    participants = [
        ParticipantMaps(rising, rising > 2, everywhere),
        ParticipantMaps(-rising, rising < 3, partly),
    ]
    found = of_group(supports, participants)
    assert found.consistency.tolist() == [[0, 0.5, 0.5, 0.5, 0.5, 0.5]]
    assert found.n.tolist() == [1, 2, 2, 2, 2, 2]


def test_z_needs_three_participants_who_differ() -> None:
    supports = np.ones((1, 3), dtype=bool)
    covered = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 0], [0, 1, 0]], dtype=bool)
    values = np.array([[1, 2, 1], [2, 2, 1], [3, 2, 1], [9, 2, 9]], dtype=float)
    found = of_group(
        supports,
        [ParticipantMaps(v[None], v[None], c) for v, c in zip(values, covered, strict=True)],
    )
    # t = 2 / (1 / √3) with two degrees of freedom.
    assert found.z[0, 0] == pytest.approx(stats.norm.isf(stats.t.sf(2 * 3**0.5, 2)))
    assert np.isnan(found.z[0, 1:]).all()
    assert found.mean[0].tolist() == [2, 2, 1]


def test_one_participant_or_none() -> None:
    supports, participants = random_group(1)
    alone = of_group(supports, participants)
    covered = participants[0].covered
    assert np.array_equal(alone.mean[:, covered], participants[0].maps[:, covered])
    assert np.isnan(alone.mean[:, ~covered]).all()
    assert np.isnan(alone.z).all()
    nobody = of_group(supports, [])
    assert np.isnan(nobody.mean).all()
    assert not nobody.labels().any()


@pytest.mark.parametrize(
    ("t", "degrees_of_freedom", "z"),
    [
        # By mpmath with 40 digits. The tails of the last four are below what doubles hold.
        (2.0, 10, 1.79040993226883),
        (1e20, 23, 45.1862432759282),
        (60.0, 999, 39.0466980362407),
        (38.0, 2000, 32.9653360339465),
        (36.0, 100_000, 35.8840821245839),
    ],
)
def test_z_has_the_tail_of_t(t: float, degrees_of_freedom: int, z: float) -> None:
    both = z_of_t(np.array([t, -t]), degrees_of_freedom)
    assert both == pytest.approx([z, -z], rel=1e-9)


def test_z_knows_nothing_of_nothing() -> None:
    assert z_of_t(np.array([0.0, np.nan]), 5) == pytest.approx([0, np.nan], nan_ok=True)


def test_runs_are_averaged_where_they_have_signal() -> None:
    first = ParticipantMaps(
        np.array([[1.0, 9, 9]]), np.ones((1, 3)), np.array([True, False, False])
    )
    second = ParticipantMaps(
        np.array([[3.0, 5, 9]]), np.zeros((1, 3)), np.array([True, True, False])
    )
    mean = mean_over_runs(iter([first, second]))
    assert mean.maps.tolist() == [[2, 5, 0]]
    assert mean.membership.tolist() == [[0.5, 0, 0]]
    assert mean.covered.tolist() == [True, True, False]
    with pytest.raises(ValueError, match="without runs"):
        mean_over_runs([])


def test_labels_go_to_the_most_probable_of_the_consistent() -> None:
    found = GroupResult(
        mean=np.zeros((2, 5)),
        z=np.zeros((2, 5)),
        consistency=np.array([[0.5, 0.3, 0.2, 0.2, 1], [0.3, 0.3, 0.9, 0.2, 1]]),
        probability=np.array([[0.4, 0.1, 0.8, 0.9, 1], [0.3, 0.2, 0.1, 0.9, 0]]),
        n=np.array([10, 10, 10, 10, 4]),
        n_participants=10,
    )
    assert found.labels().tolist() == [1, 2, 2, 0, 0]
    assert found.labels(0.4).tolist() == [1, 0, 2, 0, 0]


def test_noise_of_single_participants_averages_out(ball_grid: Grid) -> None:
    templates = templates_on(ball_grid)
    rng = np.random.default_rng(0)
    everywhere = np.ones(ball_grid.n_voxels, dtype=bool)
    maps = templates.maps + rng.normal(0, 0.3, (20, *templates.maps.shape))
    participants = [ParticipantMaps(zscore_maps(m), m, everywhere) for m in maps]
    alone, together = (
        template_overlap(of_group(templates.supports, some), templates)
        for some in (participants[:1], participants)
    )
    assert list(together.index) == list(NETWORKS)
    assert (together["iou"] > alone["iou"] + 0.1).all()
    assert (together["r"] > 0.9).all()
    assert np.allclose(together["dice"], 2 * together["iou"] / (1 + together["iou"]))


def test_voxels_of_few_participants_take_no_part(ball_grid: Grid) -> None:
    templates = templates_on(ball_grid)
    everywhere = np.ones(ball_grid.n_voxels, dtype=bool)
    outside = ~templates.supports.any(axis=0)
    maps = zscore_maps(templates.maps)
    participants = [ParticipantMaps(maps, maps, ~outside) for _ in range(3)]
    participants.append(ParticipantMaps(np.where(outside, 9, maps), maps, everywhere))
    found = of_group(templates.supports, participants)
    assert np.array_equal(found.covered, ~outside)
    assert (template_overlap(found, templates)["iou"] == 1).all()


def test_means_of_noise_that_templates_chose_look_like_them(ball_grid: Grid) -> None:
    """Why the overlap of a group map has no p by random maps: this would be found every time."""
    templates = templates_on(ball_grid)
    rng = np.random.default_rng(0)
    everywhere = np.ones(ball_grid.n_voxels, dtype=bool)

    def noise() -> np.ndarray:
        fields = rng.normal(size=(20, *ball_grid.shape))
        return zscore_maps(np.stack([ball_grid.gather(gaussian_filter(f, 1)) for f in fields]))

    def participant(maps: np.ndarray) -> ParticipantMaps:
        return ParticipantMaps(maps, maps, everywhere)

    def overlap(participants: list[ParticipantMaps]) -> float:
        group = of_group(templates.supports, participants)
        return float(template_overlap(group, templates)["iou"].mean())

    chosen, any_two = [], []
    for _ in range(24):
        maps = noise()
        chosen.append(participant(maps[(zscore_maps(templates.maps) @ maps.T).argmax(axis=1)]))
        any_two.append(participant(maps[:2]))
    assert overlap(chosen) > 0.6
    assert overlap(any_two) < 0.3


def test_runs_without_a_network_rarely_add_up_to_one() -> None:
    rng = np.random.default_rng(0)
    # p of 39 surrogates: 1/40 to 1, as often each.
    p = pd.DataFrame(rng.integers(1, 41, (24 * 400, 4)) / 40, columns=list("abcd"))
    studies = [combined_p(p.iloc[first : first + 24]) for first in range(0, len(p), 24)]
    alone = np.array([study["p"] for study in studies])
    any_of_four = np.array([study["p_corrected"].min() for study in studies])
    # Three standard errors above 5 %.
    assert (alone < 0.05).mean() < 0.05 + 3 * (0.05 * 0.95 / alone.size) ** 0.5
    assert (any_of_four < 0.05).mean() < 0.05 + 3 * (0.05 * 0.95 / len(studies)) ** 0.5


def test_p_are_combined_by_fisher_and_corrected_by_holm() -> None:
    p = pd.DataFrame(
        {"a": [0.01, 0.04, 0.6], "b": [0.5, np.nan, 0.9], "c": [np.nan] * 3, "d": [0.03, 1, 0.2]}
    )
    found = combined_p(p)
    for name in ("a", "b", "d"):
        expected = stats.combine_pvalues(p[name].dropna()).pvalue
        assert found.loc[name, "p"] == pytest.approx(expected)
    assert np.isnan(found.loc["c", ["p", "p_corrected", "standing"]].astype(float)).all()
    assert found["n_runs"].tolist() == [3, 2, 0, 3]
    assert found["standing"].drop("c").tolist() == pytest.approx([2 / 3, 0, 1 / 3])
    assert found.loc["a", "p_corrected"] == pytest.approx(3 * found.loc["a", "p"])
    assert found.loc["d", "p_corrected"] == pytest.approx(2 * found.loc["d", "p"])
    assert found.loc["b", "p_corrected"] == pytest.approx(found.loc["b", "p"])


def write_all(out: Path, grid: Grid) -> list[Path]:
    """A tree with the maps of two models, with and without a task, and a comparison."""
    out.mkdir()
    update_dataset_description(out, {"study": "file:///study"}, {})
    write_bidsignore(out)
    templates = templates_on(grid)
    rng = np.random.default_rng(0)
    some = rng.random(grid.n_voxels) > 0.2
    maps = rng.normal(size=(4, *templates.maps.shape))
    participants = [ParticipantMaps(m * some, np.clip(m, 0, 1) * some, some) for m in maps]
    found = of_group(templates.supports, participants)
    facts = {"Sources": ["bids::sub-01/func/sub-01_task-rest_desc-stca_components.nii.gz"]}
    written = []
    for model in ("stca", "untrained-stca"):
        for entities in ({"task": "rest"}, {}):
            written += write_group_maps(out, model, entities, grid, NETWORKS, found, facts)
    t = np.where(some, maps[0], np.nan)
    p = np.where(some, 0.5, np.nan)
    comparison = (grid, NETWORKS, "diagnosis", t, p, {"Formula": "map ~ diagnosis"})
    return written + write_comparison_maps(out, "stca", {"task": "rest"}, *comparison)


def test_the_tree_is_valid(tmp_path: Path, ball_grid: Grid) -> None:
    written = write_all(tmp_path / "out", ball_grid)
    assert all(path.is_file() for path in written)
    there = {path for path in (tmp_path / "out").rglob("*.*") if not path.name.startswith(".")}
    assert there - set(written) == {tmp_path / "out" / "dataset_description.json"}
    assert_valid_bids(tmp_path / "out")


def test_the_same_maps_give_the_same_bytes(tmp_path: Path, ball_grid: Grid) -> None:
    once, again = (write_all(tmp_path / name, ball_grid) for name in ("a", "b"))
    assert [path.read_bytes() for path in once] == [path.read_bytes() for path in again]


def test_images_and_sidecars_say_what_was_found(tmp_path: Path, ball_grid: Grid) -> None:
    templates = templates_on(ball_grid)
    everywhere = np.ones(ball_grid.n_voxels, dtype=bool)
    maps = zscore_maps(templates.maps)
    found = of_group(
        templates.supports, [ParticipantMaps(maps, templates.supports, everywhere)] * 2
    )
    write_group_maps(tmp_path, "stca", "rest", ball_grid, NETWORKS, found, {"Sources": ["x"]})
    place = ("stca", "rest", ball_grid.space, ball_grid.resolution)
    dseg = nib.load(tmp_path / atlas_path("dseg", *place))
    expected = np.where(templates.supports.any(axis=0), templates.supports.argmax(axis=0) + 1, 0)
    assert np.array_equal(ball_grid.gather(np.asarray(dseg.dataobj)), expected)
    mean_path = tmp_path / group_image_path("mean", *place)
    assert np.allclose(ball_grid.gather(nib.load(mean_path).get_fdata()), maps, atol=1e-6)
    # Two participants have no z: written as 0, not as NaN.
    assert not nib.load(tmp_path / group_image_path("z", *place)).get_fdata().any()
    sidecar = json.loads(sidecar_path(mean_path).read_text())
    assert sidecar["Networks"] == list(NETWORKS)
    assert sidecar["NumberOfParticipants"] == 2
    assert sidecar["Sources"] == ["x"]
    assert sidecar["Units"] == "z"


def test_names_of_group_maps() -> None:
    place = ("MNI152NLin6Asym", 2.5)
    atlas = "tpl-MNI152NLin6Asym_task-rest_atlas-StcaFBN_res-2p5_probseg.nii.gz"
    assert atlas_path("probseg", "stca", {"task": "rest"}, *place).as_posix() == (
        f"tpl-MNI152NLin6Asym/func/{atlas}"
    )
    assert group_image_path("t", "stca", {}, *place, "diagnosis").as_posix() == (
        "group/group_space-MNI152NLin6Asym_res-2p5_stat-t_desc-stcadiagnosis_components.nii.gz"
    )
    assert "group" in BIDSIGNORE
    with pytest.raises(ValueError, match="letters and digits"):
        group_image_path("t", "stca", {"task": "rest"}, *place, "a_b")
