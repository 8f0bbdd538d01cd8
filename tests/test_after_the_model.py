"""Everything after the model, on runs whose networks and states are known.

A model of single volumes that is as good as can be hands over what is in the volume and nothing
else. So the noise-free volumes themselves are the candidates here, one each step; then the true
maps of the networks that are on. What comes back is compared with the truth of the simulation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_fbn.config import SignalOptions
from bids_fbn.networks.dynamics import RunNetworks, find_networks, network_courses
from bids_fbn.networks.maps import SupportRule, zscore_maps
from bids_fbn.networks.overlap import assign_one_to_one, overlap_with_templates
from bids_fbn.networks.states import assign_states, summarize_states
from bids_fbn.networks.templates import TemplateSet, load_templates
from bids_fbn.signal.clean import clean_run
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals
from bids_fbn.signal.windows import lay_windows
from bids_fbn.simulate import simulate_dataset
from bids_fbn.simulation.networks import BOLD_STATE_THRESHOLD, N_NETWORKS

T, TR = 400, 2.0


@dataclass
class Truth:
    """A noise-free run: K networks, T volumes, V voxels."""

    bold: Path
    grid: Grid
    templates: TemplateSet
    maps: np.ndarray
    courses: np.ndarray
    states: np.ndarray

    @property
    def has_state(self) -> np.ndarray:
        return self.states >= 0

    @property
    def percent_change(self) -> np.ndarray:
        """Volumes relative to the baseline of each voxel, (T, V)."""
        volumes = self.grid.gather(nib.load(self.bold).get_fdata())
        design = np.column_stack([self.courses, np.ones(T)])
        baseline = np.linalg.lstsq(design, volumes, rcond=None)[0][-1]
        return 100 * (volumes / baseline - 1)

    def networks(
        self,
        candidates: Iterator[np.ndarray],
        rule: SupportRule,
        covered: np.ndarray | None = None,
    ) -> RunNetworks:
        """Networks from the candidates (K', V) of each volume."""
        if covered is None:
            covered = np.ones(self.grid.n_voxels, dtype=bool)
        steps = lay_windows(np.arange(T), T, TR, 1)
        batches = ((np.array([step]), maps[None]) for step, maps in enumerate(candidates))
        return find_networks(batches, steps, self.templates, covered, rule)

    def accuracy(self, found: RunNetworks, threshold: float = 0.3) -> float:
        """Share of the steps with a true state to which that state is given."""
        states = assign_states(found.iou, threshold)
        return float((states == self.states)[self.has_state].mean())


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory, coarse_grid: Grid) -> Truth:
    folder = simulate_dataset(
        tmp_path_factory.mktemp("noise-free") / "data",
        n_participants=1,
        n_volumes=T,
        repetition_time=TR,
        resolution=8.0,
        noise=0,
    )

    def one(pattern: str) -> Path:
        (path,) = folder.rglob(pattern)
        return path

    templates = load_templates("seitzman2018", coarse_grid)
    names = pd.read_csv(one("*_states.tsv"), sep="\t")["bold_state"]
    courses = pd.read_csv(one("*_mixing.tsv"), sep="\t")
    assert list(courses) == list(templates.networks[:N_NETWORKS])
    number = {name: index for index, name in enumerate(templates.networks)} | {"none": -1}
    return Truth(
        one("*_bold.nii.gz"),
        coarse_grid,
        templates,
        coarse_grid.gather(nib.load(one("*_components.nii.gz")).get_fdata()),
        courses.to_numpy(),
        names.map(number).to_numpy(),
    )


@pytest.fixture(scope="module")
def signals(truth: Truth, tmp_path_factory: pytest.TempPathFactory) -> Signals:
    options = SignalOptions(nuisance=("none",), smoothing=0, min_time=0)
    folder = tmp_path_factory.mktemp("cleaned")
    return clean_run(truth.bold, TR, truth.grid, options, folder).signals


