"""Settings of `barlowtwins pretrain` and `barlowtwins demo`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from barlowtwins.config.rules import require

__all__ = ["DemoConfig", "PretrainConfig"]


@dataclass(frozen=True)
class PretrainConfig:
    """Pretrain a backbone on unlabelled images."""

    data: Positional[str]
    """A folder of images, a text file of paths, tar shards, or a data-set name (shapes, cifar10, ...)."""
    out: Annotated[str, arg(metavar="FOLDER")]
    """The RUN folder: configuration, metrics, checkpoints and weights go there."""
    recipe: str = "auto"
    """A recipe's name or TOML file; auto picks one from the data and the image size. Flags override it."""
    val: str | None = None
    """Held-out labelled images for the online kNN; auto for data sets that have a test split. "none" turns it off."""
    data_root: str | None = None
    """Where named data sets lie or are downloaded to."""
    backbone: str | None = None
    """A torchvision ResNet (resnet18, resnet50, wide_resnet50_2, ...), a small one for CPUs (resnet10_x0_5, or
    resnet8_x0_5_grid4, whose features keep the place in the image), or timm:NAME."""
    stem: Literal["imagenet", "small", "small-stride2", "small-padding2"] | None = None
    """First layers: 7x7 and max-pooling (imagenet), or 3x3 without pooling for images up to 64 pixels (small)."""
    channels: int | None = None
    """Input channels: 1 (grey), 3 (RGB), or those of the arrays in channels:FOLDER; from the data unless told."""
    projector: str | None = None
    """Widths of the projector's layers, joined by dashes, such as 8192-8192-8192."""
    image_size: int | None = None
    """Side of the square views, in pixels."""
    augmentation: str | None = None
    """The pair of view pipelines: imagenet, small, grey, shapes or fashion-mnist; where the recipe leaves it open, by
    the images."""
    augment_backend: Literal["auto", "pillow", "fast", "batched"] = "auto"
    """What makes the views: pillow, the published operations to the letter, in worker processes; fast, nearly the same
    pixels by OpenCV there (extra fast); or batched, nearly the same by few large operations on the device. auto:
    batched on a GPU and for small images in memory, else pillow."""
    epochs: int | None = None
    """Passes over the data."""
    batch_size: int | None = None
    """Images in the global batch (each gives two views); the recipe's, or fewer where there are fewer images."""
    micro_batch_size: int | None = None
    """Images whose activations are held at once; the loss is still that of the whole batch."""
    lambd: float | None = None
    """Weight of the off-diagonal terms (0.0051 as published)."""
    scale_loss: float | None = None
    """Factor on the whole loss."""
    mixup: float = 0.0
    """Weight of the mix-up regulariser for small data and long runs (Mixed Barlow Twins, Bandara et al. 2023; 5 in
    their code). It takes a third forward pass, and one process without micro-batches. 0: off."""
    optimizer: Literal["lars", "adamw", "sgd"] | None = None
    """LARS as published, or AdamW or SGD, which are often better for small batches."""
    lr: float | None = None
    """Peak learning rate of weights for 256 images; multiplied by batch size / 256. Under LARS it follows
    --batch-size by the authors' table unless told."""
    lr_bias: float | None = None
    """Peak learning rate of biases and batch norm for 256 images. The true gradient is W times that of the published
    code on W GPUs, so the published 0.0048 on 16 GPUs is 0.0003 here. It follows --lr in proportion unless told."""
    weight_decay: float | None = None
    """Weight decay of weights; biases and batch norm have none."""
    warmup_epochs: float | None = None
    """Epochs of linear warm-up; a tenth of the run, at most 10, unless told."""
    workers: int | None = None
    """Processes that read and distort images; from the machine's cores unless told. 0: in the main process."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the network: bf16 autocast on GPUs that have it, else fp32. The loss is fp32 always."""
    seed: int = 0
    """Seed of initial weights, order and views: a run is a function of it."""
    resume: str = "auto"
    """auto: continue the newest checkpoint in RUN; never: refuse if there is one; or a checkpoint file."""
    init: str | None = None
    """Weights to start from: a registry name, file, URL or RUN."""
    checkpoint_every: int | None = None
    """Optimizer steps between checkpoints; one an epoch unless told."""
    log_every: int = 10
    """Optimizer steps between lines of metrics.jsonl."""
    knn_every: int = 1
    """Epochs between online kNN evaluations; 0 turns them off."""
    probe_every: int = 10
    """Epochs between online linear probes, where there are labels; 0 turns them off."""
    report_every: int = 1
    """Epochs between looks at the network (effective rank, correlations, neighbours) and between versions of
    report.html, which shows them; 0 turns both off."""
    track: Literal["none", "tensorboard"] = "none"
    """Where else the metrics go."""
    max_bad: float = 0.01
    """Stop when more than this fraction of the images cannot be read."""
    max_steps: int | None = None
    """Stop and save after this step of the schedule, to go on later."""
    allow_change: tuple[str, ...] = ()
    """Settings that may differ from the checkpoint's at a resume, such as `data` or `lambd`."""
    dry_run: bool = False
    """Print the resolved settings, parameters and steps, and estimate memory and time from ten steps on random input;
    train nothing."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "micro_batch_size", "image_size", "channels", "checkpoint_every"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')} is {value}; it must be 1 or more")
        for name in ("lambd", "lr", "lr_bias", "weight_decay", "warmup_epochs", "workers", "max_steps", "mixup"):
            value = getattr(self, name)
            require(
                value is None or 0 <= value < math.inf,
                f"--{name.replace('_', '-')} is {value}; it must be a number that is not negative",
            )
        require(
            self.scale_loss is None or 0 < self.scale_loss < math.inf,
            f"--scale-loss is {self.scale_loss}; it must be a number > 0",
        )
        require(
            not (self.mixup and self.micro_batch_size),
            f"--mixup {self.mixup:g} mixes images of the whole batch, --micro-batch-size {self.micro_batch_size} holds "
            "only a part of it; leave one of them out",
        )
        require(self.log_every >= 1, f"--log-every is {self.log_every}; it must be 1 or more")
        require(self.knn_every >= 0, f"--knn-every is {self.knn_every}; it must not be negative")
        require(self.probe_every >= 0, f"--probe-every is {self.probe_every}; it must not be negative")
        require(self.report_every >= 0, f"--report-every is {self.report_every}; it must not be negative")
        require(0 <= self.max_bad <= 1, f"--max-bad is {self.max_bad}; it is a fraction from 0 to 1")
        require(0 <= self.seed < 2**63, f"--seed is {self.seed}; it must lie from 0 to 2**63 - 1")


@dataclass(frozen=True)
class DemoConfig:
    """Two minutes on a laptop: draw shapes, pretrain, and compare kNN of pixels, untrained and trained features."""

    out: str | None = None
    """The RUN folder; runs/demo unless told, or runs/demo-fast with --fast."""
    fast: bool = False
    """A shorter run that only shows that everything works."""
    seed: int = 0
    """Seed of the run."""
