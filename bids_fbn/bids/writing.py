"""Writing files whole or not at all, and the files that a dataset has once."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
import pandas as pd
from filelock import FileLock

from bids_fbn import __version__
from bids_fbn.bids.naming import BIDSIGNORE
from bids_fbn.errors import RunError

__all__ = [
    "GENERATED_BY",
    "Columns",
    "copy_file",
    "sidecar_path",
    "update_dataset_description",
    "write_bidsignore",
    "write_bytes",
    "write_image",
    "write_json",
    "write_table",
    "write_text",
]

BIDS_VERSION = "1.11.1"
CODE_URL = "https://github.com/bids-fbn/bids_fbn"
# Written beside every result.
GENERATED_BY: Mapping[str, str] = {"Name": "bids_fbn", "Version": __version__}

# Column → what it holds, with `Units` where it has any.
Columns = Mapping[str, Mapping[str, Any]]


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only once it is complete.

    Raises
    ------
    RunError
        If the disk is full or the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        with part.open("wb") as stream:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """Remove what a killed process left of this file; one that is being written is locked."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        with contextlib.suppress(OSError), part.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


def _cannot_write(path: Path, error: OSError) -> RunError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"{path}: the disk is full; make room and call again, what is done is kept"
        )
    return RunError(f"{path}: cannot be written ({error.strerror or error})")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file."""
    with _whole(path) as stream:
        stream.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file; NaN becomes null."""
    write_text(path, json.dumps(_plain(content), indent=2, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    """Values that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def sidecar_path(path: Path) -> Path:
    """``x.nii.gz`` or ``x.tsv`` → ``x.json``."""
    return path.with_name(path.name.partition(".")[0] + ".json")


def write_table(
    path: Path, table: pd.DataFrame, columns: Columns, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a TSV and the sidecar that describes each of its columns.

    Raises
    ------
    ValueError
        If a column is not described.
    """
    bare = [str(name) for name in table.columns if name not in columns]
    if bare:
        raise ValueError(f"{path.name}: columns without a description: {', '.join(bare)}")
    described = {str(name): columns[str(name)] for name in table.columns}
    # The sidecar first: a table is never without what its columns mean.
    write_json(sidecar_path(path), {**(metadata or {}), **described})
    write_text(path, table.to_csv(sep="\t", na_rep="n/a", index=False, float_format="%.6g"))


def write_image(path: Path, image: nib.Nifti1Image, metadata: Mapping[str, Any]) -> None:
    """Write a NIfTI image (``.nii.gz``) and its sidecar; the same image gives the same bytes."""
    write_json(sidecar_path(path), metadata)
    with (
        _whole(path) as stream,
        # Neither name nor time in the header of the compressed file.
        gzip.GzipFile(filename="", fileobj=stream, mode="wb", compresslevel=6, mtime=0) as packed,
    ):
        file_map = image.make_file_map({"image": packed})
        image.to_file_map(file_map)


def copy_file(source: Path, path: Path) -> None:
    """Copy a file."""
    with source.open("rb") as original, _whole(path) as stream:
        shutil.copyfileobj(original, stream)


def write_bidsignore(root: Path) -> None:
    """Name what the standard has no names for yet; keeps lines that a user added."""
    path = root / ".bidsignore"
    with _locked(root):
        present = path.read_text().splitlines() if path.is_file() else []
        missing = [line for line in BIDSIGNORE if line not in present]
        if missing:
            write_text(path, "\n".join([*present, *missing]) + "\n")


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One process at a time on the files that a dataset has once."""
    root.mkdir(parents=True, exist_ok=True)
    lock = root / ".bids_fbn.lock"
    with FileLock(lock):
        yield


def update_dataset_description(
    root: Path, links: Mapping[str, str], configuration: Mapping[str, Any]
) -> None:
    """Write ``dataset_description.json``, or add to the one that is there.

    Parameters
    ----------
    root : Path
        The output dataset.
    links : mapping
        Name → URI of each dataset that results came from.
    configuration : mapping
        Hashes of what changes results, by what they belong to; added to those present.
    """
    path = root / "dataset_description.json"
    with _locked(root):
        present: dict[str, Any] = {}
        if path.is_file():
            with contextlib.suppress(ValueError):  # broken by somebody else: written anew
                present = json.loads(path.read_text())
        others = [
            entry
            for entry in present.get("GeneratedBy", [])
            if entry.get("Name") != GENERATED_BY["Name"]
        ]
        ours: dict[str, Any] = {
            **GENERATED_BY,
            "CodeURL": CODE_URL,
            "ConfigurationHash": {**_our_hashes(present), **configuration},
        }
        container = _container()
        if container:
            ours["Container"] = container
        write_json(
            path,
            {
                "Name": present.get("Name", "Functional brain networks by bids_fbn"),
                "BIDSVersion": BIDS_VERSION,
                "DatasetType": "derivative",
                "License": present.get("License", "CC0"),
                "GeneratedBy": [ours, *others],
                "DatasetLinks": {**present.get("DatasetLinks", {}), **links},
            },
        )


def _our_hashes(description: Mapping[str, Any]) -> dict[str, Any]:
    for entry in description.get("GeneratedBy", []):
        if entry.get("Name") == GENERATED_BY["Name"]:
            return dict(entry.get("ConfigurationHash", {}))
    return {}


def _container() -> dict[str, str] | None:
    """The container that this runs in, if the image says which it is."""
    tag = os.environ.get("BIDS_FBN_CONTAINER")
    if not tag:
        return None
    kind = "singularity" if os.environ.get("SINGULARITY_CONTAINER") else "docker"
    return {"Type": kind, "Tag": tag}
