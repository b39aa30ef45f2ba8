"""Callbacks: what a user's own hear, when, and what they may do."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from training import log, outcome, tiny, uninterrupted

import barlowtwins
from barlowtwins import Callback, RunState, pretrain
from barlowtwins.core.errors import StoppedEarly
from barlowtwins.train import pretrain as training
from barlowtwins.train.plan import Plan


class Heard(Callback):
    """Keeps each hook that is called, with the step; may raise, or send this process a signal, in one of them."""

    def __init__(self, *, fails: str = "", stops_at: int = -1) -> None:
        self.heard: list[tuple[str, int]] = []
        self.records: list[dict[str, Any]] = []
        self.fails, self.stops_at = fails, stops_at

    def _note(self, hook: str, run: RunState) -> None:
        self.heard.append((hook, run.step))
        if hook == self.fails:
            raise KeyError(hook)

    def on_start(self, run: RunState) -> None:
        self._note("start", run)

    def on_step(self, run: RunState) -> None:
        self._note("step", run)
        if run.step == self.stops_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_log(self, run: RunState, record: dict[str, Any]) -> None:
        self.records.append(record)

    def on_save(self, run: RunState) -> None:
        assert (run.folder.path / "checkpoints" / f"step-{run.step:08d}.pt").exists()
        self._note("save", run)

    def on_epoch(self, run: RunState) -> None:
        self._note("epoch", run)

    def on_end(self, run: RunState) -> None:
        assert run.folder.backbone.exists()
        self._note("end", run)

    def close(self) -> None:
        self.heard.append(("close", -1))
        if self.fails == "close":
            raise KeyError("close")


def test_a_callback_hears_every_event_in_order_and_changes_nothing(tmp_path: Path) -> None:
    heard = Heard()
    pretrain(tiny(tmp_path, checkpoint_every=6), callbacks=[heard])
    wanted = [("start", 0), ("epoch", 0)]  # twelve steps, four per epoch
    for step in range(1, 13):
        wanted += [("step", step)]
        wanted += [("save", step)] if step % 6 == 0 else []
        wanted += [("epoch", step)] if step % 4 == 0 else []
    assert heard.heard == [*wanted, ("end", 12), ("close", -1)]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert heard.records == lines
    assert outcome(tmp_path) == uninterrupted()


def test_a_run_that_is_stopped_saves_and_closes_but_does_not_end(tmp_path: Path) -> None:
    heard = Heard(stops_at=6)
    with pytest.raises(StoppedEarly, match="after step 6 of 12"):
        pretrain(tiny(tmp_path), callbacks=[heard])
    assert heard.heard[-3:] == [("step", 6), ("save", 6), ("close", -1)]
    again = Heard()
    pretrain(tiny(tmp_path), callbacks=[again])
    assert again.heard[:2] == [("start", 6), ("step", 7)]
    assert outcome(tmp_path) == uninterrupted()


@pytest.mark.parametrize("hook", ["start", "step", "save", "epoch", "end"])
def test_an_error_in_a_callback_ends_the_run_and_all_are_closed(tmp_path: Path, hook: str) -> None:
    failing, other = Heard(fails=hook), Heard()
    with pytest.raises(KeyError, match=hook):
        pretrain(tiny(tmp_path), callbacks=[failing, other])
    assert failing.heard[-2][0] == hook
    assert failing.heard[-1] == other.heard[-1] == ("close", -1)


def test_all_are_closed_although_one_fails_to(tmp_path: Path) -> None:
    first, failing, last = Heard(), Heard(fails="close"), Heard()
    with pytest.raises(KeyError, match="close"):
        pretrain(tiny(tmp_path, max_steps=1), callbacks=[first, failing, last])
    assert first.heard[-1] == last.heard[-1] == ("close", -1)


def test_what_a_callback_logs_is_a_line_and_is_known_after_a_resume(tmp_path: Path) -> None:
    class Measures(Callback):
        def on_epoch(self, run: RunState) -> None:
            if run.measured("norm") < run.step:
                run.log({"norm": run.model.projector[0].weight.norm().item()})

    seen: list[Any] = []

    class Asks(Callback):
        def on_start(self, run: RunState) -> None:
            seen.append((run.measured("norm"), run.latest.get("norm"), run.measured("nothing")))

    for most in (4, None):
        pretrain(tiny(tmp_path, max_steps=most), callbacks=[Measures(), Asks()])
    lines = [record for record in log(tmp_path) if "norm" in record]
    assert [(record["step"], record["epoch"]) for record in lines] == [(0, 0), (4, 1), (8, 2), (12, 3)]
    assert seen == [(-1, None, -1), (4, lines[1]["norm"], -1)]


def test_the_loop_itself_writes_no_report_and_the_face_adds_it(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    training.pretrain(tiny(tmp_path / "bare", epochs=1, report_every=1, val="none"))
    assert not (tmp_path / "bare" / "report.html").exists()
    barlowtwins.pretrain(tiny(tmp_path / "whole", epochs=1, report_every=1, val="none"))
    assert (tmp_path / "whole" / "report.html").exists()
    assert outcome(tmp_path / "bare") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(
    ("step", "log_every", "checkpoint_every", "max_steps", "due"),
    [
        (0, 4, None, None, (True, True, True)),
        (3, 4, None, None, (False, False, False)),
        (4, 4, None, None, (True, False, False)),
        (10, 4, None, None, (True, True, True)),
        (7, 4, 7, None, (False, True, False)),
        (13, 4, None, 13, (False, True, False)),
        (40, 7, 7, None, (True, True, True)),
    ],
)
def test_what_is_due_at_a_step(
    tmp_path: Path,
    step: int,
    log_every: int,
    checkpoint_every: int | None,
    max_steps: int | None,
    due: tuple[bool, bool, bool],
) -> None:
    config = tiny(tmp_path, log_every=log_every, checkpoint_every=checkpoint_every, max_steps=max_steps)
    nothing: Any = None
    run = RunState(config, nothing, Plan(160, 10, 40, 0), nothing, nothing, nothing, step=step)
    assert (run.log_due, run.save_due, run.at_epoch_end) == due
    assert run.last == (max_steps or 40)
