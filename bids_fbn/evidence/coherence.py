"""Whether networks that a model is told of are in a run at all: do their voxels go together?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bids_fbn.evidence.method import Method
from bids_fbn.evidence.surrogates import over_surrogates
from bids_fbn.evidence.table import null_values, row
from bids_fbn.networks.courses import Coherence
from bids_fbn.networks.tissue import grey_quarters
from bids_fbn.nulls.pvalues import corrected_p, p_of
from bids_fbn.nulls.series import surrogate_runs
from bids_fbn.nulls.turned import turned_null, turning
from bids_fbn.signal.signals import Signals

__all__ = ["coherence_evidence"]


def coherence_evidence(
    method: Method,
    signals: Signals,
    n_surrogates: int,
    n_surrogate_maps: int,
    store: Path | None = None,
) -> list[dict[str, Any]]:
    """How far the courses agree that two halves of each network's voxels give.

    For models that are told of their networks: their maps overlap with the templates in anything,
    noise included, so that overlap is no evidence of them. See
    :class:`~bids_fbn.networks.courses.Coherence`. A network stands by what all nulls allow:

    ``turned``, ``mirrored``
        the same maps elsewhere in the same brain, in two ways
        (:func:`~bids_fbn.nulls.turned.turning`): any smooth map is coherent there, and in some
        places more than in others.
    ``noise``
        the same maps in runs of noise as smooth as the run and cleaned like it, with the signals
        of its tissues: what is compact is coherent in anything smooth, and what lies in grey
        matter in any run whose cleaning has left a signal there.

    Parameters
    ----------
    method : Method
        Of a model with ``course_maps``.
    signals : Signals
    n_surrogates : int
        Runs of noise.
    n_surrogate_maps : int
        Turns of the networks to elsewhere in the brain, half of them of either kind.
    store : Path, optional
        File that keeps what is found in each run of noise as it comes; taken up again.
    """
    import torch

    maps = method.model.course_maps
    assert maps is not None
    covered = signals.covered
    places = signals.grid.coordinates[covered]

    def coherence_in(run: Signals) -> Coherence:
        return Coherence(np.asarray(run.data)[:, covered], places)

    here = coherence_in(signals)
    # What has no template is not tested: nor is it corrected for.
    asked = np.isin(method.model.networks, method.templates.networks)
    statistic = np.where(asked, here.of(maps[:, covered]), np.nan)
    nulls = {
        **turned_null(
            turning(maps, signals.grid, covered, grey_quarters(signals.grid)),
            here.of,
            n_surrogate_maps,
            method.seed_of(signals),
            torch.get_num_threads(),
        ),
        "noise": over_surrogates(
            surrogate_runs(signals, "noise", n_surrogates, method.seed_of(signals)),
            n_surrogates,
            lambda run: coherence_in(run).of(maps[:, covered]),
            store,
            f"{signals.name}, {method.model.name}, coherence",
        ),
    }
    rows = []
    for kind, values in nulls.items():
        null = values.reshape(-1, len(statistic))
        columns = {
            "observed": np.tanh(statistic),
            "p": p_of(statistic, null),
            "p_corrected": corrected_p(statistic, null, one_unit=True),
        }
        by_template = {name: method.by_template(of[None])[0] for name, of in columns.items()}
        r = np.tanh(method.by_template(null))
        rows += [
            row(
                "network",
                "coherence",
                name,
                **{column: values[k] for column, values in by_template.items()},
                **null_values(r[:, k], kind),
            )
            for k, name in enumerate(method.templates.networks)
        ]
    return rows
