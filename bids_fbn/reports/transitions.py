"""The graph of transitions, as SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bids_fbn.reports.palette import network_colour

__all__ = ["ArrowStyle", "transition_graph"]

_WIDTH, _HEIGHT = 560, 420
_RING = 130
_SMALLEST, _LARGEST = 5.0, 26.0
_NEVER = "#b6bdc9"


@dataclass(frozen=True)
class ArrowStyle:
    """How one arrow is drawn.

    Parameters
    ----------
    text : str
        What is said of the transition.
    kind : str
        Classes, for the style sheet.
    colour : str or None
        None: that of the network which it leaves.
    width : float or None
        Pixels; None: wider with the frequency.
    """

    text: str
    kind: str = ""
    colour: str | None = None
    width: float | None = None


def transition_graph(
    networks: Sequence[str],
    occupancy: np.ndarray,
    counts: np.ndarray,
    title: str,
    style: Callable[[int, int], ArrowStyle] | None = None,
    node_colour: str | None = None,
) -> str:
    """Draw transitions between states.

    A node is a network, larger with the share of steps in that state; a state never visited is
    a small ring. An arrow goes from state to state in the colour of the one it leaves, as wide as
    the transition is frequent. Staying in a state (the diagonal) is left out.

    Parameters
    ----------
    networks : sequence of str
        P names.
    occupancy : ndarray (P,)
        0 to 1.
    counts : ndarray (P, P)
        Transitions from row to column, or how strong these are, 0 or more.
    title : str
        Text for those who cannot see the picture.
    style : callable, optional
        Row and column → :class:`ArrowStyle`; else an arrow tells its count.
    node_colour : str, optional
        Of all states that were visited, instead of one colour each.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    n_networks = len(networks)
    occupancy = np.nan_to_num(occupancy)
    radius = _SMALLEST + (_LARGEST - _SMALLEST) * np.sqrt(occupancy / max(occupancy.max(), 1e-9))
    angles = [2 * math.pi * p / max(n_networks, 1) - math.pi / 2 for p in range(n_networks)]
    places = [
        (_WIDTH / 2 + _RING * math.cos(angle), _HEIGHT / 2 + _RING * math.sin(angle))
        for angle in angles
    ]
    moves = counts.copy()
    np.fill_diagonal(moves, 0)
    most = float(moves.max(initial=0)) or 1.0
    # Rare ones first, so that frequent ones lie on top.
    pairs = sorted(zip(*np.nonzero(moves), strict=True), key=lambda pair: moves[pair])
    arrows = []
    for a, b in pairs:
        if style is None:
            look = ArrowStyle(f"{networks[a]} to {networks[b]}: {int(moves[a, b])}")
        else:
            look = style(int(a), int(b))
        arrows.append(
            _arrow(
                places[a],
                places[b],
                float(radius[b]),
                look.width or 1 + 7 * float(moves[a, b]) / most,
                look.colour or network_colour(a),
                look.text,
                _attributes(look.kind, f"{networks[a]} > {networks[b]}"),
            )
        )
    nodes = [
        _node(
            networks[p],
            places[p],
            angles[p],
            float(radius[p]),
            float(occupancy[p]),
            node_colour or network_colour(p),
        )
        for p in range(n_networks)
    ]
    return (
        f'<svg class="transitions" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg" aria-label="{html.escape(title)}">'
        f"<title>{html.escape(title)}</title>{''.join(arrows)}{''.join(nodes)}</svg>"
    )


def _attributes(kind: str, name: str) -> str:
    return f' class="{kind}" data-arrow="{html.escape(name)}"' if kind else ""


def _arrow(
    start: tuple[float, float],
    end: tuple[float, float],
    end_radius: float,
    width: float,
    colour: str,
    text: str,
    attributes: str,
) -> str:
    """A bent arrow; the one back bends the other way, so that both can be seen."""
    (x0, y0), (x1, y1) = start, end
    across, up = x1 - x0, y1 - y0
    length = math.hypot(across, up)
    bend = 0.16
    control = ((x0 + x1) / 2 - bend * up, (y0 + y1) / 2 + bend * across)
    # The direction in which the curve arrives.
    dx, dy = x1 - control[0], y1 - control[1]
    norm = math.hypot(dx, dy) or 1.0
    dx, dy = dx / norm, dy / norm
    head = 6 + 1.3 * width
    tip = (x1 - dx * (end_radius + 2), y1 - dy * (end_radius + 2))
    neck = (tip[0] - dx * head, tip[1] - dy * head)
    half = 0.55 * head
    triangle = (
        f"{tip[0]:.1f},{tip[1]:.1f} "
        f"{neck[0] - dy * half:.1f},{neck[1] + dx * half:.1f} "
        f"{neck[0] + dy * half:.1f},{neck[1] - dx * half:.1f}"
    )
    if length < 1:
        return ""
    return (
        f'<g opacity="0.8"{attributes}><title>{html.escape(text)}</title>'
        f'<path d="M{x0:.1f},{y0:.1f} Q{control[0]:.1f},{control[1]:.1f} '
        f'{neck[0]:.1f},{neck[1]:.1f}" fill="none" stroke="{colour}" '
        f'stroke-width="{width:.1f}"/>'
        f'<polygon points="{triangle}" fill="{colour}"/></g>'
    )


def _node(
    name: str,
    place: tuple[float, float],
    angle: float,
    radius: float,
    occupancy: float,
    colour: str,
) -> str:
    x, y = place
    visited = occupancy > 0
    fill = colour if visited else "#fff"
    stroke = "#fff" if visited else _NEVER
    distance = radius + 8
    label_x, label_y = x + distance * math.cos(angle), y + distance * math.sin(angle)
    sideways = math.cos(angle)
    anchor = "middle" if abs(sideways) < 0.2 else ("start" if sideways > 0 else "end")
    drop = 4 + 5 * math.sin(angle) if anchor == "middle" else 4
    share = f"{occupancy:.0%} of steps with a state" if visited else "never a state"
    return (
        f"<g><title>{html.escape(name)}: {share}</title>"
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{fill}" stroke="{stroke}" '
        f'stroke-width="1.5"/>'
        f'<text x="{label_x:.1f}" y="{label_y + drop:.1f}" text-anchor="{anchor}" '
        f'fill="{"#1d2433" if visited else "#7a8394"}">{html.escape(name)}</text></g>'
    )
