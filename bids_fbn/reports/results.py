"""The output dataset of a participant, read back.

Names come from the table in :mod:`bids_fbn.bids.naming`; the ``decomposition.json`` of a model,
which is written last, says that all else of it is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from bids_fbn.bids.boldrun import PREFIX_ENTITIES, BoldRun
from bids_fbn.bids.naming import output_path
from bids_fbn.bids.writing import sidecar_path
from bids_fbn.errors import RunError
from bids_fbn.signal.grid import Grid

__all__ = [
    "ModelResults",
    "RunResults",
    "Table",
    "read_model",
    "read_participant",
    "read_table",
]

_DECOMPOSITION = re.compile(r"(?P<prefix>.+)_desc-(?P<model>[0-9a-zA-Z]+)_decomposition\.json")
_QUALITY = re.compile(r"(?P<prefix>.+)_desc-fbn_qc\.tsv")


@dataclass(frozen=True, eq=False)
class Table:
    """A TSV and its sidecar.

    Parameters
    ----------
    data : DataFrame
        ``n/a`` is NaN.
    facts : mapping
        The sidecar.
    """

    data: pd.DataFrame
    facts: Mapping[str, Any]

    def describe(self, column: str) -> str:
        """What a column holds, with its units; empty where the sidecar does not say."""
        described = self.facts.get(column)
        if not isinstance(described, Mapping):
            return ""
        text = str(described.get("Description", ""))
        units = described.get("Units")
        return f"{text} ({units})" if units and units != "arbitrary" else text

    @property
    def definitions(self) -> list[tuple[str, str]]:
        """Column and what it holds, for those that the sidecar describes."""
        described = [(str(name), self.describe(str(name))) for name in self.data.columns]
        return [(name, text) for name, text in described if text]


@dataclass(frozen=True, eq=False)
class ModelResults:
    """What a model has found in a run; P networks, S steps, T volumes.

    Parameters
    ----------
    out : Path
        The output dataset.
    run : BoldRun
        Knows names only: its input files are not looked for.
    label : str
        Of the model, as in ``desc-``.
    facts : mapping
        The ``decomposition.json``.
    """

    out: Path
    run: BoldRun
    label: str
    facts: Mapping[str, Any]

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(self.facts.get("Method", self.label))

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the P networks, in the order of the template set."""
        return tuple(str(name) for name in self.facts["Networks"])

    @property
    def threshold(self) -> float:
        """IoU from which on a network is present, and a step has a state where that is by IoU."""
        return float(self.facts["StateThreshold"])

    @property
    def certainty(self) -> float | None:
        """From which on a step has a state by amplitude; None where states are by IoU."""
        value = self.facts.get("StateCertainty")
        return None if value is None else float(value)

    @property
    def state_rule(self) -> str:
        """When a step has a state, in a few words."""
        if self.certainty is None:
            return f"IoU ≥ {self.threshold:g}"
        return f"largest amplitude, certain by ≥ {self.certainty:g}"

    def path(self, kind: str) -> Path:
        """Absolute path of an output."""
        return self.out / output_path(
            kind,
            self.run,
            resolution=float(self.facts["Grid"]["ResolutionMM"]),
            model=self.label,
            atlas=str(self.facts["Templates"]),
        )

    def table(self, kind: str) -> Table:
        """A TSV of this model, by its name in the table of outputs."""
        return read_table(self.path(kind))

    def matrix(self, kind: str) -> np.ndarray:
        """A ``relmat``, (P, P)."""
        return self.table(kind).data[list(self.networks)].to_numpy(dtype=float)

    @cached_property
    def metrics(self) -> Table:
        """Each FBN and its template, P rows."""
        return self.table("metrics")

    @cached_property
    def state_metrics(self) -> Table:
        """How the run spends its time in states, P + 1 rows; the last belongs to no state."""
        return self.table("state_metrics")

    @cached_property
    def presence(self) -> Table:
        """What states are by: IoU with each template, or amplitude; S rows."""
        return self.table("iou" if self.certainty is None else "amplitude")

    @cached_property
    def states(self) -> Table:
        """State of each step, S rows."""
        return self.table("states")

    @property
    def window(self) -> int | None:
        """Volumes; None for a model that takes the whole run at once."""
        window = self.facts["Window"]
        return None if window is None else int(window)

    @property
    def weak(self) -> dict[str, bool]:
        """Which networks were never present."""
        metrics = self.metrics.data
        return dict(zip(metrics["network"], metrics["weak"].astype(bool), strict=True))

    @cached_property
    def grid(self) -> Grid:
        """The analysis grid, from the mask that was written."""
        image: Any = nib.load(self.path("mask"))
        return Grid(
            affine=np.asarray(image.affine),
            mask=np.asanyarray(image.dataobj) > 0,
            space=self.run.space,
        )

    def maps(self) -> np.ndarray:
        """FBN maps, (P, V), z."""
        image: Any = nib.load(self.path("components"))
        return self.grid.gather(np.asarray(image.dataobj, dtype=np.float32))


