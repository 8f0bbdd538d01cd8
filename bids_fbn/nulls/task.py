"""Does a network follow the task? Its course against the convolved design."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.fft import rfft

from bids_fbn.errors import RunError

__all__ = ["ANY_EVENT", "convolved_design", "read_events", "task_coupling"]

# Conditions that are no trial type of their own.
ANY_EVENT = "any_event"
_ONLY_CONDITION = "all"

# An event this long before the first volume still has a response in the run.
_RESPONSE_SECONDS = 24.0
# A regressor that varies less than this (one event of one sample makes about 0.01) is constant.
_CONSTANT = 1e-9
_FEWEST_ROWS = 3  # any two values correlate
_SURROGATES_AT_A_TIME = 1000

_COLUMNS = ["network", "condition", "r", "null_sd", "p", "p_corrected"]


def read_events(path: Path) -> pd.DataFrame:
    """Read a BIDS ``events.tsv``.

    Returns
    -------
    DataFrame
        ``onset`` and ``duration`` in s, a duration that is not known being 0; ``trial_type`` as
        text where the file has it, None where it is n/a.

    Raises
    ------
    RunError
        If it cannot be read, lacks a column, or holds what is not a time.
    """
    try:
        table = pd.read_csv(
            path,
            sep="\t",
            dtype=str,
            na_values=["n/a"],
            keep_default_na=False,
            encoding="utf-8-sig",
        )
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not a readable table ({str(error).splitlines()[0]})") from None
    missing = [name for name in ("onset", "duration") if name not in table]
    if missing:
        raise RunError(
            f"{path}: has no column {' and '.join(missing)}; name the columns in the first line, "
            "separated by tabs"
        )
    times = {name: _seconds(path, table[name]) for name in ("onset", "duration")}
    times["duration"] = times["duration"].fillna(0.0)
    if times["onset"].isna().any():
        row = int(np.flatnonzero(times["onset"].isna())[0]) + 2
        raise RunError(f"{path}: line {row} has no onset; give it in seconds or leave it out")
    if (times["duration"] < 0).any():
        row = int(np.flatnonzero(times["duration"] < 0)[0]) + 2
        raise RunError(f"{path}: line {row} has a negative duration; correct it")
    events = pd.DataFrame(times)
    if "trial_type" in table:
        types = table["trial_type"].astype(object)
        events["trial_type"] = types.where(types.notna(), None)
    return events


def _seconds(path: Path, column: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce").replace([np.inf, -np.inf], np.nan)
    wrong = numbers.isna() & column.notna()
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise RunError(
            f"{path}: {column.name} in line {row + 2} is {column.iloc[row]!r}; "
            "write a number of seconds"
        )
    return numbers.astype(float)


def convolved_design(events: pd.DataFrame, frame_times: np.ndarray) -> pd.DataFrame:
    """Expected response to each trial type, and to any event.

    SPM's canonical haemodynamic response, by nilearn.

    Parameters
    ----------
    events : DataFrame
        From :func:`read_events`. Without ``trial_type`` there is one condition, ``all``.
    frame_times : ndarray (T,)
        Of the volumes of the whole run, s, ascending.

    Returns
    -------
    DataFrame (T, C)
        A column for each trial type, and ``any_event`` where there is more than one. Without
        those that do not vary, such as of events after the run.
    """
    from nilearn.glm.first_level import compute_regressor

    frame_times = np.asarray(frame_times, dtype=float)
    during = (events["onset"] >= frame_times[0] - _RESPONSE_SECONDS) & (
        events["onset"] <= frame_times[-1]
    )
    events = events[during]
    if "trial_type" in events and events["trial_type"].notna().any():
        conditions = {str(name): of_it for name, of_it in events.groupby("trial_type")}
        if len(conditions) > 1 or events["trial_type"].isna().any():
            conditions[ANY_EVENT] = events
    else:
        conditions = {_ONLY_CONDITION: events}
    regressors = {}
    for name, of_it in conditions.items():
        timing = (of_it["onset"], of_it["duration"], np.ones(len(of_it)))
        condition = tuple(np.asarray(values, dtype=float) for values in timing)
        expected, _ = compute_regressor(
            condition, "spm", frame_times, min_onset=-_RESPONSE_SECONDS
        )
        if expected[:, 0].std() > _CONSTANT:
            regressors[name] = expected[:, 0]
    return pd.DataFrame(regressors, index=range(len(frame_times)))


def task_coupling(
    series: np.ndarray,
    onsets: np.ndarray,
    networks: Sequence[str],
    events: pd.DataFrame,
    frame_times: np.ndarray,
    *,
    window: float = 0.0,
    n_surrogates: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Pearson correlation of each network's series with the expected response to each condition.

    p is two-sided, from series whose phases are randomised, the same for all networks (Prichard &
    Theiler 1994, Phys Rev Lett 73:951). So it allows for the autocorrelation of series and
    design. The null is: a stationary series of this spectrum, in no fixed relation to the
    design's time. Where the design is strictly periodic (blocks of one length), a series that is
    driven by it keeps that frequency in every surrogate, and p tells how well the phases agree:
    it is valid, but misses a strong response that comes a tenth of a period later than SPM's.

    Parameters
    ----------
    series : ndarray (S, P)
        Courses of P networks at volumes, or their IoU at windows. Rows with NaN (volumes left
        out, steps without a window) take no part; the others are put end to end for the null.
    onsets : ndarray (S,)
        Time of each row, s from the start of the run: that of the volume, or the centre of
        the window.
    networks : sequence of str
        P names.
    events : DataFrame
        From :func:`read_events`.
    frame_times : ndarray (T,)
        Of the volumes of the whole run, s, evenly spaced.
    window : float
        Length of a window, s: the design is averaged over the volumes in it. 0 for series of
        volumes. Where volumes in a window were left out, it is somewhat longer than this.
    n_surrogates : int
        The least p is 1 / (n_surrogates + 1).
    seed : int

    Returns
    -------
    DataFrame
        A row for each network and condition: ``network``, ``condition``, ``r``, ``null_sd`` (of
        r over surrogates), ``p``, ``p_corrected`` (over all rows, by the highest \\|r\\| of each
        surrogate). NaN for a series that does not vary; no rows where no event is in the run,
        or fewer than three rows take part.

    Raises
    ------
    ValueError
        If a row is of a time outside the run.
    """
    used = np.isfinite(series).all(axis=1)
    design = _at(convolved_design(events, frame_times), onsets[used], frame_times, window)
    x, y = _standardised(design.to_numpy()), _standardised(series[used])
    varies = np.isfinite(x).all(axis=0)
    conditions, x = design.columns[varies], x[:, varies]
    if not len(conditions) or used.sum() < _FEWEST_ROWS:
        return pd.DataFrame(columns=_COLUMNS)
    r = y.T @ x
    null = _null_correlations(y, x, n_surrogates, np.random.default_rng(seed))
    known = np.isfinite(r)
    size, null_size = np.abs(r), np.abs(null)
    highest = np.where(known, null_size, 0).max(axis=(1, 2))
    # Equal but for rounding counts as reached.
    reached = size - 1e-12
    p = (1 + (null_size >= reached).sum(axis=0)) / (n_surrogates + 1)
    corrected = (1 + (highest[:, None, None] >= reached).sum(axis=0)) / (n_surrogates + 1)
    index = pd.MultiIndex.from_product([networks, conditions], names=_COLUMNS[:2])
    values = {
        "r": r,
        "null_sd": null.std(axis=0),
        "p": np.where(known, p, np.nan),
        "p_corrected": np.where(known, corrected, np.nan),
    }
    flat = {name: of_all.ravel() for name, of_all in values.items()}
    return pd.DataFrame(flat, index=index).reset_index()


