"""What models share that know the networks of a template set: each of their maps has its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from bids_fbn.config import ModelOptions
from bids_fbn.errors import InputError
from bids_fbn.models.base import Model
from bids_fbn.signal.grid import Grid

if TYPE_CHECKING:
    from bids_fbn.networks.templates import TemplateSet

__all__ = ["Told"]


class Told(Model):
    """A model of K named networks; a mixin before the class of the model.

    Parameters
    ----------
    recipe, preset, grid, candidates
        See :class:`~bids_fbn.models.base.Model`.
    networks : sequence of str
        K names.
    templates : TemplateSet, optional
        Has those networks; needed to learn, not to apply.
    """

    def __init__(
        self,
        recipe: Any,
        preset: str,
        grid: Grid,
        candidates: str = "fbn",
        *,
        networks: Sequence[str],
        templates: TemplateSet | None = None,
    ) -> None:
        # Before the model is built: how large it is follows from them.
        self.networks = tuple(networks)
        self.templates = templates
        super().__init__(recipe, preset, grid, candidates)

    @classmethod
    def from_options(
        cls, options: ModelOptions, grid: Grid, templates: TemplateSet | None = None
    ) -> Self:
        """A new model.

        Raises
        ------
        InputError
            If there are no templates, or not those that are asked for.
        """
        if templates is None:
            raise InputError(f"{cls.name} starts from a template set; give --templates")
        networks = cls.networks_asked(options, templates)
        recipe, preset = cls.recipe_from(options), cls.preset_of(options)
        return cls(recipe, preset, grid, networks=networks, templates=templates)

    @classmethod
    def networks_asked(cls, options: ModelOptions, templates: TemplateSet) -> Sequence[str]:
        """Which of the templates' networks it is of: all."""
        return templates.networks

    @classmethod
    def from_facts(
        cls, recipe: Any, preset: str, grid: Grid, candidates: str, facts: dict[str, Any]
    ) -> Self:
        networks = facts.get("Networks")
        if not isinstance(networks, list) or not networks:
            raise ValueError("the card names no networks")
        return cls(recipe, preset, grid, candidates, networks=networks)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "Networks": list(self.networks)}

    @property
    def n_candidates(self) -> int:
        return len(self.networks)

    @property
    def candidate_kind(self) -> str:
        return "networks"
