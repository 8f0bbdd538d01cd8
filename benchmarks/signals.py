"""File to signals: this package against nilearn's masker and nilearn's functions.

    python benchmarks/signals.py
    python benchmarks/signals.py --volumes 300 --sides ours masker in-order

makes one run as fMRIPrep would leave it (int16 with a slope, gzip level 1) and takes it to
z-scored series on the analysis grid, each time in a fresh process, the sides in turn:

ours
    ``clean_run``: smooth, resample, detrend, z-score.
masker
    ``NiftiMasker`` with the same mask, width of smoothing, grid, detrending and z-scores. It
    resamples first and smooths afterwards.
in-order
    ``smooth_img``, then ``NiftiMasker``, which resamples: the order of this package. It holds the
    whole run twice at full resolution.

Prints tables in Markdown. Times leave out the imports. Memory is the highest resident size of the
process (``ru_maxrss``), which counts its libraries and the pages of mapped files that are in
memory; its anonymous part is sampled from ``/proc/self/status`` every 10 ms.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

SPACE = "MNI152NLin6Asym"
REPETITION_TIME = 0.8
BASELINE = 10_000.0
# Of the baseline, as at 3 T: white noise 1 %, fields of 10 mm with a course of their own 1 %.
WHITE, SMOOTH, N_FIELDS, FIELD_FWHM_MM = 0.01, 0.01, 24, 10.0
# With the same steps in the same order.
LEAST_R = 0.999
SIDES = ("ours", "masker", "in-order")


def make_run(path: Path, shape: tuple[int, int, int], n_volumes: int, seed: int = 0) -> None:
    """A head with smooth and white noise over the box of the 2 mm MNI space of FSL."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template
    from nilearn.image import resample_img
    from scipy.ndimage import gaussian_filter
    from scipy.signal import lfilter

    affine = np.diag([-182 / shape[0], 218 / shape[1], 182 / shape[2], 1.0])
    affine[:3, 3] = (90, -126, -72)
    grey, white = (
        resample_img(template, affine, shape, interpolation="linear").get_fdata(dtype=np.float32)
        for template in (load_mni152_gm_template(2), load_mni152_wm_template(2))
    )
    rng = np.random.default_rng(seed)
    head = BASELINE * (0.02 + grey + 0.85 * white)
    sigma = FIELD_FWHM_MM / np.sqrt(8 * np.log(2)) / np.abs(np.diag(affine)[:3])
    fields = np.stack(
        [
            gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma)
            for _ in range(N_FIELDS)
        ]
    )
    fields *= SMOOTH * head / np.sqrt((fields**2).sum(axis=0).mean())
    courses = lfilter([1], [1, -0.6], rng.standard_normal((n_volumes, N_FIELDS)), axis=0)
    trend = np.linspace(-0.01, 0.01, n_volumes)
    white_noise = WHITE * head + 20

    slope = 3 * BASELINE / 65535  # the whole range of int16
    image = nib.Nifti1Image(np.zeros((*shape, 1), np.int16), affine)
    image.header.set_data_shape((*shape, n_volumes))
    image.header.set_slope_inter(slope, BASELINE)
    image.header.set_zooms((*np.abs(np.diag(affine)[:3]), REPETITION_TIME))
    image.header["vox_offset"] = 352
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(image.header.binaryblock + b"\0\0\0\0")
        for course, shift in zip(courses.astype(np.float32), trend, strict=True):
            volume = np.tensordot(course, fields, 1) + head * np.float32(1 + shift)
            volume += white_noise * rng.standard_normal(shape, dtype=np.float32)
            stored = np.rint((volume.clip(0) - BASELINE) / slope).clip(-32768, 32767)
            file.write(stored.astype("<i2").tobytes(order="F"))


def grid_of_study(resolution: float) -> Any:
    """The analysis grid that the app would use."""
    from bids_fbn.signal.standard import analysis_grid

    return analysis_grid(SPACE, resolution)


