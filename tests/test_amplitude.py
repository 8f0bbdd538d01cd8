"""Amplitudes of networks in windows, how sure they are, and states by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import norm
from small_models import CPU
from udr_runs import model_of, model_of_components, runs_of, templates_of

from bids_fbn.baselines.regression import DualRegression
from bids_fbn.config import Config, ModelOptions
from bids_fbn.evidence import Method, dynamic_measures
from bids_fbn.networks.amplitude import certainty_of_largest, window_amplitudes
from bids_fbn.networks.states import NO_STATE, StateRule, largest_where_certain
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals
from bids_fbn.signal.windows import steps_of

pytestmark = pytest.mark.usefixtures("one_thread")
WINDOW = 30


def courses_of(rng: np.random.Generator, n_volumes: int, n_networks: int) -> np.ndarray:
    """Slow courses whose size rises and falls, each at its own time."""
    slow = gaussian_filter(rng.standard_normal((n_volumes, n_networks)), (1.5, 0))
    phase = np.arange(n_volumes)[:, None] / n_volumes + np.arange(n_networks) / n_networks
    courses = slow * (1 + 0.9 * np.sin(2 * np.pi * phase))
    courses -= courses.mean(axis=0)
    return np.asarray(courses / courses.std(axis=0))


def run_of(grid: Grid, maps: np.ndarray, noise: float, seed: int) -> tuple[Signals, np.ndarray]:
    """A run of 150 volumes with noise that is smooth in space and time, and its true courses."""
    rng = np.random.default_rng(seed)
    (run,) = runs_of(grid, 1)
    courses = courses_of(rng, 150, len(maps))
    field = rng.standard_normal((150, *grid.shape))
    smooth = np.stack([grid.gather(v) for v in gaussian_filter(field, (1.5, 0.6, 0.6, 0.6))])
    data = courses @ maps + noise * smooth / smooth.std()
    data = (data - data.mean(axis=0)) / data.std()
    kept = np.arange(150)
    return replace(run, data=data.astype(np.float32), kept=kept, n_volumes=150), courses


def true_amplitudes(courses: np.ndarray, starts: np.ndarray, window: int = WINDOW) -> np.ndarray:
    return np.sqrt([(courses[start : start + window] ** 2).mean(axis=0) for start in starts])


def test_amplitude_is_the_size_of_the_course_in_the_window(ball_grid: Grid) -> None:
    maps = templates_of(ball_grid).maps
    run, courses = run_of(ball_grid, maps, 0.0, 1)
    steps = steps_of(run, WINDOW)
    amplitude, sd = window_amplitudes(run, maps, steps)
    truth = true_amplitudes(courses, steps.start)
    assert amplitude.shape == truth.shape
    assert sd.shape == (len(maps),)
    assert amplitude == pytest.approx(truth, abs=1e-3)
    assert np.ptp(truth, axis=0).min() > 0.5
    whole, _ = window_amplitudes(run, maps, steps_of(run, run.n_kept))
    assert whole == pytest.approx(1)
    assert (sd < 1e-3).all()


def test_a_step_without_a_window_has_no_amplitude(ball_grid: Grid) -> None:
    maps = templates_of(ball_grid).maps
    run, _ = run_of(ball_grid, maps, 0.5, 2)
    kept = np.delete(np.arange(150), np.arange(60, 75))
    run = replace(run, data=np.asarray(run.data)[kept], kept=kept)
    steps = steps_of(run, WINDOW)
    amplitude, _ = window_amplitudes(run, maps, steps)
    assert 0 < steps.valid.sum() < len(steps)
    assert (np.isfinite(amplitude).all(axis=1) == steps.valid).all()
    assert (np.isnan(certainty_of_largest(amplitude, np.ones(len(maps)))) == ~steps.valid).all()


def test_errors_are_as_large_as_they_say(ball_grid: Grid) -> None:
    maps = templates_of(ball_grid).maps
    ratios, sizes = [], []
    for seed in range(30):
        run, courses = run_of(ball_grid, maps, 0.3, 100 + seed)
        steps = steps_of(run, WINDOW, WINDOW)
        amplitude, sd = window_amplitudes(run, maps, steps)
        ratios.append((amplitude - true_amplitudes(courses, steps.start)) / sd)
        sizes.append(sd)
    z = np.abs(np.array(ratios))
    assert np.mean(sizes) > 0.03
    for share in (0.68, 0.95):
        assert np.mean(z < norm.ppf((1 + share) / 2)) == pytest.approx(share, abs=0.15)


def test_certainty_is_how_often_the_largest_is_the_largest() -> None:
    amplitude = np.array([[1.3, 1.2, 0.4], [1.0, 1.0, 1.0], [0.9, np.nan, 1.0], [2.0, 0.5, 0.1]])
    sd = np.array([0.1, 0.2, 0.05])
    drawn = np.random.default_rng(0).normal(amplitude, sd, (20_000, *amplitude.shape))
    largest = np.nanargmax(amplitude, axis=1)
    expected = (np.nanargmax(drawn, axis=2) == largest).mean(axis=0)
    certainty = certainty_of_largest(amplitude, sd)
    assert certainty == pytest.approx(expected, abs=0.015)
    assert certainty[3] == pytest.approx(1)
    assert len(certainty_of_largest(amplitude[:0], sd)) == 0


def test_a_state_that_the_data_cannot_tell_is_not_claimed() -> None:
    amplitude = np.array([[1.3, 1.2], [0.2, 1.5], [np.nan, np.nan]])
    certainty = certainty_of_largest(amplitude, np.array([0.5, 0.5]))
    assert largest_where_certain(amplitude, certainty, 0.0).tolist() == [0, 1, NO_STATE]
    assert largest_where_certain(amplitude, certainty, 0.9).tolist() == [NO_STATE, 1, NO_STATE]


@pytest.mark.parametrize("name", ["dualregression", "udr"])
def test_states_of_models_that_are_told_are_by_amplitude(ball_grid: Grid, name: str) -> None:
    templates = templates_of(ball_grid)
    run, courses = run_of(ball_grid, templates.maps, 0.3, 3)
    if name == "udr":
        model = model_of(ball_grid)
        model.prepare([run], 0)
    else:
        options = ModelOptions(model=(name,), window=WINDOW)
        model = DualRegression.from_options(options, ball_grid, templates).fit([run], CPU)
    window = model.window
    assert window is not None
    config = Config(bids_dir=Path(), output_dir=Path())
    method = Method.of(model, config, templates, CPU)
    networks, steps = method.networks(model, run)
    states = networks.states(StateRule(certainty=0.0))
    truth = true_amplitudes(courses, steps.start, window)
    assert np.mean(states == truth.argmax(axis=1)) > 0.9
    assert len(np.unique(states)) == len(templates.networks)
    surer = networks.states(StateRule(certainty=0.999))
    assert (surer == NO_STATE).sum() > 0
    measures = dynamic_measures(networks, steps, StateRule(), templates.networks)
    assert measures["amplitude_variation", "all"] == pytest.approx(
        np.mean([networks.amplitude[:, k].std() for k in range(len(templates.networks))])
    )


def test_a_model_of_components_has_none(ball_grid: Grid) -> None:
    run, _ = run_of(ball_grid, templates_of(ball_grid).maps, 0.3, 4)
    assert model_of_components(ball_grid).amplitudes(run) is None
