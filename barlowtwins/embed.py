"""Embed a source into an EMB folder: shard after shard in constant memory, then one streaming join.

    OUT/shards/job.json              begun: what decides the values of the rows
    OUT/shards/00012-of-00123.npz    one atomic file a shard
    OUT/embeddings.npy, index.csv    joined
    OUT/meta.json                    complete: written last

Whatever kills the process and whenever, the same command goes on from the shards that are there, and ends with the
same bytes as an undisturbed run.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision

from barlowtwins.config import EmbedConfig
from barlowtwins.data import open_source
from barlowtwins.device import default_workers
from barlowtwins.embedder import Embedder, extract, load_embedder
from barlowtwins.embeddings import (
    FILES,
    INDEX,
    LAYOUT,
    META,
    OK,
    Block,
    IndexRow,
    require_format,
    write_features,
    write_index,
)
from barlowtwins.errors import ConfigError, DataError, OutputError, StoppedEarly
from barlowtwins.files import atomic_write, sweep_partial, write_json
from barlowtwins.lock import FolderLock
from barlowtwins.progress import Progress, say
from barlowtwins.registry import registry
from barlowtwins.shards import SHARD_ROWS, Shard, embed_shards, plan_shards, read_failures, read_features
from barlowtwins.signals import StopSignals
from barlowtwins.sources import Source
from barlowtwins.version import __version__

__all__ = ["EmbedResult", "embed", "extract"]

SHARDS, JOB = "shards", "job.json"

JOB_FIELDS = {  # of the record in job.json and meta.json; how messages call them
    "weights_sha256": "weights",
    "preprocessing": "preprocessing",
    "data_fingerprint": "images",
    "normalized": "--normalize",
    "precision": "precision",
    "shard_rows": "shard size",
}


@dataclass(frozen=True)
class EmbedResult:
    """What `embed` made."""

    rows: int
    dim: int
    failed: int
    """Rows that are NaN, since their image could not be read."""
    seconds: float
    """Of this run; those of one that was stopped before are not counted."""
    out: str

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self)

    def summary(self) -> str:
        """What a person is told."""
        failed = f"; {self.failed:,} could not be read: NaN, and why in {INDEX}" if self.failed else ""
        return f"{self.rows:,} rows of {self.dim} features in {self.out} ({self.seconds:.1f} s){failed}"


def embed(config: EmbedConfig, *, shard_rows: int = SHARD_ROWS) -> EmbedResult:
    """Embed images into an EMB folder, or go on where an earlier run was stopped.

    Args:
        config: what to embed with what, and where to.
        shard_rows: rows that are saved at once: as many are lost at most when the process is killed.

    Raises:
        OutputError: the folder holds a complete result, or one begun with other weights, preprocessing or images, and
            `overwrite` is not set; or it cannot be written, such as for a full disk.
        RunLockedError: another process is embedding into it.
        StoppedEarly: a stop signal; the same call goes on.
        DataError, WeightsError, ConfigError, MissingExtraError: what is asked for cannot be had.
    """
    started = time.monotonic()
    if config.runtime == "onnx":
        raise ConfigError("this version runs networks with torch only; leave out --runtime onnx")
    require_format(config.format)
    out = Path(config.out)
    source = open_source(config.data, split=config.split, data_root=config.data_root)
    embedder = load_embedder(
        config.weights, device=config.device, precision=config.precision, image_size=config.image_size
    )
    job = _job(source, embedder, normalized=config.normalize, shard_rows=shard_rows)
    shards = plan_shards(len(source), shard_rows)

    with FolderLock(out), StopSignals() as stop:
        sweep_partial(out, older_than=float("-inf"))  # of dead processes, since the folder is locked
        if not _only_needs_tidying(out, job, config.format):
            _begin(out, job, overwrite=config.overwrite)
            _embed_missing(source, embedder, shards, config, stop)
            _join(source, embedder, shards, config, job)
        shutil.rmtree(out / SHARDS)
    meta = _read(out / META)
    return EmbedResult(meta["rows"], meta["dim"], meta["failed"], time.monotonic() - started, str(out))


def _job(source: Source, embedder: Embedder, *, normalized: bool, shard_rows: int) -> dict[str, Any]:
    """What decides the values of the rows: shards belong together if these are equal."""
    return {
        "weights_sha256": embedder.sha256,
        "preprocessing": embedder.preprocessing.to_dict(),
        "data_fingerprint": source.fingerprint(),
        "normalized": normalized,
        "precision": embedder.precision,
        "shard_rows": shard_rows,
    }


# What is in the folder ----------------------------------------------------------------------------------------------


def _begin(out: Path, job: dict[str, Any], *, overwrite: bool) -> None:
    """Record the job, unless this very job is begun already; refuse to mix it with another's rows."""
    complete, begun = _read(out / META), _read(out / SHARDS / JOB)
    if complete and not overwrite:
        other = _differences(complete, job)
        raise OutputError(
            f"{out} holds embeddings already{f', made with other {other}' if other else ''}; "
            "choose another folder, or replace them with --overwrite"
        )
    if begun and _differences(begun, job) and not overwrite:
        raise OutputError(
            f"{out} holds unfinished embeddings made with other {_differences(begun, job)}; "
            "finish them with the command that began them, choose another folder, or drop them with --overwrite"
        )
    if not begun or _differences(begun, job):
        shutil.rmtree(out / SHARDS, ignore_errors=True)
        write_json(out / SHARDS / JOB, job)


