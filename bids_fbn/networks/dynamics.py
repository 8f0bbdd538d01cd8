"""From a stream of candidate maps to the networks of a run.

Candidates of all steps never stand in memory together: each step is compared with the templates,
added to the running sums, and forgotten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from bids_fbn.networks.maps import SupportRule, zscore_maps
from bids_fbn.networks.overlap import (
    assign_one_to_one,
    overlap_with_templates,
    support_iou,
    support_of,
)
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.signal.windows import Steps

__all__ = ["RunNetworks", "find_networks", "network_courses"]


@dataclass(frozen=True, eq=False)
class RunNetworks:
    """Networks of a run, one for each of P templates, over S steps and V voxels.

    Parameters
    ----------
    maps : ndarray (P, V)
        FBN maps, z over the covered voxels, 0 elsewhere.
    membership : ndarray (P, V)
        0 to 1: in what share of the steps that made the map (weighted as they were) the voxel
        belonged to the network.
    present : ndarray (P,) of int
        Steps in which the network's own candidate reached the state threshold; where that is 0
        the map is the candidate of the best step, and weak.
    iou, dice, r : ndarray (S, P)
        Overlap of the best candidate of each step (by IoU) with the template; NaN without a
        window.
    iou_previous, iou_window_apart : ndarray (S, P)
        IoU of the network's own candidate with that of the step before, and of the step a whole
        window before; NaN where one of them lacks.
    best_of_all : ndarray (P,)
        Highest IoU over all candidates of all steps, as published: a search, not an estimate.
    n_candidates : int
        Candidates that this search looked at.
    """

    maps: np.ndarray
    membership: np.ndarray
    present: np.ndarray
    iou: np.ndarray
    dice: np.ndarray
    r: np.ndarray
    iou_previous: np.ndarray
    iou_window_apart: np.ndarray
    best_of_all: np.ndarray
    n_candidates: int

    @property
    def weak(self) -> np.ndarray:
        """Networks that were never present, (P,) of bool."""
        return self.present == 0


def find_networks(
    candidates: Iterable[tuple[int, np.ndarray]],
    steps: Steps,
    templates: TemplateSet,
    covered: np.ndarray,
    rule: SupportRule,
    state_threshold: float = 0.3,
    dynamic_maps: np.ndarray | None = None,
) -> RunNetworks:
    """Compare candidates with templates, step by step.

    Parameters
    ----------
    candidates : iterable of (step, maps (K, V))
        Ascending steps.
    steps : Steps
        S steps.
    templates : TemplateSet
        P templates on the same V voxels.
    covered : ndarray (V,) of bool
        Voxels of the run; the others take no part.
    rule : SupportRule
    state_threshold : float
        IoU from which on a network counts as present.
    dynamic_maps : ndarray (P, S, V), optional
        Filled with the z map of each network's own candidate at each step, 0 where there is none.
    """
    accumulator = _Accumulator(steps, templates, covered, rule, state_threshold)
    for step, maps in candidates:
        own = accumulator.add(step, maps[:, covered].astype(np.float32))
        if dynamic_maps is not None:
            dynamic_maps[:, step, covered] = own
    return accumulator.result()


class _Accumulator:
    def __init__(
        self,
        steps: Steps,
        templates: TemplateSet,
        covered: np.ndarray,
        rule: SupportRule,
        state_threshold: float,
    ) -> None:
        self._rule = rule
        self._threshold = state_threshold
        self._covered = covered
        self._template_maps = templates.maps[:, covered]
        self._template_supports = templates.supports[:, covered]
        self._sizes = self._template_supports.sum(axis=1)
        n_steps, n_networks, n_voxels = len(steps), len(templates.networks), int(covered.sum())

        def per_step() -> np.ndarray:
            return np.full((n_steps, n_networks), np.nan)

        self._iou, self._dice, self._r = per_step(), per_step(), per_step()
        self._previous, self._apart = per_step(), per_step()
        self._weight = np.zeros(n_networks)
        self._map_sum = np.zeros((n_networks, n_voxels))
        self._support_sum = np.zeros((n_networks, n_voxels))
        self._present = np.zeros(n_networks, dtype=int)
        self._best_iou = np.full(n_networks, -1.0)
        self._best_map = np.zeros((n_networks, n_voxels), dtype=np.float32)
        self._n_candidates = 0
        # Supports of the last steps, for the overlap with the step before and a window before.
        self._window_apart = steps.window_apart
        self._recent: deque[tuple[int, np.ndarray, np.ndarray]] = deque(
            maxlen=self._window_apart + 1
        )

    def add(self, step: int, candidates: np.ndarray) -> np.ndarray:
        """Take the candidates (K, covered) of a step; returns each network's own map (P, covered),
        0 for a network that has none."""
        maps = zscore_maps(candidates) if self._rule.standardize else candidates
        found = overlap_with_templates(
            maps, self._template_maps, self._template_supports, self._rule
        )
        networks = np.arange(found.iou.shape[1])
        best = found.iou.argmax(axis=0)
        self._iou[step] = found.iou[best, networks]
        self._dice[step] = found.dice[best, networks]
        self._r[step] = found.r[best, networks]
        self._n_candidates += len(maps)
        for p in networks[self._iou[step] > self._best_iou]:
            self._best_iou[p] = self._iou[step, p]
            self._best_map[p] = maps[best[p]] * found.sign[best[p], p]

        chosen = assign_one_to_one(found.iou)
        own = np.zeros((len(networks), maps.shape[1]), dtype=np.float32)
        supports = np.zeros(own.shape, dtype=bool)
        for p in networks[chosen >= 0]:
            own[p] = maps[chosen[p]] * found.sign[chosen[p], p]
            supports[p] = support_of(own[p], self._rule, int(self._sizes[p]))
            weight = found.iou[chosen[p], p]
            if weight >= self._threshold and weight > 0:
                self._present[p] += 1
                self._weight[p] += weight
                self._map_sum[p] += weight * own[p]
                self._support_sum[p] += weight * supports[p]
        self._compare_with_before(step, supports, chosen >= 0)
        return own

    def _compare_with_before(self, step: int, supports: np.ndarray, has_map: np.ndarray) -> None:
        for earlier, earlier_supports, earlier_has_map in self._recent:
            both = has_map & earlier_has_map
            for lag, series in ((1, self._previous), (self._window_apart, self._apart)):
                if step - earlier == lag:
                    iou = support_iou(supports, earlier_supports)
                    series[step, both] = iou[both]
        self._recent.append((step, supports, has_map))

    def result(self) -> RunNetworks:
        weak = self._present == 0
        weight = np.where(weak, 1.0, self._weight)[:, None]
        maps = np.where(weak[:, None], self._best_map, self._map_sum / weight)
        membership = self._support_sum / weight
        for p in np.flatnonzero(weak):
            membership[p] = support_of(self._best_map[p], self._rule, int(self._sizes[p]))
        return RunNetworks(
            maps=self._everywhere(zscore_maps(maps)),
            membership=self._everywhere(np.clip(membership, 0, 1)),
            present=self._present,
            iou=self._iou,
            dice=self._dice,
            r=self._r,
            iou_previous=self._previous,
            iou_window_apart=self._apart,
            best_of_all=np.maximum(self._best_iou, 0),
            n_candidates=self._n_candidates,
        )

    def _everywhere(self, values: np.ndarray) -> np.ndarray:
        out = np.zeros((len(values), len(self._covered)), dtype=np.float32)
        out[:, self._covered] = values
        return out


def network_courses(maps: np.ndarray, data: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Course of each network: least squares of the signals on all maps at once.

    Parameters
    ----------
    maps : ndarray (P, V)
    data : ndarray (T, V)
        Cleaned signals.
    covered : ndarray (V,) of bool

    Returns
    -------
    ndarray (T, P)
        In units of the signals' standard deviation per unit z of the map.
    """
    # Maps that two networks share have no courses of their own: the least-norm solution
    # divides what they explain between them.
    courses, *_ = np.linalg.lstsq(
        maps[:, covered].T.astype(np.float64), np.asarray(data[:, covered]).T, rcond=1e-6
    )
    return courses.T
