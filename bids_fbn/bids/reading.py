"""Reading our own output back with pybids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

__all__ = ["output_layout"]

# What pybids' own configurations do not know on files under func. A file, since pybids
# stores the names of its configurations with the layout.
_ENTITIES = resources.files("bids_fbn.data") / "pybids_entities.json"


def output_layout(root: Path, suffixes: Sequence[str] = ()) -> Any:
    """A pybids layout of an output dataset.

    ``stat`` and ``template`` are entities beside pybids' own (``atlas``, ``desc``, ``label``,
    ``res``, ``segmentation``, …): ``layout.get(stat="iou", desc="stca", suffix="timeseries")``.

    Parameters
    ----------
    root : Path
        The output dataset.
    suffixes : sequence of str
        Only files with these in the folders of participants are listed: a thousand of them are
        then a matter of seconds.

    Returns
    -------
    bids.BIDSLayout
    """
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    # pybids matches the path beneath the root, with a slash in front.
    wanted = (
        r"/sub-[^/]+(?:/ses-[^/]+)?"
        rf"(?:/func(?:/[^/]+_(?:{'|'.join(map(re.escape, suffixes))})\.[^/]+)?)?"
    )
    indexer = BIDSLayoutIndexer(
        validate=False,
        ignore=[re.compile(rf"^(?!{wanted}$)")] if suffixes else None,
        index_metadata=not suffixes,
    )
    with resources.as_file(_ENTITIES) as ours:
        return BIDSLayout(
            root, validate=False, config=["bids", "derivatives", str(ours)], indexer=indexer
        )
