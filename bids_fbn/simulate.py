"""A BIDS derivatives dataset with known networks and known states.

For tests, tutorials and benchmarks: it looks like the output of fMRIPrep, needs no download, and
``truth/`` says which network was active when.

    python -m bids_fbn.simulate OUT --participants 2 --volumes 200 --resolution 6

Ten networks (the largest of Seitzman et al. 2020) take turns. While a network is on, its activity
is high and fluctuates; the others stay near zero. So networks can be found both from the pattern
of single volumes and from covariance within a window. At its peak a network changes the signal by
2 %.

======================  ==========================================================
``simulation.networks``  which network is on, its map, its course
``simulation.noise``     the head, and everything that is not a network
``simulation.confounds`` the confounds file
``simulation.run``       all of it in one run
``simulate``            the dataset, its files, the command
======================  ==========================================================

Participant i is the same whatever number of participants, sessions, tasks or runs is asked for.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bids_fbn import __version__
from bids_fbn.errors import InputError
from bids_fbn.networks.templates import TemplateSet, load_templates
from bids_fbn.signal.grid import Grid
from bids_fbn.simulation.networks import BOLD_STATE_THRESHOLD, N_NETWORKS, own_maps
from bids_fbn.simulation.noise import Head, mni_head
from bids_fbn.simulation.run import EFFECT, SimulatedRun, Simulation, simulate_run

__all__ = ["simulate_dataset"]


def simulate_dataset(
    out: Path,
    *,
    n_participants: int = 2,
    n_sessions: int = 0,
    n_runs: int = 1,
    tasks: Sequence[str] = ("rest",),
    n_volumes: int = 200,
    repetition_time: float = 2.0,
    resolution: float = 6.0,
    space: str = "MNI152NLin2009cAsym",
    noise: float = 1.0,
    dwell: float = 20.0,
    motion_spikes: bool = True,
    seed: int = 0,
) -> Path:
    """Write a dataset like fMRIPrep's, and the truth about it in ``truth/``.

    Parameters
    ----------
    out : Path
        A folder that does not exist yet or is empty.
    n_participants : int
    n_sessions : int
        0 leaves out the session level.
    n_runs : int
        Per task and session; the name has ``run-`` if there is more than one.
    tasks : sequence of str
        Labels.
    n_volumes : int
        T.
    repetition_time : float
        In s.
    resolution : float
        Edge of a voxel, mm; the box is that of the analysis grid.
    space : str
        Label for ``space-``.
    noise : float
        Scales motion, physiology, noise, drift and saturation; 0 leaves networks and baseline.
    dwell : float
        Mean length of a state, s; none is shorter than 0.4 of it.
    motion_spikes : bool
        Whether the head jumps now and then.
    seed : int
        The same seed gives the same data.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    InputError
        If ``out`` holds something, or a setting is out of range.
    """
    settings = Simulation(
        n_participants=n_participants,
        n_sessions=n_sessions,
        n_runs=n_runs,
        tasks=tuple(tasks),
        n_volumes=n_volumes,
        repetition_time=float(repetition_time),
        resolution=float(resolution),
        space=space,
        noise=float(noise),
        dwell=float(dwell),
        motion_spikes=motion_spikes,
        seed=seed,
    )
    out = Path(out)
    if faults := settings.faults():
        raise InputError(*faults)
    head = mni_head(settings.resolution, settings.space)
    templates = load_templates("seitzman2018", head.grid)
    _start(out)
    _write_dataset_files(out, settings, templates)
    for participant in range(settings.n_participants):
        maps = own_maps(_generator(settings.seed, participant), templates, head.grid)
        for session in range(max(1, settings.n_sessions)):
            for task in range(len(settings.tasks)):
                for run in range(settings.n_runs):
                    rng = _generator(settings.seed, participant, session, task, run)
                    prefix = _prefix(settings, participant, session, task, run)
                    simulated = simulate_run(rng, head, maps, settings)
                    _write_run(out, prefix, simulated, settings, head, settings.tasks[task])
                    _write_truth(out / "truth", prefix, simulated, settings, head, maps, templates)
    return out


def _generator(seed: int, *which: int) -> np.random.Generator:
    """Independent numbers for each participant (1 index) and each run (4 indices)."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(len(which), *which)))


