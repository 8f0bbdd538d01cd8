"""How well maps match templates, and which map is which network."""

from __future__ import annotations

import operator
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from bids_fbn.networks.arrays import (
    Array,
    as_numpy,
    count_below,
    on_device,
    sort_rows,
    take,
    true_in_rows,
)
from bids_fbn.networks.maps import SupportRule, moments, zscore_maps

if TYPE_CHECKING:
    import torch

__all__ = [
    "Match",
    "Matcher",
    "Overlap",
    "assign_one_to_one",
    "overlap_with_templates",
    "support_iou",
    "support_of",
]

# Maps looked at in one go: in main memory what stays near the processor core together with its
# sorted copy; on a GPU enough to keep it busy, while the sort takes some times as much.
_BLOCK_BYTES = 2**20
_BLOCK_BYTES_ON_GPU = 2**28


@dataclass(frozen=True, eq=False)
class Match:
    """Supports of K maps against those of P templates, each (…, K, P).

    Parameters
    ----------
    iou, dice : ndarray
        |A ∩ B| / |A ∪ B| and 2 |A ∩ B| / (|A| + |B|); 0 for two empty ones.
    sign : ndarray of int8
        1, or −1 where the map fits better the other way up.
    limit : ndarray
        What the voxels of the support exceed, in the units of the map in the sign given.
    """

    iou: np.ndarray
    dice: np.ndarray
    sign: np.ndarray
    limit: np.ndarray


@dataclass(frozen=True, eq=False)
class Overlap(Match):
    """:class:`Match`, and the correlation of all voxels, each (K, P).

    Parameters
    ----------
    r : ndarray
        Pearson correlation over voxels of the map, in the sign given, with the template's values.
    """

    r: np.ndarray


