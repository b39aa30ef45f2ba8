"""Every error that this package raises on purpose, under one root.

A message has one form: what was found, where, and what to do. The command line prints it as one line and exits with
`exit_code`; a caller in Python catches `BarlowTwinsError`, or the kind it can mend.
"""

from __future__ import annotations

__all__ = [
    "BarlowTwinsError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DownloadError",
    "MissingExtraError",
    "OutputError",
    "RunLockedError",
    "StoppedEarly",
    "TrainingError",
    "UsageError",
    "WeightsError",
]


class BarlowTwinsError(Exception):
    """Root of all errors of this package; `exit_code` is what the command line exits with."""

    exit_code = 1


class ConfigError(BarlowTwinsError, ValueError):
    """Settings that do not fit each other, the machine or the data."""


class UsageError(ConfigError):
    """A flag or value that is wrong whatever the machine and the data (exit code 2)."""

    exit_code = 2


class DataError(BarlowTwinsError):
    """Images, listings or labels that cannot be used."""


class WeightsError(BarlowTwinsError):
    """A weight file that is missing, damaged, of another architecture, or not to be trusted."""


class DownloadError(WeightsError):
    """A download that did not end in one verified file."""


class CheckpointError(BarlowTwinsError):
    """A training checkpoint that cannot be read or does not belong to this run."""


class OutputError(BarlowTwinsError):
    """A result that cannot be written: it exists already, the disk is full, the folder is read-only."""


class RunLockedError(OutputError):
    """Another live process is writing to the same folder."""


class TrainingError(BarlowTwinsError):
    """Training that cannot go on: a loss that is not finite, too many unreadable images, no memory."""


class StoppedEarly(BarlowTwinsError):
    """A stop signal was obeyed; the work so far is saved and resumes (exit code 75, EX_TEMPFAIL)."""

    exit_code = 75


class MissingExtraError(BarlowTwinsError, ImportError):
    """An optional dependency is absent; the message names the `pip install` that brings it."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"the module {module!r} is not installed; pip install 'barlowtwins[{extra}]' brings it")
        self.module, self.extra = module, extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return type(self), (self.module, self.extra)  # else a worker process could not hand it to its parent
