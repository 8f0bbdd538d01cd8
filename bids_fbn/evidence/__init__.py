"""What speaks for the networks that a model has found in a run, and what does not.

========================  ====================================================================
:func:`network_evidence`  whether the networks are there: the overlap with the templates, beside
                          what the same search finds where there is nothing; or, of models that
                          are told of them, whether their voxels go together
:func:`half_evidence`     what was chosen in one half of the run, scored in the other
:func:`dynamic_evidence`  measures of change over time, beside those of a run without dynamics
:func:`task_evidence`     courses beside the task
========================  ====================================================================

Each gives rows of one table, :data:`COLUMNS`; :func:`weigh` all of them.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bids_fbn.evidence.change import dynamic_evidence, dynamic_measures
from bids_fbn.evidence.coherence import coherence_evidence
from bids_fbn.evidence.halves import HalfEvidence, half_evidence
from bids_fbn.evidence.method import Method, state_rule, support_rule
from bids_fbn.evidence.search import search_evidence
from bids_fbn.evidence.table import ALL, COLUMNS
from bids_fbn.evidence.task import task_evidence

if TYPE_CHECKING:
    import numpy as np

    from bids_fbn.config import NullOptions
    from bids_fbn.networks.dynamics import RunNetworks
    from bids_fbn.signal.signals import Signals

logger = logging.getLogger(__name__)

__all__ = [
    "ALL",
    "COLUMNS",
    "HalfEvidence",
    "Method",
    "dynamic_evidence",
    "dynamic_measures",
    "half_evidence",
    "network_evidence",
    "state_rule",
    "support_rule",
    "task_evidence",
    "weigh",
]


def network_evidence(
    method: Method,
    signals: Signals,
    n_surrogates: int,
    n_surrogate_maps: int,
    store: Path | None = None,
) -> list[dict[str, Any]]:
    """Whether the networks are there.

    Parameters
    ----------
    method : Method
    signals : Signals
    n_surrogates : int
        Runs of noise.
    n_surrogate_maps : int
        Turns of the networks to elsewhere in the brain, or sets of random maps.
    store : Path, optional
        File that keeps what is found in each run of noise as it comes; taken up again.

    Returns
    -------
    list of dict
        Rows of :func:`search_evidence`; for a model with ``course_maps`` those of
        :func:`coherence_evidence`, which its networks stand by, and the overlap without a null.
        Without any for a participant in whom its maps were found.
    """
    if method.model.course_maps is None:
        return search_evidence(method, signals, n_surrogates, n_surrogate_maps, store)
    if method.model.found_in(signals):
        logger.warning(
            "%s: %s was trained on this participant too, so that its components go together there "
            "in any case: not tested; train it on others",
            signals.name,
            method.model.name,
        )
        n_surrogates = n_surrogate_maps = 0
    coherence = coherence_evidence(method, signals, n_surrogates, n_surrogate_maps, store)
    # What is told of its networks overlaps with them in anything: there is nothing to test.
    return [*coherence, *search_evidence(method, signals, 0, 0)]


def weigh(
    method: Method,
    signals: Signals,
    networks: RunNetworks,
    courses: np.ndarray,
    asked: NullOptions,
    *,
    events: pd.DataFrame | None = None,
    store: Path | None = None,
    refit_halves: bool = False,
) -> pd.DataFrame:
    """All that can be said of the networks of a run.

    Parameters
    ----------
    method : Method
    signals : Signals
    networks : RunNetworks
    courses : ndarray (T_kept, P)
    asked : NullOptions
        How many surrogates, and of which kind.
    events : DataFrame, optional
        From :func:`~bids_fbn.nulls.task.read_events`.
    store : Path, optional
        Folder that keeps what is measured of each surrogate as it comes; taken up again.
    refit_halves : bool
        Train on each half by itself even if that takes long, so that nothing of the other half is
        in its maps.

    Returns
    -------
    DataFrame
        With the columns :data:`COLUMNS`.
    """
    names = method.templates.networks
    of_search, of_change = (store / "search", store / "change") if store else (None, None)
    rows = network_evidence(method, signals, asked.n_surrogates, asked.n_surrogate_maps, of_search)
    half = half_evidence(replace(method, refit=method.refit or refit_halves), signals)
    if half is not None:
        rows += half.rows(names)
    if events is not None:
        steps = method.model.steps(signals, method.stride)
        seed = method.seed_of(signals)
        rows += task_evidence(signals, networks, steps, courses, names, events, seed)
    rows += dynamic_evidence(
        method, signals, networks, asked.n_surrogates, asked.surrogates, of_change
    )
    return pd.DataFrame(rows, columns=list(COLUMNS))
