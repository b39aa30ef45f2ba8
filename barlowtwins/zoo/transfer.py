"""One URL to one file, however the server, the network or the disk behaves.

    ask, hop by hop -> judge the answer -> append to a temporary, hashing -> ask for the rest -> rename

`Transfer` knows nothing of caches: what was there before, and what is to be kept, is the matter of `download`.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import ipaddress
import logging
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO
from urllib.parse import urljoin, urlsplit

import requests

from barlowtwins.core.errors import DownloadError, OutputError
from barlowtwins.core.files import atomic_write
from barlowtwins.core.progress import Progress
from barlowtwins.version import __version__

__all__ = ["Transfer", "check_url"]

logger = logging.getLogger("barlowtwins")

PIECE = 1 << 16  # bytes read at a time, and lost at most when a connection breaks
MOST_HOPS = 10  # redirects followed
LONGEST_WAIT = 120.0  # seconds; a server that asks for more than this is reported instead
BUSY_STATUS = {408, 425, 429, 500, 502, 503, 504}  # "later, perhaps"; everything else from 400 on is final
WEB_PAGES = ("text/html", "application/xhtml+xml")


class _Again(Exception):
    """This attempt failed, and another may not. `wait`: seconds that the server asked for."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class Transfer:
    """One file on its way: how much is written, its digest so far, and what the server said about it.

    Args:
        url: https; http for this machine itself only. The same holds for every redirect.
        target: the file's final name, in a folder that exists.
        size: of the file, in bytes, if it is on record.
        timeout: seconds to wait for a connection, and for each next piece.
        attempts: tries in a row that bring nothing new before it gives up.
        backoff: seconds before the second try; doubled before each further one.
    """

    file: IO[bytes]

    def __init__(
        self,
        url: str,
        target: Path,
        *,
        size: int | None = None,
        progress: bool = True,
        timeout: float = 30.0,
        attempts: int = 4,
        backoff: float = 0.5,
    ) -> None:
        self.url, self.target, self.size = url, target, size
        self.timeout, self.attempts, self.backoff = timeout, attempts, backoff
        self.total = size  # bytes, as far as anybody said
        self.version: str | None = None  # the server's mark of this version of the file (ETag or date)
        self.done = 0  # bytes
        self.hash = hashlib.sha256()
        self.pieced = False  # more than one answer contributed
        self.progress: Progress | None = None  # from the first answer on: then the total is known
        self.shown = progress
        self.session = requests.Session()
        self.session.trust_env = not _is_loopback(url)  # a proxy would look for our loopback on its own machine

    def run(self, sha256: str | None = None, source: str = "on record") -> str:
        """Write the file under its final name once it is whole and its digest begins with `sha256`.

        Args:
            source: where that digest comes from, for the message.

        Returns:
            Its SHA-256, 64 hex digits.

        Raises:
            DownloadError: no whole file with that digest could be had.
            OutputError: it cannot be written.
        """
        try:
            with self.session, atomic_write(self.target) as self.file, contextlib.closing(self):
                self._attempt_until_whole()
                if self.pieced and not self._digest().startswith(sha256 or ""):
                    self._restart()  # pieces of two versions, perhaps: once more, from the start
                    self._attempt_until_whole()
                if not self._digest().startswith(sha256 or ""):
                    raise DownloadError(
                        f"{self.url} has sha256 {self._digest()}, not {sha256} ({source}): not kept; is the URL right, "
                        f"and the digest?"
                    )
        except OutputError as error:
            needed = f"{self.total:,} bytes are needed" if self.total else f"more than {self.done:,} bytes are needed"
            raise OutputError(f"{error}; {needed}") from error
        return self._digest()

    def close(self) -> None:
        """End the bar."""
        if self.progress is not None:
            self.progress.close()

    def _digest(self) -> str:
        return self.hash.hexdigest()

    def _attempt_until_whole(self) -> None:
        in_vain, furthest = 0, 0
        while True:
            try:
                return self._attempt()
            except _Again as failure:
                in_vain = 0 if self.done > furthest else in_vain + 1
                furthest = max(furthest, self.done)
                if in_vain >= self.attempts:
                    raise DownloadError(
                        f"cannot fetch {self.url}: {failure}, {self.attempts} times. Without a connection, "
                        f"get that file elsewhere and put it as {self.target.name} into {self.target.parent}"
                    ) from failure
                wait = self.backoff * 2.0 ** max(in_vain - 1, 0) if failure.wait is None else failure.wait
                logger.info("%s: %s; next try in %.1f s", self.url, failure, wait)
                time.sleep(wait)

    def _attempt(self) -> None:
        """Ask for what is missing and append it."""
        headers = {"User-Agent": f"barlowtwins/{__version__}", "Accept-Encoding": "identity"}
        if self.done:
            headers["Range"] = f"bytes={self.done}-"
            if self.version is not None:
                headers["If-Range"] = self.version
        with self._ask(headers) as response:
            self._judge(response)
            try:
                for piece in response.iter_content(PIECE):
                    self._append(piece)
            except requests.RequestException as error:
                raise _Again(f"the connection broke after {self.done:,} bytes ({_innermost(error)})") from error
        if self.done < (self.total or 1):
            raise _Again(f"the body ended after {self.done:,} of {self.total or 'unknown'} bytes")

    def _ask(self, headers: Mapping[str, str]) -> requests.Response:
        """Send the request and follow redirects, each checked before it is taken."""
        url, came_from = self.url, None
        for _ in range(MOST_HOPS):
            check_url(url, came_from=came_from)
            try:
                response = self.session.get(
                    url, headers=headers, stream=True, allow_redirects=False, timeout=self.timeout
                )
            except requests.exceptions.SSLError as error:
                raise DownloadError(
                    f"refusing {url}: TLS failed ({_innermost(error)}); check the clock, the network, and "
                    f"REQUESTS_CA_BUNDLE"
                ) from error
            except (requests.ConnectionError, requests.Timeout) as error:
                raise _Again(f"no answer from {urlsplit(url).netloc} ({_innermost(error)})") from error
            except requests.RequestException as error:
                raise DownloadError(f"cannot fetch {url}: {error}; is the URL right?") from error
            if not response.is_redirect:
                return response
            response.close()
            url, came_from = urljoin(url, response.headers["location"]), url
        raise DownloadError(f"{self.url} redirects more than {MOST_HOPS} times; give the URL that it should lead to")

    def _judge(self, response: requests.Response) -> None:
        """Make ready for a body that starts or continues the file; raise for every other answer."""
        status, headers = response.status_code, response.headers
        if status == 416 and self.done:  # "no such range": the file there is shorter than what we have
            self._restart()
            raise _Again("the file changed on the server")
        if status in BUSY_STATUS:
            raise _Again(f"the server answers {status} {response.reason}", wait=_retry_after(headers))
        if status not in (200, 206):
            raise DownloadError(f"the server answers {status} {response.reason} for {response.url}; is the URL right?")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in WEB_PAGES:
            raise DownloadError(
                f"{response.url} is a web page (content type {kind}) where a file should be; "
                "perhaps the network's login page is in between"
            )
        if headers.get("content-encoding", "identity") != "identity":
            raise DownloadError(
                f"{response.url} comes as {headers['content-encoding']}, which nobody asked for; use another mirror"
            )

        start, total = _extent(status, headers)
        if total is not None and self.size is not None and total != self.size:
            raise DownloadError(f"{response.url} has {total:,} bytes; {self.size:,} are on record")
        if start != self.done:
            self._restart()
            if status == 206:
                raise _Again("the server sent another part of the file than it was asked for")
        self.pieced = start > 0
        self.version = _version(headers)
        self.total = total or self.size
        self._check_space()
        if self.progress is None:
            self.progress = Progress(self.total, desc=self.target.name, unit="B", enabled=self.shown)

    def _check_space(self) -> None:
        """A disk that is too small now saves the wait for it to fill up."""
        free = shutil.disk_usage(self.target.parent).free
        if self.total is not None and free < self.total - self.done:
            raise OutputError(
                f"no space left to write {self.target}: {free:,} bytes are free; free some or choose another folder"
            )

    def _append(self, piece: bytes) -> None:
        if not self.done and piece.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
            raise DownloadError(
                f"{self.url} is a web page where a file should be, whatever its content type says; is the URL right?"
            )
        self.file.write(piece)
        self.hash.update(piece)
        self.done += len(piece)
        if self.progress is not None:
            self.progress.update(len(piece))
        if self.total is not None and self.done > self.total:
            raise DownloadError(
                f"{self.url} sends more than the {self.total:,} bytes that it should have; is the URL right?"
            )

    def _restart(self) -> None:
        if self.progress is not None:
            self.progress.update(-self.done)
        self.file.seek(0)
        self.file.truncate()
        self.done, self.hash, self.pieced = 0, hashlib.sha256(), False


