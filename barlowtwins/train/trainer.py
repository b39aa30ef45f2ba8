"""The training step, the only one of the package, and the loop around it.

    two views -> one loss -> gradients, judged -> one update

Pretraining, the estimate of `--dry-run` and the benchmarks call `Trainer.train_step`, so they train the same network in
the same memory layout and precision. What else a run does (log, checkpoints, evaluation) are callbacks of the loop.
"""

# N images in the global batch, n = N / W on this process, C channels, S side in pixels, D projector width, W processes

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn, optim

from barlowtwins.core.device import autocast, memory_layout
from barlowtwins.core.distributed import World
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.optim import build_optimizer, learning_rate_factor
from barlowtwins.runs.guards import FiniteGuard, require_readable
from barlowtwins.runs.loop import Stopping
from barlowtwins.train.callbacks import RunState
from barlowtwins.train.microbatch import micro_batched_backward
from barlowtwins.train.mixup import draw_mix, mixed_loss
from barlowtwins.train.recipes import Settings
from barlowtwins.views.twins import TwinBatch

__all__ = ["StepSettings", "Trainer", "prepare"]


@dataclass(frozen=True)
class StepSettings:
    """The numbers that a step depends on."""

    steps: int
    """Of the whole run; the learning rate falls to its end."""
    warmup_steps: int = 0
    precision: str = "fp32"
    """fp32 or bf16, of the network; the loss is fp32 always."""
    micro: int | None = None
    """Images of a micro-batch on each process; None: the batch in one piece."""
    mixup: float = 0.0
    """Weight of the mix-up regularizer."""
    seed: int = 0
    """Of the mix."""
    max_unreadable: float = math.inf
    """Images that may be unreadable."""


def prepare(model: BarlowTwins, settings: Settings, world: World) -> optim.Optimizer:
    """Move the network to its device, ready to train, and return its optimizer."""
    model.to(world.device).to(memory_format=memory_layout(world.device)).train()
    scale = settings.batch_size / 256  # learning rates are given for 256 images
    return build_optimizer(
        settings.optimizer,
        model,
        lr=settings.lr * scale,
        lr_bias=settings.lr_bias * scale,
        weight_decay=settings.weight_decay,
    )


class Trainer:
    """Trains one network.

    Args:
        model, optimizer: see `prepare`; as new, or as a checkpoint left them.
        how: the numbers of a step.
        world: the processes that share each batch.
        guard: judges each step; by default one that writes no report.
        step: optimizer steps done before.
        unreadable: indices of images that could not be read before.
    """

    def __init__(
        self,
        model: BarlowTwins,
        optimizer: optim.Optimizer,
        how: StepSettings,
        world: World,
        *,
        guard: FiniteGuard | None = None,
        step: int = 0,
        unreadable: Collection[int] = (),
    ) -> None:
        self.model, self.optimizer, self.how, self.world = model, optimizer, how, world
        self.network: nn.Module = world.share(model)
        self.guard = guard or FiniteGuard(model, world)
        self.layout = memory_layout(world.device)
        self.step, self.unreadable = step, set(unreadable)

    def train_step(self, batch: TwinBatch) -> Tensor:
        """Take one step.

        Args:
            batch: two views of this process's images, (n, C, S, S) each, on any device.

        Returns:
            The scalar loss of the global batch.

        Raises:
            TrainingError: a loss or gradient that is not finite, or too many unreadable images.
        """
        self.unreadable = require_readable(batch, self.unreadable, self.how.max_unreadable, self.world)
        factor = learning_rate_factor(self.step, steps=self.how.steps, warmup_steps=self.how.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        loss = self._backward(batch.y1, batch.y2)
        self.guard.check(loss, batch.rows)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss

    def _backward(self, y1: Tensor, y2: Tensor) -> Tensor:
        """The loss, with its gradient in every parameter's `.grad`."""
        if self.how.micro is not None:
            loss = micro_batched_backward(self.model, y1, y2, self.how.micro, embed=self._embed)
            self.world.average_gradients(self.model)
            return loss
        with autocast(self.world.device, self.how.precision):
            y1, y2 = self._to_device(y1), self._to_device(y2)
            if self.how.mixup:
                mix = draw_mix(self.how.seed, self.step, len(y1))
                loss = mixed_loss(self.model, y1, y2, mix, weight=self.how.mixup)
            else:
                loss = self.network(y1, y2)
        loss.backward()
        return loss

    def _embed(self, y: Tensor) -> Tensor:
        with autocast(self.world.device, self.how.precision):
            return self.model.embed(self._to_device(y))

    def _to_device(self, y: Tensor) -> Tensor:
        return y.to(self.world.device, non_blocking=True, memory_format=self.layout)

    def train(self, batches: Iterable[TwinBatch], run: RunState, stop: Stopping) -> None:
        """Train on all batches; callbacks hear of every step, epoch and save.

        Args:
            batches: from this step to the last one of the run.
            run: what callbacks know; those of `run.callbacks` are called.
            stop: the agreement of all processes to stop.

        Raises:
            TrainingError: see `train_step`.
            StoppedEarly: a signal asked to stop; a checkpoint is saved.
        """
        run.stop_requested = lambda: stop.requested
        self._after_step(run, stop)
        for batch in batches:
            self.train_step(batch)
            run.step, run.unreadable = self.step, self.unreadable
            run.clock.count(run.settings.batch_size)
            if run.log_due or run.save_due:  # a step that leaves a trace is judged first
                self.guard.settle()
            for callback in run.callbacks:
                callback.on_step(run)
            if run.save_due:
                self._save(run)
            self._after_step(run, stop)

    def _after_step(self, run: RunState, stop: Stopping) -> None:
        """Between two steps: evaluate at the end of an epoch, and stop if any process was asked to."""
        if run.at_epoch_end:
            with run.clock.pause():
                for callback in run.callbacks:
                    callback.on_epoch(run)
        if stop.agreed() and run.step < run.last:
            run.stopping = True
            self._save(run)
            raise stop.after(run.step, run.plan.steps)

    def _save(self, run: RunState) -> None:
        self.guard.settle()
        with run.clock.pause():
            for callback in run.callbacks:
                callback.on_save(run)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, by the names of a checkpoint's fields."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "unreadable": tuple(sorted(self.unreadable)),
        }
