"""The Barlow Twins loss: the plain formula, a fast exact form, and the same loss over many processes.

Each feature of the two embeddings is standardized over the batch. Their cross-correlation matrix C should be the
identity (Zbontar et al. 2021, equation 1; standardized as in the published code, as batch norm does, with eps 1e-5):

    L = sum_i (C_ii - 1)^2 + lambd * sum_{i != j} C_ij^2

The file has three parts: the plain loss, which is also the reference in the tests; the fast forms, with their
gradients; and the communication between processes.
"""

# Legend: N images in the global batch, n = N / W of them on this process, D projector width, W processes.

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from barlowtwins.core.errors import ConfigError
from barlowtwins.core.matmul import matmul

__all__ = [
    "BarlowTwinsLoss",
    "LossTerms",
    "Statistics",
    "barlow_twins_loss",
    "choose_form",
    "cross_correlation",
    "off_diagonal_floor",
    "plain_loss",
    "refuse_unknown",
    "standardize",
]

EPS = 1e-5  # the value of batch norm, as in the published code

# The plain loss -------------------------------------------------------------------------------------------------------


def plain_loss(z1: Tensor, z2: Tensor, lambd: float = 0.0051, eps: float = EPS) -> Tensor:
    """Return the loss as the paper writes it: (N, D), (N, D) -> scalar. Differentiable any number of times.

    `barlow_twins_loss` gives the same value faster, with less memory, and over several processes.
    """
    n, d = z1.shape
    a = (z1 - z1.mean(0)) / (z1.var(0, unbiased=False) + eps).sqrt()  # (N, D)
    b = (z2 - z2.mean(0)) / (z2.var(0, unbiased=False) + eps).sqrt()  # (N, D)
    c = a.T @ b / n  # (D, D)
    diagonal = torch.eye(d, dtype=torch.bool, device=c.device)  # (D, D)
    on_diagonal = (c[diagonal] - 1).square().sum()
    off_diagonal = c[~diagonal].square().sum()
    return on_diagonal + lambd * off_diagonal


class Statistics(NamedTuple):
    """Mean and variance of one view over the global batch."""

    mean: Tensor  # (D,)
    var: Tensor  # (D,), biased


def standardize(z: Tensor, eps: float = EPS) -> tuple[Tensor, Statistics]:
    """Give each feature mean 0 and variance 1 over the batch, like batch norm without affine parameters.

    Args:
        z: (N, D) embeddings of any floating dtype, N >= 2; half precisions are computed in fp32.
        eps: added to the variance, so that a constant feature gives 0 and not NaN.

    Returns:
        (N, D) in fp32 or fp64, and the mean and biased variance, (D,) each.

    Raises:
        ConfigError: `z` does not have a real floating dtype.
    """
    _require_floating(z)
    z = _at_least_fp32(z)
    n, d = z.shape
    mean, var = z.new_zeros(d), z.new_ones(d)
    # With momentum 1 the running statistics are those of this batch: one fused pass without a second (N, D) matrix.
    # `torch.batch_norm` accepts an eps of 0; `torch.nn.functional.batch_norm` does not.
    a = torch.batch_norm(z, None, None, mean, var, True, 1.0, eps, torch.backends.cudnn.enabled)
    return a, Statistics(mean, var * ((n - 1) / n))  # batch norm returns the unbiased variance


def cross_correlation(z1: Tensor, z2: Tensor, eps: float = EPS) -> Tensor:
    """Return the cross-correlation matrix of two embeddings over the batch, C = A'B / N; differentiable.

    Args:
        z1, z2: (N, D) embeddings of the two views, not standardized.
        eps: see `standardize`.

    Returns:
        (D, D), entries from -1 to 1.
    """
    with torch.autocast(z1.device.type, enabled=False):
        a, b = standardize(z1, eps)[0], standardize(z2, eps)[0]
        return a.T @ b / len(a)  # (D, N) (N, D) -> (D, D)


def off_diagonal_floor(n: int, d: int) -> float:
    """Return the lower bound of the sum of squared off-diagonal entries of C when its diagonal is 1.

    The columns are centered, so C has rank N - 1 at most. Its D eigenvalues sum to D, and cannot all be 1 once
    D > N - 1. The smallest possible |C|_F^2 is then D^2 / (N - 1), and D of it lies on the diagonal. This is why the
    loss stays in the thousands with D = 8192: at N = 256 the bound is 255,000, and lambd = 0.0051 makes that 1,300.
    """
    return max(0.0, d * d / (n - 1) - d) if n > 1 else 0.0


