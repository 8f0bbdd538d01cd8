"""What a head and a scanner put around the networks of :mod:`bids_fbn.simulate`.

Tissue contrast, head motion, physiology, thermal and correlated noise, drift, and the first
volumes before the steady state. Amplitudes are in percent of the baseline intensity at
``noise=1``, chosen so that a voxel of 6 mm has a temporal signal-to-noise ratio of about 70, drift
included, as at 3 T.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_erosion, gaussian_filter, gaussian_filter1d
from scipy.signal import lfilter

from bids_fbn.networks.tissue import grey_fraction, tissue_fraction, white_fraction
from bids_fbn.signal.confounds import HEAD_RADIUS_MM, power_displacement
from bids_fbn.signal.grid import Grid, grid_geometry
from bids_fbn.simulation.cohort import Site

__all__ = [
    "FD_OUTLIER_MM",
    "Head",
    "head_motion",
    "mni_head",
    "motion_signal",
    "nuisance_signal",
    "saturation",
    "smooth_fields",
]

_BASELINE = 10_000.0  # leaves room below 32767, the largest int16, for noise=10
_CONTRAST = {"grey": 1.0, "white": 0.85, "csf": 1.2}  # order of intensities in T2*-weighted EPI
_BACKGROUND = 0.02  # of the baseline, outside the brain

_WHITE_NOISE = 0.5
_SMOOTH_NOISE = 0.4
_NOISE_CORRELATION_TIME = 2.2  # s: AR(1) of 0.4 at a repetition time of 2 s
_DRIFT = 0.8
_DRIFT_CYCLES = (0.5, 1.0, 1.5)  # half waves over the run: below a 128 s high-pass from 192 s on
_DRIFT_FWHM = 40.0  # mm
_PHYSIOLOGY_CORRELATION_TIME = 4.0  # s
_PHYSIOLOGY = {"csf": 2.0, "white": 0.8, "global": 0.3}
_PHYSIOLOGY_LEAK = 0.15  # part of a tissue's physiology that every voxel shows

# Steps of the random walk per square root of 2 s: a framewise displacement near 0.1 mm, as of a
# participant who lies still.
_STEP_MM = 0.025
_STEP_RAD = 0.0003
_SETTLING_TIME = 100.0  # s, after which the walk forgets where it was
_SPIKE_SHARE = 0.02  # of the volumes
_SPIKE_FD_MM = (0.7, 1.8)
# Power et al. 2012, NeuroImage 59:2142: radius of the sphere that turns rotations into mm.
FD_OUTLIER_MM = 0.5  # fMRIPrep's default --fd-spike-threshold
_RESIDUAL_MOTION = 0.2  # part of the effect of a displacement that realignment leaves behind
_SPIN_HISTORY = -1.0  # percent per mm of framewise displacement, in outlying volumes

_GREY_T1 = 1.3  # s, grey matter at 3 T: Wansapura et al. 1999, JMRI 9:531
_VOLUMES_AT_A_TIME = 50


@dataclass(frozen=True, eq=False)
class Head:
    """A brain of known tissue on a grid.

    Parameters
    ----------
    grid : Grid
        Its mask is the brain, V voxels.
    grey, white, csf : ndarray (V,) of float32
        Fractions of each voxel; they sum to 1.
    core : ndarray (V,) of bool
        Voxels that do not touch the edge of the brain.
    """

    grid: Grid
    grey: np.ndarray
    white: np.ndarray
    csf: np.ndarray
    core: np.ndarray

    @property
    def baseline(self) -> np.ndarray:
        """Intensity without activity, (V,)."""
        return _BASELINE * (
            _CONTRAST["grey"] * self.grey
            + _CONTRAST["white"] * self.white
            + _CONTRAST["csf"] * self.csf
        )

    @property
    def background(self) -> float:
        """Intensity outside the brain."""
        return _BASELINE * _BACKGROUND


def mni_head(resolution: float, space: str) -> Head:
    """The head of the MNI152 templates that nilearn bundles.

    Parameters
    ----------
    resolution : float
        Edge of a voxel, mm.
    space : str
        BIDS name for the grid. A name only: the templates of all MNI spaces agree within the
        width of the voxels that one simulates with.
    """
    import nibabel as nib
    from nilearn.datasets import load_mni152_brain_mask

    affine, shape = grid_geometry(resolution)
    box = Grid(affine, np.ones(shape, dtype=bool), space)
    mask_2mm = load_mni152_brain_mask(resolution=2)
    brain = nib.Nifti1Image(mask_2mm.get_fdata(dtype=np.float32), mask_2mm.affine)
    grid = Grid(affine, tissue_fraction(brain, box) >= 0.5, space, "MNI152 brain mask of nilearn")
    grey = grey_fraction(grid).clip(0, 1)
    white = white_fraction(grid).clip(0, 1)
    whole = np.maximum(grey + white, 1)
    grey, white = grey / whole, white / whole
    return Head(grid, grey, white, 1 - grey - white, grid.gather(binary_erosion(grid.mask)))


def smooth_fields(rng: np.random.Generator, n_fields: int, grid: Grid, fwhm: float) -> np.ndarray:
    """Gaussian random fields of unit variance.

    Parameters
    ----------
    rng : Generator
    n_fields : int
    grid : Grid
    fwhm : float
        Of the smoothing kernel, mm.

    Returns
    -------
    ndarray (n_fields, V) of float32
    """
    sigma = fwhm / np.sqrt(8 * np.log(2)) / grid.resolution
    white = rng.standard_normal((n_fields, *grid.shape), dtype=np.float32)
    fields = gaussian_filter(white, (0, sigma, sigma, sigma))
    impulse = np.zeros(2 * int(np.ceil(4 * sigma)) + 3)
    impulse[impulse.size // 2] = 1
    kernel = gaussian_filter1d(impulse, sigma)
    return fields[:, grid.mask] / np.float32(np.sum(kernel**2) ** 1.5)


def head_motion(
    rng: np.random.Generator, n_volumes: int, repetition_time: float, noise: float, spikes: bool
) -> np.ndarray:
    """Motion parameters: a slow random walk, and jumps in 2 % of the volumes.

    Half of the jumps go back with the next volume; the others stay.

    Parameters
    ----------
    rng : Generator
    n_volumes : int
        T.
    repetition_time : float
        In s.
    noise : float
        Scales everything; 0 holds the head still.
    spikes : bool
        Whether there are jumps.

    Returns
    -------
    ndarray (T, 6)
        Translations along x, y, z in mm, rotations about x, y, z in rad, six decimals.
    """
    step = np.repeat([_STEP_MM, _STEP_RAD], 3) * np.sqrt(repetition_time / 2)
    steps = rng.standard_normal((n_volumes, 6)) * step
    steps[0] = 0
    motion = lfilter([1.0], [1.0, -np.exp(-repetition_time / _SETTLING_TIME)], steps, axis=0)
    if spikes:
        n_spikes = max(1, round(_SPIKE_SHARE * n_volumes))
        # Not among the first volumes, where a jump would hide in the approach to steady state.
        at = rng.choice(np.arange(n_volumes // 5, n_volumes - 1), n_spikes, replace=False)
        for number, volume in enumerate(at):
            share = rng.dirichlet(np.ones(6)) * rng.choice([-1, 1], 6)
            share[3:] /= HEAD_RADIUS_MM
            jump = rng.uniform(*_SPIKE_FD_MM) * share
            end = n_volumes if number % 2 else volume + 1
            motion[volume:end] += jump
    # fMRIPrep writes as many; rounded here, so that everything derived agrees with the file.
    return np.round(noise * motion, 6) + 0.0  # no negative zeros


def motion_signal(head: Head, motion: np.ndarray) -> np.ndarray:
    """What motion leaves in realigned data, percent.

    To first order the displacement times the gradient of the image, of which realignment leaves a
    fifth; and a loss of signal in the volumes with a jump.

    Parameters
    ----------
    head : Head
    motion : ndarray (T, 6)
        mm and rad.

    Returns
    -------
    ndarray (T, V) of float32
    """
    grid = head.grid
    image = grid.scatter(head.baseline, fill=head.background)
    along_axes = np.stack([grid.gather(part) for part in np.gradient(image)], axis=1)
    gradient = along_axes @ np.linalg.inv(grid.affine[:3, :3])  # (V, 3), per mm
    # (rotation × position) · gradient = rotation · (position × gradient)
    torque = np.cross(grid.coordinates, gradient)
    per_unit = -100 * _RESIDUAL_MOTION * np.hstack([gradient, torque]).T / head.baseline
    displacement = np.nan_to_num(power_displacement(motion))
    history = _SPIN_HISTORY * np.where(displacement > FD_OUTLIER_MM, displacement, 0)
    return (motion @ per_unit + history[:, None]).astype(np.float32)


def saturation(n_volumes: int, repetition_time: float, noise: float) -> np.ndarray:
    """Brightness of each volume relative to the steady state, (T,).

    Longitudinal magnetisation under pulses of the Ernst angle (cos α = E, E = exp(−TR/T1)) that
    starts from rest: after n pulses it exceeds its steady state by the factor 1 + E^(2n+1).

    Parameters
    ----------
    n_volumes : int
        T.
    repetition_time : float
        In s.
    noise : float
        Scales the excess.
    """
    decay = np.exp(-repetition_time / _GREY_T1)
    return 1 + noise * decay ** (2.0 * np.arange(n_volumes) + 1)


def nuisance_signal(
    rng: np.random.Generator,
    head: Head,
    n_volumes: int,
    repetition_time: float,
    noise: float,
    site: Site,
) -> Iterator[tuple[slice, np.ndarray]]:
    """Physiology, drift and noise, percent, some volumes at a time.

    Parameters
    ----------
    rng : Generator
    head : Head
    n_volumes : int
        T.
    repetition_time : float
        In s.
    noise : float
        Scales everything.
    site : Site

    Yields
    ------
    volumes : slice
        Which of the T volumes.
    signal : ndarray (t, V) of float32
        Percent of the baseline.
    """
    grid = head.grid
    slow_courses, slow_maps = _slow_parts(rng, head, n_volumes, repetition_time)
    correlation = np.exp(-repetition_time / _NOISE_CORRELATION_TIME)
    # Volume 0 is drawn from the stationary distribution, like all that follow.
    state = correlation * smooth_fields(rng, 1, grid, site.noise_fwhm)
    innovation = np.sqrt(1 - correlation**2)
    for start in range(0, n_volumes, _VOLUMES_AT_A_TIME):
        volumes = slice(start, min(start + _VOLUMES_AT_A_TIME, n_volumes))
        n_here = volumes.stop - volumes.start
        fresh = smooth_fields(rng, n_here, grid, site.noise_fwhm) * innovation
        correlated, state = lfilter([1.0], [1.0, -correlation], fresh, axis=0, zi=state)
        thermal = rng.standard_normal((n_here, grid.n_voxels), dtype=np.float32)
        signal = (
            slow_courses[volumes] @ slow_maps
            + _SMOOTH_NOISE * correlated
            + _WHITE_NOISE * site.thermal_noise * thermal
        )
        yield volumes, (noise * site.noise * signal).astype(np.float32)


def _slow_parts(
    rng: np.random.Generator, head: Head, n_volumes: int, repetition_time: float
) -> tuple[np.ndarray, np.ndarray]:
    """Courses (T, S) and maps (S, V), percent, of physiology and drift."""
    share = {"csf": head.csf, "white": head.white, "global": np.ones_like(head.csf)}
    maps = [
        amplitude * (_PHYSIOLOGY_LEAK + (1 - _PHYSIOLOGY_LEAK) * share[tissue])
        for tissue, amplitude in _PHYSIOLOGY.items()
    ]
    correlation = np.exp(-repetition_time / _PHYSIOLOGY_CORRELATION_TIME)
    fresh = rng.standard_normal((n_volumes, len(maps)))
    fresh[1:] *= np.sqrt(1 - correlation**2)
    physiology = lfilter([1.0], [1.0, -correlation], fresh, axis=0)

    phase = (np.arange(n_volumes) + 0.5) / n_volumes
    drift = np.stack([np.cos(2 * np.pi * cycles * phase) for cycles in _DRIFT_CYCLES], axis=1)
    drift_maps = _DRIFT * smooth_fields(rng, len(_DRIFT_CYCLES), head.grid, _DRIFT_FWHM)
    return (
        np.hstack([physiology, drift]).astype(np.float32),
        np.vstack([*maps, drift_maps]).astype(np.float32),
    )
