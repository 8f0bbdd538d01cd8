"""Permutation tests of a comparison, for tables of features and for maps.

Residuals are permuted between participants under the model without the tested regressor (Freedman
and Lane 1983, J Bus Econ Stat 1:292; Winkler et al. 2014, NeuroImage 92:381); differences between
two sessions change signs. All tests are two-sided unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from nilearn.mass_univariate import permuted_ols
from scipy.special import gammaln, nctdtrinc
from scipy.stats import beta, false_discovery_control, norm

from bids_fbn.evidence.table import ALL
from bids_fbn.group.design import FEWEST_DF, Comparison

__all__ = ["compare_features", "compare_voxels", "families"]

_N_PERMUTATIONS = 5000
_CONFIDENCE = 0.95
_FEWEST_IN_GROUP = 2
# What is left of a variable, relative to its length, when there is nothing but rounding.
_NOTHING = 1e-10
# Arrangements that are the same but for rounding are ties, in double and in single precision.
_TIE, _TIE_SINGLE = 1e-9, 1e-5
# Permutations at a time; bounds memory.
_AT_A_TIME = 500
_TRANSITIONS = "transition_probability"
# Probabilities are made of them; they grow with the length of the run.
_NOT_TESTED = ("transition_count",)
_EFFECT = {"groups": "hedges_g", "covariate": "partial_r", "paired": "d_z"}
_NUMBERS = ("estimate", "effect_size", "ci_low", "ci_high", "t", "p", "p_corrected")


@dataclass(frozen=True)
class _Set:
    """Features that have values for the same participants, and their model."""

    kept: np.ndarray  # (n,) bool, of the participants of the comparison
    positions: np.ndarray  # (F,) columns of the features
    outcomes: np.ndarray  # (m, F) residuals given the confounds, of length 1
    tested: np.ndarray  # (m,) the same of the tested regressor
    basis: np.ndarray  # (m, k) orthonormal, of the confounds
    slopes: np.ndarray  # (F,) in units of the feature
    length: float  # of the residuals of the tested regressor
    df: int

    def of_orders(self, orders: np.ndarray) -> np.ndarray:
        """Squared partial correlations (P, F), rows of the design in orders (P, m)."""
        explained = np.square(self.tested[orders] @ self.outcomes)
        left = np.ones_like(explained)
        for column in self.basis.T:
            left -= np.square(column[orders] @ self.outcomes)
        # Nothing is left where permuted outcomes are a combination of the confounds.
        return np.divide(explained, left, out=np.zeros_like(left), where=left > _NOTHING)

    def of_signs(self, signs: np.ndarray) -> np.ndarray:
        """The same of outcomes with signs (P, m), without confounds."""
        return np.square((self.tested * signs) @ self.outcomes)


def families(values: pd.DataFrame) -> dict[str, list[tuple[str, str]]]:
    """Features that are corrected for together.

    Each measure of networks is a family; all measures that belong to no single network ("all")
    are one; transition probabilities are one. Staying in a network is not a transition, and counts
    of transitions are in none.

    Parameters
    ----------
    values : DataFrame
        Columns (measure, network).

    Returns
    -------
    dict
        Columns by name of the family, in the order of the table.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for measure, network in values.columns:
        origin, _, destination = network.partition(" > ")
        if measure in _NOT_TESTED or (measure == _TRANSITIONS and origin == destination):
            continue
        found.setdefault(ALL if network == ALL else measure, []).append((measure, network))
    return found


