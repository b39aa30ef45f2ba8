"""FAULTS 1-9: a web server that misbehaves on purpose, and what is left on the disk afterwards."""

from __future__ import annotations

import hashlib
import logging
import random
import shutil
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from servers import Server, drop, file, redirect, slowly, stall, status, without_length

from barlowtwins.core.errors import DownloadError
from barlowtwins.zoo.download import download

DATA = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
FAST = {"progress": False, "timeout": 0.3, "backoff": 0.01}


def _nothing_left(folder: Path) -> bool:
    return list(folder.iterdir()) == []


# 1: body shorter than Content-Length ----------------------------------------------------------------------------------


def test_01_a_short_body_is_noticed_and_asked_for_again(server: Server, tmp_path: Path) -> None:
    url = server.answer("/w.pth", drop(DATA, after=100_000, etag=None), file(DATA, etag=None, ranges=False))
    assert download(url, tmp_path / "w.pth", **FAST).read_bytes() == DATA


def test_01_a_body_that_stays_short_is_never_kept(server: Server, tmp_path: Path) -> None:
    url = server.answer("/w.pth", drop(DATA, after=100_000))
    with pytest.raises(DownloadError, match=r"broke after 65,536 bytes.*, 4 times"):
        download(url, tmp_path / "w.pth", **FAST)
    assert len(server.requests) == 4 + 1  # the first brought something new, the next four did not
    assert _nothing_left(tmp_path)


@pytest.mark.parametrize("known", ["size", "sha256"])
def test_01_a_short_body_without_length_is_noticed_by_what_is_on_record(
    server: Server, tmp_path: Path, known: str
) -> None:
    url = server.answer("/w.pth", without_length(DATA[:1000]))
    record = {"size": len(DATA)} if known == "size" else {"sha256": SHA256[:10]}
    with pytest.raises(DownloadError):
        download(url, tmp_path / "w.pth", **record, **FAST)
    assert _nothing_left(tmp_path)


def test_01_an_empty_body_is_no_file(server: Server, tmp_path: Path) -> None:
    url = server.answer("/w.pth", without_length(b""))
    with pytest.raises(DownloadError, match="ended after 0"):
        download(url, tmp_path / "w.pth", **FAST)
    assert _nothing_left(tmp_path)


# 2: connection dropped ------------------------------------------------------------------------------------------------


def test_02_a_dropped_connection_is_resumed_where_it_broke(server: Server, tmp_path: Path) -> None:
    url = server.answer("/w.pth", drop(DATA, after=123_456), file(DATA))
    assert download(url, tmp_path / "w.pth", sha256=SHA256, **FAST).read_bytes() == DATA
    first, second = server.requests
    assert "Range" not in first.headers
    assert second.headers["Range"] == "bytes=65536-"  # what was read in whole pieces
    assert second.headers["If-Range"] == '"version-1"'


def test_02_a_file_that_changed_in_between_is_fetched_from_the_start(server: Server, tmp_path: Path) -> None:
    url = server.answer("/w.pth", drop(OTHER, after=123_456, etag='"old"'), file(DATA, etag='"new"'))
    assert download(url, tmp_path / "w.pth", **FAST).read_bytes() == DATA


def test_02_pieces_of_two_versions_do_not_pass_as_one_file(server: Server, tmp_path: Path) -> None:
    """Without any mark of the version only the digest tells, and one try from the start mends it."""
    url = server.answer("/w.pth", drop(OTHER, after=123_456, etag=None), file(DATA, etag=None))
    assert download(url, tmp_path / "w.pth", sha256=SHA256, **FAST).read_bytes() == DATA
    assert len(server.requests) == 3


def test_02_many_drops_are_survived_while_each_try_brings_something_new(server: Server, tmp_path: Path) -> None:
    big = random.Random(2).randbytes(8 << 20)

    def drops_every_time(handler) -> None:
        start = int((handler.headers["Range"] or "bytes=0-")[6:-1])
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(big) - start))
        handler.send_header("Content-Range", f"bytes {start}-{len(big) - 1}/{len(big)}")
        handler.end_headers()
        handler.wfile.write(big[start : start + (5 << 18)])
        handler.close_connection = True

    url = server.answer("/w.pth", drops_every_time)
    assert download(url, tmp_path / "w.pth", attempts=2, **FAST).read_bytes() == big
    assert len(server.requests) > 2


# 3: ranges ignored ----------------------------------------------------------------------------------------------------


def test_03_a_server_that_ignores_ranges_is_read_from_the_start(server: Server, tmp_path: Path) -> None:
    url = server.answer("/w.pth", drop(DATA, after=123_456), file(DATA, ranges=False))
    assert download(url, tmp_path / "w.pth", **FAST).read_bytes() == DATA
    assert "Range" in server.requests[1].headers


@pytest.mark.parametrize(
    "wrong",
    [
        status(206, DATA[:5], Content_Range=f"bytes 0-4/{len(DATA)}"),
        status(206, DATA[:5]),
        status(416),
    ],
    ids=["another part", "a part of it does not say what", "no such range"],
)
def test_03_a_wrong_part_is_not_appended(server: Server, tmp_path: Path, wrong) -> None:
    url = server.answer("/w.pth", drop(DATA, after=100_000), wrong, file(DATA))
    assert download(url, tmp_path / "w.pth", **FAST).read_bytes() == DATA


# 4: stalls ------------------------------------------------------------------------------------------------------------


def test_04_a_stall_times_out_and_the_rest_is_fetched(server: Server, tmp_path: Path) -> None:
    url = server.answer("/w.pth", stall(2.0, DATA[:1000]), file(DATA, etag=None))
    assert download(url, tmp_path / "w.pth", sha256=SHA256, **FAST).read_bytes() == DATA


def test_04_a_server_that_only_stalls_ends_in_a_clear_error(server: Server, tmp_path: Path) -> None:
    url = server.answer("/w.pth", stall(1.0))
    started = time.monotonic()
    with pytest.raises(DownloadError, match=r"timed out.*, 2 times"):
        download(url, tmp_path / "w.pth", attempts=2, **FAST)
    assert time.monotonic() - started < 5
    assert _nothing_left(tmp_path)


# 5: a captive portal --------------------------------------------------------------------------------------------------

PAGE = b"\n<!DOCTYPE html><html><body>Please log in</body></html>" * 10


def test_05_a_web_page_is_refused_by_its_content_type(server: Server, tmp_path: Path) -> None:
    url = server.answer("/w.pth", file(PAGE, Content_Type="text/html; charset=utf-8"))
    with pytest.raises(DownloadError, match="text/html"):
        download(url, tmp_path / "w.pth", **FAST)
    assert len(server.requests) == 1
    assert _nothing_left(tmp_path)


def test_05_a_web_page_is_refused_by_its_first_bytes(server: Server, tmp_path: Path) -> None:
    url = server.answer("/w.pth", file(PAGE))
    with pytest.raises(DownloadError, match="web page"):
        download(url, tmp_path / "w.pth", **FAST)
    assert _nothing_left(tmp_path)


# 6: refusals and busy servers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_06_a_busy_server_is_asked_again(server: Server, tmp_path: Path, code: int) -> None:
    url = server.answer("/w.pth", status(code), status(code), file(DATA))
    assert download(url, tmp_path / "w.pth", **FAST).read_bytes() == DATA


def test_06_a_server_that_stays_busy_is_named_with_its_answer(server: Server, tmp_path: Path) -> None:
    url = server.answer("/w.pth", status(503))
    with pytest.raises(DownloadError, match="503 Service Unavailable, 3 times"):
        download(url, tmp_path / "w.pth", attempts=3, **FAST)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_06_retry_after_is_honoured(server: Server, tmp_path: Path, form: str) -> None:
    started = time.time()
    wait = "1" if form == "seconds" else formatdate(started + 2, usegmt=True)  # a date loses its fraction of a second
    download(server.answer("/w.pth", status(429, Retry_After=wait), file(DATA)), tmp_path / "w.pth", **FAST)
    assert 0.99 < time.time() - started < 10


def test_06_a_retry_after_that_says_nothing_is_ignored(server: Server, tmp_path: Path) -> None:
    url = server.answer("/w.pth", status(429, Retry_After="soon"), file(DATA))
    assert download(url, tmp_path / "w.pth", **FAST).read_bytes() == DATA


def test_06_a_server_that_asks_for_an_hour_is_reported_at_once(server: Server, tmp_path: Path) -> None:
    url = server.answer("/w.pth", status(429, Retry_After="3600"))
    with pytest.raises(DownloadError, match="3,600 s"):
        download(url, tmp_path / "w.pth", **FAST)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 451])
def test_06_a_refusal_is_final(server: Server, tmp_path: Path, code: int) -> None:
    url = server.answer("/w.pth", status(code))
    with pytest.raises(DownloadError, match=f"{code}.*{url}"):
        download(url, tmp_path / "w.pth", **FAST)
    assert len(server.requests) == 1
    assert _nothing_left(tmp_path)


# 7: redirects and TLS -------------------------------------------------------------------------------------------------


def test_07_redirects_on_loopback_are_followed(server: Server, tmp_path: Path) -> None:
    server.answer("/there", redirect("/w.pth"))
    server.answer("/w.pth", file(DATA))
    assert download(server.answer("/here", redirect("there", 307)), tmp_path / "w", **FAST).read_bytes() == DATA


@pytest.mark.parametrize("where", ["http://example.org/w.pth", "ftp://127.0.0.1/w.pth", "file:///etc/passwd"])
def test_07_a_redirect_to_anything_but_https_is_refused_before_it_is_asked(
    server: Server, tmp_path: Path, where: str
) -> None:
    server.answer("/second", redirect(where))
    with pytest.raises(DownloadError, match=rf"refusing {where} \(redirected from {server.url('/second')}\)"):
        download(server.answer("/first", redirect("/second")), tmp_path / "w.pth", **FAST)
    assert _nothing_left(tmp_path)


