"""Mixed Barlow Twins against the formula as it is written, and the run that uses it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training import equal, log, tiny

from barlowtwins.core.errors import ConfigError, UsageError
from barlowtwins.loss import cross_correlation
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.pretraining import pretrain
from barlowtwins.train.mixup import Mix, draw_mix, mixed_loss, mixup_loss, require_one_process


def as_written(z1: Tensor, z2: Tensor, z: Tensor, mix: Mix) -> Tensor:
    """Correlation matrices of the mix, and what they should be, with nothing rearranged."""
    total = torch.zeros((), dtype=z1.dtype)
    for other in (z1, z2):
        found = cross_correlation(z, other)
        wanted = mix.alpha * cross_correlation(z1, other)
        a, b = ((x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() for x in (z2, other))
        for row in range(len(z1)):  # the shuffled view, row by row: (D, 1) (1, D)
            wanted = wanted + (1 - mix.alpha) * torch.outer(a[mix.order[row]], b[row]) / len(z1)
        total = total + (found - wanted).square().sum()
    return total


@pytest.mark.parametrize(("n", "d"), [(12, 5), (5, 12), (7, 7)])
def test_both_forms_are_the_formula_with_its_gradient(n: int, d: int) -> None:
    torch.manual_seed(n)
    z1, z2, z = (torch.randn(n, d, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mix = draw_mix(0, n, n)
    loss, wanted = mixup_loss(z1, z2, z, mix), as_written(z1, z2, z, mix)
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    for found, right in zip(
        torch.autograd.grad(loss, (z1, z2, z)), torch.autograd.grad(wanted, (z1, z2, z)), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-12)


def test_it_is_nothing_for_embeddings_that_mix_as_the_images_do() -> None:
    """Of standardised embeddings whose mix happens to be standardised, too."""
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 30, 4, dtype=torch.float64)
    assert mixup_loss(z1, z2, z1, Mix(1.0, torch.arange(30))).item() == pytest.approx(0, abs=1e-20)
    assert mixup_loss(z1, z2, z2[torch.arange(30).flip(0)], Mix(0.0, torch.arange(30).flip(0))).item() < 1e-20
    assert mixup_loss(z1, z2, z2, Mix(1.0, torch.arange(30))).item() > 0.1


def test_half_precision_is_computed_in_single() -> None:
    torch.manual_seed(0)
    z1, z2, z = torch.randn(3, 16, 8)
    mix = draw_mix(0, 0, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert equal(mixup_loss(z1, z2, z, mix), mixup_loss(z1, z2, z, mix).float())
        assert mixup_loss(z1, z2, z, mix).item() == pytest.approx(as_written(z1, z2, z, mix).item(), rel=1e-4)


def test_a_mix_is_a_function_of_seed_and_step() -> None:
    one = draw_mix(3, 7, 50)
    assert equal(tuple(one), tuple(draw_mix(3, 7, 50)))
    assert one.alpha != draw_mix(3, 8, 50).alpha != draw_mix(4, 7, 50).alpha
    assert sorted(one.order.tolist()) == list(range(50))
    shares = torch.tensor([draw_mix(0, step, 2).alpha for step in range(1000)])
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    assert shares.std().item() == pytest.approx(math.sqrt(1 / 12), abs=0.02)  # of Beta(1, 1)
    views = torch.arange(6.0).reshape(3, 2)
    mixed = Mix(0.25, torch.tensor([2, 0, 1])).of(views, 10 * views)
    assert mixed.tolist() == [[30.0, 37.75], [0.5, 8.25], [16.0, 23.75]]


def test_the_whole_loss_is_the_plain_one_plus_the_weighted_regulariser() -> None:
    torch.manual_seed(0)
    model = BarlowTwins("resnet10_x0_5", "12-12", lambd=0.1, scale_loss=0.5, stem="small").double().eval()
    y1, y2 = torch.randn(2, 6, 3, 8, 8, dtype=torch.float64)
    mix = draw_mix(0, 0, 6)
    z1, z2, z = model.embed(y1), model.embed(y2), model.embed(mix.alpha * y1 + (1 - mix.alpha) * y2[mix.order])
    wanted = model(y1, y2) + 0.5 * 3.0 * 0.1 * as_written(z1, z2, z, mix)
    torch.testing.assert_close(mixed_loss(model, y1, y2, mix, weight=3.0), wanted, rtol=1e-9, atol=0)
    assert model.terms is not None
    assert model.terms.loss.item() == pytest.approx(model(y1, y2).item() / 0.5)


@pytest.mark.slow
def test_a_run_uses_it_and_is_resumed_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    changes = {"mixup": 4.0, "epochs": 1, "knn_every": 0}
    pretrain(tiny(tmp_path / "whole", **changes))
    pretrain(tiny(tmp_path / "parts", **changes, max_steps=2))
    pretrain(tiny(tmp_path / "parts", **changes))
    pretrain(tiny(tmp_path / "without", **{**changes, "mixup": 0.0}))
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    losses = [[line["loss"] for line in log(tmp_path / name) if "loss" in line] for name in ("whole", "without")]
    assert losses[0][0] == losses[1][0]  # of the first step, before any update; the log has the loss without the mix
    assert losses[0][1:] != losses[1][1:]
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mixup 1 mixes images of the whole batch, micro_batch_size 4 holds"):
        tiny(tmp_path, mixup=1.0, micro_batch_size=4)
    with pytest.raises(UsageError, match=r"mixup must be >= 0, got -1\.0"):
        tiny(tmp_path, mixup=-1.0)
    with pytest.raises(ConfigError, match="--mixup mixes any two images of a batch, which 4 processes do not hold"):
        require_one_process(1.0, 4)
    require_one_process(0.0, 4)
    require_one_process(1.0, 1)
