"""What the models with a neural network share: training, maps of a batch of windows, weights."""

from __future__ import annotations

import copy
import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from bids_fbn.config import ModelOptions
from bids_fbn.errors import RunError
from bids_fbn.models.base import Model
from bids_fbn.models.blocks import count_parameters
from bids_fbn.models.compute import Compute, has_amx
from bids_fbn.models.distributed import share_batch_norm
from bids_fbn.models.fitting import Plan, Stage, train
from bids_fbn.models.geometry import Region
from bids_fbn.models.inference import (
    LOWEST_R,
    Batches,
    batch_size,
    lowest_correlation,
    stretches,
    windows_over,
)
from bids_fbn.models.sampling import Batch, Windows
from bids_fbn.models.spectral import has_spectra, use_spectra
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals
from bids_fbn.signal.windows import steps_of

__all__ = ["NeuralModel", "Recipe", "Untrained"]

logger = logging.getLogger(__name__)

# Enough to tell one epoch from another, few enough to cost little beside an epoch.
_VALIDATION_WINDOWS = 1000
# Copies of a window's features that are in memory at once while it is computed.
_COPIES = 4


@dataclass(frozen=True)
class Recipe:
    """Sizes of a network and how it is trained.

    Parameters
    ----------
    window : int
        Volumes that go in at once; 1 for a model of single volumes.
    learning_rate, learning_rate_decay, decay_every, epochs
        See :class:`~bids_fbn.models.fitting.Stage`.
    batch : int
        Windows (or volumes) in a training step.
    channels : int
        Features, and maps before any are combined; 0 of a model that has none.
    stride : int
        Volumes from one training window to the next.
    shuffle : bool
        Training windows in random order rather than in that of time.
    whole_box : bool
        Reconstruct the whole MNI box, with loss and statistics over it, rather than the bounding
        box of the mask, with loss and statistics in the mask. Maps are those of the network on
        the whole MNI box either way.
    cube : bool
        Pad to a cube.
    margin : int
        Voxels, at least, from what is reconstructed to each side of the box that the maps are
        computed on: where the MNI box has fewer it is continued, with zeros.
    fixed_threshold : float
        Threshold of the published support of a map, in the units of the candidate maps; None to
        match the template's size.
    """

    window: int
    learning_rate: float
    epochs: int
    batch: int
    channels: int = 0
    stride: int = 1
    learning_rate_decay: float = 1.0
    decay_every: int = 0
    shuffle: bool = True
    whole_box: bool = False
    cube: bool = False
    margin: int = 0
    fixed_threshold: float | None = None


@dataclass(frozen=True, eq=False)
class _Mapper:
    """What makes the maps of a model, kept for the next run: a search that is done again on forty
    surrogates would otherwise check the precision, and transform wide kernels, each time.

    Parameters
    ----------
    made_of : tuple
        The network, held so that nothing else can take its place in memory; where each of its
        tensors was, and how often it had been changed; what was asked to compute with.
    model : NeuralModel
        With the network that makes maps.
    compute : Compute
        To make them with.
    inference : dict
        Of the model, see :attr:`Model.inference`.
    """

    made_of: tuple[nn.Module, list[tuple[int, int]], Compute]
    model: NeuralModel
    compute: Compute
    inference: dict[str, Any]


