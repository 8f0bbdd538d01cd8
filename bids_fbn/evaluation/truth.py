"""Results against the truth of a simulation: maps, courses, states, dynamics.

===========================  ==================================================================
:func:`read_truth`           what :mod:`bids_fbn.simulate` wrote in ``truth/``, on the grid
:func:`match_maps`           which found map is which true network, and how alike they are
:func:`r_by_name`            the same where found networks carry names
:func:`course_recovery`      are their courses right?
:func:`states_at_steps`      the true state of a window
:func:`in_true_labels`       found states under the numbers of the true ones
:func:`state_agreement`      are the states of the steps right?
:func:`dynamics_error`       are occupancy and dwell right?
:func:`false_positive_rate`  how often are dynamics seen where there are none?
===========================  ==================================================================

P true networks, Q found ones, T volumes, S steps, V voxels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import adjusted_rand_score

from bids_fbn.errors import InputError
from bids_fbn.networks.maps import zscore_maps
from bids_fbn.networks.overlap import assign_one_to_one
from bids_fbn.networks.states import NO_STATE, summarize_states
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.standard import load_image, resample_to_grid
from bids_fbn.signal.windows import Steps

__all__ = [
    "DynamicsError",
    "MapMatch",
    "Rate",
    "StateAgreement",
    "Truth",
    "course_recovery",
    "dynamics_error",
    "false_positive_rate",
    "in_true_labels",
    "match_maps",
    "r_by_name",
    "read_truth",
    "state_agreement",
    "states_at_steps",
]


@dataclass(frozen=True, eq=False)
class Truth:
    """The truth about one simulated run.

    Parameters
    ----------
    networks : tuple of str
        P names.
    maps : ndarray (P, V) of float32
        In the mask of the analysis grid, peak 1 in the simulated volumes.
    courses : ndarray (T, P)
        BOLD course of each network; all 0 where there are no networks.
    neural_states, bold_states : ndarray (T,) of int
        Index of the network that is on at the onset of a volume, and of the one that is strongest
        in its BOLD signal; ``NO_STATE`` where there is none, as everywhere in static data.
    repetition_time : float
        In s.
    has_networks : bool
        False for noise only.
    is_static : bool
        True for data without states.
    """

    networks: tuple[str, ...]
    maps: np.ndarray
    courses: np.ndarray
    neural_states: np.ndarray
    bold_states: np.ndarray
    repetition_time: float
    has_networks: bool
    is_static: bool


@dataclass(frozen=True, eq=False)
class MapMatch:
    """Found maps, each given to one true network at most; arrays (P,).

    Parameters
    ----------
    found : ndarray of int
        Index of the found map; −1 where there are fewer of them than networks.
    r : ndarray
        Pearson correlation over voxels, regardless of sign; 0 for a network without a map.
    sign : ndarray of int
        −1 where the found map is the other way up.
    """

    found: np.ndarray
    r: np.ndarray
    sign: np.ndarray

    def true_of_found(self, n_found: int) -> np.ndarray:
        """True network of each of Q found maps, −1 for those given to none, (Q,)."""
        true = np.full(n_found, -1)
        matched = self.found >= 0
        true[self.found[matched]] = np.flatnonzero(matched)
        return true


@dataclass(frozen=True)
class StateAgreement:
    """Found states against true ones.

    Parameters
    ----------
    accuracy : float
        Share of the steps whose state is right; chance is that of guessing the commonest.
    adjusted_rand : float
        Adjusted Rand index (Hubert & Arabie 1985, J Classif 2:193): 1 for the same partition
        of the steps whatever its labels, 0 on average by chance.
    n_steps : int
        Steps that count. With none of them both figures are NaN.
    """

    accuracy: float
    adjusted_rand: float
    n_steps: int


@dataclass(frozen=True)
class DynamicsError:
    """Errors of summaries of a sequence of states.

    Parameters
    ----------
    occupancy : float
        Mean absolute error over the P networks; NaN where either sequence has no state.
    dwell : float
        Mean absolute error of the mean dwell, s, over networks visited in both sequences; NaN
        without any.
    dwell_bias : float
        Its mean signed error, found − true, s.
    n_missed : int
        Networks that are visited in truth and never found.
    """

    occupancy: float
    dwell: float
    dwell_bias: float
    n_missed: int


@dataclass(frozen=True)
class Rate:
    """A share of n runs with its confidence interval."""

    share: float
    low: float
    high: float
    n: int


def read_truth(dataset: Path, prefix: str, grid: Grid) -> Truth:
    """Read the truth about a run.

    Maps are interpolated linearly where the grid is not that of the simulation. They are not
    smoothed as the signals were before a model saw them, so that r stays below 1 for even the
    best of methods.

    Parameters
    ----------
    dataset : Path
        From :func:`bids_fbn.simulate.simulate_dataset`.
    prefix : str
        Name of the run up to its last entity, as in ``sub-01_task-rest``.
    grid : Grid
        The analysis grid.

    Raises
    ------
    InputError
        If a file of the truth is missing or cannot be read.
    """
    folder = Path(dataset) / "truth"
    try:
        description = json.loads((folder / "simulation.json").read_text())
        settings = description["Settings"]
        names = tuple(description["Networks"])
        components = load_image(folder / f"{prefix}_desc-truth_components.nii.gz")
        courses = _read_table(folder / f"{prefix}_desc-truth_mixing.tsv", names)
        states = _read_table(
            folder / f"{prefix}_desc-truth_states.tsv", ("neural_state", "bold_state")
        )
        index = {name: number for number, name in enumerate(names)}
        index |= {"none": NO_STATE, "n/a": NO_STATE}
        return Truth(
            networks=names,
            maps=resample_to_grid(components, grid).astype(np.float32),
            courses=courses.to_numpy(dtype=float),
            neural_states=np.array([index[name] for name in states["neural_state"]]),
            bold_states=np.array([index[name] for name in states["bold_state"]]),
            repetition_time=float(settings["repetition_time"]),
            # Datasets from before there were such settings have networks with states.
            has_networks=bool(settings.get("networks", True)),
            is_static=settings.get("dynamics", "states") == "static",
        )
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: the truth about {prefix} cannot be read "
            f"({error.strerror or error}); name a dataset of bids_fbn.simulate and a run of it"
        ) from None
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{folder}: is not the truth that bids_fbn.simulate writes about {prefix} ({error})"
        ) from None


def _read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    # "n/a" is a word here: the state of static data.
    return pd.read_csv(path, sep="\t", keep_default_na=False)[list(columns)]


def _correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson correlation of rows (P, N) with rows (Q, N), (P, Q); 0 for constant rows."""
    z = [zscore_maps(np.asarray(rows, dtype=np.float64)) for rows in (first, second)]
    return z[0] @ z[1].T / first.shape[1]


