"""A study as tables: what participants of two groups and several sites would have as metrics.

Each participant has a Markov chain of states, and the metrics of its states are those that the
participant level writes. What differs between the groups, and what the sites change, is known.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from bids_fbn.networks.states import StateSummary, summarize_states
from bids_fbn.networks.templates import SMITH_NETWORKS as NETWORKS
from bids_fbn.simulation.cohort import GROUPS, GroupEffect

__all__ = ["NETWORKS", "STUDY_EFFECT", "SimulatedStudy", "simulate_features"]

# Default mode lasts twice as long; half of the time, frontoparietal (right) follows executive.
STUDY_EFFECT = GroupEffect(
    dwell_network=3, dwell_factor=2.0, transition=(7, 8), transition_share=0.45
)

_DWELL_VARIATION = 0.15  # of a participant's own dwell of a network, standard deviation of its log
_FOLLOWER_CONCENTRATION = 60.0  # of the Dirichlet distribution of what follows a state
_IOU_MEAN = (0.20, 0.35)  # of the least and the most visible network
_IOU_SPREAD = 0.03  # between participants
_IOU_SHARED = 0.5  # correlation of two networks' IoU over participants
_IOU_PER_YEAR = -0.0005
_IOU_PER_MM = -0.1  # of framewise displacement
_SITE_SPREAD_FACTOR = 1.6  # of the IoU, between a site and the nominal one, either way
_SITE_FD_FACTOR = 1.2
_SITE_SHIFT_VARIATION = 0.3  # between networks, in standard deviations of the IoU
_FD_MEDIAN, _FD_LOG_SPREAD = 0.15, 0.35  # mm


class SimulatedStudy(NamedTuple):
    """Tables of a study, and the truth about them.

    Features are named (measure, network), as the columns of `values` are.

    Parameters
    ----------
    values : DataFrame (n, F)
        Index participant_id; NaN where a participant was never in a state.
    people : DataFrame (n, 5)
        group, site, age (years), sex, fd_mean (mm).
    known : frozenset of (str, str)
        The group differences that were put in: one dwell, one transition.
    changed : frozenset of (str, str)
        All features that differ between the groups, the consequences included, such as the
        occupancy of every network where one lasts longer.
    site_changed : frozenset of (str, str)
        Features that the sites change.
    """

    values: pd.DataFrame
    people: pd.DataFrame
    known: frozenset[tuple[str, str]]
    changed: frozenset[tuple[str, str]]
    site_changed: frozenset[tuple[str, str]]


def simulate_features(
    n_per_group: int = 20,
    n_sites: int = 3,
    n_steps: int = 300,
    step_seconds: float = 2.0,
    dwell: float = 8.0,
    effect: GroupEffect | None = STUDY_EFFECT,
    site_effect: float = 1.0,
    seed: int = 0,
) -> SimulatedStudy:
    """Metrics of ten networks for two groups of participants.

    Groups are the same in age, sex and motion, and are spread evenly over the sites.

    Parameters
    ----------
    n_per_group : int
    n_sites : int
    n_steps : int
        Steps of each participant's chain.
    step_seconds : float
        s.
    dwell : float
        Mean dwell of every network in controls, s.
    effect : GroupEffect, optional
        What is different in patients; None: nothing.
    site_effect : float
        Shift of the mean IoU of the outermost sites, in standard deviations; the factors of its
        spread and of motion grow with it. 0: sites are alike.
    seed : int
    """
    rng = np.random.default_rng(seed)
    n = len(GROUPS) * n_per_group
    group_of, site_of = np.arange(n) % len(GROUPS), np.arange(n) // len(GROUPS) % n_sites
    levels = np.linspace(-1, 1, n_sites) if n_sites > 1 else np.zeros(1)
    levels *= site_effect
    fd_level, shift_level, spread_level = (rng.permutation(levels) for _ in range(3))

    fd_mean = _FD_MEDIAN * np.exp(rng.normal(0, _FD_LOG_SPREAD, n))
    people = pd.DataFrame(
        {
            "group": [GROUPS[group] for group in group_of],
            "site": [f"site{site + 1}" for site in site_of],
            "age": rng.uniform(20, 70, n).round(1),
            "sex": rng.choice(["F", "M"], n),
            "fd_mean": fd_mean * _SITE_FD_FACTOR ** fd_level[site_of],
        },
        index=pd.Index([f"sub-{number + 1:04d}" for number in range(n)], name="participant_id"),
    )
    iou = _iou(
        rng, people, shift_level, _SITE_SPREAD_FACTOR**spread_level, site_of, abs(site_effect)
    )

    stay = 1 - step_seconds / dwell
    is_patient = group_of == GROUPS.index("patient")
    chains = np.stack(
        [_own_chain(rng, stay, effect if patient else None) for patient in is_patient]
    )
    states = _walk(rng, chains, n_steps)
    valid = np.ones(n_steps, dtype=bool)
    rows = [
        _features(summarize_states(own, valid, len(NETWORKS), step_seconds), own_iou)
        for own, own_iou in zip(states, iou, strict=True)
    ]
    values = pd.DataFrame(rows, index=people.index)
    values.columns = pd.MultiIndex.from_tuples(values.columns, names=["measure", "network"])
    known = set()
    if effect is not None:
        known = {
            ("dwell_mean", NETWORKS[effect.dwell_network]),
            ("transition_probability", _arrow(*effect.transition)),
        }
    return SimulatedStudy(
        values,
        people,
        frozenset(known),
        _changed(stay, effect),
        frozenset(("iou_mean", name) for name in NETWORKS if site_effect and n_sites > 1),
    )


def _arrow(before: int, after: int) -> str:
    return f"{NETWORKS[before]} > {NETWORKS[after]}"


def _iou(
    rng: np.random.Generator,
    people: pd.DataFrame,
    shifts: np.ndarray,
    factors: np.ndarray,
    site_of: np.ndarray,
    site_effect: float,
) -> np.ndarray:
    """Mean IoU of each participant and network, (n, P)."""
    n, n_networks = len(people), len(NETWORKS)
    shared, own = rng.standard_normal((n, 1)), rng.standard_normal((n, n_networks))
    noise = np.sqrt(_IOU_SHARED) * shared + np.sqrt(1 - _IOU_SHARED) * own
    shift = shifts[:, None] + _SITE_SHIFT_VARIATION * site_effect * rng.standard_normal(
        (len(shifts), n_networks)
    )
    covariates = _IOU_PER_YEAR * (people["age"] - 45) + _IOU_PER_MM * (
        people["fd_mean"] - _FD_MEDIAN
    )
    return (
        np.linspace(*_IOU_MEAN, n_networks)
        + covariates.to_numpy()[:, None]
        + _IOU_SPREAD * (shift[site_of] + factors[site_of, None] * noise)
    )


def _chain(stay: np.ndarray, followers: np.ndarray, effect: GroupEffect | None) -> np.ndarray:
    """Transition matrix (P, P) from the probability of staying (P,) and what follows (P, P)."""
    stay, followers = stay.copy(), followers.copy()
    if effect is not None:
        # Dwell is geometric: its mean is 1 / (1 − stay) steps.
        at = effect.dwell_network
        stay[at] = 1 - (1 - stay[at]) / effect.dwell_factor
        before, after = effect.transition
        followers[before] *= 1 - effect.transition_share
        followers[before, after] += effect.transition_share
    return np.diag(stay) + (1 - stay)[:, None] * followers


def _own_chain(rng: np.random.Generator, stay: float, effect: GroupEffect | None) -> np.ndarray:
    """A participant's own chain."""
    n = len(NETWORKS)
    leaving = (1 - stay) * np.exp(rng.normal(0, _DWELL_VARIATION, n))
    followers = np.zeros((n, n))
    alike = np.full(n - 1, _FOLLOWER_CONCENTRATION / (n - 1))
    followers[~np.eye(n, dtype=bool)] = rng.dirichlet(alike, n).ravel()
    return _chain(1 - np.minimum(leaving, 1), followers, effect)


