"""A method on a run, all in one: fitted, applied, held against its nulls, and timed."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bids_fbn import models
from bids_fbn.config import Config
from bids_fbn.evidence import Method, weigh
from bids_fbn.models.base import Model
from bids_fbn.models.compute import Compute
from bids_fbn.networks.dynamics import RunNetworks
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.signal.signals import Signals
from bids_fbn.signal.windows import Steps

__all__ = ["Assessment", "assess", "fitted"]


@dataclass(frozen=True, eq=False)
class Assessment:
    """What a method found in a run; P networks, S steps.

    Parameters
    ----------
    model : Model
        Fitted.
    networks : RunNetworks
    steps : Steps
    courses : ndarray (T_kept, P)
    states : ndarray (S,) of int
    evidence : DataFrame
        Rows as of :mod:`bids_fbn.evidence`.
    seconds : float
        To fit the model and find the networks; nulls are not counted.
    """

    model: Model
    networks: RunNetworks
    steps: Steps
    courses: np.ndarray
    states: np.ndarray
    evidence: pd.DataFrame
    seconds: float


def fitted(
    name: str, signals: Signals, templates: TemplateSet, config: Config, compute: Compute
) -> Method:
    """A method fitted to a run, with all that it takes to hold it against nulls.

    With weights of that model in the configuration, these are used and nothing is fitted.

    Parameters
    ----------
    name : str
        Of the model.
    signals : Signals
    templates : TemplateSet
    config : Config
        The sections models, networks, nulls, and the seed.
    compute : Compute

    Raises
    ------
    RunError
        If the run is too short for the model.
    """
    weights = config.models.weights_of(name)
    if weights is not None:
        model = models.load(weights, signals.grid, config.models.candidates)
    else:
        model = models.create(name, config.models, signals.grid, templates)
        model.fit([signals], compute, config.compute.random_seed)
    return Method.of(model, config, templates, compute)


def assess(
    name: str,
    signals: Signals,
    templates: TemplateSet,
    config: Config,
    compute: Compute,
    *,
    refit_halves: bool = True,
    events: pd.DataFrame | None = None,
) -> Assessment:
    """Apply a method to a run, as the app does.

    Parameters
    ----------
    name, signals, templates, config, compute
        See :func:`fitted`.
    refit_halves : bool
        Train on each half by itself, so that nothing of the other is in its maps. The app does so
        with models that are fitted quickly only. Weights that were given are of other runs, and
        are kept.
    events : DataFrame, optional
        From :func:`~bids_fbn.nulls.task.read_events`.

    Raises
    ------
    RunError
        If the run is too short for the model.
    """
    start = time.perf_counter()
    method = fitted(name, signals, templates, config, compute)
    networks, steps = method.networks(method.model, signals)
    seconds = time.perf_counter() - start
    courses = method.courses(networks, signals)
    found = weigh(
        method,
        signals,
        networks,
        courses,
        config.nulls,
        events=events,
        refit_halves=refit_halves and not config.models.weighted(name),
    )
    return Assessment(
        method.model,
        networks,
        steps,
        courses,
        networks.states(method.state_rule),
        found,
        seconds,
    )
