"""RUN/snapshots/: what the network looked like at the start and now, small enough to keep and to draw.

step-00000000.npz is the start, the newest one is now; those between are removed. Arrays only, so that nothing in a file
is executed.
"""

# Q query images, K neighbours of each, P pairs of views, s side in pixels, d features of a block of C

from __future__ import annotations

import contextlib
import dataclasses
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from barlowtwins.core.files import atomic_write

__all__ = ["Snapshot", "list_snapshots", "load_snapshot", "save_snapshot"]

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Snapshot:
    """One look at the network; keys and labels are text as it stands in the data."""

    step: int
    epoch: int
    images: int
    """Pairs of views behind `correlation`, and images behind `singular_values`."""
    width: int
    """D of the projector; `correlation` is a block of D x D."""
    correlation: npt.NDArray[np.float16]
    """(d, d) of the first features, d <= 256."""
    singular_values: npt.NDArray[np.float32]
    """Of the backbone's features, greatest first."""
    pairs: Pixels
    """(P, 2, s, s, 3): two views of each of P images, as the network saw them in this epoch."""
    pair_keys: Sequence[str]
    """P of them."""
    queries: Pixels
    """(Q, s, s, 3)"""
    query_keys: Sequence[str]
    query_labels: Sequence[str]
    """Empty where there are none."""
    held_out: bool
    """Whether training never sees the queries; else they are training images, left out of the bank alone."""
    neighbours: Pixels
    """(Q, K, s, s, 3), nearest first."""
    neighbour_keys: Sequence[Sequence[str]]
    neighbour_labels: Sequence[Sequence[str]]
    similarity: npt.NDArray[np.float32]
    """(Q, K) cosine."""
    unreadable: Sequence[str]
    """Images that could not be read so far; at most a few hundred."""
    unreadable_count: int


def save_snapshot(folder: Path, snapshot: Snapshot) -> Path:
    """Write a snapshot under its step, and remove those between the first and it.

    Raises:
        OutputError: it cannot be written.
    """
    path = folder / f"step-{snapshot.step:08d}.npz"
    arrays: dict[str, Any] = {}
    for field in dataclasses.fields(snapshot):
        value = getattr(snapshot, field.name)
        arrays[field.name] = value if isinstance(value, np.ndarray) else _as_array(value)
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)
    for other in list_snapshots(folder)[1:]:
        if other != path:
            with contextlib.suppress(OSError):
                other.unlink()
    return path


def _as_array(value: Any) -> npt.NDArray[Any]:
    """Numbers as they are; text with its surrogates (bytes of file names that are no UTF-8) spelt out."""
    if isinstance(value, (bool, int)):
        return np.asarray(value)
    flat = [_as_array(item) if isinstance(item, (list, tuple)) else _spelt(item) for item in value]
    return np.asarray(flat, dtype=np.str_) if flat else np.empty(0, dtype="<U1")


def _spelt(text: str) -> str:
    # numpy strips trailing NULs from text; no file name has one
    return text.encode("utf-8", "backslashreplace").decode()


def list_snapshots(folder: Path) -> list[Path]:
    """Snapshots in a folder, oldest step first; none if there is no such folder."""
    return sorted(folder.glob("step-*.npz"))


def load_snapshot(path: Path) -> Snapshot | None:
    """Read a snapshot; None if the file is none, or is damaged: a report can do without."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            values = {field.name: arrays[field.name] for field in dataclasses.fields(Snapshot)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    for name, value in values.items():
        if value.ndim == 0:
            values[name] = value.item()
        elif value.dtype.kind == "U":
            values[name] = value.tolist()
    return Snapshot(**values)
