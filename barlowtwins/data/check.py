"""Read every image of a source once, before a long job does: what is used and how, what is not, what looks wrong."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from barlowtwins.config import CheckConfig
from barlowtwins.core.device import resolve_workers
from barlowtwins.core.progress import Progress
from barlowtwins.data.batches import ranges, read_ahead
from barlowtwins.data.images import Unreadable, look
from barlowtwins.data.open import Source, open_source

__all__ = ["CheckResult", "check"]

_AT_A_TIME = 64  # images between two signs of life
MOST_SIZES = 10_000  # different sizes that are counted one by one
MOST_LISTED = 20  # entries of a list in the result
THUMBNAIL = 256  # pixels on the long side at most
FEW = 3  # images of a class, below which it is hardly one


@dataclass(frozen=True)
class CheckResult:
    """What `check` found."""

    n: int
    """Images in the source."""
    readable: int
    """Those of them that can be read."""
    bad: list[Unreadable]
    """The others, in the source's order."""
    class_counts: dict[str, int]
    """Images of each class, readable or not, by class name; empty if the source is unlabeled."""
    width: tuple[int, int] | None
    """Least and greatest width in pixels, of upright images; None if none can be read."""
    height: tuple[int, int] | None
    """Least and greatest height in pixels."""
    channels: int
    """Those that training takes by default: 1 for grey images, 3 for others, or those of the arrays."""
    seconds: float
    """Time it took."""
    why_channels: str = ""
    """Why so many channels."""
    formats: dict[str, int] = field(default_factory=dict)
    """Images by file format; of images that are in no file, "array"."""
    modes: dict[str, int] = field(default_factory=dict)
    """Images by what a pixel is in the file, such as RGB, L (grey), I;16 (16-bit grey)."""
    bits: dict[str, int] = field(default_factory=dict)
    """Images by bits a channel in the file."""
    sizes: dict[str, int] = field(default_factory=dict)
    """The most frequent sizes, "640 x 480", and how many images have them."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Files that are there and not taken, by reason."""
    notes: tuple[str, ...] = ()
    """What was decided on opening the data."""
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    """The first pairs of files with the same bytes."""
    duplicate_count: int = 0
    """Images whose bytes an earlier one has, too."""
    in_val: int | None = None
    """Images of `val` whose bytes are also in the data; None without `val`."""
    suspicious: list[str] = field(default_factory=list)
    """What looks wrong, a sentence each."""

    @property
    def exit_code(self) -> int:
        """Of the command: 1 if nothing can be used."""
        return 0 if self.readable else 1


class _Look(NamedTuple):
    """What is kept of one image."""

    size: tuple[int, int]
    grey: bool
    format: str
    mode: str
    bits: int
    top: int | None
    digest: int


def check(config: CheckConfig) -> CheckResult:
    """Read every image of `config.data` once, named data sets' train split, and say what was found.

    Memory: eight bytes an image, and one line for each that cannot be read.

    Raises:
        DataError: the data cannot be opened, or a process that reads images died or hangs.
    """
    started = time.monotonic()
    source = open_source(config.data, data_root=config.data_root)
    workers = resolve_workers(config.workers)
    tally = _Tally(source)
    plan = ranges(0, len(source), _AT_A_TIME)
    with (
        Progress(len(source), desc="check") as progress,
        read_ahead(_Looker(source), plan, workers=min(workers, max(0, len(plan) - 1))) as batches,
    ):
        for batch in batches:
            for found in batch:
                tally.add(found)
            progress.update(len(batch), bad=len(tally.bad))
    in_val, suspicious = _compare(config, source, tally)
    return tally.result(in_val, suspicious, time.monotonic() - started)


