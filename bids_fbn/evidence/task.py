"""Courses of the networks beside the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_fbn.evidence.table import row
from bids_fbn.networks.dynamics import RunNetworks
from bids_fbn.nulls.task import task_coupling
from bids_fbn.signal.signals import Signals
from bids_fbn.signal.windows import Steps

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["task_evidence"]

# 95 % of a normal distribution, in standard deviations.
_TWO_SIDED = 1.96
# Of a series that is held against a task, at least.
_LEAST_VALUES = 10


def task_evidence(
    signals: Signals,
    networks: RunNetworks,
    steps: Steps,
    courses: np.ndarray,
    names: Sequence[str],
    events: pd.DataFrame,
    seed: int,
    n_surrogates: int = 2000,
) -> list[dict[str, Any]]:
    """Courses of the networks, and their IoU and amplitude over time, beside the task.

    Parameters
    ----------
    signals : Signals
    networks : RunNetworks
    steps : Steps
    courses : ndarray (T_kept, P)
    names : sequence of str
        P networks.
    events : DataFrame
        From :func:`~bids_fbn.nulls.task.read_events`.
    seed : int
    n_surrogates : int
        Courses with random phases.
    """
    seconds = signals.repetition_time
    frame_times = np.arange(signals.n_volumes) * seconds
    series = {
        "course": (courses, frame_times[signals.kept], 0.0),
        "iou": (networks.iou, steps.onset, steps.window * seconds),
    }
    if networks.amplitude is not None:
        series["amplitude"] = (networks.amplitude, steps.onset, steps.window * seconds)
    rows = []
    for measure, (values, onset, window) in series.items():
        # A model that has learned some of the networks has no courses of the others.
        known = np.isfinite(values).any(axis=0)
        if len(values) < _LEAST_VALUES or not known.any():
            continue
        table = task_coupling(
            values[:, known],
            onset,
            [name for name, has in zip(names, known, strict=True) if has],
            events,
            frame_times,
            window=window,
            n_surrogates=n_surrogates,
            seed=seed,
        )
        rows += [
            row(
                "task",
                f"r_{measure}",
                str(found["network"]),
                condition=found["condition"],
                observed=found["r"],
                null_mean=0.0,
                null_low=-_TWO_SIDED * found["null_sd"],
                null_high=_TWO_SIDED * found["null_sd"],
                p=found["p"],
                p_corrected=found["p_corrected"],
                n_surrogates=n_surrogates,
                null="phase",
            )
            for found in table.to_dict("records")
        ]
    return rows
