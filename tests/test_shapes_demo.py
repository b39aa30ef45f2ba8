"""The demo: where it goes, and what it says of a run that was trained before. (`make demo` is the whole.)"""

from __future__ import annotations

import dataclasses
import importlib
import types
from pathlib import Path

import numpy as np
import pytest

from barlowtwins.config import DemoConfig
from barlowtwins.shapes_demo import DemoResult, demo

module = importlib.import_module("barlowtwins.shapes_demo")  # the package has the function under this name


@pytest.mark.parametrize(
    ("config", "out"),
    [
        (DemoConfig(), "runs/demo"),
        (DemoConfig(fast=True), "runs/demo-fast"),
        (DemoConfig("mine"), "mine"),
        (DemoConfig("mine", fast=True), "mine"),
    ],
)
def test_the_short_demo_has_a_folder_of_its_own(
    config: DemoConfig, out: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the long jobs left out: what they are asked for."""
    monkeypatch.chdir(tmp_path)
    asked = []
    features = np.zeros((5, 3), np.float32)
    monkeypatch.setattr(
        module, "pretrain", lambda c: (asked.append(c.out), types.SimpleNamespace(out=c.out, begun_at=7))[1]
    )
    monkeypatch.setattr(module, "evaluate_knn", lambda c: types.SimpleNamespace(accuracy={20: 50.0}))
    monkeypatch.setattr(module, "open_source", lambda *_, **__: types.SimpleNamespace(classes="abcd"))
    hub = types.SimpleNamespace(encode=lambda *_, **__: features)
    monkeypatch.setattr(module, "_through_the_hub", lambda run: (asked.append(run), hub)[1])
    result = demo(config)
    assert asked == [out, out]
    assert (result.out, result.chance, result.hub_features) == (out, 25.0, (5, 3))
    assert result.trained_before


def test_seconds_that_leave_the_training_out_say_so() -> None:
    result = DemoResult("run", 1, 2, 3, 4, (5, 6), 7.0, trained_before=False, report=None)
    assert "k = 20, after 7 seconds:" in result.summary()
    again = dataclasses.replace(result, trained_before=True)
    assert "k = 20, after 7 seconds (earlier training not included):" in again.summary()
