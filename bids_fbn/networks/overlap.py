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


def _thresholds(maps: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Value of the n-th highest voxel of each map for each size n, (K, P)."""
    n_voxels = maps.shape[1]
    ranks = n_voxels - np.clip(sizes, 1, n_voxels)
    return np.partition(maps, np.unique(ranks), axis=1)[:, ranks]


def _count(
    maps: np.ndarray, supports: np.ndarray, threshold: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of each map's support inside each template, and in all; each (K, P)."""
    sizes = supports.sum(axis=1)
    if threshold is not None:
        active = (maps > threshold).astype(np.float32)
        total = np.broadcast_to(active.sum(axis=1)[:, None], (len(maps), len(supports)))
        return active @ supports.T.astype(np.float32), total
    limits = _thresholds(maps, sizes)
    # A map without variation has no highest voxels.
    varies = np.ptp(maps, axis=1) > 0
    inside = np.stack(
        [
            (maps[:, support] >= limits[:, [p]]).sum(axis=1) * varies
            for p, support in enumerate(supports)
        ],
        axis=1,
    )
    # As many voxels as the template has, by definition; ties would make it more.
    total = np.outer(varies, sizes)
    return np.minimum(inside, total).astype(np.float32), total.astype(np.float32)


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
    support = np.zeros(len(values), dtype=bool)
    if np.ptp(values) > 0 and size > 0:
        support[np.argpartition(values, -size)[-size:]] = True
    return support


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