def _prefix(settings: Simulation, participant: int, session: int, task: int, run: int) -> str:
    entities = [f"sub-{participant + 1:02d}"]
    if settings.n_sessions:
        entities.append(f"ses-{session + 1:02d}")
    entities.append(f"task-{settings.tasks[task]}")
    if settings.n_runs > 1:
        entities.append(f"run-{run + 1}")
    return "_".join(entities)


def _start(out: Path) -> None:
    try:
        if out.is_dir() and any(out.iterdir()):
            raise InputError(f"{out}: is not empty; name a new folder")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); name a new folder"
        ) from None


def _write_dataset_files(out: Path, settings: Simulation, templates: TemplateSet) -> None:
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
        "Nobody was scanned. The volumes hold ten networks that take turns, and noise, under the\n"
        "names that fMRIPrep uses. `truth` holds the maps, courses and states of the networks.\n"
    )
    # fMRIPrep's confounds have no name in the standard yet.
    (out / ".bidsignore").write_text("truth\n*_timeseries.*\n")
    participants = [f"sub-{number + 1:02d}" for number in range(settings.n_participants)]
    _write_table(out / "participants.tsv", pd.DataFrame({"participant_id": participants}))
    truth = out / "truth"
    truth.mkdir()
    _write_json(
        truth / "simulation.json",
        {
            "Version": __version__,
            "Settings": asdict(settings),
            "Networks": list(templates.networks[:N_NETWORKS]),
            "NetworksReference": templates.reference,
            "PercentSignalChange": EFFECT,
            "BOLDStateThreshold": BOLD_STATE_THRESHOLD,
            "Files": {
                "desc-truth_components.nii.gz": "a map per network along the fourth axis, peak 1",
                "desc-truth_mixing.tsv": "BOLD course of each network, one row per volume; volume "
                "= baseline * (1 + PercentSignalChange / 100 * courses @ maps) without noise",
                "desc-truth_states.tsv": "onset: s; neural_state: the network that is on at the "
                "onset, or none; bold_state: the network with the highest course, or none where "
                "all are below BOLDStateThreshold",
            },
        },
    )


def _write_run(
    out: Path, prefix: str, run: SimulatedRun, settings: Simulation, head: Head, task: str
) -> None:
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


def _write_truth(
    folder: Path,
    prefix: str,
    run: SimulatedRun,
    settings: Simulation,
    head: Head,
    maps: np.ndarray,
    templates: TemplateSet,
) -> None:
    networks = templates.networks[:N_NETWORKS]
    _write_image(
        folder / f"{prefix}_desc-truth_components.nii.gz", head.grid.scatter(maps), head.grid
    )
    _write_table(
        folder / f"{prefix}_desc-truth_mixing.tsv",
        pd.DataFrame(run.courses, columns=list(networks)),
    )
    names = np.array([*networks, "none"])  # NO_NETWORK is -1: the last
    _write_table(
        folder / f"{prefix}_desc-truth_states.tsv",
        pd.DataFrame(
            {
                "onset": np.arange(len(run.courses)) * settings.repetition_time,
                "neural_state": names[run.neural_states],
                "bold_state": names[run.bold_states],
            }
        ),
    )


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bids_fbn.simulate",
        description="Write a BIDS derivatives dataset with known networks and known states.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = {
        name: parameter.default
        for name, parameter in inspect.signature(simulate_dataset).parameters.items()
    }

    def option(flag: str, name: str, kind: type, words: str, **more: Any) -> None:
        metavar = flag.removeprefix("--").upper()
        parser.add_argument(
            flag, dest=name, type=kind, default=default[name], metavar=metavar, help=words, **more
        )

    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    option("--participants", "n_participants", int, "number of participants")
    option("--sessions", "n_sessions", int, "sessions of each; 0 leaves out the session level")
    option("--runs", "n_runs", int, "runs of each task and session")
    option("--tasks", "tasks", str, "task labels", nargs="+")
    option("--volumes", "n_volumes", int, "volumes of a run")
    option("--tr", "repetition_time", float, "repetition time, s")
    option("--resolution", "resolution", float, "edge of a voxel, mm")
    option("--space", "space", str, "label of the standard space")
    option("--noise", "noise", float, "scales all that is not a network; 0 leaves it out")
    option("--dwell", "dwell", float, "mean length of a state, s")
    option("--seed", "seed", int, "the same seed gives the same data")
    parser.add_argument(
        "--no-motion-spikes",
        dest="motion_spikes",
        action="store_false",
        help="the head drifts but does not jump",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = vars(_parser().parse_args(arguments))
    try:
        out = simulate_dataset(**options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
