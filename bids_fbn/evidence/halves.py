"""Models of either half of a run, and what was chosen in one half, scored in the other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_fbn.errors import RunError
from bids_fbn.evidence.method import Method
from bids_fbn.evidence.table import row
from bids_fbn.networks.budget import HalfScores, halves, held_out_variance, score_halves
from bids_fbn.signal.signals import Signals

if TYPE_CHECKING:
    from bids_fbn.models.base import Model

__all__ = ["HalfEvidence", "TrainedHalves", "half_evidence"]

logger = logging.getLogger(__name__)


class TrainedHalves:
    """Models trained on either half of a run, once they are asked for.

    Parameters
    ----------
    method : Method
    signals : Signals
    store : Path, optional
        Folder that keeps how far each is trained, until :meth:`forget`.
    """

    def __init__(self, method: Method, signals: Signals, store: Path | None = None) -> None:
        self._method, self._signals = method, signals
        self._checkpoints = [store and store / f"half-{k}.checkpoint" for k in (1, 2)]

    @cached_property
    def models(self) -> tuple[Model, Model] | None:
        """Of the first half and of the second; None where a half has too few volumes."""
        method, parts = self._method, halves(self._signals.n_kept)
        try:
            first, second = (
                method.create().fit(
                    [self._signals.stretch(rows)], method.compute, method.seed, checkpoint
                )
                for rows, checkpoint in zip(parts, self._checkpoints, strict=True)
            )
        except RunError as error:
            logger.warning("%s: not held against noise: %s", self._signals.name, error)
            return None
        return first, second

    def forget(self) -> None:
        """Remove what was kept of their training."""
        for checkpoint in filter(None, self._checkpoints):
            checkpoint.unlink(missing_ok=True)


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


def half_evidence(
    method: Method, signals: Signals, trained: TrainedHalves | None = None
) -> HalfEvidence | None:
    """Choose in one half of the run, score in the other, and the other way round.

    Parameters
    ----------
    method : Method
        Its model for each half is that of the run, or of the half if the method says `refit`.
    signals : Signals
    trained : TrainedHalves, optional
        Its models instead.

    Returns
    -------
    HalfEvidence
        None where a half has too few volumes for the model.
    """
    parts = [signals.stretch(rows) for rows in halves(signals.n_kept)]
    try:
        own = (trained and trained.models) or [method.on(part) for part in parts]
        first, second = (
            method.budget_maps(model, part) for model, part in zip(own, parts, strict=True)
        )
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
