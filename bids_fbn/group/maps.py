"""Maps of a group: what its participants' networks have in common.

Participants are added one by one and forgotten, so that memory does not grow with their number.
Every participant counts the same, also with a network that was weak: to leave out those that look
least like the template would be to choose by the result.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special, stats

from bids_fbn.networks.maps import SupportRule, zscore_maps
from bids_fbn.networks.overlap import overlap_with_templates, support_of
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.nulls.pvalues import ALPHA

__all__ = [
    "GroupMaps",
    "GroupResult",
    "ParticipantMaps",
    "combined_p",
    "mean_over_runs",
    "template_overlap",
    "z_of_t",
]

# A spread of two values says next to nothing.
_FEWEST_FOR_Z = 3
# Smaller tails than this are computed by their logarithm; doubles end at 1e-308.
_SMALL_TAIL = 1e-250
# The FBN maps of the participant level are the right way up.
_RULE = SupportRule(either_sign=False)


@dataclass(frozen=True, eq=False)
class ParticipantMaps:
    """Networks of a participant, or of a run; P networks, V voxels.

    Parameters
    ----------
    maps : ndarray (P, V)
        FBN maps, z over the covered voxels.
    membership : ndarray (P, V)
        0 to 1.
    covered : ndarray (V,) of bool
        Voxels with signal; the values of the others do not count.
    """

    maps: np.ndarray
    membership: np.ndarray
    covered: np.ndarray


@dataclass(frozen=True, eq=False)
class GroupResult:
    """Maps of a group; P networks, V voxels.

    Parameters
    ----------
    mean : ndarray (P, V)
        Mean z over the participants that cover the voxel; NaN where none does.
    z : ndarray (P, V)
        One-sample t of the same participants, as the z of the same tail; NaN where fewer than
        three cover the voxel, or where they do not differ. As the templates chose what the maps
        are made of, it is high within them for noise too: see :func:`template_overlap`.
    consistency : ndarray (P, V)
        Share of the same participants in whose support the voxel is, NaN where there is none. The
        support is the highest voxels of a map, as many as the template has among those covered.
    probability : ndarray (P, V)
        Mean membership over the same participants; NaN where there is none.
    n : ndarray (V,) of int
        Participants that cover the voxel.
    n_participants : int
        All of them.
    """

    mean: np.ndarray
    z: np.ndarray
    consistency: np.ndarray
    probability: np.ndarray
    n: np.ndarray
    n_participants: int

    @property
    def covered(self) -> np.ndarray:
        """Voxels that at least half of the participants cover, (V,) of bool.

        A mean over few is noisier than its neighbours, and would be among the highest for that.
        """
        return (self.n > 0) & (2 * self.n >= self.n_participants)

    def labels(self, at_least: float = 0.25) -> np.ndarray:
        """Winner takes all.

        Parameters
        ----------
        at_least : float
            Share of the participants in whose support a voxel must be to belong to a network.

        Returns
        -------
        ndarray (V,) of int16
            1 to P: of the networks that are consistent enough, the one with the highest
            probability. 0 where there is none, and where fewer than half of the participants
            cover the voxel.
        """
        enough = (self.consistency >= at_least) & self.covered
        probability = np.where(enough, self.probability, -1)
        return np.where(enough.any(axis=0), probability.argmax(axis=0) + 1, 0).astype(np.int16)


class GroupMaps:
    """Running mean, spread and counts over participants, in float64.

    Parameters
    ----------
    supports : ndarray (P, V) of bool
        Voxels of the templates: their numbers are the sizes of the participants' supports.
    """

    def __init__(self, supports: np.ndarray) -> None:
        self._supports = supports
        self._n = np.zeros(supports.shape[1], dtype=int)
        self._n_participants = 0
        self._mean, self._squares, self._in_support, self._membership = (
            np.zeros(supports.shape) for _ in range(4)
        )

    def add(self, participant: ParticipantMaps) -> None:
        """Take one participant; the order in which they come changes nothing but rounding."""
        where = np.flatnonzero(participant.covered)
        maps = participant.maps[:, where]
        self._n_participants += 1
        self._n[where] += 1
        # Welford (1962): no difference of large sums, and equal values have a spread of 0.
        step = maps - self._mean[:, where]  # float64, whatever the maps are
        self._mean[:, where] += step / self._n[where]
        self._squares[:, where] += step * (maps - self._mean[:, where])
        self._membership[:, where] += participant.membership[:, where]
        for p, size in enumerate(self._supports[:, where].sum(axis=1).tolist()):
            self._in_support[p, where] += support_of(maps[p], _RULE, size)

    def result(self) -> GroupResult:
        """What the participants so far have in common."""
        n = self._n.copy()
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.sqrt(self._squares / (n - 1) / n)
            t = np.where((n >= _FEWEST_FOR_Z) & (error > 0), self._mean / error, np.nan)
            return GroupResult(
                mean=np.where(n > 0, self._mean, np.nan),
                z=z_of_t(t, np.maximum(n - 1, 1)),
                consistency=self._in_support / n,
                probability=self._membership / n,
                n=n,
                n_participants=self._n_participants,
            )


def mean_over_runs(runs: Iterable[ParticipantMaps]) -> ParticipantMaps:
    """A participant's maps from those of the runs: in each voxel, of the runs that cover it.

    Raises
    ------
    ValueError
        Without any run.
    """
    maps = membership = count = None
    for run in runs:
        if maps is None or membership is None or count is None:
            maps, membership = np.zeros(run.maps.shape), np.zeros(run.maps.shape)
            count = np.zeros(len(run.covered), dtype=int)
        maps += np.where(run.covered, run.maps, 0)
        membership += np.where(run.covered, run.membership, 0)
        count += run.covered
    if maps is None or membership is None or count is None:
        raise ValueError("a participant without runs has no maps")
    divisor = np.maximum(count, 1)
    return ParticipantMaps(maps / divisor, membership / divisor, count > 0)


def z_of_t(t: np.ndarray, degrees_of_freedom: np.ndarray | int) -> np.ndarray:
    """Standard normal values whose tails are those of Student's t, however small.

    Parameters
    ----------
    t : ndarray
        NaN stays NaN.
    degrees_of_freedom : ndarray or int
    """
    t, df = np.broadcast_arrays(np.asarray(t, dtype=np.float64), degrees_of_freedom)
    tail = stats.t.sf(np.abs(t), df)
    small = tail < _SMALL_TAIL
    log_tail = np.log(np.where(small, 1, tail))
    if small.any():
        log_tail[small] = _log_small_tail(np.abs(t[small]), df[small])
    return -np.sign(t) * special.ndtri_exp(log_tail)


def _log_small_tail(t: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Logarithm of P(T > t): half an incomplete beta function (NIST DLMF 8.17.8)."""
    a, b = df / 2, 0.5
    x = df / (df + t * t)
    return (
        np.log(0.5 / a)
        + a * np.log(x)
        + b * np.log1p(-x)
        - special.betaln(a, b)
        + np.log(special.hyp2f1(a + b, 1, a + 1, x))
    )


