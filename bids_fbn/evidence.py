"""What speaks for the networks that a model has found in a run, and what does not.

========================  ====================================================================
:func:`search_evidence`   the overlap with the templates, beside what the same search finds
                          where there is nothing
:func:`half_evidence`     what was chosen in one half of the run, scored in the other
:func:`dynamic_evidence`  measures of change over time, beside those of a run without dynamics
:func:`task_evidence`     courses beside the task
========================  ====================================================================

Each gives rows of one table, :data:`COLUMNS`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from bids_fbn.errors import RunError
from bids_fbn.networks.arrays import Array, as_numpy
from bids_fbn.networks.budget import (
    POOL_LIMIT,
    HalfScores,
    collect_pool,
    halves,
    held_out_variance,
    rank_maps,
    score_halves,
)
from bids_fbn.networks.dynamics import RunNetworks, find_networks
from bids_fbn.networks.maps import SupportRule, zscore_maps
from bids_fbn.networks.overlap import Matcher
from bids_fbn.networks.states import NO_STATE, assign_states, summarize_states
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.nulls.pvalues import corrected_p, p_of
from bids_fbn.nulls.series import surrogate_runs
from bids_fbn.nulls.spatial import search_statistic, spatial_null
from bids_fbn.signal.signals import Signals
from bids_fbn.signal.windows import Steps

if TYPE_CHECKING:
    from bids_fbn.models.base import Model
    from bids_fbn.models.compute import Compute

__all__ = [
    "COLUMNS",
    "HalfEvidence",
    "Method",
    "dynamic_evidence",
    "dynamic_measures",
    "half_evidence",
    "search_evidence",
    "task_evidence",
]

logger = logging.getLogger(__name__)

COLUMNS = (
    "claim",
    "measure",
    "network",
    "condition",
    "observed",
    "null_mean",
    "null_low",
    "null_high",
    "p",
    "p_corrected",
    "n_surrogates",
    "null",
)
ALL = "all"
# Percentiles of a null that are shown.
_LOW, _HIGH = 2.5, 97.5
# The same of a normal distribution, in standard deviations.
_TWO_SIDED = 1.96
# Of a series that is held against a task, at least.
_LEAST_VALUES = 10


@dataclass(frozen=True, eq=False)
class Method:
    """A model on a run, and how to do again, on other signals, all that was done.

    Parameters
    ----------
    model : Model
        As it was applied to the run.
    create : callable
        Gives the same model, not yet fitted.
    refit : bool
        Whether other signals get a model of their own; else this one is applied to them.
    compute : Compute
    templates : TemplateSet
    rule : SupportRule
    state_threshold : float
    stride : int
    budget : int
        Maps in an equal budget.
    seed : int
    """

    model: Model
    create: Callable[[], Model]
    refit: bool
    compute: Compute
    templates: TemplateSet
    rule: SupportRule
    state_threshold: float
    stride: int
    budget: int
    seed: int

    def on(self, signals: Signals) -> Model:
        """The model for other signals."""
        if not self.refit:
            return self.model
        return self.create().fit([signals], self.compute, self.seed)

    def networks(self, model: Model, signals: Signals) -> tuple[RunNetworks, Steps]:
        """Networks of the signals, as the app finds them."""
        steps = model.steps(signals, self.stride)
        found = find_networks(
            model.maps(signals, self.compute, self.stride),
            steps,
            self.templates,
            signals.covered,
            self.rule,
            self.state_threshold,
        )
        return found, steps

    def budget_maps(self, model: Model, signals: Signals) -> np.ndarray:
        """The maps that are held against templates, (N, covered), in the rule's units.

        Those on which the model spends its budget; of a model that knows its networks, the mean
        map of each over time: there is nothing to choose.
        """
        stride = self.stride * max(1, self._n_candidates(model, signals) // POOL_LIMIT)
        steps, covered = model.steps(signals, stride), signals.covered
        candidates = model.maps(signals, self.compute, stride)
        if model.networks:
            maps = _mean_maps(candidates, covered, model.n_candidates)
        else:
            everything = slice(0, signals.n_kept)
            pool = collect_pool(candidates, steps.start, steps.window, everything, covered)
            volumes = np.asarray(signals.data)[:, covered]
            maps = pool[rank_maps(pool, volumes, self.budget)[0]]
        return zscore_maps(maps) if self.rule.standardize else maps

    def _n_candidates(self, model: Model, signals: Signals) -> int:
        return int(model.steps(signals, self.stride).valid.sum()) * model.n_candidates


def _mean_maps(
    candidates: Iterable[tuple[np.ndarray, Array]], covered: np.ndarray, n_maps: int
) -> np.ndarray:
    """Mean over steps of each candidate, (n_maps, covered); no map where there is no step."""
    total = np.zeros((n_maps, int(covered.sum())), dtype=np.float32)
    count = 0
    for steps, maps in candidates:
        total += as_numpy(maps).sum(axis=0)[:, covered]
        count += len(steps)
    return total / count if count else total[:0]


def _row(claim: str, measure: str, network: str = ALL, **values: Any) -> dict[str, Any]:
    row = dict.fromkeys(COLUMNS, np.nan)
    return {**row, "claim": claim, "measure": measure, "network": network, **values}


def _null_values(null: np.ndarray, name: str) -> dict[str, Any]:
    """What the table says of the values under a null, (S,)."""
    known = null[np.isfinite(null)]
    if not len(known):
        return {"n_surrogates": 0, "null": name}
    low, high = np.percentile(known, [_LOW, _HIGH])
    return {
        "null_mean": known.mean(),
        "null_low": low,
        "null_high": high,
        "n_surrogates": len(known),
        "null": name,
    }


def search_evidence(
    method: Method, signals: Signals, n_surrogates: int, n_surrogate_maps: int
) -> list[dict[str, Any]]:
    """Overlap of each template with the map assigned to it among the budget of maps.

    Two nulls, and a network stands by what both of them allow:

    ``fields``
        random maps as smooth as the candidates (:func:`~bids_fbn.nulls.spatial.spatial_null`).
        They are as likely in one place as in another; candidates may not be: a network that pads
        with zeros sees the edge of the brain in anything, dual regression its templates.
    ``noise``
        runs of noise as smooth as the run, to which the method is applied in the same way.
        Whatever it does to noise is in there; but maps of a real run are smoother than those.

    Parameters
    ----------
    method : Method
    signals : Signals
    n_surrogates : int
        Runs of noise.
    n_surrogate_maps : int
        Sets of random maps.
    """
    maps = method.budget_maps(method.model, signals)
    candidates = np.zeros((len(maps), signals.grid.n_voxels), dtype=np.float32)
    candidates[:, signals.covered] = maps
    of_fields = spatial_null(
        candidates,
        method.templates,
        signals.grid,
        signals.covered,
        method.rule,
        n_surrogate_maps,
        method.seed,
        _threads(),
    )
    statistic = of_fields.statistic
    supports = method.templates.supports[:, signals.covered]
    matcher = Matcher(supports, method.rule, np.ones(supports.shape[1], dtype=bool))
    of_noise = np.array(
        [
            search_statistic(matcher.match(method.budget_maps(method.on(run), run)).iou)
            for run in surrogate_runs(signals, "noise", n_surrogates, method.seed)
        ]
    ).reshape(n_surrogates, len(statistic))
    rows = []
    for kind, null in (("fields", of_fields.null), ("noise", of_noise)):
        p, corrected = p_of(statistic, null), corrected_p(statistic, null)
        rows += [
            _row(
                "network",
                "iou_search",
                name,
                observed=statistic[k],
                p=p[k],
                p_corrected=corrected[k],
                **_null_values(null[:, k], kind),
            )
            for k, name in enumerate(method.templates.networks)
        ]
    return rows


def _threads() -> int:
    import torch

    return torch.get_num_threads()


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
            _row("network", measure, name, observed=values[k])
            for measure, values in measures.items()
            for k, name in enumerate(networks)
        ]
        rows.append(_row("fit", "budget", observed=self.n_maps))
        return [*rows, _row("fit", "held_out_variance", observed=self.held_out_variance)]


def half_evidence(method: Method, signals: Signals) -> HalfEvidence | None:
    """Choose in one half of the run, score in the other, and the other way round.

    None where a half has too few volumes for the model.
    """
    parts = [_stretch(signals, rows) for rows in halves(signals.n_kept)]
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


def _stretch(signals: Signals, rows: slice) -> Signals:
    """Some of the kept volumes, as a run of its own."""
    return replace(
        signals,
        data=np.asarray(signals.data)[rows],
        kept=signals.kept[rows],
        name=f"{signals.name}, volumes {rows.start + 1} to {rows.stop}",
    )


def dynamic_measures(
    networks: RunNetworks, steps: Steps, threshold: float, names: Sequence[str]
) -> dict[tuple[str, str], float]:
    """All that is said of change over time, as (measure, network or ``all``) → value."""
    states = assign_states(networks.iou, threshold)
    summary = summarize_states(states, steps.valid, len(names), steps.seconds)
    visits = summary.visits.sum()
    time = float((states != NO_STATE).sum()) * steps.seconds
    series = {
        "iou_previous": _mean_over_time(networks.iou_previous),
        "iou_window_apart": _mean_over_time(networks.iou_window_apart),
        "iou_variation": _spread_over_time(networks.iou),
    }
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


def _mean_over_time(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis=0)
    count = known.sum(axis=0)
    return np.divide(total, count, out=np.full(values.shape[1], np.nan), where=count > 0)


def _spread_over_time(values: np.ndarray) -> np.ndarray:
    squares = (values - _mean_over_time(values)) ** 2
    return np.asarray(np.sqrt(_mean_over_time(squares)))


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
    kind : {"phase", "var"}
        See :func:`~bids_fbn.nulls.series.surrogate_runs`.
    store : Path, optional
        Where the measures of each surrogate are kept as they come, and taken up again.

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
    observed = dynamic_measures(networks, steps, method.state_threshold, names)
    done = _read_lines(store)
    with _Lines(store) as lines:
        for number, surrogate in _not_done(
            surrogate_runs(signals, kind, n_surrogates, method.seed), len(done)
        ):
            found, steps = method.networks(method.on(surrogate), surrogate)
            measures = dynamic_measures(found, steps, method.state_threshold, names)
            done.append(list(measures.values()))
            lines.add(done[-1])
            level = logging.DEBUG if (number + 1) % 10 else logging.INFO
            logger.log(
                level,
                "%s, %s: surrogate %d of %d",
                signals.name,
                method.model.name,
                number + 1,
                n_surrogates,
            )
    null = np.array(done[:n_surrogates], dtype=float).reshape(n_surrogates, len(observed))
    return _dynamic_rows(observed, null, kind)


def _not_done(runs: Iterator[Signals], n_done: int) -> Iterator[tuple[int, Signals]]:
    for number, run in enumerate(runs):
        if number >= n_done:
            yield number, run


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
        _row(
            "dynamics",
            measure,
            network,
            observed=values[k],
            p=p[k],
            p_corrected=corrected[k],
            **_null_values(null[:, k], kind),
        )
        for k, (measure, network) in enumerate(keys)
    ]


class _Lines:
    """A list of numbers a line, on the disk as soon as it is added."""

    def __init__(self, path: Path | None) -> None:
        self._file = open(path, "a") if path else None  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file:
            self._file.close()

    def add(self, numbers: Sequence[float]) -> None:
        if self._file:
            self._file.write(json.dumps(list(numbers)) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def _read_lines(path: Path | None) -> list[list[float]]:
    if path is None or not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    # A call that was killed may have left half a line.
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        path.write_text("".join(whole))
    return [json.loads(line) for line in whole]


def task_evidence(
    signals: Signals,
    networks: RunNetworks,
    steps: Steps,
    courses: np.ndarray,
    names: Sequence[str],
    events: pd.DataFrame,
    n_surrogates: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Courses of the networks, and their IoU over time, beside each condition of the task.

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
    n_surrogates : int
        Courses with random phases.
    seed : int
    """
    from bids_fbn.nulls.task import task_coupling

    seconds = signals.repetition_time
    frame_times = np.arange(signals.n_volumes) * seconds
    series = {
        "course": (courses, frame_times[signals.kept], 0.0),
        "iou": (networks.iou, steps.onset, steps.window * seconds),
    }
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
            _row(
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
