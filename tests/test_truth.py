"""Measures against a known truth, on arrays whose answers are known, and on a simulated run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bids_fbn.errors import InputError
from bids_fbn.evaluation.truth import (
    MapMatch,
    course_recovery,
    dynamics_error,
    false_positive_rate,
    in_true_labels,
    match_maps,
    r_by_name,
    read_truth,
    state_agreement,
    states_at_steps,
)
from bids_fbn.networks.states import NO_STATE, summarize_states
from bids_fbn.signal.grid import Grid, grid_geometry
from bids_fbn.signal.windows import lay_windows
from bids_fbn.simulate import simulate_dataset

PREFIX = "sub-01_task-rest"


@pytest.fixture
def true_maps() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 2000))


def test_maps_are_matched_whatever_their_order_sign_and_unit(true_maps: np.ndarray) -> None:
    order = np.array([2, 0, 3, 1])
    found = -7 * true_maps[order] + 100
    match = match_maps(true_maps, found)
    assert list(match.found) == [1, 3, 0, 2]
    assert match.r == pytest.approx(np.ones(4))
    assert list(match.sign) == [-1] * 4
    assert list(match.true_of_found(4)) == list(order)


def test_the_r_of_a_noisy_map_is_what_its_noise_leaves(true_maps: np.ndarray) -> None:
    noise = np.random.default_rng(1).standard_normal(true_maps.shape)
    match = match_maps(true_maps, true_maps + noise)
    assert match.r == pytest.approx(np.full(4, np.sqrt(0.5)), abs=0.05)


def test_one_map_serves_one_network(true_maps: np.ndarray) -> None:
    """The sum of r counts: the second network gets what is left, though the first would do."""
    both = true_maps[0] + true_maps[1]
    match = match_maps(true_maps[:2], np.stack([both, true_maps[0]]))
    assert list(match.found) == [1, 0]
    assert match.r == pytest.approx([1, np.sqrt(0.5)], abs=0.05)


def test_a_network_without_a_map_has_r_0(true_maps: np.ndarray) -> None:
    match = match_maps(true_maps, true_maps[[3]])
    assert list(match.found) == [-1, -1, -1, 0]
    assert list(match.r[:3]) == [0, 0, 0]
    assert list(match.true_of_found(1)) == [3]
    nothing = match_maps(true_maps, np.zeros((5, 2000)))
    assert list(nothing.r) == [0] * 4
    assert list(match_maps(true_maps, np.empty((0, 2000))).found) == [-1] * 4


def test_by_name_the_sign_counts_and_a_missing_name_is_0(true_maps: np.ndarray) -> None:
    found = np.stack([-true_maps[1], true_maps[0]])
    r = r_by_name(true_maps, ["a", "b", "c", "d"], found, ["b", "a"])
    assert r == pytest.approx([1, -1, 0, 0])


def test_courses_are_compared_over_kept_volumes_and_turned_with_their_map() -> None:
    rng = np.random.default_rng(0)
    true = rng.standard_normal((60, 3))
    true[:, 2] = 0
    kept = np.flatnonzero(np.arange(60) % 5)
    found = np.stack([rng.standard_normal(len(kept)), -3 * true[kept, 0]], axis=1)
    match = MapMatch(np.array([1, -1, 0]), np.array([1.0, 0, 1]), np.array([-1, 1, 1]))
    r = course_recovery(true, found, match, kept)
    assert r[0] == pytest.approx(1)
    assert r[1] == 0
    assert np.isnan(r[2])
    shifted = course_recovery(true, found, match, kept - 1)
    assert abs(shifted[0]) < 0.4


def test_a_windows_state_is_that_of_its_centre_or_of_most_of_it() -> None:
    states = np.repeat([0, 1, 2], [8, 1, 11])
    everything = np.arange(20)
    steps = lay_windows(everything, 20, 2.0, window=5)
    # Windows 0–4 to 15–19, centres 2 to 17.
    assert list(states_at_steps(states, steps, everything)) == [0] * 6 + [1] + [2] * 9
    majority = states_at_steps(states, steps, everything, "majority")
    assert list(majority) == [0] * 7 + [2] * 9  # of 0 0 1 2 2, the first
    kept = np.delete(everything, [7])
    censored = lay_windows(kept, 20, 2.0, window=11)
    found = states_at_steps(states, censored, kept)
    # Centres 5 to 14, of which 7 was left out.
    assert list(found) == [0, 0, NO_STATE, 1, 2, 2, 2, 2, 2, 2]


def test_labels_of_found_networks_become_those_of_true_ones() -> None:
    found = np.array([0, 0, 1, 2, NO_STATE])
    assert list(in_true_labels(found, np.array([2, -1, 0]), 5)) == [2, 2, 6, 0, NO_STATE]


def test_accuracy_needs_the_right_names_and_the_rand_index_does_not() -> None:
    true = np.array([0, 0, 1, 1, 2, 2, NO_STATE, NO_STATE])
    assert state_agreement(true, true).accuracy == 1
    turned = np.array([1, 1, 2, 2, 0, 0, 0, 1])
    agreement = state_agreement(true, turned)
    assert (agreement.accuracy, agreement.adjusted_rand, agreement.n_steps) == (0, 1, 6)


def test_no_state_found_is_wrong_and_a_step_without_a_window_does_not_count() -> None:
    true = np.array([0, 0, 1, 1, 1, 1])
    found = np.array([0, 0, 1, 1, NO_STATE, NO_STATE])
    all_steps = state_agreement(true, found)
    assert all_steps.accuracy == pytest.approx(4 / 6)
    # 3 pairs together in both; of 15 pairs 7 are together in truth and 3 in what was found.
    expected = (3 - 7 * 3 / 15) / ((7 + 3) / 2 - 7 * 3 / 15)
    assert all_steps.adjusted_rand == pytest.approx(expected)
    without = state_agreement(true, found, valid=np.array([1, 1, 1, 1, 0, 0], dtype=bool))
    assert (without.accuracy, without.adjusted_rand, without.n_steps) == (1, 1, 4)
    assert np.isnan(state_agreement(np.full(3, NO_STATE), np.zeros(3, int)).accuracy)


def test_the_rand_index_of_chance_is_0() -> None:
    rng = np.random.default_rng(0)
    values = [
        state_agreement(rng.integers(5, size=100), rng.integers(5, size=100)).adjusted_rand
        for _ in range(200)
    ]
    assert np.mean(values) == pytest.approx(0, abs=0.005)


def test_errors_of_occupancy_and_dwell() -> None:
    true = np.repeat([0, 1, 0, 2], [10, 20, 10, 10])  # 20, 40, 20 s
    found = np.repeat([0, 1, 4], [15, 25, 10])  # 30, 50 s; 4 is no true network
    error = dynamics_error(true, found, 3, 2.0, 2.0)
    # 0.4, 0.4, 0.2 against 0.3, 0.5, 0
    assert error.occupancy == pytest.approx((0.1 + 0.1 + 0.2) / 3)
    assert error.dwell == pytest.approx(10)
    assert error.dwell_bias == pytest.approx(10)
    assert error.n_missed == 1
    same = dynamics_error(true, true[::2], 3, 2.0, 4.0)
    assert (same.occupancy, same.dwell, same.dwell_bias, same.n_missed) == (0, 0, 0, 0)
    shorter = dynamics_error(true, np.tile([0, 1], 25), 3, 2.0, 2.0)
    assert shorter.dwell_bias == pytest.approx(-(18 + 38) / 2)
    nothing = dynamics_error(true, np.full(50, NO_STATE), 3, 2.0, 2.0)
    assert np.isnan(nothing.occupancy)
    assert np.isnan(nothing.dwell)
    assert nothing.n_missed == 3


def test_false_positive_rate_has_the_exact_interval() -> None:
    p = np.concatenate([np.full(10, 0.01), np.full(190, 0.5), [np.nan]])
    rate = false_positive_rate(p)
    assert (rate.share, rate.n) == (0.05, 200)
    # Clopper & Pearson by their definition: the tail of the binomial is 2.5 % at either end.
    from scipy.stats import binom

    assert binom.sf(9, 200, rate.low) == pytest.approx(0.025, abs=1e-6)
    assert binom.cdf(10, 200, rate.high) == pytest.approx(0.025, abs=1e-6)
    none = false_positive_rate(np.ones(20))
    assert none.low == 0
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 20))  # where the share is 0
    assert false_positive_rate(np.array([np.nan])).n == 0


def test_the_truth_of_a_simulated_run(simulated: Path, coarse_grid: Grid) -> None:
    truth = read_truth(simulated, PREFIX, coarse_grid)
    assert truth.maps.shape == (10, coarse_grid.n_voxels)
    assert truth.maps.max(axis=1) == pytest.approx(np.ones(10), abs=1e-6)
    assert truth.courses.shape == (100, 10)
    assert (truth.has_networks, truth.is_static, truth.repetition_time) == (True, False, 2.0)
    table = pd.read_csv(simulated / "truth" / f"{PREFIX}_desc-truth_states.tsv", sep="\t")
    names = np.array([*truth.networks, "none"])
    assert list(names[truth.bold_states]) == list(table["bold_state"])
    assert list(names[truth.neural_states]) == list(table["neural_state"])
    perfect = summarize_states(truth.bold_states, np.ones(100, bool), 10, 2.0)
    error = dynamics_error(truth.bold_states, truth.bold_states, 10, 2.0, 2.0)
    assert perfect.visits.sum() > 3
    assert (error.occupancy, error.dwell) == (0, 0)


def test_maps_come_on_the_analysis_grid(simulated: Path, coarse_grid: Grid) -> None:
    affine, shape = grid_geometry(6.0)
    fine = Grid(affine, np.ones(shape, dtype=bool))
    truth, own = (read_truth(simulated, PREFIX, grid) for grid in (fine, coarse_grid))
    for there, here in zip(truth.maps, own.maps, strict=True):
        centre_there = there @ fine.coordinates / there.sum()
        centre_here = here @ coarse_grid.coordinates / here.sum()
        assert np.linalg.norm(centre_there - centre_here) < 2  # mm
    # One voxel of 8 mm holds (8/6)³ of 6 mm.
    assert truth.maps.sum() == pytest.approx(own.maps.sum() * (8 / 6) ** 3, rel=0.05)


@pytest.mark.parametrize(
    "kind", [{"dynamics": "static"}, {"networks": False}], ids=["static", "noise"]
)
def test_data_without_states_have_a_truth_without_states(
    tmp_path: Path, kind: dict[str, Any]
) -> None:
    folder = simulate_dataset(
        tmp_path / "x", n_participants=1, n_volumes=20, resolution=12, **kind
    )
    affine, shape = grid_geometry(12.0)
    truth = read_truth(folder, PREFIX, Grid(affine, np.ones(shape, dtype=bool)))
    assert truth.is_static == ("dynamics" in kind)
    assert truth.has_networks == ("networks" not in kind)
    assert (truth.bold_states == NO_STATE).all()
    assert (truth.neural_states == NO_STATE).all()
    assert (np.ptp(truth.courses, axis=0) > 0).all() == truth.has_networks


def test_a_dataset_without_truth_is_refused_in_one_line(
    tmp_path: Path, simulated: Path, coarse_grid: Grid
) -> None:
    for folder, prefix in ((tmp_path, PREFIX), (simulated, "sub-99_task-rest")):
        with pytest.raises(InputError, match=r"bids_fbn\.simulate") as caught:
            read_truth(folder, prefix, coarse_grid)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)
