from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bids_fbn.errors import InputError
from bids_fbn.group.harmonise import Combat

# Twelve participants, five metrics: sines, shifted and stretched by site.
SITES = np.array(list("AAAABBBBBCCC"))
AGE = 20.0 + np.arange(12) * 7 % 31
GROUP = np.arange(12) % 2.0
METRICS = np.array(
    [
        [0.4, 1.541, 1.909, 1.441, 0.843],
        [2.032, 0.388, 2.369, 1.574, 2.174],
        [0.424, 1.979, 0.922, 0.802, 2.717],
        [0.394, 0.641, 0.92, 1.233, 1.579],
        [2.551, 3.672, 2.084, 1.7, 4.154],
        [3.058, 1.058, 3.859, 2.19, 4.635],
        [0.3, 2.792, 3.862, 2.57, 1.74],
        [1.071, 2.017, 3.021, 4.025, 4.971],
        [3.075, 2.299, 1.179, 4.343, 4.026],
        [0.658, 0.71, 0.36, 1.548, 0.585],
        [-0.517, -0.017, 0.658, 1.171, 1.296],
        [0.611, 1.267, 1.66, 1.644, 1.354],
    ]
)
# neuroHarmonize 2.5.2: harmonizationLearn(METRICS, DataFrame(dict(SITE=SITES, age=AGE,
# group=GROUP)))[1]; neuroCombat 0.2.12 with continuous_cols=[age, group] is the same to 1e-15.
HARMONISED = np.array(
    [
        [0.976591, 2.060559, 2.349273, 2.139735, 1.369479],
        [2.839363, 0.708045, 2.991883, 2.170561, 2.758701],
        [0.972329, 2.492199, 1.29728, 1.190488, 3.431315],
        [0.77266, 0.899149, 1.261867, 1.63579, 2.011156],
        [1.350024, 2.83305, 1.009811, 1.08844, 2.928122],
        [1.819048, 0.424419, 2.820796, 1.457953, 3.247547],
        [-0.358923, 2.012766, 2.631415, 1.667598, 0.925063],
        [0.386843, 1.290847, 1.980706, 2.83102, 3.623774],
        [1.729537, 1.696121, 0.331939, 2.99571, 2.804338],
        [1.760286, 1.273513, 1.810101, 2.317349, 1.813662],
        [0.527146, 0.969445, 1.767907, 1.926046, 2.535157],
        [1.696236, 1.805808, 2.508898, 2.40723, 2.585101],
    ]
)
# neuroHarmonize 2.5.2: harmonizationLearn on the other rows, with age, then harmonizationApply.
HELD_OUT = [3, 8, 11]
HARMONISED_HELD_OUT = np.array(
    [
        [0.796952, 1.039156, 1.34654, 1.832413, 2.091676],
        [1.937495, 1.901298, 0.059276, 2.960934, 3.021697],
        [1.85465, 2.17016, 3.340658, 2.440384, 2.728156],
    ]
)


def test_figures_of_neuroharmonize() -> None:
    covariates = np.column_stack([AGE, GROUP])
    found = Combat.fit(METRICS, SITES, covariates).apply(METRICS, SITES, covariates)
    np.testing.assert_allclose(found, HARMONISED, atol=1e-4)


