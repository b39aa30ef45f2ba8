"""What a run will take, before it begins: memory by parts, and time from ten steps on random input and a real batch.

    time   = steps x max(network and loss, reading / workers)
    memory = parameters + gradients + optimizer + activations + input

On a CPU the activations are the bytes that autograd keeps for the backward pass; on a GPU they are what the allocator
held at its peak beyond the rest. Looks, kNN and checkpoints are not in the time. Where a whole batch would take a CPU's
memory or minutes, a part of it is measured, and activations and time are taken in proportion.
"""

# n images of this process's part of a batch, C channels, S side in pixels

from __future__ import annotations

import copy
import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from barlowtwins.core.device import device_name
from barlowtwins.core.distributed import World
from barlowtwins.core.printing import data_size, plural
from barlowtwins.data.batches import Reader
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.train.recipes import Settings
from barlowtwins.train.setup import Setup
from barlowtwins.train.trainer import StepSettings, Trainer, prepare
from barlowtwins.views.twins import Rows, TwinBatch

__all__ = ["Estimate", "Memory", "estimate", "estimate_run", "saved_bytes"]

STEPS, WARM_UP = 10, 2  # timed steps, and those before them that are not
SECONDS = 60.0  # after which fewer steps have to do
FEW = 4  # images of the very first step
READ = 64  # images of a batch that are read to see how long that takes


@dataclass(frozen=True)
class Memory:
    """Bytes on each process at the peak of a step."""

    parameters: int
    """Weights and batch norm's statistics."""
    gradients: int
    optimizer: int
    """What the optimizer keeps of each parameter."""
    activations: int
    """What the backward pass needs of a step, the loss included; temporary buffers on a CPU are not."""
    input: int
    """Two views of this process's part of a batch."""

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations + self.input


@dataclass(frozen=True)
class Estimate:
    """What one process of a run takes, from a few steps on this machine."""

    device: str
    memory: Memory
    images: int
    """n of a batch on this process, each with two views."""
    timed_images: int
    """Of those in the timed steps; the rest is in proportion."""
    timed_steps: int
    step_seconds: float
    """Network, loss and update, the median of the timed steps."""
    read_seconds: float | None
    """To read and distort a batch in one process; None if no image could be read."""
    workers: int
    steps: int
    """Of the run."""

    @property
    def seconds(self) -> float:
        """Of the run: readers work while the network does; without workers they take turns."""
        read = self.read_seconds or 0.0
        step = self.step_seconds + read if self.workers == 0 else max(self.step_seconds, read / self.workers)
        return self.steps * step

    def to_dict(self) -> dict[str, object]:
        memory = {**vars(self.memory), "total": self.memory.total}
        return {**vars(self), "memory": memory, "seconds": self.seconds}

    def summary(self) -> str:
        m = self.memory
        names = ("parameters", "gradients", "optimizer", "activations", "input")
        parts = ", ".join(f"{name} {data_size(getattr(m, name))}" for name in names)
        timed = f"median of {self.timed_steps}"
        timed += f" with {self.timed_images} of {self.images} images" if self.timed_images < self.images else ""
        read = f", reading a batch {self.read_seconds:.3g} s" if self.read_seconds is not None else ""
        readers = f" over {plural(self.workers, 'worker')}" if read and self.workers > 1 else ""
        return (
            f"memory about {data_size(m.total)} on {self.device} ({parts})\n"
            f"time about {_clock(self.seconds)} for {plural(self.steps, 'step')} ({self.step_seconds:.3g} s a step, "
            f"{timed}{read}{readers})"
        )


def estimate_run(setup: Setup, model: BarlowTwins) -> Estimate:
    """What a run takes on this process; see `estimate`."""
    return estimate(
        model,
        setup.settings,
        setup.step,
        device=setup.world.device,
        workers=setup.executor.workers(setup.workers),
        processes=setup.world.size,
        reader=setup.executor,
        images=len(setup.source),
    )


