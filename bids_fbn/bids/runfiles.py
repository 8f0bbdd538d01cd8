"""What is known of one run before its data are read: header, repetition time, companion files."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
from nibabel.arrayproxy import ArrayProxy

from bids_fbn.bids.filenames import NIFTI_EXTENSIONS, Folders, NamedFile, read_json
from bids_fbn.errors import RunError

__all__ = [
    "CONFOUNDS_NAMES",
    "BoldHeader",
    "brain_mask",
    "check_content",
    "confounds_table",
    "events_table",
    "read_bold_header",
    "repetition_time",
    "voxel_size",
]

# Newest first; `regressors` until fMRIPrep 20.1, `bold_confounds` until 1.1.
CONFOUNDS_NAMES: tuple[tuple[str | None, str], ...] = (
    ("confounds", "timeseries"),
    ("confounds", "regressors"),
    (None, "confounds"),
)

# Entities of an image that its confounds and events do not have: they are the run's.
IMAGE_ENTITIES = ("space", "cohort", "res", "den", "label", "desc")

SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}

# No fMRI takes longer for a volume; 2000 stands for milliseconds.
LONGEST_REPETITION_TIME = 100.0


@dataclass(frozen=True)
class BoldHeader:
    """What the header of a BOLD image says.

    Parameters
    ----------
    n_volumes : int
        Length of the fourth axis.
    repetition_time : float or None
        In s; None where the header has none. Only a hint: many tools write 1 or 0 there.
    """

    n_volumes: int
    repetition_time: float | None


def check_content(path: Path) -> None:
    """Refuse a file that is missing or empty.

    Raises
    ------
    RunError
        With what to do.
    """
    if not path.exists():
        if path.is_symlink():
            raise RunError(
                f"{path}: a link to nothing; fetch its content (datalad get, git annex get)"
            )
        raise RunError(f"{path}: no such file; put it back, or make the index of files anew")
    if path.stat().st_size == 0:
        raise RunError(
            f"{path}: empty (0 bytes), perhaps a placeholder; fetch its content or run the "
            "preprocessing again"
        )


def read_bold_header(path: Path) -> BoldHeader:
    """Read the header of a BOLD image; its data are not touched.

    Raises
    ------
    RunError
        If it is missing, empty, not NIfTI, not 4-D, or shorter than its header says.
    """
    check_content(path)
    image = _load(path)
    shape = image.shape
    if len(shape) != 4:
        raise RunError(
            f"{path}: has {len(shape)} dimensions ({' × '.join(map(str, shape))}), BOLD has 4; "
            "give the preprocessed time series"
        )
    if shape[3] < 2:
        raise RunError(f"{path}: holds {shape[3]} volume; give the preprocessed time series")
    data = image.dataobj
    if path.suffix == ".nii" and isinstance(data, ArrayProxy):
        # Of the proxy: nibabel sets the offset in the header of a loaded image to 0.
        needed = data.offset + math.prod(map(int, shape)) * data.dtype.itemsize
        if path.stat().st_size < needed:
            raise RunError(
                f"{path}: cut short, {path.stat().st_size} of {needed} bytes are there; copy it "
                "again or run the preprocessing again"
            )
    unit = SECONDS.get(image.header.get_xyzt_units()[1])
    step = float(image.header.get_zooms()[3])
    hint = step * unit if unit and math.isfinite(step) and step > 0 else None
    return BoldHeader(int(shape[3]), hint)


def voxel_size(path: Path) -> tuple[float, ...] | None:
    """Edges of a voxel in mm, None where the header cannot be read."""
    try:
        check_content(path)
        return tuple(float(edge) for edge in _load(path).header.get_zooms()[:3])
    except RunError:
        return None


def _load(path: Path) -> nib.Nifti1Image:
    try:
        image = nib.load(path)
    except (
        nib.filebasedimages.ImageFileError,
        nib.spatialimages.HeaderDataError,
        OSError,  # also gzip.BadGzipFile
        EOFError,
        ValueError,
        zlib.error,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path}: cannot be read as NIfTI ({reason}); copy it again") from None
    if not isinstance(image, nib.Nifti1Image):
        raise RunError(f"{path}: not NIfTI but {type(image).__name__}; convert it to NIfTI")
    return image


def repetition_time(
    bold: NamedFile, root: Path, raw: Path | None, folders: Folders, header: BoldHeader | None
) -> float:
    """Repetition time in s from the JSON sidecars, by inheritance.

    Sidecars of the derivatives go before those of the raw dataset, which some derivatives have
    as their only ones. A header is never believed: tools write 1 into it for want of better.

    Parameters
    ----------
    bold : NamedFile
        The image.
    root, raw : Path
        Dataset of the image; raw dataset, if there is one.
    folders : Folders
        Listings of both.
    header : BoldHeader or None
        For the hint in the message.

    Raises
    ------
    RunError
        If there is none, or it is no positive number of seconds.
    InputError
        If a sidecar is not valid JSON.
    """
    folder = bold.path.parent
    sidecars: list[Path] = []
    if raw is not None:
        raw_folder = raw / folder.relative_to(root)
        sidecars += folders.applicable(raw, raw_folder, bold.entities, "bold", ".json")
    own = folders.applicable(root, folder, bold.entities, "bold", ".json")
    sidecars += own
    value: object = None
    origin: Path | None = None
    sparse: Path | None = None
    for path in sidecars:
        metadata = read_json(path)
        if metadata.get("RepetitionTime") is not None:
            value, origin = metadata["RepetitionTime"], path
        if "VolumeTiming" in metadata:
            sparse = path
    if origin is None and sparse is not None:
        raise RunError(
            f"{sparse}: gives VolumeTiming and no RepetitionTime; volumes at uneven times "
            "(sparse sampling) cannot be analysed, leave the run out with --bids-filter-file"
        )
    if origin is None:
        beside = bold.path.with_name(bold.path.name.removesuffix(bold.extension) + ".json")
        place = own[-1] if own else beside
        says = header.repetition_time if header else None
        hint = f" (the image header says {says:.4g} s)" if says else ""
        raise RunError(f"{bold.path}: has no RepetitionTime; add it to {place}{hint}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RunError(f"{origin}: RepetitionTime must be a number of seconds, got {value!r}")
    if not (math.isfinite(value) and value > 0):
        raise RunError(f"{origin}: RepetitionTime must be above 0 s, got {value}; correct it")
    if value > LONGEST_REPETITION_TIME:
        raise RunError(
            f"{origin}: RepetitionTime is {value:g} s; write it in seconds, not milliseconds"
        )
    return float(value)


def brain_mask(bold: NamedFile, folders: Folders) -> Path | None:
    """Brain mask in the space and resolution of the image, if there is one."""
    wanted = {**bold.entities, "desc": "brain"}
    found = [
        file
        for file in folders.files(bold.path.parent)
        if file.suffix == "mask" and file.extension in NIFTI_EXTENSIONS and file.entities == wanted
    ]
    # Where both forms are there, the one that was written with the image.
    found.sort(key=lambda file: file.extension != bold.extension)
    return found[0].path if found else None


def confounds_table(bold: NamedFile, folders: Folders) -> tuple[Path | None, Path | None]:
    """Confounds of the run and their JSON, under the newest of the names that are there."""
    run = _run_entities(bold.entities)
    # Confounds are of all echoes together.
    whole_run = {name: value for name, value in run.items() if name not in ("echo", "part")}
    for entities in (run, whole_run):
        for desc, suffix in CONFOUNDS_NAMES:
            for file in folders.files(bold.path.parent):
                if (
                    file.suffix == suffix
                    and file.extension == ".tsv"
                    and file.entities.get("desc") == desc
                    and _run_entities(file.entities) == entities
                ):
                    metadata = file.path.with_suffix(".json")
                    return file.path, metadata if metadata.exists() else None
    return None, None


def events_table(bold: NamedFile, root: Path, raw: Path | None, folders: Folders) -> Path | None:
    """Events of the run: those of the derivatives, else those of the raw dataset."""
    folder = bold.path.parent
    places = [(root, folder)]
    if raw is not None:
        places.append((raw, raw / folder.relative_to(root)))
    for dataset, place in places:
        found = folders.applicable(dataset, place, bold.entities, "events", ".tsv")
        if found:
            return found[-1]
    return None


def _run_entities(entities: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in entities.items() if name not in IMAGE_ENTITIES}
