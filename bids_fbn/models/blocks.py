"""Layers that more than one model uses.

Features are (B, C, X, Y, Z): batch, channels, space.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_fbn.models.geometry import Region, convolve, crop

__all__ = [
    "ChannelAttention",
    "ResidualBlock",
    "SpatialAttention",
    "arranged",
    "conv3d",
    "count_parameters",
    "crop_to",
    "pad_to",
    "padded_shape",
    "part_of",
    "within",
]


def arranged(features: Tensor) -> Tensor:
    """Features (B, C, X, Y, Z) as convolutions read them fastest.

    That is channels last in bf16; the CPU's gradients of few channels take several times as long
    in any other order. Layers keep the order, so it is enough to arrange what goes in.
    """
    device = features.device.type
    if not torch.is_autocast_enabled(device):
        return features
    return features.to(torch.get_autocast_dtype(device), memory_format=torch.channels_last_3d)


class _Conv3d(nn.Conv3d):
    """A convolution whose features, if they are smaller than the kernel, stay out of bf16.

    There the CPU's kernels for bf16 (oneDNN with AVX-512) leave a part of the weights' gradient
    unwritten: it is what lay in the memory before, NaN or 10¹⁸ as it comes, and some shapes end
    the process. Coarse grids have such features where a network is deepest.
    """

    def forward(self, features: Tensor) -> Tensor:
        device = features.device.type
        if device == "cpu" and min(features.shape[2:]) < max(self.kernel_size):
            with torch.autocast(device, enabled=False):
                return super().forward(features.float())
        return super().forward(features)


def conv3d(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Conv3d:
    """Convolution that keeps the shape, zeros beyond the edge."""
    return _Conv3d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)


class ChannelAttention(nn.Module):
    """One weight per channel, between 0 and 1, from the channel's mean over space.

    (B, C, X, Y, Z) → (B, C, 1, 1, 1).
    """

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.weigh = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, channels),
            nn.Sigmoid(),
        )

    def forward(self, features: Tensor, beyond: Tensor | None = None, n_beyond: int = 0) -> Tensor:
        """Weights from features of which `n_beyond` more voxels, all of value `beyond` (C,), were
        not computed."""
        # A sum over 10⁵ voxels, and weights that scale whole channels: in fp32 always.
        with torch.autocast(features.device.type, enabled=False):
            total = features.sum(dim=(2, 3, 4), dtype=torch.float32)
            if beyond is not None:
                total = total + n_beyond * beyond.float()
            weights = self.weigh(total / (features[0, 0].numel() + n_beyond))
        return weights.to(features.dtype)[:, :, None, None, None]


class SpatialAttention(nn.Module):
    """A map for each channel, of which the sigmoid gates the features; the maps are the logits.

    (B, C, X, Y, Z) → (B, C, X, Y, Z).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = conv3d(channels, channels, 7)
        self.narrow = conv3d(channels, channels, 3)

    def forward(self, features: Tensor, given: Region, wanted: Region) -> Tensor:
        """Logits on `wanted` from features on `given`, see :func:`.geometry.convolve`."""
        between = wanted.grown(self.narrow.kernel_size[0] // 2)
        hidden = functional.gelu(convolve(self.wide, features, given, between))
        return convolve(self.narrow, hidden, between, wanted)


class ResidualBlock(nn.Module):
    """Three times (convolution, GELU), plus the block's input, then batch norm."""

    def __init__(self, channels: int, kernel: int, groups: int = 1) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *(
                layer
                for _ in range(3)
                for layer in (conv3d(channels, channels, kernel, groups), nn.GELU())
            )
        )
        self.norm = nn.BatchNorm3d(channels)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.convolutions(features) + features)


def padded_shape(shape: tuple[int, ...], multiple: int, cube: bool = False) -> tuple[int, ...]:
    """Smallest shape that holds `shape` and whose sides are multiples of `multiple`.

    Examples
    --------
    >>> padded_shape((37, 46, 39), 16)
    (48, 48, 48)
    >>> padded_shape((49, 58, 47), 16, cube=True)
    (64, 64, 64)
    """
    sides = tuple(multiple * math.ceil(side / multiple) for side in shape)
    return (max(sides),) * len(sides) if cube else sides


def _margins(inner: tuple[int, ...], outer: tuple[int, ...]) -> list[tuple[int, int]]:
    return [((o - i) // 2, o - i - (o - i) // 2) for i, o in zip(inner, outer, strict=True)]


def pad_to(features: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros on both sides of each spatial axis up to `shape`."""
    margins = _margins(tuple(features.shape[2:]), shape)
    # torch counts axes from the last.
    return functional.pad(features, [side for margin in reversed(margins) for side in margin])


def within(outer: tuple[int, ...], inner: tuple[int, ...]) -> Region:
    """Where :func:`pad_to` puts features of shape `inner` in the shape `outer`."""
    low = tuple(margin for margin, _ in _margins(inner, outer))
    return Region(outer, low, tuple(lo + i for lo, i in zip(low, inner, strict=True)))


def crop_to(features: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Inverse of :func:`pad_to`."""
    padded = tuple(features.shape[2:])
    return crop(features, Region.of(padded), within(padded, shape))


def part_of(network: nn.Module, part: nn.Module) -> dict[str, Tensor]:
    """The weights of a network that a part of it also has."""
    state = network.state_dict()
    return {key: state[key] for key in part.state_dict()}


def count_parameters(module: torch.nn.Module) -> int:
    """Parameters that training changes."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
