"""Training: of one run and of many participants, killed and resumed, in one process and in two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from small_models import (
    CLASSES,
    CPU,
    all_maps,
    assert_same,
    one_line,
    run_of,
    small,
    weights_of,
)
from torch import nn

from bids_fbn.cli import main as cli_main
from bids_fbn.errors import InputError, RunError
from bids_fbn.models import fitting
from bids_fbn.models.fitting import Plan, Stage, train
from bids_fbn.models.sampling import Order, WindowReader, Windows, split_participants
from bids_fbn.resources import Processes, launched_processes
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals
from bids_fbn.train import main as train_main

pytestmark = pytest.mark.usefixtures("one_thread")


def study(grid: Grid, n_participants: int, n_volumes: int = 16) -> list[Signals]:
    return [
        replace(run_of(grid, n_volumes, seed=i), name=f"sub-{i:02d}_task-rest")
        for i in range(n_participants)
    ]


def on_disk(runs: list[Signals], folder: Path) -> list[Path]:
    """The runs as cleaning leaves them."""
    folders = []
    for run in runs:
        folders.append(folder / run.name)
        folders[-1].mkdir(parents=True)
        np.save(folders[-1] / "data.npy", run.data)
        run.save(folders[-1])
    return folders


# --- one run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stca", "scaae"])
def test_the_same_seed_gives_the_same_model_and_another_another(
    ball_grid: Grid, name: str
) -> None:
    signals = run_of(ball_grid)
    first, again, other = (
        small(name, ball_grid).fit([signals], CPU, seed=seed) for seed in (1, 1, 2)
    )
    assert_same(weights_of(first), weights_of(again))
    assert_same(all_maps(first, signals), all_maps(again, signals))
    maps, others = all_maps(first, signals)[4], all_maps(other, signals)[4]
    assert not np.allclose(maps, others, atol=1e-3)


@pytest.mark.parametrize("name", ["stca", "scaae"])
@pytest.mark.parametrize("within_epochs", [False, True])
def test_a_training_that_was_killed_ends_like_one_that_was_not(
    ball_grid: Grid,
    name: str,
    within_epochs: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if within_epochs:
        monkeypatch.setattr(fitting, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    signals = run_of(ball_grid)
    whole = small(name, ball_grid).fit([signals], CPU, seed=3)
    n_steps = len(whole.training["LossCurve"]["Loss"])
    steps_an_epoch = n_steps // whole.recipe.epochs
    loss_of = CLASSES[name].loss
    steps = 0

    def killed_in_the_second_epoch(*arguments: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == steps_an_epoch + 3:
            raise KeyboardInterrupt
        return loss_of(*arguments)

    checkpoint = tmp_path / "training.pt"
    monkeypatch.setattr(CLASSES[name], "loss", killed_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        small(name, ball_grid).fit([signals], CPU, 3, checkpoint)
    assert checkpoint.is_file()

    steps = 0

    def counted(*arguments: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return loss_of(*arguments)

    monkeypatch.setattr(CLASSES[name], "loss", counted)
    resumed = small(name, ball_grid).fit([signals], CPU, 3, checkpoint)
    done_before = steps_an_epoch + 2 if within_epochs else steps_an_epoch
    assert steps == n_steps - done_before
    assert_same(weights_of(resumed), weights_of(whole))
    assert resumed.training["LossCurve"] == whole.training["LossCurve"]
    # Finished, but not yet saved when it was killed again: nothing is computed twice.
    finished = small(name, ball_grid).fit([signals], CPU, 3, checkpoint)
    assert steps == n_steps - done_before
    assert_same(weights_of(finished), weights_of(whole))
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_a_checkpoint_of_another_training_is_refused(ball_grid: Grid, tmp_path: Path) -> None:
    checkpoint = tmp_path / "training.pt"
    small("stca", ball_grid).fit([run_of(ball_grid)], CPU, 3, checkpoint)
    with pytest.raises(RunError) as error:
        small("stca", ball_grid).fit([run_of(ball_grid)], CPU, 4, checkpoint)
    assert f"{checkpoint}: of another training" in one_line(error)


@pytest.mark.parametrize(("name", "n_volumes"), [("stca", 6), ("scaae", 4)])
def test_what_is_seen_again_and_again_is_learnt(
    ball_grid: Grid, name: str, n_volumes: int
) -> None:
    model = small(name, ball_grid, epochs=25, learning_rate=3e-3)
    losses = model.fit([run_of(ball_grid, n_volumes)], CPU).training["LossCurve"]["Loss"]
    assert len(losses) == 25
    assert losses[-1] < 0.75 * losses[0]


def test_the_learning_rate_decays_by_epochs() -> None:
    stage = Stage("training", 20, 1e-3, decay=0.9, decay_every=2)
    assert [stage.rate(epoch) for epoch in (0, 1, 2, 3, 19)] == pytest.approx(
        [1e-3, 1e-3, 9e-4, 9e-4, 1e-3 * 0.9**9]
    )
    assert Stage("training", 20, 1e-3).rate(19) == 1e-3


def test_a_training_that_diverges_is_an_error_of_the_run(ball_grid: Grid) -> None:
    signals = run_of(ball_grid)
    signals.data[5] = np.nan
    with pytest.raises(RunError) as error:
        small("stca", ball_grid).fit([signals], CPU)
    assert "diverged at step" in one_line(error)


def test_a_batch_too_large_for_the_gpu_is_an_error_of_the_run(
    ball_grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not divided: batch norm would see other statistics than on a larger GPU."""
    model = small("scaae", ball_grid)

    def too_large(network: Any, batch: Any, stage: str) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "loss", too_large)
    with pytest.raises(RunError, match="scaae: 4 windows in a training step") as error:
        model.fit([run_of(ball_grid)], CPU)
    assert "--precision bf16, a smaller --batch" in one_line(error)


