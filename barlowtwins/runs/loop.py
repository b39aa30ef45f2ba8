"""What every training loop shares, whatever it trains: stop after a whole step on all processes, and resume on all.

    checkpoint = checkpoint_for_all(world, lambda: load_newest(folder), folder)
    with Stopping(world, folder) as stop:
        for batch in batches:
            ...                                     # one step
            if stop.agreed() and step < steps:
                saver.save(..., last_chance=True)   # see `checkpoint.Saver`
                raise stop.after(step, steps)

Pretraining and the supervised protocols of `evaluate` are written with it. Saving or warning is
`checkpoint.Saver`, and `guards` stops what is not finite or cannot be read; with them this module is all that a loop
needs beside its own step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from barlowtwins.core.distributed import World
from barlowtwins.core.errors import BarlowTwinsError, DataError, StoppedEarly
from barlowtwins.core.signals import StopSignals
from barlowtwins.runs.checkpoint import Checkpoint, checkpoint_path, load_checkpoint

__all__ = ["Stopping", "checkpoint_for_all"]


class Stopping:
    """Turn a stop signal to any process into an agreement of all of them, inside a `with` block.

    A scheduler signals the processes that read images as well, and they die in the middle of a step. The DataError of
    that becomes StoppedEarly: nothing is saved then, since the processes may be at different steps.

    Args:
        world: the processes that share the loop.
        folder: where checkpoints are. None: there is nothing to save, so signals keep their usual effect.
        again: what resumes, for messages.
    """

    def __init__(self, world: World, folder: Path | None, *, again: str = "the same command") -> None:
        self.world, self.folder, self.again = world, folder, again
        self._signals = StopSignals()

    def __enter__(self) -> Stopping:
        if self.folder is not None:
            self._signals.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signals.__exit__(kind, error, trace)
        if self.requested and isinstance(error, DataError):
            raise StoppedEarly(
                f"stopped by {self._signals.name}; {self.again} resumes from the last checkpoint in {self.folder}"
            ) from None

    @property
    def requested(self) -> bool:
        """Whether this process has got a signal."""
        return self._signals.requested

    def agreed(self) -> bool:
        """Whether any process has got a signal; all of them ask at the same step and get the same answer."""
        return self.world.any(self.requested)

    def after(self, step: int, steps: int) -> StoppedEarly:
        """What to raise once the checkpoint of `step` is saved."""
        return StoppedEarly(
            f"stopped by {self._signals.name or 'another process'} after step {step} of {steps}, "
            f"saved in {self.folder}; {self.again} resumes from there"
        )


def checkpoint_for_all(
    world: World,
    find: Callable[[], Checkpoint | None],
    folder: Path,
    *,
    load: Callable[[int], Checkpoint] | None = None,
) -> Checkpoint | None:
    """What `find` returns on the process that writes, on every process: one looks and speaks, the others load.

    Args:
        world: the processes; all of them see the same files.
        find: looks for the checkpoint to resume from, such as `load_newest`; None to begin at step 0.
        folder: where checkpoints are.
        load: reads the checkpoint of a step; by default from `folder`.

    Raises:
        BarlowTwinsError: what `find` raises, on every process.
    """
    if world.size == 1:
        return find()
    found: Checkpoint | BarlowTwinsError | None = None
    if world.writes:
        try:
            found = find()
        except BarlowTwinsError as error:
            found = error
    seen = world.same((found.step, found.unreadable) if isinstance(found, Checkpoint) else found)
    if isinstance(seen, BarlowTwinsError):
        raise seen
    if seen is None or isinstance(found, Checkpoint):
        return found  # type: ignore[return-value]  # an error was raised above
    step, unreadable = seen
    loaded = load(step) if load else load_checkpoint(checkpoint_path(folder, step))
    return dataclasses.replace(loaded, unreadable=unreadable)