def _at_least_fp32(z: Tensor) -> Tensor:
    return z if z.dtype == torch.float64 else z.float()


def _require_floating(*embeddings: Tensor) -> None:
    for z in embeddings:
        if not z.is_floating_point():
            raise ConfigError(f"the embeddings have dtype {z.dtype}; they must be real floating-point numbers")


# The fast forms -------------------------------------------------------------------------------------------------------
#
# |A'B|_F^2 = <AA', BB'>, so the sum over all pairs of features does not need C. There are two forms of one function:
# N x N ("gram"), cheap for a wide projector, and D x D ("cross"), cheap for a large batch. With d = diag C, the
# gradient with respect to the standardized A (B likewise) is
#
#     gram:   (2/N) B ((d - 1) - lambd d) + (2 lambd / N^2) (BB') A
#     cross:  B M' / N,  M = 2 lambd C off the diagonal, 2 (d - 1) on it
#
# The forward pass computes value and gradient together, because they share products. The backward pass only scales.

Form = Literal["auto", "gram", "cross"]
FORMS: tuple[Form, ...] = ("auto", "gram", "cross")
CHUNK = 2**18  # numbers that fit into the cache of a CPU
STRIP = 64, 4  # strips of a symmetric product: least rows of one, largest number of them

_Gradient = tuple[Tensor, Tensor]  # (n, D), and the factor (D,) that it still has to be multiplied by
# loss, on- and off-diagonal sums, statistics, gradients, and matrices whose memory can be reused
_Result = tuple[Tensor, Tensor, Tensor, tuple[Statistics, Statistics], tuple[_Gradient, ...], tuple[Tensor, ...]]


def choose_form(n: int, d: int) -> Literal["gram", "cross"]:
    """Return the form with fewer multiplications, forward and backward: 4 N^2 D (gram) or 3 N D^2 (cross)."""
    return "gram" if 4 * n < 3 * d else "cross"


def _gram(z1: Tensor, z2: Tensor, lambd: float, eps: float, gradient: bool, group: Any) -> _Result:
    """Gram form, N x N. Every process gathers the embeddings once and multiplies its own rows by all rows."""
    n = len(z1)
    w, rank = (1, 0) if group is None else (dist.get_world_size(group), dist.get_rank(group))
    if group is not None:
        z1, z2 = _gather(torch.stack([z1, z2]), group)  # (N, D) each
    (a, stats1), (b, stats2) = standardize(z1, eps), standardize(z2, eps)  # (N, D)
    own = slice(rank * n, (rank + 1) * n)
    a_own, b_own = a[own], b[own]  # (n, D)
    total = n * w

    d = _column_dots(a, b) / total  # (D,) diagonal of C
    aa, bb = (_symmetric(a), _symmetric(b)) if w == 1 else (matmul(a_own, a.T), matmul(b_own, b.T))  # (n, N)
    frobenius = _column_dots(aa.view(-1, 1), bb.view(-1, 1)) / total**2  # (1,) this process's rows of |C|_F^2

    gradients: tuple[_Gradient, ...] = ()
    if gradient:
        slope = ((d - 1) - lambd * d) * (2 / total)  # (D,)
        factor = 2 * lambd / total**2
        ga, gb = matmul(bb.mul_(factor), a), matmul(aa.mul_(factor), b)  # (n, N) (N, D) -> (n, D)
        # ga + slope * b and gb + slope * a are the whole gradients of this process's rows.
        dots = _column_dots(ga, a_own, plus=(b_own, slope)), _column_dots(gb, b_own, plus=(a_own, slope))
        frobenius, *sums = _sum_over(torch.cat([frobenius, *dots]), group).split([1, len(d), len(d)])
        along = [s / total for s in sums]  # (D,) each
        gradients = _through_standardize((ga, gb), along, (a_own, b_own), (stats1, stats2), eps, w)
    else:
        frobenius = _sum_over(frobenius, group)
    on = (d - 1).square().sum()
    off = frobenius.squeeze(0) - d.square().sum()
    return on + lambd * off, on, off, (stats1, stats2), gradients, (a, b)


