"""Processors and memory are those that the control group or SLURM gives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bids_fbn.errors import InputError
from bids_fbn.resources import available_memory_gb, available_processors, read_plugin_settings


def test_the_affinity_of_the_process_counts(tmp_path: Path) -> None:
    assert available_processors({}, tmp_path) == len(os.sched_getaffinity(0))


def test_a_quota_of_version_2_counts(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2 * 10**9}\n")
    assert available_processors({}, tmp_path) == 1
    assert available_memory_gb({}, tmp_path) == 2


def test_no_quota_is_no_limit(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_processors({}, tmp_path) == len(os.sched_getaffinity(0))
    assert available_memory_gb({}, tmp_path) > 0


def test_a_quota_of_version_1_counts(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert available_processors({}, tmp_path) == 1


def test_slurm_counts(tmp_path: Path) -> None:
    assert available_processors({"SLURM_CPUS_PER_TASK": "1"}, tmp_path) == 1
    assert available_memory_gb({"SLURM_MEM_PER_NODE": "1000"}, tmp_path) == 1000 * 2**20 / 1e9


def test_plugin_settings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "plugin.yml"
    path.write_text("plugin: SLURM\nplugin_args:\n  sbatch_args: --time=1:00:00\n")
    assert read_plugin_settings(path) == ("SLURM", {"sbatch_args": "--time=1:00:00"})
    path.write_text("plugin: [")
    with pytest.raises(InputError, match=r"plugin\.yml"):
        read_plugin_settings(path)
