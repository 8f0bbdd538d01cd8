"""What ST-CNN is to find in a run: the components of dictionary learning that are networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bids_fbn.baselines.decomposition import learn_dictionary
from bids_fbn.networks.maps import zscore_maps
from bids_fbn.networks.overlap import assign_one_to_one
from bids_fbn.signal.signals import Signals

if TYPE_CHECKING:
    from bids_fbn.networks.templates import TemplateSet

__all__ = ["LEAST_MATCH", "Targets", "find_targets"]

# Pearson r with the template below which a component is no target: of 20 maps of smooth noise, as
# smooth and sparse as components at 10 mm, 5 % of those assigned to the templates of Smith et al.
# reach it.
LEAST_MATCH = 0.2
# A map is scaled so that this percentile of its voxels is 1: a single voxel decides a maximum.
_PEAK_PERCENTILE = 99.5


@dataclass(frozen=True, eq=False)
class Targets:
    """Maps and courses of K networks in one run.

    Parameters
    ----------
    maps : ndarray (K, V) of float32
        1 is the map's peak (the 99.5th percentile of the covered voxels); 0 where not covered.
    courses : ndarray (T, K) of float32
        z-scored.
    match : ndarray (K,)
        Pearson r with the template over the covered voxels.
    covered : ndarray (V,) of bool
    """

    maps: np.ndarray
    courses: np.ndarray
    match: np.ndarray
    covered: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """Networks that a component matches well enough to be learnt from, (K,) of bool."""
        return self.match >= LEAST_MATCH

    def of_networks(self, chosen: Sequence[int]) -> Targets:
        """The same for some of the networks, by index."""
        index = np.asarray(chosen)
        return Targets(self.maps[index], self.courses[:, index], self.match[index], self.covered)


def find_targets(
    signals: Signals, templates: TemplateSet, n_components: int = 20, seed: int = 0
) -> Targets:
    """Decompose a run by dictionary learning, and take for each template one component.

    Components are assigned one to one, so that the sum of their correlations with the templates is
    the highest possible, and turned the way up that fits.

    Parameters
    ----------
    signals : Signals
        T volumes.
    templates : TemplateSet
        K networks on the V voxels of the signals' grid.
    n_components : int
    seed : int

    Raises
    ------
    RunError
        If there are fewer volumes than components.
    """
    maps, courses = learn_dictionary(signals, n_components, seed)
    covered = signals.covered
    r = zscore_maps(maps[:, covered]) @ zscore_maps(templates.maps[:, covered]).T / covered.sum()
    chosen = assign_one_to_one(np.abs(r))
    n_networks = len(templates.networks)
    found_maps = np.zeros((n_networks, maps.shape[1]), dtype=np.float32)
    found_courses = np.zeros((len(courses), n_networks), dtype=np.float32)
    match = np.zeros(n_networks)
    for network in np.flatnonzero(chosen >= 0):
        component = chosen[network]
        sign = -1 if r[component, network] < 0 else 1
        values = sign * maps[component]
        peak = np.percentile(values[covered], _PEAK_PERCENTILE)
        if peak <= 0:
            continue  # nothing of it is the way up that the template is
        found_maps[network] = values / peak
        found_courses[:, network] = zscore_maps(sign * courses[:, component])
        match[network] = abs(r[component, network])
    return Targets(found_maps, found_courses, match, covered)
