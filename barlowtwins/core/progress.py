"""Progress of a long job: a bar with a rate and a time left, or one line per minute without a terminal.

Everything goes to standard error, so that standard output stays clean for results. The bar is tqdm's. The lines are
ours: in a log file tqdm redraws one endless line, and needs a thread and a semaphore for it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from barlowtwins.core.printing import data_size, escape_controls

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Progress", "say"]

MINUTE = 60.0


def say(text: str) -> None:
    """Print one line on standard error, above the bar if one is shown; a closed standard error is not a failure."""
    text = escape_controls(text)
    with contextlib.suppress(OSError, ValueError):  # a closed pipe, a closed file
        if "tqdm" in sys.modules:
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)
        elif sys.stderr is not None:  # None under pythonw
            print(text, file=sys.stderr, flush=True)


class Progress:
    """Count what is done, as a context manager.

        with Progress(len(images), desc="embed") as progress:
            for batch in batches:
                progress.update(len(batch), failed=3)

    Args:
        total: how much there is; None if unknown.
        desc: the word in front.
        unit: what is counted; "B" prints as kB, MB, GB.
        enabled: False prints nothing; None or True prints.
        initial: what an earlier run had done; it counts as done but not for the rate.
        interval: seconds between lines without a terminal (the first after that long, too).
    """

    def __init__(
        self,
        total: int | None,
        *,
        desc: str,
        unit: str = "img",
        enabled: bool | None = None,
        initial: int = 0,
        interval: float = MINUTE,
    ) -> None:
        self.total, self.desc, self.unit, self.done = total, desc, unit, initial
        self._initial, self._interval = initial, interval
        self._fields: dict[str, Any] = {}
        self._started = self._last_line = time.monotonic()
        shown = enabled is not False and sys.stderr is not None
        self._bar: tqdm[Any] | None = self._open_bar() if shown and sys.stderr.isatty() else None
        self._lines = shown and self._bar is None

    def _open_bar(self) -> tqdm[Any] | None:
        try:
            from tqdm import tqdm
        except ModuleNotFoundError:  # the hub path does without it
            return None
        return tqdm(
            total=self.total,
            desc=self.desc,
            unit=self.unit if self.unit == "B" else f" {self.unit}",
            unit_scale=self.unit == "B",
            initial=self._initial,
            file=sys.stderr,
            **({"dynamic_ncols": True} if _terminal_has_a_size() else {"ncols": 80, "nrows": 24}),
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, n: int = 1, **fields: Any) -> None:
        """Add `n` done; `fields` (such as loss=123.4) are shown beside the rate from now on."""
        self.done += n
        self._fields.update(fields)
        if self._bar is not None:
            if fields:
                self._bar.set_postfix(self._fields, refresh=False)
            self._bar.update(n)
        elif self._lines and time.monotonic() - self._last_line >= self._interval:
            self._print_line()

    def close(self) -> None:
        """Leave the bar as it stands; without a terminal, print a last line if there was one before."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self._lines and self._last_line > self._started:
            self._print_line()
        self._lines = False

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        say(self.line(self._last_line - self._started))

    def line(self, seconds: float) -> str:
        """Return the line after `seconds`, such as "embed: 1,200/60,000 img (2 %), 20 img/s, 49:00 left"."""
        unit = "" if self.unit == "B" else f" {self.unit}"  # bytes carry theirs in the amount
        amount = f"{self.desc}: {self._amount(self.done)}"
        if self.total is None:
            parts = [amount + unit]
        else:
            parts = [f"{amount}/{self._amount(self.total)}{unit} ({100 * self.done // max(self.total, 1)} %)"]
        rate = (self.done - self._initial) / seconds if seconds > 0 else 0.0
        if rate > 0:
            parts.append(f"{self._amount(rate)}{unit}/s")
            if self.total is not None and self.done < self.total:
                parts.append(f"{_clock((self.total - self.done) / rate)} left")
            else:
                parts.append(f"{_clock(seconds)} taken")
        parts += [f"{name} {_short(value)}" for name, value in self._fields.items()]
        return ", ".join(parts)

    def _amount(self, value: float) -> str:
        if self.unit != "B":
            return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"
        return data_size(value)


def _terminal_has_a_size() -> bool:
    """Some containers give 0 x 0, on which tqdm would draw nothing."""
    try:
        return 0 not in os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        return False


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))).removeprefix("0:").removeprefix("0")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
