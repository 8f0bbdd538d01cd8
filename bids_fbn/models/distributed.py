"""Batch norm over several processes that train one model."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["share_batch_norm"]


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