def test_a_run_without_a_window_is_an_error_of_the_run(ball_grid: Grid) -> None:
    with pytest.raises(RunError) as error:
        small("stca", ball_grid).fit([run_of(ball_grid, 5)], CPU)
    assert "6 volumes" in one_line(error)


# --- order --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "epochs"), [(1, 2), (3, 4), (10, 4), (50, 3)])
@pytest.mark.parametrize("processes", [1, 2])
def test_an_epoch_takes_each_window_at_most_once(stride: int, epochs: int, processes: int) -> None:
    if stride == 50:
        processes = 1  # one window an epoch
    order = Order(37, 4, stride, epochs, shuffle=True, seed=0, processes=processes)
    seen: set[int] = set()
    for epoch in range(epochs):
        batches = order.batches(epoch)
        sizes = [len(batch) for batch in batches]
        assert max(sizes) - min(sizes) <= 1
        assert processes <= min(sizes)
        taken = np.concatenate(batches)
        assert len(set(taken.tolist())) == len(taken)
        assert np.array_equal(np.diff(np.sort(taken)), np.full(len(taken) - 1, min(stride, 37)))
        assert np.array_equal(taken, np.concatenate(order.batches(epoch)))
        seen |= set(taken.tolist())
    if stride <= epochs:
        assert seen == set(range(37))
    in_time = replace(order, shuffle=False, stride=1)
    assert np.array_equal(np.concatenate(in_time.batches(0)), np.arange(37))
    assert in_time.steps == epochs * len(in_time.batches(0))


def test_training_windows_bridge_no_gap_and_no_two_runs(ball_grid: Grid) -> None:
    runs = [run_of(ball_grid, 20, left_out=(9, 10)), run_of(ball_grid, 12, seed=1)]
    model = small("stca", ball_grid)
    windows = Windows.of(runs, 6, model._training_starts)
    of_first = windows.starts[windows.runs == 0]
    assert len(of_first)  # rows 0 to 8 and 9 to 17
    assert all(start + 6 <= 9 or start >= 9 for start in of_first)
    assert windows.starts[windows.runs == 1].tolist() == list(range(7))
    model.fit(runs, CPU)
    assert model.training["Runs"] == ["run", "run"]
    assert model.training["Volumes"] == 30


