"""The card beside a weights file: what the weights are, on which grid, and how they came about."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bids_fbn.errors import InputError
from bids_fbn.signal.grid import Grid

__all__ = ["card_path", "check_grid", "grid_facts", "read_card", "weights_hash"]

_NEEDED = {
    "Model": str,
    "Preset": str,
    "Architecture": dict,
    "Recipe": dict,
    "Grid": dict,
    "WeightsSHA256": str,
}
_NEEDED_OF_GRID = {"Space": str, "ResolutionMM": float, "Voxels": int, "Fingerprint": str}


def card_path(weights: Path) -> Path:
    """``x.safetensors`` → ``x.json``."""
    return weights.with_suffix(".json")


def weights_hash(weights: Path) -> str:
    """sha256 of the weights file."""
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def grid_facts(grid: Grid) -> dict[str, Any]:
    """What a card says of the grid."""
    return {
        "Space": grid.space,
        "ResolutionMM": grid.resolution,
        "Shape": list(grid.shape),
        "Voxels": grid.n_voxels,
        "Fingerprint": grid.fingerprint,
        "MaskSource": grid.mask_source,
    }


def read_card(weights: Path) -> dict[str, Any]:
    """Read and check the card of a weights file.

    Raises
    ------
    InputError
        If a file is missing, the card is not one, or the weights are not those it was written for.
    """
    card_file = card_path(weights)
    for path in (weights, card_file):
        if not path.is_file():
            raise InputError(
                f"{path}: not found; weights are a .safetensors file and a .json card of that name"
            )
    try:
        card: dict[str, Any] = json.loads(card_file.read_text())
    except ValueError as error:
        raise InputError(f"{card_file}: not valid JSON: {error}") from None
    missing = _lacking(card, _NEEDED) or _lacking(card["Grid"], _NEEDED_OF_GRID)
    if missing:
        raise InputError(f"{card_file}: not a model card, lacks {', '.join(missing)}")
    if weights_hash(weights) != card["WeightsSHA256"]:
        raise InputError(f"{weights}: not the weights its card was written for; copy both again")
    return card


def _lacking(facts: Any, needed: Mapping[str, type]) -> list[str]:
    if not isinstance(facts, dict):
        return list(needed)
    return [key for key, kind in needed.items() if not isinstance(facts.get(key), kind)]


def check_grid(card: dict[str, Any], weights: Path, grid: Grid) -> None:
    """Refuse weights of another grid.

    Raises
    ------
    InputError
    """
    theirs = card["Grid"]
    if theirs["Fingerprint"] != grid.fingerprint:
        raise InputError(
            f"{weights}: made for {theirs['Space']} at {theirs['ResolutionMM']:g} mm with "
            f"{theirs['Voxels']} voxels, but this analysis has {grid.space} at "
            f"{grid.resolution:g} mm with {grid.n_voxels}; use the same --resolution and template"
        )
