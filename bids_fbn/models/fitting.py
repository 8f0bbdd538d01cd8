"""The one training loop."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bids_fbn.errors import RunError
from bids_fbn.models.sampling import Batch, Order, WindowReader, Windows

__all__ = ["Curve", "Plan", "Stage", "Training", "train"]

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_MESSAGES = 15.0
# What a kill may cost at most, in a training whose epochs are longer.
_SECONDS_BETWEEN_CHECKPOINTS = 300.0
# A curve of more points says no more, and would make the files that hold it long.
_CURVE_POINTS = 200
# Losses are fetched from a GPU this often: each time it has to wait.
_STEPS_BETWEEN_FETCHES = 16
# A loss must fall by more than this share of itself to count as better.
_BETTER = 1e-4


@dataclass(frozen=True)
class Stage:
    """A stretch of a training in which the same parameters learn.

    Parameters
    ----------
    name : str
    epochs : int
    learning_rate : float
    decay : float
        Factor on the learning rate every `decay_every` epochs.
    decay_every : int
        0 for never.
    optimizer : {"adam", "adadelta"}
    parameters : callable, optional
        Network → what learns, as torch's optimizers take it: parameters, or groups of them with
        options of their own. All of it where None.
    """

    name: str
    epochs: int
    learning_rate: float
    decay: float = 1.0
    decay_every: int = 0
    optimizer: Literal["adam", "adadelta"] = "adam"
    parameters: Callable[[nn.Module], Iterable[Any]] | None = None

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        steps = epoch // self.decay_every if self.decay_every else 0
        return self.learning_rate * self.decay**steps

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """What learns, as groups; everything else in the network is frozen."""
        asked = list(self.parameters(network) if self.parameters else network.parameters())
        groups = asked if isinstance(asked[0], dict) else [{"params": asked}]
        groups = [{**group, "params": list(group["params"])} for group in groups]
        learning = {id(parameter) for group in groups for parameter in group["params"]}
        for parameter in network.parameters():
            parameter.requires_grad_(id(parameter) in learning)
        return groups

    def make_optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of what learns."""
        kind = {"adam": torch.optim.Adam, "adadelta": torch.optim.Adadelta}[self.optimizer]
        return kind(self.groups(network), lr=self.learning_rate)


@dataclass
class Curve:
    """Loss of every training step, or of every epoch."""

    losses: list[float] = field(default_factory=list)

    def points(self) -> dict[str, list[float]]:
        """At most 200 points: last step of each stretch (from 1) and its mean loss."""
        size = max(1, math.ceil(len(self.losses) / _CURVE_POINTS))
        stretches = [self.losses[i : i + size] for i in range(0, len(self.losses), size)]
        steps = [min((i + 1) * size, len(self.losses)) for i in range(len(stretches))]
        return {
            "Step": [float(step) for step in steps],
            "Loss": [round(sum(s) / len(s), 6) for s in stretches],
        }