def estimate(
    model: BarlowTwins,
    settings: Settings,
    how: StepSettings,
    *,
    device: torch.device,
    workers: int = 0,
    processes: int = 1,
    reader: Reader[Rows, TwinBatch] | None = None,
    images: int = 0,
) -> Estimate:
    """Take some training steps with a copy of the network on random input, and read a part of a batch.

    Args:
        model: stays as it is.
        settings, how: of the run and of its steps.
        device: where the network runs.
        workers: processes that will read.
        processes: that share a batch; gradients are not averaged here, so that traffic is not in the time.
        reader: makes real batches; None: reading is not timed.
        images: that the reader has.

    Raises:
        RuntimeError, MemoryError: out of memory, which is an answer, too.
    """
    n = settings.batch_size // processes
    network, world = copy.deepcopy(model), World(0, 1, device)
    still = dataclasses.replace(settings, lr=1e-9, lr_bias=1e-9, weight_decay=0.0)  # steps are taken, but lead nowhere
    optimizer = prepare(network, still, world)
    trainer = Trainer(network, optimizer, how, world)
    held = _bytes(network.state_dict().values())
    gradients = _bytes(p for p in network.parameters() if p.requires_grad)
    generator = torch.Generator().manual_seed(0)
    shape = (settings.channels, settings.image_size, settings.image_size)

    def batch(count: int) -> TwinBatch:
        y1, y2 = torch.randn(2, count, *shape, generator=generator).to(device)  # (n, C, S, S) each
        return TwinBatch(Rows(0, 0, tuple(range(count))), y1, y2, {}, False)

    whole = device.type == "cuda" or processes > 1
    m = n if whole else _affordable(lambda: trainer.train_step(batch(min(FEW, n))), network, n)
    one = batch(m)
    activations = _activations(lambda: trainer.train_step(one), network, gradients, device)
    seconds = _time_steps(trainer, one, alone=processes == 1)
    kept = _bytes(value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value))
    if how.micro is None:
        activations = activations * n // m  # of micro-batches, only one is held
    memory = Memory(held, gradients, kept, activations, _bytes([one.y1, one.y2]) * n // m)
    read = None if reader is None or images == 0 else _time_reading(reader, n, images)
    median = statistics.median(seconds) * n / m
    return Estimate(device_name(device), memory, n, m, len(seconds), median, read, workers, how.steps)


def _time_steps(trainer: Trainer, batch: TwinBatch, *, alone: bool) -> list[float]:
    """Seconds of each timed step; several processes must take equally many."""
    seconds: list[float] = []
    device, begun = trainer.world.device, time.perf_counter()
    for turn in range(WARM_UP + STEPS):
        _synchronize(device)
        start = time.perf_counter()
        trainer.train_step(batch)
        _synchronize(device)
        if turn >= WARM_UP:
            seconds.append(time.perf_counter() - start)
        if seconds and alone and time.perf_counter() - begun > SECONDS:
            break
    return seconds


def _affordable(few: Callable[[], object], network: nn.Module, n: int) -> int:
    """How many of a batch's n images a CPU can try ten steps with, by a step with `FEW` of them."""
    start = time.perf_counter()
    held = saved_bytes(few, ignore=network)
    seconds = time.perf_counter() - start
    most = min(_free_memory() / 2 / max(held, 1), SECONDS / (WARM_UP + STEPS) / seconds) * min(FEW, n)
    return n if n <= most else max(min(FEW, n), int(most))


def _free_memory() -> float:
    """Bytes that are free; a laptop's where the system does not say."""
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):  # Windows, macOS
        return 4e9


def saved_bytes(function: Callable[[], object], *, ignore: nn.Module | None = None) -> int:
    """Bytes that autograd keeps at most for backward passes inside `function`, each storage once.

    Args:
        function: runs forward passes, and perhaps the backward passes that let go of what was kept.
        ignore: a module whose parameters and buffers are kept anyway.
    """
    own = () if ignore is None else (*ignore.parameters(), *ignore.buffers())
    known = {t.untyped_storage().data_ptr() for t in own}
    alive: dict[int, list[int]] = {}  # storage -> [bytes, how many tensors of it are kept]
    now = most = 0

    def pack(x: Tensor) -> _Kept:
        nonlocal now, most
        key = x.untyped_storage().data_ptr()
        if key in known:
            return _Kept(x.detach(), lambda: None)
        entry = alive.setdefault(key, [x.untyped_storage().nbytes(), 0])
        now += entry[0] if entry[1] == 0 else 0
        entry[1] += 1
        most = max(most, now)

        def let_go() -> None:
            nonlocal now
            entry[1] -= 1
            if entry[1] == 0:
                now -= entry[0]
                alive.pop(key, None)

        return _Kept(x.detach(), let_go)  # detached: an output that held its own graph would never be let go

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        function()
    return most


class _Kept:
    """A tensor that autograd keeps; says so when it no longer does."""

    def __init__(self, tensor: Tensor, let_go: Callable[[], None]) -> None:
        self.tensor, self._let_go = tensor, let_go

    def __del__(self) -> None:
        self._let_go()


def _activations(step: Callable[[], object], network: nn.Module, gradients: int, device: torch.device) -> int:
    """Bytes beyond parameters, gradients, optimizer and input that a step needs at its peak."""
    if device.type != "cuda":
        return saved_bytes(step, ignore=network)
    step()  # so that the optimizer's state is there, and the libraries' workspaces
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return max(0, torch.cuda.max_memory_allocated(device) - before - gradients)


def _time_reading(reader: Reader[Rows, TwinBatch], n: int, images: int) -> float | None:
    """Seconds to read n images in this process, from some of them; the first ones, which open files, do not count."""
    some = min(n, images, READ)
    reader[Rows(0, 0, tuple(range(min(2, images))))]
    start = time.perf_counter()
    batch = reader[Rows(0, 0, tuple(range(some)))]
    if batch.y1.is_cuda:
        torch.cuda.synchronize(batch.y1.device)
    seconds = time.perf_counter() - start
    return None if batch.exhausted else seconds * n / some


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _bytes(tensors: object) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)  # type: ignore[attr-defined]


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.3g} s"
    if seconds < 5400:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h" if seconds < 2 * 86400 else f"{seconds / 86400:.3g} days"
