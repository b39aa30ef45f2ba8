"""Supervised training of a classifier on a backbone, frozen or not: one loop for every protocol that has labels.

As in pretraining, everything random is a function of (seed, epoch, index) and the learning rate of the step, so a
stopped run resumes from its newest checkpoint as if it had not been stopped: bit-exact on a CPU.
"""

# N images in the global batch, n = N / W on this process, C channels, S side in pixels, K classes, W processes

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torchvision.models.resnet import ResNet

from barlowtwins.core.device import autocast, memory_layout
from barlowtwins.core.distributed import World
from barlowtwins.core.errors import CheckpointError, ConfigError
from barlowtwins.core.progress import Progress, say
from barlowtwins.data.batches import open_batches, ranges, read_ahead
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.embedding.embedder import Embedder
from barlowtwins.evaluate.crops import CropFlip, LabeledBatch, LabeledReader
from barlowtwins.evaluate.labeled import LabeledImages
from barlowtwins.evaluate.protocols import Protocol, learning_rate
from barlowtwins.metrics.scores import Scores, Tally
from barlowtwins.runs.checkpoint import Checkpoint, Saver, load_newest
from barlowtwins.runs.guards import Evidence, FiniteGuard, require_readable
from barlowtwins.runs.loop import Stopping, checkpoint_for_all
from barlowtwins.runs.run_folder import RunFolder
from barlowtwins.views.twins import plan_batches

__all__ = ["LoopOptions", "Trained", "score", "train_classifier"]

LOG_EVERY = 10  # steps
REPORT = "nonfinite.json"  # in the folder: the step and images of a loss or gradient that is not finite


@dataclass(frozen=True)
class LoopOptions:
    """How a protocol runs here."""

    preprocessing: Preprocessing
    """Of the weights."""
    world: World
    """The processes that share each batch."""
    seed: int = 0
    """Of order and crops."""
    workers: int = 0
    """Processes that read images."""
    precision: str = "fp32"
    """"fp32" or "bf16"."""
    max_bad: float = 0.01
    """Fraction of the images that may be unreadable."""
    folder: Path | None = None
    """For checkpoints and metrics.jsonl; None keeps nothing."""
    save_every: float = 300.0
    """Seconds between checkpoints."""


@dataclass(frozen=True)
class Trained:
    """The result of training."""

    epochs: int
    steps: int
    batch_size: int
    loss: float
    """Mean over the last epoch."""
    accuracy: float
    """Percent of the last epoch's crops that were classified right during training."""
    unreadable: int
    """Images that could not be read and were substituted."""


def train_classifier(network: ResNet, train: LabeledImages, protocol: Protocol, options: LoopOptions) -> Trained:
    """Train `network.fc`, and the layers below it unless they are frozen, in place.

    Args:
        network: a backbone with a linear `fc` of K outputs.
        train: labeled images.
        protocol: the numbers.
        options: how it runs here.

    Raises:
        ConfigError: the batch does not fit the images or the processes.
        CheckpointError: the checkpoints of the folder cannot be read, or are not of this network.
        TrainingError: a loss or gradient that is not finite, or too many unreadable images.
        StoppedEarly: a signal asked to stop; a checkpoint is saved.
    """
    return _Training(network, train, protocol, options).run()


def score(network: ResNet, val: LabeledImages, options: LoopOptions, *, batch_size: int = 64) -> Scores:
    """Classify held-out images, the processes sharing them; all get the same scores.

    Args:
        network: (n, C, S, S) -> (n, K) logits.
        val: images with labels within the network's K classes.
        options: preprocessing, processes, workers and precision.
        batch_size: images per forward pass.
    """
    world, preprocessing = options.world, options.preprocessing
    embedder = Embedder(network, preprocessing, device=world.device, precision=options.precision)
    labels = torch.from_numpy(val.labels)
    tally = Tally(len(val.classes))
    plan = ranges(0, len(val.source), batch_size)[world.rank :: world.size]
    pin = world.device.type == "cuda"
    with (
        open_batches(val.source, preprocessing, plan, workers=options.workers, pin_memory=pin) as batches,
        Progress(sum(map(len, plan)), desc="judge", enabled=world.writes) as bar,
    ):
        for batch in batches:
            logits, _ = embedder.embed(batch)
            tally.add(torch.from_numpy(logits), labels[batch.start : batch.start + len(logits)])
            bar.update(len(logits))
    counted = world.union({(world.rank, cell, count) for cell, count in tally.cells.items()})
    tally.cells = Counter()
    for _, cell, count in counted:
        tally.cells[cell] += count
    tally.others = world.sum(tally.others)
    return tally.scores(val.classes)


