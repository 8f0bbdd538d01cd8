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
_MEMBERSHIP = Path("/proc/self/cgroup")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _control_groups(root: Path, membership: Path, controller: str) -> list[Path]:
    """Folders of the control groups that this process is in, for ``cpu`` or ``memory``.

    A limit of any of them holds. SLURM sets those of a job on a group above that of its processes,
    systemd on those of a user; in a container the group of the process is usually the root.
    """
    folders = [root, root / controller]  # versions 2 and 1
    for line in _read(membership).splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        hierarchy = root / controller if controllers else root
        inside = Path(group.lstrip("/"))
        if ".." not in inside.parts:  # of a group outside this container's namespace
            folders += [hierarchy / part for part in (inside, *inside.parents)]
    return list(dict.fromkeys(folders))


def _quota(group: Path) -> float | None:
    """Processors that a control group may use; None for no limit."""
    quota, _, period = _read(group / "cpu.max").partition(" ")  # version 2
    if not quota:
        quota = _read(group / "cpu.cfs_quota_us")
        period = _read(group / "cpu.cfs_period_us")
    try:
        return float(quota) / float(period) if float(quota) > 0 else None
    except ValueError:  # "max", or no such file
        return None


def _number(environment: Mapping[str, str], *names: str) -> int | None:
    """The first of these variables that is a number above 0."""
    for name in names:
        text = environment.get(name, "")
        if text.isdigit() and int(text) > 0:
            return int(text)
    return None


# Of a task; and of a job that was not asked for processors per task.
_SLURM_PROCESSORS = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")


def available_processors(
    environment: Mapping[str, str] = os.environ,
    cgroup: Path = _CGROUP,
    membership: Path = _MEMBERSHIP,
) -> int:
    """Processors for this process, at least 1.

    The fewest of: those that it may run on, the quota of its control groups, and what SLURM gave.
    """
    limits: list[float] = [len(os.sched_getaffinity(0))]
    quotas = map(_quota, _control_groups(cgroup, membership, "cpu"))
    limits += [quota for quota in quotas if quota is not None]
    slurm = _number(environment, *_SLURM_PROCESSORS)
    if slurm is not None:
        limits.append(slurm)
    return max(1, int(min(limits)))


def available_memory_gb(
    environment: Mapping[str, str] = os.environ,
    cgroup: Path = _CGROUP,
    membership: Path = _MEMBERSHIP,
) -> float:
    """Memory for this process, GB (10⁹ bytes).

    The least of: what the machine has, the limits of its control groups, and what SLURM gave, for
    the node (``--mem``) or for each processor (``--mem-per-cpu``).
    """
    limits = [psutil.virtual_memory().total / 1e9]
    for group in _control_groups(cgroup, membership, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):  # versions 2 and 1
            text = _read(group / name)
            if text.isdigit():
                limits.append(int(text) / 1e9)
    mebibytes = _number(environment, "SLURM_MEM_PER_NODE")
    per_processor = _number(environment, "SLURM_MEM_PER_CPU")
    if mebibytes is None and per_processor is not None:
        processors = _number(environment, "SLURM_CPUS_ON_NODE", "SLURM_CPUS_PER_TASK") or 1
        mebibytes = per_processor * processors
    if mebibytes is not None:
        limits.append(mebibytes * 2**20 / 1e9)
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
