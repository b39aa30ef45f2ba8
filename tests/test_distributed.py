"""The loss, its gradient and whole training steps on 1, 2 and 4 processes: one and the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from torch import nn

from barlowtwins.core.batch_norm import GlobalBatchNorm
from barlowtwins.core.distributed import World, open_world
from barlowtwins.core.errors import ConfigError
from barlowtwins.loss import BarlowTwinsLoss, barlow_twins_loss
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.optim import build_optimizer
from barlowtwins.train.microbatch import micro_batched_backward

N = 8  # images in the global batch
LOSS_SHAPES = {"gram": (N, 24), "cross": (N, 5)}


def embeddings(d: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(d)
    z1 = torch.randn(N, d, generator=generator, dtype=torch.float64) * 3 + 1
    return z1, 0.6 * z1 + torch.randn(N, d, generator=generator, dtype=torch.float64)


def loss_and_gradients(form: str, rank: int, size: int, group: Any) -> dict[str, np.ndarray]:
    """This process's rows through the loss; the gradient is divided by W as data-parallel averaging does."""
    n = N // size
    z1, z2 = (z[rank * n : (rank + 1) * n].clone().requires_grad_() for z in embeddings(LOSS_SHAPES[form][1]))
    terms = barlow_twins_loss(z1, z2, form=form, group=group)
    terms.loss.backward()
    numbers = {"loss": terms.loss, "on": terms.on_diagonal, "off": terms.off_diagonal}
    numbers |= {"g1": z1.grad / size, "g2": z2.grad / size}
    for view, statistics in enumerate(terms.statistics):
        numbers |= {f"mean{view}": statistics.mean, f"var{view}": statistics.var}
    return {name: value.detach().numpy() for name, value in numbers.items()}


def train(rank: int, size: int, world: World, form: str, optimizer_name: str, steps: int = 4) -> dict[str, np.ndarray]:
    """A few steps of a small network with batch norm, in float64; the state that they lead to."""
    torch.manual_seed(0)
    widths = "24-24" if form == "gram" else "24-5"
    model = BarlowTwins("resnet10_x0_5", widths, stem="small-stride2", channels=1).double().train()
    for module in model.modules():  # zero-initialised branches would hide errors in what they multiply
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            nn.init.constant_(module.weight, 0.5)
    model.loss.form = form
    optimizer = build_optimizer(optimizer_name, model, lr=0.5, lr_bias=0.02, weight_decay=1e-4)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"]
    network = world.share(model)
    generator = torch.Generator().manual_seed(1)
    n = N // size
    losses = []
    for _ in range(steps):
        y1, y2 = torch.randn(2, N, 1, 16, 16, generator=generator, dtype=torch.float64)
        own = slice(rank * n, (rank + 1) * n)
        loss = network(y1[own], y2[own])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {"losses": np.array(losses)} | {key: value.numpy() for key, value in model.state_dict().items()}


