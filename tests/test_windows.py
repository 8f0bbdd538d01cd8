"""Time steps: which volumes a window holds, and when it is."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from bids_fbn.signal.windows import lay_windows


def by_definition(kept: np.ndarray, n_volumes: int, window: int, stride: int) -> list[int]:
    """Start of each window or −1, found by looking at every volume."""
    kept_list = kept.tolist()
    starts = []
    for first in range(0, n_volumes - window + 1, stride):
        centre = first + window // 2
        start = -1
        if centre in kept_list:
            at = kept_list.index(centre) - window // 2
            volumes = kept_list[at : at + window] if at >= 0 else []
            gaps = [b - a - 1 for a, b in pairwise(volumes)]
            if len(volumes) == window and all(gap <= window / 10 for gap in gaps):
                start = at
        starts.append(start)
    return starts


@pytest.mark.parametrize("seed", range(40))
def test_steps_are_as_defined_however_volumes_are_left_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_volumes = int(rng.integers(20, 90))
    window, stride = int(rng.integers(1, 25)), int(rng.integers(1, 6))
    left_out = rng.random(n_volumes) < rng.choice([0, 0.02, 0.1, 0.3])
    if rng.random() < 0.5:
        first = int(rng.integers(0, n_volumes))
        left_out[first : first + int(rng.integers(1, 8))] = True
    kept = np.flatnonzero(~left_out)
    steps = lay_windows(kept, n_volumes, 2.0, window, stride)
    assert steps.start.tolist() == by_definition(kept, n_volumes, window, stride)
    assert len(steps) == max(0, (n_volumes - window) // stride + 1)
    used = steps.start[steps.valid]
    assert len(np.unique(used)) == len(used)
    assert (np.diff(used) > 0).all()


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (10, 1), (11, 3), (40, 7), (100, 1)])
def test_with_nothing_left_out_windows_are_the_stretches(window: int, stride: int) -> None:
    steps = lay_windows(np.arange(100), 100, 0.72, window, stride)
    first = np.arange(0, 100 - window + 1, stride)
    assert np.array_equal(steps.start, first)
    # The mean of the onsets of the volumes in the window, from the start of the run.
    assert np.allclose(steps.onset, 0.72 * (first + (window - 1) / 2))
    assert steps.seconds == pytest.approx(0.72 * stride)


def test_one_volume_left_out_costs_the_step_that_it_is_the_centre_of() -> None:
    kept = np.delete(np.arange(60), 30)
    steps = lay_windows(kept, 60, 1.0, 20)
    assert len(steps) == 41
    (lost,) = np.flatnonzero(steps.start[:-1] < 0)
    assert lost == 20  # volumes 20 to 39, with volume 30 in the middle
    # The others close up around it.
    before = kept[steps.start[19] : steps.start[19] + 20]
    assert before.tolist() == [*range(19, 30), *range(31, 40)]
    after = kept[steps.start[21] : steps.start[21] + 20]
    assert after.tolist() == [*range(20, 30), *range(31, 41)]
    assert steps.start[-1] == 39


@pytest.mark.parametrize(("gap", "bridged"), [(4, True), (5, False)])
def test_a_window_bridges_a_gap_of_a_tenth_of_itself(gap: int, bridged: bool) -> None:
    kept = np.delete(np.arange(200), np.arange(100, 100 + gap))
    steps = lay_windows(kept, 200, 1.0, 40)
    across = np.flatnonzero((kept[steps.start] < 100) & (kept[steps.start + 39] >= 100 + gap))
    across = across[steps.valid[across]]
    assert (len(across) > 0) is bridged
    assert len(steps) == 161


def test_dummy_scans_leave_the_rows_where_they_are() -> None:
    whole = lay_windows(np.arange(50), 50, 2.0, 10)
    steps = lay_windows(np.arange(4, 50), 50, 2.0, 10)
    assert np.array_equal(steps.onset, whole.onset)
    assert not steps.valid[:4].any()
    assert steps.valid[4:].all()
    assert np.array_equal(steps.start[4:] + 4, whole.start[4:])


def test_single_volumes_are_their_own_windows() -> None:
    kept = np.array([0, 1, 5, 6, 9])
    steps = lay_windows(kept, 10, 2.0, 1)
    assert np.array_equal(np.flatnonzero(steps.valid), kept)
    assert np.array_equal(steps.start[kept], np.arange(5))
    assert np.array_equal(steps.onset, 2.0 * np.arange(10))
    assert steps.window_apart == 1


def test_a_run_shorter_than_the_window_has_no_step() -> None:
    assert len(lay_windows(np.arange(9), 9, 1.0, 10)) == 0


@pytest.mark.parametrize(("stride", "apart"), [(1, 40), (7, 6), (40, 1), (50, 1)])
def test_windows_apart_share_no_volume(stride: int, apart: int) -> None:
    steps = lay_windows(np.arange(400), 400, 1.0, 40, stride)
    assert steps.window_apart == apart
    assert steps.start[apart] - steps.start[0] >= 40
    assert steps.start[apart - 1] - steps.start[0] < 40
