"""A method on a run, all in one: fitted, applied, held against its nulls, and timed."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from bids_fbn import evidence, models
from bids_fbn.config import Config
from bids_fbn.models.base import Model
from bids_fbn.models.compute import Compute
from bids_fbn.networks.dynamics import RunNetworks, network_courses
from bids_fbn.networks.states import assign_states
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.signal.signals import Signals
from bids_fbn.signal.windows import Steps
from bids_fbn.stages import support_rule

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
) -> evidence.Method:
    """A method fitted to a run, with all that it takes to hold it against nulls.

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

    def create() -> Model:
        return models.create(name, config.models, signals.grid, templates)

    seed = config.compute.random_seed
    model = create().fit([signals], compute, seed)
    return evidence.Method(
        model=model,
        create=create,
        refit=model.fits_anew or config.nulls.refit_surrogates,
        compute=compute,
        templates=templates,
        rule=support_rule(config, model),
        state_threshold=config.networks.state_threshold,
        stride=config.models.stride,
        budget=config.nulls.budget,
        seed=seed,
    )


def assess(
    name: str,
    signals: Signals,
    templates: TemplateSet,
    config: Config,
    compute: Compute,
    *,
    refit_halves: bool = True,
) -> Assessment:
    """Apply a method to a run, as the app does.

    Parameters
    ----------
    name, signals, templates, config, compute
        See :func:`fitted`.
    refit_halves : bool
        Train on each half by itself, so that nothing of the other is in its maps. The app does so
        with models that are fitted quickly only.

    Raises
    ------
    RunError
        If the run is too short for the model.
    """

    nulls = config.nulls
    start = time.perf_counter()
    method = fitted(name, signals, templates, config, compute)
    model = method.model
    networks, steps = method.networks(model, signals)
    seconds = time.perf_counter() - start
    courses = model.courses(signals, compute)
    if courses is None or len(model.networks) < len(templates.networks):
        courses = network_courses(networks.maps, np.asarray(signals.data), signals.covered)
    rows = evidence.search_evidence(method, signals, nulls.n_surrogates, nulls.n_surrogate_maps)
    halves_by = replace(method, refit=True) if refit_halves else method
    half = evidence.half_evidence(halves_by, signals)
    if half is not None:
        rows += half.rows(templates.networks)
    rows += evidence.dynamic_evidence(
        method, signals, networks, nulls.n_surrogates, nulls.surrogates
    )
    return Assessment(
        model,
        networks,
        steps,
        courses,
        assign_states(networks.iou, config.networks.state_threshold),
        pd.DataFrame(rows, columns=list(evidence.COLUMNS)),
        seconds,
    )
