"""Data sets that go by a name: drawn, installed with the system, or downloaded by torchvision.

| name | images | size | splits |
|---|---|---|---|
| shapes | drawn here | 32 x 32 | train 10,000, test 2,000; `shapes:N` has N in each |
| fashion-mnist | grey clothes | 28 x 28 | train 60,000, test 10,000 |
| cifar10, cifar100 | small photos | 32 x 32 | train 50,000, test 10,000 |
| stl10 | photos | 96 x 96 | train 5,000, test 8,000 |
| stl10-unlabeled | photos | 96 x 96 | train 105,000: stl10's train split and 100,000 without labels |
| imagenette | photos, the 320-pixel edition | any | train 9,469, test 3,925 |
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import math
import os
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from barlowtwins.core.errors import DataError
from barlowtwins.data import shapes
from barlowtwins.data.listing import list_folder
from barlowtwins.data.sources import ArraySource, FileSource, Source

__all__ = ["DATASETS", "Dataset", "default_data_root", "open_dataset"]


@dataclass(frozen=True)
class Dataset:
    """How a named data set is opened, and which splits it has."""

    open: Callable[[str, Path], Source]
    """From a split and the folder that holds data sets."""
    splits: tuple[str, ...] = ("train", "test")


def default_data_root() -> Path:
    """Where data sets are kept unless told: `barlowtwins/data` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "barlowtwins" / "data"


def open_dataset(name: str, *, split: str, data_root: Path | None = None) -> Source:
    """Open a split of a data set of `DATASETS`, or of "shapes:N"; download it if need be.

    Raises:
        DataError: no such split; or the data set is not at hand and cannot be downloaded, or is damaged.
    """
    base, _, number = name.partition(":")
    dataset = DATASETS[base]
    if split not in dataset.splits:
        raise DataError(f"{name} has no split {split!r}; it has {' and '.join(dataset.splits)}")
    if number:
        if base != "shapes" or not number.isdecimal() or int(number) == 0:
            raise DataError(f"{name!r} is no data set; only shapes takes a number of images, such as shapes:20000")
        return _shapes(split, int(number))
    return dataset.open(split, data_root or default_data_root())


def _shapes(split: str, n: int) -> Source:
    return ArraySource("shapes", *shapes.draw_shapes(n, split=split), shapes.CLASSES)


def _fashion_mnist(split: str, root: Path) -> Source:
    """The files of the data set's authors: in `root` or its sub-folders, or where Debian's package puts them."""
    kind = {"train": "train", "test": "t10k"}[split]
    folders = (root / "fashion-mnist", root / "FashionMNIST" / "raw", root, Path("/usr/share/datasets/fashion-mnist"))
    folder = next((folder for folder in folders if _idx_file(folder, f"{kind}-images-idx3-ubyte")), None)
    if folder is None:
        from torchvision.datasets import FashionMNIST

        folder, files = folders[1], "*-ubyte.gz from https://github.com/zalandoresearch/fashion-mnist"
        _at_hand_or_downloaded(lambda download: FashionMNIST(root, download=download), "fashion-mnist", root, files)
    images = _read_idx(folder, f"{kind}-images-idx3-ubyte", ndim=3)
    labels = _read_idx(folder, f"{kind}-labels-idx1-ubyte", ndim=1)
    return ArraySource("fashion-mnist", images, labels, _FASHION_CLASSES)


_FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((file for file in (folder / f"{name}.gz", folder / name) if file.is_file()), None)


