"""Calling the app as its user does: as a command, in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

__all__ = ["SMALL", "TRAINED", "app", "assert_valid_bids", "environment", "result_files"]

ROOT = Path(__file__).resolve().parent.parent
# Small models, templates that need no download, no network looked for. Of several threads the sums
# may on some processors be added in another order each time: results that a test compares bit by
# bit come from one.
TRAINED = (
    "--templates=seitzman2018",
    "--resolution=10",
    "--device=cpu",
    "--omp-nthreads=1",
    "--min-time=60",
    "--n-surrogates=2",
    "--n-surrogate-maps=20",
)
SMALL = ("--sloppy", "--epochs=1", "--channels=4", *TRAINED)


def environment(folder: Path) -> dict[str, str]:
    """The environment of a call, with a template cache of its own that holds nothing."""
    cache = folder / "templateflow"
    (cache / "tpl-None").mkdir(parents=True, exist_ok=True)
    return {**os.environ, "TEMPLATEFLOW_HOME": str(cache), "PYTHONUNBUFFERED": "1"}


def app(
    bids_dir: Path, out: Path, *options: object, work: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the participant level; the output is text."""
    work = work or out.parent / f"{out.name}-work"
    command = [ROOT / "run.py", bids_dir, out, "participant", "-w", work, *options]
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        env=environment(work.parent),
        check=False,
    )


def result_files(out: Path) -> dict[str, bytes]:
    """Every result and its content; what names a time or a call is left out."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
        and "log" not in path.relative_to(out).parts
        and path.suffix not in (".html", ".lock")
        and "figures" not in path.relative_to(out).parts
    }


def assert_valid_bids(folder: Path) -> None:
    """By the BIDS validator; skips where it is not installed."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    validator = shutil.which("bids-validator-deno", path=folders)
    if validator is None:
        pytest.skip("bids-validator-deno is not installed")
    done = subprocess.run(
        [validator, "--format", "json", str(folder)], capture_output=True, text=True, check=False
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    errors = [issue for issue in issues if issue["severity"] == "error"]
    assert [(issue["code"], issue.get("location")) for issue in errors] == []
