"""Supervised training of a classifier on a backbone, frozen or not: one loop for every protocol that has labels.

As in pretraining, everything random is a function of (seed, epoch, index) and the learning rate of the step, so a
stopped run goes on from its newest checkpoint as if nothing had happened: on a CPU to the bit.
"""

# N images in the global batch, n = N / W on this process, C channels, S side in pixels, K classes, W processes

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torchvision.models.resnet import ResNet

from barlowtwins.core.device import autocast
from barlowtwins.core.distributed import World
from barlowtwins.core.errors import ConfigError, DataError, StoppedEarly, TrainingError
from barlowtwins.core.progress import Progress, say
from barlowtwins.core.signals import StopSignals
from barlowtwins.data.batches import open_batches, ranges, read_ahead
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.embedding.embedder import Embedder
from barlowtwins.evaluate.crops import CropFlip, LabelledReader
from barlowtwins.evaluate.labelled import Labelled
from barlowtwins.evaluate.protocols import Protocol, learning_rate
from barlowtwins.metrics.scores import Scores, Tally
from barlowtwins.runs.checkpoint import Checkpoint, Saver, load_newest
from barlowtwins.runs.guards import require_readable
from barlowtwins.runs.run_folder import RunFolder
from barlowtwins.views.twins import plan_batches

__all__ = ["Trained", "score", "train_classifier"]

LOG_EVERY = 10  # steps


@dataclass(frozen=True)
class Trained:
    """What training came to."""

    epochs: int
    steps: int
    batch_size: int
    loss: float
    """Mean over the last epoch."""
    accuracy: float
    """Percent of the last epoch's crops that were classified right when they were met."""
    unreadable: int
    """Images that could not be read and were replaced."""


