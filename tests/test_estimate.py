"""What a dry run foretells: memory by parts against what is known of them, time that adds up, nothing touched."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from training import equal, tiny

from barlowtwins.cli import main
from barlowtwins.core.distributed import World
from barlowtwins.data.images import Unreadable
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.pretraining import pretrain
from barlowtwins.train.estimate import Estimate, Memory, estimate, estimate_run, saved_bytes
from barlowtwins.train.pretrain import build_model
from barlowtwins.train.recipes import Settings, resolve
from barlowtwins.train.setup import set_up
from barlowtwins.train.trainer import StepSettings, Trainer
from barlowtwins.views.twins import TwinBatch

SETTINGS = resolve(tiny(Path("run")), channels=3, size=(32, 32))
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("barlowtwins.train.estimate.STEPS", 1)
    monkeypatch.setattr("barlowtwins.train.estimate.WARM_UP", 0)


def estimated(model: BarlowTwins, settings: Settings = SETTINGS, **changes: object) -> Estimate:
    how = StepSettings(1000, micro=changes.pop("micro", None))  # type: ignore[arg-type]
    return estimate(model, settings, how, **{"device": CPU, **changes})  # type: ignore[arg-type]


def test_saved_bytes_are_those_of_a_chain_that_can_be_counted_by_hand() -> None:
    x = torch.randn(10, 4, requires_grad=True)

    def square_twice() -> None:  # x * x keeps x; y * y keeps y: 40 floats each, however often they are kept
        y = x * x
        (y * y).sum().backward()

    assert saved_bytes(square_twice) == 2 * 40 * 4
    assert saved_bytes(lambda: None) == 0


def test_saved_bytes_leave_out_a_modules_own_tensors_and_what_is_let_go() -> None:
    layer = nn.Linear(8, 16, bias=False)
    x = torch.randn(32, 8)
    assert (
        saved_bytes(lambda: layer(x).sum().backward(), ignore=layer) == x.numel() * 4
    )  # kept for the weight's gradient
    one = saved_bytes(lambda: layer(x.clone()).sum().backward(), ignore=layer)

    def one_after_the_other() -> None:
        for _ in range(3):
            layer(x.clone()).sum().backward()

    def all_at_once() -> None:
        sum(layer(x.clone()).sum() for _ in range(3)).backward()  # type: ignore[union-attr]

    assert saved_bytes(one_after_the_other, ignore=layer) == one
    assert saved_bytes(all_at_once, ignore=layer) == 3 * one


def test_memory_is_counted_by_parts() -> None:
    model = build_model(SETTINGS, 0)
    found = estimated(model)
    parameters = sum(p.numel() for p in model.parameters())
    assert found.memory.parameters == sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert found.memory.gradients == 4 * parameters
    assert found.memory.optimizer == pytest.approx(2 * 4 * parameters, rel=1e-3)  # AdamW keeps two, and a step count
    assert found.memory.input == 2 * 16 * 3 * 16 * 16 * 4
    lars = estimated(model, dataclasses.replace(SETTINGS, optimizer="lars"))
    assert lars.memory.optimizer == 4 * parameters
    assert found.memory.total == sum(vars(found.memory).values())


def test_activations_grow_with_the_batch_and_micro_batches_hold_fewer() -> None:
    model = build_model(SETTINGS, 0)
    one = estimated(model).memory.activations
    two = estimated(model, dataclasses.replace(SETTINGS, batch_size=32)).memory.activations
    micro = estimated(model, dataclasses.replace(SETTINGS, batch_size=32), micro=8).memory.activations
    share = estimated(model, dataclasses.replace(SETTINGS, batch_size=32), processes=2).memory.activations
    assert two == pytest.approx(2 * one, rel=0.05)
    assert micro < two / 4  # of one view of eight images, not of two views of 32
    assert share == one


def test_where_a_batch_is_too_much_a_part_of_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model, settings = build_model(SETTINGS, 0), dataclasses.replace(SETTINGS, batch_size=32)
    whole = estimated(model, settings)
    assert (whole.images, whole.timed_images) == (32, 32)
    # Half of what is free may be used.
    monkeypatch.setattr("barlowtwins.train.estimate._free_memory", lambda: whole.memory.activations)
    part = estimated(model, settings)
    assert 4 <= part.timed_images <= 16
    assert part.memory.activations == pytest.approx(whole.memory.activations, rel=0.05)
    assert part.memory.input == whole.memory.input
    monkeypatch.undo()
    monkeypatch.setattr("barlowtwins.train.estimate.SECONDS", 1e-6)
    assert estimated(model, settings).timed_images == 4


def test_the_steps_are_those_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same function as a run calls, on a network in the same memory layout."""
    seen = []

    def spy(self: Trainer, batch: TwinBatch) -> torch.Tensor:
        weight = self.model.backbone.conv1.weight
        seen.append((len(batch.y1), weight.is_contiguous(memory_format=torch.channels_last)))
        return step(self, batch)

    step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", spy)
    estimated(build_model(SETTINGS, 0))
    assert seen == [(4, True), (16, True), (16, True)]  # to see what is affordable, for the memory, for the time


