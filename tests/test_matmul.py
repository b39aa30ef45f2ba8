"""Products by oneDNN against float64 and against torch's own, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from barlowtwins.core import matmul as products
from barlowtwins.core.matmul import WORTH, Linear, matmul, processor_vendor, uses_onednn
from barlowtwins.loss import barlow_twins_loss
from barlowtwins.models.barlow_twins import BarlowTwins

SHAPES = [(128, 200, 256), (256, 8192, 7), (5, 1024, 1024), (181, 181, 181), (20, 30, 40)]  # large, but for the last


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What an AMD processor does, on any that has oneDNN."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("this torch is built without oneDNN's linear layer")
    monkeypatch.setattr(products, "_onednn_is_faster", lambda: True)
    yield
    torch.backends.mkldnn.enabled = True


def matrix(n: int, m: int, layout: str, seed: int) -> Tensor:
    """(n, m) whose rows lie one after the other, or whose columns do, or that is a part of a larger one."""
    generator = torch.Generator().manual_seed(seed)
    if layout == "columns":
        return torch.randn(m, n, generator=generator).T
    return torch.randn(n + 2, m + 3, generator=generator)[1:-1, 2:-1] if layout == "part" else torch.randn(n, m)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layouts", [("rows", "rows"), ("rows", "columns"), ("columns", "part"), ("part", "columns")])
def test_onednn_gives_the_product_in_any_layout(
    shape: tuple[int, int, int], layouts: tuple[str, str], onednn: None
) -> None:
    n, k, m = shape
    a, b = matrix(n, k, layouts[0], 1), matrix(k, m, layouts[1], 2)
    before = a.clone(), b.clone()
    assert uses_onednn(a, b) == (n * k * m >= WORTH)
    made, exact = matmul(a, b), a.double() @ b.double()
    assert made.dtype == torch.float32
    assert made.is_contiguous()
    # The bound of any order of summation (Higham 2002, section 3.5); TF32 or bf16 would be far outside.
    assert ((made - exact).abs() <= k * torch.finfo(torch.float32).eps * (a.abs().double() @ b.abs().double())).all()
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])


def test_what_is_left_to_torch(onednn: None) -> None:
    large = torch.randn(256, 256)
    assert uses_onednn(large, large)
    assert not uses_onednn(large[:2], large)  # small
    assert not uses_onednn(large.double(), large.double())
    assert not uses_onednn(large.bfloat16(), large.bfloat16())
    assert not uses_onednn(large.to("meta"), large.to("meta"))
    assert torch.equal(matmul(large.double(), large.double()), large.double() @ large.double())
    torch.backends.mkldnn.enabled = False
    assert not uses_onednn(large, large)
    assert torch.equal(matmul(large, large), large @ large)


def test_only_processors_whose_kernels_mkl_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    large = torch.randn(256, 256)
    for vendor in ("AuthenticAMD", "GenuineIntel", ""):
        monkeypatch.setattr(products, "processor_vendor", lambda _, vendor=vendor: vendor)
        products._onednn_is_faster.cache_clear()
        assert uses_onednn(large, large) == (vendor == "AuthenticAMD" and torch.backends.mkl.is_available())
    products._onednn_is_faster.cache_clear()


def test_the_vendor_is_read_where_the_system_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "linux").write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n")
    (tmp_path / "arm").write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert processor_vendor(tmp_path / "linux") == "AuthenticAMD"
    assert processor_vendor(tmp_path / "arm") == ""
    monkeypatch.setattr("platform.processor", lambda: "AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD")
    assert processor_vendor(tmp_path / "windows has none") == "AuthenticAMD"


@pytest.mark.parametrize("needs", [(True, True), (False, True), (True, False)])
def test_the_linear_layer_and_its_gradients_are_those_of_torch(needs: tuple[bool, bool], onednn: None) -> None:
    torch.manual_seed(0)
    ours, theirs = Linear(300, 200), nn.Linear(300, 200, bias=False, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(128, 300, requires_grad=needs[0])
    exact = x.detach().double().requires_grad_(needs[0])
    for layer in (ours, theirs):
        layer.weight.requires_grad_(needs[1])
    y, reference = ours(x), theirs(exact)
    assert "_Linear" in type(y.grad_fn).__name__  # and not torch's
    torch.testing.assert_close(y.double(), reference, rtol=1e-4, atol=1e-5)
    towards = torch.randn(128, 200)
    y.backward(towards)
    reference.backward(towards.double())
    for found, wanted in ((x.grad, exact.grad), (ours.weight.grad, theirs.weight.grad)):
        assert (found is None) == (wanted is None)
        if found is not None:
            torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)
    assert list(ours.state_dict()) == ["weight"]


def test_the_linear_layer_has_second_gradients(onednn: None) -> None:
    """A gradient penalty through it, against torch's layer in float64."""
    layer = Linear(256, 512)
    found = []
    for dtype in (torch.float32, torch.float64):
        weight = layer.weight.detach().to(dtype).requires_grad_()
        x = torch.linspace(-1, 1, 64 * 256).view(64, 256).to(dtype).requires_grad_()
        y = products._Linear.apply(x, weight) if dtype == torch.float32 else nn.functional.linear(x, weight)
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), weight)[0].double())
    assert found[1].abs().max() > 0.1
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-3)


def test_the_linear_layer_leaves_autocast_to_torch(onednn: None) -> None:
    layer, x = Linear(256, 256), torch.randn(64, 256)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.to("meta")(x.to("meta")).shape == (64, 256)
    layer = Linear(256, 256)
    assert layer(x[None]).shape == (1, 64, 256)  # more dimensions than two: torch's, too


def test_a_step_of_training_is_the_same_either_way(onednn: None) -> None:
    torch.manual_seed(0)
    model = BarlowTwins("resnet10_x0_5", "512-512-512", stem="small-stride2", channels=1)
    views = torch.randn(2, 32, 1, 16, 16)
    found = []
    for enabled in (True, False):
        torch.backends.mkldnn.enabled = enabled
        model.zero_grad()
        loss = model(*views)
        loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in model.projector.parameters() if p.grad is not None]))
    (fast, fast_gradients), (plain, plain_gradients) = found
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=0)
    for one, other in zip(fast_gradients, plain_gradients, strict=True):
        assert (one - other).abs().max() <= 1e-3 * other.abs().max()


@pytest.mark.parametrize(("n", "d"), [(64, 1024), (300, 700), (1024, 128)])
def test_the_loss_by_onednn_is_that_of_float64(n: int, d: int, onednn: None) -> None:
    torch.manual_seed(0)
    z1 = torch.randn(n, d)
    views = z1, z1 + 0.5 * torch.randn(n, d)
    terms = []
    for dtype in (torch.float32, torch.float64):
        leaves = [z.detach().to(dtype).requires_grad_() for z in views]
        loss = barlow_twins_loss(*leaves).loss
        loss.backward()
        terms.append((loss.detach().double(), [leaf.grad.double() for leaf in leaves if leaf.grad is not None]))
    (loss, gradients), (exact, exact_gradients) = terms
    torch.testing.assert_close(loss, exact, rtol=2e-5, atol=0)
    for gradient, reference in zip(gradients, exact_gradients, strict=True):
        assert (gradient - reference).abs().max() <= 2e-5 * reference.abs().max()
