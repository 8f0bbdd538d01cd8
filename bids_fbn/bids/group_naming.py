"""What the maps of a group are called.

==========================  ===========================================================
probability, labels         templates and atlases of BIDS 1.11, valid
description of the atlas    the same, at the root: one for each model, whatever the task
everything else             in ``group``, which ``.bidsignore`` names; BEP012
==========================  ===========================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from bids_fbn.bids.boldrun import PREFIX_ENTITIES
from bids_fbn.bids.naming import resolution_label

__all__ = [
    "GROUP_FOLDER",
    "atlas_description_path",
    "atlas_label",
    "atlas_path",
    "group_image_path",
    "group_table_path",
]

GROUP_FOLDER = Path("group")


def atlas_label(model: str) -> str:
    """Value of ``atlas-`` for the networks that a model found in a group.

    Examples
    --------
    >>> atlas_label("untrained-stca")
    'UntrainedstcaFBN'
    """
    model = model.replace("-", "")
    return f"{model[:1].upper()}{model[1:]}FBN"


def atlas_description_path(model: str) -> Path:
    """Description of a model's atlas, relative to the output dataset."""
    return Path(f"atlas-{atlas_label(model)}_description.json")


def atlas_path(
    suffix: Literal["probseg", "dseg"],
    model: str,
    entities: Mapping[str, str],
    space: str,
    resolution: float,
) -> Path:
    """Path of an atlas image, relative to the output dataset.

    Parameters
    ----------
    suffix : {"probseg", "dseg"}
    model : str
    entities : mapping
        What all runs have in common, by long names: ``task``, ``acquisition``, … BIDS has no
        functional file without a task: such an atlas goes to ``anat``, where those of all
        atlases go that belong to none.
    space : str
    resolution : float
        mm.
    """
    template = f"tpl-{space}"
    name = _join(
        template,
        *_shared(entities),
        f"atlas-{atlas_label(model)}",
        f"res-{resolution_label(resolution)}",
        suffix,
    )
    return Path(template, "func" if "task" in entities else "anat", f"{name}.nii.gz")


def group_image_path(
    stat: str,
    model: str,
    entities: Mapping[str, str],
    space: str,
    resolution: float,
    comparison: str = "",
) -> Path:
    """Path of an image of statistics, relative to the output dataset.

    Parameters
    ----------
    stat : str
        For example ``mean``, ``z``, ``consistency``; ``t``, ``pcorrected`` of a comparison.
    model : str
    entities : mapping
        What all runs have in common, by long names.
    space : str
    resolution : float
        mm.
    comparison : str
        Letters and digits.

    Raises
    ------
    ValueError
        If the comparison has other characters.
    """
    if comparison and not (comparison.isascii() and comparison.isalnum()):
        raise ValueError(f"{comparison!r} has other characters than letters and digits")
    name = _join(
        "group",
        *_shared(entities),
        f"space-{space}",
        f"res-{resolution_label(resolution)}",
        f"stat-{stat}",
        f"desc-{model.replace('-', '')}{comparison}",
        "components",
    )
    return GROUP_FOLDER / f"{name}.nii.gz"


def _join(*parts: str) -> str:
    return "_".join(part for part in parts if part)


def group_table_path(desc: str, entities: Mapping[str, str]) -> Path:
    """Path of a table of the group, relative to the output dataset.

    Parameters
    ----------
    desc : str
        Letters and digits.
    entities : mapping
        What all of its runs have in common, by long names.

    Examples
    --------
    >>> group_table_path("icatests", {"task": "rest"}).as_posix()
    'group/group_task-rest_desc-icatests_metrics.tsv'
    """
    name = _join("group", *_shared(entities), f"desc-{desc}", "metrics")
    return GROUP_FOLDER / f"{name}.tsv"


def _shared(entities: Mapping[str, str]) -> list[str]:
    return [
        f"{short}-{entities[name]}" for name, short in PREFIX_ENTITIES.items() if name in entities
    ]
