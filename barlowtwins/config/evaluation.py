"""Settings of `barlowtwins evaluate` and `barlowtwins classify`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from barlowtwins.config.rules import require

__all__ = ["ClassifyConfig", "FinetuneConfig", "KNNConfig", "LinearConfig", "SVMConfig", "SemiConfig"]


@dataclass(frozen=True)
class KNNConfig:
    """Weighted k-nearest-neighbour classification on frozen features."""

    train: Positional[str]
    """Labelled images that form the bank: a class-per-folder tree, a data-set name, or an EMB folder."""
    val: str | None = None
    """Labelled images to classify; the test split of a named data set unless told."""
    weights: str = "resnet50"
    """A registry name, a local weight file, an https URL, a RUN folder; "pixels" or "random" for the baselines."""
    k: tuple[int, ...] = ()
    """Numbers of neighbours; unless told 20 and 200, or all there are in a smaller bank."""
    temperature: float = 0.07
    """Votes are weighted by exp(cosine / temperature)."""
    shots: tuple[int, ...] = ()
    """Few-shot: also classify by a bank of only so many images a class, for each of these numbers."""
    tries: int = 5
    """Draws of each such bank, whose mean and standard deviation are reported."""
    out: str | None = None
    """A folder for results.json."""
    overwrite: bool = False
    """Start anew in a folder that holds another evaluation."""
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
    """Seed of the "random" baseline's weights, and of few-shot draws."""

    def __post_init__(self) -> None:
        require(all(k >= 1 for k in self.k), f"--k is {self.k}; each must be 1 or more")
        require(self.temperature > 0, f"--temperature is {self.temperature}; it must be > 0")
        require(all(n >= 1 for n in self.shots), f"--shots is {self.shots}; each must be 1 or more")
        require(self.tries >= 1, f"--tries is {self.tries}; it must be 1 or more")
        require(self.batch_size >= 1, f"--batch-size is {self.batch_size}; it must be 1 or more")


@dataclass(frozen=True)
class _LabelledConfig:
    """What every evaluation takes that trains a classifier."""

    train: Positional[str]
    """Labelled images to learn from: a class-per-folder tree, a list with labels, or a data-set name."""
    val: str | None = None
    """Labelled images to judge by, used for nothing else; the test split of a named data set unless told."""
    weights: str = "resnet50"
    """A registry name, a local weight file, an https URL, or a RUN folder."""
    out: str | None = None
    """A folder for results.json and the classifier, and for what lets a stopped run go on."""
    save_head: str | None = None
    """A file for the classifier, which `barlowtwins classify` and torch.hub take."""
    overwrite: bool = False
    """Start anew in a folder that holds another evaluation, and replace the file of --save-head."""
    data_root: str | None = None
    """Where named data sets lie or are downloaded to."""
    save_every: float = 300.0
    """Seconds between checkpoints of a training in `out`: as many are lost at most when the process is killed."""
    max_bad: float = 0.01
    """Stop when more than this fraction of the training images cannot be read."""
    workers: int | None = None
    """Processes that read images; from the machine's cores unless told. 0: in the main process."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the network."""
    seed: int = 0
    """Seed of draws, order and crops: the result is a function of it."""

    def __post_init__(self) -> None:
        require(0 <= self.max_bad <= 1, f"--max-bad is {self.max_bad}; it is a fraction from 0 to 1")
        require(self.save_every >= 0, f"--save-every is {self.save_every}; it must not be negative")
        require(self.workers is None or self.workers >= 0, f"--workers is {self.workers}; it must not be negative")
        require(0 <= self.seed < 2**63, f"--seed is {self.seed}; it must lie from 0 to 2**63 - 1")
        for name in ("epochs", "batch_size"):
            value = getattr(self, name, None)
            require(value is None or value >= 1, f"--{name.replace('_', '-')} is {value}; it must be 1 or more")
        for name in ("lr_head", "lr_backbone", "weight_decay"):
            value = getattr(self, name, None)
            require(
                value is None or 0 <= value < math.inf,
                f"--{name.replace('_', '-')} is {value}; it must be a number that is not negative",
            )


