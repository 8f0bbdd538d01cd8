"""The page of a group."""

from __future__ import annotations

from pathlib import Path

from bids_fbn.bids.writing import write_text
from bids_fbn.data import read_data
from bids_fbn.reports.group_page import GroupPage, GroupSection
from bids_fbn.reports.group_view import group_view
from bids_fbn.reports.templating import render

__all__ = ["GroupPage", "GroupSection", "write_group_report"]


def write_group_report(out: Path, page: GroupPage) -> Path:
    """Write ``group/group_report.html``: one file that needs nothing beside it.

    Parameters
    ----------
    out : Path
        The output dataset, in which the pages of the participants lie.
    page : GroupPage

    Returns
    -------
    Path
        The page.

    Raises
    ------
    RunError
        If the page cannot be written.
    """
    path = out / "group" / "group_report.html"
    write_text(
        path,
        render(
            "group.html.jinja",
            **group_view(page),
            style=read_data("report.css") + read_data("group.css"),
            script=read_data("report.js") + read_data("group.js"),
        ),
    )
    return path
