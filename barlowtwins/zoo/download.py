"""A URL and a place in the cache to one verified file.

    is it there and sound? -> take turns with other processes -> is it there now? -> transfer -> record its digest

A file under its final name is whole. Where nobody has published a digest, or only its beginning, the first download
writes the file's own to `NAME.sha256` beside it (as `sha256sum --check` reads it), and from then on that must fit.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from barlowtwins.core.errors import DownloadError, OutputError, RunLockedError
from barlowtwins.core.files import PARTIAL_SUFFIX, sha256_of, sweep_partial, write_text
from barlowtwins.core.locks import FolderLock
from barlowtwins.zoo.transfer import Transfer, check_url

__all__ = ["Fetched", "check_digest", "download", "fetch", "recorded_digest"]

logger = logging.getLogger("barlowtwins")

POLL = 0.05  # seconds between two looks at a lock that another process holds


@dataclass(frozen=True)
class Fetched:
    """A file that is whole and has the digest that it should have.

    Args:
        path: where it lies.
        sha256: its digest, 64 hex digits.
        verified: True if a published digest confirmed it; False if all we know is what we recorded ourselves.
    """

    path: Path
    sha256: str
    verified: bool


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    progress: bool = True,
    timeout: float = 30.0,
    attempts: int = 4,
    backoff: float = 0.5,
) -> Path:
    """Make sure that `target` is the file behind `url`, from the cache if it is there and sound.

    Args:
        url: https; http for this machine itself only. The same holds for every redirect.
        target: the file's final name; its folder is made if missing.
        sha256: what the digest is, or begins with, as hex digits; None if nobody has published it.
        size: of the file, in bytes, if known.
        progress: show a bar if standard error is a terminal, else a line a minute.
        timeout: seconds to wait for a connection, and for each next piece.
        attempts: tries in a row that bring nothing new before it gives up.
        backoff: half of the seconds before the third try; doubled before each further one. The second comes at once.

    Returns:
        `target`.

    Raises:
        DownloadError: no whole file with that digest could be had, or it cannot be written. What was under the name
            `target` before is there still.
    """
    check_url(url)
    transfer = Transfer(
        url, Path(target), size=size, progress=progress, timeout=timeout, attempts=attempts, backoff=backoff
    )
    return fetch(transfer, sha256.lower() if sha256 else None).path


def fetch(transfer: Transfer, sha256: str | None = None) -> Fetched:
    """Run `transfer`, unless its target is there and sound: `download` with more to tell, and the same errors."""
    target = transfer.target
    if (cached := check_digest(target, sha256)) is not None:
        return cached
    damaged = target.exists()
    if damaged:
        logger.warning("%s is damaged: its digest is not the one on record; fetching it again", target)
    try:
        with _turn(target, patience=2 * transfer.timeout):
            if (cached := check_digest(target, sha256)) is not None:  # another process was first
                return cached
            sweep_partial(target.parent)
            expected = _expected(target, sha256)
            source = "on record" if expected == sha256 else f"recorded in {_record_of(target)}"
            return _accept(target, transfer.run(expected, source), sha256)
    except OutputError as error:
        raise DownloadError(f"{error}; TORCH_HOME names another place for the cache ({transfer.url})") from error
    except DownloadError as error:
        if damaged:
            raise DownloadError(
                f"{target} is damaged and could not be fetched again; remove it, or mend this first: {error}"
            ) from error
        raise


def check_digest(target: Path, sha256: str | None) -> Fetched | None:
    """The file `target` if it is there and sound; None if it is missing or its digest is wrong.

    Args:
        sha256: what the digest is, or begins with; None if all there may be is what an earlier call recorded.

    Raises:
        DownloadError: there is something under that name that cannot be read.
    """
    if target.is_dir():
        raise DownloadError(f"{target} is a folder where a file is to be kept; move it away")
    try:
        digest = sha256_of(target)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DownloadError(
            f"cannot read {target}: {error.strerror or error}; make it readable, or remove it"
        ) from error
    if not digest.startswith(_expected(target, sha256) or ""):
        return None
    return _accept(target, digest, sha256)


def recorded_digest(target: Path) -> str | None:
    """The digest that an earlier call wrote to `NAME.sha256`, or None."""
    try:
        words = _record_of(target).read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return None
    return words[0] if words and re.fullmatch("[0-9a-f]{64}", words[0]) else None


def _record_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _expected(target: Path, sha256: str | None) -> str | None:
    """All that is known of the digest: the recorded one, unless what is published contradicts it."""
    recorded = recorded_digest(target)
    return recorded if recorded is not None and recorded.startswith(sha256 or "") else sha256


def _accept(target: Path, digest: str, sha256: str | None) -> Fetched:
    if digest not in (sha256, recorded_digest(target)):
        if sha256 is None:
            logger.warning("%s: no digest is published; recorded, not verified: sha256 %s", target, digest)
        try:
            write_text(_record_of(target), f"{digest}  {target.name}\n")
        except OutputError as error:  # a read-only cache still serves
            logger.info("the digest is not recorded: %s", error)
    return Fetched(target, digest, verified=sha256 is not None)


@contextlib.contextmanager
def _turn(target: Path, *, patience: float) -> Iterator[None]:
    """Wait while another process fetches `target`, but not for one that shows no sign of life for `patience` seconds.

    The lock saves work and guards nothing: each process writes a temporary of its own, so going on without is safe.
    """
    lock = FolderLock(target.parent, name=f".{target.name}.lock")
    with contextlib.ExitStack() as held:
        seen, since = _partial_sizes(target), time.monotonic()
        while time.monotonic() - since <= patience:
            try:
                held.enter_context(lock)
                break
            except RunLockedError:
                time.sleep(POLL)
            if (sizes := _partial_sizes(target)) != seen:
                seen, since = sizes, time.monotonic()
        yield


def _partial_sizes(target: Path) -> list[int]:
    """Sizes of the temporaries of `target`: they change while another process fetches it."""
    sizes = []
    for partial in target.parent.glob(f".{target.name}.*{PARTIAL_SUFFIX}"):
        with contextlib.suppress(OSError):  # finished in this very moment
            sizes.append(partial.stat().st_size)
    return sorted(sizes)
