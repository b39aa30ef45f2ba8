"""One frozen dataclass a command: its fields are the flags, the help text, the checkpoint's record.

`tyro` turns each class into a command line: a field is a flag, the string under it is the help, the default is the
default. `None` means "let the recipe or the data decide"; what was decided is printed and recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from barlowtwins.errors import UsageError

__all__ = [
    "CheckConfig",
    "DemoConfig",
    "EmbedConfig",
    "KNNConfig",
    "NeighboursConfig",
    "PretrainConfig",
    "WeightsGetConfig",
    "WeightsListConfig",
    "WeightsShowConfig",
    "WeightsVerifyConfig",
]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


@dataclass(frozen=True)
class PretrainConfig:
    """Pretrain a backbone on unlabelled images."""

    data: Positional[str]
    """A folder of images, a text file of paths, or a data-set name (shapes, fashion-mnist, cifar10, ...)."""
    out: str
    """The RUN folder: configuration, metrics, checkpoints and weights go there."""
    recipe: str = "auto"
    """A recipe's name or TOML file; auto picks one from the data and the image size. Flags override it."""
    val: str | None = None
    """Held-out labelled images for the online kNN; auto for data sets that have a test split. "none" turns it off."""
    data_root: str | None = None
    """Where named data sets lie or are downloaded to."""
    backbone: str | None = None
    """A torchvision ResNet (resnet18, resnet50, wide_resnet50_2, ...), or resnet10_x0_5 for CPUs."""
    stem: Literal["imagenet", "small", "small-stride2"] | None = None
    """First layers: 7x7 and max-pooling (imagenet), or 3x3 without pooling for images up to 64 pixels (small)."""
    channels: int | None = None
    """Input channels, 1 or 3; from the data unless told."""
    projector: str | None = None
    """Widths of the projector's layers, joined by dashes, such as 8192-8192-8192."""
    image_size: int | None = None
    """Side of the square views, in pixels."""
    augmentation: str | None = None
    """The pair of view pipelines: imagenet, small or grey."""
    epochs: int | None = None
    """Passes over the data."""
    batch_size: int | None = None
    """Images in the global batch (each gives two views)."""
    micro_batch_size: int | None = None
    """Images whose activations are held at once; the loss is still that of the whole batch."""
    lambd: float | None = None
    """Weight of the off-diagonal terms (0.0051 as published)."""
    scale_loss: float | None = None
    """Factor on the whole loss."""
    optimizer: Literal["lars", "adamw", "sgd"] | None = None
    """LARS as published, or AdamW or SGD, which are often better for small batches."""
    lr: float | None = None
    """Peak learning rate of weights for 256 images; multiplied by batch size / 256."""
    lr_bias: float | None = None
    """Peak learning rate of biases and batch norm for 256 images. The true gradient is W times that of the published
    code on W GPUs, so the published 0.0048 on 16 GPUs is 0.0003 here."""
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
    max_bad: float = 0.01
    """Stop when more than this fraction of the images cannot be read."""
    max_steps: int | None = None
    """Stop and save after this step of the schedule, to go on later."""
    allow_change: tuple[str, ...] = ()
    """Settings that may differ from the checkpoint's at a resume, such as `data` or `lambd`."""
    dry_run: bool = False
    """Print the resolved settings, parameters and steps; train nothing."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "micro_batch_size", "image_size", "channels", "checkpoint_every"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"--{name.replace('_', '-')} is {value}; it must be 1 or more")
        for name in ("lambd", "lr", "lr_bias", "weight_decay", "warmup_epochs", "workers", "max_steps"):
            value = getattr(self, name)
            _require(value is None or value >= 0, f"--{name.replace('_', '-')} is {value}; it must not be negative")
        _require(self.scale_loss is None or self.scale_loss > 0, f"--scale-loss is {self.scale_loss}; it must be > 0")
        _require(self.log_every >= 1, f"--log-every is {self.log_every}; it must be 1 or more")
        _require(self.knn_every >= 0, f"--knn-every is {self.knn_every}; it must not be negative")
        _require(0 <= self.max_bad <= 1, f"--max-bad is {self.max_bad}; it is a fraction from 0 to 1")
        _require(0 <= self.seed < 2**63, f"--seed is {self.seed}; it must lie from 0 to 2**63 - 1")


@dataclass(frozen=True)
class EmbedConfig:
    """Embed images: one row of features for each, in the order of the sorted source."""

    data: Positional[str]
    """A folder of images, a text file of paths, or a data-set name."""
    weights: str
    """A registry name, a local weight file, an https URL, or a RUN folder."""
    out: str
    """The EMB folder: embeddings.npy, index.csv and meta.json go there."""
    format: Literal["npy", "parquet", "safetensors"] = "npy"
    """File format of the embeddings."""
    split: str = "test"
    """The split of a named data set: train or test."""
    data_root: str | None = None
    """Where named data sets lie or are downloaded to."""
    image_size: int | None = None
    """Side of the square input; the weights' own unless told."""
    normalize: bool = False
    """Scale each row to unit length."""
    batch_size: int = 64
    """Images a forward pass."""
    workers: int | None = None
    """Processes that read images; from the machine's cores unless told. 0: in the main process."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the network."""
    runtime: Literal["auto", "torch", "onnx"] = "auto"
    """What runs the network."""
    overwrite: bool = False
    """Replace an EMB folder that is complete or that was made with other weights or preprocessing."""

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, f"--batch-size is {self.batch_size}; it must be 1 or more")
        _require(self.workers is None or self.workers >= 0, f"--workers is {self.workers}; it must not be negative")
        _require(self.image_size is None or self.image_size >= 1, f"--image-size is {self.image_size}; it must be >= 1")


