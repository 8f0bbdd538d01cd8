"""All metrics of all participants in one table, long and wide, and as features to compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bids_fbn.bids.boldrun import PREFIX_ENTITIES
from bids_fbn.bids.columns import METRICS, STATE_METRICS
from bids_fbn.bids.filenames import parse_name
from bids_fbn.bids.writing import Columns
from bids_fbn.errors import InputError, RunError
from bids_fbn.evidence.table import ALL
from bids_fbn.group.collect import KIND, Collected
from bids_fbn.nulls.pvalues import claim_of_networks, lowest_p
from bids_fbn.reports.results import ModelResults, Table

__all__ = [
    "COMPARED",
    "ENTITIES",
    "LONG",
    "features",
    "long_table",
    "metric_name",
    "of_kind",
    "pair",
    "quality_of",
    "wide_columns",
    "wide_table",
]

ENTITIES = tuple(name for name in PREFIX_ENTITIES if name != "subject")
# Of the tables of a run, those that are compared over participants. The others say the same in
# other words, are p-values, or are places.
COMPARED = (
    "iou_mean",
    "fraction_present",
    "iou_search",
    "coherence",
    "iou_other_half",
    "iou_previous_mean",
    "iou_window_apart_mean",
    "r",
    "fractional_occupancy",
    "dwell_mean",
    "switching_rate",
    "occupancy_entropy",
    "transition_entropy",
    "without_state",
    "held_out_variance",
    "transition_probability",
)
_FROM_EVIDENCE = {
    "held_out_variance": "Share of the variance of one half of the run that the maps of the other "
    "explain",
    "p_lowest": "Lowest p of a network that the numbers of surrogates allow",
}
_TRANSITIONS = {
    "transition_probability": "Of going from the first network to the second, of all steps from "
    "the first; n/a where the run never was in it",
    "transition_count": "Steps from the first network to the second",
}
# The other columns of the table of states belong to no single one.
_OF_STATES = ("fractional_occupancy", "visits", "dwell_mean", "dwell_median")

LONG: Columns = {
    "participant_id": {"Description": "Participant"},
    **{name: {"Description": f"Entity of the run: {name}"} for name in ENTITIES},
    "model": {
        "Description": "Model as in desc-; n/a for what is about the run, whatever the model"
    },
    "trained_on": {"Description": "1: the model was trained on this very run"},
    "measure": {"Description": "What was measured"},
    "network": {"Description": "Network, two of them (`from > to`), or `all`"},
    "value": {"Description": "The value, in the units of the measure"},
}


def pair(origin: str, destination: str) -> str:
    """Two networks, as the column ``network`` has them."""
    return f"{origin} > {destination}"


def metric_name(measure: str, network: str) -> str:
    """Column of the wide table."""
    return measure if network == ALL else f"{measure}.{network}"


def long_table(collected: Collected) -> tuple[pd.DataFrame, Collected]:
    """A row for every metric of every participant, run, model and network.

    Returns
    -------
    table : DataFrame
        With the columns :data:`LONG`, those of entities only where some run has them.
    read : Collected
        Without the runs whose tables could not be read; its notes name them.

    Raises
    ------
    InputError
        If none can be read.
    """
    rows, notes, cells = _Rows(), list(collected.notes), []
    for cell in collected.cells:
        whole = []
        for results in cell.results:
            try:
                found = list(_of_run(results))
                trained_on = float(bool(results.facts.get("TrainedOnThisRun")))
                rows.add(found, results.run.entities, results.label, trained_on)
                whole.append(results)
            except (RunError, KeyError) as error:
                notes.append(
                    f"{results.run.prefix}, {results.label}: incomplete or still being written "
                    f"({error}); left out"
                )
        if whole:
            cells.append(replace(cell, results=tuple(whole)))
    if not cells:
        raise InputError(f"OUTPUT_DIR {collected.out}: no results that can be used", *notes)
    for prefix, quality in collected.quality.items():
        row = quality.data.iloc[0]
        found = [
            (str(name), ALL, float(value)) for name, value in row.items() if _is_number(value)
        ]
        rows.add(found, parse_name(Path(f"{prefix}_qc.tsv")).entities, None, np.nan)
    read = replace(collected, cells=tuple(cells), notes=tuple(notes))
    return rows.table(), read


class _Rows:
    """The long table as it grows: a thousand participants have a million rows of few names."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, int]] = {"measure": {}, "network": {}}
        self._codes: dict[str, list[np.ndarray]] = {"measure": [], "network": []}
        self._values: list[np.ndarray] = []
        self._of_part: list[dict[str, Any]] = []

    def add(
        self,
        rows: Sequence[tuple[str, str, float]],
        entities: Mapping[str, str],
        model: str | None,
        trained_on: float,
    ) -> None:
        """(measure, network, value) of a run."""
        for position, column in enumerate(self._names):
            names = self._names[column]
            codes = [names.setdefault(str(row[position]), len(names)) for row in rows]
            self._codes[column].append(np.array(codes, dtype=np.int32))
        self._values.append(np.array([value for *_, value in rows], dtype=float))
        self._of_part.append(
            {
                "participant_id": f"sub-{entities['subject']}",
                **{name: entities.get(name) for name in ENTITIES},
                "model": model,
                "trained_on": trained_on,
            }
        )

    def table(self) -> pd.DataFrame:
        """With categories for columns; without those of entities that no run has."""
        lengths = [len(values) for values in self._values]
        parts = pd.DataFrame(self._of_part)
        columns: dict[str, Any] = {}
        for name in parts:
            if name == "trained_on":
                columns[name] = np.repeat(parts[name].to_numpy(), lengths)
            elif parts[name].notna().any():
                of_part = parts[name].astype("category").cat
                codes = np.repeat(of_part.codes.to_numpy(), lengths)
                columns[name] = pd.Categorical.from_codes(codes, of_part.categories)
        for name, names in self._names.items():
            codes = np.concatenate(self._codes[name])
            columns[name] = pd.Categorical.from_codes(codes, list(names))
        return pd.DataFrame({**columns, "value": np.concatenate(self._values)})


