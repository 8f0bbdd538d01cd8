"""Unrolled dual regression as a network: volumes of a stretch → the networks' maps in it.

The steps are those of dual regression, least squares of volumes on maps and of volumes on courses,
with a prior on the maps between them. All of it can be differentiated.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "N_LENGTHS",
    "UnrolledDualRegression",
    "covered_in",
    "explained",
    "fit_courses",
    "fit_maps",
    "predicted",
]

# Of the mean eigenvalue: maps or courses that say the same twice share what they explain.
_RIDGE = 1e-4
# A residual is never taken for less than this share of the volumes that it is left of.
_LEAST_FREEDOM = 0.2
# Lengths of stretches for which the parts of the error were weighed.
N_LENGTHS = 3
# Of the variance of an error, until the parts are weighed: noise and shrinkage, as the normal
# model has them, and nothing else.
_NORMAL_MODEL = (1.0, 1.0, 0.0, 0.0)
# Of a network in standard deviations of the voxels: below it is none, and its size is not known.
_LEAST_SIZE = 1e-3
# What training starts from, and about what it comes to at rest: the noise of raw maps is that of
# volumes that are independent in time, and the ridge as a share of the mean square of a course.
_NOISE, _RIDGE_OF_COURSES = 1.0, 0.15
# The same of a network with volumes of others: how many these count for.
_VOLUMES_OF_OTHERS = 40.0


def _solve(gram: Tensor, values: Tensor) -> Tensor:
    """Symmetric systems (B, K, K) x = (B, K, N), a little ridge on the diagonal."""
    size = gram.shape[-1]
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-12)
    ridge = _RIDGE * mean[:, None, None] * torch.eye(size, dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge, values)


def covered_in(volumes: Tensor) -> Tensor:
    """1 where any of the volumes (B, T, V) has signal, else 0: (B, 1, V) of float32."""
    return (volumes != 0).any(dim=1, keepdim=True).float()


def fit_courses(volumes: Tensor, maps: Tensor, weights: Tensor) -> Tensor:
    """Least squares of every volume on all maps at once, both without their mean over voxels.

    Parameters
    ----------
    volumes : Tensor (B, T, V)
    maps : Tensor (B, K, V)
    weights : Tensor (B, 1, V)
        1 in voxels that count, else 0.

    Returns
    -------
    Tensor (B, T, K)
        z-scored over time.
    """
    return _standardised(_raw_courses(volumes, maps, weights))


def _standardised(courses: Tensor) -> Tensor:
    return courses / courses.std(dim=1, keepdim=True, correction=0).clamp_min(1e-12)


def _raw_courses(volumes: Tensor, maps: Tensor, weights: Tensor) -> Tensor:
    """The same in units of the maps, without their mean over time."""
    maps = _without_mean(maps, weights)
    courses = _solve(maps @ maps.mT, maps @ volumes.mT).mT
    return courses - courses.mean(dim=1, keepdim=True)


def _share_of(own: Tensor, maps: Tensor, weights: Tensor) -> Tensor:
    """What of each of own maps (B, K, V) is its own of maps (B, K, V), all at once: (B, K)."""
    own, maps = _without_mean(own, weights), _without_mean(maps, weights)
    return _solve(maps @ maps.mT, maps @ own.mT).diagonal(dim1=-2, dim2=-1)


def fit_maps(volumes: Tensor, courses: Tensor, ridge: Tensor | float) -> tuple[Tensor, Tensor]:
    """Ridge regression of every voxel on all courses at once.

    Parameters
    ----------
    volumes : Tensor (B, T, V)
    courses : Tensor (B, T, K)
        z-scored.
    ridge : Tensor or float
        Of the mean square of a course.

    Returns
    -------
    maps : Tensor (B, K, V)
    noise : Tensor (B, K)
        Variance of their noise, were volumes independent in time: the residual's mean square by
        the courses' precision.
    """
    n_volumes, size = courses.shape[1:]
    volumes = volumes - volumes.mean(dim=1, keepdim=True)
    gram = courses.mT @ courses / n_volumes
    gram = gram + ridge * torch.eye(size, dtype=gram.dtype, device=gram.device)
    maps = _solve(gram, courses.mT @ volumes / n_volumes)
    residual = (volumes - courses @ maps).square().sum(dim=(1, 2))
    free = max(n_volumes - size - 1, _LEAST_FREEDOM * n_volumes)
    voxels = (volumes.square().sum(dim=1) > 0).sum(dim=1).clamp_min(1)
    variance = residual / (free * voxels)
    precision = torch.linalg.inv(gram).diagonal(dim1=-2, dim2=-1)
    return maps, variance[:, None] * precision / n_volumes


def explained(volumes: Tensor, maps: Tensor) -> Tensor:
    """Share of the volumes' variance over voxels that the maps explain by least squares, (B,).

    The mean over voxels is taken out of both, as it is when courses are fitted: it is the global
    signal, which any map explains that has a mean itself, whatever network it is of.

    Parameters
    ----------
    volumes : Tensor (B, T, V)
        0 in voxels that do not count.
    maps : Tensor (B, K, V)
    """
    weights = covered_in(volumes)
    volumes, maps = _without_mean(volumes, weights), _without_mean(maps, weights)
    products = maps @ volumes.mT
    fitted = (products * _solve(maps @ maps.mT, products)).sum(dim=(1, 2))
    return fitted / volumes.square().sum(dim=(1, 2)).clamp_min(1e-12)


def _without_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Values (B, N, V) less their mean over the voxels that count, 0 in the others."""
    mean = (values * weights).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
    return (values - mean) * weights


