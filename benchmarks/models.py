"""STCA and SCAAE: ours against a plain port of the published networks (``plain.py``).

    python benchmarks/models.py
    python benchmarks/models.py --model stca --windows 4 --runs 3 --device cpu

takes the first windows of ``task-faces-3mm`` (if ``FBN_TEST_DATA`` names the folder that has it;
else noise of its shape) at 4 mm, and on both sides, in turn, in one process:

inference
    candidate maps of all windows. Ours is timed from the end of its first batch, which also
    compares bf16 with fp32; that start is given by itself.
training
    one epoch over the same windows, with the same batch.

The plain port computes on the whole MNI box and a cube of 64³, in fp32, window by window. Times
are the best of the runs. TFLOP/s count multiplications and additions of the convolutions: those
done, and those of the published network in the same time. The peak is that of a product of two
matrices of 4096 × 4096 in the same precision. On a GPU also the whole job of a run of 1,200
volumes, and what channels-last and ``torch.compile`` change.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain import PlainSCAAE, PlainSTCA, plain_epoch, plain_maps
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bids_fbn.models.compute import Compute, choose_compute
from bids_fbn.models.inference import lowest_correlation
from bids_fbn.models.neural import NeuralModel
from bids_fbn.models.scaae import SCAAE, cut_tails
from bids_fbn.models.spectral import SpectralConv3d
from bids_fbn.models.stca import STCA
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals
from bids_fbn.signal.standard import analysis_grid

SPACE = "MNI152NLin2009cAsym"
VOLUMES = 351  # of task-faces-3mm
WHOLE_RUN = 1200
# Between our maps and those of the plain port.
LEAST_R = {"fp32": 0.9999, "bf16": 0.999}
MODELS: dict[str, tuple[type[NeuralModel], type[PlainSTCA] | type[PlainSCAAE]]] = {
    "stca": (STCA, PlainSTCA),
    "scaae": (SCAAE, PlainSCAAE),
}


def faces(folder: Path) -> Signals:
    """The run of ``task-faces-3mm`` at 4 mm; noise if it is not there."""
    grid = analysis_grid(SPACE, 4.0)
    data = os.environ.get("FBN_TEST_DATA")
    if not data:
        return noise(grid, VOLUMES)
    from bids_fbn.config import SignalOptions
    from bids_fbn.signal.clean import clean_run

    bold = next(Path(data, "task-faces-3mm").rglob("*desc-preproc_bold.nii.gz"))
    options = SignalOptions(nuisance=("none",))
    return replace(clean_run(bold, 2.0, grid, options, folder).signals, name="task-faces-3mm")


def noise(grid: Grid, n_volumes: int) -> Signals:
    rng = np.random.default_rng(0)
    data = rng.standard_normal((n_volumes, grid.n_voxels), dtype=np.float32)
    covered = np.ones(grid.n_voxels, dtype=bool)
    return Signals(data, grid, 2.0, np.arange(n_volumes), n_volumes, covered, "noise")


def first_volumes(run: Signals, n_volumes: int) -> Signals:
    data = np.array(run.data[:n_volumes])
    return replace(run, data=data, kept=np.arange(n_volumes), n_volumes=n_volumes)


def boxes(run: Signals) -> np.ndarray:
    """Volumes (T, X, Y, Z) of the whole box."""
    return np.ascontiguousarray(np.moveaxis(run.grid.scatter(run.data[:]), -1, 0))


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(function: Callable[[], object], device: torch.device) -> float:
    started = now(device)
    function()
    return now(device) - started


def peak(device: torch.device, precision: str) -> float:
    """FLOP/s of a product of matrices."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.randn(4096, 4096, device=device).to(kind)
    best = min(seconds(lambda: matrix @ matrix, device) for _ in range(6))
    return float(2 * 4096**3 / best)


