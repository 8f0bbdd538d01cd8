"""Tables in the form in which the papers of the models have theirs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from bids_fbn.bids.writing import Columns
from bids_fbn.nulls.pvalues import ALPHA

__all__ = ["METHODS", "SITES", "change_by_site", "method_table"]

METHODS: Columns = {
    "network": {"Description": "Network of the template set"},
    "model": {"Description": "Model as in desc-"},
    "n_participants": {"Description": "Participants; their runs are averaged first"},
    "iou_best_of_all_mean": {
        "Description": "Mean over participants of the highest IoU of any candidate with the "
        "template, as published (Liu et al. 2024, STCA, Table 1): a search, not an estimate"
    },
    "iou_best_of_all_sd": {"Description": "Standard deviation over participants of the same"},
    "iou_search_mean": {"Description": "Mean IoU among an equal budget of maps"},
    "iou_search_sd": {"Description": "Standard deviation of the same"},
    "iou_other_half_mean": {
        "Description": "Mean IoU in the half of the run in which the map was not chosen"
    },
    "iou_other_half_sd": {"Description": "Standard deviation of the same"},
    "r_mean": {
        "Description": "Mean correlation of the FBN map with the template (Liu et al. 2024, "
        "SCAAE, Figure 5)"
    },
    "r_sd": {"Description": "Standard deviation of the same"},
    "share_beyond_chance": {
        "Description": "Share of the runs in which the network stands, by a corrected p < "
        f"{ALPHA:g}; n/a where nothing was tested"
    },
}
SITES: Columns = {
    "site": {"Description": "Site, `all` for all of them, `unknown` where none is given"},
    "model": {"Description": "Model as in desc-"},
    "n_participants": {"Description": "Participants; their runs and networks are averaged first"},
    "iou_previous_mean": {
        "Description": "Mean IoU of a network's map with that of the step before: gradual change "
        "(Liu et al. 2024, SCAAE, Table 2)"
    },
    "iou_previous_sd": {"Description": "Standard deviation over participants of the same"},
    "iou_window_apart_mean": {
        "Description": "The same with the last step that shares no volume: what is left of it "
        "when windows do not overlap"
    },
    "iou_window_apart_sd": {"Description": "Standard deviation over participants of the same"},
}
_OF_METHODS = ("iou_best_of_all", "iou_search", "iou_other_half", "r")
_OF_SITES = {"iou_previous": "iou_previous_mean", "iou_window_apart": "iou_window_apart_mean"}


def method_table(long: pd.DataFrame) -> pd.DataFrame:
    """Overlap of each network with its template, by model.

    Where a model was trained on some of the runs and not on others, the others speak for it.

    Parameters
    ----------
    long : DataFrame
        See :mod:`bids_fbn.group.tables`; of one kind of run.

    Returns
    -------
    DataFrame
        With the columns :data:`METHODS`.
    """
    rows = []
    for model, of_model in _by_model(not_trained_on(long)):
        means = _participant_means(of_model, _OF_METHODS)
        p = of_model[of_model["measure"] == "p_corrected"]
        for network in dict.fromkeys(of_model.loc[of_model["measure"] == "r", "network"]):
            here = means[means["network"] == network]
            p_here = p.loc[p["network"] == network, "value"].dropna()
            row = {
                "network": network,
                "model": model,
                "n_participants": here["participant_id"].nunique(),
                "share_beyond_chance": (p_here < ALPHA).mean() if len(p_here) else np.nan,
            }
            for measure in _OF_METHODS:
                row |= _mean_and_sd(measure, here.loc[here["measure"] == measure, "value"])
            rows.append(row)
    return pd.DataFrame(rows, columns=list(METHODS))


def change_by_site(long: pd.DataFrame, sites: pd.Series | None = None) -> pd.DataFrame:
    """How alike the maps of successive steps are, by model and site.

    Parameters
    ----------
    long : DataFrame
    sites : Series, optional
        By ``participant_id``.

    Returns
    -------
    DataFrame
        With the columns :data:`SITES`; no row for models that look at the run as a whole.
    """
    rows = []
    for model, of_model in _by_model(not_trained_on(long)):
        means = _participant_means(of_model, tuple(_OF_SITES.values()))
        of_people = means.groupby(["participant_id", "measure"])["value"].mean().reset_index()
        if not of_people["value"].notna().any():
            continue
        places = pd.Series("all", index=of_people.index)
        parts = [of_people.assign(site=places)]
        if sites is not None:
            known = of_people["participant_id"].map(sites.astype(object)).fillna("unknown")
            parts.append(of_people.assign(site=known.astype(str)))
        for site, here in pd.concat(parts).groupby("site", sort=False):
            row = {
                "site": site,
                "model": model,
                "n_participants": here["participant_id"].nunique(),
            }
            for name, measure in _OF_SITES.items():
                row |= _mean_and_sd(name, here.loc[here["measure"] == measure, "value"])
            rows.append(row)
    return pd.DataFrame(rows, columns=list(SITES))


def not_trained_on(long: pd.DataFrame) -> pd.DataFrame:
    """Without runs that a model has learned from, if it has not learned from all."""
    fresh = long["trained_on"] == 0
    shared = set(long.loc[fresh, "model"].dropna())
    return long[fresh | ~long["model"].isin(shared)]


def _by_model(long: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for model, of_model in long[long["model"].notna()].groupby("model", observed=True):
        yield str(model), of_model


def _participant_means(long: pd.DataFrame, measures: tuple[str, ...]) -> pd.DataFrame:
    here = long[long["measure"].isin(measures)].astype(
        {"participant_id": str, "measure": str, "network": str}
    )
    keys = ["participant_id", "measure", "network"]
    return here.groupby(keys, sort=False)["value"].mean().reset_index()


def _mean_and_sd(name: str, values: pd.Series) -> dict[str, float]:
    known = values.dropna()
    return {
        f"{name}_mean": float(known.mean()) if len(known) else np.nan,
        f"{name}_sd": float(known.std()) if len(known) > 1 else np.nan,
    }