def match_maps(true_maps: np.ndarray, found_maps: np.ndarray) -> MapMatch:
    """Give each true network one found map, so that the sum of |r| is the highest possible.

    Parameters
    ----------
    true_maps : ndarray (P, V)
    found_maps : ndarray (Q, V)
        Of the voxels that the run covers, in any unit, either way up.
    """
    r = _correlations(true_maps, found_maps)
    found = assign_one_to_one(np.abs(r).T)
    matched = np.array([r[number, at] if at >= 0 else 0.0 for number, at in enumerate(found)])
    return MapMatch(found, np.abs(matched), np.where(matched < 0, -1, 1))


def r_by_name(
    true_maps: np.ndarray,
    true_networks: Sequence[str],
    found_maps: np.ndarray,
    found_networks: Sequence[str],
) -> np.ndarray:
    """Correlation over voxels of each network with the found network of its name.

    Parameters
    ----------
    true_maps : ndarray (P, V)
    true_networks : sequence of P str
    found_maps : ndarray (Q, V)
        The right way up: the sign counts.
    found_networks : sequence of Q str

    Returns
    -------
    ndarray (P,)
        0 for a network whose name was not found.
    """
    r = _correlations(true_maps, found_maps)
    found = list(found_networks)
    return np.array(
        [
            r[number, found.index(name)] if name in found else 0.0
            for number, name in enumerate(true_networks)
        ]
    )


def course_recovery(
    true_courses: np.ndarray, found_courses: np.ndarray, match: MapMatch, kept: np.ndarray
) -> np.ndarray:
    """Correlation over the kept volumes of each true course with that of the matched network.

    Parameters
    ----------
    true_courses : ndarray (T, P)
        Of the whole run.
    found_courses : ndarray (T', Q)
        Of the kept volumes.
    match : MapMatch
        Says which is which, and which way up.
    kept : ndarray (T',) of int
        Kept volumes, see :class:`~bids_fbn.signal.signals.Signals`.

    Returns
    -------
    ndarray (P,)
        0 for a network without a map, NaN for one without a course (noise only).
    """
    true = true_courses[kept].T
    r = _correlations(true, found_courses.T)
    recovered = np.array(
        [
            sign * r[number, column] if column >= 0 else 0.0
            for number, (column, sign) in enumerate(zip(match.found, match.sign, strict=True))
        ]
    )
    return np.where(np.ptp(true, axis=1) > 0, recovered, np.nan)