def _cross(z1: Tensor, z2: Tensor, lambd: float, eps: float, gradient: bool, group: Any) -> _Result:
    """Cross form, D x D. Every process computes its part of C; C is summed over processes."""
    w = 1 if group is None else dist.get_world_size(group)
    total = len(z1) * w
    if group is None:
        (a, stats1), (b, stats2) = standardize(z1, eps), standardize(z2, eps)  # (n, D)
    else:
        (a, stats1), (b, stats2) = _standardize_over(z1, z2, eps, group)
    c = _sum_over(matmul(a.T, b), group).div_(total)  # (D, D)
    d = c.diagonal().clone()  # (D,)
    c.fill_diagonal_(0)
    rows = torch.linalg.vector_norm(c, dim=1).square()  # (D,), features of the first view
    on, off = (d - 1).square().sum(), rows.sum()

    gradients: tuple[_Gradient, ...] = ()
    if gradient:
        columns = torch.linalg.vector_norm(c, dim=0).square()  # (D,), features of the second view
        along = [((d - 1) * d + lambd * r) * (2 / total) for r in (rows, columns)]  # sum_j M_ij C_ij
        m = c.mul_(2 * lambd / total)  # in place: C is no longer needed
        m.diagonal().copy_((d - 1) * (2 / total))
        ga, gb = matmul(b, m.T), matmul(a, m)  # (n, D)
        gradients = _through_standardize((ga, gb), along, (a, b), (stats1, stats2), eps, w)
    return on + lambd * off, on, off, (stats1, stats2), gradients, (a, b)


def _through_standardize(
    gradients: tuple[Tensor, Tensor],
    along: Sequence[Tensor],
    standardized: tuple[Tensor, Tensor],
    statistics: tuple[Statistics, Statistics],
    eps: float,
    w: int,
) -> tuple[_Gradient, ...]:
    """Carry gradients, in place, from the standardized rows to the raw rows: g -> (g - a mean(g a)) / std.

    `along` holds mean(g a) over the global batch, (D,) per view. The backward of batch norm also subtracts mean(g),
    which is zero here: in both forms g is a sum of rows of one view, and these are centered. The backward pass applies
    1 / std, since it multiplies anyway.
    """
    carried = []
    for g, a, mean_ga, s in zip(gradients, standardized, along, statistics, strict=True):
        scale = torch.rsqrt(s.var + eps) * w  # times W: data-parallel training averages
        carried.append((g.addcmul_(a, mean_ga, value=-1), scale))
    return tuple(carried)


