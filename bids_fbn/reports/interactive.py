"""Charts to explore, as the dictionaries that plotly.js draws.

Plain dictionaries, and not plotly's own classes: these take a second to import and check what the
tests check once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bids_fbn.reports.palette import dash_of, network_colour
from bids_fbn.reports.series import Courses, Motion, Overlap, Visit

__all__ = ["courses_chart", "motion_chart", "overlap_chart"]

Chart = dict[str, Any]

_FONT = {"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 12}
_GRID = "#e6e9ef"
_NO_STATE = "#e9ecf1"
_CENSORED = "#c0392b"
# Rows of a chart of courses lie this many standard deviations apart.
ROW_HEIGHT = 4.0
AXIS_TITLES = {"IoU": "IoU with the template", "amplitude": "amplitude (1: as over the run)"}


def _axis(title: str, **more: Any) -> Chart:
    return {
        "title": {"text": title},
        "gridcolor": _GRID,
        "zeroline": False,
        "linecolor": "#9aa3b2",
        "ticks": "outside",
        "tickcolor": "#9aa3b2",
        **more,
    }


def _layout(height: int, **more: Any) -> Chart:
    return {
        "height": height,
        "font": _FONT,
        "paper_bgcolor": "#fff",
        "plot_bgcolor": "#fff",
        "margin": {"l": 64, "r": 12, "t": 12, "b": 44},
        "hovermode": "closest",
        "dragmode": "zoom",
        **more,
    }


def overlap_chart(overlap: Overlap, unit: str = "window") -> Chart:
    """IoU or amplitude over time above the ribbon of states, on one time axis.

    A network's line and its stretches in the ribbon are one group: the legend shows and hides
    both.

    Parameters
    ----------
    overlap : Overlap
    unit : str
        What a time step is, for the labels.
    """
    traces: list[Chart] = [_trace(overlap, p) for p in range(len(overlap.networks))]
    by_state: dict[int | None, list[Visit]] = {}
    for visit in overlap.visits:
        by_state.setdefault(visit.state, []).append(visit)
    for state, visits in sorted(by_state.items(), key=lambda item: (item[0] is None, item[0])):
        if state is None:
            traces.append(_ribbon("no state", visits, _NO_STATE, "no-state"))
        else:
            name = overlap.networks[state]
            traces.append(_ribbon(name, visits, network_colour(state), name))
    if overlap.missing:
        missing = _ribbon(f"no {unit}", list(overlap.missing), "#fff", "missing")
        missing["marker"]["pattern"] = {"shape": "/", "fgcolor": "#b6bdc9", "size": 5}
        traces.append(missing)
    for trace in traces:
        if trace["legendgroup"] in ("no-state", "missing"):
            trace["showlegend"] = True
    return {
        "data": traces,
        "layout": _layout(
            490,
            # Room for plotly's own buttons, which else lie on the legend.
            margin={"l": 64, "r": 12, "t": 36, "b": 44},
            xaxis=_axis("", anchor="y", matches="x2", showticklabels=False, range=_span(overlap)),
            xaxis2=_axis("seconds from the start of the run", anchor="y2", range=_span(overlap)),
            yaxis=_axis(
                AXIS_TITLES[overlap.measure], domain=[0.24, 1.0], range=_presence_range(overlap)
            ),
            yaxis2=_axis(
                "state",
                domain=[0.0, 0.16],
                range=[0, 1],
                fixedrange=True,
                showticklabels=False,
                ticks="",
                showgrid=False,
            ),
            barmode="overlay",
            bargap=0,
            legend={"itemsizing": "constant", "font": {"size": 11}, "tracegroupgap": 0},
            shapes=[] if overlap.threshold is None else [_threshold_line(overlap.threshold)],
            annotations=_notes(overlap),
        ),
    }


def _span(overlap: Overlap) -> list[float]:
    if not len(overlap.onset):
        return [0.0, 1.0]
    half = overlap.step_seconds / 2
    return [float(overlap.onset[0]) - half, float(overlap.onset[-1]) + half]


def _presence_range(overlap: Overlap) -> list[float]:
    known = overlap.presence[np.isfinite(overlap.presence)]
    highest = float(known.max()) if known.size else 0.0
    if overlap.threshold is None:
        return [0.0, 1.1 * max(highest, 1.0)]
    return [0.0, min(1.02, 1.1 * max(highest, overlap.threshold, 0.05))]


def _trace(overlap: Overlap, p: int) -> Chart:
    name, faint = overlap.networks[p], bool(overlap.faint[p])
    return {
        "type": "scattergl" if len(overlap.onset) * len(overlap.networks) > 50_000 else "scatter",
        "mode": "lines",
        "name": overlap.label(p),
        "legendgroup": name,
        "x": overlap.onset,
        "y": overlap.presence[:, p],
        "xaxis": "x",
        "yaxis": "y",
        # A step without a window is a gap, not a line across it.
        "connectgaps": False,
        "line": {"color": network_colour(p), "width": 1 if faint else 2, "dash": dash_of(p)},
        "opacity": 0.45 if faint else 1.0,
        "hovertemplate": f"{name}<br>%{{x:.1f}} s, {overlap.measure} %{{y:.3f}}<extra></extra>",
        "meta": {"faint": faint},
    }


def _ribbon(name: str, visits: list[Visit], colour: str, group: str) -> Chart:
    return {
        "type": "bar",
        "name": name,
        "legendgroup": group,
        "showlegend": False,
        "x": [(visit.start + visit.end) / 2 for visit in visits],
        "width": [visit.end - visit.start for visit in visits],
        "y": [1] * len(visits),
        "xaxis": "x2",
        "yaxis": "y2",
        "marker": {"color": colour, "line": {"width": 0}},
        "customdata": [[visit.start, visit.end, visit.steps] for visit in visits],
        "hovertemplate": (
            f"{name}<br>%{{customdata[0]:.1f}} to %{{customdata[1]:.1f}} s, "
            "%{customdata[2]} steps<extra></extra>"
        ),
    }


def _threshold_line(threshold: float) -> Chart:
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "yref": "y",
        "y0": threshold,
        "y1": threshold,
        "line": {"color": "#444c5c", "width": 1, "dash": "dash"},
    }


def _note(text: str, **where: Any) -> Chart:
    return {"text": text, "showarrow": False, "font": {"size": 11, "color": "#444c5c"}, **where}


def _notes(overlap: Overlap) -> list[Chart]:
    notes = []
    if overlap.threshold is not None:
        notes.append(
            _note(
                f"state threshold {overlap.threshold:g}",
                xref="paper",
                x=1,
                xanchor="right",
                yref="y",
                y=overlap.threshold,
                yanchor="bottom",
                bgcolor="rgba(255,255,255,0.8)",
            )
        )
    middle = {"xref": "paper", "x": 0.5, "yref": "paper"}
    if not np.isfinite(overlap.presence).any():
        notes.append(_note("no step of this run has a value", **middle, y=0.6))
    elif not overlap.states_seen:
        notes.append(_note(overlap.no_state, **middle, y=0.08))
    return notes


def courses_chart(courses: Courses) -> Chart:
    """Courses of the networks, one row for each."""
    scaled = courses.scaled
    n_networks = len(courses.networks)
    rows = [ROW_HEIGHT * (n_networks - 1 - p) for p in range(n_networks)]
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": courses.onset,
                "y": scaled[:, p] + rows[p],
                "customdata": courses.values[:, p],
                "connectgaps": False,
                "line": {"color": network_colour(p), "width": 1.3},
                "hovertemplate": f"{name}<br>%{{x:.1f}} s, %{{customdata:.3f}}<extra></extra>",
            }
            for p, name in enumerate(courses.networks)
        ],
        "layout": _layout(
            90 + 34 * n_networks,
            showlegend=False,
            margin={"l": 150, "r": 12, "t": 12, "b": 44},
            xaxis=_axis("seconds from the start of the run"),
            yaxis=_axis(
                "",
                tickvals=rows,
                ticktext=list(courses.networks),
                range=[-ROW_HEIGHT, rows[0] + ROW_HEIGHT] if rows else [0, 1],
                fixedrange=True,
                ticks="",
            ),
        ),
    }


def motion_chart(motion: Motion, threshold: float | None) -> Chart:
    """Framewise displacement over time, with the volumes left out.

    Parameters
    ----------
    motion : Motion
    threshold : float or None
        Displacement over which volumes were left out, mm.
    """
    left_out = np.flatnonzero(motion.left_out)
    known = motion.displacement[np.isfinite(motion.displacement)]
    top = 1.08 * max(float(known.max()) if known.size else 0.0, threshold or 0.0, 0.2)
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines",
                "name": "framewise displacement",
                "x": motion.onset,
                "y": motion.displacement,
                "connectgaps": False,
                "line": {"color": "#2f4b7c", "width": 1.3},
                "hovertemplate": "%{x:.1f} " + motion.unit + ", %{y:.3f} mm<extra></extra>",
            },
            {
                "type": "bar",
                "name": "left out",
                "x": motion.onset[left_out],
                "y": [top] * len(left_out),
                "width": float(np.diff(motion.onset[:2])[0]) if len(motion.onset) > 1 else 1.0,
                "marker": {"color": _CENSORED, "opacity": 0.22, "line": {"width": 0}},
                "customdata": [[int(i), motion.reasons[i]] for i in left_out],
                "hovertemplate": "volume %{customdata[0]} left out: %{customdata[1]}"
                "<extra></extra>",
            },
        ],
        "layout": _layout(
            210,
            bargap=0,
            showlegend=True,
            legend={"orientation": "h", "y": 1.14, "x": 0},
            margin={"l": 64, "r": 12, "t": 28, "b": 44},
            xaxis=_axis(
                "seconds from the start of the run" if motion.unit == "s" else "volume",
                range=[float(motion.onset[0]), float(motion.onset[-1])]
                if len(motion.onset)
                else [0, 1],
            ),
            yaxis=_axis("displacement (mm)", range=[0, top]),
            shapes=[] if threshold is None else [_threshold_line(threshold)],
        ),
    }
