"""Gaussian random fields as smooth as given maps.

A map is taken for a monotone transform of a Gaussian field: a thresholded field is binary, a field
with its middle pressed to 0 is sparse. What matters to a search that ranks voxels is the
autocorrelation of that field, not of the map, which is lower.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import fft
from scipy.special import ndtri

from bids_fbn.networks.maps import zscore_maps
from bids_fbn.signal.grid import Grid

__all__ = ["Smoothness", "draw_fields", "estimate_smoothness", "field_correlation"]

# Hermite coefficients of a step fall as order^(-3/4), the slowest of all monotone transforms;
# what follows this order is taken to do the same.
_ORDER = 60
_RHO = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 801))  # finest where tables are steepest

# The autocorrelation is followed until its mean over lags of about one length falls below this,
# and tapered to 0 at twice that length.
_NEGLIGIBLE = 0.05
# Lags that a smaller share of the voxels can be paired at say more about noise than about maps.
_FEWEST_PAIRS = 0.1
_SHELLS_PER_HALF_WIDTH = 4
# Frequencies left out because all of them together carry less of the variance.
_LOST_VARIANCE = 3e-3


@dataclass(frozen=True, eq=False)
class Smoothness:
    """What is needed to draw stationary Gaussian fields in a mask.

    Parameters
    ----------
    acf : ndarray (X', Y', Z')
        Autocorrelation by lag in voxels; negative lags are at the end of each axis, as in a
        Fourier transform. So long that no two voxels of the mask are close across its ends.
    voxel_size : ndarray (3,)
        mm.
    mask : ndarray (X, Y, Z) of bool
        The covered voxels in their bounding box.
    """

    acf: np.ndarray
    voxel_size: np.ndarray
    mask: np.ndarray

    @property
    def fwhm(self) -> tuple[float, float, float]:
        """Along each axis of the grid, mm.

        That of the Gaussian kernel that makes white noise whose autocorrelation falls to a half
        at the same lag. Below one voxel it says little.
        """
        half = _half_widths(self.acf, self.mask.shape)
        x, y, z = (float(mm) for mm in np.sqrt(2) * half * self.voxel_size)
        return x, y, z

    @cached_property
    def _waves(self) -> tuple[np.ndarray, np.ndarray, tuple[int, ...], list[np.ndarray]]:
        """Amplitudes, where they lie in the band of frequencies, its shape, waves of each axis."""
        power = fft.fftn(self.acf).real
        carries = power > 1e-9 * power.max()
        band = [np.flatnonzero(carries.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
        within = np.ix_(*band)
        kept = np.flatnonzero(carries[within])
        amplitude = np.sqrt(power[within].ravel()[kept] / power[carries].sum())
        waves = [
            np.exp(2j * np.pi / period * np.outer(frequencies, np.arange(n))).astype(np.complex64)
            for frequencies, period, n in zip(band, power.shape, self.mask.shape, strict=True)
        ]
        shape = tuple(len(frequencies) for frequencies in band)
        return amplitude.astype(np.float32), kept, shape, waves


def draw_fields(smoothness: Smoothness, n: int, rng: np.random.Generator) -> np.ndarray:
    """Independent Gaussian fields of mean 0 and variance 1.

    White noise filtered in Fourier space, two fields from one complex transform (circulant
    embedding: Wood & Chan 1994, J Comput Graph Stat 3:409). The transform is a product of matrices
    along each axis: it starts from the frequencies that carry something and ends at the bounding
    box, where a fast one would need all frequencies and the padding.

    Parameters
    ----------
    smoothness : Smoothness
    n : int
    rng : Generator

    Returns
    -------
    ndarray (n, V_covered) of float32
    """
    amplitude, kept, (x, y, z), (along_x, along_y, along_z) = smoothness._waves
    pairs = (n + 1) // 2
    noise = rng.standard_normal((pairs, len(kept), 2), dtype=np.float32)
    noise *= amplitude[:, None]
    fields = np.zeros((pairs, x * y * z), dtype=np.complex64)
    fields[:, kept] = noise.view(np.complex64)[..., 0]
    fields = along_y.T @ (fields.reshape(pairs, x, y, z) @ along_z)
    fields = along_x.T @ fields.reshape(pairs, x, -1)
    drawn = fields.reshape(pairs, -1)[:, smoothness.mask.ravel()]
    return np.concatenate([drawn.real, drawn.imag])[:n]


def estimate_smoothness(maps: np.ndarray, grid: Grid, covered: np.ndarray) -> Smoothness:
    """Smoothness of the Gaussian fields behind maps.

    The autocorrelation at each lag is the mean over all pairs of covered voxels at that lag and
    over the maps, so neither the edge of the mask nor a shape that is not Gaussian biases it. Two
    things are corrected: that each map has its own mean taken out, which lowers every lag by the
    mean over all pairs; and that a map is a transform of its field.

    Parameters
    ----------
    maps : ndarray (N, V)
        In any units, or bool. Those without variation are left out; if none is left, the fields
        are white.
    grid : Grid
    covered : ndarray (V,) of bool
        Voxels that take part.

    Returns
    -------
    Smoothness
        One for all maps: what the fields are on average.
    """
    volume = grid.scatter(covered.astype(bool))
    mask = volume[tuple(slice(where.min(), where.max() + 1) for where in np.nonzero(volume))]
    voxel_size = np.linalg.norm(grid.affine[:3, :3], axis=0)
    values = zscore_maps(np.asarray(maps, dtype=np.float32)[:, covered])
    values = values[values.any(axis=1)]
    if not len(values):
        white = np.zeros(mask.shape)
        white[0, 0, 0] = 1
        return Smoothness(white, voxel_size, mask)
    pairs, observed = _autocorrelation(values, mask)
    table = _tables((_hermite(values) ** 2).mean(axis=0), _powers())
    lags = [np.round(fft.fftfreq(n) * n) for n in pairs.shape]
    mean = 0.0
    for _ in range(30):
        acf = np.interp(observed * (1 - mean) + mean, table, _RHO)
        half = _half_widths(acf, mask.shape)
        reach, taper = _taper(acf, pairs, lags, half)
        acf *= taper
        before, mean = mean, np.average(np.interp(acf, _RHO, table), weights=pairs)
        mean = min(max(mean, 0.0), 0.5)
        if abs(mean - before) < 1e-4:
            break
    period = [
        min(n + int(np.ceil(reach * width)), 2 * n - 1)
        for n, width in zip(mask.shape, half, strict=True)
    ]
    near = [np.round(fft.fftfreq(n) * n).astype(int) for n in period]
    return Smoothness(_as_covariance(acf[np.ix_(*near)]), voxel_size, mask)


def field_correlation(maps: np.ndarray) -> np.ndarray:
    """Correlation between the Gaussian fields behind maps.

    Parameters
    ----------
    maps : ndarray (N, V)
        In any units. One without variation is correlated with none.

    Returns
    -------
    ndarray (N, N)
        1 on the diagonal, no eigenvalue below 0.
    """
    values = zscore_maps(np.asarray(maps, dtype=np.float64))
    observed = values @ values.T / values.shape[1]
    coefficients = _hermite(values)
    correlation = np.eye(len(values))
    varies = values.any(axis=1)
    powers = _powers()
    for i in np.flatnonzero(varies):
        later = i + 1 + np.flatnonzero(varies[i + 1 :])
        tables = _tables(coefficients[i] * coefficients[later], powers)
        for j, table in zip(later, tables, strict=True):
            correlation[i, j] = correlation[j, i] = np.interp(observed[i, j], table, _RHO)
    spread, axes = np.linalg.eigh(correlation)
    if spread[0] >= 0:
        return correlation
    correlation = (axes * spread.clip(min=0)) @ axes.T
    size = np.sqrt(np.diag(correlation))
    return correlation / np.outer(size, size)


def _autocorrelation(values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of voxels, and the mean over maps of their mean product, by lag."""
    shape = [fft.next_fast_len(2 * n - 1, real=True) for n in mask.shape]

    def products(volume: np.ndarray) -> np.ndarray:
        return np.abs(fft.rfftn(volume, shape)) ** 2

    pairs = np.round(fft.irfftn(products(mask.astype(float)), shape))
    power = np.zeros((*shape[:2], shape[2] // 2 + 1))
    volume = np.zeros(mask.shape)
    for one in values:
        volume[mask] = one
        power += products(volume)
    total = fft.irfftn(power, shape) / len(values)
    return pairs, np.divide(total, pairs, out=np.zeros(pairs.shape), where=pairs > 0)


def _half_widths(acf: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Lag along each axis at which the autocorrelation falls to a half, (3,), voxels."""
    widths = []
    for axis, n in enumerate(shape):
        line = np.moveaxis(acf, axis, 0)[:n, 0, 0]
        below = np.flatnonzero(line < 0.5)
        if not len(below):
            widths.append(max(n - 1.0, 0.5))
            continue
        # Between two lags as for a Gaussian: its logarithm is straight over the squared lag.
        after = int(below[0])
        high, low = np.log(line[after - 1 : after + 1].clip(min=1e-3))
        share = (high - np.log(0.5)) / (high - low)
        widths.append(np.sqrt((after - 1) ** 2 + share * (2 * after - 1)))
    return np.array(widths)


def _taper(
    acf: np.ndarray, pairs: np.ndarray, lags: list[np.ndarray], half: np.ndarray
) -> tuple[float, np.ndarray]:
    """Where the autocorrelation ends, in half widths, and what lets it end there smoothly."""
    x, y, z = (lag / width for lag, width in zip(lags, half, strict=True))
    length = np.sqrt(x[:, None, None] ** 2 + y[:, None] ** 2 + z**2)
    shell = (length * _SHELLS_PER_HALF_WIDTH).astype(int).ravel()
    n_lags = np.bincount(shell)
    n_pairs = np.bincount(shell, pairs.ravel())
    total = np.bincount(shell, (acf * pairs).ravel())
    ends = total < _NEGLIGIBLE * n_pairs
    ends |= (n_pairs < _FEWEST_PAIRS * pairs.max() * n_lags) & (n_lags > 0)
    last = int(ends.argmax()) / _SHELLS_PER_HALF_WIDTH
    falling = np.clip(length / last - 1, 0, 1)
    return 2 * last, np.where(pairs > 0, np.cos(np.pi / 2 * falling) ** 2, 0)


def _as_covariance(acf: np.ndarray) -> np.ndarray:
    """The nearest autocorrelation that a field can have: no power below 0."""
    power = fft.fftn(acf).real.clip(min=0)
    ordered = np.sort(power, axis=None)
    lost = np.searchsorted(ordered.cumsum(), _LOST_VARIANCE * ordered.sum())
    power[power < ordered[lost]] = 0
    covariance = fft.ifftn(power).real
    return covariance / covariance[0, 0, 0]


def _hermite(values: np.ndarray) -> np.ndarray:
    """Coefficients of the transforms that make maps of Gaussian fields, (N, orders + 1).

    Two fields of correlation ρ become maps of correlation Σ aₖ bₖ ρᵏ (Mehler's formula). The
    transform of a map (V values, z-scored) is that with its distribution: V steps. The last
    column stands for all higher orders.
    """
    n_voxels = values.shape[1]
    at = ndtri(np.arange(1, n_voxels) / n_voxels)
    density = np.exp(-(at**2) / 2) / np.sqrt(2 * np.pi)
    basis = np.empty((_ORDER, n_voxels - 1))
    before, now = np.zeros_like(at), np.ones_like(at)
    for k in range(1, _ORDER + 1):
        basis[k - 1] = density * now / np.sqrt(k)
        before, now = now, (at * now - np.sqrt(k - 1) * before) / np.sqrt(k)
    known = np.array([basis @ np.diff(np.sort(one).astype(np.float64)) for one in values])
    rest = (values.astype(np.float64) ** 2).mean(axis=1) - (known**2).sum(axis=1)
    return np.column_stack([known, np.sqrt(rest.clip(min=0))])


def _powers() -> np.ndarray:
    """The powers of ρ that Hermite coefficients are multiplied with, (orders + 1, table)."""
    higher = np.geomspace(_ORDER + 1, 40 * _ORDER, 50)  # stand for as many more as they are apart
    share = higher**-0.5
    # For ρ < 0, odd and even orders this high cancel, more or less.
    rest = (_RHO.clip(min=0)[:, None] ** higher) @ (share / share.sum())
    return np.vstack([_RHO ** np.arange(1, _ORDER + 1)[:, None], rest])


def _tables(products: np.ndarray, powers: np.ndarray) -> np.ndarray:
    """Correlation of maps by that of fields, ascending, (…, orders + 1) → (…, table)."""
    return np.maximum.accumulate(products @ powers, axis=-1)