def _of_run(results: ModelResults) -> Iterator[tuple[str, str, float]]:
    # Not as properties, which keep what they have read: a thousand runs are enough to matter.
    yield from _melted(results.table("metrics").data, "network")
    yield from _melted(results.table("state_metrics").data, "state")
    yield from _from_evidence(results.table("evidence").data)
    yield from _transitions(results)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _melted(table: pd.DataFrame, names: str) -> Iterator[tuple[str, str, float]]:
    for measure in table.columns.drop(names):
        if pd.api.types.is_numeric_dtype(table[measure]):
            for network, value in zip(table[names], table[measure], strict=True):
                if names == "network" or (network == ALL) != (measure in _OF_STATES):
                    yield str(measure), str(network), float(value)


def _from_evidence(table: pd.DataFrame) -> Iterator[tuple[str, str, float]]:
    for value in table.loc[table["measure"] == "held_out_variance", "observed"]:
        yield "held_out_variance", ALL, float(value)
    claimed = table[table["measure"] == claim_of_networks(table)]
    if len(claimed):
        yield "p_lowest", ALL, lowest_p(claimed)


def _transitions(results: ModelResults) -> Iterator[tuple[str, str, float]]:
    names = results.networks
    count = results.matrix("transition_count")
    probability = results.matrix("transition_probability")
    visited = count.sum(axis=1) > 0
    for i, origin in enumerate(names):
        for j, destination in enumerate(names):
            networks = pair(origin, destination)
            yield "transition_count", networks, float(count[i, j])
            if visited[i]:
                yield "transition_probability", networks, float(probability[i, j])


