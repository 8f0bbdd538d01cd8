"""Folders that libraries write to, where the usual ones cannot be written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from bids_fbn.environment import prepare_environment
from bids_fbn.errors import InputError


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is set is forgotten afterwards."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.fixture
def no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose image is read-only."""

    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)


def test_caches_leave_a_home_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    for name in ("MPLCONFIGDIR", "TEMPLATEFLOW_HOME"):
        os.environ.pop(name, None)
    prepare_environment()
    assert Path(os.environ["MPLCONFIGDIR"]).is_dir()
    assert tmp_path in Path(os.environ["TEMPLATEFLOW_HOME"]).parents


@pytest.mark.usefixtures("no_temporary_folder")
def test_temporary_files_go_to_the_work_folder_where_nothing_else_can_be_written(
    tmp_path: Path,
) -> None:
    prepare_environment(scratch=tmp_path / "work")
    assert os.environ["TMPDIR"] == str(tmp_path / "work" / "tmp")
    assert Path(os.environ["TMPDIR"]).is_dir()


@pytest.mark.usefixtures("no_temporary_folder")
def test_a_work_folder_that_cannot_be_written_either_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file")
    with pytest.raises(InputError, match=r"--work-dir .*work: cannot be written, nor can /tmp"):
        prepare_environment(scratch=tmp_path / "work")


def test_a_usable_temporary_folder_stays(tmp_path: Path) -> None:
    before = os.environ.get("TMPDIR")
    prepare_environment(scratch=tmp_path / "work")
    assert os.environ.get("TMPDIR") == before
    assert not (tmp_path / "work").exists()