def test_batches_hold_the_windows_that_were_asked_for(ball_grid: Grid, tmp_path: Path) -> None:
    in_memory = study(ball_grid, 3)
    runs = [Signals.load(folder) for folder in on_disk(in_memory, tmp_path)]
    windows = Windows.of(runs, 4, lambda run: np.arange(run.n_kept - 3)).counted_from(5)
    chosen = [np.array([0, 38, 13]), np.array([20])]
    batches = list(WindowReader(windows, torch.device("cpu")).batches(chosen))
    for indices, batch in zip(chosen, batches, strict=True):
        assert np.array_equal(batch.runs, indices // 13 + 5)
        for window, run, start in zip(batch.windows, batch.runs - 5, batch.starts, strict=True):
            assert start == indices[0] % 13 or len(indices) > 1
            assert np.array_equal(window.numpy(), in_memory[run].data[start : start + 4])


def test_a_run_is_open_only_while_it_is_read(ball_grid: Grid, tmp_path: Path) -> None:
    """A study has more runs than a process may open files."""
    (run,) = study(ball_grid, 1)
    (folder,) = on_disk([run], tmp_path)
    loaded = Signals.load(folder)
    rows = loaded.rows(3, 9)
    assert np.array_equal(rows, run.data[3:9])
    assert np.array_equal(np.asarray(loaded.data), run.data)
    assert np.array_equal(loaded.data[:, run.covered], run.data)
    assert len(loaded.data) == 16
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(folder) not in maps.read_text()


# --- participants -------------------------------------------------------------------------------


def test_participants_are_held_out_with_all_their_runs(ball_grid: Grid) -> None:
    one = run_of(ball_grid, 4)
    runs = [replace(one, name=f"sub-{i:02d}_run-{j}") for i in range(10) for j in (1, 2)]
    training, validation = split_participants(runs, 0.25, seed=0)
    names = [{run.name[:6] for run in part} for part in (training, validation)]
    assert (len(names[0]), len(names[1])) == (7, 3)
    assert not names[0] & names[1]
    assert len(training) + len(validation) == 20
    assert split_participants(runs, 0.25, seed=1)[1][0].name != validation[0].name or (
        split_participants(runs, 0.25, seed=2)[1][0].name != validation[0].name
    )
    assert split_participants(runs, 0, seed=0) == (runs, [])
    with pytest.raises(ValueError, match="leave none to train on"):
        split_participants(runs[:2], 0.5, seed=0)


def test_the_epoch_that_does_best_on_others_is_kept(ball_grid: Grid) -> None:
    """Noise is learnt by heart: what that gains on the run, it loses on another."""
    rng = np.random.default_rng(0)
    noise = [
        replace(run, data=rng.standard_normal(run.data.shape).astype(np.float32))
        for run in study(ball_grid, 2)
    ]
    recipe = {"epochs": 40, "learning_rate": 1e-2, "stride": 1, "batch": 4}
    model = small("stca", ball_grid, **recipe)
    model.fit(noise[:1], CPU, validation=noise[1:], patience=3)
    curve = model.training["ValidationCurve"]["Loss"]
    (kept,) = model.training["KeptEpochs"]
    assert kept == int(np.argmin(curve)) + 1
    assert len(curve) == kept + 3 < 40
    again = small("stca", ball_grid, **recipe).fit(noise[:1], CPU, validation=noise[1:])
    assert len(again.training["ValidationCurve"]["Loss"]) == 40
    windows = Windows.of(noise[1:], model.window, model._training_starts)
    (batch,) = WindowReader(windows, torch.device("cpu")).batches([np.arange(len(windows))])
    with torch.no_grad():
        loss = float(model.loss(model.network, batch, "training"))
    assert loss == pytest.approx(curve[kept - 1], rel=1e-4)


def test_a_batch_in_parts_has_the_gradient_of_the_whole(ball_grid: Grid) -> None:
    class Mean(nn.Module):
        """A network without batch norm."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return values - self.weight

    windows = Windows.of(study(ball_grid, 2), 1, lambda run: np.arange(run.n_kept))

    def trained(accumulate: int) -> tuple[list[float], float]:
        network = Mean()
        stage = Stage("training", 3, 1e-2)
        plan = Plan("mean", [stage], windows, batch=5, accumulate=accumulate)
        fabric = CPU.fabric()
        fabric.launch()
        losses = train(network, plan, lambda net, b, _: (net(b.windows) ** 2).mean(), fabric)
        return losses.curve.losses, network.weight.item()

    whole, parts = trained(1), trained(3)
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    assert parts[1] == pytest.approx(whole[1], rel=1e-5)


def test_stages_train_what_they_name_and_freeze_the_rest(ball_grid: Grid) -> None:
    windows = Windows.of(study(ball_grid, 1), 1, lambda run: np.arange(run.n_kept))
    network = nn.ModuleDict({"first": nn.Linear(1, 1), "second": nn.Linear(1, 1)})
    network.forward = lambda x: network["second"](network["first"](x))  # type: ignore[method-assign]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    after: dict[str, dict[str, torch.Tensor]] = {}

    def loss(net: Any, batch: Any, stage: str) -> torch.Tensor:
        after[stage] = {key: value.clone() for key, value in network.state_dict().items()}
        return (net(batch.windows.mean(dim=2, keepdim=True)) ** 2).mean()

    stages = [
        Stage("one", 2, 1e-2, parameters=lambda net: net["first"].parameters()),
        Stage(
            "two", 2, 1.0, optimizer="adadelta", parameters=lambda net: net["second"].parameters()
        ),
    ]
    fabric = CPU.fabric()
    fabric.launch()
    training = train(network, Plan("two", stages, windows, batch=4), loss, fabric)
    assert len(training.curve.losses) == 2 * 2 * 4
    assert torch.equal(after["one"]["second.weight"], before["second.weight"])
    assert not torch.equal(after["one"]["first.weight"], before["first.weight"])
    assert torch.equal(network["first"].weight, after["two"]["first.weight"])
    assert not torch.equal(network["second"].weight, before["second.weight"])


# --- the command, several processes -------------------------------------------------------------


def run_train(*arguments: object, processes: int = 1, **options: Any) -> Any:
    module = [sys.executable, "-m"]
    if processes > 1:
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        module += [*launcher, "-m"]
    # The tests run side by side: threads beyond a processor each wait for one another.
    return subprocess.Popen(
        [*module, "bids_fbn.train", *map(str, arguments), "--omp-nthreads=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **options},
        start_new_session=True,
    )


def finished(process: Any) -> str:
    output: str = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def participants(ball_grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cleaned runs of six participants."""
    folder = tmp_path_factory.mktemp("study") / "signals"
    on_disk(study(ball_grid, 6), folder)
    return folder


def card_of(weights: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads(weights.with_suffix(".json").read_text())
    return card


@pytest.mark.parametrize("name", ["stca", "scaae"])
def test_two_processes_train_like_one_with_the_double_batch(
    participants: Path, name: str, tmp_path: Path
) -> None:
    options = ["--model", name, "--sloppy", "--channels=4", "--epochs=2", "--device=cpu"]
    options += ["--precision=fp32", "--training-stride=1"]
    if name == "stca":
        options += ["--window=6"]
    losses = []
    for processes, batch in ((1, 8), (2, 4)):
        out = tmp_path / f"{processes}.safetensors"
        finished(run_train(participants, out, *options, f"--batch={batch}", processes=processes))
        training = card_of(out)["Training"]
        assert training["Processes"] == processes
        losses.append(training["LossCurve"]["Loss"])
    assert len(losses[0]) > 10
    # Sums in another order differ in the last digits, and every step of so small a network, with
    # batch norm over a handful of values, doubles that.
    assert losses[1][:8] == pytest.approx(losses[0][:8], rel=1e-3)
    assert losses[1][:3] == pytest.approx(losses[0][:3], rel=2e-5)


def load_weights(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    loaded: dict[str, np.ndarray] = load_file(path)
    return loaded


def test_a_shared_training_that_is_killed_goes_on(participants: Path, tmp_path: Path) -> None:
    options = ["--model=scaae", "--sloppy", "--channels=4", "--device=cpu", "--epochs=12"]
    options += ["--validation=0.3"]
    finished(run_train(participants, tmp_path / "whole.safetensors", *options))
    out = tmp_path / "killed.safetensors"
    process = run_train(participants, out, *options)
    for line in process.stdout:
        if "epoch 3," in line:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    output = finished(run_train(participants, out, *options))
    assert "goes on" in output
    assert_same(load_weights(out), load_weights(tmp_path / "whole.safetensors"))
    cards = [card_of(path) for path in (out, tmp_path / "whole.safetensors")]
    assert cards[0] == cards[1]
    assert len(cards[0]["Training"]["ValidationRuns"]) == 2
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        f"{name}{end}" for name in ("whole", "killed") for end in (".json", ".safetensors")
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no cleaned runs"),
        (["--validation=0.9"], "--validation 0.9: 6 participants leave none to train on"),
        (["--model=stca", "--window=30"], "no run has 30 volumes"),
        (["--patience=3"], "--patience: needs --validation"),
        (["--channels=3"], "choose an even number"),
        (["--device=cuda:77"], "--device cuda"),
        (["--model=untrained-stca"], "--model untrained-stca: learns nothing"),
        (["--model=dualregression"], "--model dualregression: learns nothing"),
        (["--model=ica", "--validation=0.2"], "--validation: has no effect on ica"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(
    participants: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    signals = tmp_path / "nowhere" if arguments == ["nowhere"] else participants
    options = [argument for argument in arguments if argument.startswith("--")]
    if not any(option.startswith("--model") for option in options):
        options.append("--model=scaae")
    out = tmp_path / "out.safetensors"
    assert train_main([str(signals), str(out), "--sloppy", *options]) in (1, 2)
    printed = capsys.readouterr().err
    (line,) = [line for line in printed.splitlines() if "error:" in line]
    assert message in line
    assert "Traceback" not in printed
    assert list(tmp_path.iterdir()) == []


def test_processes_are_those_that_the_launcher_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in list(os.environ):
        if key.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(key)
    assert launched_processes() == Processes(1, 1)
    # Inside a batch script several tasks may have been asked for, none of which was started here.
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert launched_processes() == Processes(1, 1)
    step = {"STEP_ID": "0", "STEP_NUM_TASKS": "8", "STEP_NUM_NODES": "2", "PROCID": "5"}
    for key, value in {**step, "LOCALID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    assert launched_processes() == Processes(4, 2, 5, 1)
    assert os.environ["SLURM_NTASKS_PER_NODE"] == "4"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    for key, value in {"WORLD_SIZE": 7, "LOCAL_WORLD_SIZE": 4, "RANK": 0, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(key, str(value))
    with pytest.raises(InputError):
        launched_processes()


def test_group_training_scores_those_that_it_has_not_seen(
    participants: Path, ball_grid: Grid, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, templates = tmp_path / "out", tmp_path / "two.nii.gz"
    x = ball_grid.coordinates[:, 0]
    halves = np.stack([x - x.min(), x.max() - x]).astype(np.float32)
    nib.save(ball_grid.image(halves), templates)
    (tmp_path / "two.tsv").write_text("name\nright\nleft\n")
    options = [
        *(f"--work-dir={participants}", f"--templates={templates}", "--model=stca", "--window=6"),
        *("--sloppy", "--channels=4", "--epochs=1", "--device=cpu", "--stride=2"),
        *("--n-surrogates=2", "--n-surrogate-maps=9"),
    ]
    code = cli_main([str(participants), str(out), "group", "--train", "--held-out=0.3", *options])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    card = card_of(out / "models" / "desc-stca_model.safetensors")
    training, held_out = card["Training"]["Runs"], card["Training"]["HeldOut"]
    assert (len(training), len(held_out)) == (4, 2)
    assert not set(training) & set(held_out)
    path = out / "group" / "group_desc-stcaheldout_metrics.tsv"
    scores = pd.read_csv(path, sep="\t", na_values="n/a")
    assert set(scores["run"]) == set(held_out)
    of_networks = scores[scores["network"] != "all"]
    assert of_networks["iou_best_of_all"].between(0, 1).all()
    assert of_networks["p_corrected"].notna().all()
    assert scores.loc[scores["network"] == "all", "held_out_variance"].notna().all()
    assert f"weights: {out / 'models'}" in printed.out
