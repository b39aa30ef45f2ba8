"""Signal handling: stop signals set a flag, and the loop decides when to stop.

Schedulers send SIGTERM (or SIGUSR1, as Slurm can before a time limit); users press Ctrl-C (SIGINT). The loop checks
`requested` once per step, saves and stops. A second Ctrl-C raises KeyboardInterrupt immediately.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["StopSignals"]

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGBREAK")  # SIGUSR1 exists only on POSIX, SIGBREAK only on Windows


class StopSignals:
    """Record stop signals in the attributes `requested` and `name` inside a `with` block.

        with StopSignals() as stop:
            for batch in batches:
                train(batch)
                if stop.requested:
                    save()
                    raise StoppedEarly(f"stopped by {stop.name}; rerun the same command to resume")

    The previous handlers are restored at the end. Python delivers signals only to the main thread; in other threads the
    block has no effect and `requested` stays False.
    """

    def __init__(self) -> None:
        self.requested = False
        self.name: str | None = None
        self._interrupts = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for name in NAMES:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is not None:  # None: set by C, cannot be restored
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self.requested = True
        self.name = self.name or signal.Signals(number).name
