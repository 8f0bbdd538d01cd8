"""How time and memory grow with volumes, voxels, channels and participants.

    python benchmarks/growth.py [--threads 2] [--runs 2] [--only cleaning maps training]

cleaning
    ``clean_run`` on simulated runs, from a NIfTI file to signals on a grid as fine as the file.
maps
    All windows of a run through an untrained STCA, and their overlap with the templates.
training
    One epoch of SCAAE over the runs of many participants, from their files.

Each measurement is a fresh process on small coarse grids; the signals of `maps` and `training` are
noise in files. Prints tables in Markdown: how many times the smallest each one is, in size and in
time (best of some runs in that process); how much memory the first of them took at its highest, on
top of what the process held before (without pages of files); and the highest resident size of the
whole process (``ru_maxrss``), with libraries and pages of files.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SPACE = "MNI152NLin2009cAsym"
REPETITION_TIME = 2.0
# What each series starts from, and the sizes that it goes through.
BASE: dict[str, dict[str, Any]] = {
    "cleaning": {"volumes": 200, "resolution": 6.0},
    "maps": {"windows": 120, "resolution": 12.0, "channels": 16},
    "training": {"participants": 10, "volumes": 200, "resolution": 12.0, "channels": 8},
}
SERIES: list[tuple[str, str, list[Any]]] = [
    ("cleaning", "volumes", [100, 300, 900]),
    ("cleaning", "resolution", [12.0, 8.0, 6.0, 5.0]),
    ("maps", "windows", [80, 160, 320, 640]),
    ("maps", "resolution", [12.0, 8.0, 6.0]),
    ("maps", "channels", [8, 16, 32, 64]),
    ("training", "participants", [10, 50, 200]),
]
WINDOW = 40
# Volumes between two that are trained on: it is the number of runs that counts here.
TRAINING_STRIDE = 20


def make_grid(resolution: float) -> Any:
    from bids_fbn.signal.standard import analysis_grid

    return analysis_grid(SPACE, resolution)


def make_signals(folder: Path, grid: Any, n_volumes: int, seed: int) -> None:
    """Noise as a cleaned run, in a folder."""
    import numpy as np

    from bids_fbn.signal.signals import Signals

    folder.mkdir(parents=True)
    data = np.random.default_rng(seed).standard_normal((n_volumes, grid.n_voxels), np.float32)
    np.save(folder / "data.npy", data)
    everywhere = np.ones(grid.n_voxels, dtype=bool)
    kept = np.arange(n_volumes)
    Signals(data, grid, REPETITION_TIME, kept, n_volumes, everywhere, folder.name).save(folder)


def prepare(part: str, size: dict[str, Any], folder: Path) -> None:
    """Write what a measurement reads; in a process of its own, so as to leave no trace."""
    if part == "cleaning":
        from bids_fbn.simulate import simulate_dataset

        simulate_dataset(
            folder / "data",
            n_participants=1,
            n_volumes=size["volumes"],
            repetition_time=REPETITION_TIME,
            resolution=size["resolution"],
        )
        return
    grid = make_grid(size["resolution"])
    for number in range(size.get("participants", 1)):
        n_volumes = size["windows"] + WINDOW - 1 if part == "maps" else size["volumes"]
        make_signals(folder / f"sub-{number:03d}", grid, n_volumes, number)


def resident() -> int:
    """Bytes that the process holds in memory, without those of files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("needs the /proc file system of Linux")


