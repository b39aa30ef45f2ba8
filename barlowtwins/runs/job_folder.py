"""A folder that belongs to one job: an evaluation, a classification, an embedding.

It is locked while a process works in it; begun by a record of what decides the result; continued by the job with the
same record, and refused for any other; complete once the result is there, which is written last.

An evaluation leaves

    job.json          begun: the record
    features/         fast forms: features extracted so far
    checkpoints/      trained forms: the newest two
    metrics.jsonl     trained forms: one object per log step
    results.json      complete: all figures are there; the classifier follows

and an EMB folder what `embedding.embed_job` says.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from barlowtwins.core.distributed import World
from barlowtwins.core.errors import OutputError
from barlowtwins.core.files import sweep_partial, write_json
from barlowtwins.core.locks import FolderLock
from barlowtwins.core.printing import plain
from barlowtwins.core.versions import versions

__all__ = ["JOB", "RESULTS", "JobFolder", "check_head_file", "open_job", "read_record", "write_results"]

JOB, RESULTS, HEAD = "job.json", "results.json", "head.safetensors"
EVALUATION = (
    *("features", "checkpoints", "metrics.jsonl", "nonfinite.json"),
    *(RESULTS, HEAD, "backbone.safetensors"),
)
"""What an evaluation leaves beside its record."""


@dataclass(frozen=True)
class JobFolder:
    """The files of one job, begun or not."""

    path: Path
    record: dict[str, Any]
    """What decides the result, as JSON knows it."""
    begun: str = JOB
    """The file with the record, relative to `path`."""
    contents: tuple[str, ...] = EVALUATION
    """Whatever else a job leaves, as patterns relative to `path`; removed where another job replaces it."""
    earlier: Mapping[str, Any] = field(default_factory=dict)
    """Fields that older records lack, with what they mean."""

    @contextlib.contextmanager
    def hold(self, lock: str = ".lock") -> Iterator[None]:
        """Keep other processes out, as long as the `with` block lasts; several names are several locks.

        Raises:
            RunLockedError: another process holds it.
            OutputError: the folder cannot be made or written to.
        """
        with FolderLock(self.path, lock):
            yield

    def sweep(self) -> None:
        """Remove what killed processes left half-written; for the process that holds the folder alone."""
        inside = (path for name in self.contents for path in self.path.glob(name) if path.is_dir())
        below = (path for top in inside for path in (top, *top.rglob("*")) if path.is_dir())
        for folder in (self.path, *below):
            sweep_partial(folder, older_than=float("-inf"))

    def begun_by(self) -> dict[str, Any] | None:
        """The record of the job that began the folder; None if no job did."""
        return read_record(self.path / self.begun)

    def is_begun(self) -> bool:
        """Whether what the folder holds is of this very job."""
        begun = self.begun_by()
        return bool(begun) and not self.changes(begun)

    def changes(self, other: Mapping[str, Any] | None) -> dict[str, tuple[Any, Any]]:
        """Each field in which another record differs from this job's, with what it was and what it is."""
        before = {**self.earlier, **(other or {})}
        return {name: (before.get(name), now) for name, now in self.record.items() if before.get(name) != now}

    def left(self) -> list[Path]:
        """What some job left in the folder, beside its record."""
        return sorted(path for name in self.contents for path in self.path.glob(name) if path.name != JOB)

    def begin(self) -> None:
        """Record the job, unless this very job is begun already; what another one left is removed."""
        if self.is_begun():
            return
        if self.begun_by() is not None:
            self.clear()
        write_json(self.path / self.begun, self.record)

    def clear(self) -> None:
        """Remove what the job left and, last of all, its record: whatever stays has its owner."""
        for path in self.left():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        (self.path / self.begun).unlink(missing_ok=True)


def read_record(path: Path) -> dict[str, Any] | None:
    """Return a JSON object; None if the file is missing.

    Raises:
        OutputError: it cannot be read.
    """
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(f"{path} cannot be read ({error}); choose another folder, or remove this file") from error


@contextlib.contextmanager
def open_job(out: str | None, job: dict[str, Any], *, overwrite: bool, world: World) -> Iterator[Path | None]:
    """Hold the folder `out` for this job, as long as the `with` block lasts.

    Args:
        out: the folder; None if nothing is to be kept, and then the block gets None.
        job: what decides the result.
        overwrite: remove what another job left.
        world: only the process that writes touches the folder; the others wait until it is ready.

    Raises:
        OutputError: the folder belongs to another job or to a pretraining run, or cannot be written.
        RunLockedError: another process works in it.
    """
    if out is None:
        yield None
        return
    folder = JobFolder(Path(out), plain(job))
    with folder.hold() if world.writes else contextlib.nullcontext():
        if world.writes:
            _require_ours(folder, overwrite=overwrite)
            folder.sweep()
            folder.begin()
        world.wait()
        yield folder.path


def write_results(folder: Path, job: dict[str, Any], result: object) -> None:
    """Write results.json: the result, the job, and the versions that made it."""
    write_json(folder / RESULTS, {**plain(result), "job": plain(job), "versions": versions()})


def check_head_file(path: str | None, *, overwrite: bool) -> None:
    """Find out before hours of training that the classifier could not be saved after them.

    Args:
        path: the file; its folder is made when it is written. None: there is nothing to save.
        overwrite: replace the file if there is one.

    Raises:
        OutputError: it exists, is a folder, or its folder cannot be written.
    """
    if path is None:
        return
    file = Path(path)
    if file.is_dir():
        raise OutputError(f"--save-head {file} is a folder; give the name of a file in it")
    if file.exists() and not overwrite:
        raise OutputError(f"{file} exists already; choose another --save-head, or replace it with --overwrite")
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"--save-head {file}: nothing can be written in {folder}; choose another place")


def _require_ours(folder: JobFolder, *, overwrite: bool) -> None:
    begun, left = folder.begun_by(), [path for path in folder.left() if path.name != HEAD]  # --save-head may name it
    if begun is None and left:
        names = ", ".join(path.name for path in left)
        raise OutputError(
            f"{folder.path} holds {names}, but no {JOB}: not from an evaluation, perhaps from a pretraining run; "
            "choose another --out"
        )
    changes = folder.changes(begun) if begun is not None else {}
    if changes and not overwrite:
        listed = "; ".join(f"{name} was {_short(was)}, is {_short(now)}" for name, (was, now) in changes.items())
        raise OutputError(
            f"{folder.path} holds another evaluation ({listed}); choose another --out, or replace it with --overwrite"
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
