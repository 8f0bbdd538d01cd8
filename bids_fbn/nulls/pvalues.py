"""p-values from surrogates: alone, and corrected by the maximum over all that are tested."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ALPHA", "claim_of_networks", "corrected_p", "lowest_p", "network_p", "p_of"]

# Corrected p below which something is taken to stand.
ALPHA = 0.05


def p_of(statistic: np.ndarray, null: np.ndarray, *, two_sided: bool = False) -> np.ndarray:
    """Share of the surrogates, the observed one among them, that reach the statistic.

    Parameters
    ----------
    statistic : ndarray (P,)
        NaN where there is none; its p is NaN.
    null : ndarray (S, P)
        NaN in surrogates that have none: they do not count.
    two_sided : bool
        By the distance from the mean of all, rather than by height.

    Returns
    -------
    ndarray (P,)
    """
    together = _standardised(statistic, null, two_sided)
    known = np.isfinite(together)
    reached = (np.where(known, together, -np.inf) >= together[0] - _ROUNDING).sum(axis=0)
    count = known.sum(axis=0)
    return np.where(known[0] & (count > 1), reached / np.maximum(count, 1), np.nan)


def corrected_p(
    statistic: np.ndarray,
    null: np.ndarray,
    *,
    two_sided: bool = False,
    one_unit: bool = False,
) -> np.ndarray:
    """Share of the surrogates in which any of the P statistics stands out as much.

    What is compared differs in mean and spread under the null, so each is standardised over the
    surrogates, the observed one among them: then all are treated alike (Westfall and Young 1993,
    Resampling-based multiple testing).

    Of n values with the observed one, none is more than sqrt(n - 1) of their spreads above their
    mean. A surrogate reaches that by however little it exceeds others that are all alike, and no
    statistic could then stand. So where all have one unit, none is divided by less than the median
    of the spreads: of all n, so that the observed one is still treated as the surrogates are.

    Parameters
    ----------
    statistic, null, two_sided
        See :func:`p_of`.
    one_unit : bool
        The P statistics are of one unit, as the IoU of P networks are.
    """
    together = _standardised(statistic, null, two_sided, one_unit)
    tested = np.isfinite(together[0])
    highest = np.where(np.isfinite(together[:, tested]), together[:, tested], -np.inf).max(
        axis=1, initial=-np.inf, keepdims=True
    )
    p = (highest >= together[:1] - _ROUNDING).mean(axis=0)
    return np.where(tested & (len(null) > 0), p, np.nan)


def lowest_p(evidence: pd.DataFrame) -> float:
    """The lowest p that the surrogates of rows of :mod:`bids_fbn.evidence` allow, 1 without any.

    Of several nulls the highest.
    """
    rows = evidence[evidence["n_surrogates"] > 0]
    fewest = rows.groupby("null")["n_surrogates"].max().min() if len(rows) else 0
    return 1 / (1 + float(fewest))


# Of standardised values that are equal but for the order in which they were summed.
_ROUNDING = 1e-9


def _standardised(
    statistic: np.ndarray, null: np.ndarray, two_sided: bool, one_unit: bool = False
) -> np.ndarray:
    together = np.vstack([statistic, null]).astype(float)
    known = np.isfinite(together)
    n = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, together, 0).sum(axis=0) / n
    centred = together - mean
    spread = np.sqrt(np.square(np.where(known, centred, 0)).sum(axis=0) / n)
    if one_unit and known[0].any():
        spread = np.maximum(spread, np.median(spread[known[0]]))
    standardised = centred / np.where(spread > 0, spread, 1)
    return np.abs(standardised) if two_sided else standardised


def claim_of_networks(evidence: pd.DataFrame) -> str:
    """The measure that networks stand by: ``coherence`` where there is one, else ``iou_search``.

    Parameters
    ----------
    evidence : DataFrame
        Rows of :mod:`bids_fbn.evidence`.
    """
    return "coherence" if (evidence["measure"] == "coherence").any() else "iou_search"


def network_p(evidence: pd.DataFrame, column: str = "p_corrected") -> pd.Series:
    """p of each network, by name: the highest of those by different nulls, NaN if one is NaN.

    Parameters
    ----------
    evidence : DataFrame
        Rows of :mod:`bids_fbn.evidence`.
    column : {"p", "p_corrected"}
    """
    rows = evidence[evidence["measure"] == claim_of_networks(evidence)]
    return rows.groupby("network", sort=False)[column].agg(lambda p: p.max(skipna=False))