def check_url(url: str, *, came_from: str | None = None) -> None:
    """Raise DownloadError unless `url` is https, or http on this machine itself.

    Args:
        came_from: the URL that redirected here, if any; the wide world cannot redirect to this machine.
    """
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme == "http" and _is_loopback(url) and (came_from is None or _is_loopback(came_from)):
        return
    redirected = f" (redirected from {came_from})" if came_from else ""
    raise DownloadError(f"refusing {url}{redirected}: weights are fetched by https only; give such a URL")


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _extent(status: int, headers: Mapping[str, str]) -> tuple[int, int | None]:
    """The first byte that the body holds (-1 if it does not say), and the bytes of the whole file if known."""
    if status == 200:
        return 0, _integer(headers.get("content-length"))
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("content-range", ""))
    return (int(span[1]), _integer(span[2])) if span else (-1, None)


def _version(headers: Mapping[str, str]) -> str | None:
    """What If-Range takes: a strong ETag, or else the date of the last change."""
    tag = headers.get("etag", "")
    return tag if tag.startswith('"') else headers.get("last-modified")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, given as a number or as a date."""
    value = headers.get("retry-after", "").strip()
    wait = float(value) if value.isdigit() else _seconds_until(value)
    if wait is not None and wait > LONGEST_WAIT:
        raise DownloadError(f"the server is busy and asks to wait {wait:,.0f} s; try again then")
    return wait


def _seconds_until(date: str) -> float | None:
    try:
        return max(0.0, email.utils.parsedate_to_datetime(date).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _integer(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _innermost(error: BaseException) -> str:
    """The reason under the three layers of names that requests wraps around it."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__
