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
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from barlowtwins import shapes
from barlowtwins.errors import DataError
from barlowtwins.listing import list_folder
from barlowtwins.sources import ArraySource, FileSource, Source

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
        folder = folders[1]
        with _downloading("fashion-mnist", root, "the files *-ubyte.gz of github.com/zalandoresearch/fashion-mnist"):
            from torchvision.datasets import FashionMNIST

            FashionMNIST(root, download=True)
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
    shape = tuple(np.frombuffer(content[4 : 4 + 4 * ndim], ">u4").tolist())
    start = 4 + 4 * ndim
    if content[:4] != bytes([0, 0, 8, ndim]) or len(shape) != ndim or len(content) - start != math.prod(shape):
        raise DataError(f"{file} is no whole file of the MNIST format; remove it, so that it is fetched again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _cifar(name: str, split: str, root: Path) -> Source:
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    with _downloading(name, root, f"{kind.filename} from https://www.cs.toronto.edu/~kriz/"):
        loaded = kind(root, train=split == "train", download=True)
    return ArraySource(name, loaded.data, np.array(loaded.targets), loaded.classes)


def _stl10(name: str, split: str, root: Path) -> Source:
    from torchvision.datasets import STL10

    with _downloading(name, root, "stl10_binary.tar.gz from http://ai.stanford.edu/~acoates/stl10/"):
        loaded = STL10(root, split=split if name == "stl10" else "train+unlabeled", download=True)
    images = loaded.data.transpose(0, 2, 3, 1)  # (N, 96, 96, 3)
    return ArraySource(name, images, *((loaded.labels, loaded.classes) if name == "stl10" else ()))


def _imagenette(split: str, root: Path) -> Source:
    from torchvision.datasets import Imagenette

    folder = root / "imagenette2-320"
    with _downloading("imagenette", root, "imagenette2-320 of https://github.com/fastai/imagenette, unpacked,"):
        if not folder.is_dir():
            # Unpacked elsewhere first: torchvision takes any folder of this name for the whole data set.
            with tempfile.TemporaryDirectory(prefix=".imagenette", dir=root) as unpacked:
                Imagenette(unpacked, size="320px", download=True)
                os.replace(Path(unpacked) / folder.name, folder)
    kind = {"train": "train", "test": "val"}[split]
    keys = list_folder(folder / kind)
    loaded = Imagenette(root, kind, size="320px")  # knows what the folders' WordNet numbers mean
    words = {number: names[0] for number, names in zip(loaded.wnids, loaded.classes, strict=True)}
    return FileSource("imagenette", folder / kind, keys, [words[key.partition("/")[0]] for key in keys])


@contextlib.contextmanager
def _downloading(name: str, root: Path, what: str) -> Iterator[None]:
    """One process at a time; a download that fails becomes a DataError that says how to do without it."""
    from filelock import FileLock  # torch depends on it

    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            yield
    except (OSError, RuntimeError, EOFError, zlib.error, tarfile.TarError) as error:  # OSError: network's too
        raise DataError(
            f"{name} is not in {root} and cannot be downloaded ({error}); without the internet, put {what} into "
            "that folder, or name another one as data root"
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
