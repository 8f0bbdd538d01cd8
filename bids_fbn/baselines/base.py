"""What the baselines share: recipes, and what they have learned as plain arrays."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from bids_fbn.config import ModelOptions
from bids_fbn.errors import RunError
from bids_fbn.models.base import Model
from bids_fbn.models.compute import Compute
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals

__all__ = ["Baseline", "BaselineRecipe", "covered_by_all"]


# In a window, at least; fewer, and components are mostly noise.
_VOLUMES_PER_COMPONENT = 4


@dataclass(frozen=True)
class BaselineRecipe:
    """Sizes of a baseline.

    Parameters
    ----------
    components : int
        Maps, or states.
    window : int, optional
        Volumes that are looked at together; None for the whole run.
    """

    components: int
    window: int | None = None


class Baseline(Model):
    """A classical method: see :class:`~bids_fbn.models.base.Model`.

    Subclasses give `name`, `recipes` (``classical`` and ``sloppy``), :meth:`_learn` and
    :meth:`maps`, which finds what was learned in ``learned``.
    """

    recipe_class: ClassVar[type[BaselineRecipe]] = BaselineRecipe
    recipes: ClassVar[dict[str, BaselineRecipe]]
    recipe: BaselineRecipe
    slides: ClassVar[bool] = True
    """Whether it can take windows."""
    fits_anew = True

    def __init__(
        self, recipe: BaselineRecipe, preset: str, grid: Grid, candidates: str = "fbn"
    ) -> None:
        super().__init__(recipe, preset, grid, candidates)
        self.learned: dict[str, np.ndarray] = {}

    @classmethod
    def preset_of(cls, options: ModelOptions) -> str:
        return "sloppy" if options.sloppy else "classical"

    @classmethod
    def recipe_from(cls, options: ModelOptions) -> BaselineRecipe:
        recipe = cls.recipes[cls.preset_of(options)]
        if options.window is not None and cls.slides:
            few = max(2, options.window // _VOLUMES_PER_COMPONENT)
            recipe = BaselineRecipe(min(recipe.components, few), options.window)
        if options.channels is not None:
            recipe = replace(recipe, components=options.channels)
        return recipe

    @property
    def window(self) -> int | None:
        return self.recipe.window

    @property
    def n_candidates(self) -> int:
        return self.recipe.components

    @property
    def candidate_kind(self) -> str:
        return "components"

    @property
    def n_parameters(self) -> int:
        return sum(values.size for values in self.learned.values())

    def state(self) -> Mapping[str, Tensor]:
        return {name: torch.from_numpy(values) for name, values in self.learned.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.learned = {name: values.numpy() for name, values in state.items()}

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
        """Learn from all runs at once, on the CPU.

        There are no epochs: ``checkpoint`` and what follows it change nothing.
        """
        self.learned = self._learn(signals, seed)
        self.training = {
            "Runs": [run.name for run in signals],
            "Volumes": int(sum(run.n_kept for run in signals)),
            "Seed": seed,
            "Device": "cpu",
        }
        return self

    @abstractmethod
    def _learn(self, signals: Sequence[Signals], seed: int) -> dict[str, np.ndarray]:
        """All that is to be kept.

        Raises
        ------
        RunError
            If no run has enough volumes.
        """

    def _with_volumes(self, signals: Sequence[Signals], needed: int) -> list[Signals]:
        """The runs that have at least `needed` volumes.

        Raises
        ------
        RunError
            If none has.
        """
        runs = [run for run in signals if run.n_kept >= needed]
        if not runs:
            longest = max((run.n_kept for run in signals), default=0)
            raise RunError(f"{self.name}: {longest} volumes are too few, {needed} are needed")
        return runs

    def _everywhere(self, maps: np.ndarray, covered: np.ndarray) -> Tensor:
        """Maps (K, covered) → one step's candidates (1, K, V), 0 in voxels not covered."""
        candidates = np.zeros((1, len(maps), len(covered)), dtype=np.float32)
        candidates[0][:, covered] = maps
        return torch.from_numpy(candidates)

    def _windows(self, signals: Signals, stride: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each step with a window, and the window's volumes (W, covered)."""
        steps = self.steps(signals, stride)
        data = np.asarray(signals.data)[:, signals.covered]
        for step in np.flatnonzero(steps.valid):
            first = steps.start[step]
            yield np.array([step]), data[first : first + steps.window]


def covered_by_all(runs: Iterable[Signals]) -> np.ndarray:
    """Voxels that every run covers, (V,) of bool."""
    covered: np.ndarray = np.logical_and.reduce([run.covered for run in runs])
    return covered
