"""Callbacks: what runs beside the training step, and what it may know of the run.

    class Tell(Callback):
        def on_save(self, run: RunState) -> None:
            print("saved at step", run.step)

    pretrain(config, callbacks=[Tell()])

The log, checkpoints, inspection of the network, online evaluation, trackers and the report are callbacks, too. After
each step come `on_step`, then `on_save` if a checkpoint is due, then `on_epoch` at the end of an epoch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import optim

from barlowtwins.config import PretrainConfig
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.runs.run_folder import RunFolder
from barlowtwins.train.plan import Plan
from barlowtwins.train.recipes import Settings

__all__ = ["Callback", "Clock", "RunState"]


class Callback:
    """Hooks of a run; override those you need.

    They are called in the order of the list, after the built-in ones, and only on the process that writes (rank 0). An
    exception ends the run. A callback must leave the network, its modes and the random state as they were.
    """

    def on_start(self, run: RunState, /) -> None:
        """Training is about to begin or to resume at `run.start`."""

    def on_step(self, run: RunState, /) -> None:
        """One step is done. On a GPU, reading a tensor here makes every step wait for the device."""

    def on_log(self, run: RunState, record: dict[str, Any], /) -> None:
        """A record was logged: `step`, `epoch` and what was measured; see `RunState.log`."""

    def on_save(self, run: RunState, /) -> None:
        """A checkpoint was due, and is saved."""

    def on_epoch(self, run: RunState, /) -> None:
        """The run is at the end of an epoch, or at step 0. Its time does not count for the rate.

        A process that resumes there calls this again: `run.measured` says what an earlier one has logged.
        """

    def on_end(self, run: RunState, /) -> None:
        """The last step of this process is done, and the weights are written."""

    def close(self) -> None:
        """The process is done with the run, well or not: release what is open."""


@dataclass
class RunState:
    """What callbacks know of a run. Read it, and `log` to it."""

    config: PretrainConfig
    settings: Settings
    plan: Plan
    folder: RunFolder
    model: BarlowTwins
    optimizer: optim.Optimizer
    start: int = 0
    """The step at which this process began."""
    step: int = 0
    """Optimizer steps done."""
    unreadable: set[int] = field(default_factory=set)
    """Indices of images that could not be read so far, on all processes."""
    stopping: bool = False
    """A signal ends the run after this step."""
    stop_requested: Callable[[], bool] = lambda: False
    """Whether a signal has come; long work in a callback asks it now and then, and gives up."""
    callbacks: Sequence[Callback] = ()
    latest: dict[str, Any] = field(default_factory=dict)
    """The newest logged value of each name, also by earlier processes."""
    clock: Clock = field(default_factory=lambda: Clock())
    _steps: dict[str, int] = field(default_factory=dict)

    @property
    def last(self) -> int:
        """The step after which this process ends: that of the plan, or `max_steps`."""
        most = self.config.max_steps
        return self.plan.steps if most is None else min(self.plan.steps, most)

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self.step // self.plan.steps_per_epoch

    @property
    def at_epoch_end(self) -> bool:
        """True at step 0, too."""
        return self.step % self.plan.steps_per_epoch == 0

    @property
    def log_due(self) -> bool:
        """Whether the loss of this step is logged."""
        return self.step % self.config.log_every == 0 or self.at_epoch_end

    @property
    def save_due(self) -> bool:
        """Whether this step ends with a checkpoint."""
        return self.step % (self.config.checkpoint_every or self.plan.steps_per_epoch) == 0 or self.step == self.last

    @property
    def loss(self) -> float | None:
        """The loss of the last step, without regularizers; reading it waits for the device."""
        if self.step > self.start and self.model.terms is not None:
            return self.model.terms.loss.item()
        return self.latest.get("loss")

    def measured(self, name: str) -> int:
        """The step of the newest record with `name`; -1 if there is none."""
        return self._steps.get(name, -1)

    def log(self, record: dict[str, Any]) -> None:
        """Add `step` and `epoch` to a record, unless it has them, and give it to every callback."""
        record = {"step": self.step, "epoch": self.epoch, **record}
        self._remember(record)
        for callback in self.callbacks:
            callback.on_log(self, record)

    def begin(self) -> None:
        """Drop the records that an earlier process logged after `start`, recall the others, and call `on_start`."""
        for record in self.folder.rewind_log(self.start):
            self._remember(record)
        for callback in self.callbacks:
            callback.on_start(self)

    def close(self) -> None:
        """Close every callback, also if one of them fails."""
        with contextlib.ExitStack() as stack:
            for callback in reversed(self.callbacks):
                stack.callback(callback.close)

    def _remember(self, record: dict[str, Any]) -> None:
        self.latest.update(record)
        self._steps.update(dict.fromkeys(record, record["step"]))


class Clock:
    """Images per second over this process's own steps; saving and evaluating do not count."""

    def __init__(self) -> None:
        self.images, self.seconds, self._mark = 0, 0.0, time.perf_counter()

    def count(self, images: int) -> None:
        """A step with so many images is done."""
        now = time.perf_counter()
        self.images, self.seconds, self._mark = self.images + images, self.seconds + now - self._mark, now

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside does not count."""
        try:
            yield
        finally:
            self._mark = time.perf_counter()

    @property
    def rate(self) -> float | None:
        """Images per second (each gives two views); None before the first step."""
        return self.images / self.seconds if self.seconds > 0 else None
