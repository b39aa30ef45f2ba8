"""LARS against its update rule written with plain numbers; groups; the schedule."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from barlowtwins.core.errors import ConfigError
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.optim import LARS, build_optimizer, learning_rate_factor, parameter_groups


def plain_lars(p, grads, *, lr, weight_decay, momentum, eta, adapt):
    """The rule, one parameter at a time, in numpy."""
    m = np.zeros_like(p)
    for g in grads:
        g = g + weight_decay * p
        p_norm, g_norm = np.sqrt((p**2).sum()), np.sqrt((g**2).sum())
        if adapt and p_norm > 0 and g_norm > 0:
            g = g * eta * p_norm / g_norm
        m = momentum * m + g
        p = p - lr * m
    return p


@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("shapes", [[(3, 4), (5,), (2, 3, 2, 2), ()], [(7, 7)]])
def test_equals_the_rule_for_several_steps(adapt, weight_decay, shapes):
    rng = np.random.default_rng(0)
    settings = {"lr": 0.3, "weight_decay": weight_decay, "momentum": 0.9, "eta": 0.02, "adapt": adapt}
    starts = [np.asarray(rng.normal(size=s)) for s in shapes]
    grads = [[np.asarray(rng.normal(size=s)) for s in shapes] for _ in range(6)]
    params = [nn.Parameter(torch.tensor(s)) for s in starts]
    optimizer = LARS(params, **settings)
    for step in grads:
        for p, g in zip(params, step, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
    for i, (p, start) in enumerate(zip(params, starts, strict=True)):
        np.testing.assert_allclose(p.detach(), plain_lars(start, [g[i] for g in grads], **settings), rtol=1e-12)


@pytest.mark.parametrize("what", ["parameter", "gradient"])
def test_zero_norms_are_not_scaled(what):
    p = nn.Parameter(torch.zeros(3, 3) if what == "parameter" else torch.ones(3, 3))
    p.grad = torch.ones(3, 3) if what == "parameter" else torch.zeros(3, 3)
    LARS([p], lr=1.0, momentum=0.0).step()
    expected = -torch.ones(3, 3) if what == "parameter" else torch.ones(3, 3)
    assert torch.equal(p.detach(), expected)


def test_parameters_without_gradient_stay_and_gradients_are_not_changed():
    p, q = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    p.grad = torch.full((2, 2), 0.5)
    optimizer = LARS([p, q], lr=0.1, weight_decay=0.1)
    assert optimizer.step(lambda: 7) == 7
    assert torch.equal(q.detach(), torch.ones(2, 2)) and not torch.equal(p.detach(), torch.ones(2, 2))
    assert torch.equal(p.grad, torch.full((2, 2), 0.5))


def test_state_dict_continues_to_the_bit():
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer = build_optimizer("lars", model, lr=0.2, lr_bias=0.01, weight_decay=1e-6)
    x = torch.randn(8, 4)

    def step(model, optimizer):
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"]
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    step(model, optimizer)
    other = copy.deepcopy(model)
    restored = build_optimizer("lars", other, lr=9.0, lr_bias=9.0, weight_decay=9.0)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        step(model, optimizer)
        step(other, restored)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_groups_are_the_published_exclusions():
    model = BarlowTwins("resnet10_x0_5", "32-32-16", stem="small")
    weights, rest = parameter_groups(model, lr=0.2, lr_bias=0.0003, weight_decay=1e-6)
    one_dimensional = set()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine:
            one_dimensional |= {id(module.weight), id(module.bias)}
    assert {id(p) for p in rest["params"]} == one_dimensional  # no layer of this network but batch norm has a bias
    assert {id(p) for p in weights["params"]} == {id(p) for p in model.parameters()} - one_dimensional
    assert (weights["weight_decay"], weights["adapt"], weights["peak_lr"]) == (1e-6, True, 0.2)
    assert (rest["weight_decay"], rest["adapt"], rest["peak_lr"]) == (0.0, False, 0.0003)


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_each_optimizer_lowers_a_loss(name):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = build_optimizer(name, model, lr=5.0 if name == "lars" else 0.05, lr_bias=0.05, weight_decay=0.0)
    x, first, last = torch.randn(32, 4), None, None
    for _ in range(60):
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"]
        loss = (model(x).squeeze() - x.sum(1) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = first or loss.item(), loss.item()
    assert last < 0.5 * first


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="lr is -1"):
        LARS([nn.Parameter(torch.ones(1))], lr=-1)
    with pytest.raises(ConfigError, match="choose one of lars, adamw, sgd"):
        build_optimizer("adam", nn.Linear(1, 1), lr=1, lr_bias=1, weight_decay=0)


def test_schedule_rises_peaks_and_falls():
    factor = [learning_rate_factor(s, steps=100, warmup_steps=10) for s in range(101)]
    assert factor[0] == 0 and factor[5] == 0.5 and factor[10] == 1.0
    assert factor[55] == pytest.approx(0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert factor[100] == pytest.approx(0.001)
    assert all(a > b for a, b in itertools.pairwise(factor[10:]))


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (3, 3), (10, 0)])
def test_short_runs_have_a_schedule_too(steps, warmup):
    values = [learning_rate_factor(s, steps=steps, warmup_steps=warmup) for s in range(steps + 2)]
    assert all(0 <= v <= 1 for v in values)
    assert max(values) == (1.0 if warmup < steps else max((steps - 1) / steps, 0.001))
    assert values[steps:] == [0.001] * 2


@pytest.mark.parametrize("final", [0, 0.25])
def test_the_last_factor_is_final_even_if_the_warmup_is_the_whole_run(final):
    assert learning_rate_factor(10, steps=10, warmup_steps=10, final=final) == final
    assert learning_rate_factor(9, steps=10, warmup_steps=10, final=final) == 0.9
