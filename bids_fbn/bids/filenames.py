"""BIDS file names taken apart, and the files that belong to them by BIDS inheritance.

Names are parsed here and not by pybids, which matches its patterns against the whole path (a
dataset kept in ``/data/ses-01/`` then has session 01 everywhere), leaves out the entities that
its configuration does not list (``cohort``), and turns ``run-01`` into 1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_fbn.errors import InputError

__all__ = [
    "KNOWN_ENTITIES",
    "NIFTI_EXTENSIONS",
    "Folders",
    "NamedFile",
    "parse_name",
    "read_json",
    "same_value",
]

NIFTI_EXTENSIONS = (".nii.gz", ".nii")

# Entities whose long name, as pybids and filter files have it, differs from the short one.
LONG_NAMES: Mapping[str, str] = {
    "sub": "subject",
    "ses": "session",
    "acq": "acquisition",
    "ce": "ceagent",
    "rec": "reconstruction",
    "dir": "direction",
    "mod": "modality",
    "nuc": "nucleus",
    "voi": "volume",
    "stain": "staining",
    "trc": "tracer",
    "seg": "segmentation",
}

# What a filter file may ask for: pybids' `bids` and `derivatives` configurations and `cohort`.
KNOWN_ENTITIES = (
    *LONG_NAMES.values(),
    *("sample", "task", "tracksys", "run", "proc", "echo", "flip", "inv", "mt", "part"),
    *("recording", "space", "cohort", "chunk", "atlas", "roi", "label", "desc", "from", "to"),
    *("mode", "hemi", "res", "den", "suffix", "datatype", "extension"),
)

# Entities with a number: run-1 and run-01 are the same one when asked for.
_INDICES = ("run", "echo", "flip", "inv", "chunk")


@dataclass(frozen=True)
class NamedFile:
    """A file and what its name says.

    Parameters
    ----------
    path : Path
        The file.
    entities : mapping of str to str
        Long name → value, as in the file name.
    suffix, extension : str
        ``bold`` and ``.nii.gz`` of ``…_bold.nii.gz``.
    """

    path: Path
    entities: Mapping[str, str]
    suffix: str
    extension: str

    def value(self, entity: str) -> str | None:
        """Value of an entity, or of ``suffix``, ``extension``, ``datatype``; None if absent."""
        if entity == "suffix":
            return self.suffix
        if entity == "extension":
            return self.extension
        if entity == "datatype":
            return self.path.parent.name
        return self.entities.get(entity)


def parse_name(path: Path) -> NamedFile:
    """Take a BIDS file name apart.

    Examples
    --------
    >>> file = parse_name(Path("sub-01_task-rest_run-01_desc-preproc_bold.nii.gz"))
    >>> file.entities["run"], file.suffix, file.extension
    ('01', 'bold', '.nii.gz')
    """
    stem, dot, extension = path.name.partition(".")
    *parts, suffix = stem.split("_")
    pairs = (part.partition("-") for part in parts if "-" in part)
    entities = {LONG_NAMES.get(short, short): value for short, _, value in pairs}
    return NamedFile(path, entities, suffix, dot + extension)


def same_value(entity: str, wanted: str, found: str) -> bool:
    """Whether a value asked for is the one found; numbers may differ in leading zeros."""
    if entity in _INDICES and wanted.isdigit() and found.isdigit():
        return int(wanted) == int(found)
    if entity == "extension":
        return wanted.lstrip(".") == found.lstrip(".")
    return wanted == found


class Folders:
    """The named files of folders; each folder is listed once."""

    def __init__(self) -> None:
        self._listed: dict[Path, tuple[NamedFile, ...]] = {}

    def files(self, folder: Path) -> tuple[NamedFile, ...]:
        """Files of a folder, sorted by name; none where the folder is missing."""
        if folder not in self._listed:
            try:
                names = sorted(os.listdir(folder))
            except (FileNotFoundError, NotADirectoryError):
                names = []
            self._listed[folder] = tuple(parse_name(folder / name) for name in names)
        return self._listed[folder]

    def applicable(
        self,
        root: Path,
        folder: Path,
        entities: Mapping[str, str],
        suffix: str,
        extension: str,
    ) -> list[Path]:
        """Files that apply to an image by the inheritance principle, the most specific last.

        Parameters
        ----------
        root : Path
            Dataset.
        folder : Path
            Folder of the image, beneath ``root``.
        entities : mapping of str to str
            Entities of the image; a file applies if it has none that the image lacks.
        suffix, extension : str
            Of the files looked for.

        Notes
        -----
        BIDS 1.10, "The Inheritance Principle". A sidecar without ``space`` applies to images of
        every space, which is how old fMRIPrep and raw sidecars reach a resampled image.
        """
        levels = [root]
        for part in folder.relative_to(root).parts:
            levels.append(levels[-1] / part)
        found: list[Path] = []
        for level in levels:
            here = [
                file
                for file in self.files(level)
                if file.suffix == suffix
                and file.extension == extension
                and file.entities.items() <= entities.items()
            ]
            found += [file.path for file in sorted(here, key=lambda file: len(file.entities))]
        return found


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises
    ------
    InputError
        With the line where the file stops being JSON.
    """
    try:
        # utf-8-sig: editors on Windows put a byte-order mark in front.
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); correct it"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a JSON object, {{…}}, not a {type(content).__name__}")
    return content
