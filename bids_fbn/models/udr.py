"""Unrolled dual regression (UDR): networks that keep their identity and must explain the data.

Dual regression gives every network of a template set, or every component of a group ICA, a map in
every stretch of a run, without a search; from few volumes the map is mostly noise. Here it is
shrunk towards what the participants' maps have in common, as far as noise demands. How far that is
it learns without labels: maps made from a stretch have to explain other volumes of the run.
docs/udr.md derives it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from bids_fbn.baselines.base import BaselineRecipe
from bids_fbn.baselines.decomposition import ICA
from bids_fbn.baselines.regression import dual_regression
from bids_fbn.config import ModelOptions
from bids_fbn.errors import RunError
from bids_fbn.models.compute import Compute
from bids_fbn.models.naming import name_components
from bids_fbn.models.neural import NeuralModel, Recipe
from bids_fbn.models.sampling import Batch, participant_of
from bids_fbn.models.told import Told
from bids_fbn.models.udr_error import find_error
from bids_fbn.models.udr_network import (
    UnrolledDualRegression,
    covered_in,
    explained,
    fit_courses,
    predicted,
)
from bids_fbn.networks.maps import zscore_maps
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals

if TYPE_CHECKING:
    from bids_fbn.networks.templates import TemplateSet

__all__ = ["UDR", "UDRRecipe"]

# Components have no name to lose: their courses and maps may be fitted to each other once more.
_REPETITIONS_OF_COMPONENTS = 2
_MODES_PER_COMPONENT = 2
# What counts in training for what is explained, the rest for what is predicted. Beside modes,
# whose maps cannot wander far, the first may count for more.
_EXPLAINED, _EXPLAINED_BESIDE_MODES = 0.5, 0.9
# Volumes that maps have to explain, at least.
_FEWEST_OTHERS = 10
# Of the longest stretch that maps are made from in training, the shortest.
_SHORTEST = 0.5
# Participants at which a voxel's own spread counts as much as that of its network.
_PARTICIPANTS_FOR_A_VOXEL = 8
# Of a network in a stretch, by its usual size: one that is not there at all.
_LEAST_IN_STRETCH = 0.05
# Of a network's mean spread: a voxel in which participants happen to agree is not certain.
_LEAST_SPREAD = 0.3


@dataclass(frozen=True)
class UDRRecipe(Recipe):
    """Sizes and training; it has no ``channels``.

    Parameters
    ----------
    repetitions : int
        How often courses and maps are fitted to each other. The first courses are those of
        the group maps; docs/udr.md says what more of them do.
    longest : int
        Volumes that maps are made from in training, at most; as many as a window has, if that is
        more. Maps of windows shorter than this are no worse for it, and it is long enough to
        say how noise falls with the number of volumes.
    gap : float
        Seconds between the volumes that maps are made from and those that they have to explain:
        neighbours in time are alike, whatever the maps.
    components : int
        Components of a group ICA of the runs to train on, whose maps it starts from; 0 to start
        from the maps of a template set.
    modes : int
        Of the volumes of the participants to train on, which are joined to those of a stretch; 0
        for maps that are shrunk towards what the participants' have in common instead. Of a single
        participant to train on there are none: there are no others.
    """

    repetitions: int = 1
    longest: int = 0
    gap: float = 20.0
    components: int = 0
    modes: int = 0


class UDR(Told, NeuralModel):
    """Unrolled dual regression as a model: see :class:`~bids_fbn.models.base.Model`.

    Candidates are the maps of the K networks of a template set, one for each and every step; or,
    with ``recipe.components``, of the K components of a group ICA. A component keeps its place
    over steps and runs, but which network it is, if any, has to be searched for.

    Parameters
    ----------
    recipe, preset, grid, candidates
        See :class:`~bids_fbn.models.base.Model`.
    networks : sequence of str
        K names; none of components.
    templates : TemplateSet, optional
        Has those networks; needed to train, not to apply.

    Raises
    ------
    ValueError
        If it is given both components and networks, or neither.
    """

    name = "udr"
    # Of the runs that it is prepared with; those behind them are to validate on. All, if None.
    _n_training: int | None = None
    recipe: UDRRecipe
    recipe_class = UDRRecipe
    recipes: ClassVar[dict[str, Recipe]] = {
        "unrolled": UDRRecipe(
            window=20,
            longest=40,
            learning_rate=3e-2,
            learning_rate_decay=0.7,
            decay_every=1,
            epochs=4,
            batch=4,
            stride=10,
            modes=100,
        ),
        "sloppy": UDRRecipe(
            window=20, learning_rate=3e-2, epochs=2, batch=4, stride=10, modes=100
        ),
    }

    def __init__(
        self,
        recipe: UDRRecipe,
        preset: str,
        grid: Grid,
        candidates: str = "fbn",
        *,
        networks: Sequence[str] = (),
        templates: TemplateSet | None = None,
    ) -> None:
        if bool(recipe.components) == bool(networks):
            raise ValueError("a model is of components or of networks, one of the two")
        super().__init__(recipe, preset, grid, candidates, networks=networks, templates=templates)
        # Courses of components are of no network that anything could be said of by name.
        self.has_courses = bool(networks)

    @classmethod
    def from_options(
        cls, options: ModelOptions, grid: Grid, templates: TemplateSet | None = None
    ) -> Self:
        if options.components is None:
            return super().from_options(options, grid, templates)
        return cls(cls.recipe_from(options), cls.preset_of(options), grid)

    @classmethod
    def from_facts(
        cls, recipe: Any, preset: str, grid: Grid, candidates: str, facts: dict[str, Any]
    ) -> Self:
        if not recipe.components:
            return super().from_facts(recipe, preset, grid, candidates, facts)
        return cls(recipe, preset, grid, candidates)

    @classmethod
    def recipe_from(cls, options: ModelOptions) -> Any:
        recipe: Any = super().recipe_from(options)
        if not options.components:
            return recipe
        return replace(
            recipe,
            components=options.components,
            modes=max(recipe.modes, _MODES_PER_COMPONENT * options.components),
            repetitions=_REPETITIONS_OF_COMPONENTS,
        )

    @property
    def n_candidates(self) -> int:
        return self.recipe.components or len(self.networks)

    @property
    def candidate_kind(self) -> str:
        if not self.recipe.components:
            return "networks"
        return "named components" if self.networks else "components"

    def named(self, templates: TemplateSet, store: Path | None = None) -> Self:
        """The same, its components called after the networks that their group maps are.

        See :func:`~bids_fbn.models.naming.name_components`. Components of a single participant
        have no names: that they are coherent in the run that they were found in would say nothing.
        """
        if self.networks or len(self._participants) < 2:
            return self
        named = copy.copy(self)
        group = self.network.group.cpu().numpy()
        threads = torch.get_num_threads()
        named.networks = name_components(group, templates, self.grid, threads, store)
        named.has_courses = True
        return named

    def found_in(self, signals: Signals) -> bool:
        # Components without names are searched, which has nulls of its own.
        named = bool(self.recipe.components and self.networks)
        return named and participant_of(signals) in self._participants

    @property
    def _participants(self) -> set[str]:
        """That it was trained on."""
        return {run.partition("_")[0] for run in self.training.get("Runs", ())}

    def _build(self) -> nn.Module:
        return UnrolledDualRegression(
            self.n_candidates,
            self.grid.n_voxels,
            self.recipe.repetitions,
            self.recipe.modes,
        )

    @classmethod
    def preset_of(cls, options: ModelOptions) -> str:
        return "sloppy" if options.sloppy else "unrolled"

    @property
    def _features(self) -> int:
        return max(self.window, self.n_candidates)

    # --- training -------------------------------------------------------------------------------

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
        if self.templates is None and not self.recipe.components:
            raise RunError(f"{self.name}: without templates it can be applied, not trained")
        if not any(len(self._training_starts(run)) for run in signals):
            needed = max(self._volumes_needed(run) for run in signals)
            raise RunError(
                f"{self.name}: no run has the {needed} volumes that are needed: "
                f"{self._training_window} without a gap, and others, {self.recipe.gap:g} s away, "
                "that their maps have to explain"
            )
        self._n_training = len(signals)
        if len({participant_of(run) for run in signals}) == 1:
            self.recipe = replace(self.recipe, modes=0, repetitions=1)
        super().fit(
            signals,
            _precise(compute),
            seed,
            checkpoint,
            validation=validation,
            patience=patience,
            accumulate=accumulate,
        )
        group = self.network.group.cpu().numpy()
        lengths, factors, degrees = find_error(
            self.network,
            signals,
            self.window,
            lambda runs: _prior(runs, group, self.recipe.modes),
            seed,
        )
        self.network.set_error(torch.from_numpy(lengths), torch.from_numpy(factors), degrees)
        self.training["Error"] = {
            "Volumes": lengths.tolist(),
            "Factors": np.round(factors, 4).tolist(),
            "DegreesOfFreedom": degrees if np.isfinite(degrees) else None,
        }
        return self

    def _gap(self, run: Signals) -> int:
        return math.ceil(self.recipe.gap / run.repetition_time)

    @property
    def _training_window(self) -> int:
        return max(self.window, self.recipe.longest)

    def _volumes_needed(self, run: Signals) -> int:
        return self._training_window + self._gap(run) + _FEWEST_OTHERS

    def _training_starts(self, run: Signals) -> np.ndarray:
        starts = super()._training_starts(run)
        after = run.n_kept - starts - self._training_window
        room = np.maximum(starts, after) - self._gap(run)
        return starts[room >= _FEWEST_OTHERS]

    def prepare(self, signals: Sequence[Signals], seed: int) -> None:
        """Find the group maps and the prior that training starts from, in the runs to train on.

        Raises
        ------
        RunError
            If these do not span as many components as are asked for.
        """
        self._runs, self._seed = signals, seed
        training = signals[: self._n_training]
        group = zscore_maps(self._group_maps(training, seed))
        prior = _prior(training, group, self.recipe.modes)
        self.network.set_prior(*map(torch.from_numpy, (group, *prior)))

    def _group_maps(self, runs: Sequence[Signals], seed: int) -> np.ndarray:
        """The maps that its networks are named after, (K, V)."""
        n_components = self.recipe.components
        if not n_components:
            assert self.templates is not None
            return self.templates.maps
        ica = ICA(BaselineRecipe(n_components), "classical", self.grid)
        maps = ica.fit(runs, Compute("cpu", "fp32"), seed).learned["maps"]
        if not maps.any(axis=1).all():
            raise RunError(
                f"{self.name}: the runs do not span {n_components} components; ask for fewer with "
                "--components"
            )
        return maps

    def loss(self, network: Any, batch: Batch, stage: str) -> Tensor:
        """Share of the variance of other volumes that the maps of a stretch leave, in two ways.

        By least squares on the maps, which rewards whatever explains more; and with the courses
        that the group maps give, which rewards the maps of these very networks. By the first alone
        networks wander off. The second takes the maps at the size that networks have in the other
        volumes: else it would reward maps that are too small, since sizes differ.
        """
        longest = self._training_window
        shortest = math.ceil(_SHORTEST * longest)
        chance = np.random.default_rng([self._seed, *batch.runs, *batch.starts])
        length = int(chance.integers(shortest, longest + 1))
        first = int(chance.integers(0, longest - length + 1))
        device = batch.windows.device
        stretch = batch.windows[:, first : first + length]
        maps, _ = network(stretch)
        # The network itself may be wrapped, as for several processes.
        sizes = self.network.size_in(stretch).clamp_min(_LEAST_IN_STRETCH)
        weight = _EXPLAINED_BESIDE_MODES if self.recipe.modes else _EXPLAINED
        left = []
        for k, (run, start) in enumerate(zip(batch.runs, batch.starts, strict=True)):
            others = self._others(self._runs[run], int(start), chance)[None].to(device)
            own = maps[k : k + 1]
            courses = fit_courses(others, self.network.group[None], covered_in(others))
            there = own * self.network.size_in(others) / sizes[k : k + 1]
            both = explained(others, own), predicted(others, courses, there)
            left.append(1 - weight * both[0] - (1 - weight) * both[1])
        return torch.cat(left).mean()

    def _others(self, run: Signals, start: int, chance: np.random.Generator) -> Tensor:
        """At most as many volumes in a row as were read, away from those at `start`."""
        gap, longest = self._gap(run), self._training_window
        sides = [(0, start - gap), (start + longest + gap, run.n_kept)]
        sides = [(low, high) for low, high in sides if high - low >= _FEWEST_OTHERS]
        room = np.array([high - low for low, high in sides], dtype=float)
        low, high = sides[int(chance.choice(len(sides), p=room / room.sum()))]
        length = min(longest, high - low)
        first = int(chance.integers(low, high - length + 1))
        return torch.from_numpy(run.rows(first, first + length))

    # --- maps -----------------------------------------------------------------------------------

    def maps(
        self, signals: Signals, compute: Compute, stride: int = 1
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        return super().maps(signals, _precise(compute), stride)

    def _candidates(self, batch: Tensor) -> Tensor:
        maps: Tensor
        maps, _ = self.network(self._in_mask(batch))
        return maps

    def courses(self, signals: Signals, compute: Compute) -> np.ndarray | None:
        """Courses of the networks over all kept volumes, (T, K), z-scored: those that the maps of
        the run are made with. None of components, which have no names."""
        if not self.networks:
            return None
        device = compute.torch_device
        volumes = torch.from_numpy(signals.rows(0, signals.n_kept))[None].to(device)
        with torch.no_grad():
            _, courses = self.network.to(device).eval()(volumes)
        of_run: np.ndarray = courses[0].cpu().numpy()
        return of_run

    @property
    def course_maps(self) -> np.ndarray | None:
        """The group maps: the prior makes the maps of all windows alike."""
        return self.network.group.cpu().numpy() if self.networks else None

    def effects(self, signals: Signals, compute: Compute) -> tuple[np.ndarray, np.ndarray] | None:
        """Maps over the whole run and the standard deviation of their error, (K, V) each.

        None of components, which have no names.
        """
        if not self.networks:
            return None
        return self.effects_of(signals, 0, signals.n_kept, compute)

    def effects_of(
        self, signals: Signals, start: int, stop: int, compute: Compute
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same of a stretch: volumes `start` to `stop` − 1 of those that were kept.

        Returns
        -------
        maps, sd : ndarray (K, V) of float32
        """
        device = compute.torch_device
        volumes = torch.from_numpy(signals.rows(start, stop))[None].to(device)
        with torch.no_grad():
            maps, sd, _ = self.network.to(device).eval().estimate(volumes)
        # What a run covers it need not cover in every stretch.
        own, of_own = (values[0].cpu().numpy() * signals.covered for values in (maps, sd))
        return own, of_own