class Matcher:
    """Template supports, laid out for the comparison with many maps.

    No map is standardised for it: what a z-score exceeds is turned into the units of each map, and
    what the n highest voxels exceed needs no units.

    Parameters
    ----------
    supports : ndarray (P, V) of bool
    rule : SupportRule
    covered : ndarray (V,) of bool
        Voxels that take part.
    device : torch.device, optional
        Where the maps will be tensors; they will be arrays if None.
    threads : int
        Blocks of maps that are looked at side by side in main memory.
    """

    def __init__(
        self,
        supports: np.ndarray,
        rule: SupportRule,
        covered: np.ndarray,
        device: torch.device | None = None,
        threads: int = 1,
    ) -> None:
        self._rule = rule
        self._threads = threads
        self._covered = None if covered.all() else on_device(np.flatnonzero(covered), device)
        supports = supports[:, covered]
        self._voxels = on_device(np.nonzero(supports)[1], device)
        self._sizes = supports.sum(axis=1)
        ends = np.cumsum(self._sizes).tolist()
        self._columns = [slice(*pair) for pair in zip([0, *ends[:-1]], ends, strict=True)]
        last = supports.shape[1] - 1
        self._highest_out = on_device(np.maximum(last - self._sizes, 0), device)
        self._lowest_out = on_device(np.minimum(self._sizes, last), device)
        self._whole = on_device(self._sizes > last, device)

    def covered(self, maps: Any) -> Any:
        """The voxels of maps (N, V) that take part; the maps themselves where all do."""
        return maps if self._covered is None else take(maps, self._covered)

    def match(self, maps: Array) -> Match:
        """Compare every map (…, K, V) with every template."""
        shape = (*maps.shape[:-1], len(self._sizes))
        inside, total, limit, *turned = self._count_all(maps.reshape(-1, maps.shape[-1]))
        sizes = self._sizes.astype(total.dtype)
        iou = _ratio(inside, total + sizes - inside)
        sign = np.ones(iou.shape, dtype=np.int8)
        if turned:
            turned_iou = _ratio(turned[0], turned[1] + sizes - turned[0])
            better = turned_iou > iou
            iou = np.where(better, turned_iou, iou)
            inside, total, limit = np.where(better, turned, (inside, total, limit))
            sign[better] = -1
        dice = _ratio(2 * inside, total + sizes)
        return Match(*(values.reshape(shape) for values in (iou, dice, sign, limit)))

    def _count_all(self, maps: Array) -> np.ndarray:
        in_memory = isinstance(maps, np.ndarray)
        row_bytes = max(1, maps.shape[1] * maps.itemsize)
        rows = max(1, (_BLOCK_BYTES if in_memory else _BLOCK_BYTES_ON_GPU) // row_bytes)
        blocks = [maps[first : first + rows] for first in range(0, len(maps), rows)]
        if in_memory and self._threads > 1 and len(blocks) > 1:
            with ThreadPoolExecutor(self._threads) as pool:
                return np.concatenate(list(pool.map(self._count, blocks)), axis=1)
        return np.concatenate([self._count(block) for block in blocks], axis=1)

    def _count(self, maps: Any) -> np.ndarray:
        """Voxels of each map's support inside each template, in all, and their limit.

        (3 or 6, N, P): of the maps as they are, then turned.
        """
        maps = self.covered(maps)
        find = self._limits_by_size if self._rule.threshold is None else self._limits_by_z
        high, n_high, low, n_low = find(maps)
        at_templates = take(maps, self._voxels)
        found = [self._inside(operator.gt, at_templates, high), n_high, high]
        if self._rule.either_sign:
            found += [self._inside(operator.lt, at_templates, low), n_low, -low]
        return np.stack([as_numpy(values) for values in found]).astype(as_numpy(maps[:0]).dtype)

    def _inside(self, compare: Callable[[Any, Any], Any], values: Any, limits: Any) -> np.ndarray:
        counts = [
            true_in_rows(compare(values[:, columns], limits[:, p : p + 1]))
            for p, columns in enumerate(self._columns)
        ]
        return np.stack(counts, axis=1)

    def _limits_by_size(self, maps: Any) -> tuple[Any, ...]:
        """What the n highest voxels of each map exceed, how many do, and likewise below; (N, P).

        The limit is the highest value that is not among the n highest. Where it ties with one that
        is, fewer than n exceed it: choosing between equals would be chance, and choosing those in
        the template would make any flat map a perfect match.
        """
        ordered = sort_rows(maps)
        high, low = ordered[:, self._highest_out], ordered[:, self._lowest_out]
        if self._rule.standardize:
            # The spread of V values is at least their range / √(2 V): few maps need a closer look.
            lowest, highest = ordered[:, 0], ordered[:, -1]
            close = highest - lowest <= 1e-3 * (abs(lowest) + abs(highest))
            for k in np.flatnonzero(as_numpy(close)):
                if moments(maps[k])[1] == 0:
                    high[k], low[k] = np.inf, -np.inf
        high[:, self._whole], low[:, self._whole] = -np.inf, np.inf
        n_high = ordered.shape[1] - count_below(ordered, high, or_equal=True)
        return high, n_high, low, count_below(ordered, low)

    def _limits_by_z(self, maps: Any) -> tuple[Any, ...]:
        threshold = self._rule.threshold or 0.0
        all_networks = [0] * len(self._sizes)
        high = threshold + 0 * maps[:, :1]
        low = -high
        if self._rule.standardize:
            mean, spread = moments(maps)
            flat = spread[:, 0] == 0
            high, low = mean + threshold * spread, mean - threshold * spread
            none = np.inf if threshold >= 0 else -np.inf
            high[flat], low[flat] = none, -none
        found = high, (maps > high).sum(-1)[:, None], low, (maps < low).sum(-1)[:, None]
        return tuple(values[:, all_networks] for values in found)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def overlap_with_templates(
    maps: np.ndarray,
    template_maps: np.ndarray,
    template_supports: np.ndarray,
    rule: SupportRule,
) -> Overlap:
    """Overlap of every map with every template.

    Parameters
    ----------
    maps : ndarray (K, V)
        In the units of the rule: z-scored already if it says so.
    template_maps : ndarray (P, V)
    template_supports : ndarray (P, V) of bool
    rule : SupportRule
    """
    everywhere = np.ones(maps.shape[1], dtype=bool)
    as_given = replace(rule, standardize=False)
    found = Matcher(template_supports, as_given, everywhere).match(maps)
    r = zscore_maps(maps) @ zscore_maps(template_maps).T / maps.shape[1]
    return Overlap(found.iou, found.dice, found.sign, found.limit, r * found.sign)


def support_of(values: np.ndarray, rule: SupportRule, size: int) -> np.ndarray:
    """Voxels that count as the network, (V,) of bool.

    Parameters
    ----------
    values : ndarray (V,)
        One map, the right way up, in the units of the rule.
    rule : SupportRule
    size : int
        Voxels of its template.
    """
    if rule.threshold is not None:
        return values > rule.threshold
    if size >= len(values):
        return np.ones(len(values), dtype=bool)
    return values > np.sort(values)[len(values) - 1 - size]


def support_iou(first: Any, second: Any) -> np.ndarray:
    """IoU of pairs of supports, (…, V) and (…, V) of bool → (…); 0 for two empty ones."""
    both, either = as_numpy((first & second).sum(-1)), as_numpy((first | second).sum(-1))
    return np.divide(both, either, out=np.zeros(np.shape(both)), where=either > 0)


def assign_one_to_one(iou: np.ndarray) -> np.ndarray:
    """Give each template at most one map and each map to at most one template.

    Parameters
    ----------
    iou : ndarray (K, P)

    Returns
    -------
    ndarray (P,) of int
        Index of the map; −1 where there are fewer maps than templates. The sum of the IoU
        is the highest possible.
    """
    chosen = np.full(iou.shape[1], -1)
    rows, columns = linear_sum_assignment(iou, maximize=True)
    chosen[columns] = rows
    return chosen