def compare_features(
    values: pd.DataFrame,
    comparison: Comparison,
    *,
    correction: Literal["max", "fdr"],
    n_permutations: int = _N_PERMUTATIONS,
    seed: int = 0,
) -> pd.DataFrame:
    """Test a comparison in every feature of a family.

    A feature is tested on the participants who have a value of it. Features with the same
    participants share a model. Permutations of different sets of participants belong together:
    one permutation of all is drawn, and a smaller set gets the one that it induces, which skips
    those left out on the way around its cycles. It is uniform over the permutations of the set,
    and so p of each feature is as if it were tested alone. The maximum is taken over the features
    of all sets, on the scale of parametric p where degrees of freedom differ between them
    (Westfall and Young 1993, Resampling-based multiple testing).

    Parameters
    ----------
    values : DataFrame
        Index ``participant_id``, columns (measure, network). Participants of the comparison who
        are not in it have no values.
    comparison : Comparison
    correction : {"max", "fdr"}
        Family-wise error by the distribution of the maximum, or false discovery rate by Benjamini
        and Hochberg (1995, J R Stat Soc B 57:289).
    n_permutations : int
        The least p is 1 / (n_permutations + 1).
    seed : int

    Returns
    -------
    DataFrame
        A row for each feature: ``measure``, ``network``; ``n`` participants in its model;
        ``estimate``, in the units of the feature (per unit of the covariate); ``effect``, which
        is "hedges_g" of groups (adjusted difference over residual standard deviation, with the
        small-sample factor of Hedges 1981, J Educ Stat 6:107), "partial_r" of covariates, "d_z"
        of sessions (mean over standard deviation of differences); ``effect_size``, and the 95 %
        interval ``ci_low`` to ``ci_high`` of what it estimates; ``t``; ``p``; ``p_corrected``.
        NaN for features with fewer than 3 residual degrees of freedom, fewer than 2 participants
        in one of the groups, or without variance.
    """
    measured = values.reindex(list(comparison.participants)).to_numpy(float)
    measured = np.where(np.isfinite(measured), measured, np.nan)
    table = pd.DataFrame(values.columns.to_list(), columns=["measure", "network"])
    table["n"] = np.isfinite(measured).sum(axis=0)
    table["effect"] = _EFFECT[comparison.kind]
    numbers = pd.DataFrame(np.nan, index=table.index, columns=list(_NUMBERS))

    sets = list(_sets(measured, comparison))
    for one in sets:
        columns = ["estimate", "effect_size", "ci_low", "ci_high", "t"]
        numbers.loc[one.positions, columns] = _effects(one, comparison.kind)
    if sets:
        p, p_max = _permutation_p(sets, comparison, n_permutations, seed)
        positions = np.concatenate([one.positions for one in sets])
        numbers.loc[positions, "p"] = p
        numbers.loc[positions, "p_corrected"] = (
            p_max if correction == "max" else false_discovery_control(p)
        )
    table = pd.concat([table, numbers], axis=1)
    return table[["measure", "network", "n", "estimate", "effect", *_NUMBERS[1:]]]


