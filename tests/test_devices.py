"""Which GPUs a call uses, and that no two of its nodes are on the same one.

There need be no GPU: how many torch sees is made up. What is tested with real processes is the
handing out of GPUs, which knows them by name alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    SimpleInterface,
    TraitedSpec,
    traits,
)
from nipype.pipeline import engine as pe

from bids_fbn import devices
from bids_fbn.bids.boldrun import BoldRun
from bids_fbn.config import ComputeOptions, Config, NetworkOptions
from bids_fbn.devices import GpuPool, gpus_of, use_given_gpus
from bids_fbn.errors import InputError
from bids_fbn.models.compute import choose_compute
from bids_fbn.participant import _gpus
from bids_fbn.request import check
from bids_fbn.workflows.participant import CleanedFolder, Plan, RunToDo, networks_workflow

TEMPLATES = NetworkOptions(templates="seitzman2018")  # need no download
LISTS = ("CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "GPU_DEVICE_ORDINAL")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let torch see as many GPUs as it is called with, and nobody have given any."""
    for name in LISTS:
        monkeypatch.delenv(name, raising=False)

    def see(number: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)

    return see


# --- those that were given ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "n_visible", "used"),
    [
        ({}, 4, None),
        ({"SLURM_JOB_GPUS": "2"}, 4, "2"),
        ({"SLURM_JOB_GPUS": "0,1,3", "SLURM_STEP_GPUS": "3"}, 4, "3"),
        ({"GPU_DEVICE_ORDINAL": "1,3"}, 4, "1,3"),
        # The control group shows what was given and nothing else: there it is called 0.
        ({"SLURM_JOB_GPUS": "2"}, 1, None),
        ({"SLURM_JOB_GPUS": "5,7"}, 2, None),
        ({"SLURM_JOB_GPUS": "2"}, 0, None),
        # What CUDA was told wins, also that there is none.
        ({"CUDA_VISIBLE_DEVICES": "1", "SLURM_JOB_GPUS": "2"}, 4, "1"),
        ({"CUDA_VISIBLE_DEVICES": "", "SLURM_JOB_GPUS": "2"}, 4, ""),
    ],
)
def test_of_many_gpus_those_that_the_scheduler_gave_are_used(
    gpus: Any, given: dict[str, str], n_visible: int, used: str | None
) -> None:
    gpus(n_visible)
    environment = dict(given)
    use_given_gpus(environment)
    assert environment.get("CUDA_VISIBLE_DEVICES") == used
    numbered_here = used is not None and "CUDA_VISIBLE_DEVICES" not in given
    assert environment.get("CUDA_DEVICE_ORDER") == ("PCI_BUS_ID" if numbered_here else None)


@pytest.mark.parametrize("number", ["5", "MIG-GPU-1/2/3"])
def test_a_gpu_that_cannot_be_told_from_those_of_others_is_refused(gpus: Any, number: str) -> None:
    gpus(2)
    with pytest.raises(InputError, match=f"SLURM_JOB_GPUS={number}, but 2 GPUs"):
        use_given_gpus({"SLURM_JOB_GPUS": number})


