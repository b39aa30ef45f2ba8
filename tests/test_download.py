"""What a download keeps and remembers; how it fails is in faults/test_faults_download.py."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from servers import Server, file, slowly
from weight_files import sha256

from barlowtwins.core.errors import DownloadError
from barlowtwins.zoo.download import download, fetch, recorded_digest
from barlowtwins.zoo.transfer import Transfer

DATA = random.Random(0).randbytes(200_000)
SHA256 = sha256(DATA)


def test_a_file_is_fetched_once_into_a_folder_that_is_made_for_it(server: Server, tmp_path: Path) -> None:
    url, target = server.answer("/w.pth", file(DATA)), tmp_path / "a" / "b" / "w.pth"
    for _ in range(2):
        assert download(url, target, sha256=SHA256, size=len(DATA), progress=False) == target
        assert target.read_bytes() == DATA
    assert len(server.requests) == 1
    assert [path.name for path in target.parent.iterdir()] == ["w.pth"]


def test_without_a_published_digest_the_first_download_is_remembered(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, target = server.answer("/w.pth", file(DATA)), tmp_path / "w.pth"
    first = fetch(Transfer(url, target, progress=False))
    assert (first.sha256, first.verified) == (SHA256, False)
    assert caplog.messages == [f"{target}: no digest is published; recorded, not verified: sha256 {SHA256}"]
    assert recorded_digest(target) == SHA256
    second = fetch(Transfer(url, target, progress=False))
    assert second == first
    assert len(caplog.messages) == 1  # said once


def test_the_recorded_digest_is_in_the_form_of_sha256sum(server: Server, tmp_path: Path) -> None:
    download(server.answer("/w.pth", file(DATA)), tmp_path / "w.pth", progress=False)
    assert (tmp_path / "w.pth.sha256").read_text() == f"{SHA256}  w.pth\n"


def test_a_prefix_verifies_and_the_whole_digest_is_remembered(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, target = server.answer("/w.pth", file(DATA)), tmp_path / "w.pth"
    assert fetch(Transfer(url, target, progress=False), SHA256[:8]).verified
    assert recorded_digest(target) == SHA256
    assert caplog.messages == []


def test_a_published_digest_outranks_a_record_that_contradicts_it(server: Server, tmp_path: Path) -> None:
    url, target = server.answer("/w.pth", file(DATA)), tmp_path / "w.pth"
    (tmp_path / "w.pth.sha256").write_text(f"{'0' * 64}  w.pth\n")
    assert fetch(Transfer(url, target, progress=False), SHA256[:8]).sha256 == SHA256
    assert recorded_digest(target) == SHA256


@pytest.mark.parametrize("text", ["", "nonsense", "ABC  w.pth", "\x00\xff", "0" * 63])
def test_a_record_that_is_no_digest_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "w.pth.sha256").write_text(text, encoding="latin-1")
    assert recorded_digest(tmp_path / "w.pth") is None


def test_a_digest_may_be_written_in_capitals(server: Server, tmp_path: Path) -> None:
    download(server.answer("/w.pth", file(DATA)), tmp_path / "w.pth", sha256=SHA256.upper(), progress=False)


def test_a_size_that_is_not_the_one_on_record_is_refused_before_the_body(server: Server, tmp_path: Path) -> None:
    url = server.answer("/w.pth", file(DATA))
    with pytest.raises(DownloadError, match="has 200,000 bytes; 200,001 are on record"):
        download(url, tmp_path / "w.pth", size=len(DATA) + 1, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are of POSIX")
def test_a_bar_is_shown_on_a_terminal_only(server: Server, tmp_path: Path) -> None:
    import os

    code = "import sys; from barlowtwins.zoo.download import download; download(sys.argv[1], sys.argv[2], sha256='')"
    url = server.answer("/w.pth", slowly(DATA, pieces=3, pause=0.2))
    silent = subprocess.run(
        [sys.executable, "-c", code, url, str(tmp_path / "a")], capture_output=True, text=True, check=True, timeout=60
    )
    assert (silent.stdout, "100%" in silent.stderr) == ("", False)
    master, slave = os.openpty()
    subprocess.run([sys.executable, "-c", code, url, str(tmp_path / "b")], stderr=slave, check=True, timeout=60)
    os.close(slave)
    shown = os.read(master, 100_000).decode()
    os.close(master)
    assert "b: 100%" in shown and "200k/200k" in shown


def test_a_quick_download_prints_nothing(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    download(server.answer("/w.pth", file(DATA)), tmp_path / "w.pth", sha256=SHA256)
    assert capfd.readouterr() == ("", "")