class _Training:
    """The network, its optimizer and where they are in the protocol: what a checkpoint holds, and the loop over it."""

    def __init__(self, network: ResNet, train: LabeledImages, protocol: Protocol, options: LoopOptions) -> None:
        self.network, self.train, self.options = network, train, options
        world, folder, images = options.world, options.folder, len(train.source)
        self.batch_size = _batch_size(protocol, images, world.size)
        self.steps_per_epoch = images // self.batch_size
        self.protocol = protocol.for_data(self.steps_per_epoch)
        self.steps = self.protocol.epochs * self.steps_per_epoch

        self.layout = memory_layout(world.device)
        network.to(world.device).to(memory_format=self.layout)
        network.train(not protocol.frozen).requires_grad_(not protocol.frozen)
        network.fc.requires_grad_(True)
        self.optimizer = _optimizer(network, protocol, scale=self.batch_size / 256)
        self.step, self.unreadable, self.epoch = 0, set[int](), _Epoch()
        self._resume()
        self.shared = world.share(network)

        self.files = RunFolder(folder) if folder and world.writes else None
        if self.files:
            self.files.rewind_log(self.step)
        self.saver = Saver(self.files.path, start=self.step) if self.files else None
        self.saved_at = time.monotonic()
        rates = "--lr-head" if protocol.frozen else "--lr-backbone or --lr-head"
        self.guard = FiniteGuard(
            network,
            world,
            Evidence(train.source, folder / REPORT) if folder else None,
            way_out=f"Try a lower {rates}, or look at the images",
            late=False,  # the loss goes to the host at every step
        )

    def run(self) -> Trained:
        """Train to the last step, or to a stop signal."""
        options, world = self.options, self.options.world
        remaining = plan_batches(
            len(self.train.source),
            self.batch_size,
            seed=options.seed,
            start=self.step,
            stop=self.steps,
            rank=world.rank,
            world_size=world.size,
        )
        crops = CropFlip(options.preprocessing, scale=self.protocol.crop_scale, seed=options.seed)
        reader, pin = LabeledReader(self.train, crops), world.device.type == "cuda"
        n, total = self.batch_size, self.steps * self.batch_size
        with (
            Stopping(world, options.folder) as stop,
            read_ahead(reader, remaining, workers=options.workers, pin_memory=pin) as batches,
            Progress(total, desc="train", initial=self.step * n, enabled=world.writes) as bar,
        ):
            for batch in batches:
                self.train_step(batch)
                bar.update(n, loss=self.epoch.mean_loss, accuracy=self.epoch.accuracy)
                self.log()
                stopping, last = stop.agreed(), self.step == self.steps
                if stopping or last or time.monotonic() - self.saved_at > options.save_every:
                    self.save(last_chance=stopping or last)
                if stopping and not last:
                    raise stop.after(self.step, self.steps)
        return Trained(
            self.protocol.epochs,
            self.steps,
            n,
            self.epoch.mean_loss,
            self.epoch.accuracy,
            len(self.unreadable),
        )

    def train_step(self, batch: LabeledBatch) -> None:
        """One batch, one update.

        Raises:
            TrainingError: a loss or gradient that is not finite (before the update), or too many unreadable images.
        """
        world, device = self.options.world, self.options.world.device
        allowed = self.options.max_bad * len(self.train.source)
        self.unreadable = require_readable(batch, self.unreadable, allowed, world)
        factor = learning_rate(self.protocol, self.step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor

        images = batch.images.to(device, non_blocking=True, memory_format=self.layout)
        labels = batch.labels.to(device, non_blocking=True)
        with autocast(device, self.options.precision):
            logits = self.shared(images).float()  # (n, K)
        loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()

        right = (logits.argmax(1) == labels).sum()
        total_loss, total_right = world.sum(torch.stack([loss.detach() * len(labels), right]))  # of N images
        self.guard.check(total_loss / self.batch_size, batch.rows)
        self.optimizer.step()
        self.optimizer.zero_grad()
        so_far = self.epoch if self.step % self.steps_per_epoch else _Epoch()
        self.epoch = so_far.after(self.batch_size, total_loss.item(), total_right.item())
        self.step += 1

    def save(self, *, last_chance: bool) -> None:
        """Save what the rest of the training depends on: all but a frozen backbone."""
        if self.saver is None:
            return
        state = self.network.state_dict()
        trained = {key: state[key] for key in state if key.startswith("fc.") or not self.protocol.frozen}
        checkpoint = Checkpoint(
            self.step,
            trained,
            self.optimizer.state_dict(),
            self.protocol.to_dict(),
            {"epoch": vars(self.epoch)},
            self.options.world.size,
            tuple(sorted(self.unreadable)),
        )
        self.saver.save(checkpoint, last_chance=last_chance)
        self.saved_at = time.monotonic()

    def log(self) -> None:
        """Write a line of metrics.jsonl every few steps, and at the end of an epoch."""
        if self.files is None or (self.step % LOG_EVERY and self.step % self.steps_per_epoch):
            return
        rates = (group["lr"] for group in self.optimizer.param_groups)
        record = {
            "step": self.step,
            "epoch": round(self.step / self.steps_per_epoch, 4),
            "loss": self.epoch.mean_loss,
            "accuracy": self.epoch.accuracy,
            **dict(zip(("lr_head", "lr_backbone"), rates, strict=False)),
            "unreadable": len(self.unreadable),
        }
        try:
            self.files.log([record])
        except OSError as error:
            say(f"warning: cannot write {self.files.metrics} ({error.strerror}); training continues")

    def _resume(self) -> None:
        """Put everything where the newest checkpoint of the folder left it, if there is one."""
        folder = self.options.folder
        if folder is None:
            return
        checkpoint = checkpoint_for_all(self.options.world, lambda: load_newest(folder), folder)
        if checkpoint is None:
            return
        state = self.network.state_dict()  # a frozen backbone is not in the checkpoint
        try:
            self.network.load_state_dict({**state, **checkpoint.model})
            self.optimizer.load_state_dict(checkpoint.optimizer)
            self.epoch = _Epoch(**checkpoint.data["epoch"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            gist = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"the checkpoint at step {checkpoint.step} of {folder} is not of this evaluation: {gist}; choose "
                "another --out"
            ) from error
        self.step, self.unreadable = checkpoint.step, set(checkpoint.unreadable)


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
