"""Read every image of a source once, before a long job does, and list those that it would stumble over."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from barlowtwins.config import CheckConfig
from barlowtwins.core.device import resolve_workers
from barlowtwins.core.progress import Progress
from barlowtwins.data.batches import ranges, read_ahead
from barlowtwins.data.images import Unreadable
from barlowtwins.data.open import Source, open_source

__all__ = ["CheckResult", "check"]

_AT_A_TIME = 64  # images between two signs of life


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
    """Images of each class, readable or not, by class name; empty if the source is unlabelled."""
    width: tuple[int, int] | None
    """Least and greatest width in pixels, of upright images; None if none can be read."""
    height: tuple[int, int] | None
    """Least and greatest height in pixels."""
    channels: int
    """1 for grey data sets, else 3: every file is read as RGB."""
    seconds: float
    """Time it took."""


def check(config: CheckConfig) -> CheckResult:
    """Read every image of `config.data` once, named data sets' train split, and say which cannot be read and why.

    Raises:
        DataError: the data cannot be opened, or a process that reads images died or hangs.
    """
    started = time.monotonic()
    source = open_source(config.data, data_root=config.data_root)
    n = len(source)
    workers = resolve_workers(config.workers)
    reader, plan = _SizeReader(source), ranges(0, n, _AT_A_TIME)

    bad: list[Unreadable] = []
    widths, heights = set[int](), set[int]()
    with (
        Progress(n, desc="check") as progress,
        read_ahead(reader, plan, workers=min(workers, max(0, len(plan) - 1))) as batches,
    ):
        for batch in batches:
            for found in batch:
                if isinstance(found, Unreadable):
                    bad.append(found)
                else:
                    widths.add(found[0])
                    heights.add(found[1])
            progress.update(len(batch), bad=len(bad))

    counts = [] if source.labels is None else np.bincount(source.labels, minlength=len(source.classes)).tolist()
    return CheckResult(
        n=n,
        readable=n - len(bad),
        bad=bad,
        class_counts=dict(zip(source.classes, counts, strict=True)),
        width=(min(widths), max(widths)) if widths else None,
        height=(min(heights), max(heights)) if heights else None,
        channels=source.channels,
        seconds=time.monotonic() - started,
    )


class _SizeReader:
    """Reads a range of images, in whichever process it is called, and keeps no more of each than its size."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, rows: range) -> list[tuple[int, int] | Unreadable]:
        images = (self.source.read(row) for row in rows)
        return [image if isinstance(image, Unreadable) else image.size for image in images]
