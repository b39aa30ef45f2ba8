"""Embed a source into an EMB folder: shard after shard in constant memory, then one streaming join.

If the process is stopped or killed, the same command resumes from the existing shards, and the result has the same
bytes as that of an undisturbed run. Processes that share the work communicate through the folder only:

    one process          all shards, then the join
    torchrun, rank r     shards r, r + W, ...; rank 0 waits until all are there, and joins
    --part i/n           shards i - 1, i - 1 + n, ...; the part that finds all shards joins
    --launch ray         each shard a task of a Ray cluster, then the join
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from barlowtwins.config import EmbedConfig
from barlowtwins.config.rules import part_of
from barlowtwins.core.device import resolve_workers
from barlowtwins.core.distributed import open_world
from barlowtwins.core.errors import ConfigError, DataError, RunLockedError, StoppedEarly
from barlowtwins.core.printing import plural
from barlowtwins.core.progress import Progress, say
from barlowtwins.core.signals import StopSignals
from barlowtwins.data.describe import describe
from barlowtwins.data.open import has_split, open_source
from barlowtwins.embedding.embed_job import EmbedJob, runtime_of
from barlowtwins.embedding.embedder import extract, load_embedder
from barlowtwins.embedding.embeddings import INDEX, require_format
from barlowtwins.embedding.ray_embed import embed_on_ray, require_ray
from barlowtwins.embedding.shards import SHARD_ROWS, Shard, embed_shards

__all__ = ["EmbedResult", "embed", "extract"]

POLL = 0.2  # seconds between two looks for the shards of other processes


@dataclass(frozen=True)
class EmbedResult:
    """What `embed` made."""

    rows: int
    """Of the whole source, N."""
    dim: int
    """D."""
    failed: int
    """Rows that are NaN, since their image could not be read; of a part that is not joined yet, those of this run."""
    seconds: float
    """Of this run; those of one that was stopped before are not counted."""
    out: str
    joined: bool = True
    """Whether the folder is complete; if not, other parts are running, and the last of them joins."""
    missing: int = 0
    """Rows that are not made yet."""
    images_per_second: float = field(default=0.0, compare=False)
    """Of this run and process, without loading and joining; 0 if it embedded nothing."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)

    def summary(self) -> str:
        """Return a summary in words."""
        rate = f", {self.images_per_second:.1f} images/s" if self.images_per_second else ""
        took = f"({self.seconds:.1f} s{rate})"
        if not self.joined:
            return f"this part of {self.out} is done {took}; {self.missing:,} of {self.rows:,} rows are still missing"
        failed = f"; {self.failed:,} could not be read: NaN, and why in {INDEX}" if self.failed else ""
        return f"{plural(self.rows, 'row')} of {plural(self.dim, 'feature')} in {self.out} {took}{failed}"


def embed(config: EmbedConfig, *, shard_rows: int = SHARD_ROWS) -> EmbedResult:
    """Embed images into an EMB folder, or resume an earlier run; see the top of this module.

    Args:
        config: what to embed with what, and where to.
        shard_rows: rows per shard: at most as many are lost when the process is killed.

    Raises:
        OutputError: the folder holds a complete result, or one begun with other weights, preprocessing or images, and
            `overwrite` is not set; or it cannot be written, such as for a full disk.
        RunLockedError: another process is embedding into it, or this part of it.
        StoppedEarly: a stop signal; the same call resumes.
        DataError, WeightsError, ConfigError, MissingExtraError: data, weights, device or format not usable.
    """
    started = time.monotonic()
    require_format(config.format)
    if config.launch == "ray":
        require_ray()
    with contextlib.ExitStack() as held:
        job, first, step = _begin(config, shard_rows, held)
        stop = held.enter_context(StopSignals())
        made = _embed_missing(job, job.shards[first::step] if job.is_begun() else [], stop, speaks=first == 0)
        if config.part is not None:
            _join_if_last(job)
        elif first == 0 and job.is_begun():
            _wait_for_others(job, stop)
            job.join()
            job.tidy()

    meta, seconds = job.meta(), time.monotonic() - started
    joined = job.is_complete() and (config.part is not None or first == 0)
    return EmbedResult(
        rows=len(job.source),
        dim=job.embedder.dim,
        failed=meta["failed"] if joined else made.failed,
        seconds=seconds,
        out=config.out,
        joined=joined,
        missing=0 if joined else sum(len(shard.rows) for shard in job.missing(job.shards)),
        images_per_second=made.rows / made.seconds if made.rows else 0.0,
    )


