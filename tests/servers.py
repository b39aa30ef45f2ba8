"""A real web server on loopback whose every answer is scripted, misbehaviour included.

with Server() as server:
    server.answer("/weights.pth", drop(DATA, after=1000), file(DATA))   # the first breaks, all later ones are whole
    download(server.url("/weights.pth"), target)
    assert server.requests[1].headers["Range"] == "bytes=1000-"
"""

from __future__ import annotations

import http.server
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

Behaviour = Callable[[http.server.BaseHTTPRequestHandler], None]
ETAG = '"version-1"'


@dataclass(frozen=True)
class Request:
    path: str
    headers: Mapping[str, str]


@dataclass
class Route:
    behaviours: list[Behaviour]
    asked: int = 0

    def next(self) -> Behaviour:
        behaviour = self.behaviours[min(self.asked, len(self.behaviours) - 1)]
        self.asked += 1
        return behaviour


@dataclass
class Server:
    """Answers GET requests for the paths it was given, each with the next of its behaviours; the last one stays.

    `otherwise` answers for all other paths: 404 unless told.
    """

    tls: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)
    routes: dict[str, Route] = field(default_factory=dict)
    otherwise: Behaviour | None = None

    def answer(self, path: str, *behaviours: Behaviour) -> str:
        self.routes[path] = Route(list(behaviours))
        return self.url(path)

    def url(self, path: str = "") -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}{path}"

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    def __enter__(self) -> Server:
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.requests.append(Request(self.path, dict(self.headers)))
                route = site.routes.get(self.path)
                behaviour = route.next() if route else site.otherwise or status(404)
                try:
                    behaviour(self)
                except ConnectionError:  # the client had enough
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass

        self._server: socketserver.TCPServer = Quiet(("127.0.0.1", 0), Handler)
        if self.tls:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _head(handler: http.server.BaseHTTPRequestHandler, code: int, headers: Mapping[str, str]) -> None:
    handler.send_response(code)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()


def file(data: bytes, *, etag: str | None = ETAG, ranges: bool = True, **headers: str) -> Behaviour:
    """A sound answer: all of `data`, or from the byte that is asked for if the client's version is this one."""

    def behave(handler: http.server.BaseHTTPRequestHandler) -> None:
        wanted, condition = handler.headers["Range"], handler.headers["If-Range"]
        sent = {"Content-Type": "application/octet-stream"} | {k.replace("_", "-"): v for k, v in headers.items()}
        if etag:
            sent["ETag"] = etag
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start and ranges and condition in (None, etag):
            span = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            _head(handler, 206, sent | span | {"Content-Length": str(len(data) - start)})
            handler.wfile.write(data[start:])
        else:
            _head(handler, 200, sent | {"Content-Length": str(len(data))})
            handler.wfile.write(data)

    return behave


def drop(data: bytes, *, after: int, etag: str | None = ETAG, claim: int | None = None) -> Behaviour:
    """Promise all of `data`, send `after` bytes and hang up."""

    def behave(handler: http.server.BaseHTTPRequestHandler) -> None:
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(claim or len(data))}
        _head(handler, 200, headers | ({"ETag": etag} if etag else {}))
        handler.wfile.write(data[:after])
        handler.close_connection = True

    return behave


def without_length(data: bytes, **headers: str) -> Behaviour:
    """A body that ends when the connection does: nobody can tell whether it is whole."""

    def behave(handler: http.server.BaseHTTPRequestHandler) -> None:
        _head(handler, 200, {"Content-Type": "application/octet-stream", "Connection": "close"} | headers)
        handler.wfile.write(data)
        handler.close_connection = True

    return behave


def stall(seconds: float, data: bytes = b"") -> Behaviour:
    """Promise a megabyte, send `data`, then nothing for `seconds`."""

    def behave(handler: http.server.BaseHTTPRequestHandler) -> None:
        _head(handler, 200, {"Content-Type": "application/octet-stream", "Content-Length": str(1 << 20)})
        handler.wfile.write(data)
        time.sleep(seconds)
        handler.close_connection = True

    return behave


def slowly(data: bytes, *, pieces: int, pause: float) -> Behaviour:
    """All of `data` in `pieces`, with `pause` seconds between them."""

    def behave(handler: http.server.BaseHTTPRequestHandler) -> None:
        _head(handler, 200, {"Content-Type": "application/octet-stream", "Content-Length": str(len(data))})
        step = -(-len(data) // pieces)
        for start in range(0, len(data), step):
            handler.wfile.write(data[start : start + step])
            time.sleep(pause)

    return behave


def status(code: int, body: bytes = b"", **headers: str) -> Behaviour:
    def behave(handler: http.server.BaseHTTPRequestHandler) -> None:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        _head(handler, code, sent | {"Content-Length": str(len(body))})
        handler.wfile.write(body)

    return behave


def redirect(url: str, code: int = 302) -> Behaviour:
    return status(code, Location=url)
