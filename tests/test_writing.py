"""Files appear whole or not at all, with a description of all that is in them."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_fbn.bids.boldrun import BoldRun
from bids_fbn.bids.finished import results_of_other_settings
from bids_fbn.bids.naming import BIDSIGNORE, output_path
from bids_fbn.bids.writing import (
    sidecar_path,
    update_dataset_description,
    write_bidsignore,
    write_image,
    write_json,
    write_table,
    write_text,
)
from bids_fbn.errors import RunError

RUN = BoldRun(
    entities={"subject": "01", "session": "a", "task": "rest", "run": "2", "acquisition": "mb"},
    bold=Path("/data/x_bold.nii.gz"),
    repetition_time=2.0,
    space="MNI152NLin6Asym",
    n_volumes=10,
)


def test_names_follow_the_table() -> None:
    folder = "sub-01/ses-a/func/sub-01_ses-a_task-rest_acq-mb_run-2"
    expected = {
        "components": f"{folder}_space-MNI152NLin6Asym_res-2p5_stat-z_desc-stca_components.nii.gz",
        "probseg": f"{folder}_space-MNI152NLin6Asym_seg-fbn_res-2p5_desc-stca_probseg.nii.gz",
        "mixing": f"{folder}_desc-stca_mixing.tsv",
        "iou": f"{folder}_space-MNI152NLin6Asym_atlas-Smith2009_stat-iou_desc-stca_timeseries.tsv",
        "states": f"{folder}_desc-stcastates_timeseries.tsv",
        "transition_count": f"{folder}_stat-transitioncount_desc-stcastates_relmat.tsv",
        "qc": f"{folder}_desc-fbn_qc.tsv",
        "mask": f"{folder}_space-MNI152NLin6Asym_res-2p5_desc-brain_mask.nii.gz",
    }
    for kind, path in expected.items():
        got = output_path(kind, RUN, resolution=2.5, model="stca", atlas="Smith2009")
        assert got.as_posix() == path


def test_a_run_survives_being_handed_over() -> None:
    assert BoldRun.from_json(RUN.to_json()) == RUN


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"a\.txt: the disk is full"):
        write_text(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(
    tmp_path: Path,
) -> None:
    abandoned, live = tmp_path / ".a.txt.11111111.part", tmp_path / ".a.txt.22222222.part"
    abandoned.write_text("hal")
    with live.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        write_text(tmp_path / "a.txt", "whole")
        assert sorted(path.name for path in tmp_path.iterdir()) == [live.name, "a.txt"]


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": np.float32("nan"), "y": [np.int64(3), float("inf")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": [3, None]}


def test_a_table_describes_its_columns(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": [1.0, np.nan], "b": ["x", None]})
    path = tmp_path / "sub-1_metrics.tsv"
    with pytest.raises(ValueError, match="without a description: b"):
        write_table(path, table, {"a": {"Description": "A"}})
    assert not path.exists()
    described = {"a": {"Description": "A", "Units": "s"}, "b": {"Description": "B"}}
    write_table(path, table, described, {"More": 1})
    assert path.read_text() == "a\tb\n1\tx\nn/a\tn/a\n"
    assert json.loads(sidecar_path(path).read_text()) == {"More": 1, **described}


def test_the_same_image_gives_the_same_bytes(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    image = nib.Nifti1Image(values, np.diag([3, 3, 3, 1]))
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.nii.gz", image, {})
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert np.array_equal(nib.load(tmp_path / "a.nii.gz").get_fdata(dtype=np.float32), values)


def _describe(root: Path, number: int) -> None:
    for repeat in range(5):
        update_dataset_description(
            root, {f"link{number}": "file:///x"}, {f"m{number}": str(repeat)}
        )
        write_bidsignore(root)


def test_many_processes_may_describe_one_dataset(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_describe, args=(tmp_path, n)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    description = json.loads((tmp_path / "dataset_description.json").read_text())
    assert set(description["DatasetLinks"]) == {"link0", "link1", "link2"}
    assert description["GeneratedBy"][0]["ConfigurationHash"] == {"m0": "4", "m1": "4", "m2": "4"}
    assert (tmp_path / ".bidsignore").read_text().splitlines() == list(BIDSIGNORE)


def test_lines_of_a_user_stay_in_bidsignore(tmp_path: Path) -> None:
    (tmp_path / ".bidsignore").write_text("mine\n")
    write_bidsignore(tmp_path)
    write_bidsignore(tmp_path)
    assert (tmp_path / ".bidsignore").read_text().splitlines() == ["mine", *BIDSIGNORE]


def test_results_of_other_settings_are_found(tmp_path: Path) -> None:
    for subject, config_hash in (("01", "old"), ("02", "new")):
        folder = tmp_path / f"sub-{subject}" / "func"
        write_json(
            folder / f"sub-{subject}_task-rest_desc-stca_decomposition.json",
            {"ConfigurationHash": config_hash},
        )
    found = results_of_other_settings(tmp_path, {"stca": "new"}, remade=())
    assert found == ["sub-01_task-rest (stca)"]
    assert results_of_other_settings(tmp_path, {"stca": "new"}, {"sub-01_task-rest"}) == []
    assert results_of_other_settings(tmp_path, {"scaae": "new"}, ()) == []
