"""Measures of change over time, beside those of a run without dynamics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bids_fbn.evidence.method import Method
from bids_fbn.evidence.surrogates import over_surrogates
from bids_fbn.evidence.table import ALL, null_values, row
from bids_fbn.networks.dynamics import RunNetworks, mean_over_steps
from bids_fbn.networks.states import NO_STATE, StateRule, summarize_states
from bids_fbn.nulls.pvalues import corrected_p, p_of
from bids_fbn.nulls.series import surrogate_runs
from bids_fbn.signal.signals import Signals
from bids_fbn.signal.windows import Steps

__all__ = ["dynamic_evidence", "dynamic_measures"]


def dynamic_measures(
    networks: RunNetworks, steps: Steps, rule: StateRule, names: Sequence[str]
) -> dict[tuple[str, str], float]:
    """All that is said of change over time, as (measure, network or ``all``) → value."""
    states = networks.states(rule)
    summary = summarize_states(states, steps.valid, len(names), steps.seconds)
    visits = summary.visits.sum()
    time = float((states != NO_STATE).sum()) * steps.seconds
    series = {"iou_previous": mean_over_steps(networks.iou_previous)}
    # Where windows do not overlap the step before is a window apart: the same number.
    if steps.window_apart > 1:
        series["iou_window_apart"] = mean_over_steps(networks.iou_window_apart)
    series["iou_variation"] = _spread_over_time(networks.iou)
    if networks.amplitude is not None:
        series["amplitude_variation"] = _spread_over_time(networks.amplitude)
    whole = {
        **{measure: _mean(values) for measure, values in series.items()},
        "switching_rate": summary.switching_rate,
        "dwell_mean": time / visits if visits else np.nan,
        "occupancy_entropy": summary.occupancy_entropy,
        "transition_entropy": summary.transition_entropy,
        "states_visited": float((summary.visits > 0).sum()),
        "without_state": summary.without_state,
    }
    of_networks = {
        (measure, name): float(values[k])
        for measure, values in series.items()
        for k, name in enumerate(names)
    }
    return {**{(measure, ALL): float(value) for measure, value in whole.items()}, **of_networks}


def _spread_over_time(values: np.ndarray) -> np.ndarray:
    squares = (values - mean_over_steps(values)) ** 2
    return np.asarray(np.sqrt(mean_over_steps(squares)))


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan


def dynamic_evidence(
    method: Method,
    signals: Signals,
    networks: RunNetworks,
    n_surrogates: int,
    kind: Literal["phase", "var"],
    store: Path | None = None,
) -> list[dict[str, Any]]:
    """Measures of change over time beside those of runs whose correlations are static.

    Parameters
    ----------
    method : Method
    signals : Signals
    networks : RunNetworks
        Of the run itself.
    n_surrogates : int
        None are made for a method that :attr:`~Method.tests_change` says no to.
    kind : {"phase", "var"}
        See :func:`~bids_fbn.nulls.series.surrogate_runs`.
    store : Path, optional
        File that keeps the measures of each surrogate as they come; taken up again.

    Returns
    -------
    list of rows
        p is two-sided. Corrected by the maximum: over the measures of the run as a whole, and for
        a measure of each network over the networks.
    """
    names = method.templates.networks
    steps = method.model.steps(signals, method.stride)
    if len(steps) < 2:
        return []
    observed = dynamic_measures(networks, steps, method.state_rule, names)
    if not method.tests_change:
        n_surrogates = 0

    def measured(surrogate: Signals) -> list[float]:
        found, steps = method.networks(method.on(surrogate), surrogate)
        return list(dynamic_measures(found, steps, method.state_rule, names).values())

    null = over_surrogates(
        surrogate_runs(signals, kind, n_surrogates, method.seed_of(signals)),
        n_surrogates,
        measured,
        store,
        f"{signals.name}, {method.model.name}, change over time",
    ).reshape(n_surrogates, len(observed))
    return _dynamic_rows(observed, null, kind)


def _dynamic_rows(
    observed: Mapping[tuple[str, str], float], null: np.ndarray, kind: str
) -> list[dict[str, Any]]:
    keys = list(observed)
    values = np.array([observed[key] for key in keys])
    # What is compared with each other for the correction.
    families: dict[str, list[int]] = {}
    for k, (measure, network) in enumerate(keys):
        families.setdefault(ALL if network == ALL else measure, []).append(k)
    p = p_of(values, null, two_sided=True)
    corrected = np.full(len(keys), np.nan)
    for members in families.values():
        corrected[members] = corrected_p(values[members], null[:, members], two_sided=True)
    return [
        row(
            "dynamics",
            measure,
            network,
            observed=values[k],
            p=p[k],
            p_corrected=corrected[k],
            **null_values(null[:, k], kind),
        )
        for k, (measure, network) in enumerate(keys)
    ]
