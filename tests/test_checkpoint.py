"""Checkpoints: what comes back is what was saved, or nothing. (Kills while one is written: tests/faults.)"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from training import equal, full_disk

from barlowtwins.core.errors import CheckpointError, OutputError
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.optim import build_optimizer
from barlowtwins.runs.checkpoint import (
    Checkpoint,
    Saver,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    save_checkpoint,
    step_of,
)


def made_up(step: int, seed: int = 0) -> Checkpoint:
    """A small checkpoint with every kind of value that a real one has."""
    generator = torch.Generator().manual_seed(1000 * seed + step)
    weight = torch.randn(3, 4, generator=generator)
    return Checkpoint(
        step,
        {"weight": weight, "count": torch.tensor(step), "half": weight.bfloat16(), "empty": torch.zeros(0, 3)},
        {"state": {0: {"m": weight.T.contiguous(), "step": torch.tensor(2.0)}}, "param_groups": [{"params": [0]}]},
        config={"lr": 0.1, "init": None, "allow_change": ("lr", "data")},
        data={"images": 7, "fingerprint": "abc"},
        world_size=2,
        unreadable=(3, 5),
    )


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


# What comes back ------------------------------------------------------------------------------------------------------


def test_what_comes_back_is_what_was_saved(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, made_up(12))
    assert path == tmp_path / "checkpoints" / "step-00000012.pt"
    assert equal(load_checkpoint(path), made_up(12))
    assert torch.load(path, weights_only=True)["step"] == 12  # it stays a file of torch's


@pytest.mark.parametrize("name", ["lars", "adamw", "sgd"])
def test_a_network_and_its_optimizer_come_back_to_the_bit(tmp_path: Path, name: str) -> None:
    def build() -> tuple[BarlowTwins, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = BarlowTwins("resnet10_x0_5", "8-8", stem="small")
        return model, build_optimizer(name, model, lr=0.1, lr_bias=0.1, weight_decay=1e-4)

    def train(model: BarlowTwins, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"]
        model(torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)).backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = build()
    train(model, optimizer)
    save_checkpoint(tmp_path, Checkpoint(1, model.state_dict(), optimizer.state_dict(), {}, {}))
    torch.manual_seed(1)
    train(model, optimizer)

    again, its_optimizer = build()
    loaded = load_newest(tmp_path)
    assert loaded is not None
    again.load_state_dict(loaded.model)
    its_optimizer.load_state_dict(loaded.optimizer)
    torch.manual_seed(1)
    train(again, its_optimizer)
    assert equal(dict(again.state_dict()), dict(model.state_dict()))


def test_the_newest_two_are_kept_in_the_order_of_steps(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path) == []
    assert load_newest(tmp_path) is None
    for step in (5, 10, 99_999_999, 100_000_000):
        save_checkpoint(tmp_path, made_up(step))
    assert names(tmp_path) == ["step-100000000.pt", "step-99999999.pt"]
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [99_999_999, 100_000_000]
    newest = load_newest(tmp_path)
    assert newest is not None
    assert newest.step == 100_000_000


def test_other_files_are_let_be(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    others = ["step-00000003.pt.bak", "step-3.pt", "notes.txt", ".step-00000009.pt.1.ab.partial", "step-٠٠٠٠٠٠٠٣.pt"]
    for name in others:
        (folder / name).write_text("mine")
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, made_up(step))
    assert names(tmp_path) == sorted([*others, "step-00000002.pt", "step-00000003.pt"])
    newest = load_newest(tmp_path)
    assert newest is not None
    assert newest.step == 3


# Damage ---------------------------------------------------------------------------------------------------------------


def damaged_copies(good: bytes) -> Iterator[tuple[str, bytes]]:
    """Flipped bits and cuts everywhere, zeros, text, parts that are repeated or missing."""
    rng = random.Random(0)
    for place in range(0, len(good), 5):
        yield f"bit of byte {place}", good[:place] + bytes([good[place] ^ 1 << rng.randrange(8)]) + good[place + 1 :]
    for length in range(0, len(good), 37):
        yield f"cut at {length}", good[:length]
        yield f"zeros from {length}", good[:length] + bytes(len(good) - length)
        yield f"without its first {length + 1}", good[length + 1 :]
    yield "text", b"an apology of the proxy server\n" * 100
    yield "twice", good + good
    yield "one byte more", good + b"\n"
    yield "another's digest", good[:-65] + b"0" * 64 + b"\n"


def test_no_damage_goes_unnoticed(tmp_path: Path) -> None:
    good = save_checkpoint(tmp_path, made_up(1)).read_bytes()
    path = tmp_path / "damaged.pt"
    for what, copy in damaged_copies(good):
        path.write_bytes(copy)
        with pytest.raises(CheckpointError, match=r"damaged\.pt (is cut short or|is damaged)"):
            load_checkpoint(path)
            pytest.fail(f"loaded: {what}")


@pytest.mark.slow
def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    good = save_checkpoint(tmp_path, made_up(1)).read_bytes()
    path = tmp_path / "damaged.pt"
    for place in range(8 * len(good)):
        flipped = bytearray(good)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "random.pt"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"random\.pt is cut short or no checkpoint"):
        load_checkpoint(path)


def test_the_one_before_is_taken_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, made_up(step))
    newest = list_checkpoints(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    found = load_newest(tmp_path)
    assert found is not None
    assert equal(found, made_up(1))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"warning: {newest} is cut short")
    assert said[0].endswith("trying the one before it")


def test_where_all_are_damaged_each_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, made_up(step)).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of the 2 .*step-00000001\.pt, step-00000002\.pt.*backup"):
        load_newest(tmp_path)
    assert capsys.readouterr().err.count("warning") == 2


def test_a_missing_file_and_a_folder_are_no_checkpoints(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(CheckpointError, match="there is no checkpoint"):
            load_checkpoint(path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file whose reading fails")
def test_a_disk_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "step.pt").symlink_to("/proc/self/mem")
    with pytest.raises(CheckpointError, match=r"cannot read .*step\.pt"):
        load_checkpoint(tmp_path / "step.pt")


# Foreign contents behind a right digest -------------------------------------------------------------------------------


def sealed(path: Path, value: object, tmp_path: Path) -> Path:
    """`torch.save` with this package's digest behind it: a forger can do that, too."""
    plain = tmp_path / "plain"
    torch.save(value, plain)
    data = plain.read_bytes()
    path.write_bytes(data + b"\nsha256 " + hashlib.sha256(data).hexdigest().encode() + b"\n")
    return path


