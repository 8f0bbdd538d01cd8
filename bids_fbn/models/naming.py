"""Which networks of a template set the components of a group are, if any."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bids_fbn.networks.maps import SupportRule
from bids_fbn.networks.overlap import Matcher, assign_one_to_one
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.nulls.pvalues import ALPHA, corrected_p
from bids_fbn.nulls.spatial import elsewhere_null, search_statistic
from bids_fbn.signal.grid import Grid

__all__ = ["NAMING_TURNS", "name_components"]

# Of the templates, half of either kind.
NAMING_TURNS = 198
# The names are of the group maps and the templates alone, and the same in every call.
_SEED = 0


def name_components(
    maps: np.ndarray,
    templates: TemplateSet,
    grid: Grid,
    threads: int = 1,
    store: Path | None = None,
) -> tuple[str, ...]:
    """The name of each component.

    Each template is assigned one component at most, by the IoU with its positive side. The
    component is called after it if they overlap by more than the same search finds for the
    templates elsewhere in the brain, in two ways (:func:`~bids_fbn.nulls.spatial.elsewhere_null`;
    p below 0.05 by both, corrected over the templates).

    Parameters
    ----------
    maps : ndarray (K, V)
        Of a group, so that nothing of the run that they are applied to decides.
    templates : TemplateSet
        P templates on the same V voxels.
    grid : Grid
    threads : int
        Turns that are made side by side.
    store : Path, optional
        Folder that keeps the names, for other runs with the same weights.

    Returns
    -------
    tuple of str
        K names: of a template, else ``component-01`` and so on.
    """
    from joblib import Memory

    # Not the grid itself, which differs by what has been asked of it.
    place = (grid.affine, grid.mask, grid.space)
    found = Memory(store, verbose=0).cache(_names, ignore=["threads"])
    names: tuple[str, ...] = found(maps, templates, place, threads)
    return names


def _names(
    maps: np.ndarray,
    templates: TemplateSet,
    place: tuple[np.ndarray, np.ndarray, str],
    threads: int,
) -> tuple[str, ...]:
    grid = Grid(*place)
    rule, everywhere = SupportRule(either_sign=False), np.ones(grid.n_voxels, dtype=bool)
    iou = Matcher(templates.supports, rule, everywhere).match(maps.astype(np.float32)).iou
    chosen, statistic = assign_one_to_one(iou), search_statistic(iou)
    nulls = elsewhere_null(maps, templates, grid, everywhere, rule, NAMING_TURNS, _SEED, threads)
    p = np.max([corrected_p(statistic, null, one_unit=True) for null in nulls.values()], axis=0)
    names = [f"component-{k + 1:02d}" for k in range(len(maps))]
    for name, k, of_template in zip(templates.networks, chosen, p, strict=True):
        if k >= 0 and of_template < ALPHA:
            names[k] = name
    return tuple(names)
