"""Semi-supervised: fine-tuning on a fraction of the labels, after pretraining on all images without.

Of ImageNet, 1 and 10 percent are published lists of files, the same for everyone; they are fetched once, verified and
kept. Of other data a fraction is drawn, as many images of each class, as a function of the seed.
"""

# N images, n of them drawn

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from barlowtwins.config import SemiConfig
from barlowtwins.core.distributed import open_world
from barlowtwins.core.errors import DataError, UsageError
from barlowtwins.data.datasets import default_data_root
from barlowtwins.data.lists import read_text
from barlowtwins.data.open import Source, subset
from barlowtwins.evaluate.draws import balanced_draw
from barlowtwins.evaluate.labeled import LabeledImages, open_pair, say_pair
from barlowtwins.evaluate.protocols import fine_tuning
from barlowtwins.evaluate.results import EvaluationResult
from barlowtwins.evaluate.supervised_job import evaluate_trained
from barlowtwins.zoo.download import download
from barlowtwins.zoo.weights import load_weights

__all__ = ["IMAGENET_LISTS", "Draw", "PublishedList", "draw_fraction", "evaluate_semi", "fetch_list", "listed_images"]

WORDNET = re.compile(r"n\d{8}")  # a class folder of ImageNet


@dataclass(frozen=True)
class PublishedList:
    """A list of file names that others use, too."""

    url: str
    sha256: str
    size: int
    """Bytes."""
    lines: int


_LISTS = "https://raw.githubusercontent.com/google-research/simclr/master/imagenet_subsets"
IMAGENET_LISTS = {
    1.0: PublishedList(
        f"{_LISTS}/1percent.txt", "71e82a48ba78252683ae334c4d019ebd5c6e855b9599c1389fbe83eb9549cf17", 260_323, 12_811
    ),
    10.0: PublishedList(
        f"{_LISTS}/10percent.txt",
        "6d09de11e7bdaf5b1f3b1f249b6183695f97310cdd20f0c03e7235b6b9392091",
        2_603_168,
        128_116,
    ),
}


class Draw(NamedTuple):
    """Some of the training images."""

    indices: npt.NDArray[np.int64]
    """(n,)"""
    how: dict[str, Any]
    """For the record."""


def evaluate_semi(config: SemiConfig) -> EvaluationResult:
    """Fine-tune a backbone on a fraction of the labels, and judge it on images that it has not seen.

    Raises:
        UsageError: a percentage that is neither a number from 0 to 100 nor a file.
        DataError: a list that does not fit the images.
        DownloadError: ImageNet's list cannot be fetched.
        BarlowTwinsError: as `evaluate_finetune`.
    """
    with open_world(config.device) as world:
        train, val = open_pair(config.train, config.val, config.data_root)
        say_pair(train, val, world)
        root = Path(config.data_root) if config.data_root else default_data_root()
        draw = draw_fraction(train, config.percent, seed=config.seed, cache=root / "imagenet-subsets")
        some = LabeledImages(subset(train.source, draw.indices), train.labels[draw.indices], train.classes)
        weights = load_weights(config.weights, progress=world.writes)
        protocol = fine_tuning(config.protocol, weights.preprocessing.image_size).with_flags(config)
        return evaluate_trained("semi", config, protocol, some, val, weights, world=world, draw=draw.how)


def draw_fraction(
    train: LabeledImages,
    percent: str,
    *,
    seed: int,
    cache: Path,
    lists: Mapping[float, PublishedList] = IMAGENET_LISTS,
) -> Draw:
    """Choose the images whose labels are used.

    Args:
        train: all labeled images.
        percent: a number, or the path of a text file with one image per line.
        seed: of a draw.
        cache: where published lists are kept.
        lists: those of ImageNet, by percentage.

    Raises:
        UsageError: neither a number from 0 to 100 nor a file.
        DataError: as `listed_images` says.
        DownloadError: a published list cannot be fetched.
    """
    if Path(percent).is_file():
        indices = listed_images(train.source, Path(percent))
        return Draw(indices, {"list": percent, "images": len(indices)})
    try:
        value = float(percent)
    except ValueError:
        value = -1.0
    if not 0 < value <= 100:
        raise UsageError(f"--percent is {percent!r}; it must be a number from 0 to 100, or a file that lists images")
    if value in lists and is_imagenet(train.source):
        indices = listed_images(train.source, fetch_list(lists[value], cache))
        return Draw(indices, {"list": lists[value].url, "images": len(indices)})
    count = max(len(train.classes), round(len(train.source) * value / 100))
    indices = balanced_draw(train.labels, min(count, len(train.source)), seed=seed)
    return Draw(indices, {"percent": value, "images": len(indices), "seed": seed})


def is_imagenet(source: Source) -> bool:
    """Whether these are the folders of ImageNet's 1000 classes, named such as n01440764."""
    return len(source.classes) == 1000 and all(WORDNET.fullmatch(name) for name in source.classes)


def fetch_list(published: PublishedList, cache: Path) -> Path:
    """The file of a published list: from the cache if it is there and sound, else fetched and verified.

    Raises:
        DownloadError: it cannot be downloaded. Put it into the cache by hand, or pass it as `--percent FILE`.
    """
    name = published.url.rsplit("/", 1)[1]
    return download(published.url, cache / name, sha256=published.sha256, size=published.size)


def listed_images(source: Source, file: Path) -> npt.NDArray[np.int64]:
    """The images of `source` that a text file names, one per line, by key or by file name alone; (n,) indices, sorted.

    Raises:
        DataError: the list is empty or no text, or names images that are not there or that cannot be told apart.
    """
    names = [line.strip() for line in read_text(file).split("\n") if line.strip()]
    if not names:
        raise DataError(f"the list {file} names no image; give one per line")
    keys = [source.key(index) for index in range(len(source))]
    by_name = {key.rpartition("/")[2]: index for index, key in enumerate(keys)}
    ambiguous = {name for name, count in Counter(key.rpartition("/")[2] for key in keys).items() if count > 1}
    place = {name: index for name, index in by_name.items() if name not in ambiguous}
    place |= {key: index for index, key in enumerate(keys)}
    if unknown := [name for name in names if name not in place]:
        why = "more than one image has this name" if unknown[0] in ambiguous else "there is no such image"
        raise DataError(
            f"{len(unknown)} of {len(names)} images in {file} are not found in {source.name}, the first: "
            f"{unknown[0]} ({why}); name images as the data does"
        )
    return np.unique([place[name] for name in names])
