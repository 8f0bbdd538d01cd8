"""Models that turn signals into candidate maps.

One file per model holds the network and its recipe; :mod:`~bids_fbn.models.fitting` has the only
training loop. :func:`create` and :func:`load` are the way in.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from bids_fbn.errors import InputError

if TYPE_CHECKING:
    from bids_fbn.config import ModelOptions
    from bids_fbn.models.base import Model
    from bids_fbn.networks.templates import TemplateSet
    from bids_fbn.signal.grid import Grid

__all__ = ["create", "load", "window_of"]


_CLASSES = {
    "stca": ("bids_fbn.models.stca", "STCA"),
    "scaae": ("bids_fbn.models.scaae", "SCAAE"),
    "stcnn": ("bids_fbn.models.stcnn", "STCNN"),
}


def _model_class(name: str) -> type[Model]:
    if name not in _CLASSES:
        raise InputError(f"model {name}: unknown; choose one of {', '.join(_CLASSES)}")
    # Imported when asked for: `--help` and `--version` must not wait for torch.
    module, of_module = _CLASSES[name]
    model_class: type[Model] = getattr(import_module(module), of_module)
    return model_class


def create(
    name: str, options: ModelOptions, grid: Grid, templates: TemplateSet | None = None
) -> Model:
    """An untrained model.

    Parameters
    ----------
    name : {"stca", "scaae", "stcnn"}
    options : ModelOptions
        Where an option is None the model's own recipe decides.
    grid : Grid
    templates : TemplateSet, optional
        On the grid; ST-CNN needs them to be trained.
    """
    return _model_class(name).from_options(options, grid, templates)


def window_of(name: str, options: ModelOptions) -> int:
    """Volumes in a window of a model that is to be trained."""
    return _model_class(name).recipe_from(options).window


def load(weights: Path, grid: Grid, candidates: str = "fbn") -> Model:
    """A trained model from its ``.safetensors`` file and the ``.json`` card beside it.

    Raises
    ------
    InputError
        If a file is missing or damaged, or the weights are of another model or grid.
    """
    from bids_fbn.models.card import read_card

    card = read_card(weights)
    try:
        model_class = _model_class(card["Model"])
    except InputError as error:
        raise InputError(f"{weights}: {error}") from None
    return model_class.from_card(card, weights, grid, candidates)
