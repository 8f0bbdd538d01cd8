"""States and what is counted of them, on sequences short enough to count by hand."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest

from bids_fbn.networks.states import (
    NO_STATE,
    StateSummary,
    assign_states,
    summarize_states,
    transition_counts,
)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def summary(
    states: list[int], n_states: int = 3, seconds: float = 2.0, invalid: tuple[int, ...] = ()
) -> StateSummary:
    valid = ~np.isin(np.arange(len(states)), invalid)
    return summarize_states(np.array(states, dtype=int), valid, n_states, seconds)


def test_the_state_is_the_network_of_the_highest_iou_from_the_threshold_on() -> None:
    iou = np.array([[0.31, 0.30, 0.1], [0.29, 0.1, 0.2], [0.1, 0.2, 0.3], [np.nan] * 3])
    assert assign_states(iou, 0.3).tolist() == [0, NO_STATE, 2, NO_STATE]
    assert assign_states(iou, 0.0).tolist() == [0, 0, 2, NO_STATE]
    assert assign_states(iou[:0]).tolist() == []


def test_occupancy_visits_and_dwell() -> None:
    found = summary([0, 0, 0, 1, 1, 0, -1, 0])
    assert found.occupancy == pytest.approx([5 / 7, 2 / 7, 0])
    assert found.visits.tolist() == [3, 1, 0]
    assert found.dwell_mean[:2] == pytest.approx([(6 + 2 + 2) / 3, 4])  # s, of steps of 2 s
    assert found.dwell_median[:2] == pytest.approx([2, 4])
    assert np.isnan(found.dwell_mean[2])
    assert np.isnan(found.dwell_median[2])
    assert found.without_state == pytest.approx(1 / 8)


def test_transitions_with_the_diagonal() -> None:
    found = summary([0, 0, 0, 1, 1, 0, 2, 2])
    assert found.counts.tolist() == [[2, 1, 1], [1, 1, 0], [0, 0, 1]]
    assert found.probabilities == pytest.approx(
        np.array([[0.5, 0.25, 0.25], [0.5, 0.5, 0], [0, 0, 1]])
    )


def test_a_step_without_a_state_breaks_the_chain() -> None:
    assert transition_counts(np.array([0, -1, 1, 1, -1, 0]), 2).tolist() == [[0, 0], [0, 1]]
    assert summary([0, -1, 0]).visits.tolist() == [2, 0, 0]


def test_rows_of_probabilities_sum_to_1_or_are_all_0() -> None:
    rng = np.random.default_rng(0)
    for length in (2, 5, 200):
        states = rng.integers(-1, 6, length)
        found = summarize_states(states, np.ones(length, dtype=bool), 7, 1.0)
        left = found.counts.sum(axis=1) > 0
        assert found.probabilities[left].sum(axis=1) == pytest.approx(1)
        assert (found.probabilities[~left] == 0).all()
        assert found.occupancy.sum() == pytest.approx(float((states >= 0).any()))
        assert found.visits.sum() == ((states >= 0) & (np.diff(states, prepend=-2) != 0)).sum()


def test_switching_rate_is_per_minute_of_steps_with_a_state() -> None:
    # 10 steps of 3 s with a state: half a minute. Changes 0→1, 1→2; not across the gap.
    found = summary([0, 0, 1, 1, 2, -1, -1, 0, 0, 0, 0, 0], seconds=3.0)
    assert found.switching_rate == pytest.approx(2 / 0.5)


def test_entropies_are_in_bits() -> None:
    even = summary([0, 1, 2, 3] * 8, n_states=4)
    assert even.occupancy_entropy == pytest.approx(2)
    assert even.transition_entropy == pytest.approx(0)  # what follows is certain
    assert summary([1] * 9).occupancy_entropy == pytest.approx(0)
    # Row 0 is left 4 times, half to 0 and half to 1: 1 bit. Row 1 once, to 0: 0 bit.
    found = summary([0, 0, 1, 0, 0, 1], n_states=2)
    assert found.counts.tolist() == [[2, 2], [1, 0]]
    assert found.transition_entropy == pytest.approx(4 / 5)


def test_volumes_left_out_are_not_time_without_a_state() -> None:
    found = summary([0, -1, -1, 1], invalid=(1,))
    assert found.without_state == pytest.approx(1 / 3)


@pytest.mark.parametrize("states", [[], [-1], [-1, -1, -1]])
def test_a_run_without_any_state(states: list[int]) -> None:
    found = summary(states)
    assert found.occupancy.tolist() == [0, 0, 0]
    assert found.visits.tolist() == [0, 0, 0]
    assert np.isnan(found.dwell_mean).all()
    assert not found.counts.any()
    assert not found.probabilities.any()
    assert np.isnan([found.switching_rate, found.occupancy_entropy]).all()
    assert np.isnan(found.transition_entropy)
    assert found.without_state == 1 if states else np.isnan(found.without_state)


def test_a_run_without_any_window() -> None:
    found = summary([-1, -1], invalid=(0, 1))
    assert np.isnan(found.without_state)


def test_one_step_with_a_state_has_no_transition() -> None:
    found = summary([2])
    assert found.occupancy.tolist() == [0, 0, 1]
    assert found.dwell_mean[2] == 2
    assert found.switching_rate == 0
    assert np.isnan(found.transition_entropy)
