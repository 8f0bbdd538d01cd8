"""What can be said of the images without building them, which ``make containers`` does."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bids_fbn import __version__

TOP = Path(__file__).parent.parent
DOCKERFILE = (TOP / "Dockerfile").read_text()
RECIPE = (TOP / "Singularity.def").read_text()
PAGE = (TOP / "docs" / "containers.md").read_text()
HARNESS = (TOP / "containers" / "test").read_text()
LIST = TOP / "containers" / "outputs.txt"


def _section(name: str) -> str:
    match = re.search(rf"^%{name}\n(.*?)(?=^%|\Z)", RECIPE, re.MULTILINE | re.DOTALL)
    assert match is not None
    return match[1]


def test_the_label_says_the_version() -> None:
    assert f"\nARG VERSION={__version__}\n" in DOCKERFILE


def test_both_recipes_set_the_same_environment_from_the_same_base() -> None:
    (block,) = re.findall(r"^ENV (PATH=.*?[^\\])\n", DOCKERFILE, re.MULTILINE | re.DOTALL)
    of_docker = set(block.replace("\\\n", " ").split())
    of_apptainer = set(re.findall(r"export (\S+)", _section("environment")))
    # Docker is told of the cards by variables, Apptainer by --nv.
    assert of_docker - of_apptainer == {
        "NVIDIA_VISIBLE_DEVICES=all",
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    }
    assert of_apptainer <= of_docker
    for name in ("BASE", "TORCH", "TORCH_INDEX"):
        of_argument = re.findall(rf"^ *(?:ARG )?{name}=(\S*)$", DOCKERFILE, re.MULTILINE)
        assert re.findall(rf"^ *{name}=(\S*)$", _section("arguments"), re.MULTILINE) == sorted(
            set(of_argument)
        )


def test_everything_that_the_recipes_copy_is_let_through() -> None:
    kept = {
        line.removeprefix("!")
        for line in (TOP / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        name
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
        for name in line.split()
    }
    assert copied <= kept
    of_recipe = {line.split()[0] for line in _section("files").splitlines() if line.strip()}
    assert of_recipe == {name.partition("/")[0] for name in kept}
    assert all((TOP / name).exists() for name in kept)


def test_the_harness_runs_every_command_of_the_page() -> None:
    documented = set(re.findall(r"^<!-- run: (.*) -->$", PAGE, re.MULTILINE))
    run = set(re.findall(r'"((?:docker|apptainer) (?:participant|group)[a-z ]*)"', HARNESS))
    run |= {"build", *(f"apptainer {way}" for way in ("convert", "build"))}
    assert documented == run
    assert "for way in convert build" in HARNESS


def test_the_readme_has_the_commands_that_are_run() -> None:
    readme = (TOP / "README.md").read_text()
    page = PAGE + (TOP / "docs" / "hpc.md").read_text()
    run = dict(
        re.findall(r"^<!-- run: (.*?) -->\n```sh\n(.*?)```$", page, re.MULTILINE | re.DOTALL)
    )
    for name in ("docker participant", "docker group", "apptainer participant", "write"):
        assert run[name] in readme
    for line in readme.splitlines():
        if line.startswith(("docker run", "apptainer run", "python -m bids_fbn.slurm")):
            assert any(line in commands.splitlines() for commands in run.values()), line


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An output dataset of a table and an image."""
    import nibabel as nib

    out = tmp_path / "out"
    (out / "sub-01" / "log" / "20260101-a1").mkdir(parents=True)
    (out / "sub-01" / "log" / "20260101-a1" / "config.toml").write_text("")
    (out / "a.tsv").write_text("name\tvalue\tcount\nx\t1.0\t3.1\ny\tn/a\t2\n")
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.float32), np.eye(4)), out / "a.nii.gz")
    return out


def _compare(*arguments: object) -> subprocess.CompletedProcess[str]:
    script = TOP / "containers" / "compare.py"
    return subprocess.run(
        [sys.executable, script, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def _copy_of(tree: Path) -> Path:
    copy = tree.parent / "copy"
    shutil.copytree(tree, copy)
    (copy / "sub-01" / "log" / "20260101-a1").rename(copy / "sub-01" / "log" / "20270202-b2")
    return copy


def test_an_output_is_compared_with_the_list_and_with_another(tree: Path) -> None:
    names = tree.parent / "list.txt"
    assert _compare(tree, names, "--write").returncode == 0
    copy = _copy_of(tree)
    found = _compare(copy, names, tree)
    assert found.returncode == 0, found.stdout
    assert "3 files, 2 compared, largest difference 0.0e+00" in found.stdout


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name\tvalue\tcount\nx\t1.001\t3.1\ny\tn/a\t2\n", "a.tsv: differs by 0.001"),
        ("name\tvalue\tcount\nx\t1.0\t3.1\ny\t0\t2\n", "a.tsv: differs by inf"),
        ("name\tvalue\tcount\nz\t1.0\t3.1\ny\tn/a\t2\n", "a.tsv: differs by inf"),
        ("name\tcount\nx\t3.1\ny\t2\n", "a.tsv: differs by inf"),
        (None, "missing: a.tsv"),
    ],
)
def test_what_differs_is_named(tree: Path, text: str | None, says: str) -> None:
    names = tree.parent / "list.txt"
    _compare(tree, names, "--write")
    copy = _copy_of(tree)
    if text is None:
        (copy / "a.tsv").unlink()
    else:
        (copy / "a.tsv").write_text(text)
    found = _compare(copy, names, tree)
    assert found.returncode == 1
    assert says in found.stdout


def test_the_committed_list_is_of_the_harness_models() -> None:
    names = LIST.read_text().splitlines()
    assert names == sorted(set(names))
    (models,) = re.findall(r"--model ([a-z ]+) --sloppy", HARNESS)
    for model in models.split():
        assert any(f"desc-{model}_decomposition.json" in name for name in names)
