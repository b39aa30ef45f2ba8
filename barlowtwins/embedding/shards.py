"""The unit of embedding: shard i of n of a sorted source becomes one atomic file.

Shards do not know of each other, so any process on any machine may make any of them, twice if it happens; who died
is simply asked again for the shards that are not there.
"""

# N images in the source, n of them in a shard, D features

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from barlowtwins.core.errors import OutputError
from barlowtwins.core.files import atomic_write
from barlowtwins.core.readers import UnsoundFile, read_arrays
from barlowtwins.data.batches import open_batches, ranges
from barlowtwins.data.images import Unreadable
from barlowtwins.data.sources import Source
from barlowtwins.embedding.embedder import Embedder, FeatureArray, unit_length

__all__ = ["SHARD_ROWS", "Shard", "embed_shards", "plan_shards", "read_failures", "read_features"]

PARTS = ("features", "failed", "why")
SHARD_ROWS = 2048  # a stop loses less: two minutes at 14 images a second; and a million images are 500 files of 16 MB


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of a source."""

    index: int
    count: int
    """Shards in all."""
    rows: range

    def path(self, folder: Path) -> Path:
        """Its file in `folder`, such as 00012-of-00123.npz."""
        return folder / f"{self.index:05}-of-{self.count:05}.npz"


def plan_shards(rows: int, size: int = SHARD_ROWS) -> list[Shard]:
    """Cut `rows` rows into shards of `size`, the last one shorter if need be."""
    cuts = ranges(0, rows, size)
    return [Shard(index, len(cuts), cut) for index, cut in enumerate(cuts)]


def embed_shards(
    source: Source,
    embedder: Embedder,
    shards: Sequence[Shard],
    folder: Path,
    *,
    batch_size: int = 64,
    normalize: bool = False,
    workers: int = 0,
    after_batch: Callable[[int, int], object] = lambda rows, failed: None,
) -> None:
    """Make the files of `shards` that are not in `folder` yet, one by one, reading ahead across their borders.

    Batches never span shards, so a shard's bytes do not depend on which others were made in the same run.

    Args:
        source: the images.
        embedder: what embeds them.
        shards: those to make, from `plan_shards(len(source))`.
        folder: where their files go.
        batch_size: images per forward pass.
        normalize: scale each row to unit length.
        workers: processes that read images; 0: read in this one.
        after_batch: called with the numbers of rows just done and of those of them that failed; what it raises ends
            the work, and whole shards stay.

    Raises:
        OutputError: a file cannot be written, such as for a full disk. Whole shards stay.
        DataError: a process that reads images died or hangs.
        TrainingError: the device is out of memory.
    """
    missing = [shard for shard in shards if not shard.path(folder).exists()]
    plans = [ranges(shard.rows.start, shard.rows.stop, batch_size) for shard in missing]
    pin = embedder.device.type == "cuda"
    every = list(itertools.chain.from_iterable(plans))
    with open_batches(source, embedder.preprocessing, every, workers=workers, pin_memory=pin) as batches:
        for shard, plan in zip(missing, plans, strict=True):
            features = np.empty((len(shard.rows), embedder.dim), dtype=np.float32)
            failed: dict[int, Unreadable] = {}
            for batch in itertools.islice(batches, len(plan)):
                rows, bad = embedder.embed(batch)
                place = batch.start - shard.rows.start
                features[place : place + len(rows)] = unit_length(rows) if normalize else rows
                failed |= bad
                after_batch(len(rows), len(bad))
            _write(shard.path(folder), features, failed)


def _write(path: Path, features: FeatureArray, failed: dict[int, Unreadable]) -> None:
    """Features (n, D), and the rows of the source that failed with the reasons; the zip format adds checksums."""
    with atomic_write(path) as file:
        np.savez(
            file,
            features=features,
            failed=np.array(list(failed), dtype=np.int64),
            why=np.array([bad.why for bad in failed.values()], dtype=np.str_),
        )


def read_features(shard: Shard, folder: Path) -> FeatureArray:
    """The features (n, D) of a shard.

    Raises:
        OutputError: its file is missing or damaged; a damaged one is removed, so that the next run makes it again.
    """
    return _read(shard, folder, "features")[0]


def read_failures(shard: Shard, folder: Path) -> dict[int, str]:
    """The rows of the source that have no features, with the reasons. Raises as `read_features` does."""
    failed, why = _read(shard, folder, "failed", "why")
    return dict(zip(failed.tolist(), why.tolist(), strict=True))


def _read(shard: Shard, folder: Path, *names: str) -> list[np.ndarray]:
    path = shard.path(folder)
    try:
        arrays = read_arrays(path, PARTS)
        _check_parts(arrays, shard)
    except FileNotFoundError:
        raise OutputError(f"{path} is missing; run the same command again to make it") from None
    except (UnsoundFile, OSError) as error:
        raise _damaged(path, str(error)) from error
    return [arrays[name] for name in names]


def _check_parts(arrays: dict[str, np.ndarray], shard: Shard) -> None:
    """Types and shapes as `_write` has them."""
    features, failed, why = (arrays[name] for name in PARTS)
    if features.dtype != np.float32 or features.ndim != 2 or len(features) != len(shard.rows):
        raise UnsoundFile(f"{features.dtype} {features.shape}, not {len(shard.rows)} rows")
    if failed.dtype != np.int64 or why.dtype.kind != "U" or failed.ndim != 1 or failed.shape != why.shape:
        raise UnsoundFile("its list of failures is not one")
    if len(failed) and not (failed.min() >= shard.rows.start and failed.max() < shard.rows.stop):
        raise UnsoundFile("its list of failures names rows of others")


def _damaged(path: Path, why: str) -> OutputError:
    path.unlink(missing_ok=True)
    return OutputError(f"{path} was damaged ({why}) and is removed; run the same command to make it again")
