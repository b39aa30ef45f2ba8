"""Training checkpoints: written whole or not at all, the newest two kept, read back only after a check.

A checkpoint is a `torch.save` file with its own SHA-256 behind it, so that any damage is found before anything is used.
(The CRCs of the archive are not enough: its directory has none, and one flipped bit there can make a tensor read as
something else.) It is read by `core.torch_file`, which runs nothing of it. Since all randomness is a function of (seed,
epoch, index), the model, the optimiser and the step are the whole state.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch

from barlowtwins.core.errors import CheckpointError, OutputError
from barlowtwins.core.files import atomic_write
from barlowtwins.core.progress import say
from barlowtwins.core.readers import open_regular
from barlowtwins.core.torch_file import UnsoundFile, read_torch_file
from barlowtwins.runs.migrations import current, numbered

__all__ = [
    "KEEP",
    "Checkpoint",
    "Saver",
    "checkpoint_path",
    "list_checkpoints",
    "load_checkpoint",
    "load_newest",
    "save_checkpoint",
    "step_of",
]

KEEP = 2
FORMAT = 1
NAME = re.compile(r"step-([0-9]{8,})\.pt")
SEAL = re.compile(rb"\nsha256 ([0-9a-f]{64})\n")  # what follows the archive; torch.load does not mind it
SEAL_LENGTH = len("\nsha256 \n") + 64


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


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run / "checkpoints" / f"step-{step:08d}.pt"


def step_of(path: Path) -> int:
    """The step in a checkpoint's name; -1 for any other name."""
    name = NAME.fullmatch(path.name)
    return int(name[1]) if name else -1


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a RUN folder, oldest first."""
    return sorted((path for path in (run / "checkpoints").glob("step-*.pt") if step_of(path) >= 0), key=step_of)


def save_checkpoint(run: Path, checkpoint: Checkpoint, *, keep: int = KEEP, drop: Iterable[Path] = ()) -> Path:
    """Write `checkpoints/step-XXXXXXXX.pt` atomically, then remove all but the newest `keep`.

    Args:
        run: the RUN folder.
        checkpoint: what to write.
        keep: how many stay.
        drop: checkpoints that are removed first, whatever their step.

    Raises:
        OutputError: it cannot be written; the older ones are untouched.
    """
    path = checkpoint_path(run, checkpoint.step)
    state = {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}  # `asdict` copies tensors
    with atomic_write(path) as file:
        sealed = _Sealed(file)
        try:
            torch.save({"format": FORMAT, **state, "config": numbered(checkpoint.config)}, sealed)  # type: ignore[arg-type]  # only written to
        except RuntimeError as error:  # torch finds that its archive is short, and hides the full disk behind that
            raise (sealed.error or error) from None
        sealed.close()
    for old in drop:
        if old != path:
            _remove(old)
    for old in list_checkpoints(run)[:-keep]:
        _remove(old)
    return path


class Saver:
    """Saves through one full disk: the first failure is a warning, the second in a row ends the run.

    Args:
        run: the RUN folder.
        start: the step from which this process goes on. Checkpoints of later steps are damaged, or of a course that
            was given up by going on from an older one; they make room for the first one of the new course.
    """

    def __init__(self, run: Path, start: int = 0) -> None:
        self.run = run
        self._given_up = [path for path in list_checkpoints(run) if step_of(path) > start]
        self._failed = False
        self._saved = -1

    def save(self, checkpoint: Checkpoint, *, last_chance: bool = False) -> None:
        """Save, or warn; a step that is saved already is not saved again.

        Args:
            checkpoint: what to save.
            last_chance: the process is about to end, so that a failure must not pass for a success.

        Raises:
            OutputError: it cannot be written, and neither could the one before, or there will be no other.
        """
        if checkpoint.step == self._saved:
            return
        try:
            save_checkpoint(self.run, checkpoint, drop=self._given_up)
        except OutputError as error:
            if self._failed or last_chance:
                raise
            self._failed = True
            say(f"warning: {error}; training goes on, and the checkpoint before is kept")
        else:
            self._saved, self._failed, self._given_up = checkpoint.step, False, []


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint, every byte of it checked.

    Raises:
        CheckpointError: missing, damaged, of another format, or holding what is not plain data.
        ConfigError: written by a later version.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; checkpoints lie in RUN/checkpoints/")
    try:
        with open_regular(path) as file:
            _check_seal(file, path)
            state = read_torch_file(file)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}; make it readable") from error
    except UnsoundFile as error:  # sealed, but by whom?
        raise CheckpointError(
            f"{path} holds what no checkpoint does, and was not loaded ({error}); use one of your own runs"
        ) from error
    if not isinstance(state, dict) or state.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this version (format {FORMAT}); for weights use --init")
    try:
        checkpoint = Checkpoint(**state)
    except TypeError as error:
        raise CheckpointError(f"{path} lacks parts of a checkpoint ({error}); use the one before it") from error
    for name, kind in (("step", int), ("model", dict), ("optimizer", dict), ("config", dict), ("data", dict)):
        if not isinstance(getattr(checkpoint, name), kind):
            raise CheckpointError(
                f"{path} is no checkpoint: its {name} is not of type {kind.__name__}; use the one before it"
            )
    _check_state(checkpoint, path)
    return replace(checkpoint, config=current(checkpoint.config, path))


def _check_state(checkpoint: Checkpoint, path: Path) -> None:
    """Refuse counts and tensors that no run writes, before anything is resumed from them."""
    if not 0 <= checkpoint.step < 2**53:
        raise CheckpointError(f"{path} cannot be of step {checkpoint.step}; use the one before it")
    for name, tensor in checkpoint.model.items():
        if not (isinstance(name, str) and isinstance(tensor, torch.Tensor)) or tensor.is_complex():
            raise CheckpointError(f"{path} has a model whose {str(name)[:80]} is not real numbers; use the one before")


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
            say(f"warning: {error}" + ("; trying the one before it" if path != paths[0] else ""))
    if paths:
        names = ", ".join(path.name for path in paths)
        raise CheckpointError(
            f"none of the {len(paths)} checkpoint(s) in {run / 'checkpoints'} can be read ({names}); "
            "restore one from a backup, or start anew in another folder"
        )
    return None


class _Sealed:
    """A file that is hashed while it is written, and remembers why it could not be."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self._digest.update(data)
        return len(data)

    def flush(self) -> None:
        pass  # torch asks for it; `atomic_write` sees to it

    def close(self) -> None:
        self._file.write(f"\nsha256 {self._digest.hexdigest()}\n".encode())


def _check_seal(file: IO[bytes], path: Path) -> None:
    length = file.seek(0, 2) - SEAL_LENGTH
    file.seek(max(0, length))
    seal = SEAL.fullmatch(file.read())
    if seal is None:
        raise CheckpointError(
            f"{path} is cut short or no checkpoint: it does not end in its digest; use the one before it"
        )
    digest = hashlib.sha256()
    file.seek(0)
    while length > 0:
        piece = file.read(min(length, 1 << 20))
        if not piece:
            break
        digest.update(piece)
        length -= len(piece)
    if digest.hexdigest().encode() != seal[1]:
        raise CheckpointError(
            f"{path} is damaged: its contents do not have the digest at its end; use the one before it"
        )


def _remove(path: Path) -> None:
    """One too many is no reason to stop."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        say(f"warning: cannot remove the old checkpoint {path} ({error.strerror or error})")
