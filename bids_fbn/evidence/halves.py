"""What was chosen in one half of a run, scored in the other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bids_fbn.errors import RunError
from bids_fbn.evidence.method import Method
from bids_fbn.evidence.table import row
from bids_fbn.networks.budget import HalfScores, halves, held_out_variance, score_halves
from bids_fbn.signal.signals import Signals

__all__ = ["HalfEvidence", "half_evidence"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class HalfEvidence:
    """Both ways between the halves of a run; P networks.

    Parameters
    ----------
    scores : HalfScores
    held_out_variance : float
        Share of the variance of a half that the maps of the other explain.
    n_maps : int
        Maps of a half, the smaller of the two numbers.
    """

    scores: HalfScores
    held_out_variance: float
    n_maps: int

    def rows(self, networks: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of the table."""
        measures = {
            "iou_other_half": self.scores.iou,
            "r_other_half": self.scores.r,
            "iou_selected": self.scores.select_iou,
            "reproducibility": self.scores.reproducibility,
        }
        rows = [
            row("network", measure, name, observed=values[k])
            for measure, values in measures.items()
            for k, name in enumerate(networks)
        ]
        rows.append(row("fit", "budget", observed=self.n_maps))
        return [*rows, row("fit", "held_out_variance", observed=self.held_out_variance)]


def half_evidence(method: Method, signals: Signals) -> HalfEvidence | None:
    """Choose in one half of the run, score in the other, and the other way round.

    Parameters
    ----------
    method : Method
        Its model for each half is that of the run, or of the half if the method says `refit`.
    signals : Signals

    Returns
    -------
    HalfEvidence
        None where a half has too few volumes for the model.
    """
    parts = [signals.stretch(rows) for rows in halves(signals.n_kept)]
    try:
        first, second = (method.budget_maps(method.on(part), part) for part in parts)
    except RunError as error:
        logger.info("%s: no scores between halves: %s", signals.name, error)
        return None
    if not len(first) or not len(second):
        return None
    covered = signals.covered
    first_volumes, second_volumes = (np.asarray(part.data)[:, covered] for part in parts)
    return HalfEvidence(
        score_halves(
            (first, second),
            method.templates.maps[:, covered],
            method.templates.supports[:, covered],
            method.rule,
        ),
        held_out_variance((first, second), (first_volumes, second_volumes)),
        min(len(first), len(second)),
    )
