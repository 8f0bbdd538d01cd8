"""Template ICA: maps of a participant as the posterior of a normal model, by EM.

The method that unrolled dual regression is held against: the same prior on the maps, found in the
same way, but mixing, noise and maps are fitted together by maximum likelihood rather than by
repeated regression, and nothing is learned. `benchmarks/individual.py` compares the two.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["TemplateICA", "template_ica"]

# Of real runs EM has no end that is worth waiting for: with 20 components at 10 mm, 40 iterations
# explain as much of other volumes as 20, to the third digit.
_ITERATIONS = 20
# Of the mean square of the volumes: noise is never taken for less.
_LEAST_NOISE = 1e-4


class TemplateICA(NamedTuple):
    """What template ICA finds in a stretch of T volumes, of V voxels and K networks.

    Parameters
    ----------
    maps : Tensor (K, V)
        Posterior mean, for one standard deviation of the network's course; 0 in voxels without
        signal.
    spread : Tensor (K, V)
        Standard deviation of the posterior, in the same units.
    mixing : Tensor (T, K)
        A, the courses on the scale that the prior gives them.
    noise : float
        ν², variance of what is left of a voxel's series.
    """

    maps: Tensor
    spread: Tensor
    mixing: Tensor
    noise: float


def template_ica(
    volumes: Tensor, mean: Tensor, spread: Tensor, courses: Tensor, iterations: int = _ITERATIONS
) -> TemplateICA:
    """Maps s_v ~ N(μ_v, diag σ_v²) of every voxel v, from its series y_v = A s_v + e_v.

    Parameters
    ----------
    volumes : Tensor (T, V)
        Each voxel's mean over time is taken out.
    mean, spread : Tensor (K, V)
        μ and σ.
    courses : Tensor (T, K)
        Those of dual regression, z-scored: where A starts.
    iterations : int

    Returns
    -------
    TemplateICA

    Notes
    -----
    Mejia et al. (2020), Template independent component analysis, J Am Stat Assoc 115:1151, section
    2.2: e_v ~ N(0, ν² I); the E-step has the posterior of s_v given A and ν², the M-step A and
    ν² given the posteriors. Here without their reduction of the T volumes to K dimensions, and
    without nuisance components: the volumes are cleaned. The scale of A is that of the prior.
    """
    covered = (volumes != 0).any(dim=0)
    data = volumes[:, covered].double()
    data = data - data.mean(dim=0)
    mu, sigma = (values[:, covered].double().mT for values in (mean, spread))
    mixing = courses.double()
    total = data.square().sum()
    n_volumes, n_voxels = data.shape
    # What the mean maps leave: too much rather than too little, since of fewer volumes than
    # networks maps that are fitted freely leave nothing.
    noise = (data - mixing @ mu.mT).square().mean()
    for _ in range(iterations):
        maps, second, _ = _posterior(data, mixing, noise, mu, sigma)
        products = data @ maps
        mixing = torch.linalg.solve(second, products.mT).mT
        left = total - 2 * (products * mixing).sum() + (mixing.mT @ mixing * second).sum()
        noise = left / (n_volumes * n_voxels)
        noise = noise.clamp_min(_LEAST_NOISE * total / (n_volumes * n_voxels))
    maps, _, variance = _posterior(data, mixing, noise, mu, sigma)
    size = mixing.std(dim=0, correction=0).clamp_min(1e-12)

    def everywhere(values: Tensor) -> Tensor:
        of_all = torch.zeros_like(mean)
        of_all[:, covered] = (values * size).mT.to(of_all.dtype)
        return of_all

    return TemplateICA(
        everywhere(maps), everywhere(variance.sqrt()), mixing.to(volumes.dtype), float(noise)
    )


def _posterior(
    data: Tensor, mixing: Tensor, noise: Tensor, mu: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior mean (V, K), sum over voxels of E[s sᵀ] (K, K), posterior variance (V, K).

    Written with s = μ + σ u, u ~ N(0, I): the system to solve is then the identity and more, so a
    network without spread somewhere is no special case.
    """
    gram = mixing.mT @ mixing / noise
    system = sigma[:, :, None] * gram * sigma[:, None, :]
    system.diagonal(dim1=1, dim2=2).add_(1)
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(system))
    surprise = (data.mT - mu @ mixing.mT) @ mixing / noise
    maps = mu + sigma * (covariance @ (sigma * surprise)[:, :, None])[:, :, 0]
    second = maps.mT @ maps + torch.einsum("vi,vij,vj->ij", sigma, covariance, sigma)
    return maps, second, sigma.square() * covariance.diagonal(dim1=1, dim2=2)
