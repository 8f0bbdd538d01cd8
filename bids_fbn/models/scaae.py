"""SCAAE, spatial and channel-wise attention autoencoder.

One volume in, networks of that volume out: no window.

Liu Y, Ge E, He M, et al. Discovering dynamic functional brain networks via spatial and
channel-wise attention. arXiv:2205.09576, 2022. Liu Y, Ge E, He M, et al. Mapping dynamic spatial
patterns of brain function with spatial-wise attention. Journal of Neural Engineering 21:026005,
2024.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_fbn.errors import InputError
from bids_fbn.models.blocks import (
    ChannelAttention,
    ResidualBlock,
    SpatialAttention,
    arranged,
    conv3d,
    crop_to,
    pad_to,
    padded_shape,
    part_of,
)
from bids_fbn.models.folding import fold
from bids_fbn.models.geometry import Region, convolve, crop
from bids_fbn.models.neural import NeuralModel, Recipe, Untrained

__all__ = ["SCAAE", "SCAAEAttention", "SCAAENetwork", "cut_tails"]

# Patches of 8 voxels, then pairs of patches: each side of the padded box is a multiple of 16.
_PATCH = 8
_STRIDE = 16
# What the published box has at 4 mm beside the brain and behind it, in voxels. On coarser grids
# there are two or three, below the brain none on any, and what the network sees in the zeros that
# it pads with comes to lie on the networks near that side.
_MARGIN = 6
# A single voxel decides a minimum or maximum; values beyond this share of either tail are cut.
_TAIL = 0.001
# A map without variation becomes 0, not NaN.
_TINY = 1e-12


class ShortcutBlock(nn.Module):
    """Parallel convolutions of 5³, 3³ and 1³, each with batch norm, summed; plus the input where
    the channels agree; GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(conv3d(inputs, outputs, kernel), nn.BatchNorm3d(outputs))
            for kernel in (5, 3, 1)
        )
        self.keeps_input = inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        total = sum(branch(features) for branch in self.branches)
        return functional.gelu(total + features if self.keeps_input else total)

    def folded(self) -> nn.Sequential:
        """The block in eval mode as one convolution and its GELU."""
        branches: Any = self.branches  # of (convolution, batch norm)
        return nn.Sequential(fold(branches, self.keeps_input), nn.GELU())