def _walk(rng: np.random.Generator, chains: np.ndarray, n_steps: int) -> np.ndarray:
    """States (n, steps) of all participants' chains (n, P, P), from any state on."""
    everyone = np.arange(len(chains))
    cumulative = chains.cumsum(axis=2)
    states = np.empty((len(chains), n_steps), dtype=int)
    states[:, 0] = rng.integers(chains.shape[1], size=len(chains))
    for step in range(1, n_steps):
        drawn = rng.random((len(chains), 1))
        # The last sum may lie below 1 by rounding.
        states[:, step] = (drawn > cumulative[everyone, states[:, step - 1], :-1]).sum(axis=1)
    return states


def _features(summary: StateSummary, iou: np.ndarray) -> dict[tuple[str, str], float]:
    per_network = {
        "iou_mean": iou,
        "fractional_occupancy": summary.occupancy,
        "dwell_mean": summary.dwell_mean,
    }
    features = {
        (measure, name): float(value)
        for measure, values in per_network.items()
        for name, value in zip(NETWORKS, values, strict=True)
    }
    for measure in ("switching_rate", "occupancy_entropy", "transition_entropy"):
        features[measure, "all"] = float(getattr(summary, measure))
    departed = summary.counts.sum(axis=1) > 0
    for before in range(len(NETWORKS)):
        for after in range(len(NETWORKS)):
            probability = summary.probabilities[before, after] if departed[before] else np.nan
            features["transition_probability", _arrow(before, after)] = float(probability)
    return features


def _changed(stay: float, effect: GroupEffect | None) -> frozenset[tuple[str, str]]:
    """Features whose expectation the effect changes, from the chains of the two groups."""
    n = len(NETWORKS)
    followers = (1 - np.eye(n)) / (n - 1)
    control, patient = (_chain(np.full(n, stay), followers, given) for given in (None, effect))
    expected = [_expected(chain) for chain in (control, patient)]
    return frozenset(
        name for name in expected[0] if not np.isclose(expected[0][name], expected[1][name])
    )


def _expected(chain: np.ndarray) -> dict[tuple[str, str], float]:
    """Features of an endless sequence; dwell in steps."""
    n = len(chain)
    values, vectors = np.linalg.eig(chain.T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    stationary = stationary / stationary.sum()
    leaving = 1 - np.diag(chain)
    summary = StateSummary(
        occupancy=stationary,
        visits=np.ones(n),
        dwell_mean=1 / leaving,
        dwell_median=1 / leaving,
        without_state=0.0,
        switching_rate=float(stationary @ leaving),
        occupancy_entropy=float(-(stationary @ np.log2(stationary))),
        transition_entropy=float(-(stationary @ (chain * np.log2(chain)).sum(axis=1))),
        counts=chain * stationary[:, None],
        probabilities=chain,
    )
    return _features(summary, np.zeros(n))
