"""What a training run must survive: signals, kill -9 at any moment, full disks, rotten checkpoints, dying workers."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from process_pool import Child, ProcessPool
from training import full_disk, log, outcome, steps, tiny, uninterrupted, wait_until, words

from barlowtwins.core.errors import CheckpointError, OutputError, RunLockedError, TrainingError
from barlowtwins.core.files import PARTIAL_SUFFIX
from barlowtwins.pretraining import pretrain
from barlowtwins.runs.checkpoint import list_checkpoints, load_newest
from barlowtwins.runs.guards import FiniteGuard
from barlowtwins.runs.run_folder import RunFolder
from barlowtwins.views.twins import epoch_order

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and forks of POSIX")

# 64 steps: enough to be stopped in the middle, many times; with processes that read, which images in memory need not
LONG = {"batch_size": 8, "epochs": 8, "knn_every": 4, "augment_backend": "pillow"}


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPool]:
    with ProcessPool() as running:
        yield running


def partials(run: Path) -> list[str]:
    return [path.name for path in run.rglob(f"*{PARTIAL_SUFFIX}")]


def wait_for_steps(run: Path, number: int, child: Child) -> None:
    def reached() -> bool:
        assert "error" not in child.output(), child.output()
        return len(steps(run)) >= number

    wait_until(reached)


# Signals (row 41), a mid-epoch resume (44), kill -9, two runs in one folder (16) --------------------------------------


def test_16_41_44_a_run_stopped_by_every_signal_ends_as_if_it_never_was(pool: ProcessPool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = tiny(run, **LONG, checkpoint_every=7)
    log_file = tmp_path / "log"

    # SIGTERM to a command as a user starts it, and to its workers.
    command = [sys.executable, "-m", "barlowtwins", *words(config), "--workers", "2"]
    with open(log_file, "wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    wait_until(lambda: len(steps(run)) >= 5 or process.poll() is not None)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 75, log_file.read_text()
    said = log_file.read_text().splitlines()
    assert said[0].startswith("shapes: 64 images"), said
    assert said[1].startswith("pretraining: "), said
    assert "stopped by SIGTERM after step" in said[-1]  # and none of the two workers said anything after it
    assert "the same command resumes from there" in said[-1]
    assert not [line for line in said if "Traceback" in line or "error" in line], said

    # Then one after the other, each from where the one before was.
    for number, workers in ((signal.SIGUSR1, 0), (signal.SIGINT, 2), (signal.SIGKILL, 1)):
        before = load_newest(run)
        assert before is not None
        assert before.step == steps(run)[-1]  # saved at the very step at which it stopped
        child = pool.start(*words(config), "--workers", str(workers), log=tmp_path / number.name)
        wait_for_steps(run, len(steps(run)) + 5, child)
        if number == signal.SIGUSR1:  # meanwhile nobody else may write there
            with pytest.raises(RunLockedError, match=rf"process {child.pid} on "):
                pretrain(config)
        child.send_to_all(number)
        assert child.wait() == (-9 if number == signal.SIGKILL else 75), child.output()
        assert f"resuming at step {before.step}" in child.output()
        assert number == signal.SIGKILL or f"stopped by {number.name} after step" in child.output()
        assert "Traceback" not in child.output()

    pretrain(config)
    assert outcome(run) == uninterrupted(**LONG)
    assert partials(run) == []


def test_41_a_second_interrupt_does_not_wait_for_a_slow_disk(pool: ProcessPool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = tiny(run, **LONG, checkpoint_every=1000)
    pretrain(dataclasses.replace(config, max_steps=2))
    slow = "import os, time; os.fsync = lambda file: time.sleep(100 if os.fstat(file).st_size > 10**7 else 0)"
    child = pool.start(*words(config), log=tmp_path / "log", before=slow)
    wait_for_steps(run, 3, child)
    child.send_to_all(signal.SIGINT)
    wait_until(lambda: any("step-" in name for name in partials(run)))
    time.sleep(0.1)
    start = time.monotonic()
    child.send_to_all(signal.SIGINT)
    assert child.wait() == 130
    assert time.monotonic() - start < 30
    assert child.output().splitlines()[-1].endswith("interrupted")
    assert [path.name for path in list_checkpoints(run)] == ["step-00000002.pt"]
    assert partials(run) == []


@pytest.mark.parametrize(("kills", "epochs"), [(4, 8), pytest.param(25, 60, marks=pytest.mark.exhaustive)])
def test_39_44_kills_at_random_moments_leave_no_trace(
    pool: ProcessPool, tmp_path: Path, kills: int, epochs: int
) -> None:
    run, rng = tmp_path / "run", random.Random(kills)
    config = tiny(run, **{**LONG, "epochs": epochs}, checkpoint_every=1)  # so that many a kill meets a save
    killed = 0
    for number in range(kills):
        done = list_checkpoints(run)[-1:]
        child = pool.start(*words(config), "--workers", str(number % 2), log=tmp_path / "log")
        if number % 2:  # at any moment, also before the first step
            time.sleep(rng.uniform(0.05, 1.0))
        else:  # with progress
            wait_until(lambda done=done: list_checkpoints(run)[-1:] != done)  # type: ignore[misc]
            time.sleep(rng.uniform(0, 0.1))
        child.send_to_all(signal.SIGKILL)
        code = child.wait()
        assert code in (-9, 0), child.output()
        killed += code == -9
        if code == 0:  # on a fast machine there is not enough to do
            break
    assert killed >= min(kills, 2)
    pretrain(config)
    assert outcome(run) == uninterrupted(**{**LONG, "epochs": epochs})
    assert partials(run) == []
    assert "warning" not in (tmp_path / "log").read_text()


# Kills at every boundary of a checkpoint write (row 39) ---------------------------------------------------------------

# Every call by which a file comes to be is a point at which the process can be killed, before and after it, and in the
# middle of each write. `sys.argv`: the RUN folder, the number of the point, and where to list the points passed.
SAVE_AND_DIE = """
import builtins, os, signal, sys
from pathlib import Path
import torch
from barlowtwins.runs.checkpoint import Checkpoint, Saver

