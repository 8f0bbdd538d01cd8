"""The page of a participant in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pages import chromium, shown
from study import Study

from bids_fbn.reports import write_report


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@dataclass
class Opened:
    """A page in a browser."""

    page: Any

    def visible(self, chart: str) -> dict[str, Any]:
        """Line → whether it is shown."""
        script = (
            "id => Object.fromEntries(document.getElementById(id).querySelector('.plot').data"
            ".filter(t => t.meta).map(t => [t.legendgroup, t.visible ?? true]))"
        )
        shown: dict[str, Any] = self.page.evaluate(script, chart)
        return shown

    def span(self, chart: str, axis: str = "xaxis") -> list[float]:
        """Time that a chart shows."""
        script = (
            "([id, axis]) => document.getElementById(id).querySelector('.plot').layout[axis].range"
        )
        shown: list[float] = self.page.evaluate(script, [chart, axis])
        return shown

    def ready(self, chart: str) -> None:
        self.page.locator(f"[id='{chart}']").scroll_into_view_if_needed()
        self.page.wait_for_selector(f"[id='{chart}'][data-ready]")


@pytest.fixture
def opened(browser: Any, study: Study) -> Iterator[Opened]:
    study.add("1", weak=(3,), left_out=(20, 21))
    path = write_report(study.out, "01", config=study.config())
    with shown(browser, path) as page:
        yield Opened(page)


IOU = "sub-01_task-rest_run-1_desc-stca_overlap"
COURSES = "sub-01_task-rest_run-1_desc-stca_courses"
MOTION = "sub-01_task-rest_run-1_motion"


def test_browser_legend_switches_networks_off(opened: Opened) -> None:
    opened.ready(IOU)
    assert set(opened.visible(IOU).values()) == {True}
    for name in ("DefaultMode", "Auditory"):
        toggle = opened.page.locator(f"[id='{IOU}'] g.traces", has_text=name)
        toggle.locator(".legendtoggle").click()
        opened.page.wait_for_function(
            "([id, name]) => document.getElementById(id).querySelector('.plot').data"
            ".find(t => t.legendgroup === name).visible === 'legendonly'",
            arg=[IOU, name],
        )
    assert opened.visible(IOU) == {
        "DefaultMode": "legendonly",
        "Visual": True,
        "Auditory": "legendonly",
        "Salience": True,
    }
    opened.page.locator("button[data-show='present']").click()
    assert opened.visible(IOU)["Salience"] == "legendonly"
    assert opened.visible(IOU)["DefaultMode"] is True


def test_browser_offers_no_button_that_sends_data(opened: Opened) -> None:
    opened.ready(IOU)
    titles = opened.page.eval_on_selector_all(
        ".modebar-btn", "buttons => buttons.map(b => b.dataset.title)"
    )
    allowed = {"Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"}
    assert set(titles) == allowed


def test_browser_charts_of_a_run_zoom_together(opened: Opened) -> None:
    opened.ready(IOU)
    opened.ready(MOTION)
    opened.page.evaluate(
        "id => Plotly.relayout(document.getElementById(id).querySelector('.plot'),"
        " {'xaxis.range': [20, 60]})",
        IOU,
    )
    assert opened.span(IOU, "xaxis2") == [20, 60]
    assert opened.span(MOTION) == [20, 60]
    # One that is drawn later takes up what the others show.
    opened.page.locator("details.lazy summary").click()
    opened.ready(COURSES)
    assert opened.span(COURSES) == [20, 60]


def test_browser_without_plotly_shows_pictures(browser: Any, study: Study) -> None:
    study.add("1")
    path = write_report(study.out, "01", config=study.config())
    (study.out / "figures" / "plotly.min.js").unlink()
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector(".no-plotly:not([hidden])")
    assert page.locator(f"[id='{IOU}'] img.picture").is_visible()
    page.close()


@pytest.mark.parametrize("width", [1280, 1366, 1440, 1920])
def test_browser_tables_fit_the_window(opened: Opened, width: int) -> None:
    opened.page.set_viewport_size({"width": width, "height": 800})
    opened.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    wider = opened.page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
        ".map(e => `${e.querySelector('table').className}: ${e.scrollWidth - e.clientWidth}`)"
    )
    assert wider == []


def test_browser_print_opens_what_is_folded(opened: Opened) -> None:
    opened.page.pdf()
    assert opened.page.locator("details:not([open])").count() == 0
    opened.page.emulate_media(media="print")
    assert opened.page.locator(f"[id='{IOU}'] img.picture").is_visible()
    assert opened.page.locator(f"[id='{COURSES}'] img.picture").is_visible()
    assert not opened.page.locator("nav").is_visible()
