"""The figures of a page, written beside it."""

from __future__ import annotations

import importlib.resources
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from bids_fbn.bids.writing import copy_file, write_bytes
from bids_fbn.config import Config
from bids_fbn.errors import FBNError
from bids_fbn.networks.templates import TemplateSet, load_templates
from bids_fbn.reports.figures import Background, draw_network, load_background
from bids_fbn.reports.results import ModelResults
from bids_fbn.signal.grid import Grid

__all__ = ["BrainFigures", "FigureFolder", "NetworkFigure", "share_plotly"]


@dataclass(frozen=True)
class NetworkFigure:
    """A written figure of a network.

    Parameters
    ----------
    source : str
        Path relative to the page.
    cuts : tuple of float
        x, y, z in mm.
    width, height : int
        Pixels.
    """

    source: str
    cuts: tuple[float, float, float]
    width: int
    height: int


class FigureFolder:
    """Where the figures of a participant go: ``sub-X/figures``.

    Parameters
    ----------
    out : Path
        The output dataset, in which the page lies.
    subject : str
    """

    def __init__(self, out: Path, subject: str) -> None:
        self._out = out
        self._folder = Path(f"sub-{subject}", "figures")

    def write(self, name: str, content: bytes | str) -> str:
        """Write a figure, whole or not at all; returns its path relative to the page."""
        path = self._folder / name
        write_bytes(self._out / path, content.encode() if isinstance(content, str) else content)
        return path.as_posix()


class BrainFigures:
    """Draws the networks of models; loads each background and template set once.

    Parameters
    ----------
    config : Config
        Says which template set.
    folder : FigureFolder
    """

    def __init__(self, config: Config, folder: FigureFolder) -> None:
        self._wanted = config.networks.templates
        self._folder = folder
        self._backgrounds: dict[str, Background] = {}
        self._templates: dict[str, TemplateSet | None] = {}

    def background(self, space: str) -> Background:
        """The brain to draw on."""
        if space not in self._backgrounds:
            self._backgrounds[space] = load_background(space)
        return self._backgrounds[space]

    def templates(self, results: ModelResults) -> TemplateSet | None:
        """The template set that a model was compared with; None if it is not at hand."""
        grid = results.grid
        if grid.fingerprint not in self._templates:
            self._templates[grid.fingerprint] = self._load(grid)
        templates = self._templates[grid.fingerprint]
        if templates is None or templates.name != results.facts["Templates"]:
            return None
        return templates if templates.networks == results.networks else None

    def _load(self, grid: Grid) -> TemplateSet | None:
        try:
            return load_templates(self._wanted, grid)
        except FBNError:
            # Gone since the run was made (a cache, a user's file): the page does without.
            return None

    def draw(self, results: ModelResults, grey: Collection[str]) -> Mapping[str, NetworkFigure]:
        """Write a figure for each network, without colour for those named."""
        templates = self.templates(results)
        background = self.background(results.run.space)
        figures = {}
        for p, (name, fbn) in enumerate(zip(results.networks, results.maps(), strict=True)):
            picture = draw_network(
                fbn,
                None if templates is None else templates.maps[p],
                None if templates is None else templates.supports[p],
                results.grid,
                background,
                name in grey,
            )
            file_name = f"{results.run.prefix}_label-{name}_desc-{results.label}_components.png"
            figures[name] = NetworkFigure(
                self._folder.write(file_name, picture.png),
                picture.cuts,
                picture.width,
                picture.height,
            )
        return figures


def share_plotly(out: Path) -> str:
    """Put plotly.js into the dataset, once for all pages; returns its path relative to them."""
    path = Path("figures", "plotly.min.js")
    shipped = importlib.resources.files("plotly").joinpath("package_data", "plotly.min.js")
    with importlib.resources.as_file(shipped) as source:
        present = out / path
        # Another version has another size; comparing 5 MB for each page would gain nothing.
        if not present.is_file() or present.stat().st_size != source.stat().st_size:
            copy_file(source, present)
    return path.as_posix()
