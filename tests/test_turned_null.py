"""Networks elsewhere in the brain."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import label

from bids_fbn.networks.tissue import grey_quarters
from bids_fbn.nulls.turned import turned_null, turning
from bids_fbn.signal.grid import Grid


def blob(grid: Grid, shift: list[float]) -> np.ndarray:
    away = grid.coordinates - grid.coordinates.mean(axis=0) - shift
    return np.exp(-(away**2).sum(axis=1) / 150).astype(np.float32)


def everywhere(grid: Grid) -> np.ndarray:
    return np.ones(grid.n_voxels, dtype=bool)


def unit_places(grid: Grid, weights: np.ndarray) -> np.ndarray:
    """Where maps (K, V) lie, (K, 3), in standard deviations of the voxels from their middle."""
    places = grid.coordinates
    units = (places - places.mean(axis=0)) / places.std(axis=0)
    return weights @ units / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(3))
def test_maps_turn_all_alike_and_keep_their_distance_from_the_middle(
    seed: int, ball_grid: Grid
) -> None:
    maps = np.stack([blob(ball_grid, [20, 0, 0]), blob(ball_grid, [0, 20, 0])])
    turned = turning(maps, ball_grid, everywhere(ball_grid))(np.random.default_rng(seed))
    before, after = unit_places(ball_grid, maps), unit_places(ball_grid, turned)
    # So do the angles between them.
    np.testing.assert_allclose(after @ after.T, before @ before.T, atol=0.15)
    assert np.linalg.norm(after - before, axis=1).min() > 0.5
    # Interpolation has neither smoothed them nor lost any.
    assert np.array_equal(np.sort(turned), np.sort(maps))


def test_what_is_in_the_middle_stays_there(ball_grid: Grid) -> None:
    maps = blob(ball_grid, [0, 0, 0])[None]
    turned = turning(maps, ball_grid, everywhere(ball_grid))(np.random.default_rng(0))
    assert np.corrcoef(turned[0], maps[0])[0, 1] > 0.97


def test_no_network_of_several_lies_where_it_was(coarse_grid: Grid) -> None:
    places = ([30, -40, 10], [-30, -40, 10], [0, 50, 0], [0, 0, 40])
    maps = np.stack([blob(coarse_grid, list(place)) for place in places])
    turn = turning(maps, coarse_grid, everywhere(coarse_grid))
    for seed in range(30):
        turned = turn(np.random.default_rng(seed))
        assert np.corrcoef(turned, maps)[[0, 1, 2, 3], [4, 5, 6, 7]].max() < 0.25


@pytest.mark.parametrize("seed", range(3))
def test_supports_stay_in_one_piece(seed: int, coarse_grid: Grid) -> None:
    maps = np.stack([blob(coarse_grid, place) for place in ([30, -40, 10], [-30, -40, 10])])
    turn = turning(maps > 0.3, coarse_grid, everywhere(coarse_grid))
    for own in turn(np.random.default_rng(seed)):
        assert own.dtype == bool
        volume = np.zeros(coarse_grid.shape, dtype=bool)
        volume[coarse_grid.mask] = own
        assert label(volume, np.ones((3, 3, 3)))[1] == 1


def test_supports_that_leave_the_brain_have_their_size_all_the_same(ball_grid: Grid) -> None:
    # One voxel at the end of the brain, with no place as far out to turn to.
    places = ball_grid.coordinates
    supports = np.zeros((2, ball_grid.n_voxels), dtype=bool)
    supports[0, places[:, 2].argmin()] = True
    supports[1, places[:, 2].argsort()[-60:]] = True
    covered = places[:, 2] < np.sort(places[:, 2])[-20]
    assert supports[1, covered].sum() > 1
    turn = turning(supports, ball_grid, covered)
    for seed in range(20):
        turned = turn(np.random.default_rng(seed))
        assert turned.shape == (2, covered.sum())
        assert np.array_equal(turned.sum(axis=1), supports[:, covered].sum(axis=1))


def mirror_r(grid: Grid, maps: np.ndarray) -> list[float]:
    """r of each map with its mirror image."""
    volumes = np.zeros((*grid.shape, len(maps)))
    volumes[grid.mask] = maps.T
    both = grid.mask & grid.mask[::-1]
    return [
        float(np.corrcoef(volumes[both, k], volumes[::-1][both, k])[0, 1])
        for k in range(len(maps))
    ]


@pytest.mark.parametrize("seed", range(3))
def test_mirrored_turns_keep_both_sides_alike(seed: int, coarse_grid: Grid) -> None:
    sides = [[x, -40, 10] for x in (-35, 35)], [[x, 20, 40] for x in (-25, 25)]
    maps = np.stack([sum(blob(coarse_grid, place) for place in pair) for pair in sides])
    turn = turning(maps, coarse_grid, everywhere(coarse_grid))
    whole = turn(np.random.default_rng(seed))
    mirrored = turn(np.random.default_rng(seed), mirrored=True)
    assert min(mirror_r(coarse_grid, maps)) > 0.9
    assert min(mirror_r(coarse_grid, mirrored)) > 0.9
    assert min(mirror_r(coarse_grid, whole)) < 0.5
    assert np.corrcoef(mirrored, maps)[[0, 1], [2, 3]].max() < 0.25
    assert np.array_equal(np.sort(mirrored), np.sort(maps))


def test_kinds_of_turns_alternate(ball_grid: Grid) -> None:
    maps = np.stack([blob(ball_grid, [20, 0, 0]), blob(ball_grid, [-20, 0, 10])])
    turn = turning(maps, ball_grid, everywhere(ball_grid))
    found = turned_null(turn, lambda drawn: drawn @ maps[0], 5, seed=3)
    for kind, numbers in (("turned", (0, 2, 4)), ("mirrored", (1, 3))):
        drawn = [turn(np.random.default_rng([3, n]), mirrored=kind == "mirrored") for n in numbers]
        assert np.array_equal(found[kind], [own @ maps[0] for own in drawn])


def test_maps_keep_their_values_in_each_tissue(coarse_grid: Grid) -> None:
    maps = np.stack([blob(coarse_grid, place) for place in ([30, -40, 10], [-30, -40, 10])])
    tissue = grey_quarters(coarse_grid)
    covered = coarse_grid.coordinates[:, 2] > -40
    turned = turning(maps, coarse_grid, covered, tissue)(np.random.default_rng(0))
    assert np.abs(turned - maps[:, covered]).max() > 0.5
    for quarter in range(4):
        own = tissue[covered] == quarter
        assert np.array_equal(np.sort(turned[:, own]), np.sort(maps[:, covered][:, own]))


def test_the_null_is_the_same_however_many_follow_and_work(ball_grid: Grid) -> None:
    maps = np.stack([blob(ball_grid, [20, 0, 0]), blob(ball_grid, [-20, 0, 10])])
    turn = turning(maps, ball_grid, everywhere(ball_grid))

    def overlap(drawn: np.ndarray) -> np.ndarray:
        return drawn @ maps[0]

    few = turned_null(turn, overlap, 3, seed=5)
    many = turned_null(turn, overlap, 6, seed=5, threads=2)
    none = turned_null(turn, overlap, 0)
    for kind in ("turned", "mirrored"):
        assert np.array_equal(few[kind], many[kind][: len(few[kind])])
        assert len(np.unique(many[kind])) == 6
        assert none[kind].shape == (0, 0)
