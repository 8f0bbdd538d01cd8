"""Several processes that train one model: who they are, and batch norm over all of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from bids_fbn.errors import InputError

__all__ = ["Processes", "launched_processes", "share_batch_norm"]


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


class _SharedBatchNorm(_BatchNorm):
    """Batch norm with the mean and variance over the batches of all processes, on any device.

    What :class:`torch.nn.SyncBatchNorm` does, which computes on GPUs only.
    """

    def _check_input_dim(self, features: Tensor) -> None:
        """Any number of axes."""

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return functional.batch_norm(
                features,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                False,
                0.0,
                self.eps,
            )
        axes = [0, *range(2, features.dim())]
        shape = [1, -1, *([1] * (features.dim() - 2))]
        exact = features.float()
        count = exact.new_tensor([exact.numel() // exact.shape[1]])
        torch.distributed.all_reduce(count)
        mean = all_reduce(exact.sum(dim=axes)) / count
        centred = exact - mean.reshape(shape)
        variance = all_reduce((centred**2).sum(dim=axes)) / count
        self._follow(mean.detach(), (variance * count / (count - 1)).detach())
        scaled = centred * (variance + self.eps).rsqrt().reshape(shape)
        result = scaled * self.weight.reshape(shape) + self.bias.reshape(shape)
        return result.to(features.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        momentum = cast(float, self.momentum)
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            if running is not None:
                running.mul_(1 - momentum).add_(value, alpha=momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def share_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Let every batch norm of a network take its statistics over all processes.

    Without it each process would normalize its own part of a batch, and a model would depend on
    how many there are.
    """
    if device.type == "cuda":
        shared: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return shared
    for name, child in network.named_children():
        if isinstance(child, _BatchNorm):
            norm = _SharedBatchNorm(child.num_features, child.eps, child.momentum)
            norm.load_state_dict(child.state_dict())
            setattr(network, name, norm)
        else:
            share_batch_norm(child, device)
    return network
