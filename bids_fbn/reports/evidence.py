"""What stands and what does not: the evidence table of a model, read back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bids_fbn.nulls.pvalues import ALPHA, claim_of_networks, lowest_p
from bids_fbn.reports.results import ModelResults, Table

__all__ = [
    "NETWORK_BADGES",
    "Evidence",
    "count_surrogates",
    "evidence_of",
    "verdicts_of",
]

# Verdict → what is said of a network.
NETWORK_BADGES = {
    "stands": "beyond chance",
    "chance": "not more than chance",
    "undecided": "too few surrogates to tell",
    "untested": "not tested",
}

# What one null leaves nothing of does not stand, whatever another says.
_WORST_FIRST = ("chance", "untested", "undecided", "stands")


@dataclass(frozen=True, eq=False)
class Evidence:
    """The evidence table of a model in a run.

    Parameters
    ----------
    table : Table
        See :mod:`bids_fbn.evidence`.
    networks : tuple of str
        P networks, in the order of the template set.
    window : int or None
        Volumes; None for a model that takes the whole run at once.
    found_here : bool
        The maps whose coherence would be tested were found in this participant, among others.
    """

    table: Table
    networks: tuple[str, ...]
    window: int | None
    found_here: bool = False

    def rows(self, claim: str, measure: str | None = None) -> pd.DataFrame:
        """The rows of a claim, perhaps of one measure."""
        data = self.table.data
        chosen = data["claim"] == claim
        return data[chosen if measure is None else chosen & (data["measure"] == measure)]

    def of_networks(self, measure: str, claim: str = "network") -> pd.DataFrame:
        """A measure of each network, (P rows); NaN for those without one."""
        return self.rows(claim, measure).set_index("network").reindex(list(self.networks))

    @property
    def whole(self) -> pd.DataFrame:
        """Measures of change over time of the run as a whole, by name."""
        rows = self.rows("dynamics")
        rows = rows[rows["network"] == "all"].set_index("measure")
        # With single volumes the step before is also the nearest that shares none.
        repeated = ["iou_previous"] if self.window == 1 else []
        return rows.drop(index=repeated, errors="ignore").loc[lambda r: r["observed"].notna()]

    @property
    def claim_of_networks(self) -> str:
        """The measure that networks stand by."""
        return claim_of_networks(self.table.data)

    @property
    def networks_beside(self) -> dict[str, pd.DataFrame]:
        """Null → the measure that networks stand by beside that null, (P rows) by network."""
        rows = self.rows("network", self.claim_of_networks)
        return {
            str(null): of_null.set_index("network").reindex(list(self.networks))
            for null, of_null in rows.groupby("null", sort=False)
        }

    @property
    def verdicts(self) -> dict[str, str]:
        """Network → what is said of it by all its nulls, see :func:`verdicts_of`."""
        by_null = [verdicts_of(rows) for rows in self.networks_beside.values()]
        return {
            name: min((of_null[p] for of_null in by_null), key=_WORST_FIRST.index)
            for p, name in enumerate(self.networks)
        }

    @property
    def not_standing(self) -> dict[str, str]:
        """Network of which the null leaves nothing → why, in words."""
        return {
            name: NETWORK_BADGES[verdict]
            for name, verdict in self.verdicts.items()
            if verdict != "stands"
        }

    @property
    def n_networks(self) -> int:
        """Networks beyond chance."""
        return sum(verdict == "stands" for verdict in self.verdicts.values())

    @property
    def tests_change(self) -> bool:
        """Whether anything says if change over time is more than that of a static run."""
        return bool(self.whole["p_corrected"].notna().any())

    @property
    def n_changes(self) -> int:
        """Measures of change over time, of the run as a whole, that differ from a static run."""
        return int((self.whole["p_corrected"] < ALPHA).sum())

    @property
    def of_fit(self) -> dict[str, float]:
        """Measures of fit, by name."""
        rows = self.rows("fit")
        return dict(zip(rows["measure"], rows["observed"].astype(float), strict=True))

    def surrogates(self) -> dict[str, int]:
        """Claim of the table → surrogates, the most that any of its measures has."""
        counts = self.table.data.groupby("claim")["n_surrogates"].max()
        return {str(claim): int(n) if n == n else 0 for claim, n in counts.items()}


def evidence_of(results: ModelResults) -> Evidence | None:
    """The evidence of a model in a run; None where none was written."""
    if not results.path("evidence").is_file():
        return None
    window = results.facts.get("Window")
    return Evidence(
        results.table("evidence"),
        results.networks,
        window and int(window),
        bool(results.facts.get("MapsFoundInThisParticipant")),
    )


def count_surrogates(rows: pd.DataFrame) -> int:
    """Surrogates of rows of the table, the most that any has; 0 for none."""
    most = rows["n_surrogates"].max()
    return 0 if pd.isna(most) else int(most)


def verdicts_of(rows: pd.DataFrame) -> list[str]:
    """What the corrected p of each row comes to.

    ``stands``, ``chance``, ``undecided`` (as low as so few surrogates allow, which is not below
    the level), or ``untested``.
    """
    lowest = lowest_p(rows)
    verdicts = []
    for p in rows["p_corrected"].astype(float):
        if np.isnan(p):
            verdicts.append("untested")
        elif p < ALPHA:
            verdicts.append("stands")
        else:
            verdicts.append("undecided" if p <= lowest + 1e-9 else "chance")
    return verdicts