def _begin(config: EmbedConfig, shard_rows: int, held: contextlib.ExitStack) -> tuple[EmbedJob, int, int]:
    """The job, begun and locked, and which shards are this process's: the first of them, and the step to the next."""
    with open_world(config.device) as world:  # left at once: later, no process waits for messages
        if world.size > 1 and (config.part is not None or config.launch == "ray"):
            raise ConfigError("torchrun, --part and --launch ray each divide the work; use one of them")
        opened = open_source(config.data, split=config.split, data_root=config.data_root) if world.writes else None
        if world.writes and has_split(config.data, config.split):
            say(f"{config.data}: embedding its {config.split} split; --split overrides")
        if opened is not None:
            say(describe(opened))
        source = world.same(opened)
        assert source is not None
        device = config.device if world.size == 1 else world.device
        embedder = load_embedder(
            config.weights,
            device=device,
            precision=config.precision,
            image_size=config.image_size,
            runtime=runtime_of(config),
            images=len(source),
        )
        job = EmbedJob.plan(config, source, embedder, shard_rows)
        if config.part is not None:
            part, parts = part_of(config.part)
            held.enter_context(job.beside_others(f"{part}-of-{parts}"))
            return job, part - 1, parts
        if world.writes:
            held.enter_context(job.alone())
            if job.only_needs_tidying():
                job.tidy()
            else:
                job.begin()
        world.wait()
        return job, world.rank, world.size


@dataclass
class _Made:
    """What this process has embedded."""

    rows: int = 0
    failed: int = 0
    seconds: float = 0.0


def _embed_missing(job: EmbedJob, mine: list[Shard], stop: StopSignals, *, speaks: bool) -> _Made:
    """Make those of the shards `mine` that are not there yet."""
    config, made = job.config, _Made()
    total = sum(len(shard.rows) for shard in mine)

    def done() -> int:
        return total - sum(len(shard.rows) for shard in job.missing(mine))

    def stopped() -> StoppedEarly:
        return StoppedEarly(f"{stop.name} after {done():,} of {total:,} rows; the same command resumes from there")

    before = done()
    if before and speaks:
        say(f"resuming: {before:,} of {total:,} rows are in {job.folder}")
    with Progress(total, desc="embed", initial=before, enabled=None if speaks else False) as progress:
        started = time.monotonic()

        def after_batch(rows: int, failed: int) -> None:
            made.rows += rows
            made.failed += failed
            made.seconds = time.monotonic() - started
            progress.update(rows, **({"failed": made.failed} if made.failed else {}))
            if stop.requested:
                raise stopped()

        workers = resolve_workers(config.workers)
        try:
            if config.launch == "ray":
                embed_on_ray(job, job.missing(mine), after_batch)
            else:
                embed_shards(
                    job.source,
                    job.embedder,
                    mine,
                    job.folder,
                    batch_size=config.batch_size,
                    normalize=config.normalize,
                    workers=workers,
                    after_batch=after_batch,
                )
        except DataError:
            if stop.requested:  # schedulers signal the reading processes as well, which then die
                raise stopped() from None
            raise
    return made


def _wait_for_others(job: EmbedJob, stop: StopSignals) -> None:
    """Until the shards of the other ranks are there; should one of them die, torchrun ends this process, too."""
    missing = job.missing(job.shards)
    while missing:
        if stop.requested:
            raise StoppedEarly(f"{stop.name} while other processes embed; the same command resumes from there")
        time.sleep(POLL)
        missing = job.missing(missing)


def _join_if_last(job: EmbedJob) -> None:
    """Join if all parts are there. Another part that found the same is left to it."""
    if job.is_complete() or not job.missing(job.shards):
        with contextlib.suppress(RunLockedError), job.joining():
            if job.is_begun() and not job.is_complete():
                job.join()
            if job.folder.is_dir():
                job.tidy()
