"""Plain methods beside the models: what a network has to be better than, or is taught by."""

from __future__ import annotations

import math
import warnings

import nibabel as nib
import numpy as np

from bids_fbn.errors import RunError
from bids_fbn.networks.dynamics import network_courses
from bids_fbn.signal.signals import Signals

__all__ = ["learn_dictionary"]

# Penalty on a voxel's coefficients, as a share of the norm of its series. Signals are z-scored, so
# that norm is √T: nilearn's own 10 asks more of a short run than of a long one, and leaves of a
# single run of 148 volumes 2 % of the map values.
_SPARSITY = 0.1


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
    from nilearn.decomposition import DictLearning

    n_volumes = signals.n_kept
    if n_volumes < n_components:
        raise RunError(
            f"{signals.name}: {n_volumes} volumes are too few for a dictionary of {n_components}"
        )
    grid, covered, data = signals.grid, signals.covered, np.asarray(signals.data)
    learner = DictLearning(
        n_components=n_components,
        alpha=_SPARSITY * math.sqrt(n_volumes),
        mask=nib.Nifti1Image(grid.scatter(covered.astype(np.uint8)), grid.affine),
        # The signals are cleaned and z-scored already.
        smoothing_fwhm=None,
        standardize=False,
        detrend=False,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the ICA at the start, which need not converge
        learner.fit(grid.image(data))
    maps = np.zeros((n_components, grid.n_voxels), dtype=np.float32)
    maps[:, covered] = learner.components_
    return maps, network_courses(maps, data, covered).astype(np.float32)
