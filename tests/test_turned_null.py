"""Maps elsewhere in the brain."""

from __future__ import annotations

import numpy as np
import pytest

from bids_fbn.nulls.turned import turned_maps, turned_null
from bids_fbn.signal.grid import Grid


def blob(grid: Grid, shift: list[float]) -> np.ndarray:
    away = grid.coordinates - grid.coordinates.mean(axis=0) - shift
    return np.exp(-(away**2).sum(axis=1) / 150).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_a_map_keeps_its_shape_and_its_distance_from_the_middle(
    seed: int, ball_grid: Grid
) -> None:
    maps = np.stack([blob(ball_grid, [20, 0, 0]), blob(ball_grid, [0, 0, 0])])
    turned = turned_maps(maps, ball_grid, np.random.default_rng(seed))
    middle = ball_grid.coordinates.mean(axis=0)
    place = ball_grid.coordinates.T @ turned[0] / turned[0].sum()
    assert np.linalg.norm(place - middle) == pytest.approx(20, abs=3)
    assert np.linalg.norm(place - middle - [20, 0, 0]) > 5
    assert turned[0].sum() == pytest.approx(maps[0].sum(), rel=0.05)
    # What is in the middle stays there.
    assert np.corrcoef(turned[1], maps[1])[0, 1] > 0.97


def test_each_map_is_turned_by_itself(ball_grid: Grid) -> None:
    maps = np.stack([blob(ball_grid, [20, 0, 0])] * 2)
    first, second = turned_maps(maps, ball_grid, np.random.default_rng(0))
    assert np.corrcoef(first, second)[0, 1] < 0.5


def test_what_comes_from_outside_is_nothing(ball_grid: Grid) -> None:
    maps = np.ones((1, ball_grid.n_voxels), dtype=np.float32)
    turned = turned_maps(maps, ball_grid, np.random.default_rng(1))
    assert turned.min() >= 0
    assert turned.max() == pytest.approx(1)


def test_the_null_is_the_same_however_many_follow_and_work(ball_grid: Grid) -> None:
    maps = np.stack([blob(ball_grid, [20, 0, 0]), blob(ball_grid, [-20, 0, 10])])
    covered = np.ones(ball_grid.n_voxels, dtype=bool)
    covered[:40] = False

    def highest(drawn: np.ndarray) -> np.ndarray:
        assert drawn.shape == (2, covered.sum())
        return drawn @ maps[0][covered]

    few = turned_null(maps, ball_grid, covered, highest, 3, seed=5)
    many = turned_null(maps, ball_grid, covered, highest, 6, seed=5, threads=2)
    assert np.array_equal(few, many[:3])
    assert len(np.unique(many)) == 12
    assert turned_null(maps, ball_grid, covered, highest, 0).shape == (0, 0)
