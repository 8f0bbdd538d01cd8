"""The main job on real fMRI, and real datasets that must be refused."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import pandas as pd
import pytest
from command import app
from read_back import check_output

pytestmark = pytest.mark.realdata

QUICK = (
    "--epochs=1",
    "--resolution=8",
    "--device=cpu",
    "--n-surrogates=2",
    "--n-surrogate-maps=20",
)


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", na_values=["n/a"])


def test_rest_fits_its_inputs(real_data: Path, tmp_path: Path) -> None:
    """Small models: the recipes at full size run in `.ci/real-data`."""
    out = tmp_path / "out"
    bids = real_data / "rest-10mm"
    # Every tenth step, since halves and surrogates are searched likewise.
    options = ("--model", "stca", "scaae", "--nuisance=none", "--sloppy", "--stride=10", *QUICK)
    done = app(bids, out, "--participant-label", "2EXYG11", *options)
    assert done.returncode == 0, done.stderr
    lines = check_output(out)
    assert lines[0].startswith("sub-2EXYG11_task-rest scaae: 148 volumes, 15 steps")
    assert lines[1].startswith("sub-2EXYG11_task-rest stca: 148 volumes, 13 steps")
    sidecar = json.loads(next(out.rglob("*_stat-iou_desc-stca_timeseries.json")).read_text())
    assert sidecar["SamplingFrequency"] == 0.05
    assert sidecar["StartTime"] == 19.0  # the middle of 20 volumes of 2 s
    quality = _table(next(out.rglob("*_qc.tsv"))).iloc[0]
    assert quality["coverage"] > 0.9
    assert 20 < quality["tsnr_median"] < 1000
    source = nib.load(next((bids / "sub-2EXYG11").rglob("*_bold.nii.gz")))
    assert len(_table(next(out.rglob("*_desc-stca_mixing.tsv")))) == source.shape[3]


def test_visual_networks_follow_the_faces(real_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--model", "dualregression", "--nuisance=motion", "--stride=10", *QUICK[1:])
    done = app(real_data / "task-faces-3mm", out, *options)
    assert done.returncode == 0, done.stderr
    evidence = _table(next(out.rglob("*_desc-dualregressionevidence_metrics.tsv")))
    courses = evidence[
        (evidence["measure"] == "r_course") & (evidence["condition"] == "any_event")
    ]
    follow = courses[(courses["p_corrected"] < 0.05) & (courses["observed"] > 0)]
    assert set(follow["network"]) & {"Visual1", "Visual2", "Visual3"}
    assert len(courses) == 10


def test_raw_data_are_refused(real_data: Path, tmp_path: Path) -> None:
    done = app(real_data / "raw-rest-5mm", tmp_path / "out")
    assert done.returncode == 2
    assert "raw" in done.stderr
    assert "--derivatives" in done.stderr
    assert "Traceback" not in done.stderr


def test_placeholder_images_are_refused_one_by_one(real_data: Path, tmp_path: Path) -> None:
    tree = real_data / "fmriprep-trees" / "ds002748-fmriprep"
    done = app(tree, tmp_path / "out", "--space=MNI152NLin2009cAsym")
    assert done.returncode == 2  # no run is left
    assert "empty" in done.stderr
    assert "sub-01_task-rest_space-MNI152NLin2009cAsym_res-2_desc-preproc_bold" in done.stderr
    assert "likewise sub-02_task-rest, sub-03_task-rest, sub-52_task-rest" in done.stderr
    assert not list((tmp_path / "out").rglob("*.tsv"))