def test_a_device_is_chosen_among_those_that_were_given(
    gpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(4)
    monkeypatch.setenv("SLURM_JOB_GPUS", "2,3")
    # Left as they were after the test.
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    del os.environ["CUDA_VISIBLE_DEVICES"]
    assert choose_compute("cuda:1", "fp32").device == "cuda:1"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_nothing_is_looked_for_on_the_cpu(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(2)
    monkeypatch.setenv("SLURM_JOB_GPUS", "5")
    assert choose_compute("cpu", "fp32").device == "cpu"
    assert gpus_of("cpu") == ()


def test_all_gpus_are_used_unless_one_is_named(gpus: Any) -> None:
    gpus(3)
    assert gpus_of("auto") == gpus_of("cuda") == ("cuda:0", "cuda:1", "cuda:2")
    assert gpus_of("cuda:1") == ("cuda:1",)
    gpus(0)
    assert gpus_of("auto") == ()


def test_a_computer_without_a_gpu_says_once_that_it_uses_the_cpu(
    gpus: Any, simulated: Path, tmp_path: Path
) -> None:
    gpus(0)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("bids_fbn")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        check(Config(bids_dir=simulated, output_dir=tmp_path / "out", networks=TEMPLATES))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    (line,) = [line for line in said if "GPU" in line]
    assert re.match(r"computing on CPU, \d+ threads \(no GPU here\)", line)


# --- one node, one GPU --------------------------------------------------------------------------


def test_two_nodes_have_two_gpus_and_a_third_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = GpuPool(("cuda:0", "cuda:1"), tmp_path / "locks")
    with contextlib.ExitStack() as first, pool.take() as second:
        first.enter_context(pool.take())
        waits = []

        def the_first_ends(_: float) -> None:
            waits.append("waited")
            first.close()

        monkeypatch.setattr(devices.time, "sleep", the_first_ends)
        with pool.take() as third:
            assert {second, third} == {"cuda:0", "cuda:1"}
    assert waits == ["waited"]


def test_an_error_gives_the_gpu_back(tmp_path: Path) -> None:
    pool = GpuPool(("cuda:0",), tmp_path)
    with pytest.raises(ZeroDivisionError), pool.take():
        1 / 0  # noqa: B018
    with pool.take() as device:
        assert device == "cuda:0"


_TAKE_FOR_EVER = """
import signal, sys
from pathlib import Path
from bids_fbn.devices import GpuPool
with GpuPool(("cuda:0",), Path(sys.argv[1])).take() as device:
    print(device, flush=True)
    signal.pause()
"""


def test_the_gpu_of_a_killed_worker_is_free_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", _TAKE_FOR_EVER, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "cuda:0\n"
    waits = []

    def kill(_: float) -> None:
        waits.append("waited")
        worker.send_signal(signal.SIGKILL)
        worker.wait()

    monkeypatch.setattr(devices.time, "sleep", kill)
    with GpuPool(("cuda:0",), tmp_path).take() as device:
        assert device == "cuda:0"
    assert waits == ["waited"]
    worker.stdout.close()


# --- nipype -------------------------------------------------------------------------------------


def nodes_of(
    folder: Path, gpus: GpuPool | None, network: str = "stca", **sections: Any
) -> dict[str, pe.Node]:
    """The nodes of a run for a neural network and a classical method, by name."""
    run = BoldRun({"subject": "01", "task": "rest"}, folder / "bold.nii.gz", 2.0, "MNI", 100)
    to_do = RunToDo(run, (network, "pca"), "bids::sub-01", "s", {network: "a", "pca": "b"}, 2)
    parcels = folder / "parcels.npz"
    if not parcels.exists():  # the time of a file counts in a node's hash
        parcels.touch()
    config = Config(bids_dir=folder, output_dir=folder / "out", **sections)
    plan = Plan(config, folder, parcels, parcels, {}, 3, folder / "crashes", gpus)
    workflow = networks_workflow(plan, [CleanedFolder(to_do, folder, "f")])
    return {name: workflow.get_node(name) for name in workflow.list_node_names()}


def test_nodes_with_a_neural_network_take_gpus(tmp_path: Path) -> None:
    nodes = nodes_of(tmp_path, GpuPool(("cuda:0", "cuda:1"), tmp_path / "locks"))
    computing = {name for name, node in nodes.items() if node.is_gpu_node()}
    assert computing == {f"{stage}_stca_sub_01_task_rest" for stage in ("fit", "find", "weigh")}
    for name in computing:
        inputs = nodes[name].inputs
        assert (inputs.gpus, inputs.gpu_locks) == (["cuda:0", "cuda:1"], str(tmp_path / "locks"))
    assert not any(node.is_gpu_node() for node in nodes_of(tmp_path, None).values())


def test_where_surrogates_get_models_of_their_own_there_is_memory_to_train_them(
    tmp_path: Path,
) -> None:
    def gigabytes(stage: str, network: str, **nulls: Any) -> float:
        nodes = nodes_of(tmp_path, None, network, nulls=nulls)
        return float(nodes[f"{stage}_{network}_sub_01_task_rest"].mem_gb)

    for network in ("scaae", "stca"):
        weigh = gigabytes("weigh", network, refit_surrogates=True)
        assert weigh > gigabytes("fit", network) > gigabytes("weigh", network)


def test_a_call_is_taken_up_where_there_are_other_gpus(tmp_path: Path) -> None:
    """A node is not computed again because of what it was computed on."""

    def hashes(gpus: GpuPool | None) -> dict[str, str]:
        nodes = nodes_of(tmp_path, gpus)
        return {name: node.inputs.get_hashval()[1] for name, node in nodes.items()}

    assert hashes(GpuPool(("cuda:3",), tmp_path)) == hashes(None)


def test_the_gpus_of_jobs_elsewhere_are_left_to_the_scheduler(gpus: Any, tmp_path: Path) -> None:
    gpus(2)
    settings = tmp_path / "plugin.yaml"

    def pool(plugin: str) -> GpuPool | None:
        settings.write_text(f"plugin: {plugin}")
        return _gpus(ComputeOptions(use_plugin=settings), tmp_path)

    assert pool("SLURM") is None
    assert pool("MultiProc") == _gpus(ComputeOptions(), tmp_path)
    assert pool("MultiProc") == GpuPool(("cuda:0", "cuda:1"), tmp_path)
    gpus(0)
    assert _gpus(ComputeOptions(), tmp_path) is None


class _HoldInputs(BaseInterfaceInputSpec):
    use_gpu = traits.Bool(True, usedefault=True)
    gpus = traits.List(traits.Str, mandatory=True)
    gpu_locks = traits.Str(mandatory=True)


class _HoldOutputs(TraitedSpec):
    device = traits.Str()


class HoldGpu(SimpleInterface):
    """Takes a GPU until all have been taken at once; fails if another node has it too."""

    input_spec = _HoldInputs
    output_spec = _HoldOutputs

    def _run_interface(self, runtime: Any) -> Any:
        locks = Path(self.inputs.gpu_locks)
        with GpuPool(tuple(self.inputs.gpus), locks).take() as device:
            held = locks / f"{device}.held"
            held.touch(exist_ok=False)
            (locks / f"{device}.seen").touch()
            until = time.monotonic() + 60
            while len(list(locks.glob("*.seen"))) < len(self.inputs.gpus):
                if time.monotonic() > until:
                    raise RuntimeError("one GPU was idle")
            held.unlink()
        self._results["device"] = device
        return runtime


@pytest.mark.parametrize("slots_too_many", [0, 40])
def test_running_nodes_have_a_gpu_each(tmp_path: Path, slots_too_many: int) -> None:
    """By the slots that nipype is told of; and by the locks, where it is told of too many."""
    pool = GpuPool(("cuda:0", "cuda:1"), tmp_path / "locks")
    config = Config(bids_dir=tmp_path, output_dir=tmp_path)
    plan = Plan(config, tmp_path, tmp_path, tmp_path, {}, 2, tmp_path / "crashes", pool)
    assert plan.gpu_slots == 4
    workflow = plan.workflow("hold")
    hold = HoldGpu(gpus=list(pool.devices), gpu_locks=str(pool.locks))
    workflow.add_nodes([pe.Node(hold, name=f"hold{i}", n_procs=plan.threads) for i in range(4)])
    done = workflow.run(
        plugin="MultiProc",
        plugin_args={
            "n_procs": 8,
            "memory_gb": 8,
            "n_gpu_procs": plan.gpu_slots + slots_too_many,
            "mp_context": "forkserver",
        },
    )
    used = {node.result.outputs.device for node in done.nodes()}
    assert used == {"cuda:0", "cuda:1"}