def test_07_endless_redirects_end(server: Server, tmp_path: Path) -> None:
    url = server.answer("/w.pth", redirect("/w.pth"))
    with pytest.raises(DownloadError, match="more than 10 times"):
        download(url, tmp_path / "w.pth", **FAST)


@pytest.mark.parametrize("url", ["http://example.org/w.pth", "/etc/passwd", "https:///w.pth", "http://127.0.0.1.evil/"])
def test_07_plain_http_is_refused_off_loopback(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError, match="https only"):
        download(url, tmp_path / "w.pth", **FAST)


def test_07_a_server_without_tls_is_refused(server: Server, tmp_path: Path) -> None:
    url = server.answer("/w.pth", file(DATA)).replace("http:", "https:")
    with pytest.raises(DownloadError, match="TLS failed"):
        download(url, tmp_path / "w.pth", **FAST)
    assert _nothing_left(tmp_path)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate; it is not installed")
def test_07_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    import ssl

    key, certificate, cache = tmp_path / "key.pem", tmp_path / "certificate.pem", tmp_path / "cache"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*make.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Server(tls=context) as server:
        url = server.answer("/w.pth", file(DATA))
        with pytest.raises(DownloadError, match=r"TLS failed.*self.signed certificate"):
            download(url, cache / "w.pth", **FAST)
        assert server.requests == []
    assert _nothing_left(cache)


# 8: disk full ---------------------------------------------------------------------------------------------------------

FILL = """
import resource, signal, sys
from barlowtwins.zoo.download import download
from barlowtwins.core.errors import DownloadError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    download(sys.argv[1], sys.argv[2], progress=False)
except DownloadError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file-size limits are of POSIX")
@pytest.mark.parametrize("known", [True, False], ids=["with length", "without"])
def test_08_a_disk_that_fills_up_is_named_with_the_bytes_that_are_needed(
    server: Server, tmp_path: Path, known: bool
) -> None:
    url = server.answer("/w.pth", file(DATA) if known else without_length(DATA))
    target = tmp_path / "w.pth"
    done = subprocess.run([sys.executable, "-c", FILL, url, target], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"no space left to write {target}" in done.stdout
    assert ("300,000 bytes are needed" in done.stdout) == known
    assert len(done.stdout.splitlines()) == 1
    assert _nothing_left(tmp_path)


def test_08_a_file_larger_than_the_disk_is_refused_before_its_first_byte(server: Server, tmp_path: Path) -> None:
    exabyte = 1 << 60
    url = server.answer("/w.pth", drop(DATA, after=0, claim=exabyte))
    with pytest.raises(DownloadError, match=rf"no space left .*w\.pth.* {exabyte:,} bytes are needed"):
        download(url, tmp_path / "w.pth", **FAST)
    assert len(server.requests) == 1
    assert _nothing_left(tmp_path)


# 9: offline -----------------------------------------------------------------------------------------------------------


def test_09_offline_a_verified_file_in_the_cache_serves(tmp_path: Path) -> None:
    with Server() as gone:
        url = gone.answer("/w.pth", file(DATA))
        download(url, tmp_path / "w.pth", sha256=SHA256, **FAST)
    assert download(url, tmp_path / "w.pth", sha256=SHA256, **FAST).read_bytes() == DATA


def test_09_offline_the_error_says_which_file_to_put_where(tmp_path: Path) -> None:
    with Server() as gone:
        url = gone.url("/w.pth")
    with pytest.raises(DownloadError) as caught:
        download(url, tmp_path / "weights-1234.pth", **FAST)
    for what in (url, "Connection refused", "weights-1234.pth", str(tmp_path)):
        assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_09_offline_a_file_put_there_by_hand_serves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Server() as gone:
        url = gone.url("/w.pth")
    target = tmp_path / "w.pth"
    target.write_bytes(DATA)
    assert download(url, target, sha256=SHA256[:10], **FAST) == target
    assert not caplog.records
    assert (tmp_path / "w.pth.sha256").read_text() == f"{SHA256}  w.pth\n"  # the prefix is now a whole digest


def test_an_interrupt_leaves_nothing(server: Server, tmp_path: Path) -> None:
    import signal

    url = server.answer("/w.pth", slowly(DATA, pieces=100, pause=0.1))
    threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        download(url, tmp_path / "w.pth", progress=False)
    assert _nothing_left(tmp_path)


def test_what_is_tried_again_is_logged(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "barlowtwins")
    download(server.answer("/w.pth", status(503), file(DATA)), tmp_path / "w.pth", sha256=SHA256, **FAST)
    assert [record.getMessage() for record in caplog.records] == [
        "/w.pth: the server answers 503 Service Unavailable; next try in 0.0 s"
    ]
