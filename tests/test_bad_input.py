"""Bad input: a clear line for each, the other runs finished, nothing half-written."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from command import SMALL, app
from read_back import check_output

from bids_fbn.simulate import simulate_dataset

N_VOLUMES = 60


def _files(dataset: Path, subject: str) -> dict[str, Path]:
    func = dataset / f"sub-{subject}" / "func"
    return {
        "bold": next(func.glob("*_desc-preproc_bold.nii.gz")),
        "bold_json": next(func.glob("*_desc-preproc_bold.json")),
        "mask": next(func.glob("*_desc-brain_mask.nii.gz")),
        "confounds": next(func.glob("*_desc-confounds_timeseries.tsv")),
    }


def _change_bold(path: Path, change: object) -> None:
    image = nib.load(path)
    values = change(image.get_fdata(dtype=np.float32))  # type: ignore[operator]
    image.header.set_data_dtype(np.float32)  # that of the file has no NaN
    nib.Nifti1Image(values, image.affine, image.header).to_filename(path)


def _nan_and_constant(values: np.ndarray) -> np.ndarray:
    middle = tuple(side // 2 for side in values.shape[:3])
    values[middle[0], middle[1], middle[2], 5] = np.nan
    values[middle[0] + 1, middle[1], middle[2]] = 100
    values[..., 20] = 0
    return values


def _rewrite(path: Path, change: object) -> None:
    table = pd.read_csv(path, sep="\t", na_values=["n/a"])
    table = change(table)  # type: ignore[operator]
    table.to_csv(path, sep="\t", na_rep="n/a", index=False)


def _everything_moved(table: pd.DataFrame) -> pd.DataFrame:
    table["framewise_displacement"] = 3.0
    return table


def _half_moved(table: pd.DataFrame) -> pd.DataFrame:
    table["framewise_displacement"] = 0.0
    table.loc[25:, "framewise_displacement"] = 3.0
    return table


def _spoil(dataset: Path) -> dict[str, tuple[str, ...]]:
    """Spoil a participant each; → what must be said of it."""
    said: dict[str, tuple[str, ...]] = {}

    files = _files(dataset, "02")
    packed = files["bold"].read_bytes()
    files["bold"].write_bytes(packed[: len(packed) // 2])
    said["02"] = (files["bold"].name, "truncated or corrupt")

    files = _files(dataset, "03")
    sidecar = json.loads(files["bold_json"].read_text())
    del sidecar["RepetitionTime"]
    files["bold_json"].write_text(json.dumps(sidecar))
    said["03"] = ("RepetitionTime",)

    files = _files(dataset, "04")
    image = nib.load(files["bold"])
    image.slicer[..., 0].to_filename(files["bold"])
    said["04"] = (files["bold"].name, "has 3 dimensions")

    files = _files(dataset, "05")
    files["bold"].write_bytes(b"")
    said["05"] = (files["bold"].name, "empty")

    _rewrite(_files(dataset, "06")["confounds"], _everything_moved)
    said["06"] = ("0 of 60 volumes left",)

    _rewrite(_files(dataset, "07")["confounds"], _half_moved)  # 25 − 2 volumes of 2 s: 46 s
    said["07"] = ("less than --min-time 60", "skipped")

    files = _files(dataset, "08")
    nib.Nifti1Image(np.ones((5, 5, 5), np.uint8), np.eye(4)).to_filename(files["mask"])
    said["08"] = (files["mask"].name, "shape")

    _rewrite(_files(dataset, "09")["confounds"], lambda table: table.iloc[:-7])
    said["09"] = (_files(dataset, "09")["confounds"].name, "53 rows for the 60 volumes")

    _change_bold(_files(dataset, "10")["bold"], _nan_and_constant)  # is analysed, and says so
    said["10"] = ("hold NaN or infinity", "hold no signal")

    files = _files(dataset, "11")
    files["confounds"].unlink()
    said["11"] = ("confounds", "--nuisance none")

    _rewrite(_files(dataset, "12")["confounds"], lambda t: t.drop(columns="trans_x"))
    said["12"] = (_files(dataset, "12")["confounds"].name, "trans_x")

    files = _files(dataset, "13")
    image = nib.load(files["mask"])
    empty = np.zeros(image.shape, np.uint8)
    nib.Nifti1Image(empty, image.affine, image.header).to_filename(files["mask"])
    said["13"] = (files["mask"].name, "empty")

    files = _files(dataset, "14")
    copy = files["bold"].with_suffix("")  # .nii beside .nii.gz: the same run twice
    copy.write_bytes(gzip.decompress(files["bold"].read_bytes()))
    said["14"] = (files["bold"].name, copy.name)
    return said


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[str, ...]]]:
    dataset = simulate_dataset(
        tmp_path_factory.mktemp("spoilt") / "data",
        n_participants=14,
        n_volumes=N_VOLUMES,
        resolution=12.0,
    )
    return dataset, _spoil(dataset)


@pytest.fixture(scope="module")
def spoilt_call(
    spoilt: tuple[Path, dict[str, tuple[str, ...]]],
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    dataset, _ = spoilt
    out = dataset.parent / "out"
    options = ("--model=scaae", "--nuisance", "motion", "--motion=basic", "--fd-thresh=2")
    return out, app(dataset, out, *options, *SMALL)


def test_each_bad_run_has_its_line_and_the_others_are_done(
    spoilt: tuple[Path, dict[str, tuple[str, ...]]],
    spoilt_call: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    _, said = spoilt
    out, done = spoilt_call
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    for subject, words in said.items():
        about = [line for line in lines if f"sub-{subject}" in line]
        for word in words:
            assert any(word in line for line in about), (subject, word, about)
    assert "Traceback" not in done.stderr
    assert len(check_output(out)) == 2  # 01 and 10
    written = {path.name[:6] for path in out.glob("sub-*/func/*")}
    assert written == {"sub-01", "sub-10"}


def test_a_crash_leaves_its_file_and_stands_in_the_report(
    spoilt_call: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, done = spoilt_call
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("failed: sub-02")]
    crash = Path(line.rpartition("[")[2].rstrip("]"))
    assert crash.is_file()
    assert out / "sub-02" / "log" in crash.parents
    assert "truncated or corrupt" in (out / "sub-02.html").read_text()
    assert "less than --min-time 60" in (out / "sub-07.html").read_text()
    assert "RepetitionTime" in (out / "sub-03.html").read_text()


def test_a_run_whose_input_is_mended_is_done_on_the_next_call(
    spoilt: tuple[Path, dict[str, tuple[str, ...]]],
    spoilt_call: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    dataset, _ = spoilt
    out, _ = spoilt_call
    files = _files(dataset, "02")
    shutil.copy(_files(dataset, "01")["bold"], files["bold"])
    options = ("--model=scaae", "--nuisance", "motion", "--motion=basic", "--fd-thresh=2")
    done = app(dataset, out, *options, *SMALL, "--participant-label", "01", "02")
    assert done.returncode == 0, done.stderr
    assert len(check_output(out)) == 3


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_dataset(
        tmp_path_factory.mktemp("good") / "data",
        n_participants=1,
        n_volumes=N_VOLUMES,
        resolution=12.0,
    )


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=False)


def test_a_full_disk_is_named_and_leaves_nothing_half_written(good: Path, tiny_disk: Path) -> None:
    out = tiny_disk / "out"
    work = tiny_disk.parent / "work"
    options = ("--model=scaae", "--nuisance=none", "--save-denoised", *SMALL)
    done = app(good, out, *options, work=work)
    assert done.returncode == 1
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in out.rglob("*") if path.name.endswith(".part")]
    for image in out.rglob("*.nii.gz"):
        np.asanyarray(nib.load(image).dataobj)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_an_output_folder_that_cannot_be_written_is_named(good: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    done = app(good, locked / "out", "--model=stca", *SMALL, work=tmp_path / "work")
    assert done.returncode == 2
    assert str(locked / "out") in done.stderr


def test_an_output_path_below_a_file_is_named(good: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = app(good, tmp_path / "file" / "out", "--model=stca", *SMALL, work=tmp_path / "work")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_fewer_volumes_than_the_window(good: Path, tmp_path: Path) -> None:
    done = app(good, tmp_path / "out", "--model=stca", *SMALL, "--window=80", "--nuisance=none")
    assert done.returncode == 1
    assert "fewer than the 80" in done.stderr


def test_models_that_cannot_be_made_are_named_before_anything_is_cleaned(
    good: Path, tmp_path: Path
) -> None:
    options = ("--model", "scaae", "stcnn", "--target-networks", "Nothing", "--nuisance=none")
    done = app(good, tmp_path / "out", *options, *SMALL, "--channels=3")
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 2
    assert "choose an even number" in errors[0]
    assert "--target-networks Nothing: not in Seitzman2018, which has" in errors[1]
    assert not (tmp_path / "out").exists()