class Malicious:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.sentinel),)


@pytest.mark.parametrize("with_digest", [False, True])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, with_digest: bool) -> None:
    sentinel, path = tmp_path / "sentinel", tmp_path / "evil.pt"
    state = {"format": 1, **vars(made_up(1)), "config": {"lr": Malicious(sentinel)}}
    if with_digest:
        sealed(path, state, tmp_path)
    else:
        torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"evil\.pt.*" + ("was not loaded .*mkdir" if with_digest else "digest")):
        load_checkpoint(path)
    assert not sentinel.exists()
    torch.load(path, weights_only=False)  # the pickle does what it says, if it is let
    assert sentinel.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "not a checkpoint of this version"),
        ({"format": None}, "not a checkpoint of this version"),
        ({"step": "12"}, "its step is not of type int"),
        ({"model": [1, 2]}, "its model is not of type dict"),
        ({"surplus": 1}, "lacks parts.*surplus"),
    ],
)
def test_what_is_no_checkpoint_inside_is_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    path = sealed(tmp_path / "odd.pt", {"format": 1, **vars(made_up(1)), **changes}, tmp_path)
    with pytest.raises(CheckpointError, match=rf"odd\.pt.*{words}"):
        load_checkpoint(path)


@pytest.mark.parametrize("value", [{"format": 1}, [1, 2], torch.zeros(3), {"epoch": 3, "model": {}, "optimizer": {}}])
def test_other_files_of_torch_are_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(CheckpointError, match=r"odd\.pt"):
        load_checkpoint(sealed(tmp_path / "odd.pt", value, tmp_path))


