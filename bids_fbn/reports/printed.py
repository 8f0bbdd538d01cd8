"""The charts as pictures: for printing, and where plotly.js is missing."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bids_fbn.reports.interactive import AXIS_TITLES, ROW_HEIGHT
from bids_fbn.reports.palette import dash_of, network_colour
from bids_fbn.reports.raster import encode_png
from bids_fbn.reports.series import Courses, Motion, Overlap

__all__ = ["courses_picture", "loss_picture", "motion_picture", "overlap_picture"]

_LINE_STYLES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
_WIDTH_INCHES = 10.5
_DPI = 110


def _png(figure: Figure) -> bytes:
    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return encode_png(np.asarray(canvas.buffer_rgba())[..., :3])


def overlap_picture(overlap: Overlap) -> bytes:
    """IoU or amplitude over time above the ribbon of states; PNG."""
    figure = Figure(figsize=(_WIDTH_INCHES, 4.3), layout="constrained")
    above, ribbon = figure.subplots(2, 1, sharex=True, height_ratios=[6, 1])
    for p in range(len(overlap.networks)):
        faint = bool(overlap.faint[p])
        above.plot(
            overlap.onset,
            overlap.presence[:, p],
            color=network_colour(p),
            linestyle=_LINE_STYLES[dash_of(p)],
            linewidth=0.7 if faint else 1.5,
            alpha=0.45 if faint else 1.0,
            label=overlap.label(p),
        )
    if overlap.threshold is not None:
        above.axhline(overlap.threshold, color="#444c5c", linewidth=0.8, linestyle="--")
    above.set_ylabel(AXIS_TITLES[overlap.measure])
    above.set_ylim(0)
    for visit in overlap.visits:
        colour = "#e9ecf1" if visit.state is None else network_colour(visit.state)
        ribbon.axvspan(visit.start, visit.end, color=colour, linewidth=0)
    for stretch in overlap.missing:
        ribbon.axvspan(stretch.start, stretch.end, fc="#fff", ec="#b6bdc9", hatch="///", lw=0)
    if not overlap.states_seen:
        ribbon.text(
            0.5,
            0.5,
            overlap.no_state,
            ha="center",
            va="center",
            transform=ribbon.transAxes,
        )
    ribbon.set(yticks=[], ylabel="state", xlabel="seconds from the start of the run")
    above.grid(color="#e6e9ef")
    above.margins(x=0)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return _png(figure)


def courses_picture(courses: Courses) -> bytes:
    """Courses of the networks, one row for each; PNG."""
    n_networks = len(courses.networks)
    figure = Figure(figsize=(_WIDTH_INCHES, 0.8 + 0.33 * n_networks), layout="constrained")
    axes = figure.subplots()
    rows = [ROW_HEIGHT * (n_networks - 1 - p) for p in range(n_networks)]
    scaled = courses.scaled
    for p in range(n_networks):
        axes.plot(courses.onset, scaled[:, p] + rows[p], color=network_colour(p), linewidth=0.8)
    axes.set_yticks(rows, list(courses.networks), fontsize=8)
    axes.set_xlabel("seconds from the start of the run")
    axes.margins(x=0)
    axes.grid(axis="x", color="#e6e9ef")
    return _png(figure)


def motion_picture(motion: Motion, threshold: float | None) -> bytes:
    """Framewise displacement with the volumes left out; PNG."""
    figure = Figure(figsize=(_WIDTH_INCHES, 1.9), layout="constrained")
    axes = figure.subplots()
    half = float(np.diff(motion.onset[:2])[0]) / 2 if len(motion.onset) > 1 else 0.5
    for volume in np.flatnonzero(motion.left_out):
        at = motion.onset[volume]
        axes.axvspan(at - half, at + half, color="#c0392b", alpha=0.22, linewidth=0)
    axes.plot(motion.onset, motion.displacement, color="#2f4b7c", linewidth=1)
    if threshold is not None:
        axes.axhline(threshold, color="#444c5c", linewidth=0.8, linestyle="--")
    axes.set_ylim(0)
    axes.set(
        ylabel="displacement (mm)",
        xlabel="seconds from the start of the run" if motion.unit == "s" else "volume",
    )
    axes.margins(x=0)
    axes.grid(color="#e6e9ef")
    return _png(figure)


def loss_picture(steps: list[float], losses: list[float], of_zero: float | None) -> str:
    """Loss over training; SVG.

    Parameters
    ----------
    steps, losses : list of float
    of_zero : float or None
        Loss of a network that predicts zero, for comparison.
    """
    figure = Figure(figsize=(5.2, 2.3), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="#2f4b7c", linewidth=1.2)
    if of_zero is not None:
        axes.axhline(of_zero, color="#9aa3b2", linewidth=0.8, linestyle="--")
        axes.annotate(
            "predicting zero",
            (1, of_zero),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=7,
            color="#5b6475",
        )
    axes.set(xlabel="training step", ylabel="mean squared error")
    axes.tick_params(labelsize=8)
    axes.grid(color="#e6e9ef")
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