def test_nothing_is_left_changed() -> None:
    model = build_model(SETTINGS, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    estimated(model, micro=4)
    assert equal(dict(model.state_dict()), before)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_time_is_that_of_the_slower_of_reading_and_network() -> None:
    found = Estimate("CPU", Memory(1, 2, 3, 4, 5), 64, 64, 10, 0.5, 4.0, 0, 100)
    assert found.seconds == 450
    assert dataclasses.replace(found, workers=4).seconds == 100
    assert dataclasses.replace(found, workers=16).seconds == 50
    assert dataclasses.replace(found, read_seconds=None).seconds == 50
    assert "time about 7.5 min for 100 steps (0.5 s a step, median of 10, reading a batch 4 s)" in found.summary()
    assert "memory about 15 B on CPU (parameters 1 B" in found.summary()
    assert "median of 10 with 8 of 64 images, reading" in dataclasses.replace(found, timed_images=8).summary()
    for steps, said in ((10, "45 s"), (10_000, "12.5 h"), (100_000, "5.21 days")):
        assert f"about {said} for" in dataclasses.replace(found, steps=steps).summary()
    assert "3.0 GB" in dataclasses.replace(found, memory=Memory(3_000_000_000, 0, 2_000_000, 4000, 0)).summary()


def test_reading_is_timed_on_the_real_images() -> None:
    setup = set_up(tiny(Path("run")), World(0, 1, CPU))
    found = estimate_run(setup, build_model(SETTINGS, 0))
    assert found.steps == 12
    assert found.read_seconds is not None
    assert 0 < found.read_seconds < 5
    assert 0 < found.step_seconds < 5
    assert found.timed_steps <= 10
    setup = set_up(tiny(Path("run"), augment_backend="pillow"), World(0, 1, CPU))  # which reads them one by one
    setup.source.read = lambda index: Unreadable("x", "gone")  # type: ignore[method-assign]
    found = estimate_run(setup, build_model(SETTINGS, 0))
    assert found.read_seconds is None


def test_a_dry_run_prints_the_estimate_and_gives_it_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = ["pretrain", "shapes:32", "--out", str(run), "--batch-size", "8", "--workers", "0", "--dry-run"]
    assert main([*words, "--device", "cpu", "--projector", "8-8"]) == 0
    printed = capsys.readouterr().out
    for part in (
        "backbone",
        "resnet10_x0_5",
        "steps: 20",
        "parameters",
        "memory about",
        "time about",
        "--lr overrides",
    ):
        assert part in printed
    assert main([*words, "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["estimate"]
    assert found["memory"]["total"] == sum(found["memory"].values()) / 2
    assert found["seconds"] > 0
    assert not run.exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_the_activations_are_what_the_allocator_held() -> None:
    model = build_model(SETTINGS, 0)
    one = estimated(model, dataclasses.replace(SETTINGS, batch_size=256), device=torch.device("cuda")).memory
    two = estimated(model, dataclasses.replace(SETTINGS, batch_size=512), device=torch.device("cuda")).memory
    assert 1.5 * one.activations < two.activations < 2.5 * one.activations


def test_a_run_that_is_not_dry_has_no_estimate(tmp_path: Path) -> None:
    assert pretrain(tiny(tmp_path, max_steps=0, val="none")).estimate is None
