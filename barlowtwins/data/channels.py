"""Images of any number of channels and any depth: multispectral arrays and TIFF, 16-bit medical greyscale.

    channels:FOLDER              all .npy, TIFF and other images in it, as arrays
    channels:LOW-HIGH:FOLDER     with a stated range of values: channels:0-4095:scans for 12 bits
    channels_first:FOLDER        arrays in .npy files are (C, H, W), or (N, C, H, W) in one; with or without a range
    channels_last:FOLDER         ... are (H, W, C), or (N, H, W, C) in one
    FILE.npy                     one array of N images, (N, H, W) or (N, H, W, C)

Which axis of an array holds the channels is read from its shape where the shape tells: the channels are fewer than the
rows and than the columns. Any other array is refused until one of the two prefixes says.

All images have one size and number of channels, and lie in memory with 8 bits a channel. Other depths are scaled to
that, each channel by the range that is stated, else by that of the data: their 0.1st and 99.9th percentiles, which are
printed, so that other images of the kind can be scaled alike.
"""

# N images, H x W height and width, C channels

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from barlowtwins.core.errors import DataError
from barlowtwins.core.progress import say
from barlowtwins.data.images import Unreadable, read_array
from barlowtwins.data.listing import left_out_because, top_folders
from barlowtwins.data.sources import Source, number_classes

__all__ = ["PREFIX", "PREFIXES", "ChannelSource", "open_channels", "scale_to_levels"]

PREFIX = "channels:"
FIRST, LAST = "channels_first:", "channels_last:"
PREFIXES = (PREFIX, FIRST, LAST)
RANGE = re.compile(r"(-?[\d.]+(?:e[+-]?\d+)?)-(-?[\d.]+(?:e[+-]?\d+)?):(.+)")
TAILS = (0.1, 99.9)  # percentiles: a few hot or dead pixels must not decide
LOOKED_AT = 1_000_000  # values of a channel at most, of which percentiles are taken