def _read_idx(folder: Path, name: str, *, ndim: int) -> npt.NDArray[np.uint8]:
    """Read bytes in MNIST's format: 0, 0, 8 (for bytes), ndim; each size as a big-endian 32-bit number; the bytes."""
    file = _idx_file(folder, name)
    if file is None:
        raise DataError(f"{folder} has no file {name} or {name}.gz; the data set is incomplete there")
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {file}: {error}; remove it, so that it is fetched again") from error
    start = 4 + 4 * ndim
    shape = tuple(np.frombuffer(content[4:start].ljust(4 * ndim, b"\0"), ">u4").tolist())
    if content[:4] != bytes([0, 0, 8, ndim]) or len(content) != start + math.prod(shape):
        raise DataError(f"{file} is no whole file of the MNIST format; remove it, so that it is fetched again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _cifar(name: str, split: str, root: Path) -> Source:
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    loaded = _at_hand_or_downloaded(
        lambda download: kind(root, train=split == "train", download=download),
        name,
        root,
        f"{kind.filename} from https://www.cs.toronto.edu/~kriz/",
    )
    return ArraySource(name, loaded.data, np.array(loaded.targets), loaded.classes)


def _stl10(name: str, split: str, root: Path) -> Source:
    from torchvision.datasets import STL10

    loaded = _at_hand_or_downloaded(
        lambda download: STL10(root, split=split if name == "stl10" else "train+unlabeled", download=download),
        name,
        root,
        "stl10_binary.tar.gz from ai.stanford.edu/~acoates/stl10/",
    )
    images = loaded.data.transpose(0, 2, 3, 1)  # (N, 96, 96, 3)
    return ArraySource(name, images, *((loaded.labels, loaded.classes) if name == "stl10" else ()))


def _imagenette(split: str, root: Path) -> Source:
    from torchvision.datasets import Imagenette

    folder, kind = "imagenette2-320", {"train": "train", "test": "val"}[split]

    def load(download: bool) -> Imagenette:
        if download:  # unpacked elsewhere first: torchvision takes any folder of this name for the whole data set
            with tempfile.TemporaryDirectory(prefix=".imagenette", dir=root) as unpacked:
                Imagenette(unpacked, size="320px", download=True)
                os.replace(Path(unpacked) / folder, root / folder)
        return Imagenette(root, kind, size="320px")

    loaded = _at_hand_or_downloaded(load, "imagenette", root, f"{folder} of https://github.com/fastai/imagenette")
    words = {number: names[0] for number, names in zip(loaded.wnids, loaded.classes, strict=True)}
    keys = list_folder(root / folder / kind)
    return FileSource("imagenette", root / folder / kind, keys, [words[key.partition("/")[0]] for key in keys])


T = TypeVar("T")


def _at_hand_or_downloaded(load: Callable[[bool], T], name: str, root: Path, what: str) -> T:
    """`load(False)` if the data set lies in `root`; else, one process at a time, `load(True)`, which downloads it.

    Args:
        load: opens the data set by torchvision, which raises RuntimeError if it is not there or damaged.
        name: of the data set.
        root: the folder that holds data sets.
        what: to put into `root` where there is no internet.

    Raises:
        DataError: it is neither at hand nor to be downloaded.
    """
    from filelock import FileLock  # torch depends on it

    with contextlib.suppress(RuntimeError):
        return load(False)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"), contextlib.redirect_stdout(sys.stderr):
            try:
                return load(False)  # another process may have fetched it meanwhile
            except RuntimeError:
                return load(True)
    except (OSError, RuntimeError, EOFError, zlib.error, tarfile.TarError) as error:  # OSError: the network's, too
        raise DataError(
            f"{name} is not in {root} and cannot be downloaded ({error}); without the internet, put {what} into "
            "that folder, or name the one that holds it as data root"
        ) from error


DATASETS: dict[str, Dataset] = {
    "shapes": Dataset(lambda split, root: _shapes(split, {"train": 10_000, "test": 2_000}[split])),
    "fashion-mnist": Dataset(_fashion_mnist),
    "cifar10": Dataset(functools.partial(_cifar, "cifar10")),
    "cifar100": Dataset(functools.partial(_cifar, "cifar100")),
    "stl10": Dataset(functools.partial(_stl10, "stl10")),
    "stl10-unlabeled": Dataset(functools.partial(_stl10, "stl10-unlabeled"), splits=("train",)),
    "imagenette": Dataset(_imagenette),
}
"""By name: every data set that `open_dataset` knows."""
