"""Brain figures: slices of an FBN map above the same slices of its template.

Slices are sampled straight from the analysis grid and composed as colours, pixel by pixel: a tenth
of the time of a plotting library, and nothing on the picture but the brain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap
from scipy.ndimage import binary_dilation, binary_fill_holes, map_coordinates

from bids_fbn.reports.raster import encode_png
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.standard import background_image

__all__ = ["Background", "NetworkPicture", "choose_cuts", "draw_network", "load_background"]

# Edges of the MNI brain, mm, with a margin.
_BOX_MM: Mapping[str, tuple[float, float]] = {"x": (-76, 76), "y": (-110, 76), "z": (-66, 84)}
_PIXEL_MM = 1.0
_GAP = 6
# Outlines that stand out from grey matter and from the warm colours of the map.
_OUTLINE = np.array([0.0, 0.75, 1.0])
_MAP_COLOURS = matplotlib.colormaps["YlOrRd"].reversed()
# For networks that were never present: hardly more than grey, and still told from anatomy.
_WEAK_COLOURS = LinearSegmentedColormap.from_list("slate", ["#46546b", "#a9b6c9"])


@dataclass(frozen=True, eq=False)
class Background:
    """The brain that maps are drawn on.

    Parameters
    ----------
    values : ndarray (X, Y, Z)
        0 to 1, 0 outside the brain.
    inside : ndarray (X, Y, Z) of float32
        1 in the brain.
    affine : ndarray (4, 4)
    source : str
        Where it came from, in words.
    """

    values: np.ndarray
    inside: np.ndarray
    affine: np.ndarray
    source: str


@dataclass(frozen=True)
class NetworkPicture:
    """A figure of one network.

    Parameters
    ----------
    png : bytes
    cuts : tuple of float
        x, y, z of the slices, mm.
    width, height : int
        Pixels.
    """

    png: bytes
    cuts: tuple[float, float, float]
    width: int
    height: int


def load_background(space: str) -> Background:
    """The template brain of a standard space, scaled for display."""
    image, source = background_image(space)
    values = np.asarray(image.dataobj, dtype=np.float32)
    # Ventricles belong to the brain, however dark.
    inside = binary_fill_holes(values > 0.05 * values.max())
    low, high = np.percentile(values[inside], (2, 99.5))
    scaled = np.clip((values - low) / (high - low), 0, 1)
    return Background(
        np.where(inside, scaled, 0), inside.astype(np.float32), np.asarray(image.affine), source
    )


def choose_cuts(support: np.ndarray, grid: Grid) -> tuple[float, float, float]:
    """Where to cut: along each axis, the slice that holds most of a support.

    Parameters
    ----------
    support : ndarray (V,) of bool
        Of the template, so that the cut does not flatter the FBN.
    grid : Grid

    Returns
    -------
    tuple of float
        x, y, z in mm.
    """
    if not support.any():
        return (0.0, -20.0, 10.0)
    inside = grid.coordinates[support]
    cuts = []
    for axis in range(3):
        positions, counts = np.unique(inside[:, axis], return_counts=True)
        cuts.append(float(positions[counts.argmax()]))
    return (cuts[0], cuts[1], cuts[2])


def draw_network(
    fbn: np.ndarray,
    template: np.ndarray | None,
    support: np.ndarray | None,
    grid: Grid,
    background: Background,
    weak: bool = False,
) -> NetworkPicture:
    """Draw an FBN map, and below it its template, at the same cuts.

    Full colour where the map is over its own size-matched threshold, that is in as many voxels as
    the template has; fading out below. The outline is the template's support, on both.

    Parameters
    ----------
    fbn : ndarray (V,)
        z.
    template : ndarray (V,) or None
        None leaves out the second row and the outline.
    support : ndarray (V,) of bool or None
        Voxels of the template.
    grid : Grid
    background : Background
    weak : bool
        Draw in grey.
    """
    n_voxels = int(support.sum()) if support is not None else max(1, len(fbn) // 20)
    threshold = max(float(np.partition(fbn, -n_voxels)[-n_voxels]), 1e-6)
    cuts = choose_cuts(support if support is not None else fbn >= threshold, grid)
    outline = None if support is None else grid.scatter(support.astype(np.float32))
    rows = [(grid.scatter(fbn), threshold, max(float(fbn.max()), 2 * threshold))]
    if template is not None and support is not None:
        highest = max(float(template.max()), 1e-6)
        # The edge of a template of zeros and ones lies half way between its voxels.
        low = min(max(float(template[support].min()), 1e-6), 0.5 * highest)
        rows.append((grid.scatter(template), low, highest))
    colours = _WEAK_COLOURS if weak else _MAP_COLOURS
    panels = [
        _join(
            [
                _panel(axis, cut, volume, low, high, outline, grid, background, colours)
                for axis, cut in zip("xyz", cuts, strict=True)
            ],
            axis=1,
        )
        for volume, low, high in rows
    ]
    picture = _join(panels, axis=0)
    pixels = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return NetworkPicture(encode_png(pixels, colours=80), cuts, picture.shape[1], picture.shape[0])


def _plane(axis: str, cut: float) -> np.ndarray:
    """Coordinates of the pixels of a slice, (rows, columns, 3), mm; top row is superior or
    anterior, left column is the left of the brain or its back."""
    lines = {
        name: np.arange(low, high + _PIXEL_MM / 2, _PIXEL_MM)
        for name, (low, high) in _BOX_MM.items()
    }
    lines[axis] = np.array([cut])
    across, up = {"x": ("y", "z"), "y": ("x", "z"), "z": ("x", "y")}[axis]
    plane = np.empty((len(lines[up]), len(lines[across]), 3))
    plane[..., "xyz".index(axis)] = cut
    plane[..., "xyz".index(across)] = lines[across][None, :]
    plane[..., "xyz".index(up)] = lines[up][::-1, None]
    return plane


def _sample(volume: np.ndarray, affine: np.ndarray, plane: np.ndarray, order: int) -> np.ndarray:
    inverse = np.linalg.inv(affine)
    voxels = plane @ inverse[:3, :3].T + inverse[:3, 3]
    return map_coordinates(
        volume, np.moveaxis(voxels, -1, 0), order=order, mode="constant", cval=0.0
    )


def _panel(
    axis: str,
    cut: float,
    volume: np.ndarray,
    low: float,
    high: float,
    outline: np.ndarray | None,
    grid: Grid,
    background: Background,
    colours: Colormap,
) -> np.ndarray:
    """One slice, (rows, columns, 3) of 0 to 1; white outside the brain."""
    plane = _plane(axis, cut)
    brain = _sample(background.values, background.affine, plane, order=1)
    inside = _sample(background.inside, background.affine, plane, order=1) >= 0.5
    # Light enough for the map to stand out, darker than the page.
    anatomy = np.where(inside, 0.38 + 0.55 * brain, 1.0)
    picture = np.repeat(anatomy[..., None], 3, axis=2)
    values = _sample(volume, grid.affine, plane, order=1)
    strength = np.clip(values / low, 0, 1)
    alpha = np.where(inside, np.where(strength < 1, 0.6 * strength**3, 0.95), 0.0)[..., None]
    shade = 0.15 + 0.7 * np.clip((values - low) / (high - low), 0, 1)
    picture = (1 - alpha) * picture + alpha * colours(shade)[..., :3]
    if outline is not None:
        region = _sample(outline, grid.affine, plane, order=1) >= 0.5
        # Around the region, so that even a small one is not covered by its own outline.
        picture[binary_dilation(region, iterations=2) & ~region] = _OUTLINE
    return picture


def _join(pictures: list[np.ndarray], axis: int) -> np.ndarray:
    """Put pictures side by side or one below the other, centred, on white."""
    other = 1 - axis
    size = max(picture.shape[other] for picture in pictures)
    padded = []
    for number, picture in enumerate(pictures):
        missing = size - picture.shape[other]
        margins = [(0, 0), (0, 0), (0, 0)]
        margins[other] = (missing // 2, missing - missing // 2)
        margins[axis] = (_GAP if number else 0, 0)
        padded.append(np.pad(picture, margins, constant_values=1.0))
    return np.concatenate(padded, axis=axis)
