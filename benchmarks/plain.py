"""STCA and SCAAE as published, written down plainly: what ours is measured against.

Whole MNI box, padded to a cube of 64³, fp32, window by window. The parameters have the names that
they have in :mod:`bids_fbn.models`, so that both compute with the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_fbn.models.scaae import PositionMLP
from bids_fbn.signal.grid import Grid

__all__ = ["PlainSCAAE", "PlainSTCA", "plain_epoch", "plain_maps"]

_CUBE = 64


def _conv(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, kernel, padding="same", groups=groups)


def _to_cube(features: Tensor) -> Tensor:
    pad = []
    for side in reversed(features.shape[2:]):
        pad += [(_CUBE - side) // 2, _CUBE - side - (_CUBE - side) // 2]
    return functional.pad(features, pad)


def _from_cube(features: Tensor, shape: tuple[int, ...]) -> Tensor:
    x, y, z = (slice((_CUBE - side) // 2, (_CUBE - side) // 2 + side) for side in shape)
    return features[:, :, x, y, z]


class _ChannelAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 4
        self.weigh = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, channels),
            nn.Sigmoid(),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.weigh(features.mean(dim=(2, 3, 4)))[:, :, None, None, None]


class _SpatialAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide, self.narrow = _conv(channels, channels, 7), _conv(channels, channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        return self.narrow(functional.gelu(self.wide(features)))


class _Block(nn.Module):
    def __init__(self, channels: int, kernel: int, groups: int = 1) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *(
                layer
                for _ in range(3)
                for layer in (_conv(channels, channels, kernel, groups), nn.GELU())
            )
        )
        self.norm = nn.BatchNorm3d(channels)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.convolutions(features) + features)


class _Shortcut(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(_conv(inputs, outputs, kernel), nn.BatchNorm3d(outputs))
            for kernel in (5, 3, 1)
        )
        self.keeps_input = inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        total = sum(branch(features) for branch in self.branches)
        return functional.gelu(total + features if self.keeps_input else total)


class PlainSTCA(nn.Module):
    """Windows (B, W, X, Y, Z) → reconstructed windows."""

    def __init__(self, window: int = 40, channels: int = 64) -> None:
        super().__init__()
        self.embed = _conv(window, channels, 7)
        self.channel_attention = _ChannelAttention(channels)
        self.spatial_attention = _SpatialAttention(channels)
        self.encoder = nn.ModuleList(_Block(channels, 3) for _ in range(4))
        self.decoder = nn.ModuleList(_Block(channels, 3) for _ in range(4))
        self.project = _conv(channels, window, 7)
        self.mix = nn.Conv3d(window, window, 1)

    def candidates(self, windows: Tensor) -> Tensor:
        """Logits (B, C, X, Y, Z)."""
        features = functional.gelu(self.embed(windows))
        return self.spatial_attention(features * self.channel_attention(features))

    def forward(self, windows: Tensor) -> Tensor:
        features = functional.gelu(self.embed(windows))
        features = features * self.channel_attention(features)
        features = _to_cube(features * self.spatial_attention(features).sigmoid())
        for block in self.encoder:
            features = functional.max_pool3d(block(features), 2)
        for block in self.decoder:
            features = block(functional.interpolate(features, scale_factor=2, mode="trilinear"))
        features = self.mix(functional.gelu(self.project(features)))
        return _from_cube(features, tuple(windows.shape[2:]))


class PlainSCAAE(nn.Module):
    """Volumes (B, 1, X, Y, Z) → reconstructed volumes."""

    channel_maps = False

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        half = channels // 2
        self.embed = _conv(1, channels, 5)
        self.trunk = nn.Sequential(_Shortcut(channels, channels), _Shortcut(channels, channels))
        self.branches = nn.ModuleList(_Shortcut(channels, half) for _ in range(2))
        self.spatial_attention = nn.ModuleList(_SpatialAttention(half) for _ in range(2))
        self.channel_attention = _ChannelAttention(channels)
        self.patches = nn.Conv3d(channels, channels, 8, stride=8, groups=2)
        self.tail = nn.Sequential(*(_Shortcut(channels, channels) for _ in range(3)))
        self.halve = nn.Conv3d(channels, channels, 2, stride=2)
        self.position_mlp = PositionMLP(64, channels)
        self.unfold = _conv(1, channels, 5)
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [_Block(channels, 5, channels), self._double(channels), nn.GELU()]
        layers += [_Block(channels, 5), _Block(channels, 5), self._double(channels), nn.GELU()]
        self.upsampling = nn.Sequential(*layers, _Block(channels, 5))
        self.project = nn.Conv3d(channels, 1, 1)

    @staticmethod
    def _double(channels: int) -> nn.ConvTranspose3d:
        return nn.ConvTranspose3d(channels, channels, 2, stride=2)

    def _attend(self, volumes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.trunk(functional.gelu(self.embed(volumes)))
        halves = [branch(features) for branch in self.branches]
        logits = [
            attend(half) for attend, half in zip(self.spatial_attention, halves, strict=True)
        ]
        gated = torch.cat([h * g.sigmoid() for h, g in zip(halves, logits, strict=True)], dim=1)
        return gated, torch.cat(logits, dim=1), self.channel_attention(gated)

    def candidates(self, volumes: Tensor) -> Tensor:
        """The two FBNs (B, 2, X, Y, Z), or all channels' maps, before any scaling."""
        _, logits, weights = self._attend(volumes)
        if self.channel_maps:
            return logits
        return (logits * weights).unflatten(1, (2, -1)).sum(dim=2)

    def forward(self, volumes: Tensor) -> Tensor:
        gated, _, weights = self._attend(volumes)
        features = functional.gelu(self.patches(_to_cube(gated * weights)))
        features = functional.gelu(self.halve(self.tail(features)))
        latent = self.position_mlp(features.flatten(2).transpose(1, 2))
        features = functional.gelu(self.unfold(latent.reshape(-1, 1, 4, 4, 4)))
        features = self.project(self.upsampling(features))
        return _from_cube(features, tuple(volumes.shape[2:]))


def _window(volumes: np.ndarray, start: int, window: int, device: torch.device) -> Tensor:
    return torch.from_numpy(volumes[None, start : start + window]).to(device)


def plain_maps(
    network: PlainSTCA | PlainSCAAE,
    volumes: np.ndarray,
    grid: Grid,
    window: int,
    starts: range,
    device: torch.device,
) -> Iterator[np.ndarray]:
    """Candidates (K, V) of each window of volumes (T, X, Y, Z)."""
    network.eval()
    for start in starts:
        with torch.no_grad():
            found = network.candidates(_window(volumes, start, window, device))[0]
        yield found.cpu().numpy()[:, grid.mask]


def plain_epoch(
    network: nn.Module,
    volumes: np.ndarray,
    window: int,
    starts: range,
    batch: int,
    learning_rate: float,
    device: torch.device,
) -> list[float]:
    """Train one epoch over windows of volumes (T, X, Y, Z); the loss of each step."""
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    losses = []
    for first in range(0, len(starts), batch):
        windows = torch.cat(
            [_window(volumes, s, window, device) for s in starts[first : first + batch]]
        )
        optimizer.zero_grad()
        loss = functional.mse_loss(network(windows), windows)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
