"""What a model is: fitted to signals, it gives candidate maps for every time step."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bids_fbn.bids.writing import GENERATED_BY
from bids_fbn.config import ModelOptions
from bids_fbn.errors import InputError
from bids_fbn.models.card import card_path, check_grid, grid_facts, weights_hash
from bids_fbn.models.compute import Compute
from bids_fbn.networks.amplitude import window_amplitudes
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals
from bids_fbn.signal.windows import Steps, steps_of

if TYPE_CHECKING:
    from bids_fbn.networks.templates import TemplateSet

__all__ = ["Model"]


class Model(ABC):
    """A method with its recipe, on one grid.

    Parameters
    ----------
    recipe : dataclass
        Of the class ``recipe_class``.
    preset : str
        Name of the recipe, for the record.
    grid : Grid
    candidates : {"fbn", "channels"}
        Which maps SCAAE offers.
    """

    name: ClassVar[str]
    recipe_class: ClassVar[type]
    networks: tuple[str, ...] = ()
    """Template networks that each of its maps is of, for a model that knows."""
    fits_anew: ClassVar[bool] = False
    """Whether fitting is cheap enough to be repeated for every surrogate."""

    has_courses: bool = False
    """Whether :meth:`courses` gives any."""

    recipe: Any

    def __init__(self, recipe: Any, preset: str, grid: Grid, candidates: str = "fbn") -> None:
        self.recipe = recipe
        self.preset = preset
        self.grid = grid
        self.candidates = candidates
        self.inference: dict[str, Any] = {}
        self.training: dict[str, Any] = {}

    # --- how it is made

    @classmethod
    def from_options(
        cls, options: ModelOptions, grid: Grid, templates: TemplateSet | None = None
    ) -> Self:
        """An untrained model with the asked preset, and what else was asked in its place.

        Parameters
        ----------
        options : ModelOptions
        grid : Grid
        templates : TemplateSet, optional
            For a model that is told of them.
        """
        return cls(cls.recipe_from(options), cls.preset_of(options), grid, options.candidates)

    @classmethod
    @abstractmethod
    def preset_of(cls, options: ModelOptions) -> str:
        """Name of the asked recipe."""

    @classmethod
    @abstractmethod
    def recipe_from(cls, options: ModelOptions) -> Any:
        """The recipe of the asked preset, with what else was asked in its place."""

    @classmethod
    def from_facts(
        cls, recipe: Any, preset: str, grid: Grid, candidates: str, facts: dict[str, Any]
    ) -> Self:
        """A model as its card describes it, untrained."""
        return cls(recipe, preset, grid, candidates)

    def facts(self) -> dict[str, Any]:
        """What the card says that only this kind of model knows."""
        return {}

    # --- what it offers

    @property
    @abstractmethod
    def window(self) -> int | None:
        """Volumes in a window; None for one that takes the whole run at once."""

    @property
    @abstractmethod
    def n_candidates(self) -> int:
        """K, candidate maps of a step."""

    @property
    @abstractmethod
    def candidate_kind(self) -> str:
        """What candidate maps are of, in a word."""

    @property
    @abstractmethod
    def n_parameters(self) -> int:
        """Numbers that were learned."""

    @property
    def fixed_threshold(self) -> float | None:
        """Threshold of the published support of a map, in the units of the candidate maps."""
        return None

    @property
    def box_shape(self) -> tuple[int, ...]:
        """Voxels along each axis of the box that is computed."""
        return self.grid.shape

    def steps(self, signals: Signals, stride: int = 1) -> Steps:
        """The time steps for which :meth:`maps` gives candidates."""
        return steps_of(signals, self.window, stride)

    @abstractmethod
    def fit(
        self,
        signals: Sequence[Signals],
        compute: Compute,
        seed: int = 0,
        checkpoint: Path | None = None,
        *,
        validation: Sequence[Signals] = (),
        patience: int | None = None,
        accumulate: int = 1,
    ) -> Self:
        """Learn from runs of one or more participants.

        Parameters
        ----------
        signals : sequence of Signals
        compute : Compute
        seed : int
        checkpoint : Path, optional
            Where a training that takes long may keep how far it has come.
        validation : sequence of Signals
            Of other participants, for a model that is trained in epochs: the weights of the epoch
            that does best on them are kept.
        patience : int, optional
            Epochs without a better loss on them after which training ends early.
        accumulate : int
            Parts in which a batch is computed, one after the other.

        Raises
        ------
        RunError
            If no run has enough volumes, or the training fails.
        """

    @abstractmethod
    def maps(
        self, signals: Signals, compute: Compute, stride: int = 1
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Candidate maps of every step that has a window, batch by batch.

        Yields
        ------
        steps : ndarray (B,) of int
            Rows of the tables, ascending, see :meth:`steps`.
        maps : Tensor (B, K, V) of float32
            In the model's own units; 0 or of no meaning in voxels that the run does not cover.
        """

    def named(self, templates: TemplateSet, store: Path | None = None) -> Model:
        """The same model, with names for what it learned of other participants.

        Most have none to give: either they know their networks, or they find maps in each run.

        Parameters
        ----------
        templates : TemplateSet
        store : Path, optional
            Folder that keeps the names, for other runs with the same weights.
        """
        return self

    def found_in(self, signals: Signals) -> bool:
        """Whether its ``course_maps`` are partly of the participant of these signals.

        That they are coherent there says nothing then.
        """
        return False

    def courses(self, signals: Signals, compute: Compute) -> np.ndarray | None:
        """Course of each of ``networks`` by the model's own temporal part, (T, K).

        None for a model without one, see ``has_courses``.
        """
        return None

    @property
    def course_maps(self) -> np.ndarray | None:
        """Maps of ``networks`` (K, V) that it is told of, to which courses are fitted.

        None for a model that finds its maps in the run: that these are coherent there would say
        nothing. See :meth:`found_in`.
        """
        return None

    def effects(self, signals: Signals, compute: Compute) -> tuple[np.ndarray, np.ndarray] | None:
        """Maps of ``networks`` over the whole run, and the standard deviation of their error.

        None for a model that does not know how sure it is.

        Returns
        -------
        maps, sd : ndarray (K, V) of float32
            In one unit: signal, in standard deviations of a voxel's series over the run, for one
            standard deviation of the network's course. 0 in voxels that the run does not cover.
        """
        return None

    def amplitudes(
        self, signals: Signals, stride: int = 1
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """How strong each of ``networks`` is in each window.

        None for a model without ``course_maps``: its networks are present by how much they overlap
        with their templates.

        Returns
        -------
        amplitude : ndarray (S, K)
        sd : ndarray (K,)
            See :func:`bids_fbn.networks.amplitude.window_amplitudes`.
        """
        if (maps := self.course_maps) is None:
            return None
        return window_amplitudes(signals, maps, self.steps(signals, stride))

    # --- weights

    @abstractmethod
    def state(self) -> Mapping[str, Tensor]:
        """All that was learned."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what :meth:`state` gave.

        Raises
        ------
        RuntimeError
            If it is of another model.
        """

    def save(self, path: Path) -> dict[str, Any]:
        """Write weights (safetensors) and the card beside them; returns the card."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        save_file({key: value.contiguous().cpu() for key, value in self.state().items()}, part)
        card = {
            "Model": self.name,
            "Preset": self.preset,
            "Architecture": {
                "Window": self.window,
                "Candidates": self.n_candidates,
                "Box": list(self.box_shape),
                "Parameters": self.n_parameters,
                **self.facts(),
            },
            "Recipe": asdict(self.recipe),
            "Grid": grid_facts(self.grid),
            "Training": self.training,
            "WeightsSHA256": weights_hash(part),
            "GeneratedBy": GENERATED_BY,
        }
        card_part = card_path(path).with_name(card_path(path).name + ".part")
        card_part.write_text(json.dumps(card, indent=2))
        os.replace(part, path)
        os.replace(card_part, card_path(path))
        return card

    @classmethod
    def from_card(
        cls, card: dict[str, Any], weights: Path, grid: Grid, candidates: str = "fbn"
    ) -> Self:
        """A trained model from a checked card.

        Raises
        ------
        InputError
            If the weights are of another grid, or do not fit the card.
        """
        check_grid(card, weights, grid)
        try:
            recipe = cls.recipe_class(**card["Recipe"])
            model = cls.from_facts(recipe, card["Preset"], grid, candidates, card["Architecture"])
            model.load_state(load_file(weights))
        except (InputError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{weights}: does not fit its card: {reason}") from None
        model.training = card.get("Training", {})
        return model
