"""What is measured of each surrogate run, kept as it comes: most of a job's time is theirs."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from bids_fbn.signal.signals import Signals

__all__ = ["over_surrogates"]

logger = logging.getLogger(__name__)


def over_surrogates(
    runs: Iterator[Signals],
    n: int,
    measure: Callable[[Signals], Iterable[float]],
    store: Path | None,
    words: str,
) -> np.ndarray:
    """Measure each surrogate of a run, but those that an earlier call has measured.

    Parameters
    ----------
    runs : iterator of Signals
        n of them, always the same.
    n : int
    measure : callable
        Surrogate → k numbers.
    store : Path, optional
        File that keeps the numbers of each as soon as they are there. A half-written line of a
        call that was killed is dropped.
    words : str
        What is computed, for the log.

    Returns
    -------
    ndarray (n, k)
        (0, 0) if n is 0.
    """
    done = _read_lines(store)[:n]
    if store is not None:
        store.parent.mkdir(parents=True, exist_ok=True)
    for number, run in enumerate(runs):
        if number < len(done):
            continue
        done.append([float(value) for value in measure(run)])
        if store is not None:
            _add_line(store, done[-1])
        level = logging.DEBUG if (number + 1) % 10 else logging.INFO
        logger.log(level, "%s: surrogate %d of %d", words, number + 1, n)
    return np.array(done, dtype=float).reshape(n, -1 if n else 0)


def _add_line(path: Path, numbers: Sequence[float]) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(numbers) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read_lines(path: Path | None) -> list[list[float]]:
    if path is None or not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        path.write_text("".join(whole))
    return [json.loads(line) for line in whole]
