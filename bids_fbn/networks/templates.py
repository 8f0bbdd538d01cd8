"""Network template sets: what an FBN is compared with.

================  ==================================================================
``smith2009``     ten maps of resting-state ICA, downloaded once by nilearn
``seitzman2018``  thirteen networks drawn around 300 coordinates; needs no download
a file            the user's own 4-D NIfTI, with a TSV of the same stem that names
                  its volumes
================  ==================================================================
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from bids_fbn.errors import InputError
from bids_fbn.networks.tissue import GREY_MATTER_THRESHOLD, grey_fraction, resampled

if TYPE_CHECKING:
    import nibabel as nib

    from bids_fbn.signal.grid import Grid

__all__ = ["SMITH_NETWORKS", "TemplateSet", "load_templates"]

# The rule by which the seed papers (SCAAE, STCA, STCNN) binarise the Smith templates; with it the
# supports at 4 mm are theirs, voxel for voxel.
_SUPPORT_FRACTION = 0.3
_FRACTION_RULE = f"value >= {_SUPPORT_FRACTION:g} of the map's maximum in the analysis mask"

# Order of the volumes of PNAS_Smith09_rsn10.nii.gz: figure 1 of Smith et al. 2009.
SMITH_NETWORKS = (
    "Visual1",
    "Visual2",
    "Visual3",
    "DefaultMode",
    "Cerebellum",
    "Sensorimotor",
    "Auditory",
    "Executive",
    "FrontoparietalRight",
    "FrontoparietalLeft",
)
_SMITH_REFERENCE = (
    "Smith et al. 2009, Correspondence of the brain's functional architecture during activation "
    "and rest, PNAS 106:13040-13045, doi:10.1073/pnas.0905267106"
)

_SEITZMAN_REFERENCE = (
    "Seitzman et al. 2020, A set of functionally-defined brain regions with improved "
    "representation of the subcortex and cerebellum, NeuroImage 206:116290, "
    "doi:10.1016/j.neuroimage.2019.116290"
)
_SEITZMAN_UNASSIGNED = "unassigned"
# The ROIs are spheres of 4 or 5 mm radius: a voxel may lie one more radius away from the surface
# of its ROI, and on a coarse grid the voxel beside the ROI still counts.
_SEITZMAN_REACH_MM = 10.0

_NAME_COLUMNS = ("name", "network", "label")


@dataclass(frozen=True, eq=False)
class TemplateSet:
    """Networks to look for: P maps on the V voxels of an analysis grid.

    Parameters
    ----------
    name : str
        Alphanumeric; the value of ``atlas-`` in file names.
    networks : tuple of str
        P alphanumeric CamelCase names: columns of tables and values of ``label-``.
    maps : ndarray (P, V) of float32
        Template values in the grid's mask, in the units of the source.
    supports : ndarray (P, V) of bool
        The voxels that belong to each network.
    support_rule : str
        How ``supports`` follows from ``maps``, in words.
    reference : str
        A citation with DOI; empty for a user's own file.
    source : str
        Where the templates came from, in words.
    """

    name: str
    networks: tuple[str, ...]
    maps: np.ndarray
    supports: np.ndarray
    support_rule: str
    reference: str
    source: str


def load_templates(name: str, grid: Grid) -> TemplateSet:
    """Put a template set on the analysis grid.

    Parameters
    ----------
    name : str
        ``smith2009``, ``seitzman2018``, or the path of a 4-D NIfTI in the grid's space, beside
        which lies a TSV of the same stem: one row per volume, names in a column ``name`` (or
        ``network``, or ``label``).
    grid : Grid
        The analysis grid.

    Returns
    -------
    TemplateSet
        P templates on the V voxels of the grid's mask.

    Raises
    ------
    InputError
        If there is no such set, it cannot be read, or a network of it has no voxel on this grid.
    """
    if name.lower() == "smith2009":
        return _smith2009(grid)
    if name.lower() == "seitzman2018":
        return _seitzman2018(grid)
    path = Path(name).expanduser()
    if path.is_file():
        return _from_file(path, grid)
    if path.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: no such file; give --templates the path of a 4-D NIfTI")
    raise InputError(
        f"--templates {name}: unknown; choose smith2009, seitzman2018 or the path of a 4-D NIfTI "
        "(.nii or .nii.gz) with a .tsv beside it"
    )


def _smith2009(grid: Grid) -> TemplateSet:
    from nilearn.datasets import fetch_atlas_smith_2009

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nilearn warns before it raises: one line is enough
            atlas = fetch_atlas_smith_2009(dimension=10, resting=True, verbose=0)
            image = _open_4d(Path(atlas["maps"]))
    # The fetcher lets through whatever its connection, its disk or a damaged file raises.
    except Exception:
        raise InputError(
            "templates smith2009: PNAS_Smith09_rsn10.nii.gz could be neither read from this "
            "machine nor downloaded; on a machine with a network run `python -c "
            '"from nilearn import datasets; datasets.fetch_atlas_smith_2009()"` and set '
            "NILEARN_DATA to its nilearn_data folder, or use --templates seitzman2018, which "
            "needs no download"
        ) from None
    return _continuous_set(
        image,
        grid,
        name="Smith2009",
        networks=SMITH_NETWORKS,
        reference=_SMITH_REFERENCE,
        source=f"{Path(atlas['maps']).name}, fetched by nilearn",
    )


def _seitzman2018(grid: Grid) -> TemplateSet:
    from nilearn.datasets import fetch_coords_seitzman_2018

    atlas = fetch_coords_seitzman_2018()
    rois = atlas["rois"][["x", "y", "z"]].to_numpy(dtype=np.float64)
    network_of_roi = np.asarray(atlas["networks"]).astype(str)
    sizes = Counter(network_of_roi[network_of_roi != _SEITZMAN_UNASSIGNED].tolist())
    networks = tuple(network for network, _ in sizes.most_common())

    reach = max(_SEITZMAN_REACH_MM, grid.resolution)
    distance, nearest = cKDTree(rois).query(grid.coordinates)
    # Unassigned ROIs compete too: what is nearest to one of them belongs to no network.
    network_of_voxel = np.where(
        (grey_fraction(grid) >= GREY_MATTER_THRESHOLD) & (distance <= reach),
        network_of_roi[nearest],
        "",
    )
    supports = network_of_voxel == np.array(networks)[:, None]
    _require_voxels("templates seitzman2018", networks, supports, grid)
    return TemplateSet(
        name="Seitzman2018",
        networks=networks,
        maps=supports.astype(np.float32),
        supports=supports,
        support_rule=(
            f"grey matter (template probability >= {GREY_MATTER_THRESHOLD:g}, averaged over the "
            f"voxel) whose nearest ROI is of the network and at most {reach:g} mm away"
        ),
        reference=_SEITZMAN_REFERENCE,
        source="300 coordinates and the MNI152 grey-matter template bundled with nilearn",
    )


def _from_file(path: Path, grid: Grid) -> TemplateSet:
    try:
        image = _open_4d(path)
    except InputError:
        raise
    except Exception as error:  # nibabel, gzip and zlib each have their own
        raise InputError(
            f"{path}: cannot be read as NIfTI ({' '.join(str(error).split())}); "
            "give --templates a readable 4-D .nii or .nii.gz"
        ) from None
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    table = path.with_name(f"{stem}.tsv")
    networks = _network_names(table, path, image.shape[3])
    name = _camel_case(stem)
    if not name:
        raise InputError(f"{path}: rename the file, its name has no letter or digit")
    return _continuous_set(
        image, grid, name=name, networks=networks, reference="", source=path.name
    )


def _open_4d(path: Path) -> nib.Nifti1Image:
    """Read a 4-D image, voxels and all: a cut-off file must fail here, not later."""
    import nibabel as nib

    image: Any = nib.load(path)
    if len(image.shape) != 4:
        raise InputError(
            f"{path}: is {len(image.shape)}-D; templates are one 4-D image, a volume per network"
        )
    return nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine)


def _network_names(table: Path, image: Path, n_volumes: int) -> tuple[str, ...]:
    if not table.is_file():
        raise InputError(
            f"{table}: missing; it must name the {n_volumes} networks of {image.name}, "
            "one row per volume in a column `name`"
        )
    try:
        rows = pd.read_csv(table, sep="\t", dtype=str, keep_default_na=False)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(
            f"{table}: not a readable TSV ({' '.join(str(error).split())}); write a header line "
            "with a column `name`, then one row per volume"
        ) from None
    column = next((column for column in _NAME_COLUMNS if column in rows.columns), None)
    if column is None:
        raise InputError(
            f"{table}: has no column {', '.join(_NAME_COLUMNS[:-1])} or {_NAME_COLUMNS[-1]}; "
            "add a column `name`"
        )
    if len(rows) != n_volumes:
        raise InputError(
            f"{table}: {len(rows)} rows for the {n_volumes} volumes of {image.name}; "
            "write one row per volume"
        )
    given = [str(value) for value in rows[column]]
    names = tuple(_camel_case(value) for value in given)
    nameless = [row + 1 for row, name in enumerate(names) if not name]
    if nameless:
        raise InputError(
            f"{table}: row {nameless[0]} has the name {given[nameless[0] - 1]!r}; "
            "each network needs a name with letters or digits"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(
            f"{table}: more than one network is called {twice[0]} (only letters and digits "
            "count); give each its own name"
        )
    return names


def _camel_case(words: str) -> str:
    """Keep letters and digits; what followed anything else gets a capital.

    Examples
    --------
    >>> _camel_case("default mode_left-1")
    'DefaultModeLeft1'
    """
    parts = re.split(r"[^0-9A-Za-z]+", words)
    return "".join(part[:1].upper() + part[1:] for part in parts)


def _continuous_set(
    image: nib.Nifti1Image,
    grid: Grid,
    *,
    name: str,
    networks: tuple[str, ...],
    reference: str,
    source: str,
) -> TemplateSet:
    maps = grid.gather(resampled(image, grid))
    highest = maps.max(axis=1, keepdims=True)
    supports = (maps >= _SUPPORT_FRACTION * highest) & (highest > 0)
    _require_voxels(f"templates {source}", networks, supports, grid)
    return TemplateSet(
        name=name,
        networks=networks,
        maps=maps,
        supports=supports,
        support_rule=_FRACTION_RULE,
        reference=reference,
        source=source,
    )


def _require_voxels(
    origin: str, networks: tuple[str, ...], supports: np.ndarray, grid: Grid
) -> None:
    empty = [
        network for network, support in zip(networks, supports, strict=True) if not support.any()
    ]
    if empty:
        raise InputError(
            f"{origin}: no voxel of {', '.join(empty)} on the {grid.resolution:g} mm grid of "
            f"{grid.n_voxels} voxels in {grid.space}; use a finer --resolution, or check that "
            "templates and data are in the same space"
        )
