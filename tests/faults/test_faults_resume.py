"""FAULTS 45-48: going on with other settings or processes, batches that do not fit, a rank that is killed.

tests/test_resume.py goes through all settings and tests/test_torchrun.py through more of torchrun.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from training import log, outcome, tiny, uninterrupted, wait_until, words

from barlowtwins.core.errors import CheckpointError, ConfigError
from barlowtwins.pretraining import pretrain
from barlowtwins.train.pretrain import plan_run
from barlowtwins.train.recipes import resolve

GENTLE = {"stem": "small-stride2", "optimizer": "lars", "lr": 8.0, "lr_bias": 8e-5, "weight_decay": 1e-4}
"""Steps so small that the rounding of another number of processes does not grow."""
Counted = Callable[[str, int], None]


def torchrun(out: Path, processes: int, *extra: str) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--max-restarts=2", f"--nproc-per-node={processes}"]
    return [sys.executable, *launch, "-m", "barlowtwins", *words(tiny(out, **GENTLE, checkpoint_every=1)), *extra]


def start(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and all that was said."""
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    return process.returncode, output


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in log(run) if "loss" in record]


def test_45_changed_settings_are_printed_and_refused_unless_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    pretrain(tiny(run, max_steps=5, checkpoint_every=5))
    before = log(run)
    for changes, difference in (({"lambd": 0.5}, "lambd"), ({"seed": 1}, "seed"), ({"epochs": 4}, "epochs")):
        with pytest.raises(CheckpointError, match=rf"{difference} .*, not {difference} .*--allow-change {difference}"):
            pretrain(tiny(run, **changes))
    assert log(run) == before

    capsys.readouterr()
    pretrain(tiny(run, log_every=2))  # does not alter the maths: it is only said
    assert "log" in capsys.readouterr().err
    other = outcome(run)
    assert {name: other[name] for name in other if name != "log"} == {
        name: value for name, value in uninterrupted().items() if name != "log"
    }


def test_45_a_change_that_is_named_is_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    pretrain(tiny(run, max_steps=5, checkpoint_every=5))
    pretrain(tiny(run, lambd=0.5, allow_change=("lambd",)))
    assert "lambd" in capsys.readouterr().err
    assert losses(run)[:5] == [record["loss"] for record in uninterrupted()["log"] if "loss" in record][:5]
    assert losses(run)[5] != [record["loss"] for record in uninterrupted()["log"] if "loss" in record][5]


@pytest.mark.exhaustive  # tests/test_torchrun.py has them in a usual run
def test_46_two_processes_go_on_where_one_stopped(tmp_path: Path) -> None:
    pretrain(tiny(tmp_path / "alone", **GENTLE))
    pretrain(tiny(tmp_path / "run", **GENTLE, max_steps=5, checkpoint_every=5))
    code, said = finish(start(torchrun(tmp_path / "run", 2)))
    assert code == 0, said
    assert "resuming at step 5" in said
    assert json.loads((tmp_path / "run" / "config.json").read_text())["world_size"] == 2
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), rel=1e-3)
    assert losses(tmp_path / "run")[:5] == losses(tmp_path / "alone")[:5]


@pytest.mark.parametrize(
    ("batch", "images", "processes", "numbers"),
    [
        (16, 10, 1, "batch size 16 is larger than the data: 10 images"),
        (1, 10, 1, "batch size 1 is too small: .* needs 2 images or more"),
        (2, 1, 1, "1 image is too few"),
        (10, 100, 4, "batch size 10 is not divisible by 4 processes; try 8"),
        (3, 100, 4, "batch size 3 is not divisible by 4 processes; try 4"),
    ],
)
def test_47_batches_that_do_not_fit_are_told_with_numbers(
    tmp_path: Path, batch: int, images: int, processes: int, numbers: str
) -> None:
    config = tiny(tmp_path / "run", batch_size=batch)
    with pytest.raises(ConfigError, match=numbers):
        plan_run(resolve(config, channels=3, size=(16, 16)), images, world_size=processes)
    if processes == 1:
        with pytest.raises(ConfigError, match=numbers):
            pretrain(tiny(tmp_path / "run", batch_size=batch, data=f"shapes:{images}"))
    assert not (tmp_path / "run").exists()


@pytest.mark.exhaustive  # tests/test_torchrun.py has them in a usual run
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks in /proc")
def test_48_killed_ranks_are_restarted_and_the_run_ends_as_if_nothing_happened(
    tmp_path: Path, counted: Counted
) -> None:
    """kill -9 of each rank in turn: torchrun starts both again from the newest checkpoint."""
    pretrain(tiny(tmp_path / "alone", **GENTLE))
    run = tmp_path / "run"
    job = start(torchrun(run, 2))
    try:
        for number, after in enumerate((2, 5)):

            def reached(after: int = after) -> bool:
                assert job.poll() is None, finish(job)
                return any((run / "checkpoints").glob(f"step-*{after}.pt"))

            wait_until(reached)
            os.kill(ranks(job.pid)[number], signal.SIGKILL)
            counted("kills", 1)
    finally:
        code, said = finish(job)
    assert code == 0, said
    assert said.count("resuming at step") == 2, said
    assert losses(run) == pytest.approx(losses(tmp_path / "alone"), rel=1e-3)


def ranks(agent: int) -> list[int]:
    """The processes that a torchrun agent started, by the process table."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return [int(pid) for pid in children if b"barlowtwins" in Path(f"/proc/{pid}/cmdline").read_bytes()]