def test_figures_of_neuroharmonize_for_held_out_participants() -> None:
    training = np.ones(12, bool)
    training[HELD_OUT] = False
    age = AGE[:, None]
    expected = HARMONISED_HELD_OUT
    fitted = Combat.fit(METRICS[training], SITES[training], age[training])
    found = fitted.apply(METRICS[HELD_OUT], SITES[HELD_OUT], age[HELD_OUT])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # The same fit, with the participants named; what the others have does not matter to it.
    others = np.where(training[:, None], METRICS, 1e6)
    found = Combat.fit(others, SITES, age, training).apply(METRICS, SITES, age)[HELD_OUT]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def study(
    seed: int, n: int = 150, n_metrics: int = 20
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three sites that shift and stretch all metrics; patients have 0.8 more of the first."""
    rng = np.random.default_rng(seed)
    sites, patient = np.arange(n) % 3, (np.arange(n) // 3 % 2).astype(float)
    values = rng.standard_normal((n, n_metrics))
    values = np.array([0, 1.0, -0.7])[sites, None] + np.array([1, 1.8, 0.6])[sites, None] * values
    values[:, 0] += 0.8 * patient
    return values, np.array(["a", "b", "c"])[sites], patient[:, None]


def site_p(values: np.ndarray, sites: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """p of a difference between sites in mean and in spread, of each metric."""
    groups = [values[sites == site] for site in np.unique(sites)]
    spread = [stats.levene(*metric).pvalue for metric in zip(*(g.T for g in groups), strict=True)]
    return stats.f_oneway(*groups).pvalue, np.array(spread)


def test_sites_vanish_and_groups_stay() -> None:
    values, sites, patient = study(0)
    mean_p, spread_p = site_p(values, sites)
    assert (mean_p < 0.01).all()
    assert (spread_p < 0.01).all()
    harmonised = Combat.fit(values, sites, patient).apply(values, sites, patient)
    mean_p, spread_p = site_p(harmonised, sites)
    assert (mean_p > 0.05).all()
    assert (spread_p > 0.05).all()
    is_patient = patient[:, 0] == 1
    difference = harmonised[is_patient].mean(axis=0) - harmonised[~is_patient].mean(axis=0)
    assert difference[0] == pytest.approx(0.8, abs=3 * np.sqrt(4 / 150) * 1.2)
    assert stats.ttest_ind(harmonised[is_patient], harmonised[~is_patient]).pvalue[0] < 0.001


def test_held_out_participants_show_no_sites() -> None:
    """Fitted without them. 40 tests: 5 % err, and more than 7 in fewer than 1 of 1000 times."""
    values, sites, patient = study(1, n=300)
    training = np.arange(300) < 150
    fitted = Combat.fit(values[training], sites[training], patient[training])
    harmonised = fitted.apply(values[~training], sites[~training], patient[~training])
    before = np.concatenate(site_p(values[~training], sites[~training]))
    after = np.concatenate(site_p(harmonised, sites[~training]))
    assert (before < 0.05).all()
    assert (after < 0.05).sum() <= 7


def test_fitted_to_controls_a_site_with_more_patients_keeps_their_difference() -> None:
    rng = np.random.default_rng(2)
    sites = np.repeat(["a", "b"], 100)
    patient = np.r_[np.arange(100) % 5 == 0, np.arange(100) % 5 != 0]
    values = rng.standard_normal((200, 8)) + 2.0 * patient[:, None] + (sites == "b")[:, None]

    def difference(reference: np.ndarray | None) -> float:
        found = Combat.fit(values, sites, reference=reference).apply(values, sites)
        return float((found[patient].mean(axis=0) - found[~patient].mean(axis=0)).mean())

    assert difference(~patient) == pytest.approx(2.0, abs=0.2)
    # Patients and site are the same to a fit that does not know of patients.
    assert difference(None) < 1.5


def test_a_pool_borrows_only_from_itself() -> None:
    values, sites, patient = study(3, n=30)
    alone = Combat.fit(values[:, :5], sites, patient)
    rest = 100 + 5 * np.random.default_rng(0).standard_normal((30, 15))
    pooled = Combat.fit(
        np.hstack([values[:, :5], rest]), sites, patient, pools=["own"] * 5 + ["rest"] * 15
    )
    np.testing.assert_allclose(pooled.shift[:, :5], alone.shift)
    np.testing.assert_allclose(pooled.factor[:, :5], alone.factor)
    together = Combat.fit(np.hstack([values[:, :5], rest]), sites, patient)
    assert np.abs(together.shift[:, :5] - alone.shift).max() > 0.01


def test_a_metric_alone_gets_the_mean_and_spread_of_all_sites() -> None:
    values, sites, _ = study(4, n_metrics=1)
    found = Combat.fit(values, sites).apply(values, sites)[:, 0]
    of_site = [found[sites == site] for site in "abc"]
    np.testing.assert_allclose([x.mean() for x in of_site], values.mean())
    np.testing.assert_allclose([x.std() for x in of_site], of_site[0].std())


def test_participants_without_a_metric_do_not_count_for_it() -> None:
    values, sites, patient = study(5, n=60)
    known = np.arange(60) % 7 != 0
    with_gaps = np.where(known[:, None], values, np.nan)
    found = Combat.fit(with_gaps, sites, patient).apply(with_gaps, sites, patient)
    assert (np.isnan(found) == np.isnan(with_gaps)).all()
    without = Combat.fit(values[known], sites[known], patient[known])
    expected = without.apply(values[known], sites[known], patient[known])
    np.testing.assert_allclose(found[known], expected)


def test_what_cannot_be_estimated_is_left_as_it_is() -> None:
    values, sites, patient = study(6, n=30)
    values[:, 1] = 4.0
    values[sites == "b", 2] = np.nan
    values[:, 3] = (sites == "a") + 0.1 * patient[:, 0]
    fitted = Combat.fit(values, sites, patient)
    assert np.flatnonzero(~fitted.harmonised).tolist() == [1, 2, 3]
    found = fitted.apply(values, sites, patient)
    np.testing.assert_array_equal(found[:, 1:4], values[:, 1:4])
    assert np.isfinite(np.delete(found, 2, axis=1)).all()


def test_a_metric_that_is_zero_for_a_whole_site_stays_finite() -> None:
    values, sites, patient = study(7, n=30)
    values[sites == "c", 4] = 0
    assert np.isfinite(Combat.fit(values, sites, patient).apply(values, sites, patient)).all()
    alone = values[:, [4]]
    assert np.isfinite(Combat.fit(alone, sites).apply(alone, sites)).all()


def test_sites_and_groups_that_are_the_same_are_refused() -> None:
    values, sites, patient = study(8, n=30)
    with pytest.raises(InputError, match="diagnosis follows from the sites"):
        Combat.fit(
            values, sites, pd.DataFrame({"age": AGE.repeat(3)[:30], "diagnosis": sites == "a"})
        )
    with pytest.raises(InputError, match="number 2 follows from"):
        Combat.fit(values, sites, np.hstack([patient, 1 - patient]))


def test_clear_errors() -> None:
    values, sites, patient = study(9, n=30)
    fitted = Combat.fit(values, sites, patient)
    other = np.where(sites == "a", "elsewhere", sites)
    with pytest.raises(InputError, match="site elsewhere is not among"):
        fitted.apply(values, other, patient)
    with pytest.raises(InputError, match="20 metrics and 1 covariates, asked for 20 and 0"):
        fitted.apply(values, sites)
    with pytest.raises(InputError, match="only a"):
        Combat.fit(values, ["a"] * 30)
    with pytest.raises(InputError, match="one participant only at small"):
        Combat.fit(values, ["small", *sites[1:]])
    with pytest.raises(InputError, match="1 participants have no site"):
        Combat.fit(values, [None, *sites[1:]])
    with pytest.raises(InputError, match="lack the covariate number 1"):
        Combat.fit(values, sites, np.where(np.arange(30)[:, None] == 3, np.nan, patient))
