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

    A network stands by what all nulls allow:

    ``turned``, ``mirrored``
        the templates elsewhere in the brain, in two ways, searched among the same maps
        (:func:`~bids_fbn.nulls.spatial.elsewhere_null`). Not for models that learn networks by
        name: those see what they know in anything, and nothing is searched.
    ``fields``
        in their place, if asked for: random maps as smooth as the candidates
        (:func:`~bids_fbn.nulls.spatial.random_maps_null`). They are as likely in one place as in
        another; candidates are not: those of a brain lie in its cortex, and a network that pads
        with zeros sees the edge of the brain in anything.
    ``noise``
        runs of noise as smooth as the run and cleaned like it, with the signals of its tissues, to
        which the method is applied in the same way. Whatever it does to noise is in there; but
        maps of a real run are smoother than those.

    Parameters
    ----------
    method : Method
    signals : Signals
    n_surrogates : int
        Runs of noise.
    n_surrogate_maps : int
        Turns of the templates, half of them of either kind, or sets of random maps.
    store : Path, optional
        File that keeps what is found in each run of noise as it comes; taken up again.
    """
    supports = method.templates.supports[:, signals.covered]
    matcher = Matcher(supports, method.rule, np.ones(supports.shape[1], dtype=bool))

    def searched(maps: np.ndarray) -> np.ndarray:
        return search_statistic(matcher.match(maps).iou)

    maps = method.budget_maps(method.model, signals)
    statistic = searched(maps)
    nulls: dict[str, np.ndarray] = {}
    if not method.model.networks:
        nulls |= _searched_elsewhere(method, signals, maps, n_surrogate_maps)
    nulls["noise"] = over_surrogates(
        surrogate_runs(signals, "noise", n_surrogates, method.seed_of(signals)),
        n_surrogates,
        lambda run: searched(method.budget_maps(method.on(run), run)),
        store,
        f"{signals.name}, {method.model.name}, search",
    ).reshape(n_surrogates, len(statistic))
    rows = []
    for kind, null in nulls.items():
        p, corrected = p_of(statistic, null), corrected_p(statistic, null, one_unit=True)
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


def _searched_elsewhere(
    method: Method, signals: Signals, maps: np.ndarray, n_surrogates: int
) -> dict[str, np.ndarray]:
    """Null → IoU (S, P) of the search among maps (N, covered) where there is nothing to find."""
    import torch

    candidates = np.zeros((len(maps), signals.grid.n_voxels), dtype=np.float32)
    candidates[:, signals.covered] = maps
    searching = (
        candidates,
        method.templates,
        signals.grid,
        signals.covered,
        method.rule,
        n_surrogates,
        method.seed_of(signals),
        torch.get_num_threads(),
    )
    if method.surrogate_maps == "fields":
        return {"fields": random_maps_null(*searching)}
    return elsewhere_null(*searching)
