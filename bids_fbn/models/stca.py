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

from bids_fbn.models.blocks import (
    ChannelAttention,
    ResidualBlock,
    SpatialAttention,
    arranged,
    conv3d,
    pad_to,
    padded_shape,
    part_of,
    within,
)
from bids_fbn.models.geometry import Region, convolve, crop
from bids_fbn.models.neural import NeuralModel, Recipe, Untrained

__all__ = ["STCA", "STCAAttention", "STCANetwork"]

_LEVELS = 4
# What logits in the mask can see of the features: 3 voxels by the wide kernel, 1 by the narrow.
_NEAR = 4


class STCAAttention(nn.Module):
    """The part of the network that makes maps: windows (B, W, X, Y, Z) → features and logits.

    Parameters
    ----------
    window : int
        W, volumes in a window.
    channels : int
        C, features and maps.
    region : Region
        Of the MNI box, where windows are given and logits wanted; windows are 0 elsewhere.
    """

    def __init__(self, window: int, channels: int, region: Region) -> None:
        super().__init__()
        self.region = region
        self.near = region.grown(_NEAR)
        self.embed = conv3d(window, channels, 7)
        self.channel_attention = ChannelAttention(channels)
        self.spatial_attention = SpatialAttention(channels)

    def attend(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits, both (B, C, *region): those of the network on the whole MNI box."""
        windows = arranged(windows)
        features = functional.gelu(convolve(self.embed, windows, self.region, self.near))
        # Where the kernel sees no brain the features are those of the bias alone.
        assert self.embed.bias is not None
        beyond = functional.gelu(self.embed.bias)
        weights = self.channel_attention(features, beyond, self.near.n_outside)
        features = features * weights
        logits = self.spatial_attention(features, self.near, self.region)
        return crop(features, self.near, self.region), logits


class STCANetwork(STCAAttention):
    """The network: windows (B, W, X, Y, Z) → reconstructed windows (B, W, X, Y, Z).

    Parameters
    ----------
    window, channels, region
        See :class:`STCAAttention`.
    cube : bool
        Pad the features to a cube for encoder and decoder, as published, rather than each side by
        itself.
    """

    def __init__(self, window: int, channels: int, region: Region, cube: bool = False) -> None:
        super().__init__(window, channels, region)
        self.padded = padded_shape(region.shape, 2**_LEVELS, cube)
        self.encoder = nn.ModuleList(ResidualBlock(channels, 3) for _ in range(_LEVELS))
        self.decoder = nn.ModuleList(ResidualBlock(channels, 3) for _ in range(_LEVELS))
        self.project = conv3d(channels, window, 7)
        self.mix = nn.Conv3d(window, window, 1)

    def forward(self, windows: Tensor) -> Tensor:
        features, logits = self.attend(windows)
        features = pad_to(features * logits.sigmoid(), self.padded)
        for block in self.encoder:
            features = functional.max_pool3d(block(features), 2)
        for block in self.decoder:
            # Said in full because under autocast the interpolation may come back in fp32.
            features = block(functional.interpolate(features, scale_factor=2, mode="trilinear"))
        padded = Region.of(self.padded)
        features = convolve(self.project, features, padded, within(self.padded, self.region.shape))
        return self.mix(functional.gelu(features))


class STCA(NeuralModel):
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
        return STCANetwork(recipe.window, recipe.channels, self.region, recipe.cube)

    def _mapping_network(self) -> nn.Module:
        attention = STCAAttention(self.recipe.window, self.recipe.channels, self.region)
        attention.load_state_dict(part_of(self.network, attention))
        return attention

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


class UntrainedSTCA(Untrained, STCA):
    """STCA with the weights it starts with."""

    name = "untrained-stca"
