"""The table of evidence: one long form for every claim."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["ALL", "COLUMNS", "null_values", "row"]

COLUMNS = (
    "claim",
    "measure",
    "network",
    "condition",
    "observed",
    "null_mean",
    "null_low",
    "null_high",
    "p",
    "p_corrected",
    "n_surrogates",
    "null",
)
ALL = "all"
# Percentiles of a null that are shown.
_LOW, _HIGH = 2.5, 97.5


def row(claim: str, measure: str, network: str = ALL, **values: Any) -> dict[str, Any]:
    """A row of the table; what is not given is NaN."""
    return {
        **dict.fromkeys(COLUMNS, np.nan),
        "claim": claim,
        "measure": measure,
        "network": network,
        **values,
    }


def null_values(null: np.ndarray, name: str) -> dict[str, Any]:
    """What the table says of the values under a null, (S,)."""
    known = null[np.isfinite(null)]
    if not len(known):
        return {"n_surrogates": 0, "null": name}
    low, high = np.percentile(known, [_LOW, _HIGH])
    return {
        "null_mean": known.mean(),
        "null_low": low,
        "null_high": high,
        "n_surrogates": len(known),
        "null": name,
    }
