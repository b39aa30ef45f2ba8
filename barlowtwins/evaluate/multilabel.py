"""Images with any number of labels each: the folders of Pascal VOC, or a list."""

# N images, K classes

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from barlowtwins.core.errors import ConfigError, DataError
from barlowtwins.data.open import Source, open_source
from barlowtwins.data.sources import FileSource

__all__ = ["ABSENT", "IGNORED", "PRESENT", "MultiLabeled", "open_multilabel"]

PRESENT, IGNORED, ABSENT = 1, 0, -1  # as VOC writes them: an object that is hard to see is neither
VOC_SPLITS = {"train": "trainval", "test": "test"}
SEPARATOR = ";"


class MultiLabeled(NamedTuple):
    """Images, each with some of the classes."""

    source: Source
    targets: npt.NDArray[np.int8]
    """(N, K): PRESENT, IGNORED or ABSENT."""
    classes: tuple[str, ...]


def open_multilabel(data: str, val: str | None = None) -> tuple[MultiLabeled, MultiLabeled]:
    """Open training and validation images.

    Args:
        data: a VOC folder (with ImageSets/Main and JPEGImages), of which trainval is taken; or a list, as
            `open_source` takes it, with the labels of an image joined by semicolons.
        val: the same for the held-out images; None takes the test images of the VOC folder.

    Raises:
        ConfigError: no `val`, and `data` is not a VOC folder.
        DataError: files are missing or not of that form; classes of `val` that are not in `data`.
    """
    if val is None and not is_voc(Path(data)):
        raise ConfigError(
            f"{data} is not a VOC folder with test images of its own; pass a list of validation images with --val"
        )
    train = _open(data, "train", None)
    return train, _open(val or data, "test", train.classes)


def is_voc(folder: Path) -> bool:
    """Whether this is a year's folder of VOCdevkit."""
    return (folder / "ImageSets" / "Main").is_dir() and (folder / "JPEGImages").is_dir()


def _open(data: str, split: str, classes: tuple[str, ...] | None) -> MultiLabeled:
    return _open_voc(Path(data), VOC_SPLITS[split], classes) if is_voc(Path(data)) else _open_list(data, classes)


def _open_voc(folder: Path, split: str, classes: tuple[str, ...] | None) -> MultiLabeled:
    """ImageSets/Main/CLASS_SPLIT.txt: one image and 1, 0 or -1 per line, the same images in each."""
    files = folder / "ImageSets" / "Main"
    found = tuple(sorted(path.name.removesuffix(f"_{split}.txt") for path in files.glob(f"*_{split}.txt")))
    if not found:
        raise DataError(f"{files} has no files *_{split}.txt, such as cat_{split}.txt; put them there")
    columns = {name: _read_column(files / f"{name}_{split}.txt") for name in _agreed(found, classes, data=str(folder))}
    images = sorted(next(iter(columns.values())))
    for name, column in columns.items():
        if sorted(column) != images:
            raise DataError(
                f"{files}/{name}_{split}.txt does not name the same images as the other classes' files; list "
                f"each in all"
            )
    targets = np.array([[column[image] for column in columns.values()] for image in images], np.int8)
    source = FileSource(f"{folder} ({split})", folder, [f"JPEGImages/{image}.jpg" for image in images])
    return MultiLabeled(source, targets, tuple(columns))


def _read_column(path: Path) -> dict[str, int]:
    try:
        fields = [line.split() for line in path.read_text("utf-8").splitlines() if line.strip()]
        column = {image: int(value) for image, value in fields}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} must have an image and 1, 0 or -1 per line: {error}") from error
    if wrong := set(column.values()) - {PRESENT, IGNORED, ABSENT}:
        raise DataError(f"{path} has the value {wrong.pop()}; it must be 1, 0 or -1")
    return column


def _open_list(data: str, classes: tuple[str, ...] | None) -> MultiLabeled:
    source = open_source(data)
    if source.labels is None:
        raise DataError(f"{data} has no labels; a line is a path, a tab, and labels joined by {SEPARATOR!r}")
    named = [{part.strip() for part in name.split(SEPARATOR)} - {""} for name in source.classes]
    every = _agreed(tuple(sorted(set().union(*named))), classes, data=data)
    row_of = np.array([[PRESENT if name in names else ABSENT for name in every] for names in named], np.int8)
    return MultiLabeled(source, row_of[source.labels], every)


def _agreed(found: tuple[str, ...], classes: tuple[str, ...] | None, *, data: str) -> tuple[str, ...]:
    """The classes to use: those that were found, or those that were learned if none is unknown."""
    unknown = [name for name in found if classes is not None and name not in classes]
    if unknown:
        raise DataError(
            f"{data} has classes that are not in the training data: {', '.join(unknown[:5])}; leave them "
            f"out, or learn them too"
        )
    return classes or found