def _at(
    design: pd.DataFrame, onsets: np.ndarray, frame_times: np.ndarray, window: float
) -> pd.DataFrame:
    """Mean of the design over the window around each time."""
    interval = (frame_times[-1] - frame_times[0]) / (len(frame_times) - 1)
    # A window of W volumes reaches from (W − 1) / 2 before its centre to as much behind it.
    half = max(window, interval) / 2
    inside = np.abs(onsets[:, None] - frame_times) <= half
    if not inside.any(axis=1).all():
        raise ValueError("a time that is not in the run")
    mean = inside @ design.to_numpy() / inside.sum(axis=1, keepdims=True)
    return pd.DataFrame(mean, columns=design.columns)


def _standardised(values: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and length 1; NaN where they do not vary."""
    values = values - values.mean(axis=0) if len(values) else values
    length = np.linalg.norm(values, axis=0)
    varies = length > _CONSTANT * np.sqrt(max(1, len(values)))
    return values / np.where(varies, length, np.nan)


def _null_correlations(
    y: np.ndarray, x: np.ndarray, n_surrogates: int, rng: np.random.Generator
) -> np.ndarray:
    """Correlations of phase-randomised `y` with `x`, (n_surrogates, P, C).

    As with :func:`bids_fbn.nulls.series.turned` on waves of all frequencies, but the series
    themselves are never made: by Parseval, a correlation is a sum over the cross-spectrum.
    """
    n_rows = len(y)
    cross = rfft(y, axis=0)[:, :, None] * rfft(x, axis=0)[:, None, :].conj() / n_rows
    # All frequencies but 0, and the highest of an even number, stand for two.
    cross[1 : (n_rows + 1) // 2] *= 2
    null = []
    for first in range(0, n_surrogates, _SURROGATES_AT_A_TIME):
        n = min(_SURROGATES_AT_A_TIME, n_surrogates - first)
        turn = np.exp(2j * np.pi * rng.random((n, len(cross))))
        if n_rows % 2 == 0:
            turn[:, -1] = rng.choice([-1, 1], n)
        null.append((turn @ cross.reshape(len(cross), -1)).real)
    return np.concatenate(null).reshape(n_surrogates, *cross.shape[1:])
