"""Maps of a group → files with sidecars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bids_fbn.bids.group_naming import (
    atlas_description_path,
    atlas_label,
    atlas_path,
    group_image_path,
)
from bids_fbn.bids.naming import resolution_label
from bids_fbn.bids.writing import sidecar_path, write_image, write_json, write_text
from bids_fbn.group.maps import GroupResult
from bids_fbn.signal.grid import Grid

__all__ = ["write_comparison_maps", "write_group_maps"]

# Of the participants in whose support a voxel must be to get a label.
LABEL_CONSISTENCY = 0.25


def write_group_maps(
    out: Path,
    model: str,
    entities: Mapping[str, str],
    grid: Grid,
    networks: Sequence[str],
    result: GroupResult,
    facts: Mapping[str, Any],
) -> list[Path]:
    """Write the maps of a group: its atlas, and what stands behind it.

    Parameters
    ----------
    out : Path
        The output dataset.
    model : str
    entities : mapping
        What all runs have in common, by long names: ``task``, ``acquisition``, …
    grid : Grid
        V voxels.
    networks : sequence of str
        P names.
    result : GroupResult
    facts : mapping
        For every sidecar: ``Sources``, and whatever else the caller knows.

    Returns
    -------
    list of Path
        The files, sidecars included.
    """
    place = (model, entities, grid.space, grid.resolution)
    common = _image_facts(grid, {**facts, "NumberOfParticipants": result.n_participants})
    # Without its description an atlas is not valid: that comes first.
    description = out / atlas_description_path(model)
    write_json(
        description,
        {
            "Name": atlas_label(model),
            "License": "CC0",
            "Description": f"Functional brain networks that {model} found in a group: the share "
            "of the participants' time in which a voxel belonged to each, and the most probable",
            "LevelType": "group",
        },
    )
    probseg, dseg = (out / atlas_path(suffix, *place) for suffix in ("probseg", "dseg"))
    write_image(
        probseg,
        grid.image(np.nan_to_num(result.probability).astype(np.float32)),
        {
            "Description": "Mean over participants of the membership, 0 to 1; 0 also where no "
            "participant has signal",
            "LabelMap": list(networks),
            "Manual": False,
            **common,
        },
    )
    write_image(
        dseg,
        grid.image(result.labels(LABEL_CONSISTENCY)),
        {
            "Description": "The network with the highest probability among those to which at "
            f"least {LABEL_CONSISTENCY:g} of the participants give the voxel; none where fewer "
            "than half of the participants have signal",
            "LabelMap": {str(i): name for i, name in enumerate(networks, start=1)},
            "Manual": False,
            **common,
        },
    )
    names = dseg.with_name(dseg.name.replace(".nii.gz", ".tsv"))
    # The sidecar is that of the image, and BIDS itself says what `index` and `name` are.
    write_text(
        names,
        pd.DataFrame({"index": range(1, len(networks) + 1), "name": list(networks)}).to_csv(
            sep="\t", index=False
        ),
    )
    statistics: Mapping[str, tuple[np.ndarray, str, str]] = {
        "mean": (result.mean, "z", "Mean over participants of the FBN maps, z in the mask"),
        "z": (
            result.z,
            "z",
            "One-sample t over participants as the z of the same tail; 0 also where fewer than "
            "three have signal, or where they do not differ",
        ),
        "consistency": (
            result.consistency,
            "arbitrary",
            "Share of the participants among whose highest voxels, as many as the template has, "
            "this one is",
        ),
    }
    written = [description, probseg, dseg]
    for stat, (values, units, text) in statistics.items():
        written.append(out / group_image_path(stat, *place))
        write_image(
            written[-1],
            grid.image(np.nan_to_num(values).astype(np.float32)),
            {"Description": text, "Units": units, "Networks": list(networks), **common},
        )
    written.append(out / group_image_path("n", *place))
    write_image(
        written[-1],
        grid.image(result.n.astype(np.int32)),
        {
            "Description": "Participants that have signal in the voxel; the other images are "
            "over these",
            **common,
        },
    )
    return _with_sidecars(written, names)


def write_comparison_maps(
    out: Path,
    model: str,
    entities: Mapping[str, str],
    grid: Grid,
    networks: Sequence[str],
    comparison: str,
    t: np.ndarray,
    p_corrected: np.ndarray,
    facts: Mapping[str, Any],
) -> list[Path]:
    """Write what a comparison of participants' maps gives, voxel by voxel.

    Parameters
    ----------
    out, model, entities, grid, networks
        See :func:`write_group_maps`.
    comparison : str
        Letters and digits: what is compared.
    t : ndarray (P, V)
        NaN where nothing was compared; written as 0.
    p_corrected : ndarray (P, V)
        NaN where nothing was compared; written as 1.
    facts : mapping
        For both sidecars: formula, participants, permutations, ``Sources``.

    Returns
    -------
    list of Path
        The files, sidecars included.

    Raises
    ------
    ValueError
        If the comparison has other characters than letters and digits.
    """
    common = {"Networks": list(networks), **_image_facts(grid, facts)}
    written = []
    for stat, values, nothing, text in (
        ("t", t, 0.0, "t; 0 where nothing was compared"),
        ("pcorrected", p_corrected, 1.0, "Corrected p; 1 where nothing was compared"),
    ):
        path = out / group_image_path(
            stat, model, entities, grid.space, grid.resolution, comparison
        )
        write_image(
            path,
            grid.image(np.nan_to_num(values, nan=nothing).astype(np.float32)),
            {"Description": text, "Units": "arbitrary", **common},
        )
        written.append(path)
    return _with_sidecars(written)


def _image_facts(grid: Grid, facts: Mapping[str, Any]) -> dict[str, Any]:
    label = resolution_label(grid.resolution)
    return {
        "Resolution": {label: f"{grid.resolution:g} mm isotropic, the analysis grid"},
        "SpatialReference": grid.space,
        "AnalysisMask": grid.mask_source,
        **facts,
    }


def _with_sidecars(written: Sequence[Path], *others: Path) -> list[Path]:
    sidecars = [sidecar_path(path) for path in written if path.suffix != ".json"]
    return sorted([*written, *others, *sidecars])
