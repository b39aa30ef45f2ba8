"""Training checkpoints: written whole or not at all, the newest two kept, read back only after a check.

A checkpoint is a `torch.save` file. Its archive carries a CRC-32 of every tensor, so damage is found before anything is
used, and `weights_only` unpickling runs no code. Since all randomness is a function of (seed, epoch, index), the model,
the optimiser and the step are the whole state.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from barlowtwins.errors import CheckpointError, OutputError
from barlowtwins.files import atomic_write
from barlowtwins.progress import say

__all__ = ["KEEP", "Checkpoint", "Saver", "list_checkpoints", "load_checkpoint", "load_newest", "save_checkpoint"]

KEEP = 2
FORMAT = 1
NAME = re.compile(r"step-(\d{8,})\.pt")


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the rest of a run depends on."""

    step: int
    """Optimizer steps done."""
    model: dict[str, torch.Tensor]
    """State dict of `BarlowTwins`."""
    optimizer: dict[str, Any]
    """State dict of the optimiser."""
    config: dict[str, Any]
    """The configuration with every setting decided (see `recipes.record`)."""
    data: dict[str, Any]
    """What was trained on: number of images and fingerprint."""
    world_size: int = 1
    """Processes that shared the batch."""
    unreadable: tuple[int, ...] = ()
    """Unreadable images met so far, by index."""


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a RUN folder, oldest first."""
    folder = run / "checkpoints"
    found = [path for path in folder.glob("step-*.pt") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(NAME.fullmatch(path.name)[1]))  # type: ignore[index]


def save_checkpoint(run: Path, checkpoint: Checkpoint, *, keep: int = KEEP) -> Path:
    """Write `checkpoints/step-XXXXXXXX.pt` atomically, then remove all but the newest `keep`.

    Raises:
        OutputError: it cannot be written; the older ones are untouched.
    """
    path = run / "checkpoints" / f"step-{checkpoint.step:08d}.pt"
    with atomic_write(path) as file:
        torch.save({"format": FORMAT, **_shallow_dict(checkpoint)}, file)
    for old in list_checkpoints(run)[:-keep]:
        old.unlink(missing_ok=True)
    return path


class Saver:
    """Saves through one full disk: the first failure is a warning, the second in a row ends the run."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.failed = False

    def save(self, checkpoint: Checkpoint) -> None:
        """Save, or warn; raises OutputError where the save before failed too."""
        try:
            save_checkpoint(self.run, checkpoint)
        except OutputError as error:
            if self.failed:
                raise
            self.failed = True
            say(f"warning: {error}; training goes on, the checkpoint before is kept")
        else:
            self.failed = False


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint, every byte of it checked.

    Raises:
        CheckpointError: missing, damaged, of another format, or holding what is not plain data.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; checkpoints lie in RUN/checkpoints/")
    try:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise CheckpointError(f"{path} is damaged ({damaged} fails its CRC)")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, KeyError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint ({_first_line(error)})") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds more than plain data and was not loaded ({_first_line(error)})") from error
    if not isinstance(state, dict) or state.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this package (format {FORMAT}); for weights use --init")
    try:
        return Checkpoint(**state)
    except TypeError as error:
        raise CheckpointError(f"{path} lacks parts of a checkpoint ({error})") from error


def load_newest(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a RUN folder that can be read; None where there is none at all.

    A damaged one is said aloud and the one before it is taken.

    Raises:
        CheckpointError: there are some, and none can be read.
    """
    paths = list_checkpoints(run)
    for path in reversed(paths):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            say(f"warning: {error}; trying the one before it")
    if paths:
        names = ", ".join(path.name for path in paths)
        raise CheckpointError(
            f"none of the {len(paths)} checkpoint(s) in {run / 'checkpoints'} can be read ({names}); "
            "restore one from a backup, or start anew in another folder"
        )
    return None


def _shallow_dict(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """`asdict` would copy every tensor."""
    return {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