def micro_batched(rank: int, size: int, world: World) -> dict[str, np.ndarray]:
    """One step by micro-batches of 4 images, batch norm frozen: the averaged gradients."""
    torch.manual_seed(0)
    model = BarlowTwins("resnet10_x0_5", "24-24", stem="small-stride2", channels=1).double().train()
    world.share(model)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.constant_(module.weight, 0.5)
            module.eval()
    y1, y2 = torch.randn(2, N, 1, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own = slice(rank * N // size, (rank + 1) * N // size)
    loss = micro_batched_backward(model, y1[own], y2[own], 4 // size)
    world.average_gradients(model)
    return {"loss": loss.numpy()} | {name: p.grad.numpy() for name, p in model.named_parameters()}


def second_gradient(rank: int, size: int) -> np.ndarray:
    """The gradient of a gradient penalty through batch norm, of this process's rows."""
    x = torch.randn(N, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = x[rank * N // size : (rank + 1) * N // size].requires_grad_()
    norm: nn.Module = nn.BatchNorm1d(3).double()
    norm = norm if size == 1 else GlobalBatchNorm.over(norm)
    (gradient,) = torch.autograd.grad(norm(x).pow(3).sum(), x, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), x)[0].numpy()


def everything(rank: int, size: int) -> dict[str, Any]:
    """All that a process is asked, in one life, since starting one takes seconds."""
    answers: dict[str, Any] = {}
    for form in LOSS_SHAPES:
        answers[f"loss {form}"] = loss_and_gradients(form, rank, size, dist.group.WORLD)
    with open_world("cpu") as world:
        answers["any"] = [world.any(rank == size - 1), world.any(False)]
        answers["union"] = world.union({rank, 100})
        for form in LOSS_SHAPES:
            for optimizer in ("lars", "sgd"):
                answers[f"train {form} {optimizer}"] = train(rank, size, world, form, optimizer)
        answers["micro"] = micro_batched(rank, size, world)
    answers["second"] = second_gradient(rank, size)
    answers["bytes"] = {form: traffic(form, rank, size) for form in LOSS_SHAPES}
    for form in LOSS_SHAPES:  # one row too many on the last process
        rows = 2 + (rank == size - 1)
        try:
            barlow_twins_loss(torch.randn(rows, 4), torch.randn(rows, 4), form=form, group=dist.group.WORLD)
        except ConfigError as error:
            answers[f"uneven {form}"] = str(error)
    return answers


def traffic(form: str, rank: int, size: int) -> list[int]:
    """Numbers that this process hands to collectives in one forward and in one backward pass."""
    counts = []
    gather = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    originals = {name: getattr(dist, name) for name in ("all_reduce", gather)}
    sent = 0

    def counting(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal sent
            tensor = args[0] if name == "all_reduce" else args[1]
            sent += tensor.numel() if tensor.is_floating_point() else 0
            return originals[name](*args, **kwargs)

        return call

    n, d = N // size, LOSS_SHAPES[form][1]
    z1, z2 = (torch.randn(n, d, requires_grad=True) for _ in range(2))
    try:
        for name in originals:
            setattr(dist, name, counting(name))
        loss = barlow_twins_loss(z1, z2, form=form, group=dist.group.WORLD).loss
        counts.append(sent)
        loss.backward()
        counts.append(sent - counts[0])
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
    return counts


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    world = World(0, 1, torch.device("cpu"))
    answers: dict[str, Any] = {}
    for form in LOSS_SHAPES:
        answers[f"loss {form}"] = loss_and_gradients(form, 0, 1, None)
        for optimizer in ("lars", "sgd"):
            answers[f"train {form} {optimizer}"] = train(0, 1, world, form, optimizer)
    answers["micro"] = micro_batched(0, 1, world)
    answers["second"] = second_gradient(0, 1)
    return answers


@pytest.fixture(scope="module", params=[2, 4], ids=["2 processes", "4 processes"])
def together(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_processes(everything, request.param)


@pytest.mark.parametrize("form", LOSS_SHAPES)
def test_value_gradient_and_statistics_equal_one_process(alone, together, form):
    expected = alone[f"loss {form}"]
    for name in expected:
        parts = [answer[f"loss {form}"][name] for answer in together]
        if name in ("g1", "g2"):  # each process has the gradient of its own rows
            np.testing.assert_allclose(np.concatenate(parts), expected[name], rtol=1e-9, atol=1e-13)
        else:  # and all have the same value
            for part in parts:
                np.testing.assert_allclose(part, expected[name], rtol=1e-9)


@pytest.mark.parametrize("optimizer", ["lars", "sgd"])
@pytest.mark.parametrize("form", LOSS_SHAPES)
def test_parameters_and_buffers_after_steps_equal_one_process(alone, together, form, optimizer):
    """SGD would show a gradient that is off by a factor, such as 1 / W, at once; LARS alone would hide it."""
    expected = alone[f"train {form} {optimizer}"]
    assert len(set(expected["losses"].tolist())) == len(expected["losses"])  # it moved
    for answer in together:
        assert answer[f"train {form} {optimizer}"].keys() == expected.keys()
        for key, value in answer[f"train {form} {optimizer}"].items():
            np.testing.assert_allclose(value, expected[key], rtol=1e-9, atol=1e-11, err_msg=key)


def test_micro_batched_gradients_equal_one_process(alone, together):
    for answer in together:
        for name, value in alone["micro"].items():
            np.testing.assert_allclose(answer["micro"][name], value, rtol=1e-9, atol=1e-12, err_msg=name)


def test_second_gradients_through_batch_norm_equal_one_process(alone, together):
    parts = [answer["second"] for answer in together]
    assert np.abs(alone["second"]).max() > 1
    np.testing.assert_allclose(np.concatenate(parts), alone["second"], rtol=1e-9, atol=1e-12)


def test_backward_of_the_loss_sends_nothing(together):
    """Forward: the embeddings once and 2 D + 1 numbers (gram), or C and 4 D statistics (cross)."""
    size = len(together)
    for answer in together:
        for form, (_, d) in LOSS_SHAPES.items():
            sent = 2 * (N // size) * d + 2 * d + 1 if form == "gram" else d * d + 4 * d
            assert answer["bytes"][form] == [sent, 0]


def test_unequal_shares_are_refused_on_every_process(together):
    for answer in together:
        for form in LOSS_SHAPES:
            assert "drop_last" in answer[f"uneven {form}"]


def test_flags_and_sets_are_shared(together):
    size = len(together)
    for answer in together:
        assert answer["any"] == [True, False]
        assert answer["union"] == {*range(size), 100}


def test_one_process_shares_nothing():
    with open_world("cpu") as world:
        assert (world.rank, world.size, world.writes) == (0, 1, True)
        assert world.any(True) and not world.any(False)
        assert world.union({3}) == {3}
        model = nn.Linear(1, 1)
        assert world.share(model) is model
        world.wait()
    assert not dist.is_initialized()


def test_module_alone_uses_no_group():
    z1, z2 = embeddings(6)
    module = BarlowTwinsLoss()
    assert module(z1, z2).item() == pytest.approx(barlow_twins_loss(z1, z2).loss.item(), rel=1e-12)


def test_global_batch_norm_shares_parameters_and_follows_torch_in_evaluation():
    norm = nn.BatchNorm2d(3)
    nn.init.normal_(norm.weight)
    norm(torch.randn(8, 3, 4, 4) * 2 + 1)
    ours = GlobalBatchNorm.over(norm).eval()
    assert ours.weight is norm.weight and ours.running_mean is norm.running_mean
    x = torch.randn(5, 3, 4, 4)
    torch.testing.assert_close(ours(x), norm.eval()(x))
    assert ours.state_dict().keys() == norm.state_dict().keys()
