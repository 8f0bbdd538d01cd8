"""A value beside what a null gives: a dot on a bar, one small picture for a row of a table."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Scale", "axis_picture", "interval_picture"]

_WIDTH, _HEIGHT, _MARGIN = 250, 18, 9
_GREY = "#8b93a1"


@dataclass(frozen=True)
class Scale:
    """From values to places along a picture; what lies beyond an end is put there.

    Parameters
    ----------
    low, high : float
        Values at the ends.
    """

    low: float
    high: float

    def place(self, value: float) -> float:
        """Units of the picture from its left edge."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return _MARGIN + share * (_WIDTH - 2 * _MARGIN)

    def holds(self, value: float) -> bool:
        """Whether a value lies between the ends."""
        return self.low <= value <= self.high


def _svg(height: int, label: str, content: str) -> str:
    said = (
        f'role="img" aria-label="{html.escape(label)}"><title>{html.escape(label)}</title>'
        if label
        else 'aria-hidden="true">'
    )
    return (
        f'<svg class="interval" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" {said}{content}</svg>'
    )


def axis_picture(scale: Scale, step: float) -> str:
    """Numbers above a column of :func:`interval_picture`; SVG.

    Parameters
    ----------
    scale : Scale
    step : float
        From one number to the next.
    """
    first = math.ceil(scale.low / step - 1e-9)
    ticks = [step * k for k in range(first, math.floor(scale.high / step + 1e-9) + 1)]
    return _svg(
        14,
        "",
        "".join(
            f'<text x="{scale.place(tick):.1f}" y="11" text-anchor="middle">{tick:g}</text>'
            for tick in ticks
        ).replace(">-", ">−"),
    )


def interval_picture(
    scale: Scale,
    observed: float,
    nulls: Sequence[tuple[float, float, float]],
    colour: str | None,
    label: str,
) -> str:
    """An observed value as a dot, each of its nulls as a bar with the mean; SVG.

    Parameters
    ----------
    scale : Scale
    observed : float
        NaN leaves out the dot. Beyond the scale it becomes an arrow.
    nulls : sequence of tuple of float
        Low end, mean and high end of each, from above; NaN leaves out the bar.
    colour : str or None
        Of the dot; None for one that does not stand: hollow and grey.
    label : str
        What is to be seen, in words.
    """
    middle = _HEIGHT / 2
    parts = [
        f'<line class="base" x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}" y1="{middle}" y2="{middle}"/>'
    ]
    height = 8 if len(nulls) == 1 else 5
    for number, (low, mean, high) in enumerate(nulls):
        if math.isnan(low + mean + high):
            continue
        start, end, at = scale.place(low), scale.place(high), scale.place(mean)
        top = middle + (number - len(nulls) / 2) * height
        parts.append(
            f'<rect class="null null{number}" x="{start - 1:.1f}" width="{end - start + 2:.1f}" '
            f'y="{top:g}" height="{height:g}"/>'
            f'<line class="mean" x1="{at:.1f}" x2="{at:.1f}" y1="{top:g}" y2="{top + height:g}"/>'
        )
    if not math.isnan(observed):
        paint = f'fill="{colour}"' if colour else f'fill="#fff" stroke="{_GREY}" stroke-width="2"'
        x = scale.place(observed)
        if scale.holds(observed):
            parts.append(f'<circle cx="{x:.1f}" cy="{middle}" r="{5 if colour else 4}" {paint}/>')
        else:
            back = x + (-4.5 if observed > scale.high else 4.5)
            parts.append(
                f'<polygon points="{2 * x - back:.1f},{middle} {back:.1f},{middle - 5} '
                f'{back:.1f},{middle + 5}" {paint}/>'
            )
    return _svg(_HEIGHT, label, "".join(parts))
