"""The datasets of a call: which folders hold the BOLD, who is in them, and their index."""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_fbn.bids.filenames import NamedFile, parse_name, read_json
from bids_fbn.config import Config
from bids_fbn.errors import InputError

__all__ = [
    "Dataset",
    "Inputs",
    "find_bold",
    "find_inputs",
    "has_old_names",
    "open_layout",
    "participants",
]

INDEX_FILE = "layout_index.sqlite"  # pybids' name


@dataclass(frozen=True)
class Dataset:
    """A dataset that BOLD is taken from.

    Parameters
    ----------
    root : Path
        Absolute.
    name : str
        Name given by ``--derivatives``; empty for BIDS_DIR itself.
    """

    root: Path
    name: str = ""

    def uri(self, path: Path) -> str:
        """BIDS URI of a file of this dataset."""
        return f"bids:{self.name}:{path.relative_to(self.root).as_posix()}"


@dataclass(frozen=True)
class Inputs:
    """Where BOLD is, and the raw dataset (None where BIDS_DIR holds the BOLD itself)."""

    bold: tuple[Dataset, ...]
    raw: Path | None = None


def find_inputs(config: Config) -> Inputs:
    """Check the folders of a call.

    With ``--derivatives``, BOLD is taken from those and BIDS_DIR only supplies events and
    sidecars; without, BIDS_DIR must hold derivatives itself.

    Raises
    ------
    InputError
        With one line for each folder that is missing or is not what it should be.
    """
    root = Path(os.path.abspath(config.bids_dir))
    needs_description = not config.data.skip_bids_validation
    faults: list[str] = []
    description = _description(root, "BIDS_DIR", needs_description, faults)
    datasets = []
    for name, path in config.data.derivatives.items():
        dataset = Dataset(Path(os.path.abspath(path)), name)
        _description(dataset.root, f"--derivatives {name}", needs_description, faults)
        datasets.append(dataset)
    if not datasets and description is not None and not _holds_derivatives(root, description):
        faults.append(_raw_dataset(root))
    if faults:
        raise InputError(*faults)
    return Inputs(tuple(datasets), root) if datasets else Inputs((Dataset(root),))


def _description(
    root: Path, option: str, required: bool, faults: list[str]
) -> dict[str, Any] | None:
    """Content of ``dataset_description.json``; None, and a fault, if the dataset is unusable."""
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        faults.append(f"{option} {root} {what}; give the folder of a BIDS dataset")
        return None
    path = root / "dataset_description.json"
    if not path.exists():
        if not required:
            return {}
        beneath = _derivatives_beneath(root)
        hint = (
            f"did you mean {beneath[0]}?"
            if beneath
            else "give the top folder of a BIDS dataset, or add the file "
            '({"Name": "…", "BIDSVersion": "1.10.0", "DatasetType": "derivative"})'
        )
        faults.append(f"{option} {root}: no dataset_description.json in it; {hint}")
        return None
    try:
        content = read_json(path)
    except InputError as error:
        faults.extend(error.faults)
        return None
    # pybids takes the forms of these two for granted and would fail with a traceback.
    generators = content.get("GeneratedBy", [])
    if not isinstance(generators, list) or not all(isinstance(item, dict) for item in generators):
        faults.append(f'{path}: "GeneratedBy" must be a list of objects; correct it')
        return None
    if not isinstance(content.get("PipelineDescription", {}), dict):
        faults.append(f'{path}: "PipelineDescription" must be an object; correct it')
        return None
    return content


def _holds_derivatives(root: Path, description: dict[str, Any]) -> bool:
    """By its description; where that does not say (before BIDS 1.4), by its file names."""
    kind = description.get("DatasetType")
    if kind in ("derivative", "raw"):
        return bool(kind == "derivative")
    if "GeneratedBy" in description or "PipelineDescription" in description:
        return True
    names = _bold_names(root)
    return any("_desc-" in name or "_space-" in name for name in names)


def _bold_names(root: Path) -> Iterator[str]:
    """Names of all files in ``func`` folders, found lazily."""
    for subject in sorted(root.glob("sub-*")):
        if not subject.is_dir():
            continue
        for folder in (subject / "func", *sorted(subject.glob("ses-*/func"))):
            if folder.is_dir():
                yield from (name for name in os.listdir(folder) if "_bold" in name)


def has_old_names(root: Path) -> bool:
    """Whether files are named as fMRIPrep did before version 1.2."""
    return any(re.search(r"_bold_space-\w+_preproc\.nii", name) for name in _bold_names(root))


