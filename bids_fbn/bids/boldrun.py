"""One BOLD run: where its files are and what is known of it before it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["PREFIX_ENTITIES", "BoldRun"]

# The entities that name a run, in the order of the BIDS file-name schema.
PREFIX_ENTITIES: Mapping[str, str] = {
    "subject": "sub",
    "session": "ses",
    "task": "task",
    "acquisition": "acq",
    "ceagent": "ce",
    "reconstruction": "rec",
    "direction": "dir",
    "run": "run",
    "echo": "echo",
}


@dataclass(frozen=True)
class BoldRun:
    """A preprocessed BOLD run in a standard space.

    Parameters
    ----------
    entities : mapping of str to str
        The BIDS entities of the file, by pybids' long names (``subject``, ``session``, …),
        values as in the file name.
    bold, mask, confounds, confounds_metadata, events : Path
        Files; all but ``bold`` are None where the dataset has none.
    repetition_time : float
        Seconds.
    space : str
        BIDS name of the standard space.
    n_volumes : int
        Volumes in ``bold`` by its header.
    bids_uri : str
        BIDS URI of ``bold`` for the ``Sources`` of what is made from it.
    """

    entities: Mapping[str, str] = field(hash=False)
    bold: Path
    repetition_time: float
    space: str
    n_volumes: int
    mask: Path | None = None
    confounds: Path | None = None
    confounds_metadata: Path | None = None
    events: Path | None = None
    bids_uri: str = ""

    @property
    def subject(self) -> str:
        """Participant label without ``sub-``."""
        return self.entities["subject"]

    @property
    def session(self) -> str | None:
        """Session label without ``ses-``."""
        return self.entities.get("session")

    @property
    def prefix(self) -> str:
        """Start of the name of everything made from this run: ``sub-…[_ses-…]_task-…[…]``."""
        return "_".join(
            f"{short}-{self.entities[name]}"
            for name, short in PREFIX_ENTITIES.items()
            if self.entities.get(name) is not None
        )

    @property
    def folder(self) -> Path:
        """Folder of its outputs, relative to the output dataset."""
        session = [f"ses-{self.session}"] if self.session else []
        return Path(f"sub-{self.subject}", *session, "func")

    def to_json(self) -> str:
        """As text, for handing to another process."""
        return json.dumps(asdict(self), default=str, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> BoldRun:
        """Inverse of :meth:`to_json`."""
        values: dict[str, Any] = json.loads(text)
        for name in _PATHS:
            if values[name] is not None:
                values[name] = Path(values[name])
        return cls(**values)


_PATHS = ("bold", "mask", "confounds", "confounds_metadata", "events")
