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

__all__ = ["create", "load", "volumes_needed", "weights_given"]


_CLASSES = {
    "stca": ("bids_fbn.models.stca", "STCA"),
    "scaae": ("bids_fbn.models.scaae", "SCAAE"),
    "stcnn": ("bids_fbn.models.stcnn", "STCNN"),
    "udr": ("bids_fbn.models.udr", "UDR"),
    "untrained-stca": ("bids_fbn.models.stca", "UntrainedSTCA"),
    "untrained-scaae": ("bids_fbn.models.scaae", "UntrainedSCAAE"),
    "pca": ("bids_fbn.baselines.decomposition", "PCA"),
    "ica": ("bids_fbn.baselines.decomposition", "ICA"),
    "sdl": ("bids_fbn.baselines.decomposition", "DictionaryLearning"),
    "dualregression": ("bids_fbn.baselines.regression", "DualRegression"),
    "cap": ("bids_fbn.baselines.states", "CoactivationPatterns"),
    "hmm": ("bids_fbn.baselines.states", "HiddenMarkovModel"),
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
    name : str
        One of the model names of the command line.
    options : ModelOptions
        Where an option is None the model's own recipe decides.
    grid : Grid
    templates : TemplateSet, optional
        On the grid; ST-CNN and dual regression need them.
    """
    return _model_class(name).from_options(options, grid, templates)


def volumes_needed(name: str, options: ModelOptions) -> int:
    """Volumes that a run must have for a model that is to be trained on it."""
    recipe = _model_class(name).recipe_from(options)
    return int(recipe.window or recipe.components + 1)


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


def weights_given(options: ModelOptions, grid: Grid) -> dict[str, Path]:
    """Model → the file of ``options.weights`` that is of it.

    Raises
    ------
    InputError
        If a file is damaged, of another grid, or of a model that was not asked for.
    """
    found: dict[str, Path] = {}
    faults: list[str] = []
    for path in options.weights:
        try:
            model = load(path.resolve(), grid)
        except InputError as error:
            faults += error.faults
            continue
        if model.name not in options.model:
            faults.append(f"{path}: weights of {model.name}, which --model does not ask for")
        elif model.name in found:
            faults.append(f"{path}: a second file of weights of {model.name}")
        else:
            found[model.name] = path.resolve()
    if faults:
        raise InputError(*faults)
    return found
