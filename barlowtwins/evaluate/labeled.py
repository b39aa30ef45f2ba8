"""Labeled training and validation images, checked to fit each other before anything long begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from barlowtwins.core.distributed import World
from barlowtwins.core.errors import ConfigError, DataError
from barlowtwins.core.progress import say
from barlowtwins.data.describe import describe
from barlowtwins.data.open import Source, has_split, open_source

__all__ = ["LabeledImages", "labels_of", "labels_within", "open_labeled", "open_pair", "say_pair"]

SOME = 5  # names that an error lists


class HasLabels(Protocol):
    """What is asked for its labels: a source, or features that were made of one."""

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> npt.NDArray[np.int64] | None: ...


class LabeledImages(NamedTuple):
    """Images, each with a class."""

    source: Source
    labels: npt.NDArray[np.int64]
    """(N,) numbers into `classes`."""
    classes: tuple[str, ...]
    """Of the training images, also for validation images."""


def open_pair(train: str, val: str | None, data_root: str | Path | None = None) -> tuple[LabeledImages, LabeledImages]:
    """Open training images and held-out ones; the classes of the latter may be fewer, and in another order.

    Args:
        train: training images, as for `open_source`.
        val: validation images; None takes the test split of a named data set.
        data_root: the folder for named data sets.

    Raises:
        ConfigError: no `val`, and `train` has no test split.
        DataError: images without labels; a single class; classes in `val` that are not in `train`.
    """
    if val is None and not has_split(train, "test"):
        raise ConfigError(f"{train} has no test split of its own; pass validation images with --val")
    learned = open_labeled(train, split="train", data_root=data_root)
    judged = open_source(val or train, split="test", data_root=data_root)
    return learned, LabeledImages(judged, labels_within(learned.classes, judged), learned.classes)


def say_pair(train: LabeledImages, val: LabeledImages, world: World) -> None:
    """Print what was taken of both, a line each, on the process that writes."""
    if world.writes:
        say(describe(train.source))
        say(describe(val.source))


def open_labeled(data: str, *, split: str, data_root: str | Path | None = None) -> LabeledImages:
    """Open images of two classes or more.

    Raises:
        DataError: they have no labels, or a single class.
    """
    source = open_source(data, split=split, data_root=data_root)
    labels = labels_of(source)
    if len(source.classes) < 2:
        raise DataError(f"{source.name} has one class, {source.classes[0]}: training a classifier needs two or more")
    return LabeledImages(source, labels, source.classes)


def labels_of(source: HasLabels) -> npt.NDArray[np.int64]:
    """The labels, (N,) numbers into its classes.

    Raises:
        DataError: it has none.
    """
    if source.labels is None:
        raise DataError(
            f"{source.name} has no labels, which an evaluation needs: put the images of each class into a folder of "
            "its own, or give a list with one label per line"
        )
    return source.labels


def labels_within(classes: Sequence[str], source: HasLabels) -> npt.NDArray[np.int64]:
    """The labels of `source` as numbers into `classes`.

    Raises:
        DataError: it has none, or some of other names.
    """
    labels = labels_of(source)
    if unknown := [name for name in source.classes if name not in classes]:
        raise DataError(
            f"{len(unknown)} classes of {source.name} are not in the training data ({_few(unknown)}); "
            f"it has {_few(classes)}"
        )
    place = {name: number for number, name in enumerate(classes)}
    return np.array([place[name] for name in source.classes], np.int64)[labels]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:SOME]) + (f" and {len(names) - SOME} more" if len(names) > SOME else "")
