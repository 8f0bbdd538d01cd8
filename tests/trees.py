"""Small BIDS datasets, with real NIfTI files of a few voxels, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

DERIVATIVE = {
    "Name": "tree",
    "BIDSVersion": "1.10.0",
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "fMRIPrep", "Version": "24.1.1"}],
}
RAW = {"Name": "tree", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
MNI = "MNI152NLin2009cAsym"


class Tree:
    """A dataset that grows file by file.

    Parameters
    ----------
    root : Path
        Made if missing.
    description : dict or None
        Content of ``dataset_description.json``; None leaves it out.
    """

    def __init__(self, root: Path, description: dict[str, Any] | None = DERIVATIVE) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        if description is not None:
            self.write("dataset_description.json", description)

    def write(self, path: str, content: dict[str, Any] | str | bytes = "") -> Path:
        """Write a JSON, text or binary file, at a path relative to the dataset."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            content = json.dumps(content, indent=1)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        return target

    def image(
        self,
        path: str,
        shape: tuple[int, ...] = (2, 3, 2, 5),
        voxel: float = 4.0,
        step: float = 2.5,
        unit: str = "sec",
    ) -> Path:
        """Write a NIfTI image of zeros; ``step`` is the repetition time of its header."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(np.zeros(shape, np.int16), np.diag([voxel, voxel, voxel, 1.0]))
        if len(shape) > 3:
            image.header.set_zooms((voxel,) * 3 + (step,) + (1.0,) * (len(shape) - 4))
        image.header.set_xyzt_units("mm", unit)
        nib.save(image, target)
        return target

    def run(
        self,
        prefix: str,
        space: str = f"space-{MNI}",
        voxel: float = 4.0,
        repetition_time: float | None = 2.0,
        confounds: str | None = "desc-confounds_timeseries",
        extension: str = ".nii.gz",
    ) -> Path:
        """Write what fMRIPrep writes of a run in one space; give the BOLD file.

        ``space`` is the middle of the name, such as ``space-T1w`` or ``space-MNI305_res-2``.
        """
        folder = func_folder(prefix)
        stem = f"{folder}/{prefix}_{space}" if space else f"{folder}/{prefix}"
        bold = self.image(f"{stem}_desc-preproc_bold{extension}", voxel=voxel)
        self.image(f"{stem}_desc-brain_mask{extension}", shape=(2, 3, 2), voxel=voxel)
        if repetition_time is not None:
            self.write(f"{stem}_desc-preproc_bold.json", {"RepetitionTime": repetition_time})
        if confounds is not None:
            self.write(f"{folder}/{prefix}_{confounds}.tsv", "trans_x\n" + "0\n" * 5)
            self.write(f"{folder}/{prefix}_{confounds}.json", {"trans_x": {}})
        return bold


def func_folder(prefix: str) -> str:
    """``sub-01/ses-1/func`` of ``sub-01_ses-1_task-rest``."""
    parts = prefix.split("_")
    return "/".join([part for part in parts if part.startswith(("sub-", "ses-"))] + ["func"])