def wide_table(long: pd.DataFrame) -> pd.DataFrame:
    """A row for each run and model, a column for each metric of each network; quality beside."""
    run = ["participant_id", *(name for name in ENTITIES if name in long)]
    of_models = _spread(long[long["model"].notna()], [*run, "model", "trained_on"])
    quality = _spread(long[long["model"].isna()], run)
    return of_models.merge(quality, on=run, how="left")


def _spread(long: pd.DataFrame, rows: list[str]) -> pd.DataFrame:
    """A row for each combination of values of some columns, n/a being one of them."""
    row = long.groupby(rows, observed=True, dropna=False, sort=True).ngroup().to_numpy()
    measures = long["measure"].cat.codes.to_numpy().astype(np.int64)
    pairs = measures * len(long["network"].cat.categories)
    column, codes = pd.factorize(pairs + long["network"].cat.codes.to_numpy())
    values = np.full((row.max(initial=-1) + 1, len(codes)), np.nan)
    values[row, column] = long["value"]
    measure, network = np.divmod(codes, len(long["network"].cat.categories))
    names = [
        metric_name(long["measure"].cat.categories[m], long["network"].cat.categories[n])
        for m, n in zip(measure, network, strict=True)
    ]
    _, first = np.unique(row, return_index=True)
    head = long[rows].iloc[first].reset_index(drop=True).astype(object)
    return head.join(pd.DataFrame(values, columns=names))


def wide_columns(wide: pd.DataFrame, quality: Mapping[str, Table]) -> Columns:
    """What the columns of a wide table hold, for its sidecar."""
    described: dict[str, Any] = {**METRICS, **STATE_METRICS}
    described |= {
        name: {"Description": text} for name, text in {**_FROM_EVIDENCE, **_TRANSITIONS}.items()
    }
    for table in quality.values():
        described |= {str(name): table.facts.get(name, {}) for name in table.data}
    columns: dict[str, Any] = {}
    for name in map(str, wide.columns):
        measure, _, network = name.partition(".")
        if name in LONG:
            columns[name] = LONG[name]
        else:
            text = described[measure].get("Description", measure)
            more = {"Description": f"{text} ({network})" if network else text}
            columns[name] = {**described[measure], **more}
    return columns


def of_kind(
    long: pd.DataFrame, entities: Mapping[str, str], model: str | None = None
) -> pd.DataFrame:
    """Rows of one kind of run: those of a model, or of all models and of the run itself.

    Parameters
    ----------
    long : DataFrame
        The long table, or any with columns for entities.
    entities : mapping
        As those of a :class:`~bids_fbn.group.collect.Cell`.
    model : str, optional
    """
    chosen = np.ones(len(long), dtype=bool)
    if model is not None:
        chosen &= (long["model"] == model).to_numpy()
    for name in KIND:
        if name in long:
            # A run without acquisition is another kind than one with.
            value = entities.get(name)
            same = long[name].isna() if value is None else long[name] == value
            chosen &= same.to_numpy()
    return long[chosen]


def features(here: pd.DataFrame) -> pd.DataFrame:
    """What is compared over participants.

    Parameters
    ----------
    here : DataFrame
        Rows of one model and kind of run, see :func:`of_kind`; perhaps of one session.

    Returns
    -------
    DataFrame
        Index ``participant_id``, columns (measure, network); the mean over a participant's runs.
    """
    here = here[here["measure"].isin(COMPARED)]
    order = list(dict.fromkeys(zip(here["measure"], here["network"], strict=True)))
    values = here.groupby(["participant_id", "measure", "network"], observed=True)["value"].mean()
    table = values.unstack(["measure", "network"])  # noqa: PD010 (of a Series)
    table.index = table.index.astype(str)
    chosen: Sequence[tuple[str, str]] = [column for column in order if column in table.columns]
    return table[chosen].sort_index()


def quality_of(here: pd.DataFrame, measure: str) -> pd.Series:
    """A measure of quality of each participant, the mean over runs of one kind."""
    here = here[here["model"].isna() & (here["measure"] == measure)]
    found = here.groupby("participant_id", observed=True)["value"].mean()
    found.index = found.index.astype(str)
    return found
