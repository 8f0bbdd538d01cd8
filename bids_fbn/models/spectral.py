"""Convolutions by Fourier transform, for processors that have no fast way to multiply in bf16.

A kernel of 7³ costs 343 multiplications per voxel and pair of channels. In tiles (overlap-save,
Oppenheim & Schafer, *Discrete-time signal processing*, section 8.7.3) it costs a few, and the
result is that of fp32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["SpectralConv3d", "has_spectra", "use_spectra"]

# In fp32, 64 to 64 channels of 7³ were 2.4 times faster than directly, 16 to 16 of 7³ as fast, and
# 32 to 32 of 5³ half as fast. With the kernels' spectra at hand STCA's maps take two thirds of the
# time that they take in bf16 by AVX-512.
_KERNEL = 7
_CHANNELS = 32
# Voxels along a tile's side, about: larger tiles waste less on their overlap, smaller ones keep
# the kernels' spectra small (each of 64 × 64 kernels has as many frequencies as half a tile).
_TILE = 24


def use_spectra(network: nn.Module) -> nn.Module:
    """Replace the wide convolutions of a network, in place; for maps only, not for training."""
    for name, child in network.named_children():
        if isinstance(child, nn.Conv3d) and _is_wide(child):
            setattr(network, name, SpectralConv3d(child))
        else:
            use_spectra(child)
    return network


def has_spectra(network: nn.Module) -> bool:
    """Whether :func:`use_spectra` had anything to replace."""
    return any(isinstance(layer, SpectralConv3d) for layer in network.modules())


def _is_wide(layer: nn.Conv3d) -> bool:
    channels = min(layer.in_channels, layer.out_channels)
    return layer.groups == 1 and layer.kernel_size[0] >= _KERNEL and channels >= _CHANNELS


class SpectralConv3d(nn.Module):
    """What a convolution computes without padding, by Fourier transform.

    (B, C, X, Y, Z) → (B, C', X − k + 1, Y − k + 1, Z − k + 1).
    """

    def __init__(self, layer: nn.Conv3d) -> None:
        super().__init__()
        self.kernel_size = layer.kernel_size
        assert layer.bias is not None
        self.weight, self.bias = layer.weight, layer.bias
        self._spectra: tuple[tuple[int, ...], Tensor] | None = None

    def forward(self, features: Tensor) -> Tensor:
        overlap = self.kernel_size[0] - 1
        wanted = [side - overlap for side in features.shape[2:]]
        tile = [_fast_length(math.ceil(side / _parts(side)) + overlap) for side in wanted]
        step = [side - overlap for side in tile]
        parts = [math.ceil(side / s) for side, s in zip(wanted, step, strict=True)]
        batch, inputs = features.shape[:2]
        beyond = [
            p * s + overlap - side
            for p, s, side in zip(parts, step, features.shape[2:], strict=True)
        ]
        tiles = functional.pad(features, [n for side in reversed(beyond) for n in (0, side)])
        for axis in range(3):
            tiles = tiles.unfold(2 + axis, tile[axis], step[axis])
        # (C, B, tiles, frequencies) → (frequencies, C, B × tiles): a matrix product for each.
        spectra = torch.fft.rfftn(tiles.transpose(0, 1), dim=(-3, -2, -1))
        frequencies = spectra.shape[-3:]
        spectra = spectra.reshape(inputs, -1, frequencies.numel()).permute(2, 0, 1)
        products = torch.bmm(self._kernel_spectra(tuple(tile)), spectra).permute(1, 2, 0)
        products = products.reshape(-1, batch, *parts, *frequencies)
        values = torch.fft.irfftn(products, tile, dim=(-3, -2, -1))
        values = values[..., : step[0], : step[1], : step[2]]
        values = values.permute(1, 0, 2, 5, 3, 6, 4, 7)
        x, y, z = (p * s for p, s in zip(parts, step, strict=True))
        values = values.reshape(batch, -1, x, y, z)[..., : wanted[0], : wanted[1], : wanted[2]]
        return values + self.bias[:, None, None, None]

    def _kernel_spectra(self, tile: tuple[int, ...]) -> Tensor:
        if self._spectra is None or self._spectra[0] != tile:
            # The layers of networks correlate: a convolution with the kernel turned round.
            spectra = torch.fft.rfftn(self.weight, tile, dim=(-3, -2, -1)).conj()
            self._spectra = tile, spectra.flatten(2).permute(2, 0, 1).resolve_conj().contiguous()
        return self._spectra[1]


def _parts(side: int) -> int:
    return max(1, round(side / _TILE))


def _fast_length(side: int) -> int:
    """The next length of which the only prime factors are 2, 3 and 5."""
    while True:
        rest = side
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return side
        side += 1