def test_the_right_template_wins_for_every_true_map(truth: Truth) -> None:
    templates = truth.templates
    for rule in (SupportRule(), SupportRule(either_sign=False), SupportRule(1.7)):
        for sign in (1, -1) if rule.either_sign else (1,):
            found = overlap_with_templates(
                sign * zscore_maps(truth.maps), templates.maps, templates.supports, rule
            )
            own = np.arange(N_NETWORKS)
            assert np.array_equal(found.iou.argmax(axis=1), own)
            assert np.array_equal(assign_one_to_one(found.iou)[:N_NETWORKS], own)
            assert (found.sign[own, own] == sign).all()
            others = found.iou.copy()
            others[own, own] = 0
            assert (found.iou[own, own] > 4 * others.max(axis=1)).all()


def test_states_maps_and_courses_come_back_from_the_noise_free_volumes(truth: Truth) -> None:
    volumes = truth.percent_change
    found = truth.networks((volume[None] for volume in volumes), SupportRule(either_sign=False))
    assert truth.accuracy(found) > 0.98
    states = np.where(truth.has_state, assign_states(found.iou), -1)
    every = np.ones(T, dtype=bool)
    ours, true = (summarize_states(s, every, 13, TR) for s in (states, truth.states))
    assert np.abs(ours.occupancy - true.occupancy).max() < 0.02
    assert np.abs(ours.counts - true.counts).sum() < 0.03 * true.counts.sum()
    assert ours.switching_rate == pytest.approx(true.switching_rate, rel=0.05)
    covered = np.ones(truth.grid.n_voxels, dtype=bool)
    courses = network_courses(found.maps, volumes, covered, found.weak)
    for p in range(N_NETWORKS):
        assert np.corrcoef(found.maps[p], truth.maps[p])[0, 1] > 0.98
        assert np.corrcoef(courses[:, p], truth.courses[:, p])[0, 1] > 0.95


def test_the_states_come_back_from_the_true_maps_of_what_is_on(truth: Truth) -> None:
    # Where two networks hand over both are on, both match perfectly, and chance decides.
    def candidates() -> Iterator[np.ndarray]:
        for course in truth.courses:
            on = course >= BOLD_STATE_THRESHOLD
            yield truth.maps[on] if on.any() else np.zeros_like(truth.maps[:1])

    found = truth.networks(candidates(), SupportRule())
    assert truth.accuracy(found) > 0.95
    # A volume without a network gets none.
    assert (assign_states(found.iou)[~truth.has_state] == -1).all()
    assert np.array_equal(found.weak, np.arange(13) >= N_NETWORKS)
    for p in range(N_NETWORKS):
        assert np.corrcoef(found.maps[p], truth.maps[p])[0, 1] > 0.99
        assert found.present[p] == (truth.courses[:, p] >= BOLD_STATE_THRESHOLD).sum()


def test_states_and_maps_come_back_from_the_cleaned_signals(
    truth: Truth, signals: Signals
) -> None:
    volumes = np.array(signals.data)
    found = truth.networks(
        (volume[None] for volume in volumes), SupportRule(either_sign=False), signals.covered
    )
    # Each voxel's z-score levels what is strong and what is weak in a volume: fewer overlaps reach
    # 0.3, but which one is the highest is as before, and what reaches it is right.
    assert truth.accuracy(found, threshold=0) > 0.95
    states = assign_states(found.iou)
    both = truth.has_state & (states >= 0)
    assert both.sum() > 0.8 * truth.has_state.sum()
    assert (states == truth.states)[both].mean() > 0.95
    for p in range(N_NETWORKS):
        inside = signals.covered
        assert np.corrcoef(found.maps[p, inside], truth.maps[p, inside])[0, 1] > 0.6


def test_the_undershoot_of_one_network_passes_for_another_where_signs_are_free(
    truth: Truth,
) -> None:
    # A support of fixed size does not know how strong a map is: the response of a network that
    # has just gone off, a tenth as strong and negative, overlaps as well as the one that is on.
    volumes = truth.percent_change
    free = truth.networks((volume[None] for volume in volumes), SupportRule())
    positive = truth.networks((volume[None] for volume in volumes), SupportRule(either_sign=False))
    assert 0.8 < truth.accuracy(free) < truth.accuracy(positive) - 0.05
