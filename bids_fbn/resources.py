"""How many processors and how much memory this process may use, and how nipype spreads work.

What the control group or SLURM gives, not what the host has: a task that starts as many threads as
the node has cores is the classic way of slowing down everybody else's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from bids_fbn.errors import InputError

__all__ = ["available_memory_gb", "available_processors", "read_plugin_settings"]

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
