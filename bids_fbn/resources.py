"""How many processors and how much memory this process may use, and with which others it computes.

What the control group or SLURM gives, not what the host has: a task that starts as many threads as
the node has cores is the classic way of slowing down everybody else's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bids_fbn.errors import InputError

__all__ = [
    "Processes",
    "available_memory_gb",
    "available_processors",
    "launched_processes",
    "read_plugin_settings",
]

_CGROUP = Path("/sys/fs/cgroup")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _cgroup_processors(root: Path) -> float | None:
    quota, _, period = _read(root / "cpu.max").partition(" ")  # version 2
    if not quota:
        quota = _read(root / "cpu" / "cpu.cfs_quota_us")
        period = _read(root / "cpu" / "cpu.cfs_period_us")
    try:
        return float(quota) / float(period) if float(quota) > 0 else None
    except ValueError:  # "max", or no such file
        return None


def available_processors(
    environment: Mapping[str, str] = os.environ, cgroup: Path = _CGROUP
) -> int:
    """Processors for this process, at least 1."""
    limits: list[float] = [len(os.sched_getaffinity(0))]
    quota = _cgroup_processors(cgroup)
    if quota is not None:
        limits.append(quota)
    slurm = environment.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdigit():
        limits.append(int(slurm))
    return max(1, int(min(limits)))


def available_memory_gb(
    environment: Mapping[str, str] = os.environ, cgroup: Path = _CGROUP
) -> float:
    """Memory for this process, GB (10⁹ bytes)."""
    limits = [psutil.virtual_memory().total / 1e9]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _read(cgroup / name)
        if text.isdigit():
            limits.append(int(text) / 1e9)
    slurm = environment.get("SLURM_MEM_PER_NODE", "")
    if slurm.isdigit() and int(slurm) > 0:
        limits.append(int(slurm) * 2**20 / 1e9)
    return min(limits)


def read_plugin_settings(path: Path) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a nipype plugin from a YAML file, as ``--use-plugin`` takes it.

    Raises
    ------
    InputError
    """
    import yaml

    try:
        settings = yaml.safe_load(path.read_text())
        return str(settings["plugin"]), dict(settings.get("plugin_args", {}))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: not nipype plugin settings, a YAML with plugin and plugin_args ({reason})"
        ) from None


@dataclass(frozen=True)
class Processes:
    """The processes that compute together.

    Parameters
    ----------
    per_node : int
        On this machine.
    nodes : int
        Machines.
    rank, local_rank : int
        Which of all processes, and of those on this machine, this one is.
    """

    per_node: int = 1
    nodes: int = 1
    rank: int = 0
    local_rank: int = 0

    @property
    def total(self) -> int:
        return self.per_node * self.nodes


def launched_processes() -> Processes:
    """As how many processes ``torchrun`` or SLURM's ``srun`` has started this program.

    Raises
    ------
    InputError
        If the nodes have different numbers of processes.
    """
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        total, per_node = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
        rank, local_rank = int(environment["RANK"]), int(environment["LOCAL_RANK"])
    elif "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment:
        total = int(environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1")))
        nodes = int(environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", "1")))
        per_node = max(1, total // nodes)
        rank, local_rank = int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"])
        # Lightning reads them of the step, and wants the number that --ntasks leaves unsaid.
        environment["SLURM_NTASKS"] = str(total)
        environment["SLURM_NNODES"] = str(nodes)
        environment["SLURM_NTASKS_PER_NODE"] = str(per_node)
    else:
        return Processes()
    if total % per_node:
        raise InputError(
            f"{total} processes with {per_node} on this node: start as many on each node"
        )
    return Processes(per_node, total // per_node, rank, local_rank)
