"""Methods that give each volume one of a few states: co-activation patterns, a Markov model."""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from bids_fbn.baselines.base import Baseline, BaselineRecipe, covered_by_all
from bids_fbn.baselines.decomposition import principal_maps
from bids_fbn.models.compute import Compute
from bids_fbn.signal.signals import Signals

__all__ = ["CoactivationPatterns", "HiddenMarkovModel"]

# Starts of k-means, of which the best is kept.
_STARTS = 10
# Principal components that the hidden Markov model sees, and its iterations of
# expectation-maximization.
_DIMENSIONS = 10
_ITERATIONS = 200


class _VolumeStates(Baseline):
    """A state for each volume; its candidate is the mean of the run's volumes in that state."""

    slides = False

    @property
    def window(self) -> int:
        return 1

    @property
    def n_candidates(self) -> int:
        """One: the map of the state that the volume is in."""
        return 1

    @property
    def candidate_kind(self) -> str:
        return "state of the volume"

    def _learn(self, signals: Sequence[Signals], seed: int) -> dict[str, np.ndarray]:
        """The states of the volumes of all runs together."""
        runs = self._with_volumes(signals, max(self.recipe.components, _DIMENSIONS) + 1)
        covered = covered_by_all(runs)
        volumes = [np.asarray(run.data)[:, covered] for run in runs]
        return {"covered": covered.astype(np.uint8), **self._find_states(volumes, seed)}

    def maps(
        self, signals: Signals, compute: Compute, stride: int = 1
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """The mean of all volumes of the run that are in the same state as the step's."""
        data = np.asarray(signals.data)
        learned_on = self.learned["covered"].astype(bool)
        states = self._states(data[:, learned_on])
        means = {
            state: self._everywhere(
                data[states == state][:, signals.covered].mean(axis=0)[None], signals.covered
            )
            for state in np.unique(states)
        }
        steps = self.steps(signals, stride)
        for step in np.flatnonzero(steps.valid):
            yield np.array([step]), means[states[steps.start[step]]]

    @abstractmethod
    def _find_states(self, runs: Sequence[np.ndarray], seed: int) -> dict[str, np.ndarray]:
        """Runs (T, covered) → all that :meth:`_states` needs."""

    @abstractmethod
    def _states(self, data: np.ndarray) -> np.ndarray:
        """Volumes (T, covered) → states (T,) of int."""


def _unit(volumes: np.ndarray) -> np.ndarray:
    """Volumes without their mean, of norm 1: their distances are those of correlations."""
    centred = volumes - volumes.mean(axis=1, keepdims=True)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(1e-12)


def _axes(runs: Sequence[np.ndarray], n_dimensions: int) -> np.ndarray:
    """Orthonormal axes (at most D, V) of most variance."""
    maps = principal_maps(runs, n_dimensions)
    return maps / np.linalg.norm(maps, axis=1, keepdims=True)


class CoactivationPatterns(_VolumeStates):
    """Co-activation patterns: k-means of all volumes by their correlation.

    Liu, Chang and Duyn (2013), Decomposition of spontaneous brain activity into distinct fMRI
    co-activation patterns, Front Syst Neurosci 7: whole brain, no seed.
    """

    name = "cap"
    recipes = {"classical": BaselineRecipe(20), "sloppy": BaselineRecipe(10)}  # noqa: RUF012

    def _find_states(self, runs: Sequence[np.ndarray], seed: int) -> dict[str, np.ndarray]:
        from sklearn.cluster import KMeans

        volumes = _unit(np.concatenate(runs))
        # In as many dimensions as there are volumes distances are the same as between voxels.
        basis = _axes([volumes], len(volumes))
        clusters = KMeans(self.recipe.components, n_init=_STARTS, random_state=seed)
        clusters.fit(volumes @ basis.T)
        return {"centres": (clusters.cluster_centers_ @ basis).astype(np.float32)}

    def _states(self, data: np.ndarray) -> np.ndarray:
        centres = self.learned["centres"]
        # Nearest centre, as k-means has it: centres are not of norm 1.
        distance = (centres**2).sum(axis=1) - 2 * _unit(data) @ centres.T
        return np.asarray(distance.argmin(axis=1))


class HiddenMarkovModel(_VolumeStates):
    """Gaussian hidden Markov model of the leading principal components, by hmmlearn.

    Vidaurre, Smith and Woolrich (2017), Brain network dynamics are hierarchically organized in
    time, PNAS 114, with variances but no covariances of the components: a single run is too short
    for more.
    """

    name = "hmm"
    recipes = {"classical": BaselineRecipe(8), "sloppy": BaselineRecipe(6)}  # noqa: RUF012

    def _find_states(self, runs: Sequence[np.ndarray], seed: int) -> dict[str, np.ndarray]:
        basis = _axes(runs, _DIMENSIONS)
        scores = [run @ basis.T for run in runs]
        scale = np.concatenate(scores).std(axis=0)
        scores = [score / scale for score in scores]
        together, lengths = np.concatenate(scores), [len(score) for score in scores]
        markov = self._markov(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of states that no volume is in
            markov.fit(together, lengths)
        # A state that no volume was seen to leave: that of the last volume alone, or of none.
        never_left = markov.transmat_.sum(axis=1) == 0
        transitions = np.where(never_left[:, None], np.eye(len(never_left)), markov.transmat_)
        return {
            "basis": (basis / scale[:, None]).astype(np.float32),
            "means": markov.means_,
            "variances": np.stack([np.diag(of_state) for of_state in markov.covars_]),
            "transitions": transitions,
            "start": markov.startprob_,
        }

    def _markov(self, seed: int | None = None):  # type: ignore[no-untyped-def]
        from hmmlearn.hmm import GaussianHMM

        # Of states that no volume leaves, and steps of rounding: of no concern to a user.
        logging.getLogger("hmmlearn").setLevel(logging.ERROR)
        return GaussianHMM(
            self.recipe.components,
            covariance_type="diag",
            n_iter=_ITERATIONS,
            random_state=seed,
            implementation="scaling",
            # A thousandth of a volume at the mean of all: a state that loses its last volume
            # would have 0 / 0 for its mean, and everything would be NaN from there on.
            means_weight=1e-3,
        )

    def _states(self, data: np.ndarray) -> np.ndarray:
        markov = self._markov()
        markov.n_features = len(self.learned["basis"])
        markov.means_ = self.learned["means"]
        markov.covars_ = self.learned["variances"]
        markov.transmat_ = self.learned["transitions"]
        markov.startprob_ = self.learned["start"]
        # The most probable sequence (Viterbi).
        return np.asarray(markov.predict(data @ self.learned["basis"].T))
