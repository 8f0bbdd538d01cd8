"""From a stream of candidate maps to the networks of a run.

Candidates of all steps never stand in memory together: each batch of steps is compared with the
templates where it is, added to the running sums, and forgotten. From a GPU come only the overlaps,
and the maps of the networks if they are asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_fbn.networks.amplitude import certainty_of_largest
from bids_fbn.networks.arrays import Array, as_numpy, device_of, native, on_device, processors
from bids_fbn.networks.maps import SupportRule, zscore_maps
from bids_fbn.networks.overlap import Match, Matcher, assign_one_to_one, support_iou
from bids_fbn.networks.states import StateRule, assign_states, largest_where_certain
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.signal.windows import Steps

if TYPE_CHECKING:
    import torch

__all__ = [
    "SMALLEST_SINGULAR_VALUE",
    "RunNetworks",
    "find_networks",
    "mean_over_steps",
    "network_courses",
]

# Two maps that correlate by more than this are one where courses are fitted. Singular values of
# two z-scored maps are as the roots of 1 - r and 1 + r.
_SAME_MAP_R = 0.95
SMALLEST_SINGULAR_VALUE = ((1 - _SAME_MAP_R) / (1 + _SAME_MAP_R)) ** 0.5


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
        the map is weak: its own candidate of the step in which that overlaps most. A network that
        never had one, since there are fewer candidates than networks, shares the best with others.
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
    amplitude : ndarray (S, P), optional
        By a method that is told of its networks, see
        :func:`~bids_fbn.networks.amplitude.window_amplitudes`; NaN without a window, and of a
        network that it has not.
    amplitude_sd : ndarray (P,), optional
        Of the error of the amplitudes.
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
    amplitude: np.ndarray | None = None
    amplitude_sd: np.ndarray | None = None

    @property
    def certainty(self) -> np.ndarray | None:
        """That the network with the largest amplitude truly has it, (S,); None without any."""
        if self.amplitude is None or self.amplitude_sd is None:
            return None
        return certainty_of_largest(self.amplitude, self.amplitude_sd)

    def states(self, rule: StateRule) -> np.ndarray:
        """State of each step, (S,) of int: by amplitude where there is one, else by IoU."""
        certainty = self.certainty
        if self.amplitude is None or certainty is None:
            return assign_states(self.iou, rule.threshold)
        return largest_where_certain(self.amplitude, certainty, rule.certainty)

    @property
    def weak(self) -> np.ndarray:
        """Networks that were never present, (P,) of bool."""
        return self.present == 0


def find_networks(
    candidates: Iterable[tuple[np.ndarray, Array]],
    steps: Steps,
    templates: TemplateSet,
    covered: np.ndarray,
    rule: SupportRule,
    state_threshold: float = 0.3,
    dynamic_maps: np.ndarray | None = None,
) -> RunNetworks:
    """Compare candidates with templates, batch by batch.

    Parameters
    ----------
    candidates : iterable of (steps (B,) of int, maps (B, K, V) of float32)
        Ascending steps; arrays, or tensors of any one device.
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
    accumulator = None
    for batch_steps, batch_maps in candidates:
        maps = native(batch_maps)
        if accumulator is None:
            accumulator = _Accumulator(
                steps,
                templates,
                covered,
                rule,
                state_threshold,
                device_of(maps),
                processors(batch_maps),
            )
        for step, own in accumulator.add(batch_steps, maps):
            if dynamic_maps is not None:
                dynamic_maps[:, step, covered] = as_numpy(own)
    if accumulator is None:
        accumulator = _Accumulator(steps, templates, covered, rule, state_threshold)
    return accumulator.result()


