"""Surrogate runs: what they keep of a run, and what not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import solve_discrete_lyapunov
from scipy.signal import lfilter
from threadpoolctl import threadpool_limits

from bids_fbn.networks.tissue import grey_fraction, white_fraction
from bids_fbn.nulls.fields import estimate_smoothness
from bids_fbn.nulls.series import (
    SurrogateKind,
    fit_var,
    leading_components,
    left_by_cleaning,
    slow_to_fast,
    surrogate_runs,
    turned,
)
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals, StoredMatrix
from bids_fbn.simulation.noise import smooth_fields

KINDS: tuple[SurrogateKind, ...] = ("phase", "var", "noise")


def coloured(white: np.ndarray) -> np.ndarray:
    """AR(1) of 0.5."""
    return lfilter([1], [1, -0.5], white, axis=0)


def run_of(data: np.ndarray, grid: Grid, n_not_covered: int = 0) -> Signals:
    data = (data - data.mean(axis=0)) / data.std(axis=0)
    covered = np.arange(data.shape[1]) >= n_not_covered
    data[:, ~covered] = 0
    n = len(data)
    return Signals(data.astype(np.float32), grid, 2.0, np.arange(n), n + 3, covered, "run")


def two_regions(grid: Grid, n_volumes: int, seed: int, alternate: bool = False) -> Signals:
    """Left and right share a course; if they alternate, the sign of the right one changes every
    40 volumes, so that the correlation over the run is 0."""
    rng = np.random.default_rng(seed)
    right = grid.coordinates[:, 0] > np.median(grid.coordinates[:, 0])
    course = coloured(rng.standard_normal((n_volumes, 1)))
    sign = np.where(np.arange(n_volumes) // 40 % 2, -1, 1)[:, None] if alternate else 1
    data = np.where(right, sign * course, course)
    return run_of(data + 0.7 * coloured(smooth_fields(rng, n_volumes, grid, 16.0)), grid, 7)


def windowed_variance(signals: Signals) -> float:
    """Variance over windows of 30 volumes of the correlation of left and right, after Fisher."""
    left, right = regions(signals)
    starts = range(0, len(left) - 29, 10)
    r = [np.corrcoef(left[s : s + 30], right[s : s + 30])[0, 1] for s in starts]
    return float(np.var(np.arctanh(r)))


def regions(signals: Signals) -> tuple[np.ndarray, np.ndarray]:
    """Mean course of the outer thirds."""
    x = signals.grid.coordinates[:, 0]
    low, high = np.quantile(x, [1 / 3, 2 / 3])
    data = np.asarray(signals.data)
    return (
        data[:, signals.covered & (x < low)].mean(axis=1),
        data[:, signals.covered & (x > high)].mean(axis=1),
    )


@pytest.mark.parametrize("n_times", [60, 61])
def test_phases_change_and_every_cross_spectrum_stays(n_times: int) -> None:
    rng = np.random.default_rng(0)
    series = rng.standard_normal((n_times, 5)) @ rng.standard_normal((5, 5))
    series -= series.mean(axis=0)
    surrogate = turned(slow_to_fast(np.eye(n_times)), rng) @ series
    before, after = (np.fft.rfft(s, axis=0) for s in (series, surrogate))
    cross = [np.einsum("fi,fj->fij", f, f.conj()) for f in (before, after)]
    assert np.allclose(*cross)
    assert np.allclose(np.corrcoef(series.T), np.corrcoef(surrogate.T))
    assert np.allclose(series.mean(axis=0), surrogate.mean(axis=0))
    assert abs(np.corrcoef(series[:, 0], surrogate[:, 0])[0, 1]) < 0.5


@pytest.mark.parametrize("order", [1, 2])
def test_the_autoregressive_model_is_stable_and_draws_the_covariances(order: int) -> None:
    rng = np.random.default_rng(1)
    series = coloured(coloured(rng.standard_normal((300, 3)))) @ rng.standard_normal((3, 3))
    series -= series.mean(axis=0)
    model = fit_var(series, order)
    k, memory = model.coefficients.shape
    companion = np.eye(memory, k=-k)
    companion[:k] = model.coefficients
    assert np.abs(np.linalg.eigvals(companion)).max() < 1
    noise = np.zeros((memory, memory))
    noise[:k, :k] = model.innovation
    assert np.allclose(solve_discrete_lyapunov(companion, noise), model.stationary)

    total = [np.zeros((3, 3)) for _ in range(order + 1)]
    for _ in range(300):
        drawn = model.draw(300, rng)
        drawn -= drawn.mean(axis=0)
        for lag in range(order + 1):
            total[lag] += drawn[lag:].T @ drawn[: 300 - lag] / 300 / 300
    for lag in range(order + 1):
        own = series[lag:].T @ series[: 300 - lag] / 300
        assert np.allclose(total[lag], own, atol=0.06 * series.var(axis=0).max())


def test_a_random_walk_gets_a_stable_model() -> None:
    walk = np.random.default_rng(0).standard_normal((80, 2)).cumsum(axis=0)
    model = fit_var(walk - walk.mean(axis=0))
    assert np.abs(np.linalg.eigvals(model.coefficients)).max() < 1


def test_var_surrogates_keep_the_covariances_of_components(ball_grid: Grid) -> None:
    run = two_regions(ball_grid, 200, 0)
    data = np.asarray(run.data)
    loadings = leading_components(data)[:, :5].T @ data
    loadings /= np.linalg.norm(loadings, axis=1, keepdims=True)

    def covariances(signals: Signals) -> np.ndarray:
        scores = np.asarray(signals.data) @ loadings.T
        return np.stack([scores.T @ scores, scores[1:].T @ scores[:-1]]) / len(scores)

    mean = np.mean([covariances(s) for s in surrogate_runs(run, "var", 60, 1)], axis=0)
    own = covariances(run)
    assert np.abs(mean - own).max() < 0.1 * own.max()


@pytest.mark.parametrize("kind", KINDS)
def test_surrogates_are_the_same_whatever_the_threads(
    ball_grid: Grid, kind: SurrogateKind
) -> None:
    run = two_regions(ball_grid, 200, seed=3)
    drawn = []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            drawn.append([surrogate.data for surrogate in surrogate_runs(run, kind, 2, seed=4)])
    np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_surrogates_are_runs_of_the_same_form(
    kind: SurrogateKind, ball_grid: Grid, tmp_path: Path
) -> None:
    run = two_regions(ball_grid, 61, 0)
    np.save(tmp_path / "data.npy", run.data)
    stored = Signals(**{**vars(run), "data": StoredMatrix(tmp_path / "data.npy")})
    first = list(surrogate_runs(run, kind, 2, seed=3))
    more = list(surrogate_runs(stored, kind, 4, seed=3))
    for few, many in zip(first, more, strict=False):
        assert np.array_equal(few.data, many.data)
    assert not np.allclose(more[0].data, more[1].data)
    other = next(surrogate_runs(run, kind, 1, seed=4))
    assert not np.allclose(other.data, more[0].data)
    surrogate = more[2]
    assert isinstance(surrogate.data, np.ndarray)
    assert surrogate.data.dtype == np.float32
    assert surrogate.data.shape == run.data.shape
    assert not surrogate.data[:, ~run.covered].any()
    assert np.allclose(surrogate.data.mean(axis=0), 0, atol=1e-5)
    assert np.allclose(surrogate.data[:, run.covered].std(axis=0), 1, atol=1e-5)
    assert (surrogate.name, surrogate.n_volumes) == ("run", 64)
    assert surrogate.kept is run.kept


def test_phase_surrogates_keep_all_static_correlations(ball_grid: Grid) -> None:
    run = two_regions(ball_grid, 100, 0)
    surrogate = next(surrogate_runs(run, "phase", 1))
    own, drawn = (np.asarray(s.data).T @ np.asarray(s.data) / 100 for s in (run, surrogate))
    assert np.allclose(own, drawn, atol=1e-5)


@pytest.mark.parametrize("kind", ["phase", "var"])
def test_changing_correlation_stands_out_and_static_does_not(
    kind: SurrogateKind, ball_grid: Grid
) -> None:
    """20 static runs: the rank of each among its 9 surrogates is even."""

    def p(run: Signals, seed: int, n: int) -> float:
        null = [windowed_variance(s) for s in surrogate_runs(run, kind, n, seed)]
        return (1 + sum(value >= windowed_variance(run) for value in null)) / (n + 1)

    assert p(two_regions(ball_grid, 240, 0, alternate=True), 0, 39) == 1 / 40
    static = [p(two_regions(ball_grid, 160, seed), seed, 9) for seed in range(20)]
    # The mean of 20 even ranks is 0.55 ± 0.064.
    assert abs(np.mean(static) - 0.55) < 3 * 0.064


def test_noise_has_no_network(ball_grid: Grid) -> None:
    rng = np.random.default_rng(5)
    # Of the outer half, and the inner half does the opposite: the brain as a whole does nothing.
    out = np.abs(ball_grid.coordinates[:, 0] - np.median(ball_grid.coordinates[:, 0]))
    ends = np.empty(ball_grid.n_voxels, dtype=bool)
    ends[np.argsort(out, kind="stable")] = np.arange(ball_grid.n_voxels) >= ball_grid.n_voxels / 2
    shared = coloured(rng.standard_normal((150, 1))) * np.where(ends, 1, -1)
    run = run_of(shared + coloured(smooth_fields(rng, 150, ball_grid, 16.0)), ball_grid, 7)
    assert np.corrcoef(*regions(run))[0, 1] > 0.3
    between = [np.corrcoef(*regions(s))[0, 1] for s in surrogate_runs(run, "noise", 20, 0)]
    # Below 0, since the mean of all of such a small brain is 0.
    assert -0.4 < np.mean(between) < 0.1


def test_noise_has_the_smoothness_and_the_spectrum_of_the_run(ball_grid: Grid) -> None:
    rng = np.random.default_rng(5)
    run = run_of(coloured(smooth_fields(rng, 150, ball_grid, 16.0)), ball_grid, 7)
    surrogates = list(surrogate_runs(run, "noise", 20, 0))

    def power(signals: Signals) -> np.ndarray:
        spectrum = np.abs(np.fft.rfft(np.asarray(signals.data)[:, signals.covered], axis=0)) ** 2
        return spectrum.mean(axis=1)[1:-1].reshape(-1, 2).mean(axis=1)

    mean = np.mean([power(s) for s in surrogates], axis=0)
    assert np.corrcoef(np.log(mean), np.log(power(run)))[0, 1] > 0.9
    assert np.allclose(mean.sum(), power(run).sum(), rtol=0.02)
    own = estimate_smoothness(np.asarray(run.data), ball_grid, run.covered)
    drawn = estimate_smoothness(np.asarray(surrogates[0].data), ball_grid, run.covered)
    assert np.allclose(own.fwhm, drawn.fwhm, rtol=0.15)


def test_noise_keeps_what_tissues_do(coarse_grid: Grid) -> None:
    """By the share of each voxel; a network in one of them is gone."""
    rng = np.random.default_rng(3)
    grey, white = grey_fraction(coarse_grid), white_fraction(coarse_grid)
    x = coarse_grid.coordinates[:, 0]
    far = np.abs(x) > 55
    courses = coloured(rng.standard_normal((100, 3)))
    noise = coloured(smooth_fields(rng, 100, coarse_grid, 12.0))
    run = run_of(courses @ np.stack([grey, 0.7 * white, far]) + noise, coarse_grid)
    shares = np.stack([grey, white, 1 - grey - white], axis=1)

    def of_tissues(signals: Signals) -> np.ndarray:
        return np.asarray(signals.data) @ shares / shares.sum(axis=0)

    def of_network(signals: Signals) -> float:
        """Mean r of its voxels on the left with those on the right, without tissues."""
        data = np.asarray(signals.data)
        means = np.linalg.qr(of_tissues(signals))[0]
        left, right = (data[:, far & side] for side in (x < 0, x > 0))
        rest = [(part - means @ (means.T @ part)).mean(axis=1) for part in (left, right)]
        return float(np.corrcoef(*rest)[0, 1])

    assert of_network(run) > 0.6
    surrogates = list(surrogate_runs(run, "noise", 10, 0))
    assert abs(np.mean([of_network(s) for s in surrogates])) < 0.15
    for surrogate in surrogates:
        for own, kept in zip(of_tissues(run).T, of_tissues(surrogate).T, strict=True):
            assert np.corrcoef(own, kept)[0, 1] > 0.99
            assert kept.std() == pytest.approx(own.std(), rel=0.05)
            r_run, r_noise = (
                np.linalg.lstsq(shares, np.asarray(of.data).T @ own / 100 / own.std())[0]
                for of in (run, surrogate)
            )
            assert r_noise == pytest.approx(r_run, abs=0.02)


def test_noise_of_a_run_without_a_global_signal_has_none(ball_grid: Grid) -> None:
    rng = np.random.default_rng(4)
    pairs, odd = divmod(ball_grid.n_voxels, 2)
    half = coloured(smooth_fields(rng, 80, ball_grid, 16.0))[:, :pairs]
    run = run_of(np.hstack([rng.random((80, odd)), half, -half]), ball_grid, odd)
    for surrogate in surrogate_runs(run, "noise", 3, 0):
        data = np.asarray(surrogate.data)[:, run.covered]
        assert np.allclose(data.std(axis=0), 1, atol=1e-3)
        assert np.abs(data.mean(axis=1)).max() < 0.03


def cleaned_of(nuisances: np.ndarray, grid: Grid, seed: int) -> Signals:
    """A static run of which orthonormal courses were regressed out."""
    raw = np.asarray(two_regions(grid, len(nuisances), seed).data, dtype=np.float64)
    raw[:, :7] = np.random.default_rng(seed).standard_normal((len(raw), 7))
    return run_of(raw - nuisances @ (nuisances.T @ raw), grid, 7)


@pytest.mark.parametrize("kind", ["phase", "var"])
def test_static_surrogates_are_as_uneven_in_time_as_cleaning_makes_a_run(
    kind: SurrogateKind, ball_grid: Grid
) -> None:
    rng = np.random.default_rng(7)
    # As motion parameters of a head that lies still and then moves.
    moving = rng.standard_normal((100, 30)) * np.where(np.arange(100) < 60, 0.1, 2.0)[:, None]
    nuisances, _ = np.linalg.qr(np.column_stack([np.ones(100), moving]))
    run = cleaned_of(nuisances, ball_grid, 0)
    surrogates = [np.asarray(s.data) for s in surrogate_runs(run, kind, 20, 0)]
    for surrogate in surrogates:
        # Each voxel of the other kind was scaled afterwards, which leaves 0 at 0.
        assert np.abs(nuisances.T @ surrogate).max() < 1e-3

    def unevenness(data: np.ndarray) -> float:
        return float(np.square(data[60:]).mean() / np.square(data[:60]).mean())

    own = [unevenness(np.asarray(cleaned_of(nuisances, ball_grid, s).data)) for s in range(20)]
    drawn = [unevenness(surrogate) for surrogate in surrogates]
    assert np.mean(own) < 0.5
    assert np.mean(drawn) == pytest.approx(np.mean(own), abs=0.1)


def test_noise_is_cleaned_as_the_run_was(ball_grid: Grid) -> None:
    rng = np.random.default_rng(6)
    raw = coloured(smooth_fields(rng, 100, ball_grid, 16.0))
    nuisances, _ = np.linalg.qr(np.column_stack([np.ones(100), rng.standard_normal((100, 30))]))
    run = run_of(raw - nuisances @ (nuisances.T @ raw), ball_grid, 7)
    assert left_by_cleaning(np.asarray(run.data)[:, run.covered]).shape == (100, 69)

    def spectrum(signals: Signals) -> np.ndarray:
        return np.abs(np.fft.rfft(np.asarray(signals.data)[:, signals.covered], axis=0)) ** 2

    surrogates = list(surrogate_runs(run, "noise", 10, 0))
    for surrogate in surrogates:
        removed = nuisances.T @ np.asarray(surrogate.data)
        # Each voxel was scaled afterwards, which leaves 0 at 0.
        assert np.abs(removed).max() < 1e-3
    mean = np.mean([spectrum(s).mean(axis=1) for s in surrogates], axis=0)[1:]
    assert np.allclose(mean.sum(), spectrum(run).mean(axis=1)[1:].sum(), rtol=0.02)
    assert np.corrcoef(np.log(mean), np.log(spectrum(run).mean(axis=1)[1:]))[0, 1] > 0.9


def test_all_courses_are_left_where_voxels_are_too_few_to_tell() -> None:
    data = np.random.default_rng(0).standard_normal((50, 20))
    assert np.array_equal(left_by_cleaning(data), np.eye(50))
