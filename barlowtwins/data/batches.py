"""Batches of a source, in order, read by worker processes; a worker that dies or hangs is told, not waited for."""

# n images in a batch, C channels, S side in pixels

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from barlowtwins.core.errors import ConfigError, DataError
from barlowtwins.data.images import Unreadable
from barlowtwins.data.preprocess import ImageLike, Preprocessing

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["STALL", "Batch", "Readable", "Reader", "open_batches", "ranges", "read_ahead"]

STALL = 300.0  # seconds without one batch after which a worker counts as hanging: a slow network drive may take a while


Plan = TypeVar("Plan", contravariant=True)
Made = TypeVar("Made", covariant=True)


class Reader(Protocol[Plan, Made]):
    """What makes a batch of an entry of a plan, such as a `torch.utils.data.Dataset`."""

    def __getitem__(self, entry: Plan, /) -> Made: ...


class Readable(Protocol):
    """What is read here: a `barlowtwins.data.open.Source`, or anything as simple as a list of images."""

    def __len__(self) -> int: ...
    def key(self, index: int, /) -> str: ...
    def read(self, index: int, /) -> Image.Image | ImageLike | Unreadable: ...


class Batch(NamedTuple):
    """Consecutive rows of a source, ready for `Preprocessing.finish`."""

    start: int
    """Row of the first image."""
    images: torch.Tensor
    """As `Preprocessing.prepare` makes them, (n, S, S, C) uint8 of pictures; zeros where one could not be read."""
    failed: dict[int, Unreadable]
    """By row of the source: the images that could not be read."""


def ranges(start: int, stop: int, size: int) -> list[range]:
    """Cut rows start..stop into consecutive ranges of `size`, the last one shorter if need be.

    Raises:
        ConfigError: `size` is less than 1.
    """
    if size < 1:
        raise ConfigError(f"the batch size is {size}; it must be 1 or more")
    return [range(first, min(first + size, stop)) for first in range(start, stop, size)]


@contextlib.contextmanager
def open_batches(
    source: Readable,
    preprocessing: Preprocessing,
    plan: Iterable[range],
    *,
    workers: int = 0,
    pin_memory: bool = False,
    stall: float = STALL,
) -> Iterator[Iterator[Batch]]:
    """Start the readers; inside the `with` block iterate over the batches of `plan`, in its order.

        with open_batches(source, preprocessing, ranges(0, len(source), 64), workers=4) as batches:
            for batch in batches:
                ...

    Args:
        source: what to read; picklable if there are workers.
        preprocessing: what prepares an image.
        plan: the rows of each batch.
        workers: processes that read ahead; 0: read here, one batch after the other.
        pin_memory: copy batches to page-locked memory, from which a GPU fetches them faster.
        stall: seconds without a batch after which the workers count as hanging.

    Raises:
        DataError: a worker died or hangs. A death may come to light anywhere inside the block, so the whole block is
            watched.
    """
    rows = _Rows(source, preprocessing)
    with read_ahead(rows, plan, workers=workers, pin_memory=pin_memory, stall=stall) as batches:
        yield batches


@contextlib.contextmanager
def read_ahead(
    reader: Reader[Plan, Made],
    plan: Iterable[Plan],
    *,
    workers: int = 0,
    pin_memory: bool = False,
    stall: float = STALL,
) -> Iterator[Iterator[Made]]:
    """Make `reader[entry]` for each entry of `plan`, in its order, in worker processes that run ahead.

    Args and Raises: as `open_batches`; `reader` and the entries must be picklable if there are workers.
    """
    if workers == 0:
        yield map(reader.__getitem__, plan)
        return
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # were asked for
            warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)  # readers share no lock
            loader: DataLoader[Made] = DataLoader(
                reader,  # type: ignore[arg-type]
                batch_size=None,  # one entry of the plan is one batch already
                sampler=plan,
                num_workers=workers,
                worker_init_fn=_start_worker,
                pin_memory=pin_memory,
                timeout=stall,
                generator=torch.Generator(),  # else torch's global one would be advanced
            )
            batches = iter(loader)
        try:
            yield _watched(batches)
        finally:
            _end(batches)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader"):
            raise
        raise DataError(_explain(str(error), stall)) from error


def _watched(batches: Iterator[Made]) -> Iterator[Made]:
    try:
        yield from batches
    except DataError as error:  # of a reader; torch puts the worker's traceback before it
        raise DataError(str(error).rstrip().rpartition(f"{DataError.__name__}: ")[2]) from None
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # its last batches cannot be had from a dead worker
        if str(error).startswith("Caught"):  # raised by the reader itself
            raise
        raise RuntimeError(f"DataLoader worker is gone: {error}") from error


def _end(batches: Iterator[object]) -> None:
    """End the workers now. Left to the garbage collector, which a traceback keeps waiting, the death of one would raise
    RuntimeError in whatever the main process does by then."""
    with contextlib.suppress(RuntimeError):  # that very one, while they end
        batches._shutdown_workers()  # type: ignore[attr-defined]
    for worker in getattr(batches, "_workers", ()):
        if worker.is_alive():  # it hangs, and would keep the main process from ending
            worker.kill()


class _Rows(Dataset[Batch]):
    """Reads a range of rows as one batch, in whichever process it is called."""

    def __init__(self, source: Readable, preprocessing: Preprocessing) -> None:
        self.source, self.preprocessing = source, preprocessing

    def __getitem__(self, rows: range) -> Batch:
        images = self.preprocessing.blank(len(rows))
        failed = {}
        for place, row in enumerate(rows):
            image = self.source.read(row)
            if isinstance(image, Unreadable):
                failed[row] = image
            else:
                images[place] = self.preprocessing.prepare(image)
        return Batch(rows.start, images, failed)


def _start_worker(worker: int) -> None:
    """Leave stop signals to the main process, which finishes its batch and then ends its workers.

    A terminal and some schedulers send them to the whole group of processes.
    """
    for name in ("SIGINT", "SIGUSR1", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _explain(error: str, stall: float) -> str:
    if "timed out" in error:
        return (
            f"no image arrived for {stall:.0f} s: the processes that read them hang. Does the file system answer? "
            "Use --workers 0 to read in the main process"
        )
    guard = "; a script needs `if __name__ == '__main__':`" if multiprocessing.get_start_method() != "fork" else ""
    return (
        f"a process that reads images died ({' '.join(error.split())}); often memory or /dev/shm is too small"
        f"{guard}. Use fewer --workers, or --workers 0 to read in the main process"
    )