@dataclass(frozen=True, eq=False)
class RunResults:
    """All that there is of a run.

    Parameters
    ----------
    prefix : str
        ``sub-…[_ses-…]_task-…[…]``.
    entities : mapping
        Long entity name → value.
    quality : Table or None
        One row.
    outliers : Table or None
        T rows.
    models : tuple of ModelResults
    """

    prefix: str
    entities: Mapping[str, str]
    quality: Table | None
    outliers: Table | None
    models: tuple[ModelResults, ...]

    @property
    def title(self) -> str:
        """What tells the run from the participant's others: ``task-rest run-1``."""
        return " ".join(part for part in self.prefix.split("_") if not part.startswith("sub-"))

    def quality_of(self, name: str) -> float | None:
        """A value of the quality table, None where it is not known."""
        if self.quality is None or name not in self.quality.data:
            return None
        value = float(self.quality.data[name].iloc[0])
        return None if np.isnan(value) else value

    @property
    def repetition_time(self) -> float | None:
        """Seconds, where the quality table tells them."""
        seconds, kept = self.quality_of("kept_seconds"), self.quality_of("n_kept")
        return seconds / kept if seconds and kept else None


def read_participant(out: Path, subject: str) -> list[RunResults]:
    """All runs of a participant that the output dataset holds something of, by name.

    Parameters
    ----------
    out : Path
        The output dataset.
    subject : str
        Label without ``sub-``.

    Raises
    ------
    RunError
        If a file is missing or cannot be read.
    """
    folder = out / f"sub-{subject}"
    qualities = {m["prefix"]: path for path, m in _matching(folder, _QUALITY)}
    decompositions: dict[str, list[Path]] = {prefix: [] for prefix in qualities}
    for path, match in _matching(folder, _DECOMPOSITION):
        decompositions.setdefault(match["prefix"], []).append(path)
    runs = []
    for prefix in sorted(decompositions, key=_by_number):
        quality = qualities.get(prefix)
        runs.append(
            RunResults(
                prefix=prefix,
                entities=_entities(prefix),
                quality=read_table(quality) if quality else None,
                outliers=_outliers(quality),
                models=tuple(read_model(out, path) for path in decompositions[prefix]),
            )
        )
    return runs


def _matching(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
    for path in sorted([*folder.glob("func/*"), *folder.glob("ses-*/func/*")]):
        match = pattern.fullmatch(path.name)
        if match:
            yield path, match


def _by_number(prefix: str) -> list[tuple[str, int]]:
    """Sort run-2 before run-10."""
    parts = re.findall(r"([^0-9]*)([0-9]*)", prefix)
    return [(text, int(number or 0)) for text, number in parts]


def _entities(prefix: str) -> dict[str, str]:
    short = dict(part.partition("-")[::2] for part in prefix.split("_"))
    return {
        name: short[abbreviation]
        for name, abbreviation in PREFIX_ENTITIES.items()
        if abbreviation in short
    }


def _outliers(quality: Path | None) -> Table | None:
    if quality is None:
        return None
    path = quality.with_name(quality.name.replace("_qc.tsv", "_outliers.tsv"))
    return read_table(path) if path.is_file() else None


def read_model(out: Path, path: Path) -> ModelResults:
    """What a model has found in a run, by its ``decomposition.json``.

    Raises
    ------
    RunError
        If the file cannot be read.
    """
    match = _DECOMPOSITION.fullmatch(path.name)
    if match is None:
        raise RunError(f"{path}: is not named like the results of a model")
    facts = _read_json(path)
    try:
        space = str(facts["Grid"]["Space"])
    except (KeyError, TypeError):
        raise RunError(f"{path}: does not say its grid; compute this run again") from None
    # For the names of the other files; the input itself is of no concern here.
    run = BoldRun(
        entities=_entities(match["prefix"]),
        bold=Path(),
        repetition_time=float("nan"),
        space=space,
        n_volumes=0,
    )
    return ModelResults(out, run, match["model"], facts)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); compute this run again") from None
    return content


def read_table(path: Path) -> Table:
    """A TSV and its sidecar.

    Raises
    ------
    RunError
        If one of them cannot be read.
    """
    try:
        # Names of networks and places are text even where they read "NA" or "None".
        data = pd.read_csv(path, sep="\t", na_values=["n/a"], keep_default_na=False)
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); compute this run again") from None
    return Table(data, _read_json(sidecar_path(path)))
