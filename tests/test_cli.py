"""The command line: what it understands, and what it says when it does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT

from bids_fbn import __version__
from bids_fbn.cli import main, parse_arguments
from bids_fbn.config import Config
from bids_fbn.errors import InputError
from bids_fbn.simulate import simulate_dataset


def _config(*options: str) -> Config:
    config = parse_arguments(["/in", "/out", "participant", *options])
    assert isinstance(config, Config)
    return config


def test_underscores_and_hyphens_are_the_same() -> None:
    assert _config("--participant_label", "sub-01") == _config("--participant-label", "01")
    assert _config("--n_cpus=3") == _config("--nprocs", "3") == _config("--nthreads", "3")


def test_memory_has_units() -> None:
    assert _config("--mem", "8GB").compute.mem_gb == 8
    assert _config("--mem-mb", "8000").compute.mem_gb == 8


def test_all_faults_of_a_command_line_come_at_once() -> None:
    with pytest.raises(InputError) as caught:
        _config(
            *("--model", "stac", "--lower-bpf", "0.1", "--upper-bpf", "0.01", "--device", "gpu"),
            *("--nuisance", "motion", "compcor"),
        )
    text = str(caught.value)
    assert "add high_pass" in text
    assert "--model" in text
    assert "--upper-bpf" in text
    assert "--device" in text


def test_options_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('[signal]\nsmoothing = 3.0\nresolution = 6.0\n[models]\nmodel = ["scaae"]\n')
    config = _config("--config-file", str(path), "--smoothing", "5")
    assert config.signal.smoothing == 5
    assert config.signal.resolution == 6
    assert config.models.model == ("scaae",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[signal\n", "line 1"),
        ("[signal]\nsmothing = 3\n", "unknown setting signal.smothing"),
        ('[signal]\nsmoothing = "much"\n', "--smoothing"),
    ],
)
def test_a_bad_file_is_named(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    assert main(["/in", "/out", "participant", "--config-file", str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert said in error


def test_toml_round_trip(tmp_path: Path) -> None:
    config = _config("--model", "stca", "scaae", "--fd-thresh", "0.4", "--dummy-scans", "3")
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml())
    assert Config.from_options({}, path) == config


def test_the_hash_follows_what_changes_results_and_nothing_else() -> None:
    base = _config()
    for same in (
        "--nprocs=7",
        "--device=cpu",
        "--work-dir=/tmp/x",
        "--task-id=rest",
        "--overwrite",
    ):
        assert _config(same).model_hash("stca", "s") == base.model_hash("stca", "s"), same
    changing = ("--smoothing=4", "--epochs=3", "--random-seed=2", "--templates=seitzman2018")
    hashes = {_config(option).model_hash("stca", "s") for option in changing}
    assert len(hashes | {base.model_hash("stca", "s"), base.model_hash("scaae", "s")}) == 6
    assert base.model_hash("stca", "other grid") != base.model_hash("stca", "s")


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_nothing_heavy_is_imported_for_a_question(option: str) -> None:
    code = (
        "import sys, runpy; sys.argv = ['run.py', sys.argv[1]]\n"
        "try: runpy.run_path('run.py', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'bids', 'lightning_fabric', 'matplotlib', 'nibabel', 'nilearn', 'nipype',\n"
        "         'numpy', 'pandas', 'plotly', 'scipy', 'sklearn', 'templateflow', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, option], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    if option == "--version":
        assert done.stdout.strip() == f"bids_fbn {__version__}"


def test_the_version_has_one_source() -> None:
    assert (ROOT / "version").read_text().strip() == __version__


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_dataset(
        tmp_path_factory.mktemp("input") / "data", n_participants=1, n_volumes=20, resolution=12.0
    )


def _refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_output_into_the_input_is_refused(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is the input" in _refused(capsys, dataset, dataset, "participant", "-w", tmp_path)
    inside = dataset / "work"
    said = _refused(capsys, dataset, tmp_path / "out", "participant", "-w", inside)
    assert "inside the input" in said
    assert not inside.exists()


def test_faults_of_folders_and_data_come_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing"
    said = _refused(
        capsys,
        missing,
        tmp_path / "o",
        "participant",
        "--model=scaae",
        "--window=9",
        "-w",
        tmp_path / "w",
    )
    assert "--window" in said
    assert str(missing) in said


def test_what_a_search_is_held_against_is_not_asked_of_models_that_do_not_search() -> None:
    by_fields = "--surrogate-maps=fields"

    def said(*options: str) -> list[str]:
        config = _config(by_fields, *options)
        return config.nulls.idle(config.models)

    (line,) = said("--model", "dualregression", "udr")
    assert by_fields.partition("=")[0] in line
    assert said("--model", "dualregression", "ica") == []
    assert said("--model=udr", "--components=10") == []


def test_a_gpu_that_is_not_there(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    said = _refused(
        capsys, dataset, tmp_path / "o", "participant", "-w", tmp_path / "w", "--device=cuda"
    )
    assert "--device cuda: no GPU" in said


def test_bad_templates_weights_and_plugins_are_named(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "plugin.yml"
    plugin.write_text("nothing: here")
    said = _refused(
        capsys,
        dataset,
        tmp_path / "o",
        "participant",
        "-w",
        tmp_path / "w",
        "--templates",
        tmp_path / "none.nii.gz",
        "--weights",
        tmp_path / "none.safetensors",
        "--use-plugin",
        plugin,
    )
    for word in ("none.nii.gz", "none.safetensors", "plugin.yml"):
        assert word in said


def test_a_graph_needs_graphviz(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = _refused(
        capsys, dataset, tmp_path / "o", "participant", "-w", tmp_path / "w", "--write-graph"
    )
    assert "needs graphviz" in said


def test_an_unknown_participant_is_refused_with_the_known_ones(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _refused(
        capsys,
        dataset,
        tmp_path / "o",
        "participant",
        "-w",
        tmp_path / "w",
        "--participant-label",
        "99",
    )
    assert "99" in said
    assert "01" in said


def test_demo_makes_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--demo", str(tmp_path / "data")]) == 0
    assert (tmp_path / "data" / "dataset_description.json").is_file()
