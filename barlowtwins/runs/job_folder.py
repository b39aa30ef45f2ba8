"""The folder of an evaluation: one job at a time, one job a folder, and the same job goes on where it stopped.

job.json          begun: what decides the result
features/         fast forms: features extracted so far
checkpoints/      trained forms: the newest two
metrics.jsonl     trained forms: one object a log step
results.json      complete: all figures are there; the classifier follows
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from barlowtwins.core.distributed import World
from barlowtwins.core.errors import OutputError
from barlowtwins.core.files import sweep_partial, write_json
from barlowtwins.core.locks import FolderLock
from barlowtwins.core.printing import plain
from barlowtwins.core.versions import versions

__all__ = ["RESULTS", "check_head_file", "open_job", "write_results"]

JOB, RESULTS = "job.json", "results.json"
OURS = (
    JOB,
    RESULTS,
    "features",
    "checkpoints",
    "metrics.jsonl",
    "nonfinite.json",
    "head.safetensors",
    "backbone.safetensors",
)


@contextlib.contextmanager
def open_job(out: str | None, job: dict[str, Any], *, overwrite: bool, world: World) -> Iterator[Path | None]:
    """Hold the folder `out` for this job, as long as the `with` block lasts.

    Args:
        out: the folder; None if nothing is to be kept, and then the block gets None.
        job: what decides the result, as JSON knows it.
        overwrite: remove what another job left.
        world: only the process that writes touches the folder; the others wait until it is ready.

    Raises:
        OutputError: the folder belongs to another job, or cannot be written.
        RunLockedError: another process works in it.
    """
    if out is None:
        yield None
        return
    folder = Path(out)
    with FolderLock(folder) if world.writes else contextlib.nullcontext():
        if world.writes:
            sweep_partial(folder, older_than=float("-inf"))  # of dead processes, since the folder is locked
            _begin(folder, plain(job), overwrite=overwrite)
        world.wait()
        yield folder


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


def write_results(folder: Path, job: dict[str, Any], result: object) -> None:
    """Write results.json: the result, the job, and the versions that made it."""
    write_json(folder / RESULTS, {**plain(result), "job": plain(job), "versions": versions()})


def _begin(folder: Path, job: dict[str, Any], *, overwrite: bool) -> None:
    begun = _read(folder / JOB)
    if begun is not None and begun != job and not overwrite:
        names = [name for name in {**begun, **job} if begun.get(name) != job.get(name)]
        listed = "; ".join(f"{name} was {_short(begun.get(name))}, is {_short(job.get(name))}" for name in names)
        raise OutputError(
            f"{folder} holds another evaluation ({listed}); choose another --out, or replace it with --overwrite"
        )
    if begun is not None and begun != job:
        for name in OURS:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    if begun != job:
        write_json(folder / JOB, job)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(f"{path} cannot be read ({error}); choose another folder, or remove this one") from error


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
