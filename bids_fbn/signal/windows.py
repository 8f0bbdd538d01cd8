"""Time steps: the windows of kept volumes, laid over the time of the original run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_fbn.signal.signals import Signals

__all__ = ["Steps", "lay_windows", "steps_of"]

# A window that bridges a longer stretch of left-out volumes than this share of itself is n/a.
_LONGEST_GAP = 0.1


@dataclass(frozen=True, eq=False)
class Steps:
    """The rows of every table over time.

    Parameters
    ----------
    start : ndarray (S,) of int
        For each step the first row of its window in ``Signals.data``; −1 where the step has no
        window (n/a): its centre was left out, or it would bridge a gap.
    onset : ndarray (S,) of float
        Centre of the window in seconds from the start of the original run: the mean onset of its
        volumes.
    window, stride : int
        Volumes.
    seconds : float
        From one step to the next.
    """

    start: np.ndarray
    onset: np.ndarray
    window: int
    stride: int
    seconds: float

    def __len__(self) -> int:
        return len(self.start)

    @property
    def valid(self) -> np.ndarray:
        """Steps that have a window, (S,) of bool."""
        return self.start >= 0

    @property
    def window_apart(self) -> int:
        """Steps between two windows that share no volume."""
        return int(np.ceil(self.window / self.stride))


def lay_windows(
    kept: np.ndarray, n_volumes: int, repetition_time: float, window: int, stride: int = 1
) -> Steps:
    """Lay windows of `window` kept volumes over a run.

    There are always as many steps as the whole run has windows, ``(n_volumes − window) // stride
    + 1``, evenly spaced in time. The window of a step holds the ``window`` kept volumes around
    the volume at its centre; where nothing is left out, that is the stretch itself.

    Parameters
    ----------
    kept : ndarray (T,) of int
        Indices of the kept volumes in the run, ascending.
    n_volumes : int
        Volumes of the run.
    repetition_time : float
        Seconds.
    window, stride : int
        Volumes.

    Examples
    --------
    >>> lay_windows(np.arange(6), 6, 2.0, window=4).onset
    array([3., 5., 7.])
    >>> kept = np.array([0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11])  # volume 8 is left out
    >>> lay_windows(kept, 12, 1.0, window=1).start
    array([ 0,  1,  2,  3,  4,  5,  6,  7, -1,  8,  9, 10])
    """
    n_steps = max(0, (n_volumes - window) // stride + 1)
    centre = np.arange(n_steps) * stride + window // 2
    row_of = np.full(n_volumes, -1)
    row_of[kept] = np.arange(len(kept))
    start = row_of[centre] - window // 2
    fits = (row_of[centre] >= 0) & (start >= 0) & (start + window <= len(kept))
    start = np.where(fits, start, -1)
    # The longest stretch left out between two neighbouring volumes of each window.
    left_out = np.diff(kept) - 1
    for step in np.flatnonzero(fits):
        inside = left_out[start[step] : start[step] + window - 1]
        if inside.size and inside.max() > _LONGEST_GAP * window:
            start[step] = -1
    onset = (np.arange(n_steps) * stride + (window - 1) / 2) * repetition_time
    return Steps(start, onset, window, stride, stride * repetition_time)


def steps_of(signals: Signals, window: int | None, stride: int = 1) -> Steps:
    """:func:`lay_windows` for the signals of a run; one step of all volumes for no window."""
    n_volumes, seconds = signals.n_volumes, signals.repetition_time
    if window is None:
        onset = np.array([(n_volumes - 1) / 2 * seconds])
        return Steps(np.array([0]), onset, signals.n_kept, n_volumes, n_volumes * seconds)
    return lay_windows(signals.kept, n_volumes, seconds, window, stride)