def _only_needs_tidying(out: Path, job: dict[str, Any], form: str) -> bool:
    """Whether an earlier run of this job was killed after it completed the result, before it removed the shards."""
    complete = _read(out / META)
    return (
        (out / SHARDS).is_dir()
        and bool(complete)
        and complete["format"] == form
        and not _differences(complete, job)
        and not _differences(_read(out / SHARDS / JOB) or job, job)
    )


def _differences(record: dict[str, Any], job: dict[str, Any]) -> str:
    """In what a record of the folder differs from the job, in words; empty if in nothing."""
    return ", ".join(words for field, words in JOB_FIELDS.items() if record.get(field) != job[field])


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file."""
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(f"{path} cannot be read ({error}); choose another folder, or remove this one") from error


# The two steps ------------------------------------------------------------------------------------------------------


def _embed_missing(
    source: Source, embedder: Embedder, shards: Sequence[Shard], config: EmbedConfig, stop: StopSignals
) -> None:
    """Make the shards that are not there yet."""
    folder = Path(config.out) / SHARDS

    def done() -> int:
        return sum(len(shard.rows) for shard in shards if shard.path(folder).exists())

    def stopped() -> StoppedEarly:
        return StoppedEarly(
            f"{stop.name} after {done():,} of {len(source):,} rows; the same command goes on from there"
        )

    if done():
        say(f"going on: {done():,} of {len(source):,} rows are in {folder}")
    with Progress(len(source), desc="embed", initial=done()) as progress:
        failures = 0

        def after_batch(rows: int, failed: int) -> None:
            nonlocal failures
            failures += failed
            progress.update(rows, **({"failed": failures} if failures else {}))
            if stop.requested:
                raise stopped()

        try:
            embed_shards(
                source,
                embedder,
                shards,
                folder,
                batch_size=config.batch_size,
                normalize=config.normalize,
                workers=default_workers() if config.workers is None else config.workers,
                after_batch=after_batch,
            )
        except DataError:
            if stop.requested:  # a scheduler signals the reading processes as well, and they die of it
                raise stopped() from None
            raise


def _join(
    source: Source, embedder: Embedder, shards: Sequence[Shard], config: EmbedConfig, job: dict[str, Any]
) -> None:
    """Stream all shards into the final files; the old ones stay until the new ones are written."""
    out = Path(config.out)
    folder = out / SHARDS
    name = FILES[config.format]
    failed = 0
    with atomic_write(out / name) as features, atomic_write(out / INDEX) as index:
        blocks = (Block(read_features(shard, folder), _entries(source, shard, folder)) for shard in shards)
        write_features(features, config.format, blocks, len(source), embedder.dim)
        write_index(index, (entry for shard in shards for entry in _entries(source, shard, folder)))
        failed = sum(len(read_failures(shard, folder)) for shard in shards)
        (out / META).unlink(missing_ok=True)  # from here to the last line the folder is not complete
    for other in set(FILES.values()) - {name}:
        (out / other).unlink(missing_ok=True)
    write_json(
        out / META,
        {
            "layout": LAYOUT,
            "format": config.format,
            "rows": len(source),
            "dim": embedder.dim,
            "failed": failed,
            "weights": _findable(config.weights),
            "weights_name": embedder.name,
            "data": source.name,
            "root": None if source.root is None else str(source.root.absolute()),
            "classes": list(source.classes),
            **job,
            "versions": _versions(),
        },
    )


def _entries(source: Source, shard: Shard, folder: Path) -> list[IndexRow]:
    failures = read_failures(shard, folder)
    return [IndexRow(row, source.key(row), _label(source, row), failures.get(row, OK)) for row in shard.rows]


def _label(source: Source, row: int) -> str:
    return "" if source.labels is None else source.classes[source.labels[row]]


def _findable(weights: str) -> str:
    """A local path as it is called from any folder; a registry name or URL as it is."""
    return weights if weights in registry() or "://" in weights else str(Path(weights).expanduser().absolute())


def _versions() -> dict[str, str]:
    return {
        "barlowtwins": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }
