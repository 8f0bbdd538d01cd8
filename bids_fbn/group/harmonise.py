"""ComBat: what a site does to the mean and the spread of every metric is taken out.

The model of Johnson, Li & Rabinovic 2007 (Biostatistics 8:118), as Fortin et al. 2018 (NeuroImage
167:104) use it for imaging: a metric is its grand mean, plus what the covariates do, plus a shift
and a factor of the site. A site's shifts of several metrics inform one another (parametric
empirical Bayes): what few participants make uncertain is drawn towards what the others say.

Sums of metrics are not kept: harmonised probabilities of a row need not add up to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bids_fbn.errors import InputError

__all__ = ["Combat"]

_SMALLEST_SITE = 2  # participants: one has no spread
_CONVERGED = 1e-6  # change of an estimate, in standard deviations
_MOST_ITERATIONS = 1000  # some ten are usual


@dataclass(frozen=True, eq=False)
class Combat:
    """What the sites do to F metrics, and how to undo it; made by :meth:`fit`.

    Parameters
    ----------
    sites : tuple of str
        S sites.
    grand_mean : ndarray (F,)
        Mean over the sites, weighted by their participants, at covariates of 0.
    slopes : ndarray (k, F)
        What the covariates do.
    deviation : ndarray (F,)
        Standard deviation within sites, in the metric's units.
    shift : ndarray (S, F)
        Of a site, in standard deviations.
    factor : ndarray (S, F)
        Of a site's variance.
    harmonised : ndarray (F,) of bool
        Metrics that :meth:`apply` changes. The others are left as they are: those that do not
        vary, and those with too few values, fewer than two at some site or no more than the model
        has coefficients.
    """

    sites: tuple[str, ...]
    grand_mean: np.ndarray
    slopes: np.ndarray
    deviation: np.ndarray
    shift: np.ndarray
    factor: np.ndarray
    harmonised: np.ndarray

    @classmethod
    def fit(
        cls,
        values: np.ndarray | pd.DataFrame,
        sites: Any,
        covariates: np.ndarray | pd.DataFrame | None = None,
        reference: np.ndarray | None = None,
        pools: Any = None,
    ) -> Combat:
        """Estimate what the sites do.

        To predict something from harmonised metrics, fit on the participants of the training
        folds alone, and apply to the held-out ones.

        Parameters
        ----------
        values : (n, F)
            NaN where a participant lacks a metric; each metric is estimated from those who have
            it.
        sites : (n,) of str
        covariates : (n, k), optional
            Numbers whose effects are kept; categories as 0 and 1. A difference that is not named
            here is taken out as far as sites differ in it.
        reference : (n,) of bool, optional
            Participants to estimate from, such as the controls; default: all. What sets them apart
            from the others is no covariate then: it does not vary among them.
        pools : (F,), optional
            Metrics of the same label inform one another; default: all do. Best is a pool for each
            measure, since sites change some measures and leave others alone. A metric alone in
            its pool is estimated by itself.

        Raises
        ------
        InputError
            A participant without a site or a covariate; fewer than two sites; a site with one
            participant; covariates that the sites determine, or that determine one another.
        """
        data, site_names, design, names = _checked(values, sites, covariates)
        if reference is not None:
            used = np.asarray(reference, dtype=bool)
            data, site_names, design = data[used], site_names[used], design[used]
        known_sites, site_of = np.unique(site_names, return_inverse=True)
        member = np.eye(len(known_sites))[site_of]
        _check_design(known_sites, member, design, names)

        n_sites, n_metrics = len(known_sites), data.shape[1]
        whole = np.hstack([member, design])
        grand_mean, slopes = np.zeros(n_metrics), np.zeros((design.shape[1], n_metrics))
        deviation, harmonised = np.ones(n_metrics), np.zeros(n_metrics, dtype=bool)
        for metric in range(n_metrics):
            known = np.isfinite(data[:, metric])
            model, y = whole[known], data[known, metric]
            per_site = member[known].sum(axis=0)
            if per_site.min() < _SMALLEST_SITE or len(y) <= model.shape[1]:
                continue
            if np.ptp(y) == 0 or np.linalg.matrix_rank(model) < model.shape[1]:
                continue
            coefficients = np.linalg.lstsq(model, y, rcond=None)[0]
            spread = np.sqrt(np.mean((y - model @ coefficients) ** 2))
            # The model explains all of it: rounding is what is left.
            if spread <= 1e-10 * np.ptp(y):
                continue
            grand_mean[metric] = per_site / len(y) @ coefficients[:n_sites]
            slopes[:, metric], deviation[metric] = coefficients[n_sites:], spread
            harmonised[metric] = True

        z = (data - grand_mean - design @ slopes) / deviation
        shift, factor = np.zeros((n_sites, n_metrics)), np.ones((n_sites, n_metrics))
        labels = np.zeros(n_metrics, int) if pools is None else pd.factorize(np.asarray(pools))[0]
        for label in np.unique(labels[harmonised]):
            pool = np.flatnonzero(harmonised & (labels == label))
            for site in range(n_sites):
                at_site = z[np.ix_(site_of == site, pool)]
                shift[site, pool], factor[site, pool] = _posterior(at_site)
        return cls(
            sites=tuple(known_sites.tolist()),
            grand_mean=grand_mean,
            slopes=slopes,
            deviation=deviation,
            shift=shift,
            factor=factor,
            harmonised=harmonised,
        )

    def apply(
        self,
        values: np.ndarray | pd.DataFrame,
        sites: Any,
        covariates: np.ndarray | pd.DataFrame | None = None,
    ) -> np.ndarray:
        """Values as they would be at a site like all of them together, (n, F).

        Parameters
        ----------
        values, sites, covariates
            As in :meth:`fit`; of any participants of the same sites.

        Raises
        ------
        InputError
            A site that the fit has not seen; other metrics or covariates than in the fit.
        """
        data, site_names, design, _ = _checked(values, sites, covariates)
        expected = (len(self.grand_mean), len(self.slopes))
        if (data.shape[1], design.shape[1]) != expected:
            raise InputError(
                f"harmonisation: fitted to {expected[0]} metrics and {expected[1]} covariates, "
                f"asked for {data.shape[1]} and {design.shape[1]}"
            )
        unknown = sorted(set(site_names) - set(self.sites))
        if unknown:
            raise InputError(
                f"harmonisation: site {', '.join(unknown)} is not among those it was fitted to "
                f"({', '.join(self.sites)}); fit it with participants of every site"
            )
        site_of = np.searchsorted(self.sites, site_names)
        expected_values = self.grand_mean + design @ self.slopes
        residuals = data - expected_values - self.deviation * self.shift[site_of]
        harmonised = expected_values + residuals / np.sqrt(self.factor[site_of])
        return np.where(self.harmonised, harmonised, data)


def _checked(
    values: np.ndarray | pd.DataFrame, sites: Any, covariates: np.ndarray | pd.DataFrame | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Metrics (n, F), sites (n,), covariates (n, k) and the names of these."""
    data = np.asarray(values, dtype=float)
    raw_sites = np.asarray(sites, dtype=object)
    design = np.zeros((len(data), 0)) if covariates is None else np.asarray(covariates, float)
    if data.ndim != 2 or design.ndim != 2 or not len(data) == len(raw_sites) == len(design):
        raise InputError(
            f"harmonisation: metrics {data.shape}, sites {raw_sites.shape} and covariates "
            f"{design.shape} must have a row for each participant"
        )
    names = (
        [str(name) for name in covariates.columns]
        if isinstance(covariates, pd.DataFrame)
        else [f"number {number + 1}" for number in range(design.shape[1])]
    )
    faults = []
    if pd.isna(raw_sites).any():
        faults.append(f"{int(pd.isna(raw_sites).sum())} participants have no site")
    gaps = np.isnan(design).any(axis=0)
    lacking = [name for name, gap in zip(names, gaps, strict=True) if gap]
    if lacking:
        faults.append(f"participants lack the covariate {', '.join(lacking)}")
    if faults:
        raise InputError(*(f"harmonisation: {fault}; leave them out" for fault in faults))
    return data, raw_sites.astype(str), design, names


