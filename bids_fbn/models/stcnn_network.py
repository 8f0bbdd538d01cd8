"""The network of ST-CNN: a spatial and a temporal part.

Features of the spatial part are (B, C, X, Y, Z), of the temporal part (N, C, T).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_fbn.models.blocks import conv3d, crop_to, pad_to, padded_shape

__all__ = [
    "STCNNNetwork",
    "SpatialPart",
    "TemporalPart",
    "pearson",
    "synchronize",
    "zscore_courses",
]

# Features double from level to level of the spatial part: 32, 64, 128, 256.
_LEVELS = 4
_TEMPORAL_CHANNELS = (8, 16, 32)
# A voxel takes part in the course by how much its map value exceeds this share of the peak.
_LEAST_WEIGHT = 0.1
# Spread below which a course counts as one without variation: it correlates with nothing, and
# neither it nor its gradient may become NaN.
_TINY = 1e-4


class _Level(nn.Sequential):
    """Two convolutions of 3³ with ReLU, then batch norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            conv3d(inputs, outputs, 3),
            nn.ReLU(),
            conv3d(outputs, outputs, 3),
            nn.ReLU(),
            nn.BatchNorm3d(outputs),
        )


def synchronize(windows: Tensor, reference: Tensor) -> Tensor:
    """Turn windows in time to be as like a reference as they can be.

    The network gives each channel a meaning of its own, and where no task is shared the n-th
    volume of a window has none. After the orthogonal transform of time that brings a window
    nearest to the reference (least squares), the channels of different windows and participants
    are alike. No correlation between two voxels changes.

    Joshi AA, Chong M, Li J, Choi S, Leahy RM. Are you thinking what I'm thinking? Synchronization
    of resting fMRI time-series across subjects. NeuroImage 172:740-752, 2018.

    Parameters
    ----------
    windows : Tensor (B, W, X, Y, Z)
    reference : Tensor (W, X·Y·Z)

    Returns
    -------
    Tensor (B, W, X, Y, Z) of float32
    """
    with torch.autocast(windows.device.type, enabled=False):
        series = windows.float().flatten(2)
        left, _, right = torch.linalg.svd(reference.float() @ series.mT)
        return ((left @ right) @ series).unflatten(2, windows.shape[2:])


class SpatialPart(nn.Module):
    """3-D U-Net: windows (B, W, X, Y, Z) → maps (B, K, X, Y, Z).

    Parameters
    ----------
    window : int
        W.
    channels : int
        Features of the finest level; each coarser one has twice as many.
    n_networks : int
        K.
    shape : tuple of int
        X, Y, Z.
    synchronize : bool
        Turn each window to a reference first, see :func:`synchronize`.
    """

    reference: Tensor

    def __init__(
        self,
        window: int,
        channels: int,
        n_networks: int,
        shape: tuple[int, ...],
        synchronize: bool = False,
    ) -> None:
        super().__init__()
        self.synchronize = synchronize
        if synchronize:
            self.register_buffer("reference", torch.zeros(window, math.prod(shape)))
        self.shape = shape
        self.padded = padded_shape(shape, 2 ** (_LEVELS - 1))
        sizes = [channels * 2**level for level in range(_LEVELS)]
        self.down = nn.ModuleList(
            _Level(inputs, outputs)
            for inputs, outputs in zip([window, *sizes[:-1]], sizes, strict=True)
        )
        self.up = nn.ModuleList(
            _Level(coarse + fine, fine)
            for coarse, fine in zip(sizes[:0:-1], sizes[-2::-1], strict=True)
        )
        self.project = nn.Conv3d(channels, n_networks, 1)

    def forward(self, windows: Tensor) -> Tensor:
        if self.synchronize:
            windows = synchronize(windows, self.reference)
        features = self.down[0](pad_to(windows, self.padded))
        skipped = []
        for level in self.down[1:]:
            skipped.append(features)
            features = level(functional.max_pool3d(features, 2))
        for level in self.up:
            finer = functional.interpolate(features, scale_factor=2, mode="nearest")
            features = level(torch.cat([skipped.pop(), finer], dim=1))
        return crop_to(self.project(features), self.shape)


class TemporalPart(nn.Module):
    """1-D U-Net: course (N, T) → course (N, T), of any length.

    All networks share its weights: it is given a course and no more, and nothing in that says of
    which network it is.
    """

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse = _TEMPORAL_CHANNELS
        self.first = nn.Conv1d(1, fine, 5, padding=2)
        self.second = nn.Conv1d(fine, middle, 3, padding=1)
        self.third = nn.Conv1d(middle, coarse, 3, padding=1)
        self.fourth = nn.Conv1d(coarse + middle, middle, 3, padding=1)
        self.fifth = nn.Conv1d(middle + fine, 1, 5, padding=2)

    def forward(self, courses: Tensor) -> Tensor:
        length = courses.shape[1]
        padded = functional.pad(courses[:, None], (0, -length % 4))
        fine = self.first(padded).relu()
        middle = self.second(functional.max_pool1d(fine, 2)).relu()
        coarse = self.third(functional.max_pool1d(middle, 2)).relu()
        joined = torch.cat([middle, functional.interpolate(coarse, scale_factor=2)], dim=1)
        features = self.fourth(joined).relu()
        joined = torch.cat([fine, functional.interpolate(features, scale_factor=2)], dim=1)
        return self.fifth(joined)[:, 0, :length]


class STCNNNetwork(nn.Module):
    """The network: windows (B, W, X, Y, Z) → maps (B, K, X, Y, Z) and courses (B, K, W).

    Parameters
    ----------
    window, channels, n_networks, shape, synchronize
        See :class:`SpatialPart`.
    standardize : bool
        z-score what goes into the temporal part. As published it goes in as it is, a mean over
        all voxels of which few take part: far smaller than the biases that it is added to.
    """

    def __init__(
        self,
        window: int,
        channels: int,
        n_networks: int,
        shape: tuple[int, ...],
        synchronize: bool = False,
        standardize: bool = True,
    ) -> None:
        super().__init__()
        self.standardize = standardize
        self.spatial = SpatialPart(window, channels, n_networks, shape, synchronize)
        self.temporal = TemporalPart()

    def weighted_courses(self, maps: Tensor, windows: Tensor) -> Tensor:
        """Mean over voxels of signal × (map − 0.1 where the map exceeds that), (B, K, W)."""
        weights = (maps.float() - _LEAST_WEIGHT).relu().flatten(2)
        # Summed over thousands of voxels: not in bf16.
        with torch.autocast(windows.device.type, enabled=False):
            courses = weights @ windows.float().flatten(2).mT / weights.shape[2]
        return zscore_courses(courses) if self.standardize else courses

    def forward(self, windows: Tensor, with_courses: bool = True) -> tuple[Tensor, Tensor | None]:
        maps = self.spatial(windows)
        if not with_courses:
            return maps, None
        courses = self.weighted_courses(maps, windows)
        return maps, self.temporal(courses.flatten(0, 1)).unflatten(0, courses.shape[:2])


def zscore_courses(courses: Tensor) -> Tensor:
    """z-score along the last axis; 0 where a course does not vary."""
    return functional.layer_norm(courses, courses.shape[-1:], eps=_TINY**2)


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Correlation along the last axis, (…, T) → (…); 0 where one of them does not vary."""
    one = first - first.mean(dim=-1, keepdim=True)
    other = second - second.mean(dim=-1, keepdim=True)
    return functional.cosine_similarity(one, other, dim=-1, eps=_TINY)
