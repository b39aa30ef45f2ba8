"""Micro-batches against the one-shot gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.train.microbatch import micro_batched_backward

N = 12


def network(norm: str) -> BarlowTwins:
    """A float64 network whose batch norms are live, frozen (evaluation mode) or absent."""
    torch.manual_seed(0)
    model = BarlowTwins("resnet10_x0_5", "16-8", stem="small-stride2", channels=1).double().train()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d) and parent is not model:
                if norm == "absent":
                    setattr(parent, name, nn.Identity())
                else:
                    nn.init.uniform_(child.weight, 0.5, 1.5)
                    child.running_mean.uniform_(-0.1, 0.1)
                    child.train(norm == "live")
    return model


def views() -> torch.Tensor:
    return torch.randn(2, N, 1, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("norm", ["frozen", "absent"])
@pytest.mark.parametrize("size", [2, 4, 5, 11, 12])
def test_gradients_equal_one_shot_where_batch_norm_does_not_couple_images(norm, size):
    one_shot, micro = network(norm), network(norm)
    y1, y2 = views()
    expected = one_shot(y1, y2)
    expected.backward()
    loss = micro_batched_backward(micro, y1, y2, size)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    for (name, p), q in zip(one_shot.named_parameters(), micro.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-12, msg=name)
    for key, value in one_shot.state_dict().items():
        torch.testing.assert_close(micro.state_dict()[key], value, rtol=1e-12, atol=1e-12)


def test_one_micro_batch_is_one_shot_with_live_batch_norm_too():
    one_shot, micro = network("live"), network("live")
    y1, y2 = views()
    one_shot(y1, y2).backward()
    micro_batched_backward(micro, y1, y2, N)
    for p, q in zip(one_shot.parameters(), micro.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-10, atol=1e-14)
    for key, value in one_shot.state_dict().items():  # running statistics: moved once, not by both passes
        torch.testing.assert_close(micro.state_dict()[key], value)


def test_running_statistics_move_once_a_micro_batch():
    model = network("live")
    tracked = model.backbone.bn1.num_batches_tracked
    before = int(tracked)
    micro_batched_backward(model, *views(), 4)
    assert int(tracked) == before + 2 * (N // 4)
    assert int(model.bn.num_batches_tracked) == 2
    assert model.backbone.bn1.track_running_stats


def test_gradients_are_added_as_by_backward():
    model = network("frozen")
    y1, y2 = views()
    micro_batched_backward(model, y1, y2, 4)
    once = [p.grad.clone() for p in model.parameters()]
    micro_batched_backward(model, y1, y2, 4)
    for p, g in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * g)


def test_only_one_micro_batch_of_activations_lives():
    """The largest number of images that any layer saw at once, and how many graphs lived at once."""
    model = network("live")
    seen, alive, most = [], 0, 0

    def count(module, inputs, output):
        nonlocal alive, most
        seen.append(len(output))
        if output.requires_grad:
            alive += 1
            most = max(most, alive)

            def freed(_):
                nonlocal alive
                alive -= 1

            output.register_hook(freed)

    model.backbone.register_forward_hook(count)
    micro_batched_backward(model, *views(), 4)
    assert max(seen) == 4 and len(seen) == 2 * 2 * (N // 4)
    assert most == 1


def test_a_single_last_image_joins_the_micro_batch_before_it():
    """Batch norm on one value a channel fails; 5 + 5 + 1 images become 5 + 6."""
    model = copy.deepcopy(network("live"))
    y1, y2 = views()
    assert micro_batched_backward(model, y1[:11], y2[:11], 5).isfinite()
