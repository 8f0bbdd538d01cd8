"""The jinja environment of the reports."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from bids_fbn.data import read_data

__all__ = ["embedded_json", "fixed", "listed", "number", "p_value", "percent", "render"]


def listed(words: Sequence[str]) -> str:
    """Words as a sentence has them.

    Examples
    --------
    >>> listed(["ica", "pca", "hmm"]), listed(["ica"])
    ('ica, pca and hmm', 'ica')
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def number(value: Any, digits: int = 3) -> str:
    """A number for a table: so many significant digits, whole numbers whole; ``n/a`` for none.

    Examples
    --------
    >>> number(0.123456), number(1688), number(120.0), number(None), number(float("nan"))
    ('0.123', '1,688', '120', 'n/a', 'n/a')
    """
    if value is None or (isinstance(value, float | np.floating) and not math.isfinite(value)):
        return "n/a"
    if isinstance(value, str):
        return value
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{float(value):.{digits}g}" if abs(value) < 1000 else f"{float(value):,.0f}"


def fixed(value: float, decimals: int) -> str:
    """A number with so many decimals, never a negative zero.

    Examples
    --------
    >>> fixed(-0.004, 2), fixed(0.3456, 2)
    ('0.00', '0.35')
    """
    return f"{round(value, decimals) + 0.0:.{decimals}f}"


def p_value(p: float) -> str:
    """A p-value with three decimals, as far as they say something.

    Examples
    --------
    >>> p_value(0.0431), p_value(0.0004), p_value(1), p_value(float("nan"))
    ('0.043', '< 0.001', '1', 'n/a')
    """
    if not math.isfinite(p):
        return "n/a"
    return "< 0.001" if p < 0.0005 else f"{p:.3f}" if p < 0.9995 else "1"


def percent(share: float | None) -> str:
    """A share of 0 to 1 as per cent, with a digit more where it is small.

    Examples
    --------
    >>> percent(0.0043), percent(0.9808), percent(0), percent(None)
    ('0.4 %', '98 %', '0 %', 'n/a')
    """
    if share is None or not math.isfinite(share):
        return "n/a"
    value = 100 * share
    whole = value == 0 or value >= 10
    return f"{value:.0f} %" if whole else f"{value:.1f} %"


def embedded_json(content: Mapping[str, Any] | Sequence[Any]) -> Markup:
    """JSON to stand inside a ``<script>`` element; NaN becomes null."""
    text = json.dumps(_plain(content), ensure_ascii=False, separators=(",", ":"))
    # Nothing in it may end the element or start a comment.
    return Markup(text.replace("<", "\\u003c"))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        # Four digits: more than a screen shows, and a third of the size of a double in text.
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(read_data),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["percent"] = percent
    environment.filters["embedded_json"] = embedded_json
    return environment


def render(template: str, **values: Any) -> str:
    """Fill in a template of :mod:`bids_fbn.data`."""
    return _environment().get_template(template).render(**values)
