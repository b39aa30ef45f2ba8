"""Many at once and many in all: sixteen `torch.hub.load` in processes (15), 50,000 files embedded in constant memory
(51); a disk that is really full (8, 42, 54)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from process_pool import ProcessPool
from servers import Server, slowly, without_length
from tiny import write_images, write_weights
from training import outcome, tiny, uninterrupted
from weight_files import backbone_state, saved, sha256

from barlowtwins.config import EmbedConfig
from barlowtwins.core.errors import DownloadError, OutputError
from barlowtwins.embedding.embed import embed
from barlowtwins.embedding.embeddings import open_embeddings
from barlowtwins.pretraining import pretrain
from barlowtwins.runs.checkpoint import list_checkpoints
from barlowtwins.zoo.download import download

Counted = Callable[[str, int], None]
ROOT = Path(__file__).parent.parent.parent
long = (pytest.mark.exhaustive, pytest.mark.timeout(1800))
posix = pytest.mark.skipif(sys.platform == "win32", reason="forks of POSIX")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, mounts a file system")


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPool]:
    with ProcessPool() as running:
        yield running


# A crowd --------------------------------------------------------------------------------------------------------------

# As a fresh process does it, but for torch, which is imported already: the package comes from the hub's cache.
HUB = """
import hashlib, os, sys
for name in [name for name in sys.modules if name.split(".")[0] == "barlowtwins"]:
    del sys.modules[name]
