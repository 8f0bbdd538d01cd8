from __future__ import annotations

import numpy as np
import pytest

from bids_fbn.group.transitions import bootstrap_mean, group_transitions
from bids_fbn.networks.states import transition_counts
from bids_fbn.simulation.cohort import GroupEffect
from bids_fbn.simulation.tables import NETWORKS, simulate_features


def test_interval_covers_the_mean() -> None:
    """600 samples of 40 skewed values, from a tenth of which the value is missing."""
    rng = np.random.default_rng(0)
    values = rng.gamma(4.0, 0.25, (40, 600))
    values[rng.random(values.shape) < 0.1] = np.nan
    found = bootstrap_mean(values, n_bootstrap=1000)
    covered = np.mean((found.ci_low <= 1.0) & (found.ci_high >= 1.0))
    assert 0.90 <= covered <= 0.99


def test_interval_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(1).standard_normal((400, 3))
    found = bootstrap_mean(values, n_bootstrap=4000)
    expected = 2 * 1.96 * values.std(axis=0) / np.sqrt(400)
    np.testing.assert_allclose(found.ci_high - found.ci_low, expected, rtol=0.06)


def test_missing_values_do_not_count() -> None:
    values = np.array([[1.0, np.nan, np.nan], [3.0, 2.0, np.nan], [np.nan, np.nan, np.nan]])
    found = bootstrap_mean(values, n_bootstrap=50)
    np.testing.assert_array_equal(found.mean, [2, 2, np.nan])
    np.testing.assert_array_equal(found.n, [2, 1, 0])
    np.testing.assert_array_equal(np.isnan(found.ci_low), [False, True, True])
    assert found.ci_low[0] == 1
    assert found.ci_high[0] == 3


def test_same_seed_same_interval() -> None:
    values = np.random.default_rng(2).standard_normal((10, 2))
    first, again, other = (bootstrap_mean(values, 100, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.ci_low, again.ci_low)
    assert (first.ci_low != other.ci_low).any()


def test_nobody() -> None:
    found = bootstrap_mean(np.empty((0, 2)))
    assert np.isnan(found.mean).all()
    assert np.isnan(found.ci_low).all()


def test_rows_are_means_over_those_who_were_in_the_state() -> None:
    runs = [np.array([0, 0, 1, 0, 0, 0, 1]), np.array([1, 1, 1, 0, 1]), np.array([0, 0, 0, 0])]
    counts = np.stack([transition_counts(run, 3) for run in runs])
    probabilities = counts / np.maximum(counts.sum(axis=2, keepdims=True), 1)
    found = group_transitions(probabilities, counts, n_bootstrap=200)
    np.testing.assert_allclose(found.mean[0], [(3 / 5 + 0 + 1) / 3, (2 / 5 + 1 + 0) / 3, 0])
    np.testing.assert_allclose(found.mean[1], [(1 + 1 / 3) / 2, (0 + 2 / 3) / 2, 0])
    assert np.isnan(found.mean[2]).all()
    assert found.n.tolist() == [[3, 3, 3], [2, 2, 2], [0, 0, 0]]
    assert (found.ci_low[:2] <= found.mean[:2]).all()
    assert (found.ci_high[:2] >= found.mean[:2]).all()


def test_simulated_transitions_are_those_of_the_chain() -> None:
    """Steps of 2 s, dwell 8 s: three of four steps stay. Long runs, for short ones are biased."""
    study = simulate_features(n_per_group=60, n_steps=3000, seed=1)
    control = study.values[study.people["group"] == "control"]
    rows = control["transition_probability"].to_numpy().reshape(-1, 10, 10)
    counts = np.isfinite(rows).astype(int)
    found = group_transitions(np.nan_to_num(rows), counts, n_bootstrap=500)
    np.testing.assert_allclose(found.mean.sum(axis=1), 1)
    truth = np.where(np.eye(10, dtype=bool), 0.75, 0.25 / 9)
    np.testing.assert_allclose(found.mean, truth, atol=0.015)


def test_study_differs_where_it_says_and_nowhere_else() -> None:
    effect = GroupEffect(dwell_network=0, dwell_factor=3, transition=(4, 5), transition_share=0.6)
    study = simulate_features(n_per_group=300, effect=effect, seed=2)
    patient = study.people["group"] == "patient"
    a, b = study.values[patient], study.values[~patient]
    t = (a.mean() - b.mean()) / np.sqrt(a.var() / a.count() + b.var() / b.count())
    changed = np.array([name in study.changed for name in study.values.columns])
    assert study.known <= study.changed
    assert (t[sorted(study.known)] > 10).all()
    # About 100 features that are the same: 4 is exceeded by one of them in 1 of 150 studies.
    assert t[~changed].abs().max() < 4
    assert ("fractional_occupancy", NETWORKS[0]) in study.changed
    assert ("dwell_mean", NETWORKS[1]) not in study.changed
    assert ("transition_probability", f"{NETWORKS[4]} > {NETWORKS[6]}") in study.changed


def test_sites_change_overlap_only_and_can_be_switched_off() -> None:
    study = simulate_features(n_per_group=300, seed=3)
    assert {measure for measure, _ in study.site_changed} == {"iou_mean"}
    outer = study.values.groupby(study.people["site"]).mean()["iou_mean"]
    assert ((outer.max() - outer.min()) > 0.03).all()
    alike = simulate_features(n_per_group=300, site_effect=0.0, effect=None, seed=3)
    assert not alike.site_changed | alike.changed | alike.known
    means = alike.values.groupby(alike.people["site"]).mean()["iou_mean"]
    assert ((means.max() - means.min()) < 0.015).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_transition_probabilities_add_up(seed: int) -> None:
    rows = simulate_features(seed=seed).values["transition_probability"].to_numpy()
    sums = rows.reshape(-1, 10, 10).sum(axis=2)
    np.testing.assert_allclose(sums[np.isfinite(sums)], 1)
