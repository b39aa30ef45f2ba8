"""The loss against the plain formula in float64, for both forms, value and gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from barlowtwins.core.errors import ConfigError
from barlowtwins.loss import (
    STRIP,
    BarlowTwinsLoss,
    barlow_twins_loss,
    choose_form,
    cross_correlation,
    off_diagonal_floor,
    plain_loss,
    standardize,
)
from barlowtwins.models.barlow_twins import BarlowTwins

LAMBD = 0.0051
SHAPES = [(2, 1), (2, 5), (3, 3), (8, 64), (64, 8), (37, 41), (128, 16), (16, 128)]


def formula(z1: Tensor, z2: Tensor, lambd: float = LAMBD) -> tuple[Tensor, Tensor, Tensor]:
    """The plain loss in float64, and its two sums: it is linear in lambd."""
    z1, z2 = z1.double(), z2.double()
    on = plain_loss(z1, z2, 0.0)
    return plain_loss(z1, z2, lambd), on, plain_loss(z1, z2, 1.0) - on


def pair(n: int, d: int, *, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n * 1000 + d)
    z1 = torch.randn(n, d, generator=generator, dtype=torch.float64)
    z2 = 0.7 * z1 + 0.5 * torch.randn(n, d, generator=generator, dtype=torch.float64) + 0.3
    return (z1 * scale).to(dtype), (z2 * scale).to(dtype)


def gradients(function, z1: Tensor, z2: Tensor) -> tuple[Tensor, list[Tensor]]:
    leaves = [z.detach().clone().requires_grad_() for z in (z1, z2)]
    loss = function(*leaves)
    loss.backward()
    return loss.detach(), [z.grad for z in leaves]


@pytest.mark.parametrize(("n", "d"), [(2, 1), (5, 3), (37, 41)])
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_plain_loss_is_the_equation_number_by_number(n, d, eps):
    z1, z2 = pair(n, d)
    x, y = ((z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + eps) for z in (z1.numpy(), z2.numpy()))
    expected = 0.0
    for i in range(d):
        for j in range(d):
            c = sum(x[k, i] * y[k, j] for k in range(n)) / n
            expected += (c - 1) ** 2 if i == j else 0.3 * c**2
    assert plain_loss(z1, z2, 0.3, eps).item() == pytest.approx(expected, rel=1e-11)


def test_plain_loss_standardizes_like_batch_norm():
    z1, z2 = pair(16, 5)
    a, b = (torch.nn.functional.batch_norm(z, None, None, training=True) for z in (z1, z2))
    c = a.T @ b / 16
    expected = (c - torch.eye(5)).square().sum()  # lambd = 1: the distance from the identity
    torch.testing.assert_close(plain_loss(z1, z2, 1.0), expected)


@pytest.mark.parametrize("form", ["gram", "cross"])
@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_value_and_gradient_equal_the_formula_in_float64(form, n, d, scale):
    z1, z2 = pair(n, d, scale=scale)
    expected, expected_grads = gradients(lambda x, y: formula(x, y)[0], z1, z2)
    loss, grads = gradients(lambda x, y: barlow_twins_loss(x, y, LAMBD, form=form).loss, z1, z2)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    for grad, reference in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, reference, rtol=1e-8, atol=1e-10 * max(1e-12, reference.abs().max().item()))


@pytest.mark.parametrize("form", ["gram", "cross"])
def test_gradcheck(form):
    z1, z2 = (z.requires_grad_() for z in pair(5, 7))
    assert torch.autograd.gradcheck(lambda x, y: barlow_twins_loss(x, y, 0.1, form=form).loss, (z1, z2))


@pytest.mark.parametrize("form", ["gram", "cross"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "d"), [(16, 128), (128, 16)])
def test_low_precision_inputs_lose_no_more_than_their_own_rounding(form, dtype, n, d):
    z1, z2 = pair(n, d, dtype=dtype)
    expected, expected_grads = gradients(lambda x, y: formula(x, y)[0], z1.double(), z2.double())
    loss, grads = gradients(lambda x, y: barlow_twins_loss(x, y, LAMBD, form=form).loss, z1, z2)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=2e-5, atol=1e-6)
    rounding = 2e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    for grad, reference in zip(grads, expected_grads, strict=True):
        assert grad.dtype == dtype
        assert (grad.double() - reference).abs().max() <= rounding * reference.abs().max()


@pytest.mark.parametrize("form", ["gram", "cross"])
def test_autocast_does_not_reach_into_the_loss(form):
    z1, z2 = pair(32, 48, dtype=torch.float32)
    plain, plain_grads = gradients(lambda x, y: barlow_twins_loss(x, y, form=form).loss, z1, z2)

    def under_autocast(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return barlow_twins_loss(x, y, form=form).loss

    loss, grads = gradients(under_autocast, z1, z2)
    assert torch.equal(loss, plain)
    assert all(torch.equal(g, p) for g, p in zip(grads, plain_grads, strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        matrix = cross_correlation(z1, z2)
    torch.testing.assert_close(matrix.double(), cross_correlation(z1.double(), z2.double()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["gram", "cross"])
def test_dead_feature_gives_finite_numbers(form):
    z1, z2 = pair(16, 12)
    z1[:, 3] = 4.2
    z2[:, 3] = -1.0
    z1[:, 5] = 0.0
    expected, expected_grads = gradients(lambda x, y: formula(x, y)[0], z1, z2)
    loss, grads = gradients(lambda x, y: barlow_twins_loss(x, y, LAMBD, form=form).loss, z1, z2)
    assert all(torch.isfinite(g).all() for g in grads)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    for grad, reference in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, reference, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_terms_and_statistics(n, d):
    z1, z2 = pair(n, d)
    loss, on, off = formula(z1, z2)
    for form in ("gram", "cross"):
        terms = barlow_twins_loss(z1, z2, LAMBD, form=form)
        assert terms.form == form
        torch.testing.assert_close(torch.stack(terms[:3]), torch.stack([loss, on, off]), rtol=1e-9, atol=1e-10)
        for view, z in zip(terms.statistics, (z1, z2), strict=True):
            torch.testing.assert_close(view.mean, z.mean(0))
            torch.testing.assert_close(view.var, z.var(0, unbiased=False))


def test_cross_correlation_is_numpys_and_differentiable():
    z1, z2 = pair(50, 6)
    reference = np.corrcoef(z1.numpy().T, z2.numpy().T)[:6, 6:]
    np.testing.assert_allclose(cross_correlation(z1, z2, eps=0.0).numpy(), reference, atol=1e-12)
    leaf = z1.clone().requires_grad_()
    cross_correlation(leaf, z2).square().sum().backward()
    assert leaf.grad is not None and leaf.grad.abs().sum() > 0


@pytest.mark.parametrize(("n", "d"), [(8, 64), (16, 17), (33, 32), (2, 5)])
def test_floor_bounds_the_off_diagonal_sum(n, d):
    z1, _ = pair(n, d)
    a = standardize(z1, 0.0)[0]
    c = a.T @ a / n  # unit diagonal
    off = c.square().sum() - c.diagonal().square().sum()
    assert off >= off_diagonal_floor(n, d) - 1e-9
    if n > d:
        assert off_diagonal_floor(n, d) == 0
    elif (n, d) == (2, 5):  # with two images every feature is +1, -1: C is all ones
        assert off.item() == pytest.approx(off_diagonal_floor(n, d)) == 20


def test_a_simplex_meets_the_floor():
    """N points, D = N features: the centred simplex has off-diagonal correlations of exactly -1 / (N - 1)."""
    n = 9
    z = torch.eye(n, dtype=torch.float64)
    terms = barlow_twins_loss(z, z, eps=0.0, form="gram")
    assert terms.off_diagonal.item() == pytest.approx(terms.floor, rel=1e-12)
    assert terms.on_diagonal.item() == pytest.approx(0.0, abs=1e-20)


def test_the_cheaper_form_is_chosen():
    assert [choose_form(n, 8192) for n in (2, 256, 2048, 6143, 6144, 65536)] == ["gram"] * 4 + ["cross"] * 2
    z1, z2 = pair(8, 64)
    assert barlow_twins_loss(z1, z2).form == "gram"
    assert barlow_twins_loss(*pair(64, 8)).form == "cross"


def test_gram_form_never_holds_a_matrix_of_d_by_d():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                self.numel = max(self.numel, out.untyped_storage().nbytes() // out.element_size())
            return out

    z1, z2 = (z.requires_grad_() for z in pair(16, 512, dtype=torch.float32))
    with Largest() as largest:
        barlow_twins_loss(z1, z2, form="gram").loss.backward()
    assert largest.numel == 16 * 512


def test_module_scales_remembers_its_terms_and_trains_alone():
    torch.manual_seed(0)
    z1, z2 = pair(32, 8, dtype=torch.float32)
    module = BarlowTwinsLoss(LAMBD, scale_loss=0.1)
    torch.testing.assert_close(module(z1, z2).double(), 0.1 * formula(z1, z2)[0], rtol=1e-5, atol=1e-7)
    assert module.terms is not None and not module.terms.loss.requires_grad

    network = torch.nn.Linear(8, 8)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    first = last = None
    for _ in range(50):
        loss = module(network(z1), network(z2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = first or loss.item(), loss.item()
    assert last < 0.7 * first


def test_inputs_are_not_changed():
    z1, z2 = pair(8, 16, dtype=torch.float32)
    before = z1.clone(), z2.clone()
    for form in ("gram", "cross"):
        gradients(lambda x, y, form=form: barlow_twins_loss(x, y, form=form).loss, z1, z2)
    assert torch.equal(z1, before[0]) and torch.equal(z2, before[1])


def test_only_one_view_may_need_a_gradient():
    z1, z2 = pair(8, 16)
    leaf = z1.clone().requires_grad_()
    barlow_twins_loss(leaf, z2).loss.backward()
    expected = gradients(lambda x, y: formula(x, y)[0], z1, z2)[1][0]
    torch.testing.assert_close(leaf.grad, expected)


def test_wrong_shapes_are_refused_with_numbers():
    with pytest.raises(ConfigError, match=r"\(4, 3\) and \(4, 5\)"):
        barlow_twins_loss(torch.zeros(4, 3), torch.zeros(4, 5))
    with pytest.raises(ConfigError, match="1 image"):
        barlow_twins_loss(torch.zeros(1, 3), torch.zeros(1, 3))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
@pytest.mark.parametrize("form", ["auto", "gram", "cross"])
def test_embeddings_that_are_not_real_floating_numbers_are_refused(dtype, form):
    real, odd = torch.eye(4, 3), torch.eye(4, 3).to(dtype)
    message = f"the embeddings have dtype {dtype}; they must be real floating-point numbers"
    for z1, z2 in ((real, odd), (odd, real)):
        with pytest.raises(ConfigError, match=message):
            barlow_twins_loss(z1, z2, form=form)
        with pytest.raises(ConfigError, match=message):
            cross_correlation(z1, z2)
    with pytest.raises(ConfigError, match=message):
        standardize(odd)


@pytest.mark.parametrize("value", [float("nan"), -0.1, float("inf")])
def test_numbers_out_of_range_are_refused_before_anything_is_computed(value):
    z1, z2 = pair(4, 3)
    message = f"lambd of the loss is {value}; it must be a finite number, 0 or more"
    for call in (
        lambda: barlow_twins_loss(z1, z2, value),
        lambda: BarlowTwinsLoss(value),
        lambda: BarlowTwins("resnet10_x0_5", "8-8", value),
    ):
        with pytest.raises(ConfigError, match=message):
            call()
    with pytest.raises(ConfigError, match="eps of the loss"):
        barlow_twins_loss(z1, z2, eps=value)
    module = BarlowTwinsLoss()
    module.lambd = value
    with pytest.raises(ConfigError, match=message):
        module(z1, z2)
    assert barlow_twins_loss(z1, z2, 0.0).loss == barlow_twins_loss(z1, z2, 0.0).on_diagonal


def test_an_unknown_form_is_refused():
    for call in (lambda: barlow_twins_loss(*pair(4, 3), form="grams"), lambda: BarlowTwinsLoss(form="grams")):
        with pytest.raises(ConfigError, match="form of the loss is 'grams'; it must be one of auto, gram, cross"):
            call()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lambda_param", "it is called lambd here"),  # lightly
        ("lamb", "it is called lambd here"),  # solo-learn
        ("gather_distributed", "the loss gathers the processes"),  # lightly
        ("lambada", "it takes lambd"),
    ],
)
def test_names_of_other_packages_are_refused_with_ours(name, hint):
    z1, z2 = pair(4, 3)
    calls = {
        "barlow_twins_loss": lambda **kwargs: barlow_twins_loss(z1, z2, **kwargs),
        "BarlowTwinsLoss": BarlowTwinsLoss,
        "BarlowTwins": lambda **kwargs: BarlowTwins("resnet10_x0_5", "8-8", **kwargs),
    }
    for function, call in calls.items():
        with pytest.raises(TypeError, match=rf"{function}\(\) has no argument '{name}'; .*{hint}"):
            call(**{name: 5e-3})


@pytest.mark.parametrize("form", ["gram", "cross"])
def test_a_second_gradient_is_refused_and_the_plain_loss_has_it(form):
    z1, z2 = (z.requires_grad_() for z in pair(6, 4))
    loss = barlow_twins_loss(z1, z2, form=form).loss
    with pytest.raises(ConfigError, match=r"create_graph=True .* use barlowtwins\.loss\.plain_loss"):
        torch.autograd.grad(loss, z1, create_graph=True)
    with pytest.raises(ConfigError, match="create_graph=True"):
        BarlowTwinsLoss(form=form)(z1, z2).backward(create_graph=True)
    assert torch.autograd.gradgradcheck(lambda x, y: plain_loss(x, y, 0.1), (z1, z2))


@pytest.mark.parametrize("strips", [2, 3, STRIP[1] + 1])
def test_a_large_batch_equals_the_formula_too(strips):
    """A CPU computes AA' to its diagonal, strip by strip, and mirrors it; and it sums columns in chunks."""
    z1, z2 = pair(STRIP[0] * strips + 3, 700)
    expected, expected_grads = gradients(lambda x, y: formula(x, y)[0], z1, z2)
    loss, grads = gradients(lambda x, y: barlow_twins_loss(x, y, LAMBD, form="gram").loss, z1, z2)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    for grad, reference in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, reference, rtol=1e-8, atol=1e-10 * reference.abs().max().item())


@pytest.mark.parametrize("form", ["gram", "cross"])
def test_a_second_backward_gives_the_same_gradient_and_leaves_the_first_alone(form):
    z1, z2 = (z.requires_grad_() for z in pair(16, 24))
    loss = barlow_twins_loss(z1, z2, LAMBD, form=form).loss
    first = torch.autograd.grad(loss, (z1, z2), retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(3 * loss, (z1, z2))
    for one, copy, three in zip(first, kept, second, strict=True):
        assert torch.equal(one, copy)
        torch.testing.assert_close(three, 3 * one)
