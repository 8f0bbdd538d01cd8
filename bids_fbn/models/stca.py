"""STCA, spatial-temporal convolutional attention.

A window of volumes goes in as channels; the logits of its spatial attention are the networks of
the window.

Liu Y, Ge E, Qiang N, Liu T, Ge B. Spatial-temporal convolutional attention for mapping functional
brain networks. IEEE ISBI 2023. Liu Y, Ge E, Kang Z, Qiang N, Liu T, Ge B. Spatial-temporal
convolutional attention for discovering and characterizing functional brain networks in task fMRI.
NeuroImage 287:120519, 2024.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_fbn.models.base import Model, Recipe
from bids_fbn.models.blocks import (
    ChannelAttention,
    ResidualBlock,
    SpatialAttention,
    conv3d,
    crop_to,
    pad_to,
    padded_shape,
)

__all__ = ["STCA", "STCANetwork"]

_LEVELS = 4


class STCANetwork(nn.Module):
    """The network: windows (B, W, X, Y, Z) → reconstructed windows (B, W, X, Y, Z).

    Parameters
    ----------
    window : int
        W, volumes in a window.
    channels : int
        C, features and maps.
    shape : tuple of int
        X, Y, Z.
    cube : bool
        Pad to a cube, as published, rather than each side by itself.
    """

    def __init__(
        self, window: int, channels: int, shape: tuple[int, ...], cube: bool = False
    ) -> None:
        super().__init__()
        self.shape = shape
        self.padded = padded_shape(shape, 2**_LEVELS, cube)
        self.embed = conv3d(window, channels, 7)
        self.channel_attention = ChannelAttention(channels)
        self.spatial_attention = SpatialAttention(channels)
        self.encoder = nn.ModuleList(ResidualBlock(channels, 3) for _ in range(_LEVELS))
        self.decoder = nn.ModuleList(ResidualBlock(channels, 3) for _ in range(_LEVELS))
        self.project = conv3d(channels, window, 7)
        self.mix = nn.Conv3d(window, window, 1)

    def attend(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, X, Y, Z) and logits (B, C, X, Y, Z): all that maps need."""
        features = functional.gelu(self.embed(windows))
        features = features * self.channel_attention(features)
        return features, self.spatial_attention(features)

    def forward(self, windows: Tensor) -> Tensor:
        features, logits = self.attend(windows)
        features = pad_to(features * logits.sigmoid(), self.padded)
        for block in self.encoder:
            features = functional.max_pool3d(block(features), 2)
        for block in self.decoder:
            # Said in full because under autocast the interpolation may come back in fp32.
            features = block(functional.interpolate(features, scale_factor=2, mode="trilinear"))
        return crop_to(self.mix(functional.gelu(self.project(features))), self.shape)


class STCA(Model):
    """STCA as a model: see :class:`~bids_fbn.models.base.Model`."""

    name = "stca"
    recipes: ClassVar[dict[str, Recipe]] = {
        # One participant, windows in time order, one epoch: the paper and its released code.
        "as-published": Recipe(
            window=40,
            channels=64,
            learning_rate=1e-4,
            epochs=1,
            batch=1,
            stride=1,
            shuffle=False,
            whole_box=True,
            cube=True,
            fixed_threshold=3.6,
        ),
        # Windows one volume apart share 39 of 40 volumes: as many steps over windows further
        # apart see the run several times, in random order.
        "corrected": Recipe(
            window=40, channels=64, learning_rate=1e-3, epochs=10, batch=1, stride=10
        ),
        "sloppy": Recipe(window=20, channels=16, learning_rate=5e-3, epochs=4, batch=2, stride=5),
    }

    def _build(self) -> nn.Module:
        recipe = self.recipe
        return STCANetwork(recipe.window, recipe.channels, self.box_shape, recipe.cube)

    @torch.no_grad()
    def _candidates(self, batch: Tensor) -> Tensor:
        _, logits = self.network.attend(batch)
        logits = logits.float()
        if self.recipe.whole_box:
            # As published: z over the whole box, of which the brain is a fifth.
            mean = logits.mean(dim=(2, 3, 4), keepdim=True)
            spread = logits.std(dim=(2, 3, 4), keepdim=True)
            # A map without variation becomes 0, not NaN.
            logits = (logits - mean) / spread.clamp_min(1e-12)
        return self._in_mask(logits)