def flops(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def our_maps(model: NeuralModel, run: Signals, compute: Compute) -> tuple[Tensor, float, float]:
    """Maps (S, K, V), seconds of the start, and seconds for each window after the first batch."""
    device = compute.torch_device
    # A model keeps from its first run on what the start is for.
    model = copy.deepcopy(model)
    started = now(device)
    found: list[Tensor] = []
    ends = []
    for _, maps in model.maps(run, compute):
        ends.append(now(device))
        found.append(maps.cpu())
    later = sum(len(maps) for maps in found[1:])
    each = (ends[-1] - ends[0]) / later if later else float("nan")
    return torch.cat(found), ends[0] - started - len(found[0]) * each, each


class Pair:
    """A model and the plain port with the same weights."""

    def __init__(self, name: str, run: Signals, n_windows: int, device: torch.device) -> None:
        ours, plain = MODELS[name]
        self.name, self.device = name, device
        torch.manual_seed(0)
        self.plain: PlainSTCA | PlainSCAAE = plain().to(device)
        # In the published box, so that the maps are to be the same.
        recipe = replace(ours.recipes["corrected"], epochs=1, stride=1, margin=0)
        self.model = ours(recipe, "corrected", run.grid)
        self.run = first_volumes(run, n_windows + recipe.window - 1)
        self.volumes = boxes(self.run)
        self.starts = range(n_windows)
        self.take_weights()

    def take_weights(self) -> None:
        _copy_weights(self.plain, self.model.network)

    def train(self, run: Signals, n_steps: int, compute: Compute) -> None:
        """Some steps of the recipe; the plain port takes the weights."""
        recipe = type(self.model).recipes["corrected"]
        n_volumes = min(run.n_kept, recipe.window + recipe.batch * n_steps * recipe.stride - 1)
        trained = type(self.model)(replace(recipe, epochs=1), "corrected", run.grid)
        trained.fit([first_volumes(run, n_volumes)], compute)
        _copy_weights(trained.network, self.plain)
        _copy_weights(trained.network, self.model.network)
        curve = trained.training["LossCurve"]
        print(f"\n{self.name}: trained {curve['Step'][-1]:.0f} steps on {n_volumes} volumes")

    def lowest_r(self, compute: Compute) -> float:
        """Over all windows and all maps; for SCAAE those of the channels too."""
        lowest = 1.0
        # The usual ones last: they are what comes after.
        for kind in ("channels", "fbn") if self.name == "scaae" else ("fbn",):
            self.model.candidates = kind
            if isinstance(self.plain, PlainSCAAE):
                self.plain.channel_maps = kind == "channels"
            maps, _, _ = our_maps(self.model, self.run, compute)
            lowest = min(lowest, lowest_correlation(maps, self.plain_maps()))
        return lowest

    def plain_maps(self) -> Tensor:
        window, grid = self.model.window, self.run.grid
        maps = plain_maps(self.plain, self.volumes, grid, window, self.starts, self.device)
        found = torch.from_numpy(np.stack(list(maps)))
        return cut_tails(found) if self.name == "scaae" else found

    def plain_epoch(self) -> None:
        recipe = self.model.recipe
        plain_epoch(
            self.plain,
            self.volumes,
            recipe.window,
            self.starts,
            recipe.batch,
            recipe.learning_rate,
            self.device,
        )

    def one_batch(self, size: int) -> Tensor:
        """Windows (B, W, X, Y, Z) of the whole box."""
        window = self.model.window
        batch = np.stack([self.volumes[s : s + window] for s in range(size)])
        return torch.from_numpy(batch).to(self.device)

    def published_flops(self, training: bool) -> float:
        """FLOP for a window."""
        batch = self.one_batch(1)
        if training:
            self.plain.train()
            return flops(lambda: self.plain(batch).square().mean().backward())
        with torch.no_grad():
            return flops(lambda: self.plain.candidates(batch))

    def transforms(self, compute: Compute) -> bool:
        """Whether layers are computed by Fourier transform."""
        modules = self.model._mapper(compute).network.modules()
        return any(isinstance(module, SpectralConv3d) for module in modules)

    def our_flops(self, training: bool, compute: Compute) -> float:
        model = self.model
        rows = torch.from_numpy(self.run.data[None, : model.window]).to(self.device)
        box = model._to_box(rows)
        if training:
            model.network.to(self.device).train()
            return flops(lambda: model.network(box).square().mean().backward())
        mapper = model._mapper(compute)
        return flops(lambda: mapper._mapped(box, compute))


def _copy_weights(source: Any, target: Any) -> None:
    # Not the latent part of SCAAE: it has a position for each patch of the padded box.
    state, wanted = source.state_dict(), target.state_dict()
    same = {key: state[key] for key in state if state[key].shape == wanted[key].shape}
    target.load_state_dict(same, strict=False)


def table(title: str, rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print(f"\n{title}\n")
    for number, row in enumerate(rows):
        print("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (w + 2) for w in widths) + "|")


def compare(pair: Pair, precisions: list[Compute], runs: int, peaks: dict[str, float]) -> None:
    n_windows = len(pair.starts)
    plain_time: list[float] = []
    ours: dict[str, list[tuple[float, float]]] = {c.precision: [] for c in precisions}
    r: dict[str, float] = {}
    for _ in range(runs):
        plain_time.append(seconds(pair.plain_maps, pair.device) / n_windows)
        for compute in precisions:
            _, start, each = our_maps(pair.model, pair.run, compute)
            ours[compute.precision].append((start, each))
    for compute in precisions:
        r[compute.precision] = pair.lowest_r(compute)
    published = pair.published_flops(training=False)
    best_plain = min(plain_time)
    rows = [
        [
            *("inference", "s per window", "times faster", "start, s", "lowest r"),
            *("TFLOP per window", "TFLOP/s done", "published TFLOP/s", "share of peak"),
        ],
        [
            *("plain, fp32", f"{best_plain:.3f}", "1", "", ""),
            *(f"{published / 1e12:.3f}", f"{published / best_plain / 1e12:.2f}"),
            *(f"{published / best_plain / 1e12:.2f}",),
            f"{published / best_plain / peaks['fp32']:.0%}",
        ],
    ]
    for compute in precisions:
        precision = compute.precision
        start = min(s for s, _ in ours[precision])
        each = min(e for _, e in ours[precision])
        done = pair.our_flops(False, compute)
        # Of a layer that is computed by Fourier transform only the products would be counted.
        counted = not pair.transforms(compute)
        rows.append(
            [
                *(f"ours, {precision}", f"{each:.3f}", f"{best_plain / each:.1f}"),
                *(f"{start:.2f}", f"{r[precision]:.6f}"),
                f"{done / 1e12:.3f}" if counted else "by transform",
                f"{done / each / 1e12:.2f}" if counted else "",
                f"{published / each / 1e12:.2f}",
                f"{done / each / peaks[precision]:.0%}" if counted else "",
            ]
        )
    table(f"{pair.name}: maps of {n_windows} windows, best of {runs}", rows)
    low = [p for p, lowest in r.items() if lowest < LEAST_R[p]]
    if low:
        raise SystemExit(f"{pair.name}: maps in {', '.join(low)} are not those of the plain port")


def compare_training(
    pair: Pair, precisions: list[Compute], runs: int, peaks: dict[str, float]
) -> None:
    n_windows = len(pair.starts)
    plain_time: list[float] = []
    ours: dict[str, list[float]] = {c.precision: [] for c in precisions}
    for _ in range(runs):
        plain_time.append(seconds(pair.plain_epoch, pair.device) / n_windows)
        for compute in precisions:
            fit = partial(pair.model.fit, [pair.run], compute)
            ours[compute.precision].append(seconds(fit, pair.device) / n_windows)
    published = pair.published_flops(training=True)
    best_plain = min(plain_time)
    rows = [
        [
            *("training epoch", "s per window", "times faster", "TFLOP per window"),
            *("TFLOP/s done", "published TFLOP/s", "share of peak"),
        ],
        [
            *("plain, fp32", f"{best_plain:.3f}", "1", f"{published / 1e12:.3f}"),
            *(f"{published / best_plain / 1e12:.2f}",) * 2,
            f"{published / best_plain / peaks['fp32']:.0%}",
        ],
    ]
    for compute in precisions:
        each = min(ours[compute.precision])
        done = pair.our_flops(True, compute)
        rows.append(
            [
                *(f"ours, {compute.precision}", f"{each:.3f}", f"{best_plain / each:.1f}"),
                *(f"{done / 1e12:.3f}", f"{done / each / 1e12:.2f}"),
                f"{published / each / 1e12:.2f}",
                f"{done / each / peaks[compute.precision]:.0%}",
            ]
        )
    title = f"{pair.name}: an epoch of {n_windows} windows, batch {pair.model.recipe.batch}"
    table(f"{title}, best of {runs}", rows)


def gpu_variants(pair: Pair, compute: Compute, size: int = 16) -> None:
    """What channels-last and torch.compile change on a GPU, a batch of windows in bf16."""
    model = pair.model
    rows = torch.from_numpy(pair.run.data).to(pair.device)
    box = model._to_box(rows[None])[0].unfold(0, model.window, 1).movedim(-1, 1)[:size]
    lines = [["bf16 inference", "ms per window"]]
    module: Any = sys.modules[type(model).__module__]
    arranged = module.arranged
    for channels_last in (False, True):
        # Layers keep the order of what goes in, which is where it is made channels last.
        module.arranged = arranged if channels_last else lambda features: features
        for compiled in (False, True):
            mapper = model._mapper(compute)
            if not channels_last:
                mapper.network.to(memory_format=torch.contiguous_format)
            attend = torch.compile(mapper.network.attend) if compiled else mapper.network.attend

            def once(attend: Any = attend) -> None:
                with torch.no_grad(), compute.autocast():
                    attend(box)

            once()
            once()
            best = min(seconds(once, pair.device) for _ in range(5)) / len(box)
            words = "channels last" if channels_last else "channels first"
            lines.append([words + ", compiled" * compiled, f"{1000 * best:.2f}"])
    module.arranged = arranged
    table(f"{pair.name}: what the layout changes, batches of {len(box)}", lines)


def whole_job(grid: Grid, compute: Compute, plain_windows: int = 40) -> None:
    """One run of 1,200 volumes: an epoch, all maps, all overlaps. The plain port by its share."""
    from bids_fbn.networks.dynamics import find_networks
    from bids_fbn.networks.maps import SupportRule
    from bids_fbn.networks.templates import load_templates

    device = compute.torch_device
    run = noise(grid, WHOLE_RUN)
    templates = load_templates("seitzman2018", grid)
    model = STCA(replace(STCA.recipes["corrected"], epochs=1, stride=1), "corrected", grid)
    trained = seconds(lambda: model.fit([run], compute), device)
    steps = model.steps(run)

    def networks() -> None:
        find_networks(model.maps(run, compute), steps, templates, run.covered, SupportRule())

    mapped = seconds(networks, device)
    pair = Pair("stca", run, plain_windows, device)
    share = len(steps) / plain_windows
    pair.plain_maps()
    plain = share * (seconds(pair.plain_epoch, device) + seconds(pair.plain_maps, device))
    ours = trained + mapped
    table(
        f"stca: the whole job of {WHOLE_RUN} volumes ({len(steps)} windows)",
        [
            ["", "epoch, s", "maps and IoUs, s", "together, s", "times faster"],
            ["ours", f"{trained:.1f}", f"{mapped:.1f}", f"{ours:.1f}", f"{plain / ours:.1f}"],
            [f"plain ({plain_windows} windows, without IoUs)", "", "", f"{plain:.1f}", "1"],
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--model", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--windows", type=int, help="4 of STCA and 12 of SCAAE; 200 on a GPU")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--train-steps", type=int, default=0, help="compare maps of weights trained that long"
    )
    parser.add_argument("--part", nargs="+", default=["inference", "training"])
    arguments = parser.parse_args()

    best = choose_compute(arguments.device, "auto")
    device = best.torch_device
    precisions = [replace(best, precision="fp32")]
    if best.precision == "bf16":
        precisions.append(replace(best, automatic=False))
    peaks: dict[str, float] = {c.precision: peak(device, c.precision) for c in precisions}
    print(
        f"{best.name}; torch {torch.__version__}; peak "
        + ", ".join(
            f"{precision} {value / 1e12:.2f} TFLOP/s" for precision, value in peaks.items()
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        run = faces(Path(folder))
        print(f"{run.name}: {run.data.shape[1]} voxels at {run.grid.resolution:g} mm")
        for name in arguments.model:
            usual = 200 if device.type == "cuda" else 4 if name == "stca" else 12
            pair = Pair(name, run, arguments.windows or usual, device)
            if arguments.train_steps:
                pair.train(run, arguments.train_steps, best)
            if "inference" in arguments.part:
                compare(pair, precisions, arguments.runs, peaks)
                if device.type == "cuda":
                    gpu_variants(pair, precisions[-1])
            if "training" in arguments.part:
                compare_training(pair, precisions, arguments.runs, peaks)
        if device.type == "cuda":
            whole_job(run.grid, best)
        else:
            print("\nNo GPU was used: the whole job of 1,200 volumes is timed with --device cuda.")


if __name__ == "__main__":
    main()