# Full disks -----------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_ones_and_no_part_at_any_size(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, made_up(step))
    size = list_checkpoints(tmp_path)[0].stat().st_size
    for limit in (*range(0, size, 97), size - 1):
        with full_disk(limit), pytest.raises(OutputError, match=r"no space left to write .*step-00000003\.pt"):
            save_checkpoint(tmp_path, made_up(3))
        assert names(tmp_path) == ["step-00000001.pt", "step-00000002.pt"]
    with full_disk(size):
        save_checkpoint(tmp_path, made_up(3))
    assert equal(load_newest(tmp_path), made_up(3))


def test_one_failure_is_a_warning_and_two_in_a_row_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saver = Saver(tmp_path)
    saver.save(made_up(1))
    for step in (2, 4):
        with full_disk(1000):
            saver.save(made_up(step))
        assert "no space left" in (said := capsys.readouterr().err)
        assert "training goes on" in said
        assert equal(load_newest(tmp_path), made_up(step - 1))
        saver.save(made_up(step + 1))
    with full_disk(1000):
        saver.save(made_up(6))
        with pytest.raises(OutputError, match="no space left"):
            saver.save(made_up(7))
    assert equal(load_newest(tmp_path), made_up(5))


def test_at_the_last_chance_one_failure_is_an_error(tmp_path: Path) -> None:
    saver = Saver(tmp_path)
    with full_disk(1000), pytest.raises(OutputError, match="no space left"):
        saver.save(made_up(1), last_chance=True)
    saver.save(made_up(1), last_chance=True)
    with full_disk(0):
        saver.save(made_up(1), last_chance=True)  # is there already


def test_a_disk_that_is_full_indeed(tmp_path: Path) -> None:
    """A file system of 64 kB: another error number, at another place, than that of a limit."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root mounts a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True).returncode:
        pytest.skip("this machine does not let its root mount")
    try:
        save_checkpoint(disk, made_up(1))
        save_checkpoint(disk, made_up(2))
        (disk / "filling").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
        with pytest.raises(OutputError, match=r"no space left .*No space left on device"):
            save_checkpoint(disk, made_up(3))
        assert names(disk) == ["step-00000001.pt", "step-00000002.pt"]
        assert equal(load_newest(disk), made_up(2))
        (disk / "filling").unlink()
        save_checkpoint(disk, made_up(3))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_errors_of_torch_that_are_not_the_disks_come_through(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="lambda"):
        save_checkpoint(tmp_path, Checkpoint(1, {"f": lambda: 0}, {}, {}, {}))  # type: ignore[dict-item]
    assert names(tmp_path) == []


def test_an_old_one_that_cannot_be_removed_is_no_reason_to_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints" / "step-00000001.pt" / "a folder").mkdir(parents=True)
    for step in (2, 3):
        save_checkpoint(tmp_path, made_up(step))
    assert names(tmp_path) == ["step-00000001.pt", "step-00000002.pt", "step-00000003.pt"]
    assert "cannot remove the old checkpoint" in capsys.readouterr().err


# A course that was given up -------------------------------------------------------------------------------------------


def test_checkpoints_of_a_course_given_up_make_room_for_the_new_one(tmp_path: Path) -> None:
    """Going on from step 10 while 20 and 30 lie there, damaged or not wanted."""
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, made_up(step), keep=3)
    saver = Saver(tmp_path, start=10)
    with full_disk(1000):
        saver.save(made_up(14, seed=1))
    assert len(names(tmp_path)) == 3  # nothing is given up before something new is there
    saver.save(made_up(15, seed=1))
    assert names(tmp_path) == ["step-00000010.pt", "step-00000015.pt"]
    saver.save(made_up(20, seed=1))
    assert names(tmp_path) == ["step-00000015.pt", "step-00000020.pt"]
    assert equal(load_newest(tmp_path), made_up(20, seed=1))


def test_the_first_of_a_new_course_may_take_the_name_of_an_old_one(tmp_path: Path) -> None:
    for step in (10, 20):
        save_checkpoint(tmp_path, made_up(step))
    Saver(tmp_path, start=10).save(made_up(20, seed=1))
    assert names(tmp_path) == ["step-00000010.pt", "step-00000020.pt"]
    assert equal(load_newest(tmp_path), made_up(20, seed=1))
