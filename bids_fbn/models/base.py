"""What a model is: fitted to signals, it gives candidate maps for every time step."""

from __future__ import annotations

import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bids_fbn import __version__
from bids_fbn.config import ModelOptions
from bids_fbn.errors import InputError, RunError
from bids_fbn.models.blocks import count_parameters
from bids_fbn.models.card import card_path, check_grid, grid_facts, weights_hash
from bids_fbn.models.compute import Compute
from bids_fbn.models.fitting import Schedule, train
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals
from bids_fbn.signal.windows import Steps, steps_of

__all__ = ["Model", "Recipe"]

logger = logging.getLogger(__name__)

# Features of one inference batch, all channels: small beside a cluster's memory for a task.
_INFERENCE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Recipe:
    """Sizes of a network and how it is trained.

    Parameters
    ----------
    window : int
        Volumes that go in at once; 1 for a model of single volumes.
    channels : int
        Features, and maps before any are combined.
    learning_rate, learning_rate_decay, decay_every, epochs
        See :class:`~bids_fbn.models.fitting.Schedule`.
    batch : int
        Windows (or volumes) in a training step.
    stride : int
        Volumes from one training window to the next.
    shuffle : bool
        Training windows in random order rather than in that of time.
    whole_box : bool
        Compute on the whole MNI box, with loss and statistics over it, rather than on the
        bounding box of the mask, with loss and statistics in the mask.
    cube : bool
        Pad to a cube.
    fixed_threshold : float
        Threshold of the published support of a map, in the units of the candidate maps; None to
        match the template's size.
    """

    window: int
    channels: int
    learning_rate: float
    epochs: int
    batch: int
    stride: int = 1
    learning_rate_decay: float = 1.0
    decay_every: int = 0
    shuffle: bool = True
    whole_box: bool = False
    cube: bool = False
    fixed_threshold: float | None = None


