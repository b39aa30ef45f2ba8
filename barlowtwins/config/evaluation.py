"""Settings of `barlowtwins evaluate` and `barlowtwins classify`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from barlowtwins.config.flags import Positional
from barlowtwins.config.rules import (
    Count,
    DataPath,
    FilePath,
    Fraction,
    NonNegative,
    Positive,
    Range,
    require,
    shared_last,
)
from barlowtwins.config.shared import Batched, Computing, NamedData, Reading, Seeded

__all__ = ["ClassifyConfig", "FinetuneConfig", "KNNConfig", "LinearConfig", "SVMConfig", "SemiConfig"]


@shared_last
@dataclass(frozen=True)
class KNNConfig(Seeded, NamedData, Computing, Reading, Batched):
    """Weighted k-nearest-neighbor classification on frozen features."""

    train: Positional[DataPath]
    """Labeled images that form the bank: a class-per-folder tree, a data-set name, or an EMB folder."""
    val: DataPath | None = None
    """Labeled images to classify; by default, the test split of a named data set."""
    weights: FilePath = "resnet50"
    """A registry name, a local weight file, an https URL, a RUN folder; "pixels" or "random" for the baselines."""
    k: tuple[Count, ...] = ()
    """Numbers of neighbors; by default 20 and 200, or all images of a smaller bank."""
    temperature: Positive = 0.07
    """Votes are weighted by exp(cosine / temperature)."""
    shots: tuple[Count, ...] = ()
    """Few-shot: images per class; also classify by a bank of that many, for each of these numbers."""
    tries: Count = 5
    """Draws of each such bank, whose mean and standard deviation are reported."""
    out: FilePath | None = None
    """A folder for results.json."""
    overwrite: bool = False
    """Start anew in a folder that holds another evaluation."""


@shared_last
@dataclass(frozen=True)
class _LabelledConfig(Seeded, NamedData, Computing, Reading):
    """What every evaluation takes that trains a classifier."""

    train: Positional[DataPath]
    """Labeled images to learn from: a class-per-folder tree, a list with labels, or a data-set name."""
    val: DataPath | None = None
    """Labeled images to judge by, used for nothing else; by default, the test split of a named data set."""
    weights: FilePath = "resnet50"
    """A registry name, a local weight file, an https URL, or a RUN folder."""
    out: FilePath | None = None
    """A folder for results.json, the classifier and the resume state."""
    save_head: FilePath | None = None
    """A file for the classifier, which `barlowtwins classify` and torch.hub take."""
    overwrite: bool = False
    """Start anew in a folder that holds another evaluation, and replace the file of --save-head."""
    save_every: NonNegative = 300.0
    """Seconds between checkpoints of a training in `out`: as many are lost at most when the process is killed."""
    max_bad: Fraction = 0.01
    """Stop when more than this fraction of the training images cannot be read."""


@shared_last
@dataclass(frozen=True)
class LinearConfig(_LabelledConfig):
    """Train a linear classifier on frozen features, and say how good it is.

    TRAIN and VAL may also be EMB folders, which `barlowtwins embed` has made: then the features are there already.
    """

    protocol: Literal["auto", "fast", "published"] = "auto"
    """fast: extract features once and train to convergence, with the best of a sweep of penalties on a part of the
    training images. published: 100 epochs of SGD on random crops. auto: fast wherever the features fit into memory."""
    l2: tuple[NonNegative, ...] = ()
    """fast: penalties to choose from; by default from 1 down to 1e-6."""
    epochs: Count | None = None
    """published: passes over the images."""
    batch_size: Count | None = None
    """Images per forward pass; published: in the global batch."""
    lr_head: NonNegative | None = None
    """published: peak learning rate for 256 images; multiplied by batch size / 256."""
    weight_decay: NonNegative | None = None
    """published: weight decay."""


@shared_last
@dataclass(frozen=True)
class FinetuneConfig(_LabelledConfig):
    """Train the backbone further with a linear classifier on top, on all labels, and say how good it is."""

    protocol: Literal["default", "published", "paper"] = "default"
    """default: 20 epochs, but 1,000 steps at least, so that little data suits it, too. published: 20 epochs of SGD,
    cosine, as in the published code. paper: with the steps of its appendix."""
    epochs: Count | None = None
    """Passes over the images; by default the protocol's, as for all that follows."""
    batch_size: Count | None = None
    """Images in the global batch; at most as many as there are."""
    lr_backbone: NonNegative | None = None
    """Peak learning rate of the backbone for 256 images; multiplied by batch size / 256. 0 freezes it."""
    lr_head: NonNegative | None = None
    """Peak learning rate of the classifier for 256 images."""
    weight_decay: NonNegative | None = None
    """Weight decay of everything that is trained."""


@shared_last
@dataclass(frozen=True)
class SemiConfig(FinetuneConfig):
    """Fine-tune on a fraction of the labels, and say how good it is."""

    percent: FilePath = "1"
    """Percent of the images, drawn evenly over the classes (of ImageNet, 1 and 10 are the published lists); or a text
    file that names the images."""


@shared_last
@dataclass(frozen=True)
class SVMConfig(Seeded, Computing, Reading, Batched):
    """One linear SVM per class on frozen features of multi-label images: mean average precision, as on VOC07."""

    train: Positional[DataPath]
    """A VOC folder (VOCdevkit/VOC2007), or a list whose labels are joined by semicolons."""
    val: DataPath | None = None
    """Images to judge by; by default the test images of a VOC folder."""
    weights: FilePath = "resnet50"
    """A registry name, a local weight file, an https URL, or a RUN folder."""
    c: tuple[Positive, ...] = ()
    """Costs to choose from, for each class by cross-validation; by default from 0.001 to 1000."""
    folds: Annotated[int, Range(2)] = 3
    """Parts of the cross-validation."""
    out: FilePath | None = None
    """A folder for results.json, and for the resume state."""
    overwrite: bool = False
    """Start anew in a folder that holds another evaluation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.seed < 2**32, f"seed must be from 0 to {2**32 - 1}, got {self.seed}", "seed")


@shared_last
@dataclass(frozen=True)
class ClassifyConfig(NamedData, Computing, Reading, Batched):
    """Label images with a trained classifier: one line of the CSV file for each, in the order of the sorted source."""

    images: Positional[DataPath]
    """A folder of images, a text file of paths, tar shards, one image, or a data-set name."""
    head: FilePath
    """The classifier: a file of `barlowtwins evaluate ... --save-head`, or a registry name that has one."""
    out: FilePath
    """The CSV file: row, path, status, and the most probable classes with their probabilities."""
    topk: Count = 5
    """Classes to name for each image; fewer if there are fewer."""
    weights: FilePath | None = None
    """The backbone's weights, where those that the head names are missing."""
    split: str = "test"
    """The split of a named data set: train or test."""
    overwrite: bool = False
    """Replace the CSV file if there is one."""
