"""Decompositions of a run, or of each of its windows: PCA, ICA, dictionary learning."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import nibabel as nib
import numpy as np
from scipy.stats import skew
from torch import Tensor

from bids_fbn.baselines.base import Baseline, BaselineRecipe, covered_by_all
from bids_fbn.baselines.regression import dual_regression
from bids_fbn.errors import RunError
from bids_fbn.models.compute import Compute
from bids_fbn.networks.maps import zscore_maps
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals

__all__ = ["ICA", "PCA", "DictionaryLearning", "learn_dictionary", "principal_maps"]

# Penalty on a voxel's coefficients, as a share of the norm of its series. Signals are z-scored, so
# that norm is √T: nilearn's own 10 asks more of a short run than of a long one, and leaves of a
# single run of 148 volumes 2 % of the map values.
_SPARSITY = 0.1
# FastICA in float32 does not get below its default of 1e-4 in some runs of 148 volumes.
_ICA_TOLERANCE = 1e-3
_ICA_ITERATIONS = 200


def principal_maps(runs: Sequence[np.ndarray], n_components: int) -> np.ndarray:
    """Leading principal components of one or more runs.

    Parameters
    ----------
    runs : sequence of ndarray (T, V)
        Their volumes count alike.
    n_components : int
        K.

    Returns
    -------
    ndarray (K, V)
        Orthogonal, each of the norm of its singular value; fewer than K where the volumes do not
        span as many dimensions.

    Notes
    -----
    Each run is first reduced to as many components as are asked for in the end and a half more,
    so that memory does not hold all volumes (Rachakonda et al. 2016, Memory efficient PCA methods
    for large group ICA, Front Neurosci, compare the ways).
    """
    kept = n_components if len(runs) == 1 else math.ceil(1.5 * n_components)
    return _principal(np.concatenate([_principal(run, kept) for run in runs]), n_components)


def _principal(data: np.ndarray, n_components: int) -> np.ndarray:
    values, vectors = np.linalg.eigh((data @ data.T).astype(np.float64))
    order = np.argsort(values)[::-1][:n_components]
    order = order[values[order] > values[order[0]] * 1e-6]
    return np.asarray(vectors[:, order].T.astype(data.dtype) @ data)


def _turned(maps: np.ndarray) -> np.ndarray:
    """Each map the way up that its longer tail is positive."""
    return maps * np.where(skew(maps, axis=1) < 0, -1, 1)[:, None].astype(maps.dtype)


class _Decomposition(Baseline):
    """Maps of a whole run, learned from it, or of every window, each by itself."""

    def _learn(self, signals: Sequence[Signals], seed: int) -> dict[str, np.ndarray]:
        """The maps of the runs; with windows there is nothing to learn beforehand."""
        n_components, window = self.recipe.components, self.recipe.window
        runs = self._with_volumes(signals, max(n_components + 1, window or 0))
        learned = {"seed": np.array([seed])}
        if window is not None:
            if window <= n_components:
                raise RunError(
                    f"{self.name}: windows of {window} volumes are too short for {n_components} "
                    "components; ask for fewer with --channels"
                )
            return learned
        covered = covered_by_all(runs)
        found = self._decompose([np.asarray(run.data)[:, covered] for run in runs], covered, seed)
        maps = np.zeros((n_components, self.grid.n_voxels), dtype=np.float32)
        maps[: len(found), covered] = found
        return {**learned, "maps": maps}

    @property
    def n_parameters(self) -> int:
        return self.learned["maps"].size if "maps" in self.learned else 0

    def maps(
        self, signals: Signals, compute: Compute, stride: int = 1
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """The components of the run, or of each window.

        Those of the whole run are the learned ones where they were learned from this run alone,
        and else its own form of them by dual regression.
        """
        covered = signals.covered
        seed = int(self.learned["seed"][0])
        for step, volumes in self._windows(signals, stride):
            if self.window is not None:
                found = self._decompose([volumes], covered, seed)
                maps = np.zeros((self.recipe.components, volumes.shape[1]), dtype=np.float32)
                maps[: len(found)] = found
            elif self.training.get("Runs") == [signals.name]:
                maps = self.learned["maps"][:, covered]
            else:
                maps, _ = dual_regression(volumes, self.learned["maps"][:, covered])
            yield step, self._everywhere(maps, covered)

    @abstractmethod
    def _decompose(self, runs: Sequence[np.ndarray], covered: np.ndarray, seed: int) -> np.ndarray:
        """Runs (T, covered) → maps (at most K, covered)."""


class PCA(_Decomposition):
    """Principal component analysis: the maps of most variance, orthogonal to each other."""

    name = "pca"
    recipes = {"classical": BaselineRecipe(20), "sloppy": BaselineRecipe(10)}  # noqa: RUF012

    def _decompose(self, runs: Sequence[np.ndarray], covered: np.ndarray, seed: int) -> np.ndarray:
        return _turned(principal_maps(runs, self.recipe.components))


class ICA(_Decomposition):
    """Spatial independent component analysis by scikit-learn's FastICA.

    Of the leading principal components (McKeown et al. 1998; Beckmann and Smith 2004); of several
    runs, of those of all together.
    """

    name = "ica"
    recipes = {"classical": BaselineRecipe(20), "sloppy": BaselineRecipe(10)}  # noqa: RUF012

    def _decompose(self, runs: Sequence[np.ndarray], covered: np.ndarray, seed: int) -> np.ndarray:
        from sklearn.decomposition import FastICA
        from sklearn.exceptions import ConvergenceWarning

        reduced = principal_maps(runs, self.recipe.components)
        whitened = zscore_maps(reduced.astype(np.float64))
        ica = FastICA(
            whiten="unit-variance",
            max_iter=_ICA_ITERATIONS,
            tol=_ICA_TOLERANCE,
            random_state=seed,
        )
        with warnings.catch_warnings():
            # What it has by then is taken: there is no better one to be had from these data.
            warnings.simplefilter("ignore", ConvergenceWarning)
            components = ica.fit_transform(whitened.T).T
        return _turned(components.astype(np.float32))


class DictionaryLearning(_Decomposition):
    """Sparse dictionary learning, see :func:`learn_dictionary`."""

    name = "sdl"
    recipes = {"classical": BaselineRecipe(20), "sloppy": BaselineRecipe(10)}  # noqa: RUF012

    def _decompose(self, runs: Sequence[np.ndarray], covered: np.ndarray, seed: int) -> np.ndarray:
        return _turned(_dictionary(runs, covered, self.grid, self.recipe.components, seed))


def learn_dictionary(
    signals: Signals, n_components: int = 20, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Sparse maps and their courses by dictionary learning, of one run.

    Parameters
    ----------
    signals : Signals
        T volumes, V voxels.
    n_components : int
        K; 20 is nilearn's own choice.
    seed : int
        Of the start, which is an ICA, and of the order in which voxels are seen.

    Returns
    -------
    maps : ndarray (K, V) of float32
        Of unit norm, in either sign; 0 in voxels that the run does not cover. A component that
        explains nothing is 0 everywhere.
    courses : ndarray (T, K) of float32
        Least squares of the signals on all maps at once.

    Raises
    ------
    RunError
        If there are fewer volumes than components.

    Notes
    -----
    By :class:`nilearn.decomposition.DictLearning` (Mensch, Varoquaux and Thirion 2016, Compressed
    online dictionary learning for fast resting-state fMRI decomposition, ISBI).
    """
    if signals.n_kept < n_components:
        raise RunError(
            f"{signals.name}: {signals.n_kept} volumes are too few for a dictionary of "
            f"{n_components}"
        )
    grid, covered, data = signals.grid, signals.covered, np.asarray(signals.data)
    maps = np.zeros((n_components, grid.n_voxels), dtype=np.float32)
    maps[:, covered] = _dictionary([data[:, covered]], covered, grid, n_components, seed)
    # Exact, unlike courses of networks: with its maps they are to make up the run again.
    courses, *_ = np.linalg.lstsq(
        maps[:, covered].T.astype(np.float64), data[:, covered].T, rcond=1e-6
    )
    return maps, courses.T.astype(np.float32)


def _dictionary(
    runs: Sequence[np.ndarray], covered: np.ndarray, grid: Grid, n_components: int, seed: int
) -> np.ndarray:
    """Runs (T, covered) → maps (K, covered)."""
    from nilearn.decomposition import DictLearning

    mask = np.zeros(grid.shape, dtype=bool)
    mask[grid.mask] = covered
    of_covered = Grid(grid.affine, mask)
    n_volumes = sum(len(run) for run in runs) / len(runs)
    learner = DictLearning(
        n_components=n_components,
        alpha=_SPARSITY * math.sqrt(n_volumes),
        mask=nib.Nifti1Image(mask.astype(np.uint8), grid.affine),
        # The signals are cleaned and z-scored already.
        smoothing_fwhm=None,
        standardize=False,
        detrend=False,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the ICA at the start, which need not converge
        learner.fit([of_covered.image(run) for run in runs])
    return np.asarray(learner.components_, dtype=np.float32)