@dataclass(frozen=True)
class KNNConfig:
    """Weighted k-nearest-neighbour classification on frozen features."""

    train: Positional[str]
    """Labelled images that form the bank: a class-per-folder tree, a data-set name, or an EMB folder."""
    val: str | None = None
    """Labelled images to classify; the test split of a named data set unless told."""
    weights: str = "resnet50"
    """A registry name, a local weight file, an https URL, a RUN folder; "pixels" or "random" for the baselines."""
    k: tuple[int, ...] = (20, 200)
    """Numbers of neighbours."""
    temperature: float = 0.07
    """Votes are weighted by exp(cosine / temperature)."""
    out: str | None = None
    """A folder for results.json."""
    data_root: str | None = None
    """Where named data sets lie or are downloaded to."""
    batch_size: int = 64
    """Images a forward pass."""
    workers: int | None = None
    """Processes that read images; from the machine's cores unless told."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the network."""
    seed: int = 0
    """Seed of the "random" baseline's weights."""

    def __post_init__(self) -> None:
        _require(len(self.k) > 0 and min(self.k) >= 1, f"--k is {self.k}; each must be 1 or more")
        _require(self.temperature > 0, f"--temperature is {self.temperature}; it must be > 0")
        _require(self.batch_size >= 1, f"--batch-size is {self.batch_size}; it must be 1 or more")


@dataclass(frozen=True)
class NeighboursConfig:
    """Find the nearest rows of an EMB folder to an image or to one of its own rows."""

    embeddings: Positional[str]
    """An EMB folder made by `barlowtwins embed`."""
    query: str
    """An image file, or a row number."""
    k: int = 10
    """Neighbours to show."""

    def __post_init__(self) -> None:
        _require(self.k >= 1, f"--k is {self.k}; it must be 1 or more")


@dataclass(frozen=True)
class CheckConfig:
    """Read every image once and list those that cannot be used."""

    data: Positional[str]
    """A folder of images, a text file of paths, or a data-set name."""
    data_root: str | None = None
    """Where named data sets lie or are downloaded to."""
    workers: int | None = None
    """Processes that read images; from the machine's cores unless told."""


@dataclass(frozen=True)
class WeightsListConfig:
    """List the registry: name, architecture, epochs, accuracy, licence, and whether it is in the cache."""


@dataclass(frozen=True)
class WeightsShowConfig:
    """Show all that is known of a weight: where it is from, its digest, preprocessing, recipe and results."""

    name: Positional[str]
    """A registry name."""


@dataclass(frozen=True)
class WeightsGetConfig:
    """Fetch a weight into the cache, verify it, and say where it lies."""

    name: Positional[str]
    """A registry name, or an https URL."""


@dataclass(frozen=True)
class WeightsVerifyConfig:
    """Check a weight file: digest, format, architecture, and that every value is finite."""

    weights: Positional[str]
    """A registry name, a local weight file, an https URL, or a RUN folder."""


@dataclass(frozen=True)
class DemoConfig:
    """Two minutes on a laptop: draw shapes, pretrain, and compare kNN of pixels, untrained and trained features."""

    out: str = "runs/demo"
    """The RUN folder."""
    fast: bool = False
    """A shorter run that only shows that everything works."""
    seed: int = 0
    """Seed of the run."""
