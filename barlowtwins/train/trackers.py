"""Metrics to somewhere else than metrics.jsonl: one small protocol, and TensorBoard.

class Print:
    def log(self, record):
        print(record)

    def close(self):
        pass

pretrain(config, trackers=[Print()])
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from barlowtwins.core.errors import MissingExtraError
from barlowtwins.train.callbacks import Callback, RunState

__all__ = ["TensorBoard", "Tracker", "Tracking", "open_tracker"]


class Tracker(Protocol):
    """What wants to know the metrics of a run; called by the process that writes, with what goes to metrics.jsonl."""

    def log(self, record: dict[str, Any], /) -> None:
        """A record has come: `step` and `epoch`, and what was measured there. An exception ends the run."""
        ...

    def close(self) -> None:
        """The run ends, well or not."""
        ...


class TensorBoard:
    """Writes every number of a record as a scalar; `tensorboard --logdir RUN` shows them.

    Args:
        folder: for the event files.
        start: the step at which the run resumes: what an earlier process wrote after it is not shown.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self, folder: str | Path, *, start: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            raise MissingExtraError("tensorboard", "track") from None
        self._writer = SummaryWriter(str(folder), purge_step=start + 1 if start else None)

    def log(self, record: Mapping[str, Any], /) -> None:
        """Write the numbers of one record."""
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
                self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()  # a killed run loses nothing

    def close(self) -> None:
        """Finish the event file."""
        self._writer.close()


def open_tracker(name: str, run: Path, *, start: int) -> Tracker:
    """The tracker that `--track` names, writing below the RUN folder.

    Raises:
        MissingExtraError: what it needs is not installed.
    """
    assert name == "tensorboard", name
    return TensorBoard(run / "tensorboard", start=start)


class Tracking(Callback):
    """Gives every logged record to trackers.

    Args:
        trackers: from Python.
        name: of the one that `--track` adds, or "none".
    """

    def __init__(self, trackers: Sequence[Tracker], name: str = "none") -> None:
        self.trackers, self.name = list(trackers), name

    def on_start(self, run: RunState, /) -> None:
        """Open the tracker that was named."""
        if self.name != "none":
            self.trackers.append(open_tracker(self.name, run.folder.path, start=run.start))

    def on_log(self, run: RunState, record: dict[str, Any], /) -> None:
        """Pass on a copy."""
        for tracker in self.trackers:
            tracker.log(dict(record))

    def close(self) -> None:
        """Close every tracker, also if one of them fails."""
        with contextlib.ExitStack() as stack:
            for tracker in reversed(self.trackers):
                stack.callback(tracker.close)