class ChannelSource(Source):
    """Images of one size in memory, with any number of channels.

    Args:
        name: what the source is called.
        images: (N, H, W, C) uint8.
        keys: N names.
        labels: a class name for each, or None.
        root: the folder that the keys are relative to, if they are files.
    """

    def __init__(
        self,
        name: str,
        images: npt.NDArray[np.uint8],
        keys: Sequence[str],
        labels: Sequence[str] | None = None,
        root: Path | None = None,
    ) -> None:
        self.name, self.images, self.root, self._keys = name, images, root, keys
        self.size, self.channels = (images.shape[1], images.shape[2]), images.shape[3]
        self.classes, self.labels = number_classes(labels)

    def __len__(self) -> int:
        return len(self.images)

    def key(self, index: int) -> str:
        return self._keys[index]

    def path(self, index: int) -> Path | None:
        return None if self.root is None else self.root / self._keys[index]

    def read(self, index: int) -> Image.Image | npt.NDArray[np.uint8]:  # type: ignore[override]  # as `Readable` has it
        """A PIL image of 1 or 3 channels, else the array (H, W, C)."""
        image = self.images[index]
        if self.channels in (1, 3):
            return Image.fromarray(image[..., 0] if self.channels == 1 else image)
        return image

    def array(self) -> npt.NDArray[np.uint8]:
        return self.images[..., 0] if self.channels == 1 else self.images

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((list(self._keys), self.images.shape, self.classes)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()


def open_channels(data: str) -> ChannelSource:
    """Open `data`, by the table at the top of this module; a folder's sub-folders are its classes, as ever.

    Raises:
        DataError: no such folder or file, nothing in it, an image that cannot be read, or images that differ in shape.
    """
    prefix = next((prefix for prefix in PREFIXES if data.startswith(prefix)), PREFIX)
    given, axis = data.removeprefix(prefix), {FIRST: "first", LAST: "last"}.get(prefix, "")
    stated = RANGE.fullmatch(given)
    place = Path(stated[3] if stated else given)
    limits = (float(stated[1]), float(stated[2])) if stated else None
    if limits is not None and not limits[0] < limits[1]:
        raise DataError(f"{data} states values from {stated[1]} to {stated[2]}; put the lower one first")  # type: ignore[index]
    if place.is_dir():
        left_out: Counter[str] = Counter()
        keys = _list(place, left_out)
        levels = scale_to_levels(_stack(place, keys, axis), limits, data)
        source = ChannelSource(data, levels, keys, top_folders(keys), place)
        source.left_out = left_out
        return source
    images = read_array(place, many=True, axis=axis)
    if isinstance(images, Unreadable):
        raise DataError(
            f"cannot read {images.path}: {images.why}; give a folder, or an array (N, H, W, C) in a .npy file"
        )
    levels = scale_to_levels(images, limits, data)
    return ChannelSource(data, levels, [f"{place.name}/{row:06d}" for row in range(len(levels))])


def scale_to_levels(
    images: npt.NDArray[np.generic], limits: tuple[float, float] | None = None, name: str = "the images"
) -> npt.NDArray[np.uint8]:
    """Scale values to 0-255, channel by channel, rounded; beyond the range they are cut off, and NaN is the lowest.

    Args:
        images: (N, H, W, C) of any real type; uint8 is left as it is unless a range is stated.
        limits: the values that become 0 and 255, for every channel; their percentiles 0.1 and 99.9 unless told.
        name: of the data, for the message that states the range.

    Returns:
        (N, H, W, C) uint8.
    """
    if images.dtype == np.uint8 and limits is None:
        return np.asarray(images)
    channels = images.shape[3]
    levels = np.empty(images.shape, np.uint8)
    ranges = []
    for c in range(channels):
        values = images[..., c].reshape(-1)
        low, high = limits or _range_of(values[:: max(1, len(values) // LOOKED_AT)])
        ranges.append(f"{low:g}-{high:g}")
        span = high - low if high > low else 1.0
        for row, image in enumerate(images[..., c]):  # one by one: float64 takes eight times the memory
            part = np.nan_to_num((image.astype(np.float64) - low) / span, nan=0.0, posinf=1.0, neginf=0.0)
            levels[row, ..., c] = np.rint(part.clip(0, 1) * 255)
    if limits is None:
        shown = ", ".join(ranges[:8]) + (", ..." if channels > 8 else "")
        say(
            f"{name}: values {shown} become 0-255 (percentiles 0.1 to 99.9 of each channel); for one range in this and "
            f"other data of the kind write {PREFIX}LOW-HIGH:FOLDER"
        )
    return levels


def _range_of(values: npt.NDArray[np.generic]) -> tuple[float, float]:
    finite = values[np.isfinite(values)].astype(np.float64)
    low, high = np.percentile(finite, TAILS) if finite.size else (0.0, 0.0)
    return float(low), float(high)


def _list(folder: Path, left_out: Counter[str]) -> list[str]:
    """Arrays and images below the folder, sorted; what is left out is counted, as `list_folder` does."""
    keys = []
    for path in folder.rglob("*"):
        if path.is_dir():
            continue
        key = path.relative_to(folder).as_posix()
        array = key.lower().endswith(".npy")
        if why := left_out_because(f"{key}.png" if array else key):
            left_out[why] += 1
        else:
            keys.append(key)
    if not keys:
        raise DataError(f"no images and no arrays in {folder}; give a folder with .npy, TIFF or other image files")
    return sorted(keys)


def _stack(folder: Path, keys: list[str], axis: str) -> npt.NDArray[np.generic]:
    """(N, H, W, C) in the files' own type."""
    images = None
    for row, key in enumerate(keys):
        image = read_array(folder / key, axis=axis)
        if isinstance(image, Unreadable):
            raise DataError(f"cannot read {image.path}: {image.why}; remove it, or mend it")
        if images is None:
            images = np.empty((len(keys), *image.shape), image.dtype)
        if (image.shape, image.dtype) != (images.shape[1:], images.dtype):
            raise DataError(
                f"{folder / key} is {_words(image)}, {folder / keys[0]} is {_words(images[0])}; with {PREFIX} all must "
                "be alike, so cut or scale them first"
            )
        images[row] = image
    assert images is not None
    return images


def _words(image: npt.NDArray[np.generic]) -> str:
    return f"{' x '.join(map(str, image.shape))} of {image.dtype}"