@dataclass(frozen=True)
class LinearConfig(_LabelledConfig):
    """Train a linear classifier on frozen features, and say how good it is.

    TRAIN and VAL may also be EMB folders, which `barlowtwins embed` has made: then the features are there already.
    """

    protocol: Literal["auto", "fast", "published"] = "auto"
    """fast: extract features once and train to convergence, with the best of a sweep of penalties on a part of the
    training images. published: 100 epochs of SGD on random crops. auto: fast wherever the features fit into memory."""
    l2: tuple[float, ...] = ()
    """fast: penalties to choose from; from 1 down to 1e-6 unless told."""
    epochs: int | None = None
    """published: passes over the images."""
    batch_size: int | None = None
    """Images a forward pass; published: in the global batch."""
    lr_head: float | None = None
    """published: peak learning rate for 256 images; multiplied by batch size / 256."""
    weight_decay: float | None = None
    """published: weight decay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(all(0 <= l2 < math.inf for l2 in self.l2), f"--l2 is {self.l2}; penalties must not be negative")


@dataclass(frozen=True)
class FinetuneConfig(_LabelledConfig):
    """Train the backbone further with a linear classifier on top, on all labels, and say how good it is."""

    protocol: Literal["default", "published", "paper"] = "default"
    """default: 20 epochs, but 1,000 steps at least, so that little data suits it, too. published: 20 epochs of SGD,
    cosine, as in the published code. paper: with the steps of its appendix."""
    epochs: int | None = None
    """Passes over the images; the protocol's unless told, as all that follows."""
    batch_size: int | None = None
    """Images in the global batch; at most as many as there are."""
    lr_backbone: float | None = None
    """Peak learning rate of the backbone for 256 images; multiplied by batch size / 256. 0 freezes it."""
    lr_head: float | None = None
    """Peak learning rate of the classifier for 256 images."""
    weight_decay: float | None = None
    """Weight decay of everything that is trained."""


@dataclass(frozen=True)
class SemiConfig(FinetuneConfig):
    """Fine-tune on a fraction of the labels, and say how good it is."""

    percent: str = "1"
    """Percent of the images, drawn evenly over the classes (of ImageNet, 1 and 10 are the published lists); or a text
    file that names the images."""


@dataclass(frozen=True)
class SVMConfig:
    """One linear SVM a class on frozen features of images with several labels: mean average precision, as on VOC07."""

    train: Positional[str]
    """A VOC folder (VOCdevkit/VOC2007), or a list whose labels are joined by semicolons."""
    val: str | None = None
    """Images to judge by; the test images of a VOC folder unless told."""
    weights: str = "resnet50"
    """A registry name, a local weight file, an https URL, or a RUN folder."""
    c: tuple[float, ...] = ()
    """Costs to choose from, for each class by cross-validation; from 0.001 to 1000 unless told."""
    folds: int = 3
    """Parts of the cross-validation."""
    out: str | None = None
    """A folder for results.json, and for what lets a stopped run go on."""
    overwrite: bool = False
    """Start anew in a folder that holds another evaluation."""
    batch_size: int = 64
    """Images a forward pass."""
    workers: int | None = None
    """Processes that read images; from the machine's cores unless told. 0: in the main process."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the network."""
    seed: int = 0
    """Seed of the folds."""

    def __post_init__(self) -> None:
        require(all(0 < c < math.inf for c in self.c), f"--c is {self.c}; each must be > 0")
        require(self.folds >= 2, f"--folds is {self.folds}; it must be 2 or more")
        require(self.batch_size >= 1, f"--batch-size is {self.batch_size}; it must be 1 or more")
        require(self.workers is None or self.workers >= 0, f"--workers is {self.workers}; it must not be negative")
        require(0 <= self.seed < 2**32, f"--seed is {self.seed}; it must lie from 0 to 2**32 - 1")


@dataclass(frozen=True)
class ClassifyConfig:
    """Label images with a trained classifier: a line of the CSV file for each, in the order of the sorted source."""

    images: Positional[str]
    """A folder of images, a text file of paths, tar shards, one image, or a data-set name."""
    head: str
    """The classifier: a file of `barlowtwins evaluate ... --save-head`, or a registry name that has one."""
    out: str
    """The CSV file: row, path, status, and the most probable classes with their probabilities."""
    topk: int = 5
    """Classes to name for each image; fewer if there are fewer."""
    weights: str | None = None
    """The backbone's weights, where the place that the head remembers is not at hand."""
    split: str = "test"
    """The split of a named data set: train or test."""
    data_root: str | None = None
    """Where named data sets lie or are downloaded to."""
    overwrite: bool = False
    """Replace the CSV file if there is one."""
    batch_size: int = 64
    """Images a forward pass."""
    workers: int | None = None
    """Processes that read images; from the machine's cores unless told. 0: in the main process."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the network."""

    def __post_init__(self) -> None:
        require(self.topk >= 1, f"--topk is {self.topk}; it must be 1 or more")
        require(self.batch_size >= 1, f"--batch-size is {self.batch_size}; it must be 1 or more")
        require(self.workers is None or self.workers >= 0, f"--workers is {self.workers}; it must not be negative")