class NeuralModel(Model):
    """A model with a neural network: see :class:`~bids_fbn.models.base.Model`.

    Subclasses give `name`, `recipes`, :meth:`_build` and :meth:`_candidates`.
    """

    recipes: ClassVar[dict[str, Recipe]]
    recipe_class: ClassVar[type[Recipe]] = Recipe
    recipe: Recipe
    network: Any
    _kept_mapper: _Mapper | None = None

    def __init__(self, recipe: Recipe, preset: str, grid: Grid, candidates: str = "fbn") -> None:
        super().__init__(recipe, preset, grid, candidates)
        region = Region.of(grid.shape, None if recipe.whole_box else grid.bounding_box)
        self.region = region.within(recipe.margin)
        mask = grid.mask if recipe.whole_box else grid.mask[grid.bounding_box]
        self._mask_index = torch.from_numpy(np.flatnonzero(mask))
        self.network = self._build()

    @abstractmethod
    def _build(self) -> nn.Module:
        """The network, with new weights."""

    @abstractmethod
    def _candidates(self, batch: Tensor) -> Tensor:
        """Windows (B, W, X, Y, Z) → candidate maps (B, K, V).

        ``self.network`` is what :meth:`_mapping_network` gave.
        """

    def _mapping_network(self) -> nn.Module:
        """A copy of what maps need of the network."""
        return copy.deepcopy(self.network)

    @classmethod
    def preset_of(cls, options: ModelOptions) -> str:
        return "sloppy" if options.sloppy else options.preset

    @classmethod
    def recipe_from(cls, options: ModelOptions) -> Recipe:
        recipe = cls.recipes[cls.preset_of(options)]
        asked: dict[str, Any] = {
            "epochs": options.epochs,
            "batch": options.batch,
            "stride": options.training_stride,
        }
        if recipe.channels:
            asked["channels"] = options.channels
        if recipe.window > 1:
            asked["window"] = options.window
        return replace(recipe, **{key: value for key, value in asked.items() if value is not None})

    @property
    def box_shape(self) -> tuple[int, ...]:
        """Voxels along each axis of the box that windows are scattered into."""
        return self.region.shape

    @property
    def fixed_threshold(self) -> float | None:
        return self.recipe.fixed_threshold

    @property
    def window(self) -> int:
        return self.recipe.window

    @property
    def n_candidates(self) -> int:
        return self.recipe.channels

    @property
    def candidate_kind(self) -> str:
        return "channels"

    @property
    def n_parameters(self) -> int:
        return count_parameters(self.network)

    @property
    def _features(self) -> int:
        """Volumes of features that a layer makes of a window."""
        return self.recipe.channels

    def facts(self) -> dict[str, Any]:
        return {"Channels": self.recipe.channels} if self.recipe.channels else {}

    def state(self) -> Mapping[str, Tensor]:
        weights: Mapping[str, Tensor] = self.network.state_dict()
        return weights

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(state)
        self.network.eval()

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
        """Train from new weights on runs of one or more participants.

        Windows are read from the runs' files as they are needed: memory does not grow with the
        number of runs. Where ``compute.processes`` says so, several processes train together,
        each calling this with the same arguments; all end with the same weights.

        On a CPU the same seed, precision and number of threads give the same weights. On a GPU
        those of STCA may differ in the last digits: the backward pass of trilinear
        interpolation adds in no fixed order there.

        Parameters
        ----------
        signals : sequence of Signals
        compute : Compute
        seed : int
        checkpoint : Path, optional
            Written as training goes on; if it exists training continues there. It is left for
            the caller to remove, once the weights are saved.
        validation : sequence of Signals
            Of other participants: the weights of the epoch that does best on them are kept.
        patience : int, optional
            Epochs without a better loss on them after which training ends early.
        accumulate : int
            Parts in which a batch is computed, one after the other.

        Raises
        ------
        RunError
            If no run has a whole window, or the training diverges.
        """
        windows = self._windows(signals)
        if not len(windows):
            raise RunError(
                f"{self.name}: no run has {self._training_window} volumes without a gap"
            )
        held_out = self._validation_windows(signals, validation)
        fabric = compute.fabric()
        fabric.launch()
        torch.manual_seed(seed)
        self.network = self._build().to(fabric.device)
        if fabric.world_size > 1:
            self.network = share_batch_norm(self.network, fabric.device)
        self.prepare([*signals, *validation], seed)
        recipe = self.recipe
        training = train(
            self.network,
            Plan(
                self.name,
                self.stages(),
                windows,
                recipe.batch,
                recipe.stride,
                recipe.shuffle,
                seed,
                accumulate,
                held_out,
                patience,
                {"recipe": asdict(recipe), "grid": self.grid.fingerprint, **self.facts()},
            ),
            self.loss,
            fabric,
            checkpoint,
        )
        weights = self.network.state_dict()
        self.network = self._build().to(fabric.device)
        self.network.load_state_dict(weights)
        self.network.eval()
        self.training = {
            "Runs": [run.name for run in signals],
            "Volumes": int(sum(run.n_kept for run in signals)),
            "Seed": seed,
            "Device": compute.name,
            "Precision": compute.precision,
            "Processes": fabric.world_size,
            "Threads": torch.get_num_threads() if compute.device == "cpu" else None,
            "TorchVersion": torch.__version__,
            "LossCurve": training.curve.points(),
        }
        if held_out is not None:
            self.training |= {
                "ValidationRuns": [run.name for run in validation],
                "ValidationCurve": training.validation.points(),
                "KeptEpochs": training.kept_epochs,
            }
        return self

    def stages(self) -> list[Stage]:
        """The stages of the training; an autoencoder has one."""
        recipe = self.recipe
        return [
            Stage(
                "training",
                recipe.epochs,
                recipe.learning_rate,
                recipe.learning_rate_decay,
                recipe.decay_every,
            )
        ]

    def prepare(self, signals: Sequence[Signals], seed: int) -> None:
        """Make ready what :meth:`loss` needs of the runs; an autoencoder needs nothing.

        Parameters
        ----------
        signals : sequence of Signals
            Runs to train on and, after them, those to validate on: ``batch.runs`` counts them in
            this order.
        seed : int
        """

    def loss(self, network: Any, batch: Batch, stage: str) -> Tensor:
        """Mean loss of a batch; `network` is called as a whole, once."""
        box = self._to_box(batch.windows)
        return self._loss(network(box), box)

    @property
    def _training_window(self) -> int:
        """Volumes that are read at once in training."""
        return self.window

    def _windows(self, signals: Sequence[Signals]) -> Windows:
        return Windows.of(signals, self._training_window, self._training_starts)

    def _validation_windows(
        self, signals: Sequence[Signals], validation: Sequence[Signals]
    ) -> Windows | None:
        if not validation:
            return None
        windows = self._windows(validation).thinned(_VALIDATION_WINDOWS)
        if not len(windows):
            raise RunError(
                f"{self.name}: no run to validate on has {self._training_window} volumes "
                "without a gap"
            )
        return windows.counted_from(len(signals))

    def _training_starts(self, run: Signals) -> np.ndarray:
        start = steps_of(run, self._training_window).start
        return start[start >= 0]

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
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Candidate maps of every step that has a window, batch by batch.

        How precise they are is left in ``inference``: of the first window ever, by which it is
        settled for all runs. Batches get smaller where the memory of a GPU runs out.

        Yields
        ------
        steps : ndarray (B,) of int
            Rows of the tables, ascending, see :meth:`steps`.
        maps : Tensor (B, K, V) of float32
            On the device, in the network's own units; z-scores over the whole box for published
            STCA.
        """
        device = compute.torch_device
        starts = self.steps(signals, stride).start
        steps = np.flatnonzero(starts >= 0)
        starts = starts[steps]
        bytes_each = 4 * self._features * int(np.prod(self.region.whole))
        batches = Batches(self.name, batch_size(device, _COPIES * bytes_each))
        most_rows = self.window + max(self.window, stride * batches.size)
        mapper: _Mapper | None = None
        for stretch, gap in stretches(starts, self.window, most_rows):
            first, last = starts[stretch][0], starts[stretch][-1] + self.window
            rows = torch.from_numpy(signals.rows(first, last)).to(device)
            windows = windows_over(self._to_box(rows[None])[0], self.window, gap)
            if mapper is None:
                mapper = self._mapper_for(windows[:1], compute)
            yield from batches.maps(
                steps[stretch], windows, partial(mapper.model._mapped, compute=mapper.compute)
            )

    def _mapped(self, batch: Tensor, compute: Compute) -> Tensor:
        with torch.no_grad(), compute.autocast():
            return self._candidates(batch).float()

    def _mapper(self, compute: Compute) -> NeuralModel:
        """This model with a network that makes maps only, as fast as it can."""
        mapper = copy.copy(self)
        mapper.network = self._mapping_network().to(compute.torch_device).eval()
        if compute.precision == "bf16":
            mapper.network.to(memory_format=torch.channels_last_3d)
        elif compute.torch_device.type == "cpu":
            use_spectra(mapper.network)
        return mapper

    def _mapper_for(self, window: Tensor, compute: Compute) -> _Mapper:
        """What to make maps with, as long as the weights stay as they are."""
        weights = [(value.data_ptr(), value._version) for value in self.state().values()]
        made_of = (self.network, weights, compute)
        kept = self._kept_mapper
        if kept is None or kept.made_of != made_of:
            model, used = self._checked_mapper(window, compute)
            kept = self._kept_mapper = _Mapper(made_of, model, used, self.inference)
        self.inference = kept.inference
        return kept

    def _checked_mapper(self, window: Tensor, compute: Compute) -> tuple[NeuralModel, Compute]:
        """What to compute with, after a look at one window in bf16 and in fp32."""
        fp32 = replace(compute, precision="fp32")
        precise = self._mapper(fp32)
        faster = compute.automatic and has_spectra(precise.network) and not has_amx()
        if compute.precision == "fp32" or faster:
            self.inference = {"Precision": "fp32"}
            return precise, fp32
        mapper = self._mapper(compute)
        self.inference = {"Precision": compute.precision}
        lowest = lowest_correlation(mapper._mapped(window, compute), precise._mapped(window, fp32))
        self.inference["PrecisionCheck"] = round(lowest, 6)
        if lowest >= LOWEST_R:
            return mapper, compute
        logger.warning(
            "%s: the maps of the first window in bf16 correlate with those in fp32 by %.4f at "
            "worst; %s",
            self.name,
            lowest,
            "computing them in fp32" if compute.automatic else "--precision fp32 is more precise",
        )
        if not compute.automatic:
            return mapper, compute
        self.inference["Precision"] = "fp32"
        return precise, fp32


class Untrained(NeuralModel):
    """The weights it starts with, never trained: what a network finds without having learned.

    A mixin before the class of the model.
    """

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
        """Draw the weights; the runs are not looked at."""
        torch.manual_seed(seed)
        self.network = self._build()
        self.network.eval()
        self.training = {"Runs": [], "Volumes": 0, "Seed": seed}
        return self