@dataclass(frozen=True)
class Plan:
    """How a training goes.

    Parameters
    ----------
    name : str
        For messages.
    stages : sequence of Stage
    windows : Windows
        To train on.
    batch : int
        Windows in a step of one process.
    stride : int
        From one window of an epoch to the next.
    shuffle : bool
    seed : int
    accumulate : int
        Parts in which a batch is computed one after the other, for a GPU with less memory. The
        gradient is that of the whole batch; only batch norm sees the parts.
    validation : Windows, optional
        Of other participants. Their loss is taken after every epoch, and the weights of the best
        epoch are kept.
    patience : int, optional
        Epochs without a better validation loss after which a stage ends early.
    identity : mapping
        What else decides the result; a checkpoint of another training is refused.
    """

    name: str
    stages: Sequence[Stage]
    windows: Windows
    batch: int
    stride: int = 1
    shuffle: bool = True
    seed: int = 0
    accumulate: int = 1
    validation: Windows | None = None
    patience: int | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)

    def order(self, stage: int, processes: int) -> Order:
        """In which order the epochs of a stage take the windows."""
        return Order(
            len(self.windows),
            self.batch * processes,
            self.stride,
            self.stages[stage].epochs,
            self.shuffle,
            self.seed + stage,
            processes,
        )

    def fingerprint(self, processes: int) -> str:
        """Of all that decides the result."""
        stages = [
            (s.name, s.epochs, s.learning_rate, s.decay, s.decay_every, s.optimizer)
            for s in self.stages
        ]
        facts = [
            stages,
            [run.name for run in self.windows.signals],
            [len(self.windows), self.batch * processes, self.stride, self.shuffle, self.seed],
            [self.accumulate, self.patience, len(self.validation or ())],
            dict(self.identity),
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass
class _Progress:
    """How far a training has come: with the weights, all that a checkpoint holds."""

    stage: int = 0
    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    # Of the present stage.
    best_loss: float = math.inf
    best_epoch: int = -1
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    # Of all stages, counted from 1; 0 without validation.
    kept_epochs: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Training:
    """What a training leaves beside the weights.

    Parameters
    ----------
    curve : Curve
        Loss of every step, over all processes.
    validation : Curve
        Validation loss of every epoch.
    kept_epochs : list of int
        For each stage the epoch whose weights were kept, counted from 1, where there was
        validation.
    """

    curve: Curve
    validation: Curve
    kept_epochs: list[int]


def train(
    network: nn.Module,
    plan: Plan,
    loss_of: Callable[[nn.Module, Batch, str], Tensor],
    fabric: Any,
    checkpoint: Path | None = None,
) -> Training:
    """Train a network in place.

    Parameters
    ----------
    network : Module
        On the device of `fabric`.
    plan : Plan
    loss_of : callable
        Network (as Fabric wraps it), batch, name of the stage → mean loss of the batch.
    fabric : Fabric
        Launched. Each process computes its part of every batch.
    checkpoint : Path, optional
        Written after every epoch, and every five minutes; if it exists, training goes on from
        there, and ends with the weights that it would have had. The caller removes it, once the
        weights are safe.

    Raises
    ------
    RunError
        If the loss is no longer finite, there are fewer windows than processes, the checkpoint
        is of another training, or a GPU has too little memory for a batch. A batch is not divided
        unasked: batch norm would see other statistics, and the model depend on the GPU.
    """
    return _Loop(network, plan, loss_of, fabric, checkpoint).run()


class _Loop:
    def __init__(
        self,
        network: nn.Module,
        plan: Plan,
        loss_of: Callable[[nn.Module, Batch, str], Tensor],
        fabric: Any,
        checkpoint: Path | None,
    ) -> None:
        self._network = network
        self._plan = plan
        self._loss_of = loss_of
        self._fabric = fabric
        self._checkpoint = checkpoint
        self._processes: int = fabric.world_size
        self._reader = WindowReader(plan.windows, fabric.device)
        self._validation = None
        if plan.validation is not None:
            self._validation = WindowReader(plan.validation, fabric.device)
        self._progress = _Progress()
        # Losses of steps that have not been fetched from the device.
        self._pending: list[Tensor] = []
        self._fetch_every = 1
        if fabric.device.type == "cuda" or self._processes > 1:
            self._fetch_every = _STEPS_BETWEEN_FETCHES
        self._total = sum(
            plan.order(stage, self._processes).steps for stage in range(len(plan.stages))
        )

    def run(self) -> Training:
        progress = self._progress
        optimizer_state = self._restore()
        self._started = self._last_message = self._last_checkpoint = time.monotonic()
        self._done_before = len(progress.losses)
        while progress.stage < len(self._plan.stages):
            try:
                self._run_stage(optimizer_state)
            except torch.cuda.OutOfMemoryError:
                raise RunError(
                    f"{self._plan.name}: {self._plan.batch} windows in a training step are too "
                    "many for the GPU's memory; take --precision bf16, a smaller --batch, a "
                    "coarser --resolution, or a GPU with more memory that nobody else uses"
                ) from None
            optimizer_state = None
        for parameter in self._network.parameters():
            parameter.requires_grad_(True)
        self._network.eval()
        logger.info(
            "%s: trained %d steps in %.0f s, loss %.3f",
            self._plan.name,
            len(progress.losses) - self._done_before,
            time.monotonic() - self._started,
            progress.losses[-1] if progress.losses else math.nan,
        )
        return Training(Curve(progress.losses), Curve(progress.validation), progress.kept_epochs)

    def _run_stage(self, optimizer_state: dict[str, Any] | None) -> None:
        progress, stage = self._progress, self._plan.stages[self._progress.stage]
        module, optimizer = self._fabric.setup(self._network, stage.make_optimizer(self._network))
        if optimizer_state is not None:
            optimizer.load_state_dict(optimizer_state)
        order = self._plan.order(progress.stage, self._processes)
        while progress.epoch < stage.epochs and not self._enough():
            for group in optimizer.param_groups:
                group["lr"] = stage.rate(progress.epoch)
            self._run_epoch(module, optimizer, order, stage)
            progress.epoch, progress.step = progress.epoch + 1, 0
            self._validate(stage)
            if progress.epoch < stage.epochs:
                self._store(optimizer)
        if progress.best_weights:
            self._network.load_state_dict(progress.best_weights)
        progress.kept_epochs.append(progress.best_epoch + 1)
        progress.stage, progress.epoch = progress.stage + 1, 0
        progress.best_loss, progress.best_epoch, progress.best_weights = math.inf, -1, {}
        self._store(optimizer)

    def _enough(self) -> bool:
        progress, patience = self._progress, self._plan.patience
        if self._validation is None or patience is None:
            return False
        return progress.epoch > 0 and progress.epoch - 1 - progress.best_epoch >= patience

    def _run_epoch(self, module: Any, optimizer: Any, order: Order, stage: Stage) -> None:
        progress = self._progress
        module.train()
        rest = order.batches(progress.epoch)[progress.step :]
        rank, processes = self._fabric.global_rank, self._processes
        for whole, batch in zip(
            rest,
            self._reader.batches(chosen[rank::processes] for chosen in rest),
            strict=True,
        ):
            optimizer.zero_grad(set_to_none=True)
            parts = _parts(batch, self._plan.accumulate)
            total = torch.zeros((), device=self._fabric.device)
            for number, part in enumerate(parts, 1):
                with self._fabric.no_backward_sync(module, enabled=number < len(parts)):
                    # Gradients are averaged over processes, which may hold a window more or less.
                    share = len(part.runs) / len(whole)
                    loss = self._loss_of(module, part, stage.name) * share
                    self._fabric.backward(loss * processes)
                total += loss.detach()
            optimizer.step()
            self._pending.append(total)
            progress.step += 1
            if len(self._pending) >= self._fetch_every:
                self._fetch(stage)
                now = time.monotonic()
                if now - self._last_checkpoint > _SECONDS_BETWEEN_CHECKPOINTS:
                    self._store(optimizer)
        self._fetch(stage)

    def _fetch(self, stage: Stage) -> None:
        if not self._pending:
            return
        losses = torch.stack(self._pending)
        self._pending.clear()
        if self._processes > 1:
            losses = self._fabric.all_reduce(losses, reduce_op="sum")
        progress = self._progress
        for value in losses.tolist():
            if not math.isfinite(value):
                raise RunError(
                    f"{self._plan.name}: training diverged at step {len(progress.losses) + 1}, "
                    f"the loss is {value}; try --precision fp32, or check the run for extreme "
                    "values"
                )
            progress.losses.append(value)
        now = time.monotonic()
        if now - self._last_message > _SECONDS_BETWEEN_MESSAGES:
            self._last_message = now
            done = len(progress.losses)
            left = (now - self._started) / (done - self._done_before) * (self._total - done)
            logger.info(
                "%s: %sepoch %d of %d, step %d of %d, loss %.3f, about %.0f s left",
                self._plan.name,
                f"{stage.name}, " if len(self._plan.stages) > 1 else "",
                progress.epoch + 1,
                stage.epochs,
                done,
                self._total,
                progress.losses[-1],
                left,
            )

    def _validate(self, stage: Stage) -> None:
        windows = self._plan.validation
        if self._validation is None or windows is None:
            return
        self._network.eval()
        rank, processes, batch = self._fabric.global_rank, self._processes, self._plan.batch
        own = np.arange(rank, len(windows), processes)
        chosen = [own[i : i + batch] for i in range(0, len(own), batch)]
        total = torch.zeros((), device=self._fabric.device)
        with torch.no_grad(), self._fabric.autocast():
            for part in self._validation.batches(chosen):
                loss = self._loss_of(self._network, part, stage.name)
                total += loss.detach() * (len(part.runs) / len(windows))
        if processes > 1:
            total = self._fabric.all_reduce(total, reduce_op="sum")
        progress, value = self._progress, float(total)
        progress.validation.append(value)
        logger.info(
            "%s: epoch %d, loss %.4f on participants held out",
            self._plan.name,
            progress.epoch,
            value,
        )
        if value < progress.best_loss * (1 - _BETTER) or progress.best_epoch < 0:
            progress.best_loss, progress.best_epoch = value, progress.epoch - 1
            progress.best_weights = {
                key: tensor.detach().cpu().clone()
                for key, tensor in self._network.state_dict().items()
            }

    def _store(self, optimizer: Any) -> None:
        self._last_checkpoint = time.monotonic()
        if self._checkpoint is None or self._fabric.global_rank > 0:
            return
        part = self._checkpoint.with_name(self._checkpoint.name + ".part")
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save(
            {
                "plan": self._plan.fingerprint(self._processes),
                "network": self._network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "progress": vars(self._progress),
            },
            part,
        )
        os.replace(part, self._checkpoint)

    def _restore(self) -> dict[str, Any] | None:
        if self._checkpoint is None or not self._checkpoint.is_file():
            return None
        state = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
        if state["plan"] != self._plan.fingerprint(self._processes):
            raise RunError(
                f"{self._checkpoint}: of another training (other runs, settings or number of "
                "processes); remove it to begin anew"
            )
        self._network.load_state_dict(state["network"])
        vars(self._progress).update(state["progress"])
        progress = self._progress
        if progress.stage < len(self._plan.stages):
            logger.info(
                "%s: training goes on after %d steps", self._plan.name, len(progress.losses)
            )
        # Between two stages the next one's optimizer has not begun.
        return state["optimizer"] if progress.epoch or progress.step else None


def _parts(batch: Batch, number: int) -> list[Batch]:
    """A batch in at most `number` parts of about the same size."""
    count = len(batch.runs)
    edges = [round(i * count / min(number, count)) for i in range(min(number, count) + 1)]
    return [
        Batch(batch.windows[low:high], batch.runs[low:high], batch.starts[low:high])
        for low, high in pairwise(edges)
    ]