def states_at_steps(
    states: np.ndarray,
    steps: Steps,
    kept: np.ndarray,
    how: Literal["centre", "majority"] = "centre",
) -> np.ndarray:
    """True state of each step.

    By default the state of the volume at the window's centre: the tables give that moment as the
    step's onset, and a method whose windows are too long for the states has to pay for it.
    "majority" asks less: whether the window is named after what fills most of it.

    Parameters
    ----------
    states : ndarray (T,) of int
        Of every volume of the run, for example :attr:`Truth.bold_states`.
    steps : Steps
        See :func:`~bids_fbn.signal.windows.lay_windows`.
    kept : ndarray (T',) of int
        Kept volumes.
    how : {"centre", "majority"}
        "majority": the commonest among the window's (kept) volumes, no state being one of them;
        where two are equally common, that of the centre if it is one of the two.

    Returns
    -------
    ndarray (S,) of int
        ``NO_STATE`` where there is none, or no window.
    """
    found = np.full(len(steps), NO_STATE)
    for step in np.flatnonzero(steps.valid):
        first = steps.start[step]
        inside = states[kept[first : first + steps.window]]
        found[step] = inside[steps.window // 2]
        if how == "majority":
            labels, counts = np.unique(inside, return_counts=True)
            commonest = labels[counts == counts.max()]
            if found[step] not in commonest:
                found[step] = commonest[0]
    return found


def in_true_labels(found_states: np.ndarray, true_of_found: np.ndarray, n_true: int) -> np.ndarray:
    """Found states under the numbers of the true networks.

    Parameters
    ----------
    found_states : ndarray (S,) of int
        0 to Q − 1, or ``NO_STATE``.
    true_of_found : ndarray (Q,) of int
        True network of each found one, by name or :meth:`MapMatch.true_of_found`; −1 for none.
    n_true : int
        P.

    Returns
    -------
    ndarray (S,) of int
        0 to P − 1; P + q for a found network q that is no true one.

    Examples
    --------
    >>> in_true_labels(np.array([0, 1, 2, -1]), np.array([1, -1, 0]), n_true=2)
    array([ 1,  3,  0, -1])
    """
    own = n_true + np.arange(len(true_of_found))
    labels = np.where(true_of_found >= 0, true_of_found, own)
    return np.append(labels, NO_STATE)[found_states]


def state_agreement(
    true_states: np.ndarray, found_states: np.ndarray, valid: np.ndarray | None = None
) -> StateAgreement:
    """Compare the states of the steps that truly have one.

    No state is a label of its own in the found sequence, and wrong.

    Parameters
    ----------
    true_states : ndarray (S,) of int
        See :func:`states_at_steps`.
    found_states : ndarray (S,) of int
        See :func:`in_true_labels`.
    valid : ndarray (S,) of bool, optional
        Steps that have a window; the others do not count.
    """
    counts = true_states != NO_STATE
    if valid is not None:
        counts = counts & valid
    if not counts.any():
        return StateAgreement(np.nan, np.nan, 0)
    true, found = true_states[counts], found_states[counts]
    return StateAgreement(
        float(np.mean(true == found)), float(adjusted_rand_score(true, found)), int(counts.sum())
    )


def dynamics_error(
    true_states: np.ndarray,
    found_states: np.ndarray,
    n_true: int,
    true_seconds: float,
    found_seconds: float,
) -> DynamicsError:
    """Compare occupancy and dwell, as :func:`~bids_fbn.networks.states.summarize_states` has them.

    Parameters
    ----------
    true_states : ndarray (T,) of int
        Of every volume of the run: what a method without windows and without left-out volumes
        would see. A window that swallows short visits is an error of the method.
    found_states : ndarray (S,) of int
        See :func:`in_true_labels`.
    n_true : int
        P.
    true_seconds, found_seconds : float
        From one volume, and one step, to the next.
    """
    n_labels = max(n_true, int(found_states.max(initial=NO_STATE)) + 1)
    true = summarize_states(true_states, true_states != NO_STATE, n_true, true_seconds)
    found = summarize_states(found_states, found_states != NO_STATE, n_labels, found_seconds)
    visited = true.visits > 0
    both = visited & (found.visits[:n_true] > 0)
    some = visited.any() and found.visits.any()
    error = (found.dwell_mean[:n_true] - true.dwell_mean)[both]
    return DynamicsError(
        occupancy=float(np.abs(found.occupancy[:n_true] - true.occupancy).mean())
        if some
        else np.nan,
        dwell=float(np.abs(error).mean()) if both.any() else np.nan,
        dwell_bias=float(error.mean()) if both.any() else np.nan,
        n_missed=int((visited & ~both).sum()),
    )


def false_positive_rate(
    p_values: np.ndarray, alpha: float = 0.05, confidence: float = 0.95
) -> Rate:
    """Share of runs without an effect whose p is below alpha.

    Of the p of a dynamic metric on static data: how often a method sees dynamics where there are
    none. The interval is that of Clopper & Pearson 1934, Biometrika 26:404.

    Parameters
    ----------
    p_values : ndarray (n,)
        One for each run; NaN where a run has none, which does not count.
    alpha : float
    confidence : float
        Of the interval.
    """
    known = np.asarray(p_values, dtype=float)
    known = known[~np.isnan(known)]
    if known.size == 0:
        return Rate(np.nan, np.nan, np.nan, 0)
    below = int((known < alpha).sum())
    interval = binomtest(below, known.size).proportion_ci(confidence, method="exact")
    return Rate(below / known.size, float(interval.low), float(interval.high), known.size)
