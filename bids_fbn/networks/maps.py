"""Maps: z-scores in the mask, supports, labels, peaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Peak", "SupportRule", "find_peaks", "label_voxels", "moments", "zscore_maps"]


@dataclass(frozen=True)
class SupportRule:
    """Which voxels of a candidate map count as its network.

    Parameters
    ----------
    threshold : float or None
        Fixed threshold; None takes as many voxels as the template has, the highest. Voxels that
        tie for the last places are left out.
    standardize : bool
        z-score each map over the covered voxels first.
    either_sign : bool
        Try a map both ways up and take the better one; else its positive side only.
    """

    threshold: float | None = None
    standardize: bool = True
    either_sign: bool = True

    def __str__(self) -> str:
        unit = "z in the mask" if self.standardize else "the map as published"
        rule = (
            f"as many voxels as the template has, highest {unit}"
            if self.threshold is None
            else f"{unit} > {self.threshold:g}"
        )
        return rule + (", either sign of the map" if self.either_sign else ", positive side only")


def moments(maps: Any) -> tuple[Any, Any]:
    """Mean and standard deviation of each map over its voxels, (…, V) → (…, 1).

    The deviation of a map without variation is 0: what is smaller than the resolution of the
    numbers is rounding.
    """
    mean = maps.mean(-1, keepdims=True)
    centred = maps - mean
    # The mean of many equal numbers is not quite that number; what is left of it is no variation.
    left = centred.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True) - left * left
    spread = variance.clip(min=0) ** 0.5
    resolution = 2.0 ** (-52 if maps.itemsize == 8 else -23)
    return mean, spread * (spread > resolution * abs(mean))


def zscore_maps(maps: Any) -> Any:
    """z-score each map over its voxels, (…, V); a map without variation becomes 0."""
    mean, spread = moments(maps)
    # Times 0 / 1 for a map without variation; written so that arrays and tensors both take it.
    return (maps - mean) * ((spread > 0) / (spread + (spread == 0)))


def label_voxels(membership: np.ndarray, at_least: float = 0.5) -> np.ndarray:
    """Winner takes all.

    Parameters
    ----------
    membership : ndarray (P, V)
        0 to 1.
    at_least : float
        Membership below which a voxel belongs to no network.

    Returns
    -------
    ndarray (V,) of int16
        1 to P, the number of the network; 0 for none.
    """
    labels = membership.argmax(axis=0).astype(np.int16) + 1
    labels[membership.max(axis=0) < at_least] = 0
    return labels


@dataclass(frozen=True)
class Peak:
    """Where a map is highest."""

    x: float
    y: float
    z: float
    value: float
    place: str


def find_peaks(maps: np.ndarray, coordinates: np.ndarray, places: np.ndarray) -> list[Peak]:
    """Highest voxel of each map.

    Parameters
    ----------
    maps : ndarray (P, V)
    coordinates : ndarray (V, 3), mm
    places : ndarray (V,) of str
        Name of the place of each voxel.
    """
    peaks = []
    for values in maps:
        voxel = int(values.argmax())
        x, y, z = (float(mm) for mm in coordinates[voxel])
        peaks.append(Peak(x, y, z, float(values[voxel]), str(places[voxel])))
    return peaks
