"""Parallel convolutions with batch norm as the one convolution that they are once trained.

Weights on disk stay unfolded: folding is for a copy that only makes maps.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["fold"]


def fold(
    branches: Iterable[tuple[nn.Conv3d, nn.BatchNorm3d]], keeps_input: bool = False
) -> nn.Conv3d:
    """One convolution that equals a sum of convolutions, each with its batch norm in eval mode.

    Parameters
    ----------
    branches : iterable of (Conv3d, BatchNorm3d)
        Of odd kernels and equal channels, each padded by half its kernel.
    keeps_input : bool
        The input is added to the sum.

    Returns
    -------
    Conv3d
        As wide as the widest branch. Folded in float64, kept in the branches' type.
    """
    branches = list(branches)
    widest = max((convolution for convolution, _ in branches), key=lambda c: c.kernel_size[0])
    kernel = widest.kernel_size[0]
    weights, biases = [], []
    for convolution, norm in branches:
        weight, bias = _without_norm(convolution, norm)
        weights.append(functional.pad(weight, [(kernel - convolution.kernel_size[0]) // 2] * 6))
        biases.append(bias)
    weight, bias = torch.stack(weights).sum(dim=0), torch.stack(biases).sum(dim=0)
    if keeps_input:
        centre = kernel // 2
        same = torch.arange(weight.shape[0])
        weight[same, same, centre, centre, centre] += 1
    folded = nn.Conv3d(widest.in_channels, widest.out_channels, kernel, padding=kernel // 2)
    folded.to(widest.weight.device)
    with torch.no_grad():
        folded.weight.copy_(weight)
        folded.bias.copy_(bias)  # type: ignore[union-attr]
    return folded


@torch.no_grad()
def _without_norm(convolution: nn.Conv3d, norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    mean, variance = norm.running_mean, norm.running_var
    bias = convolution.bias
    assert mean is not None
    assert variance is not None
    assert bias is not None
    scale = norm.weight.double() / (variance.double() + norm.eps).sqrt()
    weight = convolution.weight.double() * scale[:, None, None, None, None]
    return weight, (bias.double() - mean.double()) * scale + norm.bias.double()
