"""A model as it is used on a run and its surrogates: with templates, rules and budget."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd

from bids_fbn.networks.arrays import Array, as_numpy
from bids_fbn.networks.budget import POOL_LIMIT, collect_pool, rank_maps
from bids_fbn.networks.dynamics import RunNetworks, find_networks, network_courses
from bids_fbn.networks.maps import SupportRule, zscore_maps
from bids_fbn.networks.states import StateRule

if TYPE_CHECKING:
    from bids_fbn.config import Config, SurrogateMaps
    from bids_fbn.models.base import Model
    from bids_fbn.models.compute import Compute
    from bids_fbn.networks.templates import TemplateSet
    from bids_fbn.signal.signals import Signals
    from bids_fbn.signal.windows import Steps

__all__ = ["Method", "state_rule", "support_rule"]


def state_rule(config: Config) -> StateRule:
    """When a step has a state, as the configuration says."""
    options = config.networks
    return StateRule(options.state_threshold, options.state_certainty)


def support_rule(config: Config, model: Model) -> SupportRule:
    """Which voxels of a candidate count, by what was asked and what the model's recipe says.

    The positive side alone counts of a model that knows its networks, hence which way up they are,
    and by the published rule.
    """
    published = model.fixed_threshold
    either_sign = published is None and not model.networks
    if config.networks.support not in (None, "size-matched"):
        return SupportRule(float(config.networks.support), either_sign=either_sign)
    if config.networks.support is None and published is not None:
        return SupportRule(published, standardize=False, either_sign=False)
    return SupportRule(either_sign=either_sign)


@dataclass(frozen=True, eq=False)
class Method:
    """A model on a run, and how to do again, on other signals, all that was done.

    Parameters
    ----------
    model : Model
        As it was applied to the run.
    create : callable
        Gives the same model, not yet fitted.
    refit : bool
        Whether other signals get a model of their own; else this one is applied to them.
    compute : Compute
    templates : TemplateSet
    rule : SupportRule
    state_rule : StateRule
    stride : int
    budget : int
        Maps in an equal budget.
    seed : int
    surrogate_maps : {"turned", "fields"}
        What a search is held against, see :func:`~bids_fbn.evidence.search.search_evidence`.
    tests_change : bool
        Whether surrogates as they are used here say anything of change over time.
    """

    model: Model
    create: Callable[[], Model]
    refit: bool
    compute: Compute
    templates: TemplateSet
    rule: SupportRule
    state_rule: StateRule
    stride: int
    budget: int
    seed: int
    surrogate_maps: SurrogateMaps = "turned"
    tests_change: bool = True

    @classmethod
    def of(
        cls,
        model: Model,
        config: Config,
        templates: TemplateSet,
        compute: Compute,
        *,
        refit: bool = False,
        names: Path | None = None,
    ) -> Self:
        """A fitted model, used as the configuration says; with names for what it has learned.

        Parameters
        ----------
        model : Model
        config : Config
            The sections models, networks, nulls, and the seed.
        templates : TemplateSet
        compute : Compute
        refit : bool
            Whether other signals get a model of their own even if that takes long. Models that
            are fitted quickly are, unless their weights are from elsewhere: those are part of
            the method.
        names : Path, optional
            Folder that keeps the names, for other runs with the same weights.
        """
        from bids_fbn import models

        model = model.named(templates, names)
        anew = model.fits_anew or config.nulls.refit_surrogates
        return cls(
            model=model,
            create=lambda: models.create(model.name, config.models, model.grid, templates),
            refit=refit or (anew and not config.models.weighted(model.name)),
            compute=compute,
            templates=templates,
            rule=support_rule(config, model),
            state_rule=state_rule(config),
            stride=config.models.stride,
            budget=config.nulls.budget,
            seed=config.compute.random_seed,
            surrogate_maps=config.nulls.surrogate_maps,
            tests_change=refit or config.tests_change(model.name),
        )

    def seed_of(self, signals: Signals) -> int:
        """Of the surrogates of a run, which differ from those of other runs.

        With the same few turns, or the same noise, in all participants the chance in them would
        be the same in all as well, and add up in a group.
        """
        source = np.random.SeedSequence([self.seed, zlib.crc32(signals.name.encode())])
        return int(source.generate_state(1)[0])

    def on(self, signals: Signals) -> Model:
        """The model for other signals."""
        if not self.refit:
            return self.model
        return self.create().fit([signals], self.compute, self.seed)

    def networks(
        self, model: Model, signals: Signals, dynamic: np.ndarray | None = None
    ) -> tuple[RunNetworks, Steps]:
        """Networks of the signals; `dynamic` as of :func:`find_networks`."""
        steps = model.steps(signals, self.stride)
        found = find_networks(
            model.maps(signals, self.compute, self.stride),
            steps,
            self.templates,
            signals.covered,
            self.rule,
            self.state_rule.threshold,
            dynamic,
        )
        if (measured := model.amplitudes(signals, self.stride)) is not None:
            amplitude, sd = measured
            found = replace(
                found,
                amplitude=self.by_template(amplitude),
                amplitude_sd=self.by_template(sd[None])[0],
            )
        return found, steps

    def courses(self, networks: RunNetworks, signals: Signals) -> np.ndarray:
        """Course of each of P networks, (T_kept, P).

        By the model itself where it has a temporal part, NaN for networks that it has not learned;
        else by :func:`~bids_fbn.networks.dynamics.network_courses`.
        """
        own = self.model.courses(signals, self.compute)
        if own is None:
            data = np.asarray(signals.data)
            return network_courses(networks.maps, data, signals.covered, networks.weak)
        return self.by_template(own)

    def by_template(self, values: np.ndarray) -> np.ndarray:
        """Columns (N, K) of the model's networks as those of the templates, (N, P); NaN for
        networks that it has not learned."""
        of_model = pd.DataFrame(values, columns=list(self.model.networks))
        return of_model.reindex(columns=list(self.templates.networks)).to_numpy()

    def budget_maps(self, model: Model, signals: Signals) -> np.ndarray:
        """The maps that are held against templates, (N, covered), in the rule's units.

        Those on which the model spends its budget; of a model that knows its networks, the mean
        map of each over time: there is nothing to choose.
        """
        stride = self.stride * max(1, self._n_candidates(model, signals) // POOL_LIMIT)
        steps, covered = model.steps(signals, stride), signals.covered
        candidates = model.maps(signals, self.compute, stride)
        if model.networks:
            maps = _mean_maps(candidates, covered, model.n_candidates)
        else:
            everything = slice(0, signals.n_kept)
            pool = collect_pool(candidates, steps.start, steps.window, everything, covered)
            volumes = np.asarray(signals.data)[:, covered]
            maps = pool[rank_maps(pool, volumes, self.budget)[0]]
        return zscore_maps(maps) if self.rule.standardize else maps

    def _n_candidates(self, model: Model, signals: Signals) -> int:
        return int(model.steps(signals, self.stride).valid.sum()) * model.n_candidates


def _mean_maps(
    candidates: Iterable[tuple[np.ndarray, Array]], covered: np.ndarray, n_maps: int
) -> np.ndarray:
    """Mean over steps of each candidate, (n_maps, covered); no map where there is no step."""
    total = np.zeros((n_maps, int(covered.sum())), dtype=np.float32)
    count = 0
    for steps, maps in candidates:
        total += as_numpy(maps).sum(axis=0)[:, covered]
        count += len(steps)
    return total / count if count else total[:0]
