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


def test_limits_of_the_groups_above_count(tmp_path: Path) -> None:
    # As SLURM has it: the limits stand on the job, the process is three levels below.
    membership = tmp_path / "membership"
    membership.write_text("0::/slurmstepd.scope/job_12/step_batch/user/task_0\n")
    job = tmp_path / "slurmstepd.scope" / "job_12"
    job.mkdir(parents=True)
    (job / "memory.max").write_text(f"{3 * 10**8}\n")
    (job / "cpu.max").write_text("100000 100000\n")
    assert available_memory_gb({}, tmp_path, membership) == 0.3
    assert available_processors({}, tmp_path, membership) == 1


def test_limits_of_the_groups_of_version_1_count(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("5:memory:/slurm/uid_7/job_12\n4:cpu,cpuacct:/slurm\n3:pids:/\n")
    (tmp_path / "memory" / "slurm" / "uid_7").mkdir(parents=True)
    (tmp_path / "memory" / "slurm" / "uid_7" / "memory.limit_in_bytes").write_text("200000000")
    (tmp_path / "cpu" / "slurm").mkdir(parents=True)
    (tmp_path / "cpu" / "slurm" / "cpu.cfs_quota_us").write_text("150000")
    (tmp_path / "cpu" / "slurm" / "cpu.cfs_period_us").write_text("100000")
    assert available_memory_gb({}, tmp_path, membership) == 0.2
    assert available_processors({}, tmp_path, membership) == 1


def test_slurm_counts_processors_of_the_node_where_none_were_asked_per_task(
    tmp_path: Path,
) -> None:
    assert available_processors({"SLURM_CPUS_ON_NODE": "1"}, tmp_path) == 1
    both = {"SLURM_CPUS_PER_TASK": "1", "SLURM_CPUS_ON_NODE": "8"}
    assert available_processors(both, tmp_path) == 1


def test_slurm_counts_memory_per_processor(tmp_path: Path) -> None:
    given = {"SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_ON_NODE": "3"}
    assert available_memory_gb(given, tmp_path) == 300 * 2**20 / 1e9
    # --mem=0 is all of the node
    assert available_memory_gb({"SLURM_MEM_PER_NODE": "0"}, tmp_path) > 0.3


def test_plugin_settings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "plugin.yml"
    path.write_text("plugin: SLURM\nplugin_args:\n  sbatch_args: --time=1:00:00\n")
    assert read_plugin_settings(path) == ("SLURM", {"sbatch_args": "--time=1:00:00"})
    path.write_text("plugin: [")
    with pytest.raises(InputError, match=r"plugin\.yml"):
        read_plugin_settings(path)
