"""One code for two libraries: NumPy in main memory, torch where maps lie on a GPU.

Most of what arrays and tensors do is written alike; the rest is here. In main memory NumPy is the
faster of the two for this work: its sort uses wide registers, and torch shares every small
operation out among threads that wait for each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = [
    "Array",
    "as_numpy",
    "count_below",
    "device_of",
    "native",
    "on_device",
    "processors",
    "sort_rows",
    "take",
    "true_in_rows",
]

Array: TypeAlias = "np.ndarray | torch.Tensor"


def native(values: Array) -> Any:
    """The values in the library that works on them where they are; nothing is copied."""
    if isinstance(values, np.ndarray) or values.device.type != "cpu":
        return values
    return values.numpy()


def processors(values: Array) -> int:
    """On how many processors to work on them: as torch was told, where they come from torch."""
    if isinstance(values, np.ndarray):
        return 1
    import torch

    return torch.get_num_threads()


def as_numpy(values: Array) -> np.ndarray:
    """The values in main memory."""
    return np.asarray(values if isinstance(values, np.ndarray | np.generic) else values.cpu())


def device_of(values: Array) -> torch.device | None:
    """Where a tensor is; None for an array."""
    return None if isinstance(values, np.ndarray) else values.device


def on_device(values: np.ndarray, device: torch.device | None) -> Any:
    """The values as a tensor on the device, of the same type; unchanged for None."""
    if device is None:
        return values
    import torch

    return torch.as_tensor(values, device=device)


def take(values: Array, columns: Array) -> Any:
    """Columns of (N, V)."""
    return values.take(columns, axis=1) if isinstance(values, np.ndarray) else values[:, columns]


def true_in_rows(values: Array) -> np.ndarray:
    """How many values of each row (N, V) of bool are true, in main memory."""
    if isinstance(values, np.ndarray):
        # The sum would first make an integer of 8 bytes of each.
        return np.array([np.count_nonzero(row) for row in values])
    return as_numpy(values.sum(-1))


def sort_rows(values: Array) -> Any:
    """Each row (N, V) in ascending order."""
    return np.sort(values) if isinstance(values, np.ndarray) else values.sort().values


def count_below(ordered: Array, limits: Any, or_equal: bool = False) -> Any:
    """How many values of each ascending row (N, V) are below each of its limits (N, P)."""
    side = "right" if or_equal else "left"
    if isinstance(ordered, np.ndarray):
        pairs = zip(ordered, limits, strict=True)
        return np.array([row.searchsorted(below, side=side) for row, below in pairs])
    import torch

    return torch.searchsorted(ordered, limits.contiguous(), side=side)
