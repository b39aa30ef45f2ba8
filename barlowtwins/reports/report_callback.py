"""The callback that keeps RUN/report.html up to date while a run trains."""

from __future__ import annotations

import math
import time
from typing import Any

from barlowtwins.core.errors import BarlowTwinsError, MissingExtraError
from barlowtwins.core.progress import say
from barlowtwins.reports.report import write_report
from barlowtwins.train.callbacks import Callback, RunState
from barlowtwins.train.inspection import is_inspected

__all__ = ["ReportCallback"]

SHARE = 0.05  # of a run's time at most for its reports: where epochs are that short, some get none


class ReportCallback(Callback):
    """Writes the report after each inspection or evaluation of the network, and at the end.

    Errors never stop training. Runs whose network is not inspected (`report_every` 0, or neither 1 nor 3 channels) have
    no report.
    """

    def __init__(self) -> None:
        self._news = False
        self._next = 0.0  # not before this time

    def on_log(self, run: RunState, record: dict[str, Any], /) -> None:
        """Remember that there is more to show than the loss."""
        self._news = self._news or "loss" not in record

    def on_epoch(self, run: RunState, /) -> None:
        """Write the report if there is news, unless that would take too much time."""
        if self._news and run.step and time.perf_counter() >= self._next:
            self._write(run)
        self._news = False

    def on_end(self, run: RunState, /) -> None:
        """Write the final report."""
        self._write(run)

    def _write(self, run: RunState) -> None:
        if self._next == math.inf or not is_inspected(run.config, run.settings):
            return
        started = time.perf_counter()
        try:
            write_report(run.folder.path)
        except MissingExtraError as error:
            say(f"no {run.folder.report.name}: {error}")
            self._next = math.inf
        except Exception as error:  # noqa: BLE001  evaluation errors never stop training
            what = error if isinstance(error, BarlowTwinsError) else f"{type(error).__name__}: {error}"
            say(f"warning: no new {run.folder.report.name}: {what}; training continues")
        else:
            now = time.perf_counter()
            self._next = now + (now - started) / SHARE