class _Accumulator:
    """Running sums, in the library and on the device of the maps; small tables in main memory."""

    def __init__(
        self,
        steps: Steps,
        templates: TemplateSet,
        covered: np.ndarray,
        rule: SupportRule,
        state_threshold: float,
        device: torch.device | None = None,
        threads: int = 1,
    ) -> None:
        self._rule = rule
        self._threshold = state_threshold
        self._covered = covered
        self._device = device
        self._matcher = Matcher(templates.supports, rule, covered, device, threads)
        self._template_z = self._placed(zscore_maps(templates.maps[:, covered].astype(np.float32)))
        n_steps, n_networks, n_voxels = len(steps), len(templates.networks), int(covered.sum())
        self._networks = np.arange(n_networks)

        def per_step() -> np.ndarray:
            return np.full((n_steps, n_networks), np.nan)

        def per_voxel(kind: type) -> Any:
            return self._placed(np.zeros((n_networks, n_voxels), dtype=kind))

        self._iou, self._dice, self._r = per_step(), per_step(), per_step()
        self._previous, self._apart = per_step(), per_step()
        self._weight = np.zeros(n_networks)
        self._map_sum, self._support_sum = per_voxel(np.float64), per_voxel(np.float64)
        self._present = np.zeros(n_networks, dtype=int)
        self._best_iou = np.full(n_networks, -1.0)
        self._own_iou = np.zeros(n_networks)
        self._best_map, self._best_support = per_voxel(np.float32), per_voxel(np.bool_)
        self._n_candidates = 0
        # Supports of the last steps, for the overlap with the step before and a window before.
        self._window_apart = steps.window_apart
        self._recent: deque[tuple[int, Any, np.ndarray]] = deque(maxlen=self._window_apart + 1)

    def _placed(self, values: np.ndarray) -> Any:
        return on_device(values, self._device)

    def add(self, steps: np.ndarray, candidates: Any) -> Iterator[tuple[int, Any]]:
        """Take the candidates (B, K, V) of B steps.

        Yields
        ------
        step : int
        own : ndarray or Tensor (P, covered)
            Each network's own map; 0 for a network that has none.
        """
        found = self._matcher.match(candidates)
        self._n_candidates += found.iou.shape[0] * found.iou.shape[1]
        for number, step in enumerate(steps.tolist()):
            at_step = Match(*(values[number] for values in vars(found).values()))
            self._add_best(step, candidates[number], at_step)
            yield step, self._add_own(step, candidates[number], at_step)

    def _picked(self, maps: Any, found: Match, chosen: np.ndarray) -> tuple[Any, Any]:
        """Maps (P, covered) of the chosen candidates, in the rule's units, and their supports."""
        sign = found.sign[chosen, self._networks].astype(np.float32)
        limit = found.limit[chosen, self._networks]
        turned = self._matcher.covered(maps[self._placed(chosen)]) * self._placed(sign[:, None])
        supports = turned > self._placed(limit[:, None])
        return (zscore_maps(turned) if self._rule.standardize else turned), supports

    def _add_best(self, step: int, maps: Any, found: Match) -> None:
        best = found.iou.argmax(axis=0)
        values, supports = self._picked(maps, found, best)
        self._iou[step] = found.iou[best, self._networks]
        self._dice[step] = found.dice[best, self._networks]
        z = values if self._rule.standardize else zscore_maps(values)
        self._r[step] = as_numpy((z * self._template_z).mean(-1))
        better = self._iou[step] > self._best_iou
        self._best_iou[better] = self._iou[step, better]
        self._keep(better & (self._own_iou <= 0), values, supports)

    def _add_own(self, step: int, maps: Any, found: Match) -> Any:
        chosen = assign_one_to_one(found.iou)
        has_map = chosen >= 0
        own, supports = self._picked(maps, found, chosen.clip(min=0))
        own[self._placed(~has_map)] = 0
        supports[self._placed(~has_map)] = False
        weight = np.where(has_map, found.iou[chosen, self._networks], 0).astype(np.float64)
        present = (weight >= self._threshold) & (weight > 0)
        self._present += present
        self._weight[present] += weight[present]
        for p in np.flatnonzero(present):
            self._map_sum[p] += float(weight[p]) * own[p]
            self._support_sum[p] += float(weight[p]) * supports[p]
        better = weight > self._own_iou
        self._own_iou[better] = weight[better]
        self._keep(better, own, supports)
        self._compare_with_before(step, supports, has_map)
        return own

    def _keep(self, which: np.ndarray, maps: Any, supports: Any) -> None:
        """As the maps of networks that will not have been present in any step."""
        for p in np.flatnonzero(which):
            self._best_map[p], self._best_support[p] = maps[p], supports[p]

    def _compare_with_before(self, step: int, supports: Any, has_map: np.ndarray) -> None:
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
        maps = np.where(weak[:, None], as_numpy(self._best_map), as_numpy(self._map_sum) / weight)
        membership = np.where(
            weak[:, None], as_numpy(self._best_support), as_numpy(self._support_sum) / weight
        )
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


def network_courses(
    maps: np.ndarray, data: np.ndarray, covered: np.ndarray, weak: np.ndarray | None = None
) -> np.ndarray:
    """Course of each network, by least squares of the signals.

    On the maps of all networks that are not weak at once. What maps differ by that nearly depend
    on each other, as mean maps of states do, which add up to nothing, would be amplified noise: of
    the solutions that fit as well but for singular values below 0.16 of the largest, the one of
    least norm is taken, by which such maps share a course.

    A weak network's course is that of its map alone, which may be a mixture of others: it takes
    nothing from those that are there.

    Parameters
    ----------
    maps : ndarray (P, V)
        z over the covered voxels; a network without a map, 0 everywhere, has a course of 0.
    data : ndarray (T, V)
        Cleaned signals.
    covered : ndarray (V,) of bool
    weak : ndarray (P,) of bool, optional
        See :class:`RunNetworks`; none by default.

    Returns
    -------
    ndarray (T, P)
        In units of the signals' standard deviation per unit z of the map.
    """
    regressors = maps[:, covered].astype(np.float64)
    signals = np.asarray(data[:, covered], dtype=np.float64)
    size = (regressors**2).sum(axis=1)
    courses = signals @ regressors.T / np.where(size > 0, size, 1)
    there = np.ones(len(maps), dtype=bool) if weak is None else ~weak
    if there.any():
        together, *_ = np.linalg.lstsq(
            regressors[there].T, signals.T, rcond=SMALLEST_SINGULAR_VALUE
        )
        courses[:, there] = together.T
    return courses


def mean_over_steps(values: np.ndarray) -> np.ndarray:
    """Mean of each column over the steps that have a value, (S, P) → (P,); NaN without any."""
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis=0)
    count = known.sum(axis=0)
    return np.divide(total, count, out=np.full(values.shape[1], np.nan), where=count > 0)
