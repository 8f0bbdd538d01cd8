"""The pages: what they show, a browser to look at them in, and a small brain to fill them with."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bids_fbn.networks.templates import TemplateSet
from bids_fbn.reports.figures import Background
from bids_fbn.signal.grid import Grid, grid_geometry

__all__ = ["NETWORKS", "SPACE", "Page", "background_of", "chromium", "quarters", "shown"]

SPACE = "MNI152NLin2009cAsym"
NETWORKS = ("DefaultMode", "Visual", "Auditory", "Salience")


class Page(HTMLParser):
    """What a page shows, loads and links to; every element that it opens must be closed.

    `cards` and `rows` have the classes of what is said of a network or in a row of a table.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.anchors: list[str] = []
        self.alts: list[str | None] = []
        self.cards: dict[str, list[str]] = {}
        self.rows: dict[str, list[str]] = {}
        self.arrows: list[tuple[str, str]] = []
        self.open_elements: list[str] = []
        self._words: list[str] = []
        self.feed(self.html)
        assert self.open_elements == []

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._words).split())

    @property
    def classes(self) -> dict[str, list[str]]:
        return self.rows | self.cards

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in ("meta", "link", "img", "br", "input"):
            self.open_elements.append(tag)
        if tag in ("img", "script", "link", "iframe", "source", "video"):
            self.loaded += [url for name in ("src", "href") if (url := given.get(name))]
        if tag == "img":
            self.alts.append(given.get("alt"))
        if tag == "a" and (target := given.get("href")):
            self.anchors.append(target)
        if name := given.get("id"):
            self.ids.append(name)
        for key, classes in (("data-network", self.cards), ("data-row", self.rows)):
            if name := given.get(key):
                classes[name] = (given.get("class") or "").split()
        if name := given.get("data-arrow"):
            self.arrows.append((name, str(given.get("class"))))

    def handle_endtag(self, tag: str) -> None:
        assert self.open_elements.pop() == tag, tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open_elements and self.open_elements[-1] == tag:
            self.open_elements.pop()

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open_elements):
            self._words.append(data)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if path is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield opened
        opened.close()


@contextmanager
def shown(browser: Any, path: Path) -> Iterator[Any]:
    """A page in a browser without network; it may neither complain nor ask for anything remote."""
    context = browser.new_context(viewport={"width": 1366, "height": 900}, offline=True)
    page = context.new_page()
    complaints: list[str] = []

    def on_message(message: Any) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    def on_request(request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            complaints.append(request.url)

    page.on("console", on_message)
    page.on("request", on_request)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert complaints == [], complaints


def quarters() -> tuple[Grid, TemplateSet]:
    """A coarse brain, and a network for each quarter: left from right, front from back."""
    affine, shape = grid_geometry(20)
    whole = Grid(affine, np.ones(shape, dtype=bool))
    inside = np.linalg.norm((whole.coordinates - (0, -18, 10)) / (70, 88, 70), axis=1) < 1
    grid = Grid(affine, inside.reshape(shape), SPACE, "a ball")
    x, y, _ = grid.coordinates.T
    supports = 2 * (x > 0) + (y > -18) == np.arange(4)[:, None]
    maps = supports.astype(np.float32)
    return grid, TemplateSet("Quarters", NETWORKS, maps, supports, "a quarter", "", "test")


def background_of(grid: Grid) -> Background:
    """An even grey in place of the anatomy, which is a download."""
    grey = np.full(grid.shape, 0.5, dtype=np.float32)
    return Background(grey, grid.mask.astype(np.float32), grid.affine, "a ball")