def predicted(volumes: Tensor, courses: Tensor, maps: Tensor) -> Tensor:
    """Share of the volumes' variance over time that maps explain with courses as given, (B,).

    Parameters
    ----------
    volumes : Tensor (B, T, V)
        0 in voxels that do not count.
    courses : Tensor (B, T, K)
        z-scored.
    maps : Tensor (B, K, V)
    """
    centred = volumes - volumes.mean(dim=1, keepdim=True)
    left = centred - courses @ (maps * covered_in(volumes))
    return 1 - left.square().sum(dim=(1, 2)) / centred.square().sum(dim=(1, 2)).clamp_min(1e-12)


class UnrolledDualRegression(nn.Module):
    """Dual regression with a prior, on the maps or on the volumes, once or repeated.

    Parameters
    ----------
    n_networks, n_voxels : int
        K and V.
    repetitions : int
        How often courses and maps are fitted to each other. Without modes each learns a factor of
        the noise of its raw maps and the ridge with which they are fitted.
    n_modes : int
        Of the volumes of other participants, which are joined to those of a stretch: how many
        volumes these count for is learned. Without any (0) the maps are shrunk.
    """

    group: Tensor
    mean: Tensor
    spread: Tensor
    modes: Tensor
    error_lengths: Tensor
    error_factors: Tensor
    error_degrees: Tensor

    def __init__(self, n_networks: int, n_voxels: int, repetitions: int, n_modes: int = 0) -> None:
        super().__init__()
        self.repetitions = repetitions
        self.n_modes = n_modes
        # Not learned: the group maps are what the networks are, and the prior is found.
        for name in ("group", "mean", "spread"):
            self.register_buffer(name, torch.zeros(n_networks, n_voxels))
        self.register_buffer("error_lengths", torch.ones(N_LENGTHS))
        self.register_buffer("error_factors", torch.tensor([_NORMAL_MODEL] * N_LENGTHS))
        self.register_buffer("error_degrees", torch.tensor(math.inf))
        if n_modes:
            self.register_buffer("modes", torch.zeros(n_modes, n_voxels))
            self.log_volumes = nn.Parameter(torch.tensor(math.log(_VOLUMES_OF_OTHERS)))
        else:
            self.log_noise = nn.Parameter(torch.full((repetitions,), math.log(_NOISE)))
            self.log_ridge = nn.Parameter(torch.full((repetitions,), math.log(_RIDGE_OF_COURSES)))

    def set_prior(
        self, group: Tensor, mean: Tensor, spread: Tensor, modes: Tensor | None = None
    ) -> None:
        """Group maps, mean and spread of the participants' own maps, all (K, V).

        And the modes (M, V) of the participants' volumes, M at most as many as there are: the sum
        of their outer products is the covariance (V, V) of a volume.
        """
        self.group.copy_(group)
        self.mean.copy_(mean)
        self.spread.copy_(spread)
        if self.n_modes:
            if modes is None:
                raise ValueError("a network with modes is given them with its prior")
            self.modes.zero_()
            self.modes[: len(modes)] = modes

    def set_error(self, lengths: Tensor, factors: Tensor, degrees: float) -> None:
        """What :func:`bids_fbn.models.udr_error.find_error` found: (3,), (3, 4) and a number."""
        self.error_lengths.copy_(lengths)
        self.error_factors.copy_(factors)
        self.error_degrees.fill_(degrees)

    def reset_error(self) -> None:
        """Errors as the normal model has them."""
        self.error_factors.copy_(torch.tensor([_NORMAL_MODEL] * N_LENGTHS))
        self.error_degrees.fill_(math.inf)

    def forward(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps and courses of stretches.

        Parameters
        ----------
        volumes : Tensor (B, T, V)
            z-scored over their run; 0 in voxels that it does not cover.

        Returns
        -------
        maps : Tensor (B, K, V)
            Signal, in standard deviations of a voxel's series over the run, for one standard
            deviation of the network's course over the stretch.
        courses : Tensor (B, T, K)
            z-scored over the stretch.
        """
        maps, courses, *_ = self._unrolled(volumes)
        return maps, courses

    def estimate(self, volumes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps, the standard deviation of their error, and courses.

        Parameters
        ----------
        volumes : Tensor (B, T, V)

        Returns
        -------
        maps : Tensor (B, K, V)
        sd : Tensor (B, K, V)
            In the units of the maps; 0 in voxels that the stretch does not cover.
        courses : Tensor (B, T, K)
        """
        maps, courses, *sources = self._unrolled(volumes)
        parts = self.parts_of_error(*sources)
        factors = self._factors(volumes.shape[1])
        variance = (parts * factors[:, None, None]).sum(dim=1)
        return maps, variance.sqrt() * covered_in(volumes), courses

    def maps_and_parts(self, volumes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps (B, K, V), the parts of the variance of their error (B, 4, K, V), and courses."""
        maps, courses, *sources = self._unrolled(volumes)
        return maps, self.parts_of_error(*sources), courses

    def parts_of_error(self, trust: Tensor, noise: Tensor, size: Tensor) -> Tensor:
        """What the variance of a map's error is the weighted sum of.

        Noise that was trusted; what a participant differs by and shrinkage lost; the same of what
        the size of a network in this stretch is wrong by; and what the courses of wrong maps bring
        in of other networks.

        Parameters
        ----------
        trust : Tensor (B, K, V)
            0 to 1, that the raw map counted by; beside modes, the stretch's share of the variance
            of a network's course.
        noise : Tensor (B, K, 1)
            Variance, of raw maps; beside modes of the maps.
        size : Tensor (B, K, 1)
            Of the networks in the stretch, see :meth:`size_in`.

        Returns
        -------
        Tensor (B, 4, K, V)
        """
        lost, expected = (1 - trust).square(), (size * self.mean).square()
        others = expected.sum(dim=1, keepdim=True) - expected
        return torch.stack(
            [
                noise.expand_as(trust) if self.n_modes else trust.square() * noise,
                lost * (size * self.spread).square(),
                # Beside modes all of a map is at that size.
                expected if self.n_modes else lost * expected,
                others,
            ],
            dim=1,
        )

    def size_in(self, volumes: Tensor) -> Tensor:
        """How large networks are in stretches, by how large they are in participants' runs.

        The standard deviation of the course that the group map gives, by its mean over the runs
        that the prior is of. Least squares of the prior's mean on all group maps has the latter:
        what the courses' own maps hold of the group maps is these standard deviations.

        Parameters
        ----------
        volumes : Tensor (B, T, V)

        Returns
        -------
        Tensor (B, K, 1)
        """
        group = self.group.expand(len(volumes), -1, -1)
        return self._size_of(_raw_courses(volumes, group, covered_in(volumes)))

    def _size_of(self, raw: Tensor) -> Tensor:
        """The same (B, K, 1) of courses (B, T, K) in units of the group maps."""
        here = raw.std(dim=1, correction=0)
        everywhere = torch.ones_like(self.group[None, :1])
        usual = _share_of(self.mean[None], self.group[None], everywhere)
        size = torch.where(usual > _LEAST_SIZE, here / usual, 1.0)
        return size[:, :, None]

    def _factors(self, n_volumes: int) -> Tensor:
        """Factors of the parts (4,) for a stretch, linear in the logarithm of its length."""
        lengths = self.error_lengths.cpu().log().numpy()
        factors = self.error_factors.cpu().numpy()
        at = [np.interp(math.log(n_volumes), lengths, of_part) for of_part in factors.T]
        return torch.tensor(at, dtype=torch.float32, device=self.error_factors.device)

    def _unrolled(self, volumes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Maps, courses, and of the last repetition the trust (B, K, V) and noise (B, K, 1); and
        the sizes (B, K, 1) that the prior was taken at."""
        weights = covered_in(volumes)
        maps = self.group.expand(len(volumes), -1, -1)
        raw = _raw_courses(volumes, maps, weights)
        size = self._size_of(raw)
        for number in range(self.repetitions):
            raw = raw if number == 0 else _raw_courses(volumes, maps, weights)
            courses = _standardised(raw)
            if self.n_modes:
                own, trust, noise = self._beside_modes(volumes, maps, weights, raw)
            else:
                own, noise = fit_maps(volumes, courses, self.log_ridge[number].exp())
                noise = (noise * self.log_noise[number].exp())[:, :, None]
                mean, variance = size * self.mean, (size * self.spread).square()
                trust = variance / (variance + noise)
                own = mean + trust * (own - mean)
            maps = own * weights
        return maps, courses, trust, noise, size

    def _beside_modes(
        self, volumes: Tensor, maps: Tensor, weights: Tensor, raw: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Least squares of every voxel on the courses in the stretch and in the modes at once.

        Parameters
        ----------
        volumes : Tensor (B, T, V)
        maps : Tensor (B, K, V)
            That the courses are of.
        weights : Tensor (B, 1, V)
        raw : Tensor (B, T, K)
            Courses in units of the maps.

        Returns
        -------
        own : Tensor (B, K, V)
            For one standard deviation of the course over the stretch.
        trust : Tensor (B, K, V)
        noise : Tensor (B, K, 1)
            Of `own`, as if volumes of others were as noisy.
        """
        n_volumes, n_others = raw.shape[1], self.log_volumes.exp()
        total = n_volumes + n_others
        volumes = volumes - volumes.mean(dim=1, keepdim=True)
        if len(maps) > 1 and (maps == maps[:1]).all() and (weights == weights[:1]).all():
            maps, weights = maps[:1], weights[:1]
        centred = _without_mean(maps, weights)
        in_modes = _solve(centred @ centred.mT, centred @ self.modes.T).mT
        here, there = raw.square().sum(dim=1), n_others * in_modes.square().sum(dim=1)
        unit = ((here + there) / total).sqrt().clamp_min(1e-12)[:, None]
        courses, in_modes = raw / unit, in_modes / unit
        gram = (courses.mT @ courses + n_others * in_modes.mT @ in_modes) / total
        products = courses.mT @ volumes + n_others * (in_modes.mT @ self.modes) * weights
        own = _solve(gram, products / total)
        residual = (volumes - courses @ own).square().sum(dim=(1, 2))
        voxels = weights.sum(dim=(1, 2)).clamp_min(1)
        # The solver's little ridge is for a network that is not covered, which has no course.
        precision = _solve(gram, torch.eye(gram.shape[-1]).to(gram)).diagonal(dim1=-2, dim2=-1)
        noise = (residual / (n_volumes * voxels))[:, None] * precision / total
        of_stretch = (here / n_volumes).sqrt() / unit[:, 0]
        noise = (noise * of_stretch**2)[:, :, None]
        trust = (here / (here + there).clamp_min(1e-12))[:, :, None].expand_as(own)
        return own * of_stretch[:, :, None], trust, noise