os.environ["TORCH_HOME"], url = sys.argv[1:]
import torch
model = torch.hub.load("OWNER/barlowtwins:v0.1.0", "resnet18", weights=url, trust_repo=True, progress=False)
package = sys.modules["barlowtwins"].__file__
digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()
print(digest, package)
"""


@posix
@pytest.mark.parametrize("crowd", [pytest.param(4, marks=pytest.mark.slow), pytest.param(16, marks=long)])
def test_15_processes_that_load_from_the_hub_at_once_all_get_one_weight_fetched_once(
    pool: ProcessPool, server: Server, tmp_path: Path, crowd: int, counted: Counted
) -> None:
    repo = tmp_path / "hub" / "OWNER_barlowtwins_v0.1.0"  # as `torch.hub` lays out what it gets from GitHub
    for name in ("barlowtwins", "weights"):
        shutil.copytree(ROOT / name, repo / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "hubconf.py", repo)
    data = saved(backbone_state("resnet18"))
    url = f"{server.answer('/w.pth', slowly(data, pieces=20, pause=0.1))}#sha256={sha256(data)}"
    logs = [tmp_path / f"log{number}" for number in range(crowd)]
    children = [pool.start(str(tmp_path), url, code=HUB, log=log) for log in logs]
    for child in children:
        assert child.wait(300) == 0, child.output()
    said = {child.output().strip().splitlines()[-1] for child in children}
    assert len(said) == 1, said
    assert said.pop().endswith(str(repo / "barlowtwins" / "__init__.py"))
    assert len(server.requests) == 1
    assert not list(tmp_path.rglob("*.partial"))
    counted("processes", crowd)


# Much -----------------------------------------------------------------------------------------------------------------

EMBED = """
import sys
from barlowtwins.config import EmbedConfig
from barlowtwins.embedding.embed import embed
data, weights, out = sys.argv[1:]
embed(EmbedConfig(data, weights, out, device="cpu", workers=0, batch_size=64, runtime="torch"))
status = dict(line.split(":") for line in open("/proc/self/status") if line.startswith("Vm"))
print("MiB", int(status["VmHWM"].split()[0]) // 1024)
"""


def resident(pool: ProcessPool, work: Path, files: int) -> int:
    """MiB of resident memory at the most, of a process that embeds so many files."""
    images = write_images(work / "some", 50, classes=5)
    contents = [path.read_bytes() for path in sorted(images.rglob("*.png"))]
    for number in range(files):
        place = work / f"{files}" / f"folder{number % 100:03}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"an image with a name of some length {number:06}.png").write_bytes(contents[number % 50])
    weights, out = write_weights(work / "w.safetensors"), work / f"out{files}"
    child = pool.start(str(work / f"{files}"), str(weights), str(out), code=EMBED, log=work / f"log{files}")
    assert child.wait(1500) == 0, child.output()
    opened = open_embeddings(out)
    assert opened.features.shape[0] == sum(1 for _ in opened.index()) == files
    return int(child.output().rpartition("MiB")[2])


@linux
@pytest.mark.parametrize(
    ("few", "many"), [pytest.param(500, 5000, marks=pytest.mark.slow), pytest.param(5000, 50_000, marks=long)]
)
def test_51_many_files_are_embedded_in_the_memory_of_a_few(
    pool: ProcessPool, tmp_path: Path, few: int, many: int, counted: Counted
) -> None:
    small, large = resident(pool, tmp_path, few), resident(pool, tmp_path, many)
    counted("files", many)
    for files, memory in ((few, small), (many, large)):  # counts of one name are added up, and 5,000 comes twice
        counted(f"MiB at {files:,} (of {few:,} and {many:,})", memory)
    assert large - small < 48, (small, large)


# A disk that is full --------------------------------------------------------------------------------------------------


class Disk:
    """A file system of its own, small, in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def full(self, *, free: int) -> Iterator[None]:
        """Leave `free` bytes, for a while."""
        left = os.statvfs(self.folder)
        filler = self.folder / "filler"
        with open(filler, "wb") as file:
            file.write(bytes(max(0, left.f_bavail * left.f_frsize - free)))
        try:
            yield
        finally:
            filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """64 MiB of tmpfs. Where mounting is not allowed, the tests with a limit of file sizes stand in for it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "barlowtwins-test", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    yield Disk(folder)
    subprocess.run(["umount", str(folder)], check=True)


def left_behind(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.partial")]


@linux
def test_08_a_full_disk_ends_a_download_with_the_bytes_that_are_needed(disk: Disk, server: Server) -> None:
    data = bytes(3_000_000)
    announced, silent = (
        server.answer("/a.pth", slowly(data, pieces=3, pause=0)),
        server.answer("/b", without_length(data)),
    )
    with disk.full(free=1_000_000):
        for url in (announced, silent):
            with pytest.raises((OutputError, DownloadError), match=r"no space left to write .*w\.pth"):
                download(url, disk.folder / "w.pth", progress=False)
            assert sorted(path.name for path in disk.folder.iterdir()) == ["filler"]
    assert download(announced, disk.folder / "w.pth", progress=False).read_bytes() == data


@linux
def test_42_a_full_disk_warns_then_ends_the_run_and_costs_nothing(
    disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    run = disk.folder / "run"
    pretrain(tiny(run, max_steps=2))
    with disk.full(free=100_000), pytest.raises(OutputError, match=r"no space left to write .*step-00000006\.pt"):
        pretrain(tiny(run, checkpoint_every=3))
    assert capsys.readouterr().err.count("warning: no space left") == 1
    assert [path.name for path in list_checkpoints(run)] == ["step-00000002.pt"]
    assert left_behind(disk.folder) == []
    pretrain(tiny(run))
    assert outcome(run) == uninterrupted()


@linux
def test_54_a_full_disk_ends_embedding_which_goes_on_later(disk: Disk, tmp_path: Path) -> None:
    weights, images = write_weights(tmp_path / "w.safetensors"), write_images(tmp_path / "images", 100)
    config = EmbedConfig(str(images), str(weights), str(disk.folder / "out"), device="cpu", workers=0)
    with disk.full(free=60_000), pytest.raises(OutputError, match="no space left to write"):
        embed(config, shard_rows=25)
    assert left_behind(disk.folder) == []
    assert len(list((disk.folder / "out").rglob("*.npz"))) > 0
    embed(config, shard_rows=25)
    embed(EmbedConfig(str(images), str(weights), str(tmp_path / "out"), device="cpu", workers=0), shard_rows=25)
    for name in ("embeddings.npy", "index.csv"):
        assert (disk.folder / "out" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
