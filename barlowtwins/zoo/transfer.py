"""One URL to one file, however the server, the network or the disk behaves.

    ask, hop by hop -> judge the answer -> append to a temporary, hashing -> ask for the rest -> rename

A request without an answer, or with that of a busy server, is repeated by urllib3 (`Retry`, in the session's adapter).
A body that broke is beyond it, since it ends with the first bytes of an answer: `Transfer` asks for the rest by Range.
`Transfer` knows nothing of caches: what was there before, and what is to be kept, is the matter of `download`.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import InvalidHeader, MaxRetryError, ProtocolError
from urllib3.util import Retry

from barlowtwins.core.errors import DownloadError, OutputError
from barlowtwins.core.files import atomic_write
from barlowtwins.core.progress import Progress
from barlowtwins.version import __version__

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse  # since version 2

__all__ = ["Transfer", "check_url"]

logger = logging.getLogger("barlowtwins")

PIECE = 1 << 16  # bytes read at a time, and lost at most when a connection breaks
MOST_HOPS = 10  # redirects followed
LONGEST_WAIT = 120.0  # seconds; a server that asks for more than this is reported instead
BUSY_STATUS = {408, 425, 429, 500, 502, 503, 504}  # "later, perhaps"; everything else from 400 on is final
WEB_PAGES = ("text/html", "application/xhtml+xml")


class _Broken(ProtocolError):
    """A body that did not arrive whole, though another try may bring the rest."""


class _Retry(Retry):
    """urllib3's, which also logs what it waits for, and does not wait for hours."""

    def sleep(self, response: BaseHTTPResponse | None = None) -> None:
        wait = self.get_retry_after(response) if response else None
        _, url, error, *_ = self.history[-1]
        why = f"the server answers {response.status} {response.reason}" if response else str(error)
        logger.info("%s: %s; next try in %.1f s", url, why, self.get_backoff_time() if wait is None else wait)
        super().sleep(response)

    def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
        try:
            wait = super().get_retry_after(response)
        except InvalidHeader:
            return None
        if wait is not None and wait > LONGEST_WAIT:
            raise DownloadError(f"the server is busy and asks to wait {wait:,.0f} s; try again then")
        return wait


class Transfer:
    """One file on its way: how much is written, its digest so far, and what the server said about it.

    Args:
        url: https; http for this machine itself only. The same holds for every redirect.
        target: the file's final name, in a folder that exists.
        size: of the file, in bytes, if it is on record.
        timeout: seconds to wait for a connection, and for each next piece.
        attempts: tries in a row that bring nothing new before it gives up.
        backoff: half of the seconds before the third try; doubled before each further one. The second comes at once.
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
        self.timeout, self.attempts = timeout, attempts
        self.retry = _Retry(  # other: TLS that failed is not tried again
            attempts - 1, other=0, status_forcelist=BUSY_STATUS, backoff_factor=backoff, raise_on_status=False
        )
        self.total = size  # bytes, as far as anybody said
        self.version: str | None = None  # the server's mark of this version of the file (ETag or date)
        self.done = 0  # bytes
        self.hash = hashlib.sha256()
        self.pieced = False  # more than one answer contributed
        self.progress: Progress | None = None  # from the first answer on: then the total is known
        self.shown = progress
        self.session = requests.Session()
        for scheme in tuple(self.session.adapters):  # http and https
            self.session.mount(scheme, HTTPAdapter(max_retries=self.retry))
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
        retry, furthest = self.retry, 0
        while True:
            try:
                return self._attempt()
            except _Broken as failure:
                if self.done > furthest:
                    retry, furthest = self.retry.new(total=self.attempts), self.done
                try:
                    retry = retry.increment("GET", self.url, error=failure)
                except MaxRetryError:
                    raise self._gave_up(str(failure)) from failure
                retry.sleep()

    def _gave_up(self, why: str) -> DownloadError:
        return DownloadError(
            f"cannot fetch {self.url}: {why}, {self.attempts} times. Without a connection, "
            f"get that file elsewhere and put it as {self.target.name} into {self.target.parent}"
        )

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
                raise _Broken(f"the connection broke after {self.done:,} bytes ({_innermost(error)})") from error
        if self.done < (self.total or 1):
            raise _Broken(f"the body ended after {self.done:,} of {self.total or 'unknown'} bytes")

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
                raise self._gave_up(f"no answer from {urlsplit(url).netloc} ({_innermost(error)})") from error
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
            raise _Broken("the file changed on the server")
        if status in BUSY_STATUS:
            raise self._gave_up(f"the server answers {status} {response.reason}")
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
                raise _Broken("the server sent another part of the file than it was asked for")
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


def _integer(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _innermost(error: BaseException) -> str:
    """The reason under the three layers of names that requests wraps around it."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__
