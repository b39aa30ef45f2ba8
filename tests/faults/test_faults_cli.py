"""Faults of the command line: slips of the hand, absent devices, Ctrl-C, closed pipes, and anything at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from barlowtwins.cli import COMMANDS, main
from barlowtwins.models.resnet import build_backbone

posix = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["pretrian", "x"], "did you mean 'pretrain'?"),
        (["nieghbors", "x"], "did you mean 'neighbors'?"),
        (["knn", "x"], "did you mean 'evaluate knn'?"),
        (["evaluate", "kn", "x"], "did you mean 'evaluate knn'?"),
        (["weights", "lst"], "did you mean 'weights list'?"),
        (["xyzzy"], "there is pretrain, embed"),
        (["pretrain", "x", "--out", "y", "--epoch", "3"], "did you mean --epochs?"),
        (["pretrain", "x", "--out", "y", "--batchsize=3"], "did you mean --batch-size?"),
        (["embed", "x", "--weight", "w", "--out", "y"], "did you mean --weights?"),
        (["check", "x", "--xyzzy"], "see barlowtwins check --help"),
        (["--jsn", "check", "x"], "did you mean --json?"),
    ],
)
def test_56_a_mistyped_flag_or_command_gets_a_suggestion(
    arguments: list[str], suggestion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.strip().endswith(suggestion) or suggestion in captured.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
@pytest.mark.parametrize(
    "arguments",
    [
        ["pretrain", "shapes:64", "--out", "RUN"],
        ["embed", "shapes:64", "--weights", "small.pt", "--out", "EMB"],
        ["evaluate", "knn", "shapes:64", "--weights", "pixels", "--k", "1"],
        ["evaluate", "knn", "shapes:64", "--weights", "pixels", "--k", "1000"],  # of two mistakes, the first to mend
    ],
)
def test_57_cuda_without_one_lists_what_there_is(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(build_backbone("resnet10_x0_5").state_dict(), "small.pt")
    assert main([*arguments, "--device", "cuda"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("barlowtwins: error: device cuda is not available")
    assert "choose one of " in last
    assert "cpu" in last


# A command that computes until it is interrupted.
LONG = """
import sys, time
from barlowtwins import cli, config
def work(settings):
    print("working", flush=True)
    time.sleep(60)
sys.modules["long"] = sys.modules["__main__"]
cli.COMMANDS["check"] = cli.Command(config.CheckConfig, "long:work")
sys.exit(cli.main(["check", "x"]))
"""


@posix
def test_58_ctrl_c_is_one_line() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LONG], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (err, process.returncode) == ("barlowtwins: interrupted\n", 130)


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"], ["--version"]])
def test_58_a_closed_pipe_is_silent(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` when it has seen enough
    command = [sys.executable, "-m", "barlowtwins", *arguments]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.stderr, done.returncode) == ("", 0)


def test_58_a_closed_pipe_for_errors_changes_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "barlowtwins", "pretrian"]
    done = subprocess.run(command, stderr=writer, stdout=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.stdout, done.returncode) == ("", 2)


def test_58_output_that_only_knows_ascii() -> None:
    command = [sys.executable, "-m", "barlowtwins", "check", "fo\N{SNOWMAN}lder"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(b"barlowtwins: error: ")
    assert b"fo\\u2603lder" in done.stderr


FLAGS = sorted(
    {"json", "debug_", "help"}
    | {name for command in COMMANDS.values() for name in getattr(command.settings, "__dataclass_fields__", {})}
)
WORDS = st.one_of(
    st.sampled_from(
        [
            *("", "-", "--", "-1", "0", "1", "3.5", "nan", "inf", "-inf", "1e999", "1e-400", "9" * 400, "0x10", "1_0"),
            *("None", "auto", "cpu", "cuda:7", "fp32", "lars", "sgd", "8-8", "8--8", "-8-", "resnet18", "resnet19"),
            *(
                "small",
                "../x",
                "/",
                ".",
                "=",
                "a=b",
                "a b",
                "\n",
                "\udcff",
                "\N{SNOWMAN}",
                "\N{ARABIC-INDIC DIGIT THREE}",
            ),
        ]
    ),
    st.integers().map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), max_size=8),
)
TOKENS = st.one_of(
    WORDS.map(lambda word: [word]),
    st.tuples(st.sampled_from(FLAGS), WORDS).map(lambda pair: [f"--{pair[0].replace('_', '-')}", pair[1]]),
    st.tuples(st.sampled_from(FLAGS), WORDS).map(lambda pair: [f"--{pair[0]}={pair[1]}"]),
)


# What makes each command get as far as it can at little cost, before the fuzz comes.
COMPLETE = {
    "pretrain": ["--out", "out", "--backbone", "resnet10_x0_5", "--projector", "8-8", "--batch-size", "4", "--dry-run"],
    "embed": ["--weights", "none.pth", "--out", "out"],
    "evaluate knn": ["--weights", "pixels", "--k", "1", "--workers", "0"],
    "neighbors": ["--query", "0"],
    "check": ["--workers", "0"],
}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(set(COMMANDS) - {"demo"})),  # which would run
    tokens=st.lists(TOKENS, max_size=5),
    data=st.sampled_from(["empty", "shapes:8", "nowhere", None]),
)
def test_59_anything_at_all_ends_in_a_result_or_one_line(
    name: str,
    tokens: list[list[str]],
    data: str | None,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "empty").mkdir(exist_ok=True)
    words = [word for token in tokens for word in token]
    if any(word.startswith("--projector") for word in words):
        data = "empty"  # else a wide one would be built, with all the memory it asks for
    given_first = [] if data is None else [data, *COMPLETE.get(name, [])]
    arguments = [*name.split(), *given_first, *words]
    code = main(arguments)
    err = capsys.readouterr().err
    assert code in (0, 1, 2)
    assert "Traceback" not in err
    if code:
        last = err.splitlines()[-1]
        assert last.startswith("barlowtwins: error: ")
        assert "unforeseen" not in last, arguments


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arguments=st.lists(WORDS, max_size=3))
def test_59_anything_in_the_place_of_a_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = main(arguments)
    assert code == 2
    err = capsys.readouterr().err
    assert err.startswith("barlowtwins: error: ")
    assert err.count("\n") == 1
