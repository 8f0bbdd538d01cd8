"""The one training loop."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from bids_fbn.errors import RunError
from bids_fbn.models.compute import Compute

__all__ = ["LossCurve", "Schedule", "train"]

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_MESSAGES = 15.0
# A curve of more points says no more, and would make the files that hold it long.
_CURVE_POINTS = 200


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Parameters
    ----------
    learning_rate : float
        Of Adam.
    epochs : int
    decay : float
        Factor on the learning rate every `decay_every` epochs.
    decay_every : int
        0 for never.
    """

    learning_rate: float
    epochs: int
    decay: float = 1.0
    decay_every: int = 0

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        steps = epoch // self.decay_every if self.decay_every else 0
        return self.learning_rate * self.decay**steps


@dataclass
class LossCurve:
    """Loss of every training step."""

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


def train(
    network: nn.Module,
    epoch_batches: Callable[[int], Iterable[Tensor]],
    steps_per_epoch: int,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    compute: Compute,
    checkpoint: Path | None = None,
    name: str = "model",
) -> LossCurve:
    """Train an autoencoder in place.

    Parameters
    ----------
    network : Module
        Batch → its reconstruction.
    epoch_batches : callable
        Epoch (from 0) → its batches, on the device. The same epoch must always give the same
        batches: that, and the checkpoint, make a run that was killed end like one that was not.
    steps_per_epoch : int
        For the messages on progress.
    loss_of : callable
        Reconstruction, batch → scalar loss.
    schedule : Schedule
    compute : Compute
    checkpoint : Path, optional
        Written after every epoch; if it exists training goes on from there.
    name : str
        For messages.

    Raises
    ------
    RunError
        If the loss is no longer finite.
    """
    fabric = compute.fabric()
    optimizer = torch.optim.Adam(network.parameters(), lr=schedule.learning_rate)
    module, optimizer = fabric.setup(network, optimizer)
    module.train()
    curve = LossCurve()
    first_epoch = _restore(checkpoint, network, optimizer, curve) if checkpoint else 0
    started = last_message = time.monotonic()
    total = steps_per_epoch * schedule.epochs
    done_before = steps_per_epoch * first_epoch
    for epoch in range(first_epoch, schedule.epochs):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(epoch)
        for batch in epoch_batches(epoch):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(module(batch), batch)
            fabric.backward(loss)
            optimizer.step()
            value = float(loss.detach())
            if not math.isfinite(value):
                raise RunError(
                    f"{name}: training diverged at step {len(curve.losses) + 1}, the loss is "
                    f"{value}; try --precision fp32, or check the run for extreme values"
                )
            curve.losses.append(value)
            now = time.monotonic()
            if now - last_message > _SECONDS_BETWEEN_MESSAGES:
                last_message = now
                done = len(curve.losses)
                left = (now - started) / (done - done_before) * (total - done)
                logger.info(
                    "%s: epoch %d of %d, step %d of %d, loss %.3f, about %.0f s left",
                    name,
                    epoch + 1,
                    schedule.epochs,
                    done,
                    total,
                    value,
                    left,
                )
        if checkpoint and epoch + 1 < schedule.epochs:
            _store(checkpoint, network, optimizer, curve, epoch + 1)
    logger.info(
        "%s: trained %d steps in %.0f s, loss %.3f",
        name,
        len(curve.losses) - done_before,
        time.monotonic() - started,
        curve.losses[-1] if curve.losses else math.nan,
    )
    network.eval()
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return curve


def _store(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, curve: LossCurve, epoch: int
) -> None:
    part = path.with_suffix(".part")
    torch.save(
        {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "losses": curve.losses,
            "epoch": epoch,
        },
        part,
    )
    os.replace(part, path)


def _restore(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, curve: LossCurve
) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    curve.losses.extend(state["losses"])
    logger.info("training goes on after epoch %d", state["epoch"])
    return int(state["epoch"])