def train_classifier(
    network: ResNet,
    train: Labelled,
    protocol: Protocol,
    *,
    preprocessing: Preprocessing,
    world: World,
    seed: int = 0,
    workers: int = 0,
    precision: str = "fp32",
    max_bad: float = 0.01,
    folder: Path | None = None,
    save_every: float = 300.0,
) -> Trained:
    """Train `network.fc`, and the layers below it unless they are frozen, in place.

    Args:
        network: a backbone with a linear `fc` of K outputs.
        train: labelled images.
        protocol: the numbers.
        preprocessing: of the weights.
        world: the processes that share each batch.
        seed: of order and crops.
        workers: processes that read images.
        precision: "fp32" or "bf16".
        max_bad: fraction of the images that may be unreadable.
        folder: for checkpoints and metrics.jsonl; None keeps nothing.
        save_every: seconds between checkpoints.

    Raises:
        ConfigError: the batch does not fit the images or the processes.
        TrainingError: a loss that is not finite, or too many unreadable images.
        StoppedEarly: a signal asked to stop; a checkpoint is saved.
    """
    device, count = world.device, len(train.source)
    n = _batch_size(protocol, count, world.size)
    steps_per_epoch = count // n
    protocol = protocol.for_data(steps_per_epoch)
    steps = protocol.epochs * steps_per_epoch

    # The network and its optimiser, new or as the newest checkpoint left them.
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    network.to(device).to(memory_format=layout)
    network.train(not protocol.frozen).requires_grad_(not protocol.frozen)
    network.fc.requires_grad_(True)
    optimizer = _optimizer(network, protocol, scale=n / 256)
    step, unreadable, epoch = 0, set[int](), _Epoch()
    checkpoint = load_newest(folder) if folder else None
    if checkpoint is not None:
        network.load_state_dict({**network.state_dict(), **checkpoint.model})  # a frozen backbone is not in it
        optimizer.load_state_dict(checkpoint.optimizer)
        step, unreadable = checkpoint.step, set(checkpoint.unreadable)
        epoch = _Epoch(**checkpoint.data["epoch"])
    shared = world.share(network)

    run = RunFolder(folder) if folder and world.writes else None
    saver = Saver(run.path, start=step) if run else None
    saved_at = time.monotonic()
    if run:
        run.rewind_log(step)

    def save(*, last_chance: bool) -> None:
        nonlocal saved_at
        if saver:
            state = network.state_dict()
            trained = {key: state[key] for key in state if key.startswith("fc.") or not protocol.frozen}
            facts = {"epoch": vars(epoch)}
            bad = tuple(sorted(unreadable))
            saver.save(
                Checkpoint(step, trained, optimizer.state_dict(), protocol.to_dict(), facts, world.size, bad),
                last_chance=last_chance,
            )
            saved_at = time.monotonic()

    order = plan_batches(count, n, seed=seed, start=step, stop=steps, rank=world.rank, world_size=world.size)
    reader = LabelledReader(train, CropFlip(preprocessing, scale=protocol.crop_scale, seed=seed))
    stop = StopSignals()
    with (
        _readers_may_be_stopped_too(stop),
        stop if folder else contextlib.nullcontext(),  # with nothing to save, signals do what they always do
        read_ahead(reader, order, workers=workers, pin_memory=device.type == "cuda") as batches,
        Progress(steps * n, desc="train", initial=step * n, enabled=world.writes) as bar,
    ):
        for batch in batches:
            unreadable = require_readable(batch, unreadable, max_bad * count, world)
            factor = learning_rate(protocol, step, steps_per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor

            images = batch.images.to(device, non_blocking=True, memory_format=layout)
            labels = batch.labels.to(device, non_blocking=True)
            with autocast(device, precision):
                logits = shared(images).float()  # (n, K)
            loss = nn.functional.cross_entropy(logits, labels)
            loss.backward()

            right = (logits.argmax(1) == labels).sum()
            here = torch.stack([loss.detach() * len(labels), right, right.new_tensor(stop.requested)]).cpu()
            total_loss, total_right, stopping = world.sum(here).tolist()
            if not _finite(total_loss, network):
                raise TrainingError(
                    f"the loss or its gradient is not finite at step {step}; try a lower --lr-backbone or --lr-head"
                )
            optimizer.step()
            optimizer.zero_grad()
            epoch = (epoch if step % steps_per_epoch else _Epoch()).after(n, total_loss, total_right)
            step += 1

            bar.update(n, loss=epoch.mean_loss, accuracy=epoch.accuracy)
            if run and (step % LOG_EVERY == 0 or step % steps_per_epoch == 0):
                _log(run, step, steps_per_epoch, epoch, optimizer, len(unreadable))
            if stopping or step == steps or time.monotonic() - saved_at > save_every:
                save(last_chance=bool(stopping) or step == steps)
            if stopping and step < steps:
                raise StoppedEarly(
                    f"stopped by {stop.name or 'another process'} after step {step} of {steps}, saved in {folder}; "
                    "the same command goes on from there"
                )
    return Trained(protocol.epochs, steps, n, epoch.mean_loss, epoch.accuracy, len(unreadable))


def score(
    network: ResNet,
    val: Labelled,
    *,
    preprocessing: Preprocessing,
    world: World,
    batch_size: int = 64,
    workers: int = 0,
    precision: str = "fp32",
) -> Scores:
    """Classify held-out images, the processes sharing them; all get the same scores.

    Args:
        network: (n, C, S, S) -> (n, K) logits.
        val: images with labels within the network's K classes.
        preprocessing: of the weights.
        world: the processes.
        batch_size: images a forward pass.
        workers: processes that read images.
        precision: "fp32" or "bf16".
    """
    embedder = Embedder(network, preprocessing, device=world.device, precision=precision)
    labels = torch.from_numpy(val.labels)
    tally = Tally(len(val.classes))
    plan = ranges(0, len(val.source), batch_size)[world.rank :: world.size]
    pin = world.device.type == "cuda"
    with (
        open_batches(val.source, preprocessing, plan, workers=workers, pin_memory=pin) as batches,
        Progress(sum(map(len, plan)), desc="judge", enabled=world.writes) as bar,
    ):
        for batch in batches:
            logits, _ = embedder.embed(batch)
            tally.add(torch.from_numpy(logits), labels[batch.start : batch.start + len(logits)])
            bar.update(len(logits))
    tally.confusion, tally.others = world.sum(tally.confusion), world.sum(tally.others)
    return tally.scores(val.classes)


@contextlib.contextmanager
def _readers_may_be_stopped_too(stop: StopSignals) -> Iterator[None]:
    """A scheduler signals the reading processes as well; they die of it, at any point of a step: nothing is saved."""
    try:
        yield
    except DataError:
        if not stop.requested:
            raise
        raise StoppedEarly(f"stopped by {stop.name}; the same command goes on from the last checkpoint") from None


@dataclass(frozen=True)
class _Epoch:
    """Sums over the part of an epoch that is done."""

    images: int = 0
    loss: float = 0.0
    right: float = 0.0

    def after(self, images: int, loss: float, right: float) -> _Epoch:
        return _Epoch(self.images + images, self.loss + loss, self.right + right)

    @property
    def mean_loss(self) -> float:
        return self.loss / max(1, self.images)

    @property
    def accuracy(self) -> float:
        return 100 * self.right / max(1, self.images)


def _batch_size(protocol: Protocol, images: int, processes: int) -> int:
    """The protocol's, or all images where there are fewer, as far as it divides among the processes."""
    if protocol.batch_size % processes:
        fitting = max(processes, protocol.batch_size // processes * processes)
        raise ConfigError(f"batch size {protocol.batch_size} is not divisible by {processes} processes; try {fitting}")
    n = min(protocol.batch_size, images // processes * processes)
    least = 1 if protocol.frozen else 2  # batch norm needs two
    if n < least * processes:
        raise ConfigError(
            f"{images} images in batches of {n} are too few to train on with {processes} process(es); give "
            f"more, or a smaller batch"
        )
    return n


def _optimizer(network: ResNet, protocol: Protocol, *, scale: float) -> torch.optim.SGD:
    head = list(network.fc.parameters())
    groups = [{"params": head, "peak_lr": protocol.lr_head * scale}]
    if not protocol.frozen:
        below = [p for name, p in network.named_parameters() if not name.startswith("fc.")]
        groups.append({"params": below, "peak_lr": protocol.lr_backbone * scale})
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9, weight_decay=protocol.weight_decay)


def _finite(loss: float, network: nn.Module) -> bool:
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))  # (number of parameters,)
    return bool(torch.isfinite(norms.sum() + loss))


def _log(
    run: RunFolder, step: int, steps_per_epoch: int, epoch: _Epoch, optimizer: torch.optim.Optimizer, unreadable: int
) -> None:
    rates = dict(zip(("lr_head", "lr_backbone"), (group["lr"] for group in optimizer.param_groups), strict=False))
    record = {
        "step": step,
        "epoch": round(step / steps_per_epoch, 4),
        "loss": epoch.mean_loss,
        "accuracy": epoch.accuracy,
        **rates,
        "unreadable": unreadable,
    }
    try:
        run.log([record])
    except OSError as error:
        say(f"warning: cannot write {run.metrics} ({error.strerror}); training goes on")
