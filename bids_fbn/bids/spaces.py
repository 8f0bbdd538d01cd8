"""Which standard space, at which resolution, the BOLD files are taken from.

The network templates are drawn on the adult MNI brain, so only BOLD that was resampled to it can
be compared with them. These spaces are taken for it: ``MNI152…`` (all of them), ``MNI``,
``MNI305``, ``MNIColin27``, ``ICBM152…``, ``ICBM452…`` and ``IXI549Space`` (SPM12's). They differ
from each other by a few millimetres at most, as much as the smoothing blurs. Infant and pediatric
templates, surfaces and native spaces are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_fbn.bids.filenames import NamedFile
from bids_fbn.errors import InputError

__all__ = ["Space", "SpaceRequest", "choose_space", "is_adult_mni", "parse_space", "space_of"]

_ADULT_MNI = re.compile(r"(MNI152|ICBM152|ICBM452)\w*|MNI|MNI305|MNIColin27|IXI549Space")
_YOUNG = re.compile(r"MNIInfant|MNIPediatric|UNCInfant|dhcp|NIHPD|PNC", re.IGNORECASE)
_SURFACE = re.compile(r"fsLR|fsaverage|fsnative|onavg|civet", re.IGNORECASE)
_NATIVE = ("T1w", "T2w", "func", "boldref", "scanner", "orig", "individual", "anat", "bold")

RERUN = (
    "run fMRIPrep again with --output-spaces MNI152NLin2009cAsym (it reuses what it has computed)"
)

# fMRIPrep writes no `res-` for what it calls res-native: the BOLD's own voxel size in MNI space.
NATIVE_RESOLUTION = "native"

# Voxel sizes in headers are float32, and some tools round them to 0.1 mm.
VOXEL_TOLERANCE = 0.1


@dataclass(frozen=True, order=True)
class Space:
    """A space and a resolution that files are in; empty text for an absent entity."""

    name: str
    resolution: str = ""

    def __str__(self) -> str:
        return f"{self.name}:res-{self.resolution}" if self.resolution else self.name


@dataclass(frozen=True)
class SpaceRequest:
    """What ``--space`` asked for; a ``resolution`` of None is left open, empty means no res-."""

    name: str
    resolution: str | None = None


def parse_space(text: str) -> SpaceRequest:
    """Read ``NAME`` or ``NAME:res-LABEL``.

    Raises
    ------
    InputError
        If it is neither.

    Examples
    --------
    >>> parse_space("MNI152NLin6Asym:res-2")
    SpaceRequest(name='MNI152NLin6Asym', resolution='2')
    >>> parse_space("MNI152NLin6Asym:res-native")
    SpaceRequest(name='MNI152NLin6Asym', resolution='')
    """
    match = re.fullmatch(r"(?:space-)?([0-9a-zA-Z+]+)(?:[:_]res-([0-9a-zA-Z+]+))?", text)
    if match is None:
        raise InputError(
            f"--space {text}: must be NAME or NAME:res-LABEL, such as MNI152NLin2009cAsym:res-2"
        )
    name, resolution = match.groups()
    return SpaceRequest(name, "" if resolution == NATIVE_RESOLUTION else resolution)


def is_adult_mni(name: str) -> bool:
    """Whether a space is one of the adult MNI brain."""
    return _ADULT_MNI.fullmatch(name) is not None


def space_of(file: NamedFile) -> Space:
    """Space and resolution that a file name gives."""
    return Space(file.entities.get("space", ""), file.entities.get("res", ""))


def choose_space(
    files: Sequence[NamedFile],
    request: SpaceRequest | None,
    resolution: float,
    voxel_size: Callable[[Path], tuple[float, ...] | None],
) -> Space:
    """The one space and resolution that all runs are taken in.

    Parameters
    ----------
    files : sequence of NamedFile
        The BOLD files that passed all other filters; at least one.
    request : SpaceRequest or None
        What the user asked for.
    resolution : float
        Of the analysis, in mm: among several ``res-`` of one space, that voxel size is taken.
    voxel_size : callable
        Path → voxel size in mm, None where the header cannot be read.

    Raises
    ------
    InputError
        If the space asked for is not there or cannot be used, or if there are several.
    """
    present = sorted({space_of(file) for file in files})
    usable = [space for space in present if is_adult_mni(space.name)]
    if request is not None:
        return _choose_requested(request, present, files, resolution, voxel_size)
    if not usable:
        raise InputError(_none_usable(present))
    return _only_one(usable, files, resolution, voxel_size)


def _choose_requested(
    request: SpaceRequest,
    present: Sequence[Space],
    files: Sequence[NamedFile],
    resolution: float,
    voxel_size: Callable[[Path], tuple[float, ...] | None],
) -> Space:
    usable = [space for space in present if is_adult_mni(space.name)]
    asked = Space(request.name, request.resolution or "")
    in_space = [space for space in present if space.name == request.name]
    choices = [space for space in in_space if request.resolution in (None, space.resolution)]
    if in_space and not is_adult_mni(request.name):
        others = f"; the dataset also has {_typed(usable)}" if usable else f"; {RERUN}"
        raise InputError(f"--space {request.name}: {_why_not(request.name)}{others}")
    if not choices:
        if not usable:
            raise InputError(f"--space {asked}: not there; {_none_usable(present)}")
        raise InputError(
            f"--space {asked}: the dataset has no BOLD in it, but in {_typed(usable)}"
        )
    return _only_one(choices, files, resolution, voxel_size)


def _only_one(
    choices: Sequence[Space],
    files: Sequence[NamedFile],
    resolution: float,
    voxel_size: Callable[[Path], tuple[float, ...] | None],
) -> Space:
    if len(choices) == 1:
        return choices[0]
    what = "several spaces"
    if len({space.name for space in choices}) == 1:
        what = f"several resolutions, not exactly one of them with voxels of {resolution:g} mm"
        fitting = [
            space
            for space in choices
            if _has_voxels(
                [file.path for file in files if space_of(file) == space], resolution, voxel_size
            )
        ]
        if len(fitting) == 1:
            return fitting[0]
    options = " | ".join(f"--space {text}" for text in _spelled(choices))
    raise InputError(f"the BOLD is there in {what}; choose one: {options}")


def _has_voxels(
    paths: Sequence[Path],
    resolution: float,
    voxel_size: Callable[[Path], tuple[float, ...] | None],
) -> bool:
    for path in paths:
        size = voxel_size(path)
        if size is not None:
            return all(abs(edge - resolution) <= VOXEL_TOLERANCE for edge in size)
    return False


def _spelled(spaces: Sequence[Space]) -> list[str]:
    """The spaces as one types them; without a res- that needs saying where others have one."""
    names = [space.name for space in spaces]
    return [
        f"{space.name}:res-{NATIVE_RESOLUTION}"
        if not space.resolution and names.count(space.name) > 1
        else str(space)
        for space in spaces
    ]


def _typed(spaces: Sequence[Space]) -> str:
    return ", ".join(_spelled(spaces))


def _why_not(name: str) -> str:
    if not name or name in _NATIVE:
        return "a native space, whose voxels are other places in every participant"
    if _SURFACE.search(name):
        return "a surface, where volumes are needed"
    if _YOUNG.search(name):
        return "an infant or pediatric template, but the network templates are of the adult brain"
    return "not a space of the adult MNI brain, in which the network templates are drawn"


def _none_usable(present: Sequence[Space]) -> str:
    names = sorted({space.name for space in present})
    if all(not name or name in _NATIVE for name in names):
        return f"all BOLD is in native space only; {RERUN}"
    reasons = "; ".join(f"{name or 'no space-'} is {_why_not(name)}" for name in names)
    return f"no BOLD is in a space of the adult MNI brain: {reasons}; {RERUN}"
