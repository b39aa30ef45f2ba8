"""The training step: what it computes, what it judges, and what it hands on."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from training import equal, tiny

from barlowtwins.core.distributed import World
from barlowtwins.core.errors import TrainingError
from barlowtwins.data.images import Unreadable
from barlowtwins.optim import learning_rate_factor
from barlowtwins.runs.checkpoint import Checkpoint
from barlowtwins.train.pretrain import build_model
from barlowtwins.train.recipes import resolve
from barlowtwins.train.resume import restore
from barlowtwins.train.trainer import StepSettings, Trainer, prepare
from barlowtwins.views.twins import Rows, TwinBatch

ALONE = World(0, 1, torch.device("cpu"))
CONFIG = tiny(Path("run"), optimizer="sgd", lr=0.05, lr_bias=0.01, weight_decay=0.01)
SETTINGS = resolve(CONFIG, channels=3, size=(32, 32))
HOW = StepSettings(steps=10, warmup_steps=2)


def batch(number: int, dtype: torch.dtype = torch.float32) -> TwinBatch:
    y1, y2 = torch.randn(2, 16, 3, 16, 16, generator=torch.Generator().manual_seed(number), dtype=dtype)
    return TwinBatch(Rows(number, 0, tuple(range(16))), y1, y2, {}, False)


def trainer(how: StepSettings = HOW, dtype: torch.dtype = torch.float32) -> Trainer:
    model = build_model(SETTINGS, 0).to(dtype)
    return Trainer(model, prepare(model, SETTINGS, ALONE), how, ALONE)


@pytest.mark.parametrize("micro", [None, 16])
def test_steps_are_the_formulas(micro: int | None) -> None:
    """Two views, the loss as the paper writes it, SGD by hand; all in double precision."""
    one = trainer(dataclasses.replace(HOW, micro=micro), torch.float64)
    model = build_model(SETTINGS, 0).double().to(memory_format=torch.channels_last)
    momentum = [torch.zeros_like(p) for p in model.parameters()]
    for step in range(4):
        found = one.train_step(batch(step, torch.float64))

        _, y1, y2, *_ = batch(step, torch.float64)
        z1, z2 = (model.projector(model.backbone(y)) for y in (y1, y2))  # (N, D)
        a, b = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (z1, z2))  # (N, D)
        c = a.T @ b / 16  # (D, D)
        loss = (c.diagonal() - 1).square().sum() + SETTINGS.lambd * (c - torch.diag(c.diagonal())).square().sum()
        model.zero_grad()
        (SETTINGS.scale_loss * loss).backward()
        rate = (16 / 256) * (step / 2 if step < 2 else 0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * (step - 2) / 8)))
        with torch.no_grad():
            for p, m in zip(model.parameters(), momentum, strict=True):
                assert p.grad is not None
                m.mul_(0.9).add_(p.grad + (0.01 * p if p.ndim > 1 else 0))
                p.sub_(rate * (0.05 if p.ndim > 1 else 0.01) * m)
        torch.testing.assert_close(found.detach(), SETTINGS.scale_loss * loss.detach(), rtol=1e-9, atol=0)
    assert one.step == 4
    for (name, p), q in zip(one.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-10, msg=name)


def test_the_learning_rate_is_that_of_the_step() -> None:
    one = trainer()
    for step in range(3):
        one.train_step(batch(step))
        factor = learning_rate_factor(step, steps=10, warmup_steps=2)
        assert [group["lr"] for group in one.optimizer.param_groups] == [
            pytest.approx(peak * 16 / 256 * factor) for peak in (0.05, 0.01)
        ]


def test_mixup_adds_to_the_gradient_and_is_a_function_of_seed_and_step() -> None:
    plain, mixed, again = trainer(), *(trainer(dataclasses.replace(HOW, mixup=5.0)) for _ in range(2))
    for one in (plain, mixed, again):
        for step in range(2):
            one.train_step(batch(step))
    weights = [one.model.projector[0].weight for one in (plain, mixed, again)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[0], weights[1])


def test_its_state_is_all_that_the_next_step_depends_on() -> None:
    one = trainer()
    for step in range(3):
        one.train_step(batch(step))
    checkpoint = Checkpoint(**copy.deepcopy(one.state_dict()), config={}, data={})
    model = build_model(SETTINGS, 1)
    optimizer = prepare(model, SETTINGS, ALONE)
    restore(checkpoint, model, optimizer)
    two = Trainer(model, optimizer, HOW, ALONE, step=checkpoint.step, unreadable=checkpoint.unreadable)
    losses = [each.train_step(batch(3)).item() for each in (one, two)]
    assert losses[0] == losses[1]
    assert equal(one.state_dict(), two.state_dict())


def test_a_step_that_is_not_finite_updates_nothing() -> None:
    one = trainer()
    before = {name: p.clone() for name, p in one.model.named_parameters()}
    bad = batch(0)
    bad.y1[3, 0, 0, 0] = math.inf
    with pytest.raises(TrainingError, match="the loss is nan at step 0; nothing was updated"):
        one.train_step(bad)
    assert one.step == 0
    assert all(torch.equal(p, before[name]) for name, p in one.model.named_parameters())


def test_unreadable_images_are_counted_and_too_many_stop() -> None:
    one = trainer(dataclasses.replace(HOW, max_unreadable=1))
    one.train_step(batch(0)._replace(unreadable={5: Unreadable("5.jpg", "cut short")}))
    assert one.state_dict()["unreadable"] == (5,)
    with pytest.raises(TrainingError, match="cannot be read: 2"):
        one.train_step(batch(1)._replace(unreadable={6: Unreadable("6.jpg", "cut short")}))
    assert one.step == 1
