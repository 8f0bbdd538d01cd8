"""Which GPUs a call may use, and that no two of its nodes compute on the same one.

nipype counts how many nodes want a GPU, and does not say which one any of them gets. So each node
takes one here, by a lock that the system gives back when the node's process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from bids_fbn.errors import InputError

__all__ = ["GpuPool", "gpus_of", "use_given_gpus"]

logger = logging.getLogger(__name__)

# Where a scheduler says which GPUs are ours, besides CUDA_VISIBLE_DEVICES; a step's GPUs before
# those of the whole job.
_GIVEN = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "GPU_DEVICE_ORDINAL")
_SECONDS_BETWEEN_LOOKS = 0.5


def use_given_gpus(environment: MutableMapping[str, str] = os.environ) -> None:
    """Keep to the GPUs that the scheduler gave, where CUDA has not been told of them.

    ``CUDA_VISIBLE_DEVICES`` always wins, and is what SLURM sets where it manages GPUs. It can be
    lost on the way into a container while other variables of the job come through. Then the lists
    in ``SLURM_STEP_GPUS``, ``SLURM_JOB_GPUS`` and ``GPU_DEVICE_ORDINAL`` are looked at:

    - If no more GPUs can be seen than the list has, the control group (``ConstrainDevices``) or
      the container shows only ours. SLURM numbers GPUs of the whole node, CUDA those that it
      sees: the list says nothing then.
    - If more can be seen, they are those of the node, and the list goes into
      ``CUDA_VISIBLE_DEVICES``, counted in the order of the bus, as SLURM's numbers are.
    - If it names one that cannot be seen, whose the others are is unknown.

    Nothing is left to go by where no variable comes through at all, as with ``--cleanenv`` of
    Singularity, and the cluster does not constrain devices: then all GPUs of the node are used,
    unless ``--env CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES`` is given as well.

    To be called before CUDA is started, which reads the variable once.

    Parameters
    ----------
    environment : mutable mapping
        That of this process, and of those that it will start.

    Raises
    ------
    InputError
        In the third case.
    """
    if "CUDA_VISIBLE_DEVICES" in environment:
        return
    name = next((name for name in _GIVEN if environment.get(name)), None)
    if name is None:
        return
    given = environment[name].split(",")
    n_visible = torch.cuda.device_count()
    if n_visible <= len(given):
        return
    if not all(number.isdigit() and int(number) < n_visible for number in given):
        raise InputError(
            f"{name}={environment[name]}, but {n_visible} GPUs can be seen, counted from 0: which "
            "of them are this job's? Set CUDA_VISIBLE_DEVICES to their numbers (with Singularity "
            "--env CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES)"
        )
    environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    environment["CUDA_VISIBLE_DEVICES"] = ",".join(given)
    logger.info("GPUs of this job, by %s: %s", name, environment[name])


def gpus_of(device: str) -> tuple[str, ...]:
    """The GPUs, as ``cuda:N``, that an option ``--device`` stands for; none for the CPU.

    Parameters
    ----------
    device : str
        ``auto`` and ``cuda`` for all that can be seen, ``cuda:N`` for one, or ``cpu``.
    """
    if device == "cpu":
        return ()
    if device not in ("auto", "cuda"):
        return (device,)
    use_given_gpus()
    n_visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return tuple(f"cuda:{index}" for index in range(n_visible))


@dataclass(frozen=True)
class GpuPool:
    """GPUs that the nodes of one call share, each of them one at a time.

    Parameters
    ----------
    devices : tuple of str
        ``cuda:N``; at least one.
    locks : Path
        Folder for lock files, of this call alone: in a job array ``cuda:0`` may be another GPU in
        every task.
    """

    devices: tuple[str, ...]
    locks: Path

    @contextlib.contextmanager
    def take(self) -> Iterator[str]:
        """A GPU that no other node has, as long as the context lasts; waits for one."""
        device, lock = self._wait()
        try:
            yield device
        finally:
            # This process stays to compute other nodes, perhaps on another GPU: what it keeps of
            # this one's memory would be missing to the next node there.
            torch.cuda.empty_cache()
            lock.release()

    def _wait(self) -> tuple[str, FileLock]:
        self.locks.mkdir(parents=True, exist_ok=True)
        locks = [
            (device, FileLock(self.locks / f"{device.replace(':', '-')}.lock"))
            for device in self.devices
        ]
        while True:
            for device, lock in locks:
                with contextlib.suppress(Timeout):
                    lock.acquire(timeout=0)
                    return device, lock
            time.sleep(_SECONDS_BETWEEN_LOOKS)
