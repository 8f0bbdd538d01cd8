"""Template ICA on data that are drawn from its model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from bids_fbn.models.template_ica import template_ica
from bids_fbn.models.udr_network import covered_in, fit_courses, fit_maps

pytestmark = pytest.mark.usefixtures("one_thread")

N_VOLUMES, N_VOXELS, N_NETWORKS = 40, 600, 4
NOISE = 1.5


class Drawn(NamedTuple):
    """Data of the model, and what they were made of."""

    volumes: Tensor  # (T, V)
    mean: Tensor  # (K, V)
    spread: Tensor  # (K, V)
    maps: Tensor  # (K, V)
    courses: Tensor  # (T, K), z-scored


def drawn(noise: float = NOISE, seed: int = 0) -> Drawn:
    chance = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=chance)

    # Four networks side by side, each of a quarter of the voxels, and little elsewhere.
    mean = torch.eye(N_NETWORKS).repeat_interleave(N_VOXELS // N_NETWORKS, dim=1)
    spread = 0.1 + 0.4 * torch.rand(N_NETWORKS, N_VOXELS, generator=chance)
    maps = mean + spread * normal(N_NETWORKS, N_VOXELS)
    courses = normal(N_VOLUMES, N_NETWORKS) + normal(N_VOLUMES, 1)
    courses = (courses - courses.mean(dim=0)) / courses.std(dim=0, correction=0)
    volumes = courses @ maps + noise * normal(N_VOLUMES, N_VOXELS)
    return Drawn(volumes, mean, spread, maps, courses)


def dual_regression(data: Drawn) -> tuple[Tensor, Tensor]:
    volumes = data.volumes[None]
    courses = fit_courses(volumes, data.mean[None], covered_in(volumes))
    return fit_maps(volumes, courses, 0.0)[0][0], courses[0]


def test_its_maps_are_nearer_the_truth_than_those_of_dual_regression() -> None:
    data = drawn()
    raw, courses = dual_regression(data)
    found = template_ica(data.volumes, data.mean, data.spread, courses)
    errors = [(maps - data.maps).square().mean() for maps in (found.maps, raw, data.mean)]
    assert errors[0] < 0.7 * errors[1]
    assert errors[0] < 0.8 * errors[2]


def test_courses_and_noise_are_recovered() -> None:
    data = drawn()
    _, courses = dual_regression(data)
    found = template_ica(data.volumes, data.mean, data.spread, courses)
    mixing = found.mixing / found.mixing.std(dim=0, correction=0)
    r = (mixing * data.courses).mean(dim=0)
    assert (r > 0.98).all()
    assert (r > (courses * data.courses).mean(dim=0)).all()
    assert found.noise == pytest.approx(NOISE**2, rel=0.05)


def test_the_posterior_says_how_far_off_it_is() -> None:
    data = drawn()
    found = template_ica(data.volumes, data.mean, data.spread, dual_regression(data)[1])
    off = (data.maps - found.maps) / found.spread
    assert float(off.std()) == pytest.approx(1, abs=0.1)
    assert (found.spread < data.spread * 1.1).all()


def test_the_likelihood_of_the_volumes_rises_and_settles() -> None:
    data = drawn()
    _, courses = dual_regression(data)
    centred = data.volumes - data.volumes.mean(dim=0)

    def likelihood(iterations: int) -> float:
        """Of all voxels, the maps integrated out: y ~ N(A μ, A diag σ² Aᵀ + ν² I)."""
        found = template_ica(data.volumes, data.mean, data.spread, courses, iterations)
        mixing = found.mixing
        spread = data.spread.square().T[:, :, None]
        covariance = mixing @ (spread * mixing.T) + found.noise * torch.eye(N_VOLUMES)
        normal = MultivariateNormal((mixing @ data.mean).T, covariance)
        return float(normal.log_prob(centred.T).sum())

    values = [likelihood(n) for n in (0, 1, 2, 5, 20, 60)]
    assert (np.diff(values) > 0).all()
    assert values[-1] - values[-2] < 0.01 * (values[-1] - values[0])


def test_without_noise_the_data_decide_and_without_data_the_prior() -> None:
    data = drawn(noise=0.01)
    found = template_ica(data.volumes, data.mean, data.spread, data.courses)
    torch.testing.assert_close(found.maps, data.maps, atol=0.05, rtol=0)
    certain = template_ica(data.volumes, data.mean, 0 * data.spread, data.courses)
    r = torch.corrcoef(torch.cat([certain.maps, data.mean]))[:N_NETWORKS, N_NETWORKS:].diagonal()
    torch.testing.assert_close(r, torch.ones(N_NETWORKS))


def test_voxels_without_signal_have_no_map_and_change_nothing() -> None:
    data = drawn()
    _, courses = dual_regression(data)
    covered = torch.arange(N_VOXELS) % 6 > 0
    whole = template_ica(
        data.volumes[:, covered], data.mean[:, covered], data.spread[:, covered], courses
    )
    partly = template_ica(data.volumes * covered, data.mean, data.spread, courses)
    assert (partly.maps[:, ~covered] == 0).all()
    torch.testing.assert_close(partly.maps[:, covered], whole.maps)


def test_fewer_volumes_than_networks_are_enough_for_what_a_prior_knows() -> None:
    data = drawn()
    few = data.volumes[:3]
    _, courses = dual_regression(data._replace(volumes=few))
    found = template_ica(few, data.mean, data.spread, courses)
    assert found.maps.isfinite().all()
    assert found.noise > 0
