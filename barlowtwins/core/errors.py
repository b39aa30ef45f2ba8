"""All errors of this package, with one root.

A message says what was found, where, and what to do. The command line prints it as one line and exits with `exit_code`.
In Python, catch `BarlowTwinsError` or one of its subclasses.
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
    """Root of all errors of this package; `exit_code` is the exit code of the command line."""

    exit_code = 1


class ConfigError(BarlowTwinsError, ValueError):
    """Settings that are invalid, or do not fit each other, the machine or the data."""


class UsageError(ConfigError):
    """A flag or value that is wrong on any machine, for any data (exit code 2)."""

    exit_code = 2
    settings: tuple[str, ...] = ()
    """Names of settings in the message; the command line writes them as flags."""


class DataError(BarlowTwinsError):
    """Images, listings or labels that cannot be used."""


class WeightsError(BarlowTwinsError):
    """A weight file that is missing, damaged, unsafe, or of another architecture."""


class DownloadError(WeightsError):
    """A download that failed, or whose file could not be verified."""


class CheckpointError(BarlowTwinsError):
    """A training checkpoint that cannot be read or does not belong to this run."""


class OutputError(BarlowTwinsError):
    """A result that cannot be written: it already exists, the disk is full, or the folder is read-only."""


class RunLockedError(OutputError):
    """Another live process is writing to the same folder."""


class TrainingError(BarlowTwinsError):
    """Training that cannot continue: a loss that is not finite, too many unreadable images, or out of memory."""


class StoppedEarly(BarlowTwinsError):
    """A stop signal ended the work, which is saved and can be resumed (exit code 75, EX_TEMPFAIL)."""

    exit_code = 75


class MissingExtraError(BarlowTwinsError, ImportError):
    """An optional dependency is missing; the message contains the `pip install` command."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"the module {module!r} is not installed; run: pip install 'barlowtwins[{extra}]'")
        self.module, self.extra = module, extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return type(self), (self.module, self.extra)  # so a worker process can pass it to its parent
