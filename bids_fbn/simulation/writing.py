"""The files of a simulated dataset: fMRIPrep's names, and ``truth/``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bids_fbn import __version__
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.signal.grid import Grid
from bids_fbn.simulation.cohort import GROUPS, GroupEffect, Site, group_of, site_of
from bids_fbn.simulation.networks import BOLD_STATE_THRESHOLD, N_NETWORKS
from bids_fbn.simulation.noise import Head
from bids_fbn.simulation.run import EFFECT, SimulatedRun, Simulation

__all__ = ["write_dataset_files", "write_run", "write_truth"]


def write_dataset_files(
    out: Path,
    settings: Simulation,
    templates: TemplateSet,
    sites: Sequence[Site],
    effect: GroupEffect,
) -> None:
    """What describes the dataset, in an empty folder."""
    _write_json(
        out / "dataset_description.json",
        {
            "Name": "Simulated functional brain networks",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "License": "CC0",
            "GeneratedBy": [{"Name": "bids_fbn.simulate", "Version": __version__}],
        },
    )
    (out / "README").write_text(
        "Simulated functional brain networks\n\n"
        f"Nobody was scanned. The volumes hold {_contents(settings)}, under the\n"
        "names that fMRIPrep uses. `truth` holds the maps, courses and states of the networks.\n"
    )
    # fMRIPrep's confounds have no name in the standard yet.
    (out / ".bidsignore").write_text("truth\n*_timeseries.*\n")
    _write_participants(out, settings, sites)
    truth = out / "truth"
    truth.mkdir()
    _write_json(
        truth / "simulation.json",
        {
            "Version": __version__,
            "Settings": asdict(settings),
            **_cohort(settings, templates, sites, effect),
            "Networks": list(templates.networks[:N_NETWORKS]),
            "NetworksReference": templates.reference,
            "PercentSignalChange": EFFECT,
            "BOLDStateThreshold": BOLD_STATE_THRESHOLD,
            "Files": {
                "desc-truth_components.nii.gz": "a map per network along the fourth axis, peak 1",
                "desc-truth_mixing.tsv": "BOLD course of each network, one row per volume; volume "
                "= baseline * (1 + PercentSignalChange / 100 * courses @ maps) without noise",
                "desc-truth_states.tsv": "onset: s; neural_state: the network that is on at the "
                "onset, or none; second_state: the network that is on beside it, where networks "
                "overlap; bold_state: the network with the highest course, or none where all are "
                "below BOLDStateThreshold; n/a in static data, which have no states",
            },
        },
    )


def _contents(settings: Simulation) -> str:
    if not settings.networks:
        return "noise and no networks"
    if settings.dynamics == "static":
        return "ten networks without states, and noise"
    return "ten networks that take turns, and noise"


def _write_participants(out: Path, settings: Simulation, sites: Sequence[Site]) -> None:
    """The table of participants; sites and groups where there are several."""
    numbers = range(settings.n_participants)
    table = pd.DataFrame({"participant_id": [f"sub-{number + 1:02d}" for number in numbers]})
    columns = {}
    if settings.n_sites > 1:
        table["site"] = [sites[site_of(number, settings.n_sites)].name for number in numbers]
        columns["site"] = {
            "Description": "Scanner; truth/simulation.json says how they differ",
            "Levels": {site.name: "Simulated scanner" for site in sites},
        }
    if settings.n_groups > 1:
        groups = [group_of(number, settings.n_sites, settings.n_groups) for number in numbers]
        table["group"] = [GROUPS[group] for group in groups]
        columns["group"] = {
            "Description": "Group; truth/simulation.json says how they differ",
            "Levels": {name: f"Simulated {name}" for name in GROUPS},
        }
    _write_table(out / "participants.tsv", table)
    if columns:
        _write_json(out / "participants.json", columns)


def _cohort(
    settings: Simulation, templates: TemplateSet, sites: Sequence[Site], effect: GroupEffect
) -> dict[str, Any]:
    """The truth about sites and groups, where there are several."""
    truth: dict[str, Any] = {}
    if settings.n_sites > 1:
        truth["Sites"] = {
            site.name: {
                "NoiseFWHM": site.noise_fwhm,
                "NoiseFactor": site.noise,
                "ThermalNoiseFactor": site.thermal_noise,
                "Gain": site.gain,
            }
            for site in sites
        }
    if settings.n_groups > 1:
        before, after = effect.transition
        truth["GroupEffect"] = {
            "Group": GROUPS[1],
            "DwellNetwork": templates.networks[effect.dwell_network],
            "DwellFactor": effect.dwell_factor,
            "TransitionFrom": templates.networks[before],
            "TransitionTo": templates.networks[after],
            "TransitionShare": effect.transition_share,
        }
    return truth


def write_run(
    out: Path, prefix: str, run: SimulatedRun, settings: Simulation, head: Head, task: str
) -> None:
    """Volumes, mask and confounds of a run, with their sidecars."""
    folder = out.joinpath(*(part for part in prefix.split("_") if part[:3] in ("sub", "ses")))
    folder = folder / "func"
    folder.mkdir(parents=True, exist_ok=True)
    # A label holds letters and digits only: 2.5 mm is 2p5.
    millimetres = f"{settings.resolution:g}"
    volumes = f"{prefix}_space-{settings.space}_res-{millimetres.replace('.', 'p')}"
    resolution = f"{millimetres} mm isotropic"
    bold, mask = f"{volumes}_desc-preproc_bold", f"{volumes}_desc-brain_mask"
    _write_image(folder / f"{bold}.nii.gz", run.volumes, head.grid, settings.repetition_time)
    _write_json(
        folder / f"{bold}.json",
        {
            "RepetitionTime": settings.repetition_time,
            "TaskName": task,
            "SkullStripped": False,
            "SliceTimingCorrected": False,
            "Resolution": resolution,
        },
    )
    _write_image(folder / f"{mask}.nii.gz", head.grid.mask.astype(np.uint8), head.grid)
    _write_json(folder / f"{mask}.json", {"Type": "Brain", "Resolution": resolution})
    confounds = f"{prefix}_desc-confounds_timeseries"
    _write_table(folder / f"{confounds}.tsv", run.confounds)
    _write_json(folder / f"{confounds}.json", run.confounds_metadata)


def write_truth(
    folder: Path,
    prefix: str,
    run: SimulatedRun,
    settings: Simulation,
    head: Head,
    maps: np.ndarray,
    templates: TemplateSet,
) -> None:
    """Maps, courses and states of a run."""
    networks = templates.networks[:N_NETWORKS]
    _write_image(
        folder / f"{prefix}_desc-truth_components.nii.gz", head.grid.scatter(maps), head.grid
    )
    _write_table(
        folder / f"{prefix}_desc-truth_mixing.tsv",
        pd.DataFrame(run.courses, columns=list(networks)),
    )
    names = np.array([*networks, "n/a" if settings.dynamics == "static" else "none"])
    # NO_NETWORK is -1: the last
    states = {
        "onset": np.arange(len(run.courses)) * settings.repetition_time,
        "neural_state": names[run.neural_states],
    }
    if settings.overlap:
        states["second_state"] = names[run.second_states]
    states["bold_state"] = names[run.bold_states]
    _write_table(folder / f"{prefix}_desc-truth_states.tsv", pd.DataFrame(states))


def _write_image(
    path: Path, volumes: np.ndarray, grid: Grid, repetition_time: float | None = None
) -> None:
    import nibabel as nib

    image = nib.Nifti1Image(volumes, grid.affine)
    image.header.set_xyzt_units("mm", "sec")
    if repetition_time is not None:
        image.header.set_zooms((*image.header.get_zooms()[:3], repetition_time))
    # 4: "MNI 152 normalized coordinates"
    image.set_sform(grid.affine, code=4)
    image.set_qform(grid.affine, code=4)
    nib.save(image, path)


def _write_table(path: Path, table: pd.DataFrame) -> None:
    table.to_csv(
        path, sep="\t", index=False, na_rep="n/a", float_format="%.8g", lineterminator="\n"
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
