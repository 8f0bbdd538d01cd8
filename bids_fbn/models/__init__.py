"""Models that turn signals into candidate maps.

One file per model holds the network and its recipe; :mod:`~bids_fbn.models.fitting` has the only
training loop. :func:`create` and :func:`load` are the way in.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bids_fbn.errors import InputError

if TYPE_CHECKING:
    from bids_fbn.config import ModelOptions
    from bids_fbn.models.base import Model
    from bids_fbn.signal.grid import Grid

__all__ = ["create", "load"]


def _model_class(name: str) -> type[Model]:
    # Imported when asked for: `--help` and `--version` must not wait for torch.
    from bids_fbn.models.scaae import SCAAE
    from bids_fbn.models.stca import STCA

    classes: dict[str, type[Model]] = {"stca": STCA, "scaae": SCAAE}
    if name not in classes:
        raise InputError(f"model {name}: unknown; choose one of {', '.join(classes)}")
    return classes[name]


def create(name: str, options: ModelOptions, grid: Grid) -> Model:
    """An untrained model.

    Parameters
    ----------
    name : {"stca", "scaae"}
    options : ModelOptions
        Where an option is None the model's own recipe decides.
    grid : Grid
    """
    return _model_class(name).from_options(options, grid)


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
