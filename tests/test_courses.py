"""Whether two halves of the voxels agree."""

from __future__ import annotations

import numpy as np
import pytest

from bids_fbn.networks.courses import Coherence, centred_courses, chessboard

PLACES = np.stack(np.meshgrid(*[np.arange(0.0, 180, 12)] * 3, indexing="ij"), -1).reshape(-1, 3)
RNG = np.random.default_rng(0)
MAPS = RNG.standard_normal((3, len(PLACES)))
COURSES = RNG.standard_normal((80, 3))
NOISE = RNG.standard_normal((80, len(PLACES)))


def test_a_chessboard_has_blocks_that_alternate() -> None:
    half = chessboard(PLACES)
    line = np.arange(0.0, 180)[:, None] * [1.0, 0, 0]
    assert list(np.flatnonzero(np.diff(chessboard(line).astype(int)))) == [44, 89, 134]
    assert 0.4 < half.mean() < 0.6
    assert (chessboard(PLACES, (0.5, 0, 0)) != half).mean() > 0.3


@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_networks_are_coherent_and_noise_is_not(shift: float) -> None:
    there = Coherence(COURSES @ MAPS + 5 * NOISE + shift, PLACES).of(MAPS)
    absent = Coherence(NOISE + shift, PLACES).of(MAPS)
    assert (np.tanh(there) > 0.9).all()
    assert (np.abs(absent) < 4 / np.sqrt(80)).all()


def test_it_is_the_mean_z_of_dual_regression_in_each_half() -> None:
    volumes = COURSES @ MAPS + 20 * NOISE
    expected = []
    for offset in ((0, 0, 0), (0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5)):
        half = chessboard(PLACES, offset)
        one, other = (centred_courses(volumes[:, h], MAPS[:, h]) for h in (half, ~half))
        r = np.corrcoef(one.T, other.T)[:3, 3:].diagonal()
        expected.append(np.arctanh(r))
    assert np.allclose(Coherence(volumes, PLACES).of(MAPS), np.mean(expected, axis=0), atol=1e-4)


def test_a_map_that_a_half_has_nothing_of_has_none() -> None:
    maps = MAPS.copy()
    maps[1] = 0
    found = Coherence(COURSES @ MAPS, PLACES).of(maps)
    assert found[1] == 0
    assert np.isfinite(found).all()
