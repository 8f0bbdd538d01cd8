"""ST-CNN, a joint spatial and temporal model of known networks.

A window of volumes goes in as channels; the map of each network comes out, and from it and the
window the network's course. Unlike the other models it is taught: what it reproduces is dictionary
learning.

Zhao Y, Li X, Huang H, et al. Four-dimensional modeling of fMRI data via spatio-temporal
convolutional neural networks (ST-CNNs). IEEE Transactions on Cognitive and Developmental Systems,
2020, doi:10.1109/TCDS.2019.2916916.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bids_fbn.config import ModelOptions
from bids_fbn.errors import InputError, RunError
from bids_fbn.models.compute import Compute
from bids_fbn.models.fitting import Stage
from bids_fbn.models.neural import NeuralModel, Recipe
from bids_fbn.models.sampling import Batch
from bids_fbn.models.stcnn_network import STCNNNetwork, pearson, zscore_courses
from bids_fbn.models.targets import LEAST_MATCH, find_targets
from bids_fbn.models.told import Told
from bids_fbn.networks.maps import zscore_maps
from bids_fbn.signal.signals import Signals

if TYPE_CHECKING:
    from bids_fbn.networks.templates import TemplateSet

__all__ = ["STCNN", "STCNNRecipe"]

logger = logging.getLogger(__name__)

_TEMPORAL_DECAY = 1e-3
# Weight of the course's correlation beside the map's mean squared error.
_COURSE_WEIGHT = 0.1
# Windows in which each volume stands when courses are put together.
_COURSE_WINDOWS = 4


@dataclass(frozen=True)
class STCNNRecipe(Recipe):
    """Sizes of the network and how it is trained.

    ``channels`` are those of the finest level, ``epochs`` those of each of the three stages.

    Parameters
    ----------
    components : int
        Of the dictionary learning that gives the targets; 20 is nilearn's own choice.
    synchronize : bool
        See :func:`~bids_fbn.models.stcnn_network.synchronize`; the reference is the middle window
        of the first run.
    """

    components: int = 20
    synchronize: bool = False


class STCNN(Told, NeuralModel):
    """ST-CNN as a model: see :class:`~bids_fbn.models.base.Model`.

    Candidates are the maps of the K networks. The targets of a run are components of its own
    dictionary learning, see :mod:`~bids_fbn.models.targets`; where none matches a network's
    template, that run does not teach the network.

    Parameters
    ----------
    recipe, preset, grid, candidates
        See :class:`~bids_fbn.models.base.Model`.
    networks : sequence of str
        K names.
    templates : TemplateSet, optional
        Has those networks; needed to train, not to apply.
    """

    name = "stcnn"
    has_courses = True
    recipe: STCNNRecipe
    recipe_class = STCNNRecipe
    recipes: ClassVar[dict[str, Recipe]] = {
        # Whole runs, which were of 284 volumes; one network. Epochs and batch are ours.
        "as-published": STCNNRecipe(
            window=284,
            channels=32,
            learning_rate=1.0,
            epochs=20,
            batch=1,
            whole_box=True,
        ),
        # At a constant rate the weights of the last step are one noisy draw, and maps of
        # participants not seen are worse for it.
        "corrected": STCNNRecipe(
            window=40,
            channels=32,
            learning_rate=1.0,
            learning_rate_decay=0.75,
            decay_every=1,
            epochs=10,
            batch=8,
            stride=10,
            synchronize=True,
        ),
        "sloppy": STCNNRecipe(
            window=20,
            channels=8,
            learning_rate=1.0,
            epochs=2,
            batch=4,
            stride=10,
            components=10,
            synchronize=True,
        ),
    }

    @classmethod
    def networks_asked(cls, options: ModelOptions, templates: TemplateSet) -> Sequence[str]:
        """Those that were asked for.

        Raises
        ------
        InputError
            If one is not in the template set, or the preset is that of the default mode alone and
            the set has none of that name.
        """
        return _asked_networks(options.target_networks, templates, cls.preset_of(options))

    def _build(self) -> nn.Module:
        recipe = self.recipe
        return STCNNNetwork(
            recipe.window,
            recipe.channels,
            len(self.networks),
            self.box_shape,
            recipe.synchronize,
            standardize=not recipe.whole_box,
        )

    def _mapping_network(self) -> nn.Module:
        return copy.deepcopy(self.network.get_submodule("spatial"))

    def _candidates(self, batch: Tensor) -> Tensor:
        return self._in_mask(self.network(batch).float())

    # --- training -------------------------------------------------------------------------------

    def stages(self) -> list[Stage]:
        """Spatial part; temporal part, the spatial one frozen; both."""
        recipe = self.recipe

        def spatial(network: nn.Module) -> list[dict[str, Any]]:
            return [{"params": network.get_submodule("spatial").parameters()}]

        def temporal(network: nn.Module) -> list[dict[str, Any]]:
            parameters = network.get_submodule("temporal").parameters()
            return [{"params": parameters, "weight_decay": _TEMPORAL_DECAY}]

        def both(network: nn.Module) -> list[dict[str, Any]]:
            return spatial(network) + temporal(network)

        return [
            Stage(
                name,
                recipe.epochs,
                recipe.learning_rate,
                recipe.learning_rate_decay,
                recipe.decay_every,
                "adadelta",
                parameters,
            )
            for name, parameters in (("spatial", spatial), ("temporal", temporal), ("both", both))
        ]

    def prepare(self, signals: Sequence[Signals], seed: int) -> None:
        """Find the targets of every run.

        Raises
        ------
        RunError
            If the model was loaded without templates, or no run has a component that matches any
            of its networks.
        """
        if self.templates is None:
            raise RunError(f"{self.name}: without templates it can be applied, not trained")
        chosen = [self.templates.networks.index(network) for network in self.networks]
        self._targets = []
        for number, run in enumerate(signals, 1):
            logger.info("%s: targets of %s, %d of %d", self.name, run.name, number, len(signals))
            targets = find_targets(run, self.templates, self.recipe.components, seed)
            self._targets.append(targets.of_networks(chosen))
        if not any(targets.found.any() for targets in self._targets):
            raise RunError(
                f"{self.name}: no run has a component of dictionary learning that correlates with "
                f"a template by {LEAST_MATCH:g} or more: {', '.join(self.networks)}"
            )
        if self.recipe.synchronize:
            self._set_reference(signals)

    def _set_reference(self, signals: Sequence[Signals]) -> None:
        # One of the runs to train on, which come first: those held out decide nothing.
        run = next(run for run in signals if len(self._training_starts(run)))
        starts = self._training_starts(run)
        start = int(starts[len(starts) // 2])
        window = torch.from_numpy(run.rows(start, start + self.window))
        reference = self.network.get_submodule("spatial").reference
        reference.copy_(self._to_box(window[None])[0].flatten(1))

    def loss(self, network: Any, batch: Batch, stage: str) -> Tensor:
        """Mean squared error of the maps, from the second stage on less 0.1 r of the courses.

        0 for a network that a run does not teach.
        """
        if stage == "temporal":
            # Frozen: its batch norms too, which no optimizer holds.
            self.network.spatial.eval()
        maps, courses = network(self._to_box(batch.windows), with_courses=stage != "spatial")
        device = maps.device
        targets = [self._targets[run] for run in batch.runs]
        taught = torch.from_numpy(np.stack([of_run.found for of_run in targets])).to(device)
        wanted = torch.from_numpy(np.stack([of_run.maps for of_run in targets])).to(device)
        if self.recipe.whole_box:
            errors = (maps.float() - self._to_box(wanted)).square().flatten(2).mean(dim=2)
        else:
            covered = torch.from_numpy(np.stack([of_run.covered for of_run in targets]))
            weights = (covered / covered.sum(dim=1, keepdim=True)).to(device)
            square = (self._in_mask(maps.float()) - wanted).square()
            errors = (square * weights[:, None]).sum(dim=2)
        if courses is not None:
            stretches = [
                of_run.courses[start : start + self.window].T
                for of_run, start in zip(targets, batch.starts, strict=True)
            ]
            wanted_courses = torch.from_numpy(np.stack(stretches)).to(device)
            errors = errors - _COURSE_WEIGHT * pearson(courses.float(), wanted_courses)
        # A mean over all, so that the parts of a batch add up whatever each of them was taught.
        return (errors * taught).mean()

    # --- courses --------------------------------------------------------------------------------

    def courses(self, signals: Signals, compute: Compute) -> np.ndarray:
        """Course of each network by the temporal part, over the kept volumes, in fp32.

        Each volume stands in up to four windows. Their courses are z-scored, since the loss says
        nothing of amplitude, and averaged.

        Parameters
        ----------
        signals : Signals
            T volumes.
        compute : Compute

        Returns
        -------
        ndarray (T, K) of float32
            z-scored over the volumes that have a value; NaN for one that is in no window.
        """
        total = np.zeros((len(self.networks), signals.n_kept))
        count = np.zeros(signals.n_kept)
        network = self.network.to(compute.torch_device).eval()
        for start in self._course_starts(signals):
            stop = start + self.window
            window = torch.from_numpy(signals.rows(start, stop)).to(compute.torch_device)
            with torch.no_grad():
                _, courses = network(self._to_box(window[None]))
            total[:, start:stop] += zscore_courses(courses[0]).cpu().numpy()
            count[start:stop] += 1
        found = count > 0
        courses_found = np.full(total.shape, np.nan, dtype=np.float32)
        if found.any():
            courses_found[:, found] = zscore_maps(total[:, found] / count[found])
        return courses_found.T

    def _course_starts(self, signals: Signals) -> list[int]:
        """Windows a quarter of themselves apart, and the last of every unbroken stretch."""
        starts = self._training_starts(signals)
        apart = max(1, self.window // _COURSE_WINDOWS)
        chosen: list[int] = []
        for start, following in zip(starts, np.append(starts[1:], -1), strict=False):
            if not chosen or start >= chosen[-1] + apart or following != start + 1:
                chosen.append(int(start))
        return chosen


def _asked_networks(asked: Sequence[str], templates: TemplateSet, preset: str) -> tuple[str, ...]:
    known = {network.lower(): network for network in templates.networks}
    unknown = [network for network in asked if network.lower() not in known]
    if unknown:
        raise InputError(
            f"--target-networks {' '.join(unknown)}: not in {templates.name}, which has "
            f"{', '.join(templates.networks)}"
        )
    if asked:
        return tuple(dict.fromkeys(known[network.lower()] for network in asked))
    if preset != "as-published":
        return templates.networks
    # The published model has the default mode and nothing else.
    found = tuple(network for network in templates.networks if "default" in network.lower())
    if len(found) != 1:
        raise InputError(
            f"stcnn as published is of the default mode, and {len(found)} networks of "
            f"{templates.name} are called so; name one with --target-networks"
        )
    return found
