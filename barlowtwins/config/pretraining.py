"""Settings of `barlowtwins pretrain` and `barlowtwins demo`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from barlowtwins.config.flags import Positional, arg
from barlowtwins.config.rules import (
    Count,
    DataPath,
    FilePath,
    Fraction,
    Natural,
    NonNegative,
    Positive,
    require,
    shared_last,
)
from barlowtwins.config.shared import Computing, NamedData, Reading, Seeded

__all__ = ["DemoConfig", "PretrainConfig"]


@shared_last
@dataclass(frozen=True)
class PretrainConfig(Seeded, NamedData, Computing, Reading):
    """Pretrain a backbone on unlabeled images."""

    data: Positional[DataPath]
    """A folder of images, a text file of paths, tar shards, or a data-set name (shapes, cifar10, ...)."""
    out: Annotated[FilePath, arg(metavar="FOLDER")]
    """The RUN folder: configuration, metrics, checkpoints and weights go there."""
    recipe: FilePath = "auto"
    """A recipe's name or TOML file; auto picks one from the data and the image size. Flags override it."""
    val: DataPath | None = None
    """Held-out labeled images for the online kNN; auto for data sets that have a test split. "none" turns it off."""
    backbone: str | None = None
    """A torchvision ResNet (resnet18, resnet50, wide_resnet50_2, ...), a small one for CPUs (resnet10_x0_5, or
    resnet8_x0_5_grid4, whose features encode position), or timm:NAME."""
    stem: Literal["imagenet", "small", "small-stride2", "small-padding2"] | None = None
    """First layers: 7x7 and max-pooling (imagenet), or 3x3 without pooling for images up to 64 pixels (small)."""
    channels: Count | None = None
    """Input channels: 1 (grey), 3 (RGB), or those of the arrays in channels:FOLDER; by default, from the data."""
    projector: str | None = None
    """Widths of the projector's layers, joined by dashes, such as 8192-8192-8192."""
    image_size: Count | None = None
    """Side of the square views, in pixels."""
    augmentation: str | None = None
    """The pair of view pipelines: imagenet, small, grey, shapes or fashion-mnist; if the recipe does not set it, by
    the images."""
    augment_backend: Literal["auto", "pillow", "fast", "batched"] = "auto"
    """What makes the views: pillow, the published operations to the letter, in worker processes; fast, nearly the same
    pixels by OpenCV there (extra fast); or batched, nearly the same by few large operations on the device. auto:
    batched on a GPU and for small images in memory, else pillow."""
    epochs: Count | None = None
    """Passes over the data."""
    batch_size: Count | None = None
    """Images in the global batch (each gives two views); the recipe's, or fewer where there are fewer images."""
    micro_batch_size: Count | None = None
    """Images whose activations are held at once; the loss is still that of the whole batch."""
    lambd: NonNegative | None = None
    """Weight of the off-diagonal terms (0.0051 as published)."""
    scale_loss: Positive | None = None
    """Factor on the whole loss."""
    mixup: NonNegative = 0.0
    """Weight of the mix-up regularizer for small data and long runs (Mixed Barlow Twins, Bandara et al. 2023; 5 in
    their code). It takes a third forward pass, and one process without micro-batches. 0: off."""
    optimizer: Literal["lars", "adamw", "sgd"] | None = None
    """LARS as published, or AdamW or SGD, which are often better for small batches."""
    lr: NonNegative | None = None
    """Peak learning rate of weights for 256 images; multiplied by batch size / 256. Under LARS it follows
    --batch-size by the authors' table by default."""
    lr_bias: NonNegative | None = None
    """Peak learning rate of biases and batch norm for 256 images. The true gradient is W times that of the published
    code on W GPUs, so the published 0.0048 on 16 GPUs is 0.0003 here. By default it follows --lr in proportion."""
    weight_decay: NonNegative | None = None
    """Weight decay of weights; biases and batch norm have none."""
    warmup_epochs: NonNegative | None = None
    """Epochs of linear warm-up; by default, a tenth of the run, at most 10."""
    resume: FilePath = "auto"
    """auto: continue the newest checkpoint in RUN; never: refuse if there is one; or a checkpoint file."""
    init: FilePath | None = None
    """Weights to start from: a registry name, file, URL or RUN."""
    checkpoint_every: Count | None = None
    """Optimizer steps between checkpoints; by default, one per epoch."""
    log_every: Count = 10
    """Optimizer steps between lines of metrics.jsonl."""
    knn_every: Natural = 1
    """Epochs between online kNN evaluations; 0 turns them off."""
    probe_every: Natural = 10
    """Epochs between online linear probes, where there are labels; 0 turns them off."""
    report_every: Natural = 1
    """Epochs between looks at the network (effective rank, correlations, neighbors) and between versions of
    report.html, which shows them; 0 turns both off."""
    track: Literal["none", "tensorboard"] = "none"
    """Where else the metrics go."""
    max_bad: Fraction = 0.01
    """Stop when more than this fraction of the images cannot be read."""
    max_steps: Natural | None = None
    """Stop and save after this step of the schedule, to continue later."""
    allow_change: tuple[str, ...] = ()
    """Settings that may differ from the checkpoint's at a resume, such as `data` or `lambd`."""
    dry_run: bool = False
    """Print the resolved settings, parameters and steps, and estimate memory and time from ten steps on random input;
    train nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not (self.mixup and self.micro_batch_size),
            f"mixup {self.mixup:g} mixes images of the whole batch, micro_batch_size {self.micro_batch_size} holds "
            "only a part of it; leave one of them out",
            "mixup",
            "micro_batch_size",
        )


@shared_last
@dataclass(frozen=True)
class DemoConfig(Seeded):
    """Two minutes on a laptop: draw shapes, pretrain, and compare kNN of pixels, untrained and trained features."""

    out: FilePath | None = None
    """The RUN folder; by default runs/demo, or runs/demo-fast with --fast."""
    fast: bool = False
    """A shorter run that only shows that everything works."""