run, at, passed = Path(sys.argv[1]), int(sys.argv[2]), []

def point(name):
    if len(passed) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    passed.append(name)

def around(module, name):
    real = getattr(module, name)
    def call(*args, **kwargs):
        point(f"before {name}")
        result = real(*args, **kwargs)
        point(f"after {name}")
        return result
    setattr(module, name, call)

class File:
    def __init__(self, file):
        self.file = file
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.file.close()
    def __getattr__(self, name):
        return getattr(self.file, name)
    def write(self, data):
        point("before write")
        half = len(data) // 2
        self.file.write(data[:half])
        self.file.flush()
        point("within write")
        self.file.write(data[half:])
        return len(data)

open_file = builtins.open
def open_and_watch(path, mode="r", *args, **kwargs):
    point("before open")
    file = open_file(path, mode, *args, **kwargs)
    return File(file) if "w" in mode else file

saver = Saver(run)
saver.save(Checkpoint(1, {"w": torch.full((2, 3), 1.0)}, {}, {}, {}))
for name in ("fsync", "replace", "unlink"):
    around(os, name)
builtins.open = open_and_watch
for step in (2, 3, 4):
    saver.save(Checkpoint(step, {"w": torch.full((2, 3), float(step))}, {}, {}, {}))
builtins.open = open_file
open_file(sys.argv[3], "w").write("\\n".join(passed))
"""


@pytest.mark.parametrize("writes", ["some", pytest.param("all", marks=pytest.mark.exhaustive)])
def test_39_a_kill_at_any_point_of_a_save_leaves_a_whole_checkpoint(
    pool: ProcessPool, tmp_path: Path, writes: str
) -> None:
    def save_and_die(at: int) -> int:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        arguments = (str(tmp_path / "run"), str(at), str(tmp_path / "points"))
        return pool.start(*arguments, code=SAVE_AND_DIE, log=tmp_path / "log").wait()

    assert save_and_die(1_000_000) == 0, (tmp_path / "log").read_text()
    points = (tmp_path / "points").read_text().splitlines()
    assert points.count("after replace") == 3
    assert {"before open", "before write", "within write", "before fsync", "before unlink", "after unlink"} <= {*points}

    alike = [at for at, name in enumerate(points) if name.endswith("write")]
    assert len(alike) > 50
    left_out = set(alike) - set(alike[::25]) if writes == "some" else set()
    for at in sorted(set(range(len(points))) - left_out):
        assert save_and_die(at) == -9
        newest = 1 + points[:at].count("after replace") + (points[at] == "after replace")
        found = load_newest(tmp_path / "run")
        assert found is not None
        assert found.step == newest, points[at]
        assert found.model["w"].tolist() == [[float(newest)] * 3] * 2
        RunFolder(tmp_path / "run").sweep()
        left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
        wanted = [f"step-{step:08d}.pt" for step in range(max(1, newest - 2), newest + 1)]
        assert left in (wanted, wanted[-2:]), points[at]


def test_39_kills_between_the_files_of_a_run_leave_no_trace(pool: ProcessPool, tmp_path: Path) -> None:
    """Each process dies at one rename: of the first checkpoint, of the last, of the weights, of a new configuration."""
    run = tmp_path / "run"
    dying = """
