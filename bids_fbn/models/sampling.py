"""What a training step sees: windows of many runs, in which order, and how they are read.

Windows are read from the runs' files when their turn comes. What is held in memory does not depend
on how many participants there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bids_fbn.errors import RunError
from bids_fbn.signal.signals import Signals

__all__ = ["Batch", "Order", "WindowReader", "Windows", "participant_of", "split_participants"]

# Of a GPU's free memory, what runs may take that are kept there rather than read again.
_RESIDENT_SHARE = 0.25
_BATCHES_AHEAD = 2


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows for a training step.

    Parameters
    ----------
    windows : Tensor (B, W, V) of float32
        On the device.
    runs, starts : ndarray (B,) of int
        Of which run (index) each is, and the row of its first volume.
    """

    windows: Tensor
    runs: np.ndarray
    starts: np.ndarray


@dataclass(frozen=True, eq=False)
class Windows:
    """All windows of some runs.

    Parameters
    ----------
    signals : sequence of Signals
    window : int
        W, volumes.
    runs, starts : ndarray (N,) of int32
        Run (index) and first row of each window.
    first_run : int
        What batches call the first run.
    """

    signals: Sequence[Signals]
    window: int
    runs: np.ndarray
    starts: np.ndarray
    first_run: int = 0

    def __len__(self) -> int:
        return len(self.runs)

    @classmethod
    def of(
        cls, signals: Sequence[Signals], window: int, starts_of: Callable[[Signals], np.ndarray]
    ) -> Windows:
        """Gather the windows that `starts_of` names in each run."""
        starts = [np.asarray(starts_of(run), dtype=np.int32) for run in signals]
        counts = [len(of_run) for of_run in starts]
        return cls(
            signals,
            window,
            np.repeat(np.arange(len(signals), dtype=np.int32), counts),
            np.concatenate(starts) if starts else np.zeros(0, dtype=np.int32),
        )

    def thinned(self, most: int) -> Windows:
        """At most `most` of them, evenly spaced over all."""
        if len(self) <= most:
            return self
        chosen = np.linspace(0, len(self) - 1, most).round().astype(int)
        return replace(self, runs=self.runs[chosen], starts=self.starts[chosen])

    def counted_from(self, first_run: int) -> Windows:
        """The same, of runs that come after others."""
        return replace(self, first_run=first_run)


@dataclass(frozen=True)
class Order:
    """In which order the epochs take N windows; the same for the same seed.

    Parameters
    ----------
    n_windows : int
    batch : int
        Windows in a step, over all processes. They differ by at most one between steps.
    stride : int
        From one window of an epoch to the next.
    epochs : int
    shuffle : bool
    seed : int
    processes : int
        Each gets at least one window of every step.
    """

    n_windows: int
    batch: int
    stride: int
    epochs: int
    shuffle: bool
    seed: int
    processes: int = 1

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The windows of each step of an epoch (from 0).

        Raises
        ------
        RunError
            If there are fewer windows than processes.
        """
        # Every epoch starts at another volume, so that a stride leaves no window unseen for good.
        stride = min(self.stride, self.n_windows)
        offset = (epoch * stride) // self.epochs % stride
        chosen = np.arange(offset, self.n_windows, stride)
        if self.shuffle:
            np.random.default_rng([self.seed, epoch]).shuffle(chosen)
        steps = min(-(-len(chosen) // self.batch), len(chosen) // self.processes)
        if not steps:
            raise RunError(
                f"{len(chosen)} windows in an epoch for {self.processes} processes; start fewer"
            )
        return np.array_split(chosen, steps)

    @property
    def steps(self) -> int:
        """Steps of all epochs together."""
        return sum(len(self.batches(epoch)) for epoch in range(self.epochs))


class WindowReader:
    """Reads windows to the device.

    On a GPU the runs stay there if they take no more than a quarter of what is free. Everything
    else is read when its turn comes, two batches ahead of the step that needs it.

    Parameters
    ----------
    windows : Windows
    device : torch.device
    """

    def __init__(self, windows: Windows, device: torch.device) -> None:
        self._windows = windows
        self._device = device
        self._resident: list[Tensor] | None = None
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if sum(run.data.nbytes for run in windows.signals) <= _RESIDENT_SHARE * free:
                self._resident = [
                    torch.from_numpy(run.rows(0, run.n_kept)).to(device) for run in windows.signals
                ]

    def batches(self, chosen: Iterable[np.ndarray]) -> Iterator[Batch]:
        """A batch for each array of indices of windows."""
        if self._resident is not None:
            yield from (self._read(indices) for indices in chosen)
            return
        # One thread: it is to be ahead of the computation, not to compete with it.
        with ThreadPoolExecutor(1, "read-ahead") as pool:
            waiting = []
            for indices in chosen:
                waiting.append(pool.submit(self._read, indices))
                if len(waiting) > _BATCHES_AHEAD:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()

    def _read(self, indices: np.ndarray) -> Batch:
        windows = self._windows
        runs, starts = windows.runs[indices], windows.starts[indices]
        stretches = [
            self._stretch(int(run), int(start)) for run, start in zip(runs, starts, strict=True)
        ]
        return Batch(torch.stack(stretches).to(self._device), runs + windows.first_run, starts)

    def _stretch(self, run: int, start: int) -> Tensor:
        stop = start + self._windows.window
        if self._resident is not None:
            return self._resident[run][start:stop]
        return torch.from_numpy(self._windows.signals[run].rows(start, stop))


def participant_of(signals: Signals) -> str:
    """The participant of a run, from the run's name."""
    return signals.name.partition("_")[0]


def split_participants(
    signals: Sequence[Signals], share: float, seed: int
) -> tuple[list[Signals], list[Signals]]:
    """Part the runs into those to train on and those to validate on, by participant.

    Parameters
    ----------
    signals : sequence of Signals
    share : float
        Of the participants to validate on, rounded up; 0 for none.
    seed : int

    Returns
    -------
    training, validation : list of Signals

    Raises
    ------
    ValueError
        If no participant would be left to train on.
    """
    participants = sorted({participant_of(run) for run in signals})
    n_held_out = int(np.ceil(share * len(participants) - 1e-9))
    if n_held_out >= len(participants):
        raise ValueError(
            f"{len(participants)} participants leave none to train on with a share of {share:g} "
            "to validate on"
        )
    order = np.random.default_rng(seed).permutation(len(participants))
    held_out = {participants[i] for i in order[:n_held_out]}
    training = [run for run in signals if participant_of(run) not in held_out]
    return training, [run for run in signals if participant_of(run) in held_out]
