"""Whoever tracks a run gets each line of its log, and TensorBoard reads what is written for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training import tiny, words

from barlowtwins.cli import main
from barlowtwins.pretraining import pretrain
from barlowtwins.train.trackers import TensorBoard


class Kept:
    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.closed = 0

    def log(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def close(self) -> None:
        self.closed += 1


def test_a_tracker_gets_each_line_of_the_log_and_is_closed(tmp_path: Path) -> None:
    kept = Kept()
    pretrain(tiny(tmp_path, epochs=1), trackers=[kept])

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kept.records == lines
    assert kept.closed == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own imports
def test_the_flag_writes_the_numbers_of_the_log_for_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert main(words(tiny(tmp_path, epochs=1, track="tensorboard"))) == 0

    expected: dict[str, list[tuple[int, float]]] = {}
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
                expected.setdefault(name, []).append((record["step"], pytest.approx(value, rel=1e-6)))
    assert {"epoch", "loss", "lr", "knn"} <= set(expected)
    assert _scalars(tmp_path / "tensorboard") == expected


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own imports
def test_tensorboard_reads_the_numbers_and_forgets_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    first = TensorBoard(tmp_path)
    for step in (10, 20, 30):
        first.log({"step": step, "epoch": step / 10, "loss": step + 0.5, "form": "gram"})
    first.close()
    again = TensorBoard(tmp_path, start=20)  # killed after 30, the checkpoint is of 20
    again.log({"step": 30, "epoch": 3.0, "loss": 7.5, "knn": 80.0})
    again.close()

    found = _scalars(tmp_path)
    assert found == {
        "epoch": [(10, 1.0), (20, 2.0), (30, 3.0)],
        "loss": [(10, 10.5), (20, 20.5), (30, 7.5)],
        "knn": [(30, 80.0)],
    }
