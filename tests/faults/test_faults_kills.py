"""FAULTS 39, 44 and 51, at length: `kill -9` at random moments and at each boundary of every write, of whole runs.

After each kill the same command goes on, and the end must be equal to the bit to that of a run which nothing happened
to. Processes are forked from one that has imported torch (see pool.py); the signal and the process are real.
"""

from __future__ import annotations

import functools
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crashes import passed, worth_dying_at
from process_pool import Child, ProcessPool
from tiny import write_images, write_weights
from training import outcome, tiny, words

from barlowtwins.core.files import PARTIAL_SUFFIX

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and forks of POSIX")

Counted = Callable[[str, int], None]
EMBED = """
import sys
from barlowtwins.config import EmbedConfig
from barlowtwins.embedding.embed import embed
data, weights, out, rows, workers = sys.argv[1:]
embed(EmbedConfig(data, weights, out, device="cpu", workers=int(workers), batch_size=5), shard_rows=int(rows))
"""


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPool]:
    with ProcessPool() as running:
        yield running


class Job:
    """A command that makes a folder, as a process that is there in milliseconds."""

    def __init__(self, pool: ProcessPool, work: Path) -> None:
        self.pool, self.work = pool, work
        self.out, self.log, self.notes = work / "out", work / "log", work / "points"

    def start(self, *, at: int | None = None, workers: int = 0) -> Child:
        """Start it, to die at its point number `at` if that is told."""
        before = "" if at is None else f"import crashes; crashes.arm({str(self.out)!r}, {at}, {str(self.notes)!r})"
        return self.pool.start(*self.arguments(workers), log=self.log, before=before, **self.code())

    def finish(self) -> Any:
        """Let it go on to its end, and give what it came to."""
        child = self.start()
        assert child.wait() == 0, child.output()
        return self.outcome()

    def is_complete(self) -> bool:
        """Whether a process was killed after its last change, so that there is nothing to go on with."""
        return False

    def clean(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)

    def arguments(self, workers: int) -> list[str]:
        raise NotImplementedError

    def outcome(self) -> Any:
        raise NotImplementedError

    def code(self) -> dict[str, str]:
        return {}


class Training(Job):
    """Pretraining with a checkpoint a step."""

    def __init__(self, pool: ProcessPool, work: Path, *, epochs: int) -> None:
        super().__init__(pool, work)
        self.config = tiny(self.out, data="shapes:32", batch_size=8, epochs=epochs, checkpoint_every=1)

    def arguments(self, workers: int) -> list[str]:
        return [*words(self.config), "--workers", str(workers)]

    def outcome(self) -> Any:
        left = [path.name for path in self.out.rglob(f"*{PARTIAL_SUFFIX}")]
        return {**outcome(self.out), "left behind": left}


class Embedding(Job):
    """Embedding in shards of a few rows; one image is unreadable."""

    def __init__(self, pool: ProcessPool, work: Path, *, images: int, rows: int) -> None:
        super().__init__(pool, work)
        self.rows = rows
        self.images = write_images(work / "images", images)
        (self.images / "0003.png").write_bytes(b"")
        self.weights = write_weights(work / "tiny.safetensors")

    def arguments(self, workers: int) -> list[str]:
        return [str(self.images), str(self.weights), str(self.out), str(self.rows), str(workers)]

    def outcome(self) -> Any:
        """All files but the lock, which a killed process leaves behind."""
        files = [path for path in self.out.rglob("*") if path.is_file() and not path.name.startswith(".lock")]
        return {str(path.relative_to(self.out)): path.read_bytes() for path in files}

    def is_complete(self) -> bool:
        return (self.out / "meta.json").exists() and not (self.out / "shards").exists()

    def code(self) -> dict[str, str]:
        return {"code": EMBED}


def at_random_moments(job: Job, kills: int, seed: int, counted: Counted) -> None:
    """Kill it again and again, each time a little further on, and then from the start; each end is compared."""
    started = time.monotonic()
    undisturbed = job.finish()
    whole = time.monotonic() - started
    job.clean()

    rng, killed, ends, met = random.Random(seed), 0, 0, set()
    while killed < kills:
        child = job.start(workers=rng.choice([0, 0, 1]))
        time.sleep(rng.uniform(0.02, whole / 4))
        child.send_to_all(signal.SIGKILL)
        code = child.wait()
        assert code in (-signal.SIGKILL, 0), child.output()
        killed += code == -signal.SIGKILL
        met.add(frozenset(path.name for path in job.out.rglob("*") if PARTIAL_SUFFIX not in path.name))
        if code == 0 or job.is_complete():
            assert job.outcome() == undisturbed
            ends += 1
            job.clean()
        assert "Traceback" not in child.output(), child.output()
    if job.out.exists():
        assert job.finish() == undisturbed
    assert len(met) >= min(kills, 3)  # the kills met different stages
    counted("kills", killed)
    counted("ends", ends + 1)


def at_every_write(job: Job, counted: Counted, *, writes: int, every: int = 1) -> None:
    """Kill it at one point of its way to the disk, and go on; the same for the next point, from the start."""
    child = job.start(at=-1)
    assert child.wait() == 0, child.output()
    undisturbed, points = job.outcome(), passed(job.notes)
    assert {"open", "write", "fsync", "fsynced", "rename", "remove", "mkdir"} <= set(points)
    chosen = worth_dying_at(points, writes=writes)[::every]
    for at in chosen:
        job.clean()
        child = job.start(at=at)
        assert child.wait() == -signal.SIGKILL, child.output()
        end = job.outcome() if job.is_complete() else job.finish()
        assert end == undisturbed, f"killed at point {at}, {points[at]}"
    counted("kills", len(chosen))
    counted("points in all", len(points))


exhaustive = pytest.mark.exhaustive, pytest.mark.timeout(3600)
long = functools.partial(pytest.param, marks=exhaustive)


@pytest.mark.parametrize("kills", [long(100)])  # a few in a usual run: test_faults_training.py
def test_39_44_training_killed_at_random_moments_ends_as_if_nothing_happened(
    pool: ProcessPool, tmp_path: Path, counted: Counted, kills: int
) -> None:
    at_random_moments(Training(pool, tmp_path, epochs=12), kills, seed=kills, counted=counted)


@pytest.mark.parametrize("kills", [6, long(100)])
def test_51_embedding_killed_at_random_moments_ends_as_if_nothing_happened(
    pool: ProcessPool, tmp_path: Path, counted: Counted, kills: int
) -> None:
    at_random_moments(Embedding(pool, tmp_path, images=400, rows=10), kills, seed=kills, counted=counted)


@pytest.mark.parametrize(("writes", "every"), [pytest.param(10**6, 40, marks=pytest.mark.slow), long(200, 1)])
def test_39_44_training_killed_at_each_boundary_of_every_write_ends_as_if_nothing_happened(
    pool: ProcessPool, tmp_path: Path, counted: Counted, writes: int, every: int
) -> None:
    at_every_write(Training(pool, tmp_path, epochs=1), counted, writes=writes, every=every)


@pytest.mark.parametrize(("writes", "every"), [(10**6, 12), long(2, 1)])
def test_51_embedding_killed_at_each_boundary_of_every_write_ends_as_if_nothing_happened(
    pool: ProcessPool, tmp_path: Path, counted: Counted, writes: int, every: int
) -> None:
    at_every_write(Embedding(pool, tmp_path, images=25, rows=10), counted, writes=writes, every=every)
