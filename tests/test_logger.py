"""The log of a run: the lines that are due, once each, wherever processes begin and end."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from training import full_disk, log, tiny

from barlowtwins.loss import LossTerms, barlow_twins_loss
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.optim import build_optimizer
from barlowtwins.runs.run_folder import RunFolder
from barlowtwins.train.callbacks import Clock, RunState
from barlowtwins.train.logger import CollapseWarning, Logger
from barlowtwins.train.online_evaluation import OnlineEvaluation, OnlineKNN
from barlowtwins.train.plan import Plan
from barlowtwins.train.recipes import resolve

SETTINGS = resolve(tiny(Path("run")), channels=3, size=(32, 32))
MODEL = BarlowTwins("resnet10_x0_5", "8-8")
OPTIMIZER = build_optimizer("sgd", MODEL, lr=0.1, lr_bias=0.2, weight_decay=0.0)


class Counted(OnlineKNN):
    """Stands in for the evaluation: 50 %, then 51 %, ... or nothing once it is told to give up."""

    def __init__(self) -> None:
        self.calls = 0

    def evaluate(
        self, backbone: torch.nn.Module, *, knn: bool = True, probe: bool = False, give_up: Any = None
    ) -> dict[str, float] | None:
        if give_up():
            return None
        self.calls += 1
        return ({"knn": 49.0 + self.calls} if knn else {}) | ({"probe": 59.0 + self.calls} if probe else {})


def terms(step: int) -> LossTerms:
    torch.manual_seed(step)
    return barlow_twins_loss(torch.randn(16, 8), torch.randn(16, 8))


def begin(folder: Path, start: int = 0, *, knn: OnlineKNN | None = None, steps: int = 40, **changes: Any) -> RunState:
    """A run of 10 steps per epoch, as a process sees it that begins at `start`."""
    folder.mkdir(exist_ok=True)
    config = tiny(folder, **{"log_every": 4, "knn_every": 2, "probe_every": 0, **changes})
    callbacks = [Logger(), *([OnlineEvaluation(knn)] if knn else []), CollapseWarning()]
    run = RunState(config, SETTINGS, Plan(160, 10, steps, 0), RunFolder(folder), MODEL, OPTIMIZER, start, start)
    run.callbacks = callbacks
    run.unreadable = {7, 8, 9}
    run.begin()
    return run


def step(run: RunState, number: int, found: LossTerms | None = None) -> None:
    """As after the training step of that number."""
    run.step, MODEL.loss.terms = number, found or terms(number)
    run.clock.count(16)
    for callback in run.callbacks:
        callback.on_step(run)


def evaluate(run: RunState) -> None:
    """As at the end of a step, an epoch, or the start of a process."""
    if run.at_epoch_end:
        for callback in run.callbacks:
            callback.on_epoch(run)


def go(run: RunState, first: int, last: int, *, stop: bool = False) -> None:
    """Steps `first` to `last`, as the loop takes them; with `stop`, a signal has come by the last one."""
    run.stop_requested = lambda: stop and run.step == last
    with contextlib.closing(run):
        for number in range(first, last + 1):
            step(run, number)
            evaluate(run)


def test_lines_stand_at_their_steps_and_at_the_ends_of_epochs(tmp_path: Path) -> None:
    go(begin(tmp_path), 1, 40)
    assert [record["step"] for record in log(tmp_path)] == sorted({*range(4, 41, 4), *range(10, 41, 10)})


def test_a_line_has_the_parts_of_the_loss(tmp_path: Path) -> None:
    for group, lr in zip(OPTIMIZER.param_groups, (0.01, 0.02), strict=True):
        group["lr"] = lr
    go(begin(tmp_path), 1, 4)
    wanted = terms(4)
    assert log(tmp_path) == [
        {
            "step": 4,
            "epoch": 0.4,
            "loss": wanted.loss.item(),
            "on_diagonal": wanted.on_diagonal.item(),
            "off_diagonal": wanted.off_diagonal.item(),
            "floor": wanted.floor,
            "above_floor": wanted.loss.item() - SETTINGS.lambd * wanted.floor,
            "form": wanted.form,
            "lr": 0.01,
            "lr_bias": 0.02,
            "unreadable": 3,
        }
    ]
    assert wanted.loss.item() == pytest.approx(wanted.on_diagonal.item() + 0.0051 * wanted.off_diagonal.item())


@pytest.mark.parametrize("stops", [[6], [8], [10], [20], [3, 10, 11, 20, 37]])
@pytest.mark.parametrize("saved", [0, 2])
def test_stops_leave_no_trace(tmp_path: Path, stops: list[int], saved: int) -> None:
    """Each process ends at a step and the next one begins `saved` steps before it, where the last checkpoint was."""
    go(begin(tmp_path / "whole", knn=Counted()), 1, 40)
    knn, start = Counted(), 0
    for stop in [*stops, 40]:
        one = begin(tmp_path / "run", start, knn=knn)
        evaluate(one)
        go(one, start + 1, stop, stop=stop < 40)
        start = stop - saved
        knn.calls = sum("knn" in record and record["step"] <= start for record in log(tmp_path / "run"))
    assert log(tmp_path / "run") == log(tmp_path / "whole")
    assert [record["step"] for record in log(tmp_path / "run") if "knn" in record] == [20, 40]


def test_an_evaluation_that_was_given_up_is_made_up_for(tmp_path: Path) -> None:
    knn = Counted()
    go(begin(tmp_path, knn=knn), 1, 20, stop=True)
    assert knn.calls == 0
    again = begin(tmp_path, 20, knn=knn)
    evaluate(again)
    evaluate(again)
    assert knn.calls == 1
    assert log(tmp_path)[-1] == {"step": 20, "epoch": 2, "knn": 50.0}
    assert again.latest["knn"] == 50.0


def test_the_linear_probe_has_its_own_turns_and_shares_a_line_with_the_knn(tmp_path: Path) -> None:
    knn = Counted()
    go(begin(tmp_path, knn=knn, knn_every=2, probe_every=3, steps=60), 1, 60)
    found = {record["step"]: record for record in log(tmp_path) if {"knn", "probe"} & set(record)}
    assert {step: sorted({"knn", "probe"} & set(record)) for step, record in found.items()} == {
        20: ["knn"],
        30: ["probe"],
        40: ["knn"],
        60: ["knn", "probe"],
    }
    assert knn.calls == 4  # one extraction for both
    again = begin(tmp_path, 60, knn=knn, knn_every=2, probe_every=3, steps=60)
    evaluate(again)
    assert (knn.calls, again.latest["knn"]) == (4, 53.0)


def test_either_can_be_turned_off(tmp_path: Path) -> None:
    go(begin(tmp_path, knn=Counted(), knn_every=0, probe_every=1), 1, 10)
    assert [sorted(record) for record in log(tmp_path)][-1] == ["epoch", "probe", "step"]


def test_a_line_says_how_far_above_its_floor_the_loss_is(tmp_path: Path) -> None:
    go(begin(tmp_path), 1, 4)
    wanted = terms(4)
    assert log(tmp_path)[0]["above_floor"] == wanted.loss.item() - SETTINGS.lambd * wanted.floor


def test_a_run_that_diverges_or_collapses_is_warned_of_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = begin(tmp_path, log_every=1)

    def take(first: int, last: int, factor: float) -> str:
        for number in range(first, last + 1):
            step(one, number, terms(1)._replace(loss=torch.tensor(100 * factor)))
            evaluate(one)
        return capsys.readouterr().err

    assert "warning" not in take(1, 20, 1.0)
    assert take(21, 30, 2.0).count("warning: Diverging: the loss is 200 on average") == 1
    assert "warning" not in take(31, 40, 2.0)  # it was said
    one.log({"effective_rank": 1.5, "rank_limit": 99, "feature_deviation": 0.01})
    said = take(41, 50, 2.0)
    assert "warning: Collapsed: almost the same features" in said
    assert "Try a lower --lr first" in said


def test_the_untrained_network_has_no_knn(tmp_path: Path) -> None:
    knn = Counted()
    evaluate(begin(tmp_path, knn=knn, knn_every=1))
    assert knn.calls == 0


def test_what_an_earlier_process_found_is_remembered(tmp_path: Path) -> None:
    go(begin(tmp_path, knn=Counted()), 1, 40)
    again = begin(tmp_path, 40)
    assert again.loss == terms(40).loss.item()
    assert again.latest["knn"] == 51.0
    assert again.clock.rate is None
    earlier = begin(tmp_path, 25)
    assert earlier.loss == terms(24).loss.item()
    assert earlier.latest["knn"] == 50.0
    assert [record["step"] for record in log(tmp_path)][-1] == 24


def test_the_last_loss_is_known_also_between_lines(tmp_path: Path) -> None:
    one = begin(tmp_path)
    go(one, 1, 7)
    assert one.loss == terms(7).loss.item()
    assert [record["step"] for record in log(tmp_path)] == [4]


def test_the_rate_is_of_images_in_the_time_of_steps_alone() -> None:
    clock = Clock()
    assert clock.rate is None
    start = time.perf_counter()
    for _ in range(5):
        with clock.pause():
            time.sleep(0.1)
        clock.count(16)
    took = time.perf_counter() - start
    assert clock.images == 5 * 16
    assert clock.rate is not None
    assert 5 * 16 / (took - 0.5) <= clock.rate < math.inf
    with pytest.raises(ZeroDivisionError), clock.pause():  # a save that fails does not count either
        time.sleep(0.1)
        _ = 1 / 0
    clock.count(16)
    assert clock.seconds < time.perf_counter() - start - 0.6 + 0.01


def test_lines_that_a_full_disk_refuses_come_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = begin(tmp_path, log_every=1)
    for number in range(1, 4):
        step(one, number)
    with full_disk((tmp_path / "metrics.jsonl").stat().st_size):
        for number in range(4, 7):
            step(one, number)
    assert [record["step"] for record in log(tmp_path)] == [1, 2, 3]
    step(one, 7)
    assert [record["step"] for record in log(tmp_path)] == list(range(1, 8))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "cannot write" in said
    assert "metrics.jsonl" in said
