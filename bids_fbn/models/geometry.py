"""Which part of the whole box a layer has to compute, so that values in the mask stay those of the
network on all of it: the MNI box, or that with a margin.

A model's input is 0 outside the mask. A convolution of reach r needs its input only within r
voxels of where its output is wanted, and beyond the edge of the whole box its padding is the
network's own zeros. So layers are computed on regions that shrink towards the mask's bounding box.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from bids_fbn.models.spectral import SpectralConv3d

__all__ = ["Region", "convolve", "crop", "pads"]


@dataclass(frozen=True)
class Region:
    """A box of voxels within the whole box.

    Parameters
    ----------
    whole : tuple of int
        Sides of the whole box.
    low, high : tuple of int
        First voxel, and the one after the last, along each axis.

    Examples
    --------
    >>> brain = Region((49, 58, 47), (6, 6, 0), (43, 52, 39))
    >>> brain.shape
    (37, 46, 39)
    >>> brain.grown(4)
    Region(whole=(49, 58, 47), low=(2, 2, 0), high=(47, 56, 43))
    """

    whole: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]

    @classmethod
    def of(cls, whole: tuple[int, ...], box: tuple[slice, ...] | None = None) -> Region:
        """The region of some slices of the whole box; all of it without any."""
        if box is None:
            return cls(whole, (0,) * len(whole), whole)
        return cls(whole, tuple(s.start for s in box), tuple(s.stop for s in box))

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(high - low for low, high in zip(self.low, self.high, strict=True))

    @property
    def n_voxels(self) -> int:
        """Voxels of the region."""
        return _product(self.shape)

    @property
    def n_outside(self) -> int:
        """Voxels of the whole box that are not in the region."""
        return _product(self.whole) - self.n_voxels

    def within(self, margin: int) -> Region:
        """The same voxels in a whole box with at least `margin` voxels on each side of them."""
        before = [max(0, margin - low) for low in self.low]
        after = [max(0, margin + h - side) for h, side in zip(self.high, self.whole, strict=True)]
        return Region(
            tuple(b + side + a for b, side, a in zip(before, self.whole, after, strict=True)),
            tuple(b + low for b, low in zip(before, self.low, strict=True)),
            tuple(b + high for b, high in zip(before, self.high, strict=True)),
        )

    def grown(self, margin: int) -> Region:
        """`margin` voxels more on every side, up to the edge of the whole box."""
        return Region(
            self.whole,
            tuple(max(0, low - margin) for low in self.low),
            tuple(min(side, h + margin) for h, side in zip(self.high, self.whole, strict=True)),
        )


def _product(sides: tuple[int, ...]) -> int:
    x, y, z = sides
    return x * y * z


def pads(given: Region, wanted: Region, reach: int) -> list[int]:
    """How much to pad (cut, where negative) features on `given` so that a convolution of some
    reach without padding ends on `wanted`; in the order of :func:`torch.nn.functional.pad`."""
    return [
        margin
        for axis in reversed(range(len(given.whole)))
        for margin in (
            given.low[axis] - wanted.low[axis] + reach,
            wanted.high[axis] + reach - given.high[axis],
        )
    ]


def convolve(
    layer: nn.Conv3d | SpectralConv3d, features: Tensor, given: Region, wanted: Region
) -> Tensor:
    """A layer that keeps the shape (zeros beyond the edge), computed only where it is wanted.

    Parameters
    ----------
    layer : Conv3d or SpectralConv3d
        Stride 1, padded by half its kernel.
    features : Tensor (B, C, *given)
        Taken for 0 outside `given`: it must hold `wanted` and the reach of the kernel around it
        as far as the whole box goes, unless the features are 0 out there.
    given, wanted : Region

    Returns
    -------
    Tensor (B, C', *wanted)
    """
    reach = layer.kernel_size[0] // 2
    margins = pads(given, wanted, reach)
    if isinstance(layer, SpectralConv3d):
        return layer(functional.pad(features, margins))
    if all(margin == reach for margin in margins):
        return layer(features)
    padded = functional.pad(features, margins)
    return functional.conv3d(padded, layer.weight, layer.bias, groups=layer.groups)


def crop(features: Tensor, given: Region, wanted: Region) -> Tensor:
    """The part of the features on `given` that lies on `wanted`, as a view."""
    x, y, z = (
        slice(want - have, want - have + side)
        for have, want, side in zip(given.low, wanted.low, wanted.shape, strict=True)
    )
    return features[:, :, x, y, z]
