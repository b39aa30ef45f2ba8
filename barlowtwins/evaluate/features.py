"""Extract features once: a stopped run resumes, and processes share the work."""

# N images, D features, W processes

from __future__ import annotations

from pathlib import Path

import numpy as np

from barlowtwins.core.distributed import World
from barlowtwins.core.errors import ConfigError, DataError, StoppedEarly
from barlowtwins.core.progress import Progress
from barlowtwins.core.signals import StopSignals
from barlowtwins.data.sources import Source
from barlowtwins.embedding.embedder import Embedder, FeatureArray, extract
from barlowtwins.embedding.shards import SHARD_ROWS, Shard, embed_shards, plan_shards, read_features

__all__ = ["extract_features", "make_shards"]


def extract_features(
    source: Source, embedder: Embedder, folder: Path | None, *, world: World, batch_size: int = 64, workers: int = 0
) -> FeatureArray | None:
    """Embed a source, shared among the processes.

    Args:
        source: N images.
        embedder: what embeds them.
        folder: where features are kept shard by shard, for the same call to resume from; None keeps nothing.
        world: the processes that share the work, by way of `folder`.
        batch_size: images per forward pass.
        workers: processes that read images, for each of the world's.

    Returns:
        (N, D) float32 on the process that writes, with NaN where an image could not be read; None on the others.

    Raises:
        ConfigError: several processes and no folder.
        StoppedEarly: a stop signal; the same call resumes, if there is a folder.
        OutputError, DataError, TrainingError: as `embed_shards` raises them.
    """
    if folder is None:
        if world.size > 1:
            raise ConfigError(f"{world.size} processes share features by way of a folder; give one with --out")
        return extract(source, embedder, batch_size=batch_size, workers=workers, progress=True)[0]

    shards = make_shards(source, embedder, folder, world=world, batch_size=batch_size, workers=workers)
    return np.concatenate([read_features(shard, folder) for shard in shards]) if world.writes else None


def make_shards(
    source: Source,
    embedder: Embedder,
    folder: Path,
    *,
    world: World,
    batch_size: int = 64,
    workers: int = 0,
    shard_rows: int = SHARD_ROWS,
) -> list[Shard]:
    """Embed a source into shards on disk, shared among the processes; existing shards are kept.

    Args and Raises: as `extract_features`; `shard_rows` are saved at once.

    Returns:
        All shards, whose files in `folder` are there when this returns.
    """
    shards = plan_shards(len(source), shard_rows)
    mine = shards[world.rank :: world.size]
    done = sum(len(shard.rows) for shard in mine if shard.path(folder).exists())
    total = sum(len(shard.rows) for shard in mine)
    with StopSignals() as stop, Progress(total, desc="embed", initial=done, enabled=world.writes or False) as bar:

        def stopped() -> StoppedEarly:
            return StoppedEarly(f"{stop.name} after {bar.done:,} of {total:,} images; the same command resumes")

        failures = 0

        def after_batch(rows: int, failed: int) -> None:
            nonlocal failures
            failures += failed
            bar.update(rows, **({"failed": failures} if failures else {}))
            if stop.requested:
                raise stopped()

        try:
            embed_shards(
                source, embedder, mine, folder, batch_size=batch_size, workers=workers, after_batch=after_batch
            )
        except DataError:
            if stop.requested:  # schedulers signal the reading processes as well, which then die
                raise stopped() from None
            raise
    world.wait()
    return shards