def ours(run: Path, grid: Any, smoothing: float, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Series (T, V), and which voxels are covered."""
    from bids_fbn.config import SignalOptions
    from bids_fbn.signal.clean import clean_run

    options = SignalOptions(nuisance=("none",), smoothing=smoothing, min_time=0)
    signals = clean_run(run, REPETITION_TIME, grid, options, folder).signals
    return np.asarray(signals.data), signals.covered


def with_nilearn(run: Path, grid: Any, smoothing: float, in_order: bool) -> np.ndarray:
    """Series (T, V) by ``NiftiMasker``; smoothed by it, or `in_order` before it."""
    from nilearn.image import smooth_img
    from nilearn.maskers import NiftiMasker

    masker = NiftiMasker(
        mask_img=grid.image(np.ones(grid.n_voxels, np.uint8)),
        smoothing_fwhm=None if in_order else smoothing,
        target_affine=grid.affine,
        target_shape=grid.shape,
        detrend=True,
        standardize="zscore_sample",
    )
    image: Any = smooth_img(run, smoothing) if in_order else run
    return masker.fit_transform(image)


class AnonymousMemory:
    """The most anonymous memory of this process, bytes, sampled by a thread."""

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self.peak = max(self.peak, 1024 * int(line.split()[1]))

    def stop(self) -> int:
        self._done.set()
        return self.peak


def peak_resident() -> int:
    """Highest resident size of this process so far, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def one_side(side: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Take the run to series, save them, say what it took."""
    import nilearn.image
    import nilearn.maskers  # noqa: F401 (imports are not timed)

    from bids_fbn.signal import clean

    warnings.simplefilter("ignore")
    grid = grid_of_study(arguments.resolution)
    folder = arguments.folder / "work"
    folder.mkdir(exist_ok=True)
    resampling, clean.resample_run = timed(clean.resample_run)
    before, anonymous = peak_resident(), AnonymousMemory()
    start = time.perf_counter()
    covered = np.ones(grid.n_voxels, bool)
    if side == "ours":
        series, covered = ours(arguments.file, grid, arguments.smoothing, folder)
    else:
        series = with_nilearn(arguments.file, grid, arguments.smoothing, side == "in-order")
    seconds = time.perf_counter() - start
    facts = {"seconds": seconds, "resampling": sum(resampling), "before": before}
    facts |= {"peak": peak_resident(), "anonymous": anonymous.stop()}
    np.save(arguments.folder / f"{side}.npy", np.where(covered, series, 0).astype(np.float32))
    return facts


def timed(function: Callable[..., Any]) -> tuple[list[float], Callable[..., Any]]:
    """A list that each call of the function that is returned adds its seconds to."""
    seconds: list[float] = []

    def call(*given: Any, **named: Any) -> Any:
        start = time.perf_counter()
        result = function(*given, **named)
        seconds.append(time.perf_counter() - start)
        return result

    return seconds, call


def stages(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of the stages that overlap, each alone; those of computing from 48 volumes."""
    from threadpoolctl import threadpool_limits

    from bids_fbn.signal import reading, resample
    from bids_fbn.signal.separable import SeparableResampling

    grid = grid_of_study(arguments.resolution)
    run = reading.open_run(arguments.file)
    seconds: dict[str, float] = {}

    def measure(name: str, work: Callable[[], Any], times: float = 1) -> None:
        taken, call = timed(work)
        call()
        seconds[name] = taken[0] * times

    def read_all() -> None:
        for _ in run.blocks(16):
            pass

    read_from_disk(arguments.file)
    measure("read, isal" if reading.igzip else "read, isal is not installed", read_all)
    reading.igzip = None
    measure("read, gzip", read_all)

    _, block = next(run.blocks(48))
    matrices = SeparableResampling.plan(run.affine, run.shape[:3], grid, arguments.smoothing)
    assert matrices is not None
    times = run.shape[3] / len(block)
    in_run = np.ones(block.shape[1:], bool)
    measure("survey", lambda: (block.min(axis=0), block.max(axis=0)), times)
    measure("empty volumes", lambda: resample._without_signal(block, in_run), times)
    with threadpool_limits(1, user_api="blas"):
        matrices(block[0])
        measure("smooth and resample", lambda: [matrices(volume) for volume in block], times)
    return seconds


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """r of each voxel that varies in both of two matrices (T, V)."""
    found = []
    for first in range(0, a.shape[1], 2048):
        x, y = (np.asarray(m[:, first : first + 2048], np.float64) for m in (a, b))
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
        norm = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
        found.append((x * y).sum(axis=0)[norm > 0] / norm[norm > 0])
    return np.concatenate(found)


def in_a_process(what: str, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", what, "--file", str(arguments.file)]
    command += ["--folder", str(arguments.folder), "--smoothing", str(arguments.smoothing)]
    command += ["--resolution", str(arguments.resolution)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what} ended with {done.returncode}; was there memory enough?")
    facts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return facts


def read_from_disk(path: Path) -> None:
    """So that no side pays for the disk: the file is in the page cache afterwards."""
    with path.open("rb") as file:
        while file.read(2**24):
            pass


def compare(arguments: argparse.Namespace) -> None:
    results: dict[str, list[dict[str, float]]] = {side: [] for side in arguments.sides}
    for _ in range(arguments.repeats):
        for side in arguments.sides:
            read_from_disk(arguments.file)
            results[side].append(in_a_process(side, arguments))
            print(side, {k: round(v, 1) for k, v in results[side][-1].items()}, file=sys.stderr)
    best = {side: min(each, key=lambda f: f["seconds"]) for side, each in results.items()}
    own = best["ours"]
    series = {side: np.load(arguments.folder / f"{side}.npy", mmap_mode="r") for side in best}
    print("| | seconds | time ÷ ours | peak MB | peak ÷ ours | anonymous MB | r min | r median |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for side, facts in best.items():
        r = correlations(series["ours"], series[side])
        print(
            f"| {side} | {facts['seconds']:.1f} | {facts['seconds'] / own['seconds']:.1f} "
            f"| {facts['peak'] / 1e6:.0f} | {facts['peak'] / own['peak']:.1f} "
            f"| {facts['anonymous'] / 1e6:.0f} | {r.min():.6f} | {np.median(r):.6f} |"
        )
        if side == "in-order" and r.min() < LEAST_R:
            raise SystemExit(f"{side}: the same steps give r {r.min():.6f}, below {LEAST_R}")
    n_volumes, n_voxels = series["ours"].shape
    print(
        f"\n{n_volumes} volumes, {n_voxels} voxels in the mask; best of {arguments.repeats}; "
        f"{arguments.file.stat().st_size / 1e9:.2f} GB on disk; with its libraries loaded and "
        f"nothing done, our process takes {own['before'] / 1e6:.0f} MB."
    )
    print("\n| stage | seconds |\n|---|---:|")
    for name, seconds in in_a_process("stages", arguments).items():
        print(f"| {name}, alone | {seconds:.2f} |")
    print(f"| all of these together, read ahead | {own['resampling']:.2f} |")
    print(f"| the rest: tSNR, projection, z-scores | {own['seconds'] - own['resampling']:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--volumes", type=int, default=1200)
    parser.add_argument("--shape", type=int, nargs=3, default=(91, 109, 91))
    parser.add_argument("--resolution", type=float, default=4.0, help="of the grid, mm")
    parser.add_argument("--smoothing", type=float, default=6.0, help="FWHM, mm")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=("ours", "masker"))
    parser.add_argument("--file", type=Path, help="made if it is not there, and kept")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=(*SIDES, "stages"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        work = stages if arguments.child == "stages" else partial(one_side, arguments.child)
        print(json.dumps(work(arguments)))
        return
    if "ours" not in arguments.sides:
        parser.error("--sides needs ours, which the others are compared with")
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        arguments.file = arguments.file or arguments.folder / "run.nii.gz"
        if not arguments.file.exists():
            make_run(arguments.file, tuple(arguments.shape), arguments.volumes)
        compare(arguments)


if __name__ == "__main__":
    main()
