"""How well maps match templates, and which map is which network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from bids_fbn.networks.maps import SupportRule, zscore_maps

__all__ = ["Overlap", "assign_one_to_one", "overlap_with_templates", "support_iou", "support_of"]


@dataclass(frozen=True, eq=False)
class Overlap:
    """Overlap of K maps with P templates, each (K, P).

    Parameters
    ----------
    iou, dice : ndarray
        Of supports: |A ∩ B| / |A ∪ B| and 2 |A ∩ B| / (|A| + |B|); 0 for two empty ones.
    r : ndarray
        Pearson correlation over voxels of the map, in the sign given, with the template's values.
    sign : ndarray of int8
        1, or −1 where the map fits better the other way up.
    """

    iou: np.ndarray
    dice: np.ndarray
    r: np.ndarray
    sign: np.ndarray


def _limits(maps: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the n highest voxels of each map exceed, for each size n, and how many do; (K, P).

    The limit is the highest value that is not among the n highest. Where it ties with one that is,
    fewer than n exceed it: choosing between equals would be chance, and choosing those in the
    template would make any flat map a perfect match.
    """
    n_voxels = maps.shape[1]
    limits = np.full((len(maps), len(sizes)), -np.inf, dtype=maps.dtype)
    total = np.tile(sizes, (len(maps), 1))
    last_out = n_voxels - 1 - sizes
    ordered = np.partition(maps, np.unique(last_out[last_out >= 0]), axis=1)
    for p, rank in enumerate(last_out):
        if rank < 0:
            continue  # all voxels are among the n highest
        limits[:, p] = ordered[:, rank]
        among = ordered[:, rank + 1 :]
        for k in np.flatnonzero((among == limits[:, [p]]).any(axis=1)):
            total[k, p] = (among[k] > limits[k, p]).sum()
    return limits, total


def _count(
    maps: np.ndarray, supports: np.ndarray, threshold: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of each map's support inside each template, and in all; each (K, P)."""
    if threshold is not None:
        active = (maps > threshold).astype(np.float32)
        total = np.broadcast_to(active.sum(axis=1)[:, None], (len(maps), len(supports)))
        return active @ supports.T.astype(np.float32), total
    limits, total = _limits(maps, supports.sum(axis=1))
    inside = np.stack(
        [(maps[:, support] > limits[:, [p]]).sum(axis=1) for p, support in enumerate(supports)],
        axis=1,
    )
    return inside.astype(np.float32), total.astype(np.float32)


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
    sizes = template_supports.sum(axis=1).astype(np.float32)
    correlation = zscore_maps(maps) @ zscore_maps(template_maps).T / maps.shape[1]
    sign = np.ones(correlation.shape, dtype=np.int8)
    inside, total = _count(maps, template_supports, rule.threshold)
    if rule.either_sign:
        flipped_inside, flipped_total = _count(-maps, template_supports, rule.threshold)
        flipped = _iou(flipped_inside, flipped_total, sizes) > _iou(inside, total, sizes)
        inside = np.where(flipped, flipped_inside, inside)
        total = np.where(flipped, flipped_total, total)
        sign[flipped] = -1
    both = total + sizes
    dice = np.divide(2 * inside, both, out=np.zeros_like(inside), where=both > 0)
    return Overlap(_iou(inside, total, sizes), dice, correlation * sign, sign)


def _iou(inside: np.ndarray, total: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    union = total + sizes - inside
    return np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)


def support_of(values: np.ndarray, rule: SupportRule, size: int) -> np.ndarray:
    """Voxels that count as the network, (V,) of bool.

    Parameters
    ----------
    values : ndarray (V,)
        One map, the right way up.
    rule : SupportRule
    size : int
        Voxels of its template.
    """
    if rule.threshold is not None:
        return values > rule.threshold
    limits, _ = _limits(values[None], np.array([size]))
    return values > limits[0, 0]


def support_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU of pairs of supports, (…, V) and (…, V) of bool → (…); 0 for two empty ones."""
    both = (first & second).sum(axis=-1)
    either = (first | second).sum(axis=-1)
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
