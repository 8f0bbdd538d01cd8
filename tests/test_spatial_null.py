"""The spatial nulls: surrogate fields are as smooth as the maps, and the search has its due p."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import binom

from bids_fbn.networks.maps import SupportRule, zscore_maps
from bids_fbn.networks.overlap import Matcher
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.nulls.fields import (
    draw_fields,
    estimate_smoothness,
    field_correlation,
)
from bids_fbn.nulls.pvalues import corrected_p, p_of
from bids_fbn.nulls.spatial import elsewhere_null, random_maps_null, search_statistic
from bids_fbn.signal.grid import Grid, grid_geometry

RULES = [
    SupportRule(),
    SupportRule(either_sign=False),
    SupportRule(1.5),
    SupportRule(1.0, standardize=False, either_sign=False),
]
KERNEL = 1 / np.sqrt(8 * np.log(2))  # standard deviation of a Gaussian of FWHM 1


def gaussian_fields(grid: Grid, n: int, fwhm: tuple[float, ...], seed: int = 0) -> np.ndarray:
    """Smoothed white noise of variance 1, without an edge near; FWHM in mm."""
    sigma = np.array(fwhm) * KERNEL / grid.resolution
    edge = [(0, 0)] + [(width, width) for width in np.ceil(4 * sigma).astype(int)]
    white = np.random.default_rng(seed).standard_normal((n, *grid.shape), dtype=np.float32)
    fields = gaussian_filter(np.pad(white, edge, mode="wrap"), (0, *sigma), mode="wrap")
    inner = tuple(slice(a, a + size) for (a, _), size in zip(edge[1:], grid.shape, strict=True))
    return fields[(slice(None), *inner)][:, grid.mask] / fields.std()


@pytest.fixture(scope="module")
def large_ball() -> Grid:
    """About 9,000 voxels of 4 mm."""
    affine, _ = grid_geometry(4.0)
    x, y, z = np.indices((28, 29, 30))
    return Grid(affine, (x - 13) ** 2 + (y - 14) ** 2 + (z - 15) ** 2 <= 13**2)


@pytest.fixture(scope="module")
def everywhere(large_ball: Grid) -> np.ndarray:
    return np.ones(large_ball.n_voxels, dtype=bool)


def blobs(grid: Grid, n: int = 4, size: int = 40, seed: int = 0) -> TemplateSet:
    """Networks of 1, 2, … n times `size` voxels: those highest in smooth noise."""
    maps = gaussian_fields(grid, n, (30.0,) * 3, 1000 + seed)
    rank = (-maps).argsort(axis=1).argsort(axis=1)
    supports = rank < size * np.arange(1, n + 1)[:, None]
    names = tuple(f"N{number}" for number in range(n))
    return TemplateSet("Test", names, maps, supports, "", "", "")


# --- smoothness ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fwhm", [(8.0,) * 3, (14.0,) * 3, (8.0, 12.0, 18.0)])
def test_the_smoothness_of_known_fields(large_ball, everywhere, fwhm):
    maps = gaussian_fields(large_ball, 60, fwhm)
    found = estimate_smoothness(maps, large_ball, everywhere).fwhm
    np.testing.assert_allclose(found, fwhm, rtol=0.05)


def test_only_covered_voxels_count(large_ball):
    maps = gaussian_fields(large_ball, 60, (12.0,) * 3)
    covered = large_ball.coordinates[:, 2] > np.median(large_ball.coordinates[:, 2])
    maps[:, ~covered] = 0
    smoothness = estimate_smoothness(maps, large_ball, covered)
    np.testing.assert_allclose(smoothness.fwhm, 12, rtol=0.05)
    assert draw_fields(smoothness, 3, np.random.default_rng(0)).shape == (3, covered.sum())


@pytest.mark.parametrize(
    "transform",
    [
        lambda field: field > 1.5,
        lambda field: (field - 1).clip(0),
        lambda field: field**3,
        lambda field: np.float32(7) - 2 * field,
    ],
    ids=["binary", "sparse", "long tails", "other units"],
)
def test_what_is_estimated_is_the_field_behind_a_map(large_ball, everywhere, transform):
    maps = transform(gaussian_fields(large_ball, 60, (12.0,) * 3))
    found = estimate_smoothness(maps, large_ball, everywhere).fwhm
    np.testing.assert_allclose(found, 12, rtol=0.05)


def correlation_at(fields: np.ndarray, grid: Grid, lag: tuple[int, int, int]) -> float:
    """Mean product of fields of variance 1, over pairs of voxels a lag apart."""
    volume, mask = grid.scatter(fields), grid.mask
    x, y, z = lag
    there = volume[x:, y:, z:], mask[x:, y:, z:]
    here = tuple(
        values[: there[1].shape[0], : there[1].shape[1], : there[1].shape[2]]
        for values in (volume, mask)
    )
    return float((here[0] * there[0])[here[1] & there[1]].mean())


def test_drawn_fields_have_the_autocorrelation_of_the_maps(large_ball, everywhere):
    # Not Gaussian: a sharp peak on a broad foot.
    fine, broad = (gaussian_fields(large_ball, 60, (f,) * 3, s) for f, s in ((6.0, 1), (20.0, 2)))
    maps = np.sqrt(0.5) * (fine + broad)
    smoothness = estimate_smoothness(maps, large_ball, everywhere)
    fields = draw_fields(smoothness, 400, np.random.default_rng(3))
    assert fields.dtype == np.float32
    sigma = np.array([6.0, 20.0]) * KERNEL
    for lag in [(0, 0, 0), (1, 0, 0), (0, 2, 0), (0, 0, 3), (1, 2, 1), (4, 0, 2), (0, 6, 0)]:
        distance = 4.0 * np.linalg.norm(lag)
        expected = np.exp(-(distance**2) / (4 * sigma**2)).mean()
        drawn = correlation_at(fields, large_ball, lag)
        assert drawn == pytest.approx(smoothness.acf[lag], abs=0.02)
        assert drawn == pytest.approx(expected, abs=0.06)


def test_drawn_fields_are_independent_and_gaussian(large_ball, everywhere):
    smoothness = estimate_smoothness(
        gaussian_fields(large_ball, 20, (10.0,) * 3), large_ball, everywhere
    )
    fields = draw_fields(smoothness, 201, np.random.default_rng(0))
    assert fields.shape == (201, large_ball.n_voxels)
    # A field and its partner from the same transform, and any other two.
    for shift in (101, 1):
        r = np.mean(
            [np.corrcoef(*pair)[0, 1] for pair in zip(fields, fields[shift:], strict=False)]
        )
        assert abs(r) < 0.02
    assert (np.abs(fields) > 1.959964).mean() == pytest.approx(0.05, abs=0.005)


def test_maps_without_variation_make_white_fields(large_ball, everywhere):
    smoothness = estimate_smoothness(np.ones((2, large_ball.n_voxels)), large_ball, everywhere)
    fields = draw_fields(smoothness, 4, np.random.default_rng(0))
    assert correlation_at(fields, large_ball, (1, 0, 0)) == pytest.approx(0, abs=0.02)


# --- correlation between maps --------------------------------------------------------------------


def correlated_fields(n_voxels: int, correlation: np.ndarray) -> np.ndarray:
    white = np.random.default_rng(0).standard_normal((len(correlation), n_voxels))
    return np.linalg.cholesky(correlation) @ white


CORRELATION = np.array([[1, 0.8, -0.3], [0.8, 1, 0], [-0.3, 0, 1]])


@pytest.mark.parametrize(
    "transform", [lambda f: f, lambda f: f > 1, lambda f: np.exp(f), lambda f: (f - 1).clip(0)]
)
def test_the_correlation_of_the_fields_behind_maps(transform):
    found = field_correlation(transform(correlated_fields(30_000, CORRELATION)))
    np.testing.assert_allclose(found, CORRELATION, atol=0.06)


def test_supports_that_exclude_each_other_still_have_a_correlation_matrix():
    labels = np.arange(3000) % 10
    found = field_correlation(labels == np.arange(10)[:, None])
    assert np.linalg.eigvalsh(found).min() > -1e-9
    np.testing.assert_allclose(found[~np.eye(10, dtype=bool)], -1 / 9, atol=0.01)


def test_surrogates_are_correlated_like_the_candidates(ball_grid, monkeypatch):
    seen = []
    match = Matcher.match
    monkeypatch.setattr(
        Matcher, "match", lambda self, maps: (seen.append(maps), match(self, maps))[1]
    )
    maps = np.linalg.cholesky(CORRELATION) @ gaussian_fields(ball_grid, 3, (12.0,) * 3)
    run(maps, ball_grid, n_surrogates=200)
    mean = np.mean([np.corrcoef(fields) for fields in seen[1:]], axis=0)
    np.testing.assert_allclose(mean, np.corrcoef(maps), atol=0.06)


# --- the search ----------------------------------------------------------------------------------


class Found(NamedTuple):
    """What is found among maps, (P,), and among their surrogates, (S, P); p alone, corrected."""

    statistic: np.ndarray
    null: np.ndarray
    p: np.ndarray
    p_corrected: np.ndarray


def run(
    maps: np.ndarray,
    grid: Grid,
    rule: SupportRule = RULES[0],
    templates: TemplateSet | None = None,
    covered: np.ndarray | None = None,
    n_surrogates: int = 60,
    seed: int = 0,
    threads: int = 1,
) -> Found:
    if covered is None:
        covered = np.ones(grid.n_voxels, dtype=bool)
    templates = templates or blobs(grid)
    candidates = np.asarray(maps, dtype=np.float32)[:, covered]
    supports = templates.supports[:, covered]
    matcher = Matcher(supports, rule, np.ones(covered.sum(), dtype=bool))
    statistic = search_statistic(matcher.match(candidates).iou)
    null = random_maps_null(maps, templates, grid, covered, rule, n_surrogates, seed, threads)
    return Found(statistic, null, p_of(statistic, null), corrected_p(statistic, null))


def test_each_map_serves_one_template_and_a_template_without_a_map_has_0():
    iou = np.array([[0.9, 0.8, 0.1], [0.7, 0.1, 0.2]])
    np.testing.assert_array_equal(search_statistic(iou), [0.7, 0.8, 0])


@pytest.mark.parametrize("rule", [RULES[0], RULES[2]], ids=str)
def test_smooth_noise_is_significant_as_often_as_it_should_be(ball_grid, rule):
    repeats = 200
    corrected, alone = [], []
    for seed in range(repeats):
        maps = gaussian_fields(ball_grid, 6, (14.0,) * 3, seed)
        found = run(maps, ball_grid, rule, blobs(ball_grid, seed=seed), n_surrogates=39, seed=seed)
        corrected.append(found.p_corrected.min() <= 0.05)
        alone.append(found.p)
    low, high = binom.interval(0.999, repeats, 0.05)
    assert low <= np.sum(corrected) <= high
    assert np.mean(alone) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_network_among_the_maps_stands_out(ball_grid, rule):
    templates = blobs(ball_grid)
    maps = gaussian_fields(ball_grid, 5, (16.0,) * 3)
    maps[3] += 3 * templates.supports[1]
    found = run(maps, ball_grid, rule, templates)
    assert found.p[1] == found.p_corrected[1] == 1 / 61
    assert found.p_corrected.argmin() == 1
    assert (found.p_corrected >= found.p - 1e-9).all()
    assert found.null.shape == (60, 4)


def sparse(maps: np.ndarray) -> np.ndarray:
    return np.sign(maps) * (np.abs(maps) - 1.6).clip(0)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("transform", [sparse, lambda maps: maps > 1.5], ids=["sparse", "bool"])
def test_supports_of_surrogates_are_as_large_as_those_of_the_candidates(
    ball_grid, rule, transform, monkeypatch
):
    maps = transform(gaussian_fields(ball_grid, 3, (16.0,) * 3))
    seen = []
    match = Matcher.match
    monkeypatch.setattr(
        Matcher, "match", lambda self, maps: (seen.append(maps.copy()), match(self, maps))[1]
    )
    run(maps, ball_grid, rule, blobs(ball_grid, 3, 60), n_surrogates=5)
    observed, *surrogates = seen
    for fields in surrogates:
        np.testing.assert_array_equal(np.sort(fields), np.sort(observed))
        assert (fields != observed).any()


@pytest.mark.parametrize(
    ("transform", "rule"),
    [(sparse, RULES[1]), (lambda maps: maps > 1.5, SupportRule(0.5, False, False))],
    ids=["sparse", "bool"],
)
def test_a_network_among_sparse_and_binary_maps_stands_out(ball_grid, transform, rule):
    templates = blobs(ball_grid)
    maps = gaussian_fields(ball_grid, 5, (16.0,) * 3)
    maps[3] += 3 * templates.supports[2]
    found = run(transform(maps), ball_grid, rule, templates)
    assert found.p_corrected.argmin() == 2
    assert found.p_corrected[2] == 1 / 61


def test_maps_with_nothing_in_them_match_nothing(ball_grid):
    maps = np.zeros((3, ball_grid.n_voxels), dtype=np.float32)
    maps[1] = 2.5
    maps[2, 7] = 1.0
    found = run(maps, ball_grid, n_surrogates=19)
    assert found.null.max() == pytest.approx(1 / 40)
    assert (found.p_corrected > 0.05).all()
    flat = run(maps[:2], ball_grid, n_surrogates=19)
    np.testing.assert_array_equal(flat.statistic, 0)
    np.testing.assert_array_equal(flat.p, 1)
    np.testing.assert_array_equal(flat.p_corrected, 1)


def test_fewer_maps_than_templates(ball_grid):
    found = run(gaussian_fields(ball_grid, 2, (16.0,) * 3), ball_grid)
    assert (found.statistic > 0).sum() == 2
    assert ((found.null > 0).sum(axis=1) == 2).all()


def test_voxels_that_are_not_covered_take_no_part(ball_grid):
    covered = ball_grid.coordinates[:, 0] > np.quantile(ball_grid.coordinates[:, 0], 0.3)
    maps = gaussian_fields(ball_grid, 4, (16.0,) * 3)
    found = run(maps, ball_grid, covered=covered, n_surrogates=5)
    maps[:, ~covered] = 100 * np.random.default_rng(0).standard_normal((~covered).sum())
    again = run(maps, ball_grid, covered=covered, n_surrogates=5)
    np.testing.assert_array_equal(found.statistic, again.statistic)
    np.testing.assert_array_equal(found.null, again.null)


def test_surrogates_depend_on_the_seed_alone(ball_grid):
    maps = zscore_maps(gaussian_fields(ball_grid, 3, (16.0,) * 3))
    first = run(maps, ball_grid, n_surrogates=6)
    more = run(maps, ball_grid, n_surrogates=12, threads=2)
    np.testing.assert_array_equal(first.null, more.null[:6])
    assert (run(maps, ball_grid, n_surrogates=6, seed=1).null != first.null).any()


# --- the templates elsewhere ---------------------------------------------------------------------


def test_a_network_is_not_found_elsewhere(coarse_grid):
    templates = blobs(coarse_grid)
    everything = np.ones(coarse_grid.n_voxels, dtype=bool)
    maps = gaussian_fields(coarse_grid, 5, (16.0,) * 3)
    maps[3] += 3 * templates.supports[2]
    null = elsewhere_null(maps, templates, coarse_grid, everything, SupportRule(), 79)
    assert {kind: of_kind.shape for kind, of_kind in null.items()} == {
        "turned": (40, 4),
        "mirrored": (39, 4),
    }
    statistic = search_statistic(
        Matcher(templates.supports, SupportRule(), everything).match(maps).iou
    )
    for of_kind in null.values():
        p = corrected_p(statistic, of_kind)
        assert p[2] == 1 / (1 + len(of_kind))
        # The others are of noise, and lie anywhere as well.
        assert np.delete(p, 2).min() > 0.05


def test_what_is_not_covered_takes_no_part_elsewhere(coarse_grid):
    covered = coarse_grid.coordinates[:, 2] > np.quantile(coarse_grid.coordinates[:, 2], 0.2)
    maps = gaussian_fields(coarse_grid, 4, (16.0,) * 3)

    def found() -> np.ndarray:
        asked = (maps, blobs(coarse_grid), coarse_grid, covered, SupportRule(), 5)
        return np.concatenate(list(elsewhere_null(*asked).values()))

    before = found()
    maps[:, ~covered] = 100
    np.testing.assert_array_equal(found(), before)
