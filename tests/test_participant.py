"""The participant level from the command line to the files it leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from command import ROOT, SMALL, TRAINED, app, assert_valid_bids, environment, result_files
from read_back import check_output

from bids_fbn.bids.discovery import discover
from bids_fbn.bids.naming import run_outputs
from bids_fbn.bids.writing import sidecar_path
from bids_fbn.config import Config
from bids_fbn.simulate import simulate_dataset
from bids_fbn.train import main as train_main

OPTIONS = (
    "--participant-label=01",
    "--model",
    "stca",
    "scaae",
    "--fd-thresh=0.3",
    "--nuisance",
    "motion",
    "--motion=basic",
    *SMALL,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two participants."""
    return simulate_dataset(
        tmp_path_factory.mktemp("input") / "data",
        n_participants=2,
        n_volumes=60,
        resolution=10.0,
    )


@pytest.fixture(scope="module")
def output(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of both models on one participant, not to be written to."""
    out = tmp_path_factory.mktemp("output") / "out"
    done = app(dataset, out, *OPTIONS, "--save-dynamic-maps", "--save-denoised")
    assert done.returncode == 0, done.stderr
    assert f"report: {out / 'sub-01.html'}" in done.stdout
    return out


def test_every_promised_file_is_there(dataset: Path, output: Path) -> None:
    (run,) = discover(
        Config(bids_dir=dataset, output_dir=output, data={"participant_label": ["01"]})
    ).runs
    for path in run_outputs(run, ("stca", "scaae"), resolution=10, atlas="Seitzman2018"):
        assert (output / path).is_file(), path
        assert sidecar_path(output / path).is_file(), path
    names = {path.name for path in output.rglob("*")}
    assert "sub-01_task-rest_desc-stca_model.safetensors" in names
    assert {"CITATION.md", "CITATION.html", "CITATION.bib"} <= names
    assert sum(name.endswith("_desc-stcadynamic_components.nii.gz") for name in names) == 13
    assert sum(name.endswith("_desc-denoised_bold.nii.gz") for name in names) == 1
    assert not any("sub-02" in name for name in names)
    assert list(output.glob("sub-01/log/*/config.toml"))


def test_output_reads_back(output: Path) -> None:
    assert len(check_output(output)) == 2


def test_output_is_valid_bids(output: Path) -> None:
    assert_valid_bids(output)


def test_config_of_a_call_can_be_given_back(output: Path) -> None:
    (path,) = output.glob("sub-01/log/*/config.toml")
    config = Config.from_options({}, path)
    assert config.models.model == ("stca", "scaae")
    assert config.signal.fd_thresh == 0.3


@pytest.fixture
def copied(output: Path, tmp_path: Path) -> Path:
    """A copy of the output and of its work folder, to change."""
    for name in ("out", "out-work"):
        shutil.copytree(output.parent / name, tmp_path / name)
    return tmp_path / "out"


def test_finished_results_are_not_made_again(dataset: Path, copied: Path) -> None:
    before = {name: (copied / name).stat().st_mtime_ns for name in result_files(copied)}
    shutil.rmtree(copied.with_name("out-work"))  # nothing to take up but the results
    done = app(dataset, copied, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "results are there already" in done.stderr
    changed = {
        name
        for name in before
        if (copied / name).stat().st_mtime_ns != before[name] and name.startswith("sub-")
    }
    assert changed == set()


def test_a_lost_file_is_made_again_with_the_same_content(dataset: Path, copied: Path) -> None:
    before = result_files(copied)
    lost = next(copied.rglob("*_desc-stca_metrics.tsv"))
    lost.unlink()
    done = app(dataset, copied, *OPTIONS)
    assert done.returncode == 0, done.stderr
    after = result_files(copied)
    assert {name for name in before if before[name] != after.get(name)} == set()


def test_what_is_asked_for_later_is_added(dataset: Path, output: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for options in ((), ("--save-dynamic-maps", "--save-denoised")):
        done = app(dataset, out, "--model=scaae", *OPTIONS[:1], *OPTIONS[4:], *options)
        assert done.returncode == 0, done.stderr
        wanted = {
            name: content
            for name, content in result_files(output).items()
            if ("dynamic" in name or "denoised" in name) and "stca" not in name
        }
        got = {name: content for name, content in result_files(out).items() if name in wanted}
        assert got == (wanted if options else {})


def test_results_of_other_settings_are_not_mixed_in(dataset: Path, copied: Path) -> None:
    before = result_files(copied)
    done = app(dataset, copied, *OPTIONS, "--smoothing=4")
    assert done.returncode == 2
    assert "holds results by other settings" in done.stderr
    assert "Traceback" not in done.stderr
    assert result_files(copied) == before
    # Neither does another participant's share of a dataset.
    other = [o if o != "--participant-label=01" else "--participant-label=02" for o in OPTIONS]
    assert app(dataset, copied, *other, "--smoothing=4").returncode == 2


def test_weights_of_one_participant_apply_to_another(dataset: Path, output: Path) -> None:
    weights = output / "models" / "sub-01_task-rest_desc-scaae_model.safetensors"
    out = output.parent / "applied"
    done = app(
        dataset,
        out,
        "--participant-label=02",
        "--model",
        "scaae",
        "dualregression",
        f"--weights={weights}",
        "--nuisance=none",
        "--window=20",
        *TRAINED,
    )
    assert done.returncode == 0, done.stderr
    # What is fitted anew to every run needs no weights.
    beside = json.loads(next(out.rglob("*_desc-dualregression_decomposition.json")).read_text())
    assert beside["Training"]["Runs"] == ["sub-02_task-rest"]
    assert beside["Window"] == 20
    facts = json.loads(next(out.rglob("*_desc-scaae_decomposition.json")).read_text())
    assert facts["Training"]["Runs"] == ["sub-01_task-rest"]
    assert facts["TrainedOnThisRun"] is False
    text = (out / "logs" / "CITATION.md").read_text()
    assert "trained beforehand on 1 run, none of which is analysed here" in text
    done = app(dataset, out, "--model=scaae", f"--weights={weights}", *TRAINED, "--resolution=12")
    assert done.returncode == 2
    assert "at 12 mm" in done.stderr


def test_one_model_is_trained_on_all_participants_and_applied(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ST-CNN, whose courses come from its own temporal part."""
    signals, out = tmp_path / "signals", tmp_path / "out"
    work = tmp_path / "signals-work"
    done = app(dataset, signals, "--signals-only", "--nuisance=none", *TRAINED)
    assert done.returncode == 0, done.stderr
    assert f"cleaned signals: {work / 'bids_fbn' / 'signals'}" in done.stdout
    assert len(list(signals.rglob("*_qc.tsv"))) == 2
    assert not list(signals.rglob("*_components*"))
    assert not list(signals.glob("*.html"))
    weights = tmp_path / "shared.safetensors"
    code = train_main(
        [
            *(str(work), str(weights), "--model=stcnn", "--templates=seitzman2018"),
            *("--sloppy", "--epochs=1", "--device=cpu", "--window=20"),
        ]
    )
    assert code == 0, capsys.readouterr().err
    card = json.loads(weights.with_suffix(".json").read_text())
    assert card["Training"]["Runs"] == ["sub-01_task-rest", "sub-02_task-rest"]
    options = ("--participant-label=02", "--model=stcnn", f"--weights={weights}")
    done = app(dataset, out, *options, "--nuisance=none", *TRAINED)
    assert done.returncode == 0, done.stderr
    check_output(out)
    facts = json.loads(next(out.rglob("*_desc-stcnn_decomposition.json")).read_text())
    assert facts["TrainedOnThisRun"] is True
    assert "dictionary learning" in (out / "logs" / "CITATION.md").read_text()
    mixing = next(out.rglob("*_desc-stcnn_mixing.tsv"))
    column = card["Architecture"]["Networks"][0]
    described = json.loads(mixing.with_suffix(".json").read_text())[column]
    assert "temporal part" in described["Description"]
    courses = pd.read_csv(mixing, sep="\t", na_values="n/a")
    assert len(courses) == 60
    assert courses[column].std() == pytest.approx(1, abs=0.05)


def _wait_for(folder: Path, pattern: str, process: subprocess.Popen[bytes]) -> None:
    while not list(folder.glob(pattern)) and process.poll() is None:
        time.sleep(0.02)


def test_killed_calls_are_completed_by_the_next_one(
    dataset: Path, output: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [ROOT / "run.py", dataset, out, "participant", "-w", tmp_path / "out-work", *OPTIONS]
    # Killed while it cleans, fits, finds, and writes, each time where the call before had come to.
    for pattern in (
        "out-work/bids_fbn/signals/*/resampled.npy",
        "out-work/bids_fbn/networks/fit_stca_*",
        "out-work/bids_fbn/networks/find_*",
        "out/sub-01/func/*_desc-*_mixing.tsv",
    ):
        assert not list(tmp_path.glob(pattern)), pattern
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=environment(tmp_path),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        _wait_for(tmp_path, pattern, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (out / "sub-01.html").exists()
    done = app(dataset, out, *OPTIONS)
    assert done.returncode == 0, done.stderr
    expected = {
        name: content
        for name, content in result_files(output).items()
        if "dynamic" not in name and "denoised" not in name
    }
    got = result_files(out)
    assert got.keys() == expected.keys()
    assert [name for name in expected if got[name] != expected[name]] == []


def test_dry_run_says_what_would_be_written_and_writes_nothing(
    dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = app(dataset, out, "--dry-run", "--model=stca", *SMALL)
    assert done.returncode == 0, done.stderr
    for word in ("sub-01_task-rest", "sub-02_task-rest", "60", "2", "_desc-stca_mixing.tsv"):
        assert word in done.stdout
    assert not out.exists()
