"""From signals to batches of windows without copies, and whether bf16 is precise enough.

A stretch of volumes is scattered into the box once; the windows over it are views that share its
memory. What is in memory at once does not depend on how many windows there are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

__all__ = ["LOWEST_R", "batch_size", "lowest_correlation", "stretches", "windows_over"]

# Maps in bf16 must correlate at least this well with those in fp32.
LOWEST_R = 0.999
# On a CPU a batch is as large whatever else runs on the machine: sums in another order differ in
# the last digits. Larger ones than this were not faster.
_CPU_BYTES = 256 * 2**20
# Share of a GPU's free memory that a batch may take, and windows beyond which none gains.
_GPU_SHARE = 0.5
_MOST_WINDOWS = 64


def batch_size(device: torch.device, bytes_each: int) -> int:
    """Windows in a batch, by the memory that there is.

    Parameters
    ----------
    device : torch.device
    bytes_each : int
        That one window takes while it is computed.
    """
    room: float = _CPU_BYTES
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        room = _GPU_SHARE * free
    return int(max(1, min(_MOST_WINDOWS, room // bytes_each)))


def stretches(starts: np.ndarray, window: int, most_rows: int) -> Iterator[tuple[slice, int]]:
    """Divide windows into stretches in which each starts equally far from the one before.

    Parameters
    ----------
    starts : ndarray (S,) of int
        First rows of the windows, ascending.
    window : int
        Rows of a window.
    most_rows : int
        Rows that a stretch may span, if it has more than one window.

    Yields
    ------
    chosen : slice
        Of `starts`.
    gap : int
        Rows from one start to the next.

    Examples
    --------
    >>> [(s.start, s.stop, gap) for s, gap in stretches(np.array([0, 1, 2, 7, 9, 11]), 4, 8)]
    [(0, 3, 1), (3, 6, 2)]
    """
    first = 0
    while first < len(starts):
        last, gap = first + 1, 1
        if last < len(starts):
            gap = int(starts[last] - starts[first])
        while (
            last < len(starts)
            and starts[last] - starts[last - 1] == gap
            and starts[last] + window - starts[first] <= most_rows
        ):
            last += 1
        yield slice(first, last), gap
        first = last


def windows_over(volumes: Tensor, window: int, gap: int) -> Tensor:
    """All windows over volumes (N, X, Y, Z), `gap` apart: a view (B, W, X, Y, Z)."""
    return volumes.unfold(0, window, gap).movedim(-1, 1)


def lowest_correlation(maps: Tensor, reference: Tensor) -> float:
    """Lowest Pearson r between each map and its reference, both (..., V).

    A reference without variation has no r, and is left out; 1 if none is left.
    """
    maps, reference = (values.double().flatten(0, -2) for values in (maps, reference))
    varies = reference.std(dim=1) > 1e-6 * reference.abs().amax(dim=1)
    maps, reference = maps[varies], reference[varies]
    if not len(maps):
        return 1.0
    maps, reference = (values - values.mean(dim=1, keepdim=True) for values in (maps, reference))
    spread = (maps.norm(dim=1) * reference.norm(dim=1)).clamp_min(torch.finfo(torch.float64).tiny)
    return float(((maps * reference).sum(dim=1) / spread).min())