def template_overlap(result: GroupResult, templates: TemplateSet) -> pd.DataFrame:
    """Overlap of the mean maps with their own templates, where half of the participants cover.

    This says how alike they look, not that the network is there. Each participant's map was made
    of candidates that the template chose, and a mean over participants keeps what the choice has
    put in while the rest averages out: means of 24 runs of noise reach an IoU of 0.3 to 0.7 at
    10 mm, which no random map as smooth does. For evidence see :func:`combined_p`.

    Parameters
    ----------
    result : GroupResult
    templates : TemplateSet

    Returns
    -------
    DataFrame, index = network
        ``iou`` and ``dice`` (size-matched, positive side only), ``r`` (over voxels).
    """
    where = result.covered
    own = np.arange(len(templates.networks))
    found = overlap_with_templates(
        zscore_maps(result.mean[:, where]),
        templates.maps[:, where],
        templates.supports[:, where],
        _RULE,
    )
    return pd.DataFrame(
        {name: getattr(found, name)[own, own] for name in ("iou", "dice", "r")},
        index=pd.Index(templates.networks, name="network"),
    )


def combined_p(p: pd.DataFrame) -> pd.DataFrame:
    """Whether the networks are there at all, by the evidence of single runs.

    Each run's p says how often as much is found where there is nothing: by a search as wide as
    that in the run, or of the coherence of networks whose maps are given. Surrogates of one run
    owe nothing to those of another, so the p are combined by Fisher's method: a small one rejects
    that the network is in none of the runs, not that it is missing from some. How many stand says
    the rest.

    Parameters
    ----------
    p : DataFrame (runs, networks)
        Of each network, the highest over its nulls, not corrected; NaN where there is none.

    Returns
    -------
    DataFrame, index = network
        ``p``; ``p_corrected`` over networks (Holm 1979, Scand J Stat 6:65); ``n_runs`` that have
        a p; ``standing``, the share of those that are below 0.05, which is what chance gives
        to one in twenty.
    """
    n = p.notna().sum().to_numpy()
    fisher = -2 * np.log(p.to_numpy(float, na_value=np.nan))
    combined = np.where(
        n > 0, stats.chi2.sf(np.nansum(fisher, axis=0), np.maximum(2 * n, 1)), np.nan
    )
    standing = np.where(n > 0, (p < ALPHA).sum() / np.maximum(n, 1), np.nan)
    return pd.DataFrame(
        {"p": combined, "p_corrected": _holm(combined), "n_runs": n, "standing": standing},
        index=p.columns,
    ).rename_axis("network")


def _holm(p: np.ndarray) -> np.ndarray:
    """p corrected over all that are not NaN."""
    corrected = np.full(len(p), np.nan)
    order = np.argsort(p)[: np.isfinite(p).sum()]
    remaining = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * remaining), 1)
    return corrected