def _raw_dataset(root: Path) -> str:
    beneath = _derivatives_beneath(root)
    if beneath:
        hint = (
            f"give its derivatives, --derivatives {beneath[0].name}={beneath[0]}, "
            "or that folder as BIDS_DIR"
        )
    else:
        hint = (
            "run fMRIPrep on it (--output-spaces MNI152NLin2009cAsym) and give its output, "
            "as BIDS_DIR or with --derivatives fmriprep=PATH"
        )
    return f"BIDS_DIR {root} is a raw dataset, and preprocessed BOLD is needed; {hint}"


def _derivatives_beneath(root: Path) -> list[Path]:
    """Folders that the user may have meant, fMRIPrep's first."""
    folders = [
        path
        for path in root.glob("derivatives/*")
        if path.is_dir()
        and ("fmriprep" in path.name.lower() or (path / "dataset_description.json").exists())
    ]
    return sorted(folders, key=lambda path: ("fmriprep" not in path.name.lower(), path.name))


def participants(root: Path) -> list[str]:
    """Labels of the ``sub-*`` folders of a dataset, sorted.

    Raises
    ------
    InputError
        If the folder cannot be read.
    """
    try:
        with os.scandir(root) as entries:
            return sorted(
                entry.name.removeprefix("sub-")
                for entry in entries
                if entry.name.startswith("sub-") and entry.is_dir()
            )
    except OSError as error:
        raise InputError(f"{root}: cannot be read ({error.strerror})") from None


def find_bold(
    dataset: Dataset, labels: Collection[str], database_dir: Path | None = None
) -> list[NamedFile]:
    """BOLD volumes of the participants, in the order of their names.

    Raises
    ------
    InputError
        If the database of ``database_dir`` cannot be used.
    """
    layout = open_layout(dataset.root, labels, database_dir)
    paths = layout.get(
        suffix="bold",
        extension=[".nii", ".nii.gz"],
        return_type="filename",
        invalid_filters="allow",  # an index without files knows no entities
    )
    files = (parse_name(Path(path)) for path in paths)
    # A database holds everyone.
    return [file for file in files if file.entities.get("subject") in labels]


def open_layout(root: Path, labels: Collection[str], database_dir: Path | None = None) -> Any:
    """pybids layout of the BOLD volumes in ``sub-*/[ses-*/]func``, without metadata.

    Parameters
    ----------
    root : Path
        Dataset.
    labels : collection of str
        Participants to index: all others are not even listed, which is what makes one
        participant of a thousand quick.
    database_dir : Path, optional
        Folder of a pybids database. One that is there is used as it is (files added since are
        not in it); else it is made, of all participants.

    Returns
    -------
    bids.layout.BIDSLayout
        The index.

    Raises
    ------
    InputError
        If the database cannot be read or written, or is of another dataset.
    """
    if database_dir is None:
        return _index(root, "|".join(map(re.escape, sorted(labels))))
    # pybids and the database under it report trouble in many ways; the user's way out is one.
    try:
        if not (database_dir / INDEX_FILE).exists():
            _make_database(root, database_dir)
        layout = _index(root, database_dir=database_dir)
        indexed = Path(layout.root)
    except Exception as error:
        raise InputError(
            f"--bids-database-dir {database_dir}: cannot be used "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
            "delete it or give another folder"
        ) from error
    if indexed.resolve() != root.resolve():
        raise InputError(
            f"--bids-database-dir {database_dir}: is an index of {indexed}, not of {root}; "
            "give another folder"
        )
    return layout


def _make_database(root: Path, database_dir: Path) -> None:
    """Index aside and rename: an interrupted run must not leave an index that lacks files."""
    database_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=database_dir, prefix=".indexing-") as aside:
        _index(root, database_dir=Path(aside))
        os.replace(Path(aside) / INDEX_FILE, database_dir / INDEX_FILE)


def _index(root: Path, labels: str = r"[0-9a-zA-Z+]+", database_dir: Path | None = None) -> Any:
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    # Folders on the way to the BOLD files and these themselves; everything else is ignored.
    # pybids matches the path beneath the root, with a slash in front.
    wanted = rf"/sub-(?:{labels})(?:/ses-[^/]+)?(?:/func(?:/[^/]+_bold\.nii(?:\.gz)?)?)?"
    indexer = BIDSLayoutIndexer(
        validate=False,
        ignore=[re.compile(rf"^(?!{wanted}$)")],
        index_metadata=False,
    )
    with warnings.catch_warnings():
        # On `PipelineDescription`, the old form of `GeneratedBy`: not the user's doing.
        warnings.simplefilter("ignore")
        return BIDSLayout(
            root,
            validate=False,
            config=["bids", "derivatives"],
            indexer=indexer,
            database_path=database_dir,
        )
