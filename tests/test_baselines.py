"""Dictionary learning of one run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_models import one_line, run_of

from bids_fbn.baselines import learn_dictionary
from bids_fbn.errors import RunError
from bids_fbn.signal.grid import Grid


def best_r(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Highest |r| of each wanted row among those found."""
    r = np.corrcoef(wanted, found)[: len(wanted), len(wanted) :]
    return np.abs(r).max(axis=1)


def test_maps_and_courses_of_a_run_are_found(ball_grid: Grid) -> None:
    signals = run_of(ball_grid, 60)
    maps, courses = learn_dictionary(signals, 3)
    assert maps.shape == (3, ball_grid.n_voxels)
    assert courses.shape == (60, 3)
    middle = ball_grid.coordinates.mean(axis=0)
    wanted = [
        np.exp(-((ball_grid.coordinates - middle - shift) ** 2).sum(axis=1) / 800)
        for shift in ([20, 0, 0], [-20, 0, 10])
    ]
    assert (best_r(maps, np.array(wanted)) > 0.8).all()
    wanted = [np.sin(np.arange(60) / 3.0), np.sin(np.arange(60) / 5.0)]
    assert (best_r(courses.T, np.array(wanted)) > 0.9).all()
    # Least squares: what is left over is orthogonal to every map.
    left = signals.data - courses @ maps
    assert np.abs(left @ maps.T).max() < 1e-3 * np.abs(signals.data @ maps.T).max()


def test_sparsity_does_not_depend_on_how_long_a_run_is(ball_grid: Grid) -> None:
    once = run_of(ball_grid, 40)
    longer = replace(once, data=np.tile(once.data, (8, 1)), kept=np.arange(320), n_volumes=320)
    zeros = [np.mean(learn_dictionary(run, 4)[0] == 0) for run in (once, longer)]
    assert zeros[0] > 0.3
    assert zeros[1] == pytest.approx(zeros[0], abs=0.05)


def test_voxels_that_a_run_does_not_cover_take_no_part(ball_grid: Grid) -> None:
    signals = run_of(ball_grid, 30)
    covered = np.ones(ball_grid.n_voxels, dtype=bool)
    covered[:100] = False
    data = np.where(covered, signals.data, 0).astype(np.float32)
    maps, _ = learn_dictionary(replace(signals, data=data, covered=covered), 3)
    assert not maps[:, :100].any()
    assert maps[:, 100:].any(axis=1).all()


def test_the_same_seed_gives_the_same_dictionary(ball_grid: Grid) -> None:
    first, again = (learn_dictionary(run_of(ball_grid, 30), 3, seed=1) for _ in range(2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])


def test_a_run_that_is_too_short_is_an_error_of_the_run(ball_grid: Grid) -> None:
    with pytest.raises(RunError) as error:
        learn_dictionary(run_of(ball_grid, 12), 20)
    assert "12 volumes" in one_line(error)