class PositionMLP(nn.Module):
    """A small MLP of its own for each of P positions: (B, P, C) → (B, P)."""

    def __init__(self, positions: int, channels: int) -> None:
        super().__init__()
        sizes = (channels, channels // 2, channels, 1)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for inputs, outputs in pairwise(sizes):
            bound = inputs**-0.5  # as in nn.Linear
            self.weights.append(
                nn.Parameter(torch.empty(positions, inputs, outputs).uniform_(-bound, bound))
            )
            self.biases.append(
                nn.Parameter(torch.empty(positions, outputs).uniform_(-bound, bound))
            )

    def forward(self, features: Tensor) -> Tensor:
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            features = torch.einsum("bpi,pio->bpo", features, weight) + bias
            if index < last:
                features = functional.gelu(features)
        return features.squeeze(-1)


class SCAAEAttention(nn.Module):
    """The part of the network that makes maps: volumes (B, 1, X, Y, Z) → features and logits.

    It is computed on the whole box: the channels' weights are means over all of it.

    Parameters
    ----------
    channels : int
        Even; half of them in each of the two branches (32 as published).
    region : Region
        Of the whole box, where volumes are given; they are 0 elsewhere.
    """

    def __init__(self, channels: int, region: Region) -> None:
        super().__init__()
        self.region = region
        self.whole = Region.of(region.whole)
        half = channels // 2
        self.embed = conv3d(1, channels, 5)
        self.trunk = nn.Sequential(
            ShortcutBlock(channels, channels), ShortcutBlock(channels, channels)
        )
        self.branches = nn.ModuleList(ShortcutBlock(channels, half) for _ in range(2))
        self.spatial_attention = nn.ModuleList(SpatialAttention(half) for _ in range(2))
        self.channel_attention = ChannelAttention(channels)

    def attend(self, volumes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gated features, logits (both (B, C, *region)) and channel weights (B, C, 1, 1, 1)."""
        volumes = arranged(volumes)
        embedded = convolve(self.embed, volumes, self.region, self.whole)
        features = self.trunk(functional.gelu(embedded))
        halves = [branch(features) for branch in self.branches]
        logits = [
            attention(half, self.whole, self.whole)
            for attention, half in zip(self.spatial_attention, halves, strict=True)
        ]
        gated = torch.cat(
            [half * logit.sigmoid() for half, logit in zip(halves, logits, strict=True)], dim=1
        )
        weights = self.channel_attention(gated)
        all_logits = torch.cat([crop(maps, self.whole, self.region) for maps in logits], dim=1)
        return crop(gated, self.whole, self.region) * weights, all_logits, weights

    def folded(self) -> Self:
        """The same in eval mode, in place: each shortcut block as one convolution."""
        self.trunk = nn.Sequential(*map(_folded, self.trunk))
        self.branches = nn.ModuleList(map(_folded, self.branches))
        return self


def _folded(block: nn.Module) -> nn.Sequential:
    assert isinstance(block, ShortcutBlock)
    return block.folded()


class SCAAENetwork(SCAAEAttention):
    """The network: volumes (B, 1, X, Y, Z) → reconstructed volumes (B, 1, X, Y, Z).

    Parameters
    ----------
    channels, region
        See :class:`SCAAEAttention`.
    cube : bool
        Pad the features to a cube for what follows, as published, rather than each side by
        itself.
    """

    def __init__(self, channels: int, region: Region, cube: bool = False) -> None:
        super().__init__(channels, region)
        self.padded = padded_shape(region.shape, _STRIDE, cube)
        self.latent_shape = tuple(side // _STRIDE for side in self.padded)
        self.patches = nn.Conv3d(channels, channels, _PATCH, stride=_PATCH, groups=2)
        self.tail = nn.Sequential(*(ShortcutBlock(channels, channels) for _ in range(3)))
        self.halve = nn.Conv3d(channels, channels, 2, stride=2)
        positions = self.latent_shape[0] * self.latent_shape[1] * self.latent_shape[2]
        self.position_mlp = PositionMLP(positions, channels)
        self.unfold = conv3d(1, channels, 5)
        self.upsampling = nn.Sequential(
            *(
                layer
                for _ in range(3)
                for layer in (
                    ResidualBlock(channels, 5, groups=channels),
                    nn.ConvTranspose3d(channels, channels, 2, stride=2),
                    nn.GELU(),
                )
            ),
            ResidualBlock(channels, 5),
            ResidualBlock(channels, 5),
            nn.ConvTranspose3d(channels, channels, 2, stride=2),
            nn.GELU(),
            ResidualBlock(channels, 5),
        )
        self.project = nn.Conv3d(channels, 1, 1)

    def forward(self, volumes: Tensor) -> Tensor:
        gated, _, _ = self.attend(volumes)
        features = functional.gelu(self.patches(pad_to(gated, self.padded)))
        features = functional.gelu(self.halve(self.tail(features)))
        latent = self.position_mlp(features.flatten(2).transpose(1, 2))
        features = latent.reshape(-1, 1, *self.latent_shape)
        features = self.upsampling(functional.gelu(self.unfold(features)))
        return crop_to(self.project(features), self.region.shape)


class SCAAE(NeuralModel):
    """SCAAE as a model: see :class:`~bids_fbn.models.base.Model`.

    Candidates are the two FBNs of a volume, or its channel maps by the option ``candidates``.
    """

    name = "scaae"
    recipes: ClassVar[dict[str, Recipe]] = {
        "as-published": Recipe(
            window=1,
            channels=32,
            learning_rate=1e-3,
            learning_rate_decay=0.9,
            decay_every=2,
            epochs=20,
            batch=12,
            whole_box=True,
            cube=True,
            fixed_threshold=0.55,
        ),
        # Trained on one run, where the published 20 epochs are over those of all participants.
        "corrected": Recipe(
            window=1,
            channels=32,
            learning_rate=1e-3,
            learning_rate_decay=0.9,
            decay_every=2,
            epochs=6,
            batch=12,
            margin=_MARGIN,
        ),
        "sloppy": Recipe(
            window=1, channels=8, learning_rate=5e-3, epochs=4, batch=12, margin=_MARGIN
        ),
    }

    def _build(self) -> nn.Module:
        if self.recipe.channels % 2:
            raise InputError(
                f"--channels {self.recipe.channels}: SCAAE has two branches; choose an even number"
            )
        return SCAAENetwork(self.recipe.channels, self.region, self.recipe.cube)

    def _mapping_network(self) -> nn.Module:
        attention = SCAAEAttention(self.recipe.channels, self.region)
        attention.load_state_dict(part_of(self.network, attention))
        return attention.folded()

    @property
    def n_candidates(self) -> int:
        return self.recipe.channels if self.candidates == "channels" else 2

    @property
    def candidate_kind(self) -> str:
        return self.candidates

    @torch.no_grad()
    def _candidates(self, batch: Tensor) -> Tensor:
        _, logits, weights = self.network.attend(batch)
        maps = self._in_mask(logits.float())
        if self.candidates == "fbn":
            weighted = maps * weights.float().flatten(1)[:, :, None]
            maps = weighted.unflatten(1, (2, -1)).sum(dim=2)
        if self.recipe.whole_box:
            low, high = maps.amin(dim=2, keepdim=True), maps.amax(dim=2, keepdim=True)
            return ((maps - low) / (high - low).clamp_min(_TINY)) ** 2
        return cut_tails(maps)


class UntrainedSCAAE(Untrained, SCAAE):
    """SCAAE with the weights it starts with."""

    name = "untrained-scaae"


def cut_tails(maps: Tensor) -> Tensor:
    """Maps (..., V) without what is beyond a thousandth of the voxels on either side."""
    n_voxels = maps.shape[-1]
    rank = max(1, round(_TAIL * n_voxels))
    low = maps.kthvalue(rank, dim=-1, keepdim=True).values
    high = maps.kthvalue(n_voxels + 1 - rank, dim=-1, keepdim=True).values
    return maps.clamp(low, high)
