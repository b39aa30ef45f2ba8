"""Whatever a user names as data, opened as a source of images.

| given | becomes |
|---|---|
| a name of `datasets.DATASETS`, or "shapes:N" | that data set; "./shapes" means a folder of this name |
| a folder | the images in it and in all folders below |
| a .txt, .tsv or .csv file | the images that it names, in its order, with its labels if it has any |
| an image file | that one image |
| a .tar file, or several by braces or wildcards: "shard-{000..009}.tar" | the images in them, in the order of `tars` |
| "channels:FOLDER", a .npy file | arrays of any number of channels and bits, in memory; see `channels` |
| a URL that fsspec knows: "s3://bucket/images", "s3://bucket/shard-*.tar" | the folder, or the archives |
| a uint8 array, (N, H, W) or (N, H, W, C) | its images: grey, or RGB or RGBA |
| a sequence of paths | those files, in that order |
| a sequence of PIL images, arrays or bytes of files | those images |

A folder is labelled if every image lies in a sub-folder: then the folder's own sub-folders that hold images, sorted by
code points, are the classes, however deep in one of them an image lies. One image in the folder itself, and there are
no classes.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from barlowtwins.core.errors import DataError
from barlowtwins.core.progress import say
from barlowtwins.data.channels import PREFIXES, open_channels
from barlowtwins.data.datasets import DATASETS, open_dataset
from barlowtwins.data.images import IMAGE_SUFFIXES
from barlowtwins.data.listing import list_folder, top_folders
from barlowtwins.data.lists import LIST_SUFFIXES, read_list
from barlowtwins.data.remote import UrlSource, is_url
from barlowtwins.data.sources import ArraySource, FileSource, ItemSource, Source, SubsetSource
from barlowtwins.data.tars import TarSource, is_tar

__all__ = ["Source", "has_split", "open_source", "relabeled", "subset"]


def open_source(
    data: str | os.PathLike[str] | Source | npt.NDArray[np.uint8] | Sequence[Any],
    *,
    split: str = "train",
    data_root: str | os.PathLike[str] | None = None,
) -> Source:
    """Open `data`, by the table at the top of this module.

    Args:
        data: what to open. A `str` may be a data set's name or a path, any other path is a path, and a source is
            given back as it is.
        split: of a named data set, "train" or "test"; no matter for anything else.
        data_root: the folder for named data sets; `datasets.default_data_root` unless told.

    Raises:
        DataError: nothing of this name, no image in it, or a data set that is not at hand and cannot be downloaded.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, np.ndarray):
        _require_one_reading(data.shape)
        return ArraySource("array", data)
    if isinstance(data, str) and data.partition(":")[0] in DATASETS:
        if os.path.isdir(data):
            say(f"{data} is the data set of this name; for the folder {data} that is here write ./{data}")
        return open_dataset(data, split=split, data_root=None if data_root is None else Path(data_root))
    if isinstance(data, (str, os.PathLike)):
        name = os.fspath(data)
        if name.startswith(PREFIXES) or (name.lower().endswith(".npy") and Path(name).is_file()):
            return open_channels(name)
        if is_url(name):
            return _open_url(name)
        if not Path(name).is_dir() and is_tar(name):
            return TarSource(name)
        return _open_path(Path(name), name)
    items = list(data)
    if not items:
        raise DataError("an empty sequence was given where images are needed; give one or more")
    if isinstance(items[0], (str, os.PathLike)):
        return FileSource("paths", None, [PurePath(item).as_posix() for item in items])
    return ItemSource("images", items)


def has_split(data: object, split: str) -> bool:
    """Whether `data` is the name of a data set with this split, as "cifar10" is with "test"; nothing is opened."""
    name = data.partition(":")[0] if isinstance(data, str) else ""
    return name in DATASETS and split in DATASETS[name].splits


def subset(source: Source, indices: npt.NDArray[np.integer] | Sequence[int]) -> Source:
    """The images of `source` at `indices` (n,), in that order, with their keys, labels and classes."""
    return SubsetSource(source, indices)


def _require_one_reading(shape: tuple[int, ...]) -> None:
    """Raise DataError for an array that can be several grey images or one of color."""
    if len(shape) != 3 or not (shape[0] in (3, 4) or shape[2] in (3, 4)):
        return
    grey = f"{shape[0]} grey images of {shape[1]} x {shape[2]}"
    first = shape[0] in (3, 4)
    one = f"one image of {shape[0 if first else 2]} channels"
    write = "array.transpose(1, 2, 0)[None]" if first else "array[None]"
    raise DataError(
        f"an array of shape {shape} can be {grey}, array[..., None], or {one}, {write}; give the one that is meant"
    )


def relabeled(source: Source, classes: Sequence[str]) -> Source:
    """`source` with its labels as numbers into `classes`, matched by name; all of its own must be among them."""
    if source.labels is None or source.classes == tuple(classes):
        return source
    place = {name: number for number, name in enumerate(classes)}
    same = SubsetSource(source, np.arange(len(source)))
    same.labels = np.array([place[name] for name in source.classes], np.int64)[source.labels]
    same.classes = tuple(classes)
    return same


def _open_url(url: str) -> Source:
    if is_tar(url):
        return TarSource(url)
    if Path(url).suffix.lower() in (*LIST_SUFFIXES, *IMAGE_SUFFIXES):
        raise DataError(
            f"{url} is a file; behind a URL only folders of images and tar shards are read, so copy it here"
        )
    return UrlSource(url)


def _open_path(path: Path, name: str) -> Source:
    suffix = path.suffix.lower()
    if path.is_dir():
        left_out: Counter[str] = Counter()
        keys = list_folder(path, left_out)
        return FileSource(name, path, keys, top_folders(keys), left_out=left_out)
    if not path.exists():
        raise DataError(_not_found(path, name))
    if suffix in LIST_SUFFIXES:
        listed = read_list(path)
        for note in listed.notes:
            say(f"{name}: {note}")
        return FileSource(name, path.parent, listed.keys, listed.labels, notes=listed.notes)
    if suffix in IMAGE_SUFFIXES:
        return FileSource(name, path.parent, [path.name])
    raise DataError(
        f"{path} is neither a folder nor a list ({', '.join(LIST_SUFFIXES)}) nor an image by its suffix; "
        "give a folder of images, a text file with a path a line, tar shards, or a data set's name"
    )


def _not_found(path: Path, name: str) -> str:
    close = difflib.get_close_matches(name.lower(), DATASETS, n=1)
    if close:
        return f"no folder, file or data set {name!r}; did you mean {close[0]!r}? Data sets: {', '.join(DATASETS)}"
    if path.parent != Path() and not path.parent.is_dir():
        return f"{path} does not exist, nor does its folder {path.parent}"
    return f"no folder, file or data set {name!r}; data sets: {', '.join(DATASETS)}"