def compare_voxels(
    maps: np.ndarray,
    comparison: Comparison,
    n_permutations: int,
    seed: int,
    two_sided: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Test a comparison voxel by voxel, with p corrected by the maximum over voxels.

    Parameters
    ----------
    maps : ndarray (n, V) float32
        In the order of ``comparison.participants``; differences between sessions if paired.
    comparison : Comparison
    n_permutations : int
    seed : int
    two_sided : bool
        Else only positive t counts.

    Returns
    -------
    t, p_corrected : ndarray (V,)
        NaN where a participant has no value, and where all have the same; a perfect fit has no
        t, but p.
    """
    t, p = np.full((2, maps.shape[1]), np.nan)
    known = np.isfinite(maps).all(axis=0) & (np.ptp(maps, axis=0) > 0)
    if not known.any() or _too_few(comparison, np.ones(len(maps), bool)):
        return t, p
    # nilearn (0.14) changes signs instead of permuting if the confounds have an intercept: it is
    # left to nilearn. The rest is centred, so it spans the same.
    rest = comparison.confounds[:, 1:]
    with np.errstate(divide="ignore", invalid="ignore"):  # perfect fits
        found = permuted_ols(
            comparison.tested,
            np.asarray(maps[:, known], dtype=np.float32),
            confounding_vars=_basis(rest - rest.mean(axis=0)) if rest.shape[1] else None,
            model_intercept=comparison.kind != "paired",
            n_perm=n_permutations,
            two_sided_test=two_sided,
            random_state=seed,
            n_jobs=1,
            output_type="dict",
        )
    height = found["t"][0]
    t[known] = np.where(np.isfinite(height), height, np.nan)
    # nilearn's own p takes arrangements that differ by rounding for smaller ones.
    null = np.sort(found["h0_max_t"][0])
    height = np.abs(height) if two_sided else height
    reached = len(null) - np.searchsorted(null, height * (1 - _TIE_SINGLE * np.sign(height)))
    p[known] = (1 + reached) / (1 + len(null))
    return t, p


def _too_few(comparison: Comparison, kept: np.ndarray) -> bool:
    """Whether these participants do not suffice, whatever their values."""
    basis = _basis(comparison.confounds[kept])
    if kept.sum() - basis.shape[1] - 1 < FEWEST_DF:
        return True
    if comparison.kind != "groups":
        return False
    groups = np.array(comparison.groups)[kept]
    return any((groups == level).sum() < _FEWEST_IN_GROUP for level in comparison.levels)


def _sets(measured: np.ndarray, comparison: Comparison) -> Iterator[_Set]:
    """Features by who has values; those that cannot be tested are in none."""
    patterns, inverse = np.unique(np.isfinite(measured), axis=1, return_inverse=True)
    for i, kept in enumerate(patterns.T):
        if _too_few(comparison, kept):
            continue
        basis = _basis(comparison.confounds[kept])
        tested, adds = _residuals(comparison.tested[kept], basis)
        if not adds.all():
            continue
        length = float(np.linalg.norm(tested))
        positions = np.flatnonzero(inverse.ravel() == i)
        outcomes, varies = _residuals(measured[np.ix_(kept, positions)], basis)
        if varies.any():
            positions, outcomes = positions[varies], outcomes[:, varies]
            unit = outcomes / np.linalg.norm(outcomes, axis=0)
            yield _Set(
                kept=kept,
                positions=positions,
                outcomes=unit,
                tested=tested[:, 0] / length,
                basis=basis,
                slopes=tested[:, 0] @ outcomes / length**2,
                length=length,
                df=int(kept.sum()) - basis.shape[1] - 1,
            )


def _basis(confounds: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span the same, (n, k); also if some are collinear."""
    if not confounds.shape[1]:
        return confounds
    length = np.linalg.norm(confounds, axis=0)
    left, singular, _ = np.linalg.svd(
        confounds / np.where(length > 0, length, 1), full_matrices=False
    )
    return np.ascontiguousarray(left[:, singular > _NOTHING])


def _residuals(columns: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Without what the basis explains, and whether more than rounding is left."""
    left = columns - basis @ (basis.T @ columns)
    return left, np.linalg.norm(left, axis=0) > _NOTHING * np.linalg.norm(columns, axis=0)


def _effects(one: _Set, kind: str) -> np.ndarray:
    """(F, 5): estimate, effect size, its interval, t. A perfect fit has an estimate only."""
    r = one.tested @ one.outcomes
    left = 1 - r**2
    with np.errstate(divide="ignore"):
        t = np.where(left > _NOTHING, r * np.sqrt(one.df / left.clip(0)), np.nan)
    tail = (1 + _CONFIDENCE) / 2
    if kind == "covariate":
        size = np.where(np.isfinite(t), r, np.nan)
        # Variance 1 / (n − k − 3) given k covariates (Fisher 1924, Metron 3:329).
        half = norm.ppf(tail) / np.sqrt(one.df - 1)
        z = np.arctanh(size)
        low, high = np.tanh(z - half), np.tanh(z + half)
    else:
        # Of the noncentrality of t, in units of the effect (Cumming and Finch 2001, Educ
        # Psychol Meas 61:532).
        unit = 1 / one.length
        size = t * unit
        low, high = (nctdtrinc(one.df, share, t) * unit for share in (tail, 1 - tail))
        if kind == "groups":
            half_df = one.df / 2
            size *= np.exp(gammaln(half_df) - gammaln(half_df - 0.5)) / np.sqrt(half_df)
    return np.column_stack([one.slopes, size, low, high, t])


def _permutation_p(
    sets: list[_Set], comparison: Comparison, n_permutations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two-sided p of each feature of the sets, by itself and by the maximum."""
    rng = np.random.default_rng(seed)
    n = len(comparison.participants)
    observed = [np.square(one.tested @ one.outcomes) * (1 - _TIE) for one in sets]
    same_df = len({one.df for one in sets}) == 1
    heights = [
        seen if same_df else _unlikeliness(seen, one.df)
        for one, seen in zip(sets, observed, strict=True)
    ]
    reached = [np.ones(len(one.positions)) for one in sets]
    reached_by_max = [np.ones(len(one.positions)) for one in sets]
    for first in range(0, n_permutations, _AT_A_TIME):
        some = min(_AT_A_TIME, n_permutations - first)
        if comparison.kind == "paired":
            signs = rng.choice([-1.0, 1.0], size=(some, n))
        else:
            orders = rng.permuted(np.tile(np.arange(n), (some, 1)), axis=1)
        maximum = np.zeros(some)
        for one, seen, count in zip(sets, observed, reached, strict=True):
            if comparison.kind == "paired":
                null = one.of_signs(signs[:, one.kept])
            else:
                null = one.of_orders(_induced(orders, one.kept))
            count += (null >= seen).sum(axis=0)
            highest = null.max(axis=1)
            np.maximum(
                maximum, highest if same_df else _unlikeliness(highest, one.df), out=maximum
            )
        for height, count in zip(heights, reached_by_max, strict=True):
            count += (maximum[:, None] >= height).sum(axis=0)
    total = n_permutations + 1
    return np.concatenate(reached) / total, np.concatenate(reached_by_max) / total


def _unlikeliness(r_squared: np.ndarray, df: int) -> np.ndarray:
    """−log of the parametric p, by which statistics of different degrees of freedom compare."""
    return -beta.logsf(r_squared.clip(0, 1), 0.5, df / 2)


def _induced(orders: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Permutations (P, m) of those kept that permutations (P, n) of all induce."""
    steps = orders[:, kept]
    row, column = np.nonzero(~kept[steps])
    while len(row):
        further = orders[row, steps[row, column]]
        steps[row, column] = further
        outside = ~kept[further]
        row, column = row[outside], column[outside]
    return (np.cumsum(kept) - 1)[steps]
