"""Reading our own output back with pybids."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

__all__ = ["output_layout"]

# What pybids' own configurations do not know on files under func. A file, since pybids
# stores the names of its configurations with the layout.
_ENTITIES = resources.files("bids_fbn.data") / "pybids_entities.json"


def output_layout(root: Path) -> Any:
    """A pybids layout of an output dataset.

    ``stat`` and ``template`` are entities beside pybids' own (``atlas``, ``desc``, ``label``,
    ``res``, ``segmentation``, …): ``layout.get(stat="iou", desc="stca", suffix="timeseries")``.

    Parameters
    ----------
    root : Path
        The output dataset.

    Returns
    -------
    bids.BIDSLayout
    """
    from bids import BIDSLayout

    with resources.as_file(_ENTITIES) as ours:
        return BIDSLayout(root, validate=False, config=["bids", "derivatives", str(ours)])
