"""What every loop shares: signals become an agreement, and one process's checkpoint that of all."""

from __future__ import annotations

import os
import platform
import signal
from pathlib import Path

import pytest
import torch
from processes import run_processes

from barlowtwins.core.distributed import World
from barlowtwins.core.errors import CheckpointError, DataError, StoppedEarly
from barlowtwins.core.versions import versions
from barlowtwins.runs.checkpoint import Checkpoint, load_newest, save_checkpoint
from barlowtwins.runs.loop import Stopping, checkpoint_for_all

ALONE = World(0, 1, torch.device("cpu"))


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"w": torch.full((2,), float(step))}, {}, {}, {"images": 3})


def test_a_signal_is_seen_and_named_with_the_step_and_the_way_on(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stopping(ALONE, tmp_path, again="--resume auto") as stop:
        assert not stop.agreed()
        interrupt()
        assert stop.agreed()
        told = str(stop.after(7, 20))
    assert told == f"stopped by SIGTERM after step 7 of 20, saved in {tmp_path}; --resume auto resumes from there"
    assert signal.getsignal(signal.SIGTERM) is before


def test_with_nothing_to_save_signals_keep_their_effect(tmp_path: Path) -> None:
    previous = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    seen: list[int] = []
    try:
        with Stopping(ALONE, None) as stop:
            interrupt()
            assert not stop.agreed()
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert seen == [signal.SIGTERM]


def test_readers_that_die_of_the_signal_are_a_stop_and_others_are_not(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a reader died"), Stopping(ALONE, tmp_path):
        raise DataError("a reader died")
    told = "SIGTERM; the same command resumes from the last checkpoint in"
    with pytest.raises(StoppedEarly, match=told), Stopping(ALONE, tmp_path):
        interrupt()
        raise DataError("a reader died")
    with pytest.raises(ZeroDivisionError), Stopping(ALONE, tmp_path):
        interrupt()
        raise ZeroDivisionError


def test_alone_it_is_what_was_found(tmp_path: Path) -> None:
    assert checkpoint_for_all(ALONE, lambda: load_newest(tmp_path), tmp_path) is None
    save_checkpoint(tmp_path, checkpoint(4))
    found = checkpoint_for_all(ALONE, lambda: load_newest(tmp_path), tmp_path)
    assert found is not None and found.step == 4


def agree(rank: int, world_size: int, folder: str) -> list[object]:
    """Rank 0 alone looks; rank 1 alone gets a signal."""
    world, path = World(rank, world_size, torch.device("cpu")), Path(folder)

    def find() -> Checkpoint | None:
        assert world.writes
        newest = load_newest(path)
        return newest and Checkpoint(**{**vars(newest), "unreadable": (1, 2)})

    answers: list[object] = [checkpoint_for_all(world, find, path)]
    world.wait()
    if world.writes:
        save_checkpoint(path, checkpoint(6))
    found = checkpoint_for_all(world, find, path)
    assert found is not None
    answers += [found.step, found.model["w"].tolist(), found.unreadable]
    other = checkpoint_for_all(world, find, path, load=lambda step: checkpoint(step + 100))
    answers.append(other and other.step)
    world.wait()
    if world.writes:
        next((path / "checkpoints").iterdir()).write_bytes(b"damaged")
    try:
        checkpoint_for_all(world, find, path)
    except CheckpointError as error:
        answers.append("none of the 1 checkpoint(s)" in str(error))
    with Stopping(world, path) as stop:
        answers.append(stop.agreed())
        if rank == 1:
            interrupt()
        answers += [stop.agreed(), str(stop.after(1, 2)).split()[2]]
    return answers


def test_processes_agree_on_the_checkpoint_its_errors_and_the_stop(tmp_path: Path) -> None:
    first, second = run_processes(agree, 2, str(tmp_path))
    shared = [None, 6, [6.0, 6.0], (1, 2)]
    assert first == [*shared, 6, True, False, True, "another"]
    assert second == [*shared, 106, True, False, True, "SIGTERM"]


def test_the_versions_on_record_are_those_that_run() -> None:
    found = versions(numpy="1.2")
    assert list(found) == ["barlowtwins", "torch", "torchvision", "numpy", "python"]
    assert found["torch"] == torch.__version__ and found["numpy"] == "1.2"
    assert found["python"] == platform.python_version()