def _check_design(
    sites: np.ndarray, member: np.ndarray, covariates: np.ndarray, names: list[str]
) -> None:
    """Raise an InputError where sites and covariates cannot be told apart."""
    if len(sites) < 2:
        raise InputError(
            "harmonisation: needs two sites or more, there is "
            + (f"only {sites[0]}" if len(sites) else "none")
        )
    small = sites[member.sum(axis=0) < _SMALLEST_SITE]
    if len(small):
        raise InputError(
            f"harmonisation: one participant only at {', '.join(small)}, whose spread is not "
            "known; leave the site out or merge it with another"
        )
    # Columns of one size, so that an age in days does not make the rest look like rounding.
    scaled = covariates / np.maximum(np.abs(covariates).max(axis=0, initial=0), 1e-300)
    rank = len(sites)
    for number, name in enumerate(names):
        with_it = int(np.linalg.matrix_rank(np.hstack([member, scaled[:, : number + 1]])))
        if with_it == rank:
            raise InputError(
                f"harmonisation: the covariate {name} follows from the sites and the other "
                "covariates, so that its effect and theirs cannot be told apart; leave it out, or "
                "the sites in which it does not vary"
            )
        rank = with_it


def _posterior(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shift and factor of the variance of one site, (F,) each, from z (n, F) with NaN.

    Johnson et al., sections 3.2 and A.1: the prior of the shifts is normal, that of the variances
    inverse gamma, both with the moments that the metrics' own estimates have. The posterior of
    either depends on the other: they are found in turn.
    """
    n = np.isfinite(z).sum(axis=0)
    own_shift, own_variance = np.nanmean(z, axis=0), np.nanvar(z, axis=0, ddof=1)
    # Where nothing varies the site says nothing about its factor (as in neuroCombat).
    own_variance[own_variance == 0] = 1.0
    if z.shape[1] == 1:
        return own_shift, own_variance
    mean_shift, shift_variance = own_shift.mean(), own_shift.var(ddof=1)
    m, s2 = own_variance.mean(), own_variance.var(ddof=1)
    shift, variance = own_shift, own_variance
    for _ in range(_MOST_ITERATIONS):
        before = shift, variance
        shift = (n * shift_variance * own_shift + variance * mean_shift) / (
            n * shift_variance + variance
        )
        squares = np.nansum((z - shift) ** 2, axis=0)
        # (squares / 2 + b) / (n / 2 + a − 1) of the inverse gamma with a = (2 s² + m²) / s² and
        # b = (m s² + m³) / s², times s², so that metrics of the same variance do no harm.
        variance = (s2 * (squares / 2 + m) + m**3) / (s2 * (n / 2 + 1) + m**2)
        change = max(np.abs(shift - before[0]).max(), np.abs(variance - before[1]).max())
        if change < _CONVERGED:
            break
    return shift, variance
