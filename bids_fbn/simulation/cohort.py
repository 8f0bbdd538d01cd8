"""Who is scanned where, and who is ill: sites and groups of :mod:`bids_fbn.simulate`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["GROUPS", "GroupEffect", "Site", "draw_sites", "group_of", "site_of"]

GROUPS = ("control", "patient")
# Largest factor between a site and the nominal scanner, either way: enough for the sites to be
# told apart by their data, little enough for networks to be found at each.
_LARGEST_FACTOR = {"noise_fwhm": 1.4, "noise": 1.25, "thermal_noise": 1.5, "gain": 1.25}


@dataclass(frozen=True)
class Site:
    """A scanner; the defaults are those of a dataset of one site.

    Parameters
    ----------
    name : str
    noise_fwhm : float
        Smoothness of the noise that neighbouring voxels share, mm.
    noise : float
        Factor of all physiology, drift and noise.
    thermal_noise : float
        Factor of the noise that each voxel has for itself, on top of `noise`.
    gain : float
        Factor of the intensity.
    """

    name: str = "site1"
    noise_fwhm: float = 6.0
    noise: float = 1.0
    thermal_noise: float = 1.0
    gain: float = 1.0


@dataclass(frozen=True)
class GroupEffect:
    """What is different in a patient.

    Parameters
    ----------
    dwell_network : int
        Network whose visits last longer.
    dwell_factor : float
        By this factor.
    transition : tuple of two int
        Transition that is more probable.
    transition_share : float
        Share of all departures from its first network that lead to its second, before the others
        take their usual chances.
    """

    dwell_network: int
    dwell_factor: float
    transition: tuple[int, int]
    transition_share: float


def draw_sites(rng: np.random.Generator, n_sites: int) -> list[Site]:
    """Sites whose properties differ; a single one is nominal.

    The values of each property are spread evenly (by their logarithm), so that the sites surely
    differ; which site has which is drawn for each property.

    Parameters
    ----------
    rng : Generator
    n_sites : int
    """
    levels = np.linspace(-1, 1, n_sites) if n_sites > 1 else np.zeros(1)
    nominal = Site()
    drawn = {
        name: getattr(nominal, name) * factor ** rng.permutation(levels)
        for name, factor in _LARGEST_FACTOR.items()
    }
    return [
        Site(
            f"site{number + 1}", **{name: float(values[number]) for name, values in drawn.items()}
        )
        for number in range(n_sites)
    ]


def site_of(participant: int, n_sites: int) -> int:
    """Index of a participant's site: one after the other."""
    return participant % n_sites


def group_of(participant: int, n_sites: int, n_groups: int) -> int:
    """Index of a participant's group: in turn, and in turn within every site.

    Examples
    --------
    >>> [(site_of(i, 2), group_of(i, 2, 2)) for i in range(4)]
    [(0, 0), (1, 1), (0, 1), (1, 0)]
    >>> [(site_of(i, 3), group_of(i, 3, 2)) for i in range(6)]
    [(0, 0), (1, 1), (2, 0), (0, 1), (1, 0), (2, 1)]
    """
    return (participant // n_sites + participant % n_sites) % n_groups
