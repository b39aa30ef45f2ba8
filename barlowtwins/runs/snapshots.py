"""RUN/snapshots/: what the network looked like at the start and now, small enough to keep and to draw.

step-00000000.npz is the start, the newest one is now; those between are removed. Arrays only, so that nothing in a file
is executed.
"""

# Q query images, K neighbours of each, P pairs of views, s side in pixels, d features of a block of C

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from barlowtwins.core.files import atomic_write
from barlowtwins.core.readers import UnsoundFile, read_arrays, sound

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
        with sound():
            arrays = read_arrays(path, [field.name for field in dataclasses.fields(Snapshot)])
            _check_parts(arrays)
            return Snapshot(**{name: _as_value(array) for name, array in arrays.items()})
    except (UnsoundFile, OSError):
        return None


def _as_value(array: npt.NDArray[Any]) -> Any:
    return array.item() if array.ndim == 0 else array.tolist() if array.dtype.kind == "U" else array


def _check_parts(arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Types and shapes as they are written, so that whoever draws a snapshot may trust it."""
    d, p = len(arrays["correlation"]), len(arrays["pairs"])
    q, side = arrays["queries"].shape[:2] if arrays["queries"].ndim == 4 else (0, 0)
    k = arrays["neighbours"].shape[1] if arrays["neighbours"].ndim == 5 else 0
    drawn = q > 0  # a snapshot without queries has arrays of no shape in particular
    s = arrays["pairs"].shape[2] if arrays["pairs"].ndim == 5 else 0
    wanted: dict[str, tuple[str, tuple[int, ...] | None]] = {
        **dict.fromkeys(("step", "epoch", "images", "width", "unreadable_count"), ("iu", ())),
        "held_out": ("biu", ()),
        "correlation": ("f", (d, d)),
        "singular_values": ("f", (len(arrays["singular_values"]),)),
        "pairs": ("u", (p, 2, s, s, 3) if p else None),
        "pair_keys": ("U", (p,)),
        "queries": ("u", (q, side, side, 3) if drawn else None),
        **dict.fromkeys(("query_keys", "query_labels"), ("U", (q,) if drawn else None)),
        "neighbours": ("u", (q, k, side, side, 3) if drawn else None),
        **dict.fromkeys(("neighbour_keys", "neighbour_labels"), ("U", (q, k) if drawn and k else None)),
        "similarity": ("f", (q, k) if drawn else None),
        "unreadable": ("U", None),
    }
    for name, (kinds, shape) in wanted.items():
        array = arrays[name]
        if array.dtype.kind not in kinds or (shape is not None and array.shape != shape):
            raise UnsoundFile(f"its {name} is {array.dtype} {array.shape}")
    if any(not 0 <= int(arrays[name]) < 2**53 for name in ("step", "epoch", "images", "width", "unreadable_count")):
        raise UnsoundFile("its counts cannot be")