import os, signal
real = os.replace
def replace(source, target):
    if os.path.basename(target) == "{name}" and "{when}" == "before": os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
    if os.path.basename(target) == "{name}": os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
"""
    for name, when in (
        ("step-00000004.pt", "before"),
        ("config.json", "after"),
        ("step-00000008.pt", "after"),
        ("metrics.jsonl", "before"),
        ("step-00000012.pt", "before"),
        ("backbone.safetensors", "before"),
        ("backbone.safetensors", "after"),
    ):
        child = pool.start(*words(tiny(run)), log=tmp_path / "log", before=dying.format(name=name, when=when))
        assert child.wait() == -9, child.output()
    assert not (run / "model.safetensors").exists()
    pretrain(tiny(run))
    assert outcome(run) == uninterrupted()
    assert partials(run) == []


# Rotten checkpoints (row 40) ------------------------------------------------------------------------------------------


def test_40_a_run_whose_newest_checkpoint_is_rotten_goes_on_from_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    pretrain(tiny(run, max_steps=7, checkpoint_every=3))
    newest = list_checkpoints(run)[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    capsys.readouterr()
    pretrain(tiny(run, checkpoint_every=3))
    said = capsys.readouterr().err
    assert f"{newest} is damaged" in said
    assert "resuming at step 6" in said
    assert outcome(run) == uninterrupted()


def test_40_a_run_whose_checkpoints_are_all_rotten_says_so_and_touches_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(tiny(run, max_steps=6, checkpoint_every=3))
    for path in list_checkpoints(run):
        path.write_bytes(path.read_bytes()[: -len(path.name)])
    before = log(run)
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoint\(s\) .* can be read"):
        pretrain(tiny(run))
    assert log(run) == before


# A full disk (row 42) -------------------------------------------------------------------------------------------------


def test_42_a_full_disk_is_a_warning_then_an_error_and_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    pretrain(tiny(run, max_steps=2))
    with full_disk(10**6), pytest.raises(OutputError, match=r"no space left to write .*step-00000006\.pt"):
        pretrain(tiny(run, checkpoint_every=3))
    said = capsys.readouterr().err
    assert said.count("warning: no space left") == 1
    assert "step-00000003.pt" in said
    assert "training goes on" in said
    assert [path.name for path in list_checkpoints(run)] == ["step-00000002.pt"]
    assert partials(run) == []
    pretrain(tiny(run))
    assert outcome(run) == uninterrupted()


def test_42_a_stop_on_a_full_disk_does_not_pretend_to_be_saved(pool: ProcessPool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = tiny(run, **LONG, checkpoint_every=1000)
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, -1))"
    child = pool.start(*words(config), log=tmp_path / "log", before=full)
    wait_for_steps(run, 2, child)
    child.send(signal.SIGTERM)
    assert child.wait() == 1
    assert "error: no space left to write" in child.output().splitlines()[-1]


# Numbers that are not finite (row 43) ---------------------------------------------------------------------------------


def test_43_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    run = tmp_path / "run"
    diverging = tiny(run, optimizer="sgd", lr=1e30, lr_bias=1e30, warmup_epochs=0.0, checkpoint_every=1)
    with pytest.raises(TrainingError, match=r"is (nan|inf|-inf) at step \d+; nothing was updated") as caught:
        pretrain(diverging)
    newest = load_newest(run)
    assert newest is not None

    frame = next(entry.frame.f_locals for entry in reversed(caught.traceback) if "optimizer" in entry.frame.f_locals)
    parameters = dict(frame["model"].named_parameters())
    for name, value in parameters.items():
        assert torch.equal(value, newest.model[name]), name

    report = json.loads((run / "nonfinite.json").read_text())
    assert report["step"] == newest.step
    order = epoch_order(0, report["epoch"], 64)
    first = newest.step % 4 * 16
    assert report["images"] == [f"shapes/{index:06d}" for index in order[first : first + 16]]
    assert set(report["gradient_norms"]) == set(parameters)
    assert set(report["gradients_not_finite"]) <= set(parameters)
    assert report["loss"] in ("nan", "inf") or report["gradients_not_finite"]
    assert str(run / "nonfinite.json") in str(caught.value)
    assert [set(view) for view in report["views"]] == [{"min", "max", "mean"}] * 2
    assert steps(run)[-1] == newest.step


def test_43_on_a_gpu_a_step_that_is_not_finite_leaves_no_line_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys.modules["barlowtwins.train.pretrain"], "FiniteGuard", functools.partial(FiniteGuard, late=True)
    )
    diverging = tiny(tmp_path / "run", optimizer="sgd", lr=1e30, lr_bias=1e30, warmup_epochs=0.0)
    with pytest.raises(TrainingError, match=r"is (nan|inf|-inf) at step \d+; nothing was saved of it"):
        pretrain(diverging)
    report = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert steps(tmp_path / "run") == list(range(1, report["step"] + 1))


def test_43_an_update_that_overflows_is_not_saved(tmp_path: Path) -> None:
    overflowing = tiny(tmp_path / "run", optimizer="sgd", lr=5e39, warmup_epochs=0.0, checkpoint_every=1)
    with pytest.raises(TrainingError, match="are not finite after step 1: not saved"):
        pretrain(overflowing)
    assert list_checkpoints(tmp_path / "run") == []
    assert not list((tmp_path / "run").glob("*.safetensors"))


# Images that cannot be read (rows 28, 30), processes that die (50), memory that is full (49) --------------------------


def draw_folder(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


def test_28_30_32_bad_images_are_replaced_counted_and_too_many_stop_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = draw_folder(tmp_path / "data", 110)
    (data / "007.png").write_bytes((data / "007.png").read_bytes()[:50])
    settings = {"data": str(data), "recipe": "small-data", "stem": "small-stride2", "batch_size": 22, "epochs": 2}
    results = [pretrain(tiny(tmp_path / f"run{workers}", **settings, workers=workers)) for workers in (0, 2)]
    assert [result.unreadable for result in results] == [1, 1]
    assert outcome(tmp_path / "run0") == outcome(tmp_path / "run2")
    assert log(tmp_path / "run0")[-1]["unreadable"] == 1
    assert capsys.readouterr().err.count("007.png") == 2  # once a run, not once an epoch

    (data / "100.png").write_text("no image")  # of the same name, but not of the same size
    with pytest.raises(CheckpointError, match=r"data 110 images \(.*, not data 110 images \(.*--allow-change data"):
        pretrain(tiny(tmp_path / "run0", **settings))
    with pytest.raises(TrainingError, match=r"cannot be read: 2 \(such as .*more than the 1 that --max-bad allows"):
        pretrain(tiny(tmp_path / "run4", **settings))
    assert pretrain(tiny(tmp_path / "run5", **settings, max_bad=0.02)).unreadable == 2


def test_28_an_image_that_vanishes_while_training_is_replaced(pool: ProcessPool, tmp_path: Path) -> None:
    data, run = draw_folder(tmp_path / "data", 120), tmp_path / "run"
    config = tiny(run, data=str(data), recipe="small-data", stem="small-stride2", epochs=8)
    child = pool.start(*words(config), "--workers", "1", log=tmp_path / "log")
    wait_for_steps(run, 2, child)
    (data / "050.png").unlink()
    assert child.wait() == 0, child.output()
    assert log(run)[-1]["unreadable"] == 1
    assert "050.png: No such file" in child.output()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_50_a_worker_that_is_killed_ends_the_run_with_one_line(pool: ProcessPool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = tiny(run, **LONG)
    child = pool.start(*words(config), "--workers", "2", log=tmp_path / "log")
    wait_for_steps(run, 2, child)
    os.kill(child.workers()[0], signal.SIGKILL)
    assert child.wait(60) == 1
    said = child.output().splitlines()
    assert sum("error" in line or "Traceback" in line for line in said) == 1, child.output()
    assert "error: a process that reads images died" in said[-1]
    assert "--workers 0" in said[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="limits its address space")
def test_49_memory_that_is_full_is_told_with_a_way_out(pool: ProcessPool, tmp_path: Path) -> None:
    tight = """
import resource
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 10**8, -1))
"""
    config = tiny(tmp_path / "run", image_size=512, batch_size=64)
    child = pool.start(*words(config), log=tmp_path / "log", before=tight)
    assert child.wait() == 1
    last = child.output().splitlines()[-1]
    assert "out of memory on CPU" in last
    assert "--batch-size 64" in last
    assert "--micro-batch-size" in last