class Model(ABC):
    """A network with its recipe, on one grid.

    Subclasses give `name`, `recipes`, :meth:`_build` and :meth:`_candidates`.

    Parameters
    ----------
    recipe : Recipe
    preset : str
        Name of the recipe, for the record.
    grid : Grid
    candidates : {"fbn", "channels"}
        Which maps SCAAE offers.
    """

    name: ClassVar[str]
    recipes: ClassVar[dict[str, Recipe]]

    network: Any

    def __init__(self, recipe: Recipe, preset: str, grid: Grid, candidates: str = "fbn") -> None:
        self.recipe = recipe
        self.preset = preset
        self.grid = grid
        self.candidates = candidates
        box = tuple(slice(0, side) for side in grid.shape)
        if not recipe.whole_box:
            box = grid.bounding_box
        mask = grid.mask[box]
        self.box_shape: tuple[int, ...] = mask.shape
        self._mask_index = torch.from_numpy(np.flatnonzero(mask))
        self.training: dict[str, Any] = {}
        self.network = self._build()

    @abstractmethod
    def _build(self) -> nn.Module:
        """The network, with new weights."""

    @abstractmethod
    def _candidates(self, batch: Tensor) -> Tensor:
        """Windows (B, W, X, Y, Z) → candidate maps (B, K, V)."""

    @classmethod
    def from_options(cls, options: ModelOptions, grid: Grid) -> Self:
        """An untrained model with the asked preset, and what else was asked in its place."""
        preset = "sloppy" if options.sloppy else options.preset
        recipe = cls.recipes[preset]
        asked: dict[str, Any] = {
            "channels": options.channels,
            "epochs": options.epochs,
            "stride": options.training_stride,
        }
        if recipe.window > 1:
            asked["window"] = options.window
        asked = {key: value for key, value in asked.items() if value is not None}
        return cls(replace(recipe, **asked), preset, grid, options.candidates)

    @property
    def window(self) -> int:
        """Volumes in a window."""
        return self.recipe.window

    @property
    def n_candidates(self) -> int:
        """K, candidate maps of a step."""
        return self.recipe.channels

    @property
    def n_parameters(self) -> int:
        """Parameters of the network."""
        return count_parameters(self.network)

    def steps(self, signals: Signals, stride: int = 1) -> Steps:
        """The time steps for which :meth:`maps` gives candidates."""
        return steps_of(signals, self.window, stride)

    def fit(
        self,
        signals: Sequence[Signals],
        compute: Compute,
        seed: int = 0,
        checkpoint: Path | None = None,
    ) -> Self:
        """Train from new weights on runs of one or more participants.

        On a CPU the same seed, precision and number of threads give the same weights. On a GPU
        those of STCA may differ in the last digits: the backward pass of trilinear
        interpolation adds in no fixed order there.

        Raises
        ------
        RunError
            If no run has a whole window, or the training diverges.
        """
        starts = [(run, start) for run in signals for start in self._training_starts(run)]
        if not starts:
            raise RunError(f"{self.name}: no run has {self.window} volumes without a gap")
        torch.manual_seed(seed)
        self.network = self._build().to(compute.torch_device)
        on_device = {
            id(run): torch.from_numpy(np.array(run.data)).to(compute.torch_device)
            for run in signals
        }
        recipe = self.recipe
        order = _Order(len(starts), recipe, seed)

        def batches(epoch: int) -> Iterator[Tensor]:
            for chosen in order.batches(epoch):
                picked = [starts[i] for i in chosen]
                yield self._to_box(
                    torch.stack([on_device[id(r)][s : s + recipe.window] for r, s in picked])
                )

        curve = train(
            self.network,
            batches,
            order.steps_per_epoch,
            self._loss,
            Schedule(
                recipe.learning_rate,
                recipe.epochs,
                recipe.learning_rate_decay,
                recipe.decay_every,
            ),
            compute,
            checkpoint,
            self.name,
        )
        self.training = {
            "Runs": [run.name for run in signals],
            "Volumes": int(sum(run.n_kept for run in signals)),
            "Seed": seed,
            "Device": compute.name,
            "Precision": compute.precision,
            "Threads": torch.get_num_threads() if compute.device == "cpu" else None,
            "TorchVersion": torch.__version__,
            "LossCurve": curve.points(),
        }
        return self

    def _training_starts(self, run: Signals) -> list[int]:
        return [int(start) for start in self.steps(run).start if start >= 0]

    def _loss(self, reconstruction: Tensor, batch: Tensor) -> Tensor:
        error = (reconstruction.float() - batch) ** 2
        return error.mean() if self.recipe.whole_box else self._in_mask(error).mean()

    def _to_box(self, values: Tensor) -> Tensor:
        """(B, W, V) → (B, W, X, Y, Z), zero outside the mask."""
        index = self._mask_index.to(values.device)
        box = values.new_zeros(*values.shape[:2], int(np.prod(self.box_shape)))
        box.index_copy_(2, index, values)
        return box.unflatten(2, self.box_shape)

    def _in_mask(self, box: Tensor) -> Tensor:
        """(B, K, X, Y, Z) → (B, K, V)."""
        return box.flatten(2).index_select(2, self._mask_index.to(box.device))

    def maps(
        self, signals: Signals, compute: Compute, stride: int = 1
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Candidate maps of every step that has a window.

        Yields
        ------
        step : int
            Row of the tables, see :meth:`steps`.
        maps : ndarray (K, V) of float32
            In the network's own units; z-scores over the whole box for published STCA.
        """
        starts = self.steps(signals, stride).start
        valid = np.flatnonzero(starts >= 0)
        self.network.to(compute.torch_device).eval()
        data = torch.from_numpy(np.array(signals.data)).to(compute.torch_device)
        bytes_each = 4 * self.recipe.channels * int(np.prod(self.box_shape))
        size = max(1, min(32, _INFERENCE_BYTES // (4 * bytes_each)))
        for first in range(0, len(valid), size):
            chosen = valid[first : first + size]
            windows = torch.stack(
                [data[starts[step] : starts[step] + self.window] for step in chosen]
            )
            with torch.no_grad(), compute.autocast():
                candidates = self._candidates(self._to_box(windows))
            for step, candidate_maps in zip(chosen, candidates.float().cpu().numpy(), strict=True):
                yield int(step), candidate_maps

    def save(self, path: Path) -> dict[str, Any]:
        """Write weights (safetensors) and the card beside them; returns the card."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        state = {key: value.contiguous().cpu() for key, value in self.network.state_dict().items()}
        save_file(state, part)
        card = {
            "Model": self.name,
            "Preset": self.preset,
            "Architecture": {
                "Window": self.window,
                "Channels": self.recipe.channels,
                "Box": list(self.box_shape),
                "Parameters": self.n_parameters,
            },
            "Recipe": asdict(self.recipe),
            "Grid": grid_facts(self.grid),
            "Training": self.training,
            "WeightsSHA256": weights_hash(part),
            "GeneratedBy": {"Name": "bids_fbn", "Version": __version__},
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
            model = cls(Recipe(**card["Recipe"]), card["Preset"], grid, candidates)
            model.network.load_state_dict(load_file(weights))
        except (InputError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{weights}: does not fit its card: {reason}") from None
        model.network.eval()
        model.training = card.get("Training", {})
        return model


class _Order:
    """In which order an epoch takes its windows; the same for the same seed and epoch."""

    def __init__(self, n_windows: int, recipe: Recipe, seed: int) -> None:
        self._n_windows = n_windows
        self._recipe = recipe
        self._seed = seed

    def _chosen(self, epoch: int) -> np.ndarray:
        recipe = self._recipe
        # Every epoch starts at another volume, so that a stride leaves no window unseen for good.
        stride = min(recipe.stride, self._n_windows)
        offset = (epoch * stride) // recipe.epochs % stride
        chosen = np.arange(offset, self._n_windows, stride)
        if recipe.shuffle:
            np.random.default_rng([self._seed, epoch]).shuffle(chosen)
        return chosen

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self._chosen(0)) // self._recipe.batch)

    def batches(self, epoch: int) -> Iterator[np.ndarray]:
        chosen = self._chosen(epoch)
        for first in range(0, len(chosen), self._recipe.batch):
            yield chosen[first : first + self._recipe.batch]
