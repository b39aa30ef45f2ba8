"""The job of an EMB folder: its record, its locks, and the steps that only one process takes (begin, join).

    OUT/shards/job.json              begun: what decides the values of the rows
    OUT/shards/00012-of-00123.npz    one atomic file per shard, made by any process on any machine
    OUT/embeddings.npy, index.csv    joined
    OUT/meta.json                    complete: written last

Locks: `.lock` is held by who embeds the whole source, `.part-3-of-16.lock` by who embeds that part, and `.join.lock` by
the part that begins or joins. So two runs of the same folder refuse each other, and parts work side by side.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from barlowtwins.config import EmbedConfig
from barlowtwins.core.errors import OutputError, RunLockedError
from barlowtwins.core.files import atomic_write, sweep_partial, write_json
from barlowtwins.core.versions import versions
from barlowtwins.data.open import has_split
from barlowtwins.data.sources import Source
from barlowtwins.embedding.embedder import Embedder
from barlowtwins.embedding.embeddings import (
    FILES,
    INDEX,
    LAYOUT,
    META,
    OK,
    Block,
    IndexRow,
    write_features,
    write_index,
)
from barlowtwins.embedding.shards import Shard, plan_shards, read_failures, read_features
from barlowtwins.runs.job_folder import JOB, JobFolder, read_record
from barlowtwins.zoo.registry import registry

__all__ = ["EmbedJob", "runtime_of"]

SHARDS = "shards"
WHOLE_LOCK, JOIN_LOCK, PART_LOCK = ".lock", ".join.lock", ".part-{}.lock"
LOCK_PATIENCE = 20.0  # seconds for what others hold for a moment

RECORD = {  # of job.json and meta.json; how messages call them
    "weights_sha256": "weights",
    "preprocessing": "preprocessing",
    "data_fingerprint": "images",
    "normalized": "--normalize",
    "precision": "precision",
    "runtime": "--runtime",
    "shard_rows": "shard size",
}

EARLIER = {"runtime": "torch"}  # what records of before there was a choice mean


@dataclass(frozen=True)
class EmbedJob:
    """One EMB folder, finished or not, and what is to be in it."""

    config: EmbedConfig
    source: Source
    embedder: Embedder
    shards: list[Shard]
    place: JobFolder
    """The folder, and what decides the values of the rows: shards belong together if that is equal."""

    @classmethod
    def plan(cls, config: EmbedConfig, source: Source, embedder: Embedder, shard_rows: int) -> EmbedJob:
        """The job of embedding `source` as `config` says; nothing is written."""
        record = {
            "weights_sha256": embedder.sha256,
            "preprocessing": embedder.preprocessing.to_dict(),
            "data_fingerprint": source.fingerprint(),
            "normalized": config.normalize,
            "precision": embedder.precision,
            "runtime": embedder.runtime,
            "shard_rows": shard_rows,
        }
        place = JobFolder(Path(config.out), record, begun=f"{SHARDS}/{JOB}", contents=(f"{SHARDS}/*",), earlier=EARLIER)
        return cls(config, source, embedder, plan_shards(len(source), shard_rows), place)

    @property
    def out(self) -> Path:
        """The EMB folder."""
        return self.place.path

    @property
    def folder(self) -> Path:
        """Where the shards are."""
        return self.out / SHARDS

    def missing(self, shards: list[Shard]) -> list[Shard]:
        """Those of `shards` that are not made yet."""
        return [shard for shard in shards if not shard.path(self.folder).exists()]

    def meta(self) -> dict[str, Any]:
        """The record of the complete result; empty if there is none."""
        return read_record(self.out / META) or {}

    def is_complete(self) -> bool:
        """Whether the folder holds the result of this job."""
        meta = self.meta()
        return bool(meta) and meta["format"] == self.config.format and not self._differs(meta)

    def is_begun(self) -> bool:
        """Whether the shards in the folder are of this job."""
        return self.place.is_begun()

    # Locks ----------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder, so that no other process embeds into it, whole or in parts.

        Raises:
            RunLockedError: another process does.
        """
        with self.place.hold(WHOLE_LOCK):
            for path in sorted(self.out.glob(PART_LOCK.format("*"))):
                with self.place.hold(path.name):
                    pass  # left by a part that was killed; of a living one it raises
            self.place.sweep()
            yield

    @contextlib.contextmanager
    def beside_others(self, part: str) -> Iterator[None]:
        """Hold one part of the folder, such as "3-of-16"; other processes may hold the others.

        Raises:
            RunLockedError: another process embeds this part, or all of it.
        """
        with self.place.hold(PART_LOCK.format(part)):
            with self._patiently(WHOLE_LOCK):
                pass  # no process embeds the whole source; one that starts now finds this part's lock
            if not (self.is_begun() or self.is_complete()):
                with self._patiently(JOIN_LOCK):
                    if not self.is_begun():
                        self.begin()
            yield

    @contextlib.contextmanager
    def joining(self) -> Iterator[None]:
        """Hold what only one of the parts may do; RunLockedError: another one does."""
        with self.place.hold(JOIN_LOCK):
            sweep_partial(self.out, older_than=float("-inf"))  # other parts may be writing shards
            yield

    @contextlib.contextmanager
    def _patiently(self, lock: str) -> Iterator[None]:
        """A lock that others should hold for a moment only."""
        with contextlib.ExitStack() as stack:
            end = time.monotonic() + LOCK_PATIENCE
            while True:
                try:
                    stack.enter_context(self.place.hold(lock))
                    break
                except RunLockedError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.05)
            yield

    # Steps ----------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Record the job, unless it is already begun; refuse to mix it with the rows of another.

        Raises:
            OutputError: the folder holds other rows, and `overwrite` is not set.
        """
        complete, begun = self.meta(), self.place.begun_by()
        if complete and not self.config.overwrite:
            other = self._differs(complete)
            raise OutputError(
                f"{self.out} holds embeddings already{f', made with other {other}' if other else ''}; "
                "choose another folder, or replace them with --overwrite"
            )
        if begun and self._differs(begun) and not self.config.overwrite:
            raise OutputError(
                f"{self.out} holds unfinished embeddings made with other {self._differs(begun)}; "
                "finish them with the command that began them, choose another folder, or drop them with --overwrite"
            )
        if begun is None:
            self.place.clear()  # shards of unknown origin
        self.place.begin()

    def only_needs_tidying(self) -> bool:
        """Whether an earlier run of this job was killed after it completed the result, before it removed the shards."""
        return self.folder.is_dir() and self.is_complete() and (self.is_begun() or self.place.begun_by() is None)

    def tidy(self) -> None:
        """Remove the shards, which the joined files hold."""
        self.place.clear()
        self.folder.rmdir()

    def join(self) -> None:
        """Stream all shards into the final files; the old ones stay until the new ones are written.

        Raises:
            OutputError: a shard is missing or damaged (then it is removed, to be made again), or the disk is full.
        """
        name = FILES[self.config.format]
        with atomic_write(self.out / name) as features, atomic_write(self.out / INDEX) as index:
            blocks = (Block(read_features(shard, self.folder), self._entries(shard)) for shard in self.shards)
            write_features(features, self.config.format, blocks, len(self.source), self.embedder.dim)
            write_index(index, (entry for shard in self.shards for entry in self._entries(shard)))
            failed = sum(len(read_failures(shard, self.folder)) for shard in self.shards)
            (self.out / META).unlink(missing_ok=True)  # from here to the last line the folder is not complete
        for other in set(FILES.values()) - {name}:
            (self.out / other).unlink(missing_ok=True)
        named = has_split(self.config.data, self.config.split)  # a data set, such as "shapes:64"
        write_json(
            self.out / META,
            {
                "layout": LAYOUT,
                "format": self.config.format,
                "rows": len(self.source),
                "dim": self.embedder.dim,
                "failed": failed,
                "weights": findable(self.config.weights),
                "weights_name": self.embedder.name,
                "data": self.config.data if named else self.source.name,
                "split": self.config.split if named else None,
                "root": None if self.source.root is None else str(self.source.root.absolute()),
                "classes": list(self.source.classes),
                **self.place.record,
                "versions": versions(numpy=np.__version__, pillow=PIL.__version__),
            },
        )

    def _entries(self, shard: Shard) -> list[IndexRow]:
        failures = read_failures(shard, self.folder)
        source = self.source
        return [
            IndexRow(
                row,
                source.key(row),
                "" if source.labels is None else source.classes[source.labels[row]],
                failures.get(row, OK),
            )
            for row in shard.rows
        ]

    def _differs(self, record: dict[str, Any]) -> str:
        """In what a record of the folder differs from this job, in words; empty if in nothing."""
        return ", ".join(RECORD[field] for field in self.place.changes(record))


def runtime_of(config: EmbedConfig) -> str:
    """The runtime to use: of "auto", the one that began the folder, since rows of two are equal only in tolerance."""
    if config.runtime != "auto":
        return config.runtime
    out = Path(config.out)
    begun = read_record(out / SHARDS / JOB) or (None if config.overwrite else read_record(out / META))
    fresh = "torch" if config.launch == "ray" else "auto"  # a cluster may have GPUs where this machine has none
    return str(begun.get("runtime", EARLIER["runtime"])) if begun else fresh


def findable(weights: str) -> str:
    """A local path as it is called from any folder; a registry name or URL as it is."""
    return weights if weights in registry() or "://" in weights else str(Path(weights).expanduser().absolute())