class _Looker:
    """Reads a range of images, in whichever process it is called, and keeps no more of each than a `_Look`."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, rows: range) -> list[_Look | Unreadable]:
        return [self._look(row) for row in rows]

    def _look(self, row: int) -> _Look | Unreadable:
        image = self.source.read(row)
        if isinstance(image, Unreadable):
            return image
        pixels = np.asarray(image)  # (H, W) or (H, W, C)
        size = image.size if isinstance(image, Image.Image) else (pixels.shape[1], pixels.shape[0])
        grey = pixels.ndim == 2 or (pixels.shape[2] == 3 and bool((pixels == pixels[..., :1]).all()))
        data = self.source.content(row)
        header = None if data is None else look(data)
        digest = _digest(pixels.tobytes() if data is None else data)
        if header is None:
            return _Look(
                size, grey, "array", "L" if pixels.ndim == 2 else f"{pixels.shape[2]} channels", 8, None, digest
            )
        return _Look(size, grey, header.format, header.mode, header.bits, header.top, digest)


class _Tally:
    """Counts of what was looked at."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.bad: list[Unreadable] = []
        self.seen = self.grey = self.wide = 0
        self.top = 0
        self.widths, self.heights = [1 << 40, 0], [1 << 40, 0]
        self.formats, self.modes, self.bits = Counter[str](), Counter[str](), Counter[str]()
        self.sizes = Counter[tuple[int, int]]()
        self.digests = np.zeros(len(source), np.uint64)  # (N,) 0: not read

    def add(self, found: _Look | Unreadable) -> None:
        row = self.seen + len(self.bad)
        if isinstance(found, Unreadable):
            self.bad.append(found)
            return
        self.seen += 1
        self.grey += found.grey
        for bounds, value in zip((self.widths, self.heights), found.size, strict=True):
            bounds[:] = min(bounds[0], value), max(bounds[1], value)
        self.formats[found.format] += 1
        self.modes[found.mode] += 1
        self.bits[str(found.bits)] += 1
        size = (found.size[0], found.size[1])  # torch makes lists of tuples on the way from a worker
        if size in self.sizes or len(self.sizes) < MOST_SIZES:
            self.sizes[size] += 1
        if found.top is not None:
            self.wide += 1
            self.top = max(self.top, found.top)
        self.digests[row] = found.digest

    def counts(self) -> dict[str, int]:
        labels, classes = self.source.labels, self.source.classes
        counts = [] if labels is None else np.bincount(labels, minlength=len(classes)).tolist()
        return dict(zip(classes, counts, strict=True))

    def duplicates(self) -> npt.NDArray[np.int64]:
        """(n, 2) rows: an image, and the first that has the same bytes."""
        order = np.argsort(self.digests, kind="stable")
        ordered = self.digests[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        first = order[starts[np.searchsorted(starts, np.arange(len(order)), side="right") - 1]]
        again = np.flatnonzero((first != order) & (ordered != 0))
        pairs = np.stack([order[again], first[again]], 1)
        return pairs[np.argsort(pairs[:, 0])]

    def channels(self) -> tuple[int, str]:
        """Channels that training takes by default, and why."""
        if self.source.channels != 3:
            return self.source.channels, "the data are arrays of so many"
        if self.seen and self.grey == self.seen and self.source.size is None:
            return 1, f"all {self.seen} images are grey; --channels 3 trains in color"
        return 3, f"{self.seen - self.grey} of {self.seen} images have color"

    def result(self, in_val: int | None, suspicious: list[str], seconds: float) -> CheckResult:
        source = self.source
        pairs = self.duplicates()
        channels, why = self.channels()
        return CheckResult(
            n=len(source),
            readable=self.seen,
            bad=self.bad,
            class_counts=self.counts(),
            width=(self.widths[0], self.widths[1]) if self.seen else None,
            height=(self.heights[0], self.heights[1]) if self.seen else None,
            channels=channels,
            seconds=seconds,
            why_channels=why,
            formats=dict(self.formats.most_common()),
            modes=dict(self.modes.most_common()),
            bits=dict(self.bits.most_common()),
            sizes={f"{w} x {h}": count for (w, h), count in self.sizes.most_common(MOST_LISTED)},
            left_out=dict(source.left_out),
            notes=tuple(source.notes),
            duplicates=[(source.key(a), source.key(b)) for a, b in pairs[:MOST_LISTED].tolist()],
            duplicate_count=len(pairs),
            in_val=in_val,
            suspicious=suspicious,
        )


def _compare(config: CheckConfig, source: Source, tally: _Tally) -> tuple[int | None, list[str]]:
    """Images of `val` that are in the data, and everything that looks wrong."""
    said = _oddities(tally)
    if config.val is None:
        return None, said
    val = open_source(config.val, split="test", data_root=config.data_root)
    known = np.sort(tally.digests)
    inside = 0
    for row in range(len(val)):
        data = val.content(row)
        image = val.read(row) if data is None else None
        if data is None and (image is None or isinstance(image, Unreadable)):
            continue
        digest = np.uint64(_digest(np.asarray(image).tobytes() if data is None else data))
        place = int(np.searchsorted(known, digest))
        inside += place < len(known) and bool(known[place] == digest)
    if inside:
        said.append(f"{inside:,} of {len(val):,} images of {val.name} are also in {source.name}, byte for byte")
    if foreign := sorted(set(val.classes) - set(source.classes)):
        said.append(f"{len(foreign)} classes of {val.name} are not in {source.name}: {', '.join(foreign[:5])}")
    return inside, said


def _oddities(tally: _Tally) -> list[str]:
    """What looks wrong with the data themselves, a sentence each."""
    said = []
    if tally.bad:
        said.append(f"{len(tally.bad):,} of {len(tally.source):,} images cannot be read")
    if tally.wide and tally.top < 4096:
        bits = max(1, tally.top.bit_length())
        said.append(
            f"{tally.wide:,} images of 16 bits, none of which has a value above {tally.top}: {bits} bits of them are "
            f"used, and they will look black; channels:0-{2**bits - 1}:FOLDER scales them"
        )
    if len(tally.bits) > 1:
        depths = ", ".join(f"{count:,} of {bits}" for bits, count in tally.bits.most_common())
        said.append(f"files of several depths: {depths} bits a channel")
    if 0 < tally.grey < tally.seen:
        said.append(f"{tally.grey:,} grey images among {tally.seen - tally.grey:,} of color")
    (size, count), *_ = tally.sizes.most_common(1) or [((0, 0), 0)]
    if (
        max(size) <= THUMBNAIL
        and 5 * count >= tally.seen
        and max(tally.widths[1], tally.heights[1]) >= 4 * max(size) > 0
    ):
        said.append(f"{count:,} images are {size[0]} x {size[1]} pixels, others far larger: are those thumbnails?")
    counts = {name: count for name, count in tally.counts().items() if count < FEW}
    if counts:
        few = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:5])
        said.append(f"{len(counts):,} classes have fewer than {FEW} images: {few}")
    if pairs := len(tally.duplicates()):
        said.append(f"{pairs:,} images have the same bytes as an earlier one")
    return said


def _digest(data: bytes) -> int:
    """Eight bytes of SHA-256, never 0."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little") or 1