def _precise(compute: Compute) -> Compute:
    """In fp32: products over thousands of voxels, and systems of equations."""
    return replace(compute, precision="fp32")


def _prior(runs: Iterable[Signals], group: np.ndarray, n_modes: int = 0) -> tuple[np.ndarray, ...]:
    """Mean and spread of the participants' own maps by dual regression; modes of their volumes.

    What differs between the halves of a run is taken for noise and not for spread (Mejia et al.
    2020, Template independent component analysis, J Am Stat Assoc 115).

    Parameters
    ----------
    runs : iterable of Signals
    group : ndarray (K, V)
        z-scored.
    n_modes : int

    Returns
    -------
    mean, spread : ndarray (K, V) of float32
        Of one participant the mean is the group map at the participant's size, since who has one
        has no mean; the spread that of each network. The more participants, the more of the
        spread is that of the voxel.
    modes : ndarray (M, V) of float32
        If there are to be any, see :class:`_Modes`.
    """
    shape = group.shape
    modes = _Modes(n_modes, shape[1])
    total, square, noise, count = (np.zeros(shape) for _ in range(4))
    by_participant: dict[str, list[Signals]] = {}
    for run in runs:
        by_participant.setdefault(participant_of(run), []).append(run)
    for own_runs in by_participant.values():
        own, own_noise, times = (np.zeros(shape) for _ in range(3))
        for run in own_runs:
            if n_modes:
                modes.add(run)
            covered = run.covered
            volumes, half = np.asarray(run.data)[:, covered], run.n_kept // 2
            whole, first, second = (
                dual_regression(part, group[:, covered])[0]
                for part in (volumes, volumes[:half], volumes[half:])
            )
            own[:, covered] += whole
            own_noise[:, covered] += (first - second) ** 2 / 4
            times[:, covered] += 1
        seen = times > 0
        own[seen] /= times[seen]
        total += own
        square += own**2
        noise[seen] += own_noise[seen] / times[seen] ** 2
        count += seen
    n_participants = len(by_participant)
    seen = count > 0
    count = np.maximum(count, 1)
    mean = total / count
    if n_participants == 1:
        size = (mean * group).sum(axis=1, keepdims=True) / (group**2).sum(axis=1, keepdims=True)
        variance = (mean - size * group) ** 2
        mean = np.where(seen, size * group, 0)
    else:
        variance = (square / count - mean**2) * count / np.maximum(count - 1, 1)
    variance -= noise / count
    of_network = np.array([v[s].mean() for v, s in zip(variance, seen, strict=True)])[:, None]
    of_network = np.maximum(of_network, 1e-4)
    share = (n_participants - 1) / (n_participants - 1 + _PARTICIPANTS_FOR_A_VOXEL)
    variance = share * variance + (1 - share) * of_network
    spread = np.sqrt(np.maximum(variance, _LEAST_SPREAD**2 * of_network))
    found = mean.astype(np.float32), spread.astype(np.float32)
    return (*found, modes.found()) if n_modes else found


class _Modes:
    """Leading modes of the volumes of runs, of which one at a time is in memory.

    A run counts as any other, however long it is.
    """

    def __init__(self, n: int, n_voxels: int) -> None:
        self._n = n
        self._modes = np.zeros((0, n_voxels), dtype=np.float32)
        self._seen = np.zeros(n_voxels)

    def add(self, run: Signals) -> None:
        volumes = np.asarray(run.data, dtype=np.float32)
        volumes = (volumes - volumes.mean(axis=0)) / math.sqrt(len(volumes))
        both = np.concatenate([self._modes, volumes])
        _, vectors = np.linalg.eigh((both @ both.T).astype(float))
        self._modes = vectors[:, -self._n :].T.astype(np.float32) @ both
        self._seen += run.covered

    def found(self) -> np.ndarray:
        """(M, V), by which a voxel has the variance that it has in the runs that cover it."""
        return self._modes / np.sqrt(np.maximum(self._seen, 1)).astype(np.float32)
