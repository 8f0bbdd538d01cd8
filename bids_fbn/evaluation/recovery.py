"""How much of the truth about a simulated run a method has recovered, in single numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bids_fbn.evaluation.truth import (
    MapMatch,
    Truth,
    course_recovery,
    dynamics_error,
    in_true_labels,
    match_maps,
    r_by_name,
    state_agreement,
    states_at_steps,
)
from bids_fbn.networks.states import NO_STATE, summarize_states
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.nulls.pvalues import ALPHA, network_p
from bids_fbn.signal.signals import Signals

if TYPE_CHECKING:
    from bids_fbn.evaluation.assess import Assessment

__all__ = ["networks_on", "recovery"]


def networks_on(truth: Truth) -> np.ndarray:
    """Networks that a run has, (P,) of bool: with states, those that are strongest at some time.

    A short run does not see all of them, and no method can find one that is never on.
    """
    n_networks = len(truth.networks)
    if truth.is_static or not truth.has_networks:
        return np.full(n_networks, truth.has_networks)
    return np.isin(np.arange(n_networks), truth.bold_states)


def recovery(
    assessment: Assessment, truth: Truth, signals: Signals, templates: TemplateSet
) -> dict[str, float]:
    """Hold what a method found in a run against the truth.

    Parameters
    ----------
    assessment : Assessment
    truth : Truth
    signals : Signals
    templates : TemplateSet
        Those of the assessment; the true networks have their names.

    Returns
    -------
    dict
        Measure → value, as :data:`~bids_fbn.evaluation.table.MEASURES` describes them; NaN where
        one does not apply.
    """
    on = networks_on(truth)
    # Of noise: what the method makes of networks that are not there.
    scored = np.flatnonzero(on if on.any() else np.ones_like(on))
    names = [truth.networks[k] for k in scored]
    covered = signals.covered
    true_maps = truth.maps[scored][:, covered]
    found_maps = assessment.networks.maps[:, covered]
    match = match_maps(true_maps, found_maps)
    return {
        "map_r": float(match.r.mean()),
        "map_r_by_name": float(r_by_name(true_maps, names, found_maps, templates.networks).mean()),
        "course_r": _course_r(assessment, truth.courses[:, scored], match, signals),
        **_states(assessment, truth, signals, templates),
        **_claims(assessment.evidence, truth, on),
        **_overlaps(assessment, names, templates),
        "seconds": assessment.seconds,
    }


def _course_r(
    assessment: Assessment, true_courses: np.ndarray, match: MapMatch, signals: Signals
) -> float:
    # A temporal part that needs a window says nothing of the first and last volumes.
    known = np.isfinite(assessment.courses).all(axis=1)
    r = course_recovery(
        true_courses, assessment.courses[known], match, np.asarray(signals.kept)[known]
    )
    return float(r.mean())


def _states(
    assessment: Assessment, truth: Truth, signals: Signals, templates: TemplateSet
) -> dict[str, float]:
    steps = assessment.steps
    measures = (
        "state_accuracy",
        "adjusted_rand",
        "occupancy_error",
        "dwell_error",
        "dwell_bias",
        "switching_bias",
    )
    if truth.is_static or not truth.has_networks or assessment.model.window is None:
        return dict.fromkeys(measures, np.nan)
    n_networks = len(truth.networks)
    true_of_found = np.array(
        [truth.networks.index(n) if n in truth.networks else -1 for n in templates.networks]
    )
    found = in_true_labels(assessment.states, true_of_found, n_networks)
    at_steps = states_at_steps(truth.bold_states, steps, np.asarray(signals.kept))
    agreement = state_agreement(at_steps, found, steps.valid)
    seconds = truth.repetition_time
    error = dynamics_error(truth.bold_states, found, n_networks, seconds, steps.seconds)
    true = summarize_states(truth.bold_states, truth.bold_states != NO_STATE, n_networks, seconds)
    own = summarize_states(found, steps.valid, n_networks + len(true_of_found), steps.seconds)
    values = (
        agreement.accuracy,
        agreement.adjusted_rand,
        error.occupancy,
        error.dwell,
        error.dwell_bias,
        own.switching_rate - true.switching_rate,
    )
    return dict(zip(measures, values, strict=True))


def _claims(evidence: pd.DataFrame, truth: Truth, on: np.ndarray) -> dict[str, float]:
    """What is claimed at ALPHA, right and wrong."""
    p = network_p(evidence)
    change = evidence[(evidence["claim"] == "dynamics") & (evidence["network"] == "all")]
    smallest = float(change["p_corrected"].min())
    tested = bool(p.notna().any())
    claimed = p.index[p < ALPHA]
    present = {name for name, is_on in zip(truth.networks, on, strict=True) if is_on}
    # One that is simulated, and never the strongest in this run, is neither right nor wrong.
    possible = set(truth.networks) if truth.has_networks else set()
    n_false = float((~claimed.isin(possible)).sum()) if tested else np.nan
    has_dynamics = truth.has_networks and not truth.is_static
    dynamics_tested = not has_dynamics and np.isfinite(smallest)
    return {
        "networks_on": float(on.sum()),
        "networks_found": float(claimed.isin(present).sum()) if tested else np.nan,
        "networks_false": n_false,
        "false_network": np.nan if truth.has_networks or not tested else float(n_false > 0),
        "dynamics_p": smallest,
        "false_dynamics": float(smallest < ALPHA) if dynamics_tested else np.nan,
    }


def _overlaps(
    assessment: Assessment, names: list[str], templates: TemplateSet
) -> dict[str, float]:
    """Figures that need no truth but for which networks to look at."""
    evidence = assessment.evidence
    which = [templates.networks.index(name) for name in names]

    def mean_of(measure: str, networks: list[str]) -> float:
        rows = (evidence["measure"] == measure) & evidence["network"].isin(networks)
        return float(evidence.loc[rows, "observed"].astype(float).mean())

    return {
        "iou_best_of_all": float(assessment.networks.best_of_all[which].mean()),
        "iou_search": mean_of("iou_search", names),
        "iou_other_half": mean_of("iou_other_half", names),
        "held_out_variance": mean_of("held_out_variance", ["all"]),
    }
