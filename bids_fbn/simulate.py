"""A BIDS derivatives dataset with known networks and known states.

For tests, tutorials and benchmarks: it looks like the output of fMRIPrep, needs no download, and
``truth/`` says which network was active when.

    python -m bids_fbn.simulate OUT --participants 2 --volumes 200 --resolution 6

Ten networks (the largest of Seitzman et al. 2020) take turns. While a network is on, its activity
is high and fluctuates; the others stay near zero. So networks can be found both from the pattern
of single volumes and from covariance within a window. At its peak a network changes the signal by
2 %.

========================  ========================================================
``simulation.cohort``     sites and groups of participants
``simulation.networks``   which network is on, its map, its course
``simulation.noise``      the head, and everything that is not a network
``simulation.confounds``  the confounds file
``simulation.run``        all of it in one run
``simulation.writing``    the files
``simulate``              the dataset, the command
========================  ========================================================

Participant i is the same whatever number of participants, sessions, tasks or runs is asked for,
and has the same noise whether networks have states (by default), are static, overlap, or are
left out. Two groups of twenty at three scanners:

    python -m bids_fbn.simulate OUT --participants 40 --sites 3 --groups 2
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from bids_fbn.errors import InputError
from bids_fbn.networks.templates import TemplateSet, load_templates
from bids_fbn.simulation.cohort import GroupEffect, draw_sites, group_of, site_of
from bids_fbn.simulation.networks import own_maps
from bids_fbn.simulation.noise import mni_head
from bids_fbn.simulation.run import Dynamics, Simulation, simulate_run
from bids_fbn.simulation.writing import write_dataset_files, write_run, write_truth

__all__ = ["simulate_dataset"]

_GROUP_EFFECT = 0.5  # unless asked otherwise, where there are two groups
# What it is on: another network for the dwell than for the transition, so that each can be told.
_DWELL_NETWORK = "DefaultMode"
_TRANSITION = ("FrontoParietal", "DorsalAttention")


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
    dynamics: Dynamics = "states",
    networks: bool = True,
    overlap: float = 0.0,
    variation: float = 0.1,
    n_sites: int = 1,
    n_groups: int = 1,
    group_effect: float | None = None,
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
    dynamics : {"states", "static"}
        "static": no states; the courses are stationary and Gaussian, with the mean, spectrum and
        covariances that courses with states have on average. The truth has n/a for the states.
    networks : bool
        Whether there are any; else all but the networks is there, the courses are 0, and no
        network is ever on. The truth still has the participant's maps.
    overlap : float
        Probability that a visit of a network is shared with another one, which is on for as long,
        0.6 as strong. `bold_state` stays the network with the highest course.
    variation : float
        What participants' own maps of a network differ by, smoothly in space: standard deviation,
        as a share of a map's values.
    n_sites : int
        Scanners, which differ in smoothness, thermal and other noise, and gain. Participants are
        assigned in turn; ``participants.tsv`` has a column ``site`` where there are several.
    n_groups : int
        1 or 2. Participants are controls and patients in turn, within each site too; column
        ``group`` in ``participants.tsv``.
    group_effect : float, optional
        E, 0 to 1. Patients dwell 1 + E times as long in the default mode network, and a share E
        of all departures from the frontoparietal network lead to dorsal attention before the
        others take their usual chances. By default 0.5 where there are two groups that can differ.
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
    if group_effect is None:
        can_differ = n_groups > 1 and networks and dynamics == "states"
        group_effect = _GROUP_EFFECT if can_differ else 0.0
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
        dynamics=dynamics,
        networks=networks,
        overlap=float(overlap),
        variation=float(variation),
        n_sites=n_sites,
        n_groups=n_groups,
        group_effect=float(group_effect),
        seed=seed,
    )
    out = Path(out)
    if faults := settings.faults():
        raise InputError(*faults)
    head = mni_head(settings.resolution, settings.space)
    templates = load_templates("seitzman2018", head.grid)
    sites = draw_sites(_generator(settings.seed), settings.n_sites)
    patient = _patient(settings.group_effect, templates)
    _start(out)
    write_dataset_files(out, settings, templates, sites, patient)
    for participant in range(settings.n_participants):
        maps = own_maps(
            _generator(settings.seed, participant), templates, head.grid, settings.variation
        )
        site = sites[site_of(participant, settings.n_sites)]
        is_patient = group_of(participant, settings.n_sites, settings.n_groups) == 1
        effect = patient if is_patient and settings.group_effect else None
        for session in range(max(1, settings.n_sessions)):
            for task in range(len(settings.tasks)):
                for run in range(settings.n_runs):
                    rng = _generator(settings.seed, participant, session, task, run)
                    prefix = _prefix(settings, participant, session, task, run)
                    simulated = simulate_run(rng, head, maps, settings, site, effect)
                    write_run(out, prefix, simulated, settings, head, settings.tasks[task])
                    write_truth(out / "truth", prefix, simulated, settings, head, maps, templates)
    return out


def _generator(seed: int, *which: int) -> np.random.Generator:
    """Independent numbers for the sites (no index), each participant (1) and each run (4)."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(len(which), *which)))


def _patient(group_effect: float, templates: TemplateSet) -> GroupEffect:
    index = templates.networks.index
    return GroupEffect(
        dwell_network=index(_DWELL_NETWORK),
        dwell_factor=1 + group_effect,
        transition=(index(_TRANSITION[0]), index(_TRANSITION[1])),
        transition_share=group_effect,
    )


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
        more.setdefault("metavar", flag.removeprefix("--").upper())
        parser.add_argument(flag, dest=name, type=kind, default=default[name], help=words, **more)

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
    option(
        "--dynamics",
        "dynamics",
        str,
        "static: stationary courses of the same spectrum and covariance, and no states",
        choices=get_args(Dynamics),
        metavar="{" + ",".join(get_args(Dynamics)) + "}",
    )
    option("--overlap", "overlap", float, "probability that a second network is on too")
    option("--variation", "variation", float, "of maps between participants, a share of them")
    option("--sites", "n_sites", int, "scanners, which differ; participants take turns")
    option("--groups", "n_groups", int, "2: every other participant is a patient")
    parser.add_argument(
        "--group-effect",
        type=float,
        default=argparse.SUPPRESS,
        metavar="E",
        help="patients dwell 1 + E times as long in one network and make one transition more "
        f"often, from 0 to 1 (default: {_GROUP_EFFECT:g} with --groups 2)",
    )
    option("--seed", "seed", int, "the same seed gives the same data")
    parser.add_argument(
        "--no-motion-spikes",
        dest="motion_spikes",
        action="store_false",
        help="the head drifts but does not jump",
    )
    parser.add_argument(
        "--no-networks",
        dest="networks",
        action="store_false",
        help="noise only: all but the networks",
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
