"""The command line's own work: finding a command, its flags, exit codes, one line for each error, JSON.

Most tests add a row to the table of commands, as a new command would, so that they need neither data nor network.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tyro.conf import Positional

from barlowtwins import cli
from barlowtwins.cli import COMMANDS, Command, main
from barlowtwins.core.errors import ConfigError, DataError, MissingExtraError, StoppedEarly, UsageError


@dataclass(frozen=True)
class ProbeConfig:
    """Do what the test asks for."""

    what: Positional[str]
    """A key of ACTIONS."""
    batch_size: int = 3
    """Images a forward pass."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            error = UsageError(f"batch_size must be >= 1, got {self.batch_size}")
            error.settings = ("batch_size",)
            raise error


@dataclass(frozen=True)
class ProbeResult:
    batch_size: int
    loss: float = float("nan")


def probe(config: ProbeConfig) -> ProbeResult:
    print("a stray line on standard output")
    outcome = ACTIONS[config.what]
    if outcome is not None:
        raise outcome
    return ProbeResult(config.batch_size)


ACTIONS: dict[str, BaseException | None] = {
    "nothing": None,
    "data": DataError("no images\n  in here; choose another folder"),
    "config": ConfigError("these do not fit"),
    "usage": UsageError("no such thing"),
    "extra": MissingExtraError("cv2", "fast"),
    "stop": StoppedEarly("step 7 is saved; the same command goes on from there"),
    "interrupt": KeyboardInterrupt(),
    "cuda memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nSee documentation"),
    "memory": MemoryError(),
    "cpu memory": RuntimeError("[enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory: you"),
    "file": FileNotFoundError(2, "No such file or directory", "gone.jpg"),
    "bug": ZeroDivisionError("division by zero\nsecond line"),
}


@pytest.fixture(autouse=True)
def _probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "probe", Command(ProbeConfig, f"{__name__}:probe"))
    monkeypatch.setitem(COMMANDS, "evaluate probe", Command(ProbeConfig, f"{__name__}:probe"))


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error, without its head."""
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("barlowtwins: ")
    return err.removeprefix("barlowtwins: ").strip()


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("data", 1, "error: no images in here; choose another folder"),
        ("config", 1, "error: these do not fit"),
        ("usage", 2, "error: no such thing"),
        ("extra", 1, "error: the module 'cv2' is not installed; run: pip install 'barlowtwins[fast]'"),
        ("stop", 75, "stopped: step 7 is saved; the same command goes on from there"),
        ("interrupt", 130, "interrupted"),
        (
            "cuda memory",
            1,
            "error: out of memory (CUDA out of memory. Tried to allocate 20.00 MiB.); make",
        ),
        ("cpu memory", 1, "error: out of memory ([enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator"),
        ("memory", 1, "error: out of memory (MemoryError); make --batch-size smaller"),
        ("file", 1, "error: [Errno 2] No such file or directory: 'gone.jpg'"),
        ("bug", 1, "error: unforeseen ZeroDivisionError: division by zero; --debug shows where"),
    ],
)
def test_exit_codes_and_one_line(what: str, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", what]) == code
    assert _error(capsys).startswith(said)


def test_out_of_memory_in_pretraining_also_advises_micro_batches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COMMANDS, "pretrain", Command(ProbeConfig, f"{__name__}:probe"))
    assert main(["pretrain", "cuda memory"]) == 1
    assert "--micro-batch-size" in _error(capsys)


@pytest.mark.parametrize("what", ["data", "bug", "interrupt"])
def test_debug_shows_the_traceback(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["probe", what, "--debug"])
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "in probe" in err
    assert err.splitlines()[-1].startswith("barlowtwins: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["probe", "nothing", "--json", "--batch-size", "7"],
        ["--json", "probe", "--batch-size=7", "nothing"],
        ["probe", "--batch_size", "7", "--json", "--", "nothing"],
        ["evaluate", "probe", "nothing", "--json", "--batch-size", "7"],
    ],
)
def test_json_is_the_last_line_wherever_the_flag_stands(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"batch_size": 7, "loss": None}


def test_without_json_a_person_reads_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "nothing"]) == 0
    assert "batch size  3" in capsys.readouterr().out


def test_of_the_processes_that_torchrun_starts_one_prints_the_result(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, shown in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert main(["probe", "nothing"]) == 0
        assert ("batch size" in capsys.readouterr().out) is shown


def test_help_pages_list_every_command_and_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in overview
        assert main([*name.split(), "--help"]) == 0
        page = capsys.readouterr().out
        for field in dataclasses.fields(command.settings):
            positional = "Positional" in str(field.type)
            assert (field.name.upper() if positional else f"--{field.name.replace('_', '-')}") in page
        assert page.count("  --json ") == page.count("  --debug ") == 1
        assert f"usage: barlowtwins {name}" in page
        assert "None" not in page  # what is decided elsewhere has no such default
    assert main(["weights", "-h"]) == 0
    page = capsys.readouterr().out
    assert "weights verify" in page
    assert "pretrain" not in page


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from barlowtwins import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"barlowtwins {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "a command is missing"),
        (["evaluate"], "evaluate needs one of: knn"),
        (["probe"], "probe needs WHAT"),
        (["probe", "nothing", "more"], "more"),
        (["probe", "nothing", "-z"], "-z"),
        (["probe", "nothing", "--batch-size"], "--batch-size"),
        (["probe", "nothing", "--batch-size", "many"], "--batch-size must be a whole number, got 'many'; see"),
        (["probe", "nothing", "--batch-size", "0"], "--batch-size must be >= 1, got 0"),
        (["pretrain", "x", "--out", "y", "--lr", "abc"], "--lr must be a number, got 'abc'; see"),
        (["pretrain", "x", "--out", "y", "--lr", "it's"], 'must be a number, got "it\'s"; see'),
        (["pretrain", "x", "--out", "y", "--lr"], "--lr needs a value; see"),
        (["pretrain", "x", "--out", "y", "--optimizer", "adam"], "must be one of adamw, lars, sgd, got 'adam'; see"),
        (["pretrain", "x"], "pretrain needs --out FOLDER; see barlowtwins pretrain --help"),
        (["evaluate", "knn", "x", "--k", "a"], "--k cannot be 'a'; see"),
    ],
)
def test_bad_usage_names_what_is_wrong(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert said in _error(capsys)


def test_every_row_of_the_table_can_be_called() -> None:
    for name, command in COMMANDS.items():
        module, _, function = command.function.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), name
        assert dataclasses.is_dataclass(command.settings)
        assert (command.settings.__doc__ or "").partition("\n")[0].endswith((".", ":")), name
    assert {name.split()[0] for name in COMMANDS if " " in name} == set(cli.GROUPS)


def test_help_is_quick_and_imports_neither_torch_nor_numpy() -> None:
    code = "import sys; from barlowtwins.cli import main; main(['--help']); print(*sys.modules)"
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = os.times()
    assert not {"torch", "numpy", "PIL", "requests", "tyro"} & set(done.stdout.split())
    # processor time, which other processes on the machine do not stretch
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.5


def test_check_for_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    main(["check", str(tmp_path), "--workers", "0", "--json"])
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["n"] == 2
    assert [Path(bad["path"]).name for bad in result["bad"]] == ["bad.png"]
