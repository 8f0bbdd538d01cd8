from __future__ import annotations

import numpy as np
import pytest

from bids_fbn.nulls.pvalues import corrected_p, p_of


def test_p_counts_the_observed_one_among_the_surrogates() -> None:
    null = np.arange(19.0)[:, None]
    assert p_of(np.array([100.0]), null) == 1 / 20
    assert p_of(np.array([-1.0]), null) == 1
    assert p_of(np.array([18.0]), null) == 2 / 20  # as high as one of them


def test_two_sided() -> None:
    null = np.arange(-9.0, 10)[:, None]
    low, high = (p_of(np.array([x]), null, two_sided=True) for x in (-50.0, 50.0))
    assert low == high == 1 / 20
    assert p_of(np.array([0.0]), null, two_sided=True) == 1


def test_what_is_not_known_does_not_count() -> None:
    null = np.array([[np.nan], [1.0], [2.0], [np.nan]])
    assert p_of(np.array([3.0]), null) == 1 / 3
    assert np.isnan(p_of(np.array([np.nan]), null))
    assert np.isnan(p_of(np.array([3.0]), np.zeros((0, 1))))
    assert np.isnan(corrected_p(np.array([3.0, np.nan]), np.zeros((0, 2)))).all()


def test_correction_puts_all_on_one_scale() -> None:
    rng = np.random.default_rng(0)
    null = rng.standard_normal((999, 5)) * [1, 10, 100, 1, 1] + [0, 5, 50, 0, 0]
    statistic = np.array([6.0, 5.0, 50.0, 0.0, 0.0])
    p = corrected_p(statistic, null)
    assert p[0] == 1 / 1000
    assert (p[1:] > 0.5).all()


def test_a_trifle_in_one_surrogate_hides_nothing() -> None:
    """The IoU of a small network that is .05 in one surrogate, and .04 in all others."""
    rng = np.random.default_rng(0)
    null = rng.normal(0.1, 0.02, (20, 4))
    null[:, 3] = 0.04
    null[7, 3] = 0.05
    statistic = np.array([0.9, 0.6, 0.1, 0.04])
    assert (corrected_p(statistic, null)[:2] == 2 / 21).all()
    p = corrected_p(statistic, null, one_unit=True)
    assert (p[:2] == 1 / 21).all()
    assert (p[2:] > 0.5).all()


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("one_unit", [False, True])
def test_error_rate_over_a_family_is_as_stated(two_sided: bool, one_unit: bool) -> None:
    """20 surrogates: the least p, 1/21, comes up once in 21."""
    rng = np.random.default_rng(1)
    n = 2000
    spreads = np.array([0.1, 0.5, 1, 1, 1, 10])
    reached = [
        (corrected_p(values[0], values[1:], two_sided=two_sided, one_unit=one_unit) < 0.05).any()
        for values in rng.gamma(1.0, size=(n, 21, 6)) * spreads
    ]
    assert abs(np.mean(reached) - 1 / 21) < 3 * np.sqrt(1 / 21 * 20 / 21 / n)
