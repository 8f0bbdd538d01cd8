"""The overlap with the templates, beside what the same search finds where there is nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bids_fbn.evidence.method import Method
from bids_fbn.evidence.surrogates import over_surrogates
from bids_fbn.evidence.table import null_values, row
from bids_fbn.networks.overlap import Matcher
from bids_fbn.nulls.pvalues import corrected_p, p_of
from bids_fbn.nulls.series import surrogate_runs
from bids_fbn.nulls.spatial import elsewhere_null, random_maps_null, search_statistic
from bids_fbn.signal.signals import Signals

__all__ = ["search_evidence"]


def search_evidence(
    method: Method,
    signals: Signals,
    n_surrogates: int,
    n_surrogate_maps: int,
    store: Path | None = None,
) -> list[dict[str, Any]]:
    """Overlap of each template with the map assigned to it among the budget of maps.

    Two nulls, and a network stands by what both of them allow:

    ``turned``
        the templates elsewhere in the brain, searched among the same maps
        (:func:`~bids_fbn.nulls.spatial.elsewhere_null`). Not for models that learn networks by
        name: those see what they know in anything, and nothing is searched.
    ``fields``
        in its place, if asked for: random maps as smooth as the candidates
        (:func:`~bids_fbn.nulls.spatial.random_maps_null`). They are as likely in one place as in
        another; candidates are not: those of a brain lie in its cortex, and a network that pads
        with zeros sees the edge of the brain in anything.
    ``noise``
        runs of noise as smooth as the run and cleaned like it, to which the method is applied in
        the same way. Whatever it does to noise is in there; but maps of a real run are smoother
        than those.

    Parameters
    ----------
    method : Method
    signals : Signals
    n_surrogates : int
        Runs of noise.
    n_surrogate_maps : int
        Turns of the templates, or sets of random maps.
    store : Path, optional
        File that keeps what is found in each run of noise as it comes; taken up again.
    """
    import torch

    maps = method.budget_maps(method.model, signals)
    supports = method.templates.supports[:, signals.covered]
    matcher = Matcher(supports, method.rule, np.ones(supports.shape[1], dtype=bool))
    statistic = search_statistic(matcher.match(maps).iou)
    nulls: dict[str, np.ndarray] = {}
    if not method.model.networks:
        candidates = np.zeros((len(maps), signals.grid.n_voxels), dtype=np.float32)
        candidates[:, signals.covered] = maps
        searching = (
            candidates,
            method.templates,
            signals.grid,
            signals.covered,
            method.rule,
            n_surrogate_maps,
            method.seed_of(signals),
            torch.get_num_threads(),
        )
        elsewhere = method.surrogate_maps == "turned"
        searched_again = elsewhere_null if elsewhere else random_maps_null
        nulls[method.surrogate_maps] = searched_again(*searching)

    def searched(run: Signals) -> np.ndarray:
        return search_statistic(matcher.match(method.budget_maps(method.on(run), run)).iou)

    nulls["noise"] = over_surrogates(
        surrogate_runs(signals, "noise", n_surrogates, method.seed_of(signals)),
        n_surrogates,
        searched,
        store,
        f"{signals.name}, {method.model.name}, search",
    ).reshape(n_surrogates, len(statistic))
    rows = []
    for kind, null in nulls.items():
        p, corrected = p_of(statistic, null), corrected_p(statistic, null)
        rows += [
            row(
                "network",
                "iou_search",
                name,
                observed=statistic[k],
                p=p[k],
                p_corrected=corrected[k],
                **null_values(null[:, k], kind),
            )
            for k, name in enumerate(method.templates.networks)
        ]
    return rows