def _symmetric(a: Tensor) -> Tensor:
    """AA', (N, D) -> (N, N). On a CPU a large product is computed up to the diagonal and mirrored: 5/8 of the work."""
    n = len(a)
    strips = min(n // STRIP[0], STRIP[1])
    if a.device.type != "cpu" or strips < 2:
        return matmul(a, a.T)
    product = a.new_empty(n, n)
    edges = [n * i // strips for i in range(strips + 1)]
    for start, stop in itertools.pairwise(edges):
        strip = product[start:stop, :stop] = matmul(a[start:stop], a[:stop].T)
        product[:start, start:stop] = strip[:, :start].T
    return product


def _by_rows(x: Tensor) -> Sequence[Tensor]:
    """Split (N, D) into parts that fit into the cache of a CPU; one part on a GPU."""
    return x.split(max(1, CHUNK // x.shape[1])) if x.device.type == "cpu" else [x]


def _column_dots(x: Tensor, y: Tensor, *, plus: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """(N, D), (N, D) -> (D,): dot products of columns; with `plus` (u, v), those of x + u v, left in x.

    On a CPU a few rows at a time: allocating the whole product would cost more than computing it.
    """
    if plus is not None:
        u, v = plus
        parts = zip(_by_rows(x), _by_rows(u), _by_rows(y), strict=True)
        return torch.stack([(p.addcmul_(r, v) * q).sum(0) for p, r, q in parts]).sum(0)
    return torch.stack([(p * q).sum(0) for p, q in zip(_by_rows(x), _by_rows(y), strict=True)]).sum(0)


class _Loss(torch.autograd.Function):
    """Value and gradient in one pass; the backward only multiplies by the incoming scalar."""

    @staticmethod
    def forward(
        ctx: Any, z1: Tensor, z2: Tensor, lambd: float, eps: float, form: str, group: Any
    ) -> tuple[Tensor, ...]:
        gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        compute = _gram if form == "gram" else _cross
        with torch.autocast(z1.device.type, enabled=False):
            value, on, off, views, gradients, spent = compute(z1, z2, lambd, eps, gradient, group)
        if gradient:
            ctx.save_for_backward(*itertools.chain.from_iterable(gradients))
            ctx.dtype, ctx.spent = z1.dtype, [x for x in spent if x.dtype == z1.dtype and x.shape == z1.shape]
        outputs = on, off, *views[0], *views[1]
        ctx.mark_non_differentiable(*outputs)
        ctx.set_materialize_grads(False)
        return value, *outputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: this gradient carries no graph
            raise ConfigError(
                "create_graph=True needs a second gradient, which the fast loss does not have; "
                "use barlowtwins.loss.plain_loss"
            )
        if grad is None:
            return (None,) * 6
        g1, scale1, g2, scale2 = ctx.saved_tensors
        scaled = []
        for g, scale in ((g1, scale1), (g2, scale2)):
            # Reusing memory is cheaper than allocating; a second backward (retain_graph) finds none left.
            out = ctx.spent.pop() if ctx.spent else torch.empty_like(g, dtype=ctx.dtype)
            scaled.append(torch.mul(g, scale * grad.to(g.dtype), out=out))
        return *scaled, None, None, None, None


class LossTerms(NamedTuple):
    """The loss and its parts; only `loss` carries a gradient."""

    loss: Tensor  # () on_diagonal + lambd * off_diagonal
    on_diagonal: Tensor  # () sum of (C_ii - 1)^2
    off_diagonal: Tensor  # () sum of C_ij^2 over i != j
    images: int  # N, over all processes
    floor: float  # lower bound of off_diagonal when the diagonal is 1
    form: Literal["gram", "cross"]
    statistics: tuple[Statistics, Statistics]


def barlow_twins_loss(
    z1: Tensor,
    z2: Tensor,
    lambd: float = 0.0051,
    *,
    eps: float = EPS,
    form: Form = "auto",
    group: dist.ProcessGroup | None = None,
    **unknown: NoReturn,
) -> LossTerms:
    """Compute the loss of two embeddings, and its parts.

    The gradient is first order only; `plain_loss` has gradients of every order.

    Args:
        z1, z2: (N, D) embeddings of the two views in fp64, fp32, bf16 or fp16, not standardized. With `group`,
            the n = N / W rows of this process.
        lambd: weight of the off-diagonal terms, 0 or more.
        eps: see `standardize`.
        form: "gram", "cross" or "auto", the cheaper one.
        group: processes that share the batch; None means this process alone. Every process gets the value of the
            global batch. The gradient is W times this process's part of the global gradient, so that the *average*
            over processes, which DistributedDataParallel takes, is the gradient of the one global loss.

    Raises:
        ConfigError: the shapes do not agree, the dtype is not floating, a number is out of range, the batch has fewer
            than two images, or the number of rows differs between processes.
        TypeError: an unknown argument; the names of other packages get a hint.
    """
    refuse_unknown("barlow_twins_loss", unknown)
    if z1.shape != z2.shape or z1.ndim != 2:
        shapes = f"{tuple(z1.shape)} and {tuple(z2.shape)}"
        raise ConfigError(f"the two embeddings have shapes {shapes}; both must be the same (N, D)")
    _require_floating(z1, z2)
    _require_settings(lambd, eps, form)
    n = len(z1) * (1 if group is None else dist.get_world_size(group))
    d = z1.shape[1]
    if n < 2:
        raise ConfigError(f"the batch has {n} image(s); correlations need 2 or more")
    chosen = choose_form(n, d) if form == "auto" else form
    loss, on, off, *statistics = _Loss.apply(z1, z2, lambd, eps, chosen, group)
    views = Statistics(*statistics[:2]), Statistics(*statistics[2:])
    return LossTerms(loss, on, off, n, off_diagonal_floor(n, d), chosen, views)


class BarlowTwinsLoss(nn.Module):
    """The loss as a module for any training loop: `BarlowTwinsLoss()(z1, z2).backward()`.

    If torch.distributed is running, the embeddings of all processes form one batch, and the gradient is correct for
    DistributedDataParallel, which averages. After each call `terms` holds the last `LossTerms`, for logging.

    Args:
        lambd: weight of the off-diagonal terms (0.0051 as published for D = 8192; the paper says 5e-3).
        scale_loss: factor on the whole loss.
        form: "gram", "cross" or "auto", the cheaper one.
        group: processes that share the batch; the default group by default.
    """

    def __init__(
        self,
        lambd: float = 0.0051,
        scale_loss: float = 1.0,
        *,
        form: Form = "auto",
        eps: float = EPS,
        group: dist.ProcessGroup | None = None,
        **unknown: NoReturn,
    ) -> None:
        refuse_unknown("BarlowTwinsLoss", unknown)
        super().__init__()
        _require_settings(lambd, eps, form)
        self.lambd, self.scale_loss, self.form, self.eps, self.group = lambd, scale_loss, form, eps, group
        self.terms: LossTerms | None = None

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """(n, D), (n, D) -> scalar, `scale_loss` times the loss of the global batch."""
        terms = barlow_twins_loss(z1, z2, self.lambd, eps=self.eps, form=self.form, group=_sharing_group(self.group))
        self.terms = LossTerms(terms.loss.detach(), *terms[1:])
        return terms.loss * self.scale_loss

    def extra_repr(self) -> str:
        return f"lambd={self.lambd}, scale_loss={self.scale_loss}, form={self.form!r}"


OTHER_NAMES = {  # arguments of lightly and solo-learn -> what to do here
    "lambda_param": "it is called lambd here",
    "lamb": "it is called lambd here",
    "gather_distributed": "leave it out: the loss gathers the processes of `group` by itself",
}


def refuse_unknown(function: str, unknown: dict[str, Any]) -> None:
    """Raise TypeError for arguments that a function does not have, with a hint for names of other packages."""
    for name in unknown:
        hint = OTHER_NAMES.get(name, "it takes lambd")
        raise TypeError(f"{function}() has no argument {name!r}; {hint}")


def _require_settings(lambd: float, eps: float, form: str) -> None:
    for name, value in (("lambd", lambd), ("eps", eps)):
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{name} of the loss is {value}; it must be a finite number, 0 or more")
    if form not in FORMS:
        raise ConfigError(f"form of the loss is {form!r}; it must be one of {', '.join(FORMS)}")


# Processes ------------------------------------------------------------------------------------------------------------


def _sharing_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """Return the group whose processes share the batch, or None for a single process."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def _sum_over(x: Tensor, group: Any) -> Tensor:
    """Sum over processes, in place; `x` carries no graph here."""
    if group is not None:
        dist.all_reduce(x, group=group)
    return x


def _gather(z: Tensor, group: Any) -> Tensor:
    """(2, n, D) on each process -> (2, N, D) on all, rows in order of rank, dtype unchanged."""
    _require_equal_rows(z, group)
    return _all_gather(z, group).transpose(0, 1).flatten(1, 2)


def _all_gather(x: Tensor, group: Any) -> Tensor:
    """(...) on each process -> (W, ...) on all, in order of rank."""
    parts = x.new_empty(dist.get_world_size(group), *x.shape)
    gather = (
        getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    )  # the old name is deprecated since torch 2.14
    gather(parts.flatten(0, 1), x.contiguous(), group=group)
    return parts


def _standardize_over(
    z1: Tensor, z2: Tensor, eps: float, group: Any
) -> tuple[tuple[Tensor, Statistics], tuple[Tensor, Statistics]]:
    """Like `standardize`, with the statistics of the global batch, from one small gather."""
    z = _at_least_fp32(torch.stack([z1, z2]))  # (2, n, D)
    _require_equal_rows(z, group)
    mean = z.mean(1)  # (2, D)
    var = (z - mean[:, None]).square().mean(1)  # (2, D)
    means, variances = _all_gather(torch.stack([mean, var]), group).unbind(1)  # (W, {mean, var}, 2, D)
    mean = means.mean(0)
    var = variances.mean(0) + (means - mean).square().mean(0)  # within plus between processes of equal size
    standardized = (z - mean[:, None]) * torch.rsqrt(var + eps)[:, None]
    return (standardized[0], Statistics(mean[0], var[0])), (standardized[1], Statistics(mean[1], var[1]))


def _require_equal_rows(z: Tensor, group: Any) -> None:
    """Refuse unequal numbers of rows, which would hang or mix rows. CPU only: the check would stall a GPU."""
    if z.device.type != "cpu":
        return
    shapes = _all_gather(torch.tensor(z.shape[-2:]), group)  # (W, 2)
    if not bool((shapes == shapes[0]).all()):
        held = shapes.tolist()
        raise ConfigError(
            f"processes hold embeddings of shapes {held}; each must have the same number of rows (drop_last=True)"
        )
