"""On what a model runs, and how precisely."""

from __future__ import annotations

import contextlib
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from bids_fbn.devices import use_given_gpus
from bids_fbn.errors import InputError
from bids_fbn.resources import Processes

__all__ = ["Compute", "choose_compute", "has_amx"]


@dataclass(frozen=True)
class Compute:
    """Device and precision.

    Parameters
    ----------
    device : str
        ``cpu`` or ``cuda:N``.
    precision : {"fp32", "bf16"}
        bf16 is mixed: weights and their updates stay fp32.
    processes : Processes
        That train together, each with a device of its own.
    automatic : bool
        The precision was left to the program, which may go back to fp32.
    """

    device: str
    precision: Literal["fp32", "bf16"]
    processes: Processes = field(default_factory=Processes)
    automatic: bool = False

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def name(self) -> str:
        """The device in words."""
        if self.torch_device.type == "cuda":
            return torch.cuda.get_device_name(self.torch_device)
        return f"CPU, {torch.get_num_threads()} threads"

    def fabric(self) -> Any:
        """A Lightning Fabric on this device, or on those of all processes that train together."""
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments import LightningEnvironment

        cuda = self.torch_device.type == "cuda"
        kind: dict[str, Any] = {
            "accelerator": "cuda" if cuda else "cpu",
            "precision": "bf16-mixed" if self.precision == "bf16" else "32-true",
        }
        if self.processes.total > 1:
            kind |= {
                "strategy": "ddp",
                "devices": self.processes.per_node,
                "num_nodes": self.processes.nodes,
            }
        else:
            kind["devices"] = [self.torch_device.index or 0] if cuda else 1
            # Inside a job of several tasks Fabric would wait for the others.
            kind["plugins"] = LightningEnvironment()
        # Fabric advises on schedulers and loaders that are not in use here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Fabric(**kind)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context for inference at this precision."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.torch_device.type, dtype=torch.bfloat16)


def choose_compute(
    device: str,
    precision: str,
    threads: int | None = None,
    processes: Processes | None = None,
) -> Compute:
    """Settle ``auto``; of several GPUs only those that the scheduler gave count.

    Parameters
    ----------
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    precision : str
        ``auto``, ``fp32`` or ``bf16``; auto takes bf16 where the processor computes with it.
    threads : int, optional
        For torch on the CPU.
    processes : Processes, optional
        That train together.

    Raises
    ------
    InputError
        If a GPU was required and there is none, there are more processes than GPUs, or it cannot
        be told which of several GPUs are ours, see :func:`~bids_fbn.devices.use_given_gpus`.
    """
    processes = processes or Processes()
    if threads is not None:
        torch.set_num_threads(threads)
    if device != "cpu":
        use_given_gpus()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise InputError(
                f"--device {device}: no GPU that torch can use (with Singularity add --nv, with "
                "Docker --gpus all); or use --device cpu"
            )
        index = int(device.partition(":")[2] or 0)
        if processes.total > 1:
            if processes.per_node > torch.cuda.device_count():
                raise InputError(
                    f"{processes.per_node} processes on a node with {torch.cuda.device_count()} "
                    "GPUs that each can see; start one process for each GPU (with SLURM, "
                    "--gpus-per-node rather than --gpus-per-task)"
                )
            index = processes.local_rank
        if index >= torch.cuda.device_count():
            raise InputError(
                f"--device {device}: there are {torch.cuda.device_count()} GPUs, counted from 0"
            )
        device = f"cuda:{index}"
    # The same seed gives the same weights only if the same algorithm is taken each time.
    torch.backends.mkldnn.set_flags(_deterministic=True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    automatic = precision == "auto"
    if automatic:
        precision = "bf16" if _has_bf16(device) else "fp32"
    return Compute(device, "bf16" if precision == "bf16" else "fp32", processes, automatic)


def _has_bf16(device: str) -> bool:
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without these instructions bf16 is emulated, and slower than fp32.
    return has_amx() or "avx512_bf16" in _processor_flags()


def has_amx() -> bool:
    """Whether the processor has matrix products in bf16, and not of vectors only."""
    return "amx_bf16" in _processor_flags()


def _processor_flags() -> list[str]:
    if not os.path.exists("/proc/cpuinfo"):
        return []
    return Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
