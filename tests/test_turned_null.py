"""Networks elsewhere in the brain."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import label

from bids_fbn.nulls.turned import turned_maps, turned_null, turned_supports
from bids_fbn.signal.grid import Grid


def blob(grid: Grid, shift: list[float]) -> np.ndarray:
    away = grid.coordinates - grid.coordinates.mean(axis=0) - shift
    return np.exp(-(away**2).sum(axis=1) / 150).astype(np.float32)


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
    turned = turned_maps(maps, ball_grid, np.random.default_rng(seed))
    before, after = unit_places(ball_grid, maps), unit_places(ball_grid, turned)
    # So do the angles between them.
    np.testing.assert_allclose(after @ after.T, before @ before.T, atol=0.15)
    assert np.linalg.norm(after - before, axis=1).max() > 0.5
    assert turned.sum(axis=1) == pytest.approx(maps.sum(axis=1), rel=0.05)


def test_what_is_in_the_middle_stays_there(ball_grid: Grid) -> None:
    maps = blob(ball_grid, [0, 0, 0])[None]
    turned = turned_maps(maps, ball_grid, np.random.default_rng(0))
    assert np.corrcoef(turned[0], maps[0])[0, 1] > 0.97


def test_what_comes_from_outside_is_nothing(ball_grid: Grid) -> None:
    maps = np.ones((1, ball_grid.n_voxels), dtype=np.float32)
    turned = turned_maps(maps, ball_grid, np.random.default_rng(1))
    assert turned.min() >= 0
    assert turned.max() == pytest.approx(1)


@pytest.mark.parametrize("seed", range(3))
def test_supports_turn_as_maps_do_and_keep_their_size(seed: int, coarse_grid: Grid) -> None:
    maps = np.stack([blob(coarse_grid, place) for place in ([30, -40, 10], [-30, -40, 10])])
    supports = maps > 0.3
    everywhere = np.ones(coarse_grid.n_voxels, dtype=bool)
    turn = turned_supports(supports, coarse_grid, everywhere)
    turned = turn(np.random.default_rng(seed))
    assert np.array_equal(turned.sum(axis=1), supports.sum(axis=1))
    assert not np.array_equal(turned, supports)
    same = turned_maps(maps, coarse_grid, np.random.default_rng(seed))
    for own, values in zip(turned, same, strict=True):
        volume = np.zeros(coarse_grid.shape, dtype=bool)
        volume[coarse_grid.mask] = own
        assert label(volume, np.ones((3, 3, 3)))[1] == 1
        if values.max() > 0.9:  # it lies in the brain
            highest = np.argsort(values)[-own.sum() :]
            assert own[highest].mean() > 0.8


def test_supports_that_leave_the_brain_have_their_size_all_the_same(ball_grid: Grid) -> None:
    # One voxel at the end of a long brain, with no place as far out to turn to.
    places = ball_grid.coordinates
    supports = np.zeros((2, ball_grid.n_voxels), dtype=bool)
    supports[0, places[:, 2].argmax()] = True
    supports[1, places[:, 2].argsort()[-30:]] = True
    covered = places[:, 2] < np.sort(places[:, 2])[-20]
    turn = turned_supports(supports, ball_grid, covered)
    sizes = supports[:, covered].sum(axis=1)
    for seed in range(20):
        turned = turn(np.random.default_rng(seed))
        assert turned.shape == (2, covered.sum())
        assert np.array_equal(turned.sum(axis=1), sizes)


def test_the_null_is_the_same_however_many_follow_and_work(ball_grid: Grid) -> None:
    maps = np.stack([blob(ball_grid, [20, 0, 0]), blob(ball_grid, [-20, 0, 10])])

    def turn(rng: np.random.Generator) -> np.ndarray:
        return turned_maps(maps, ball_grid, rng)

    def overlap(drawn: np.ndarray) -> np.ndarray:
        return drawn @ maps[0]

    few = turned_null(turn, overlap, 3, seed=5)
    many = turned_null(turn, overlap, 6, seed=5, threads=2)
    assert np.array_equal(few, many[:3])
    assert len(np.unique(many)) == 12
    assert turned_null(turn, overlap, 0).shape == (0, 0)