@contextmanager
def watched(result: dict[str, float]) -> Iterator[None]:
    """Time (s) of what is done inside, and the memory (bytes) that it takes at its highest."""
    before = highest = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.005):
            highest = max(highest, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        yield
    finally:
        result["seconds"] = time.perf_counter() - start
        done.set()
        watcher.join()
    result["memory"] = max(highest, resident()) - before


def cleaning(size: dict[str, Any], folder: Path) -> Callable[[], object]:
    from bids_fbn.config import SignalOptions
    from bids_fbn.signal.clean import clean_run

    (bold,) = (folder / "data").rglob("*_desc-preproc_bold.nii.gz")
    (confounds,) = (folder / "data").rglob("*_desc-confounds_timeseries.tsv")
    grid, options = make_grid(size["resolution"]), SignalOptions(min_time=0)

    def work() -> object:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            return clean_run(bold, REPETITION_TIME, grid, options, Path(out), confounds=confounds)

    return work


def maps(size: dict[str, Any], folder: Path) -> Callable[[], object]:
    from bids_fbn import models
    from bids_fbn.config import ModelOptions
    from bids_fbn.models.compute import choose_compute
    from bids_fbn.networks.dynamics import find_networks
    from bids_fbn.networks.maps import SupportRule
    from bids_fbn.networks.templates import load_templates
    from bids_fbn.signal.signals import Signals

    signals = Signals.load(folder / "sub-000")
    templates = load_templates("seitzman2018", signals.grid)
    model = models.create(
        "stca", ModelOptions(window=WINDOW, channels=size["channels"]), signals.grid
    )
    compute = choose_compute("cpu", "auto")
    return lambda: find_networks(
        model.maps(signals, compute),
        model.steps(signals),
        templates,
        signals.covered,
        SupportRule(),
    )


def training(size: dict[str, Any], folder: Path) -> Callable[[], object]:
    from bids_fbn import models
    from bids_fbn.config import ModelOptions
    from bids_fbn.models.compute import choose_compute
    from bids_fbn.signal.signals import Signals

    runs = [Signals.load(run) for run in sorted(folder.glob("sub-*"))]
    options = ModelOptions(
        channels=size["channels"], epochs=1, training_stride=TRAINING_STRIDE, sloppy=True
    )
    model = models.create("scaae", options, runs[0].grid)
    compute = choose_compute("cpu", "auto")
    return lambda: model.fit(runs, compute)


PARTS = {"cleaning": cleaning, "maps": maps, "training": training}


def measure(part: str, size: dict[str, Any], folder: Path, n_runs: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    work = PARTS[part](size, folder)
    result: dict[str, float] = {"voxels": float(make_grid(size["resolution"]).n_voxels)}
    with watched(result):
        work()
    for _ in range(n_runs - 1):
        again: dict[str, float] = {}
        with watched(again):
            work()
        result["seconds"] = min(result["seconds"], again["seconds"])
    result["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return result


def in_a_process(
    what: str, part: str, size: dict[str, Any], folder: Path, arguments: argparse.Namespace
) -> Any:
    command = [sys.executable, __file__, "--child", json.dumps([what, part, size, str(folder)])]
    command += ["--runs", str(arguments.runs)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(arguments.threads)},
    )
    if done.returncode:
        sys.exit(f"{part} {size} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1]) if what == "measure" else None


def table(part: str, varied: str, values: list[Any], arguments: argparse.Namespace) -> None:
    others = {key: value for key, value in BASE[part].items() if key != varied}
    print(f"\n**{part}**, {', '.join(f'{key} {value:g}' for key, value in others.items())}\n")
    name = "voxels" if varied == "resolution" else varied
    print(f"| {name} | size, ratio | time, s | time, ratio | memory, MB | whole process, MB |")
    print("|---|---|---|---|---|---|", flush=True)
    first: tuple[float, float] | None = None
    for value in values:
        size = {**BASE[part], varied: value}
        with tempfile.TemporaryDirectory() as folder:
            in_a_process("prepare", part, size, Path(folder), arguments)
            result = in_a_process("measure", part, size, Path(folder), arguments)
        amount = result["voxels"] if varied == "resolution" else float(value)
        if first is None:
            first = (amount, result["seconds"])
        label = f"{amount:.0f} ({value:g} mm)" if varied == "resolution" else f"{value}"
        print(
            f"| {label} | {amount / first[0]:.1f} | {result['seconds']:.2f} | "
            f"{result['seconds'] / first[1]:.1f} | {result['memory'] / 1e6:.0f} | "
            f"{result['peak'] / 1e6:.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=2, help="times that each is done")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--first", type=int, help="so many rows of each table (all)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, part, size, folder = json.loads(arguments.child)
        if what == "prepare":
            prepare(part, size, Path(folder))
        else:
            print(json.dumps(measure(part, size, Path(folder), arguments.runs)))
        return
    for part, varied, values in SERIES:
        if part in arguments.only:
            table(part, varied, values[: arguments.first], arguments)


if __name__ == "__main__":
    main()
