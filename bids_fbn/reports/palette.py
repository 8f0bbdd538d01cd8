"""One colour for each network, the same in every figure of every run."""

from __future__ import annotations

__all__ = ["NETWORK_COLOURS", "dash_of", "network_colour"]

# Chosen by search: of all sets of 14 from a grid of sRGB colours that read on white (L* 22 to 80,
# chroma over 28), the one whose closest pair is farthest apart in CIELAB, over normal, deutan and
# protan vision (Machado et al. 2009, full severity): 23 units; tritan 14.
NETWORK_COLOURS = (
    "#0028a0",
    "#f0a000",
    "#28a0a0",
    "#c82800",
    "#a050f0",
    "#78c8a0",
    "#780000",
    "#f0a0f0",
    "#5000f0",
    "#c8c878",
    "#c850c8",
    "#c85050",
    "#502878",
    "#782850",
)
# A second cue, for eyes and printers that do not see the first.
_DASHES = ("solid", "dash", "dot", "dashdot")


def network_colour(index: int) -> str:
    """Colour of the network at this place of the template set; repeats after 14."""
    return NETWORK_COLOURS[index % len(NETWORK_COLOURS)]


def dash_of(index: int) -> str:
    """Dash pattern (plotly's name) of a network; another one each time the colours repeat."""
    return _DASHES[(index // len(NETWORK_COLOURS)) % len(_DASHES)]
