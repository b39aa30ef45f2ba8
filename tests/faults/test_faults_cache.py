"""FAULTS 10-15: rotten, read-only and crowded caches, with real processes, kills and permissions."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import Server, file, slowly
from weight_files import backbone_state, equal, record, saved, sha256, write_registry

from barlowtwins.core.errors import DownloadError, WeightsError
from barlowtwins.zoo.download import download
from barlowtwins.zoo.weights import load_weights

DATA = random.Random(0).randbytes(200_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
FAST = {"progress": False, "timeout": 0.3, "backoff": 0.01}
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and permissions are of POSIX")

# A process that fetches argv[1] to argv[2]; as root it gives its rights up first, for root may write everywhere.
FETCH = """
import os, sys
from barlowtwins.zoo.download import download
from barlowtwins.core.errors import BarlowTwinsError
if "drop" in sys.argv and os.getuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
options = {name: value for name, _, value in (word.partition("=") for word in sys.argv[3:]) if value}
try:
    print(download(sys.argv[1], sys.argv[2], progress=False, sha256=options.get("sha256"),
                   timeout=float(options.get("timeout", 30)), attempts=1))
except BarlowTwinsError as error:
    print(type(error).__name__, error)
"""
Fetch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def fetch() -> Iterator[Fetch]:
    """Start processes that fetch; none outlives the test."""
    running: list[subprocess.Popen[str]] = []

    def start(url: str, target: Path, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", FETCH, url, str(target), *words]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder whose parents everybody may enter; pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)
        os.chmod(name, 0o755)


def _wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def _flip_one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# 10: rot --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("published", [64, 10, 0], ids=["whole digest", "prefix", "no digest"])
def test_10_one_flipped_bit_is_noticed_at_load_and_mended(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    published: int,
) -> None:
    state = backbone_state()
    data = saved(state)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    entry = record("tiny", server.answer("/tiny.pth", file(data)), sha256=sha256(data)[:published] or None)
    monkeypatch.setenv("BARLOWTWINS_REGISTRY", str(write_registry(tmp_path / "registry.json", entry)))
    path = load_weights("tiny", progress=False).path
    _flip_one_bit(path)
    caplog.clear()
    assert equal(load_weights("tiny", progress=False).backbone, state)
    assert [text for text in caplog.messages if "is damaged" in text]
    assert len(server.requests) == 2
    assert path.read_bytes() == data


def test_10_a_rotten_file_is_refused_offline(tmp_path: Path) -> None:
    target = tmp_path / "w.pth"
    with Server() as gone:
        url = gone.answer("/w.pth", file(DATA))
        download(url, target, **FAST)
    _flip_one_bit(target)
    rotten = target.read_bytes()
    with pytest.raises(DownloadError, match=r"w\.pth is damaged and could not be fetched again; .*Connection refused"):
        download(url, target, **FAST)
    assert target.read_bytes() == rotten  # it is the user's to throw away


def test_10_a_server_that_changed_its_file_is_not_trusted_over_our_record(server: Server, tmp_path: Path) -> None:
    """Nothing is published about this file, but what was first seen is remembered."""
    other = DATA[::-1]
    url = server.answer("/w.pth", file(DATA), file(other))
    target = tmp_path / "w.pth"
    download(url, target, **FAST)
    target.unlink()
    with pytest.raises(DownloadError, match=rf"sha256 {sha256(other)}, not {SHA256} \(recorded in .*w.pth.sha256\)"):
        download(url, target, **FAST)
    assert not target.exists()


# 11: read-only --------------------------------------------------------------------------------------------------------


@posix
def test_11_a_read_only_cache_serves_what_it_has_and_says_what_it_cannot(
    server: Server, shared_folder: Path, fetch: Fetch
) -> None:
    url = server.answer("/w.pth", file(DATA))
    target = shared_folder / "w.pth"
    target.write_bytes(DATA)
    shared_folder.chmod(0o555)
    hit, said = fetch(url, target, "drop", f"sha256={SHA256[:10]}").communicate(timeout=30)
    assert (hit.strip(), said) == (str(target), "")
    miss, _ = fetch(url, shared_folder / "other.pth", "drop").communicate(timeout=30)
    assert miss.startswith(f"DownloadError cannot write to {shared_folder}: Permission denied")
    assert "TORCH_HOME" in miss
    assert sorted(path.name for path in shared_folder.iterdir()) == ["w.pth"]


# 12: TORCH_HOME -------------------------------------------------------------------------------------------------------


def test_12_torch_home_with_spaces_is_used(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "my torch, größer"
    monkeypatch.setenv("TORCH_HOME", str(home))
    data = saved(backbone_state())
    path = load_weights(server.answer("/tiny.pth", file(data)), progress=False).path
    assert path.parent == home / "hub" / "checkpoints"
    assert path.read_bytes() == data


def test_12_torch_home_that_cannot_be_made_is_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match=r"cannot write to .*file/hub/checkpoints.*TORCH_HOME"):
        load_weights(server.answer("/tiny.pth", file(DATA)), progress=False)
    assert server.requests == []


# 13: partial files ----------------------------------------------------------------------------------------------------


@posix
def test_13_what_a_killed_process_leaves_is_ignored_and_swept_when_a_day_old(
    server: Server, tmp_path: Path, fetch: Fetch
) -> None:
    url = server.answer("/w.pth", slowly(DATA, pieces=4, pause=30), file(DATA))
    target = tmp_path / "w.pth"
    killed = fetch(url, target)
    _wait_for(lambda: server.requests and list(tmp_path.glob(".w.pth.*.partial")))
    killed.kill()
    killed.wait()
    (partial,) = tmp_path.glob(".w.pth.*.partial")

    assert download(url, target, **FAST).read_bytes() == DATA
    assert partial.exists()  # it may belong to somebody who is still at work
    day_ago = time.time() - 86_401
    os.utime(partial, (day_ago, day_ago))
    download(server.answer("/other.pth", file(DATA)), tmp_path / "other.pth", **FAST)
    assert not partial.exists()


# 14: a folder in the way ----------------------------------------------------------------------------------------------


def test_14_a_folder_in_the_place_of_the_file_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.pth").mkdir()
    with pytest.raises(DownloadError, match=r"w\.pth is a folder"):
        download(server.answer("/w.pth", file(DATA)), tmp_path / "w.pth", **FAST)
    assert server.requests == []


# 15: crowds -----------------------------------------------------------------------------------------------------------


def test_15_eight_processes_at_once_fetch_one_file_once(server: Server, tmp_path: Path, fetch: Fetch) -> None:
    url = server.answer("/w.pth", slowly(DATA, pieces=20, pause=0.1))
    processes = [fetch(url, tmp_path / "w.pth", f"sha256={SHA256}") for _ in range(8)]
    for process in processes:
        said, complaint = process.communicate(timeout=60)
        assert (said.strip(), complaint) == (str(tmp_path / "w.pth"), "")
    assert (tmp_path / "w.pth").read_bytes() == DATA
    assert len(server.requests) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


@posix
def test_15_nobody_waits_for_a_dead_owner(server: Server, tmp_path: Path, fetch: Fetch) -> None:
    url = server.answer("/w.pth", slowly(DATA, pieces=4, pause=30), file(DATA))
    owner = fetch(url, tmp_path / "w.pth")
    _wait_for(lambda: server.requests and list(tmp_path.glob(".w.pth.*.partial")))
    owner.kill()
    owner.wait()
    started = time.monotonic()
    download(url, tmp_path / "w.pth", progress=False)
    assert time.monotonic() - started < 10  # far less than the 60 s that a living owner is given


@posix
def test_15_nobody_waits_for_ever_for_an_owner_that_hangs(
    server: Server, tmp_path: Path, fetch: Fetch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    url = server.answer("/w.pth", slowly(DATA, pieces=4, pause=30), file(DATA))
    owner = fetch(url, tmp_path / "w.pth")
    _wait_for(lambda: server.requests and list(tmp_path.glob(".w.pth.*.partial")))
    owner.send_signal(signal.SIGSTOP)
    assert download(url, tmp_path / "w.pth", **FAST).read_bytes() == DATA


def test_two_weights_of_the_same_name_do_not_collide(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two publishers both call their file resnet50.pth."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    states = [backbone_state(seed=seed) for seed in (1, 2)]
    urls = [server.answer(f"/{n}/resnet50.pth", file(saved(state))) for n, state in enumerate(states)]
    for _ in range(2):  # from the server, then from the cache
        for url, state in zip(urls, states, strict=True):
            assert equal(load_weights(url, progress=False).backbone, state)
    assert len(server.requests) == 2


def test_12_a_file_that_its_owner_may_not_read_is_named(tmp_path: Path) -> None:
    loop = tmp_path / "loop.pth"
    loop.symlink_to(loop)
    with pytest.raises(WeightsError, match=r"loop\.pth"):
        load_weights(loop)
