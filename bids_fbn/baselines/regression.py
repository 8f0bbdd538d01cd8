"""Dual regression on the templates: each map has its name from the start, nothing is searched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from bids_fbn.baselines.base import Baseline, BaselineRecipe
from bids_fbn.models.compute import Compute
from bids_fbn.models.told import Told
from bids_fbn.networks.courses import RCOND, inverse_of, spatial_regression
from bids_fbn.networks.maps import zscore_maps
from bids_fbn.signal.signals import Signals

__all__ = ["DualRegression", "dual_regression"]


def dual_regression(volumes: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A run's own form of given maps.

    Parameters
    ----------
    volumes : ndarray (T, V)
    maps : ndarray (K, V)

    Returns
    -------
    own_maps : ndarray (K, V) of float32
        Least squares of the volumes on the z-scored courses of all maps at once.
    courses : ndarray (T, K)
        Least squares of the volumes on all maps at once, both without their mean over voxels.

    Notes
    -----
    Beckmann et al. (2009), Group comparison of resting-state FMRI data using multi-subject ICA and
    dual regression, Neuroimage 47; Nickerson et al. (2017), Using dual regression to investigate
    network shape and amplitude in functional connectivity analyses, Front Neurosci 11.
    """
    return _with_inverse(volumes, inverse_of(maps))


def _with_inverse(volumes: np.ndarray, inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    courses = spatial_regression(volumes, inverse)
    standard = zscore_maps(courses.T).T
    own = np.linalg.pinv(standard, rcond=RCOND).astype(np.float32) @ (
        volumes - volumes.mean(axis=0)
    )
    return np.asarray(own, dtype=np.float32), courses


class DualRegression(Told, Baseline):
    """Dual regression on a template set, of every window; see :func:`dual_regression`."""

    name = "dualregression"
    has_courses = True
    recipes = {  # noqa: RUF012
        "classical": BaselineRecipe(0, window=40),
        "sloppy": BaselineRecipe(0, window=20),
    }

    @property
    def n_parameters(self) -> int:
        return 0

    def _learn(self, signals: Sequence[Signals], seed: int) -> dict[str, np.ndarray]:
        """Nothing: the templates are all it knows."""
        self._with_volumes(signals, self.window or len(self.networks) + 1)
        if self.templates is None:
            return self.learned
        return {"maps": np.asarray(self.templates.maps, dtype=np.float32)}

    def maps(
        self, signals: Signals, compute: Compute, stride: int = 1
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """The networks' own maps in each window."""
        # The same in all windows.
        inverse = inverse_of(self.learned["maps"][:, signals.covered])
        for step, volumes in self._windows(signals, stride):
            maps, _ = _with_inverse(volumes, inverse)
            yield step, self._everywhere(maps, signals.covered)

    def courses(self, signals: Signals, compute: Compute) -> np.ndarray:
        """Courses of the networks over all kept volumes, (T, K), z-scored."""
        covered = signals.covered
        _, courses = dual_regression(
            np.asarray(signals.data)[:, covered], self.learned["maps"][:, covered]
        )
        return np.asarray(zscore_maps(courses.T).T)

    @property
    def course_maps(self) -> np.ndarray:
        return self.learned["maps"]
