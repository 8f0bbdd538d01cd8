"""From signals to batches of windows without copies, and whether bf16 is precise enough.

A stretch of volumes is scattered into the box once; the windows over it are views that share its
memory. What is in memory at once does not depend on how many windows there are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from bids_fbn.errors import RunError

__all__ = [
    "LOWEST_R",
    "Batches",
    "batch_size",
    "lowest_correlation",
    "stretches",
    "windows_over",
]

logger = logging.getLogger(__name__)

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


class Batches:
    """Takes windows through a model in batches, smaller ones once a GPU's memory has run out.

    How large a batch is changes the maps in the last digits only.

    Parameters
    ----------
    name : str
        For messages.
    size : int
        Windows in a batch, at most; halved for good whenever memory runs out.
    """

    def __init__(self, name: str, size: int) -> None:
        self.size = size
        self._name = name

    def maps(
        self, steps: np.ndarray, windows: Tensor, maps_of: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Maps of windows (S, W, X, Y, Z) of the steps (S,), batch by batch.

        Yields
        ------
        steps : ndarray (B,) of int
        maps : Tensor (B, K, V)
            By `maps_of`.

        Raises
        ------
        RunError
            If memory does not do for a single window.
        """
        first = 0
        while first < len(windows):
            batch = windows[first : first + self.size]
            maps = self._tried(batch, maps_of)
            if maps is None:
                self._halve(len(batch))
                continue
            yield steps[first : first + len(batch)], maps
            # Not to be held while the next ones are computed.
            del maps
            first += len(batch)

    @staticmethod
    def _tried(batch: Tensor, maps_of: Callable[[Tensor], Tensor]) -> Tensor | None:
        # What the failed computation holds is free once this function has returned, not before:
        # the error has its frames.
        try:
            return maps_of(batch)
        except torch.cuda.OutOfMemoryError:
            return None

    def _halve(self, count: int) -> None:
        torch.cuda.empty_cache()
        if count == 1:
            raise RunError(
                f"{self._name}: the GPU's memory does not do for a single window; take a coarser "
                "--resolution, --device cpu, or a GPU that nobody else uses"
            )
        self.size = -(-count // 2)
        logger.warning(
            "%s: out of GPU memory with %d windows in a batch; going on with %d",
            self._name,
            count,
            self.size,
        )


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
