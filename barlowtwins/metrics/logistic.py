"""Multinomial logistic regression with an L2 penalty, trained to convergence.

    minimize over W, b:   mean over rows of -log softmax(x W' + b)[label]  +  l2 / 2 |W|^2

The problem is convex, so the result depends only on the data and `l2`, not on a seed or a schedule. Features are
standardized first, so that one penalty suits all of them; the result applies to the original features.
"""

# N rows, D features, K classes

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from barlowtwins.core.errors import ConfigError

__all__ = ["L2_GRID", "Fit", "Trial", "fit_logistic", "fit_path", "sweep"]

L2_GRID = tuple(10 ** (exponent / 2) for exponent in range(0, -13, -1))  # 1, 0.32, 0.1, ... 1e-6
TOLERANCE = 1e-5
COARSE = 1e-3  # tolerance of trials; a tenth of the steps, and accuracies change by less than 0.1 %
MOST_STEPS = 1000
PATIENCE = 3  # stop after this many weaker penalties in a row that are worse than the best


class Fit(NamedTuple):
    """A linear classifier: logits = x @ weight.T + bias."""

    weight: Tensor
    """(K, D) float64."""
    bias: Tensor
    """(K,) float64."""
    l2: float
    loss: float
    """On the training rows, including the penalty."""
    steps: int
    """Iterations of L-BFGS."""
    converged: bool

    def logits(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, K) float64."""
        return features.to(self.weight) @ self.weight.T + self.bias


class Trial(NamedTuple):
    """A value of the penalty and its result on held-out rows."""

    l2: float
    top1: float
    """Percent."""
    loss: float
    """Mean negative log-likelihood."""


def fit_logistic(features: Tensor, labels: Tensor, *, num_classes: int, l2: float, tolerance: float = TOLERANCE) -> Fit:
    """Train a linear classifier to convergence; see `fit_path`."""
    return next(fit_path(features, labels, num_classes=num_classes, penalties=(l2,), tolerance=tolerance))


@torch.no_grad()
def fit_path(
    features: Tensor, labels: Tensor, *, num_classes: int, penalties: Sequence[float], tolerance: float = TOLERANCE
) -> Iterator[Fit]:
    """Train a linear classifier for each penalty, from strong to weak, each starting from the previous result.

    Uses L-BFGS in float64 on the device of the features, in coordinates where the Hessian is close to the identity.

    Args:
        features: (N, D), all finite.
        labels: (N,) int64, 0 to K - 1.
        num_classes: K.
        penalties: values of `l2`, 0 or more, for standardized features.
        tolerance: a fit has converged when no entry of the gradient, in those coordinates, is larger. The loss is then
            at most about K D tolerance^2 / 2 above its minimum.

    Raises:
        ConfigError: a penalty is negative.
    """
    if not min(penalties) >= 0:
        raise ConfigError(f"the L2 penalty is {min(penalties)}; it must not be negative")
    basis = _Basis.of(features)
    x = basis.apply(features)  # (N, D) float64
    truth = nn.functional.one_hot(labels, num_classes).to(x)  # (N, K)
    weight, bias = x.new_zeros(num_classes, x.shape[1]), x.new_zeros(num_classes)
    for l2 in sorted(penalties, reverse=True):
        loss, steps, converged = _descend(x, basis.variance, truth, weight, bias, l2, tolerance)
        yield Fit(*basis.leave(weight, bias), l2, loss, steps, converged)


def sweep(
    features: Tensor, labels: Tensor, aside: Tensor, *, num_classes: int, penalties: Sequence[float] = L2_GRID
) -> Iterator[Trial]:
    """Evaluate penalties, from strong to weak, on held-out rows.

    Args:
        features, labels, num_classes: as for `fit_path`.
        aside: (N,) bool, the held-out rows; the others are for training.
        penalties: values of `l2`; the search stops once three in a row are worse than the best.

    Yields:
        A trial for each penalty. `max(trials, key=lambda trial: trial.top1)` is the best one, with the strongest
        penalty among equals.
    """
    best, since = -1.0, 0
    path = fit_path(features[~aside], labels[~aside], num_classes=num_classes, penalties=penalties, tolerance=COARSE)
    for fit in path:
        logits = fit.logits(features[aside])
        top1 = 100 * (logits.argmax(1) == labels[aside]).double().mean().item()
        yield Trial(fit.l2, top1, nn.functional.cross_entropy(logits, labels[aside]).item())
        best, since = (top1, 0) if top1 >= best else (best, since + 1)
        if since == PATIENCE:
            return


class _Basis(NamedTuple):
    """Coordinates in which features have mean 0 and no correlation, and |W| equals that of standardized features."""

    mean: Tensor
    """(D,)"""
    turn: Tensor
    """(D, D): scale to standard deviation 1, then rotate to the principal axes."""
    variance: Tensor
    """(D,), along the principal axes."""

    @classmethod
    def of(cls, features: Tensor) -> _Basis:
        features = features.double()
        std, mean = torch.std_mean(features, dim=0, correction=0)
        varies = std > 1e-12 * features.abs().amax(0)  # rounding makes constants vary slightly
        std = torch.where(varies, std, 1.0)  # constant features are only centered
        x = (features - mean) / std
        variance, axes = torch.linalg.eigh(x.T @ x / len(x))
        return cls(mean, axes / std[:, None], variance.clamp(min=0))

    def apply(self, features: Tensor) -> Tensor:
        return (features.double() - self.mean) @ self.turn

    def leave(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Convert a classifier of `apply(features)` to one of the original features."""
        weight = weight @ self.turn.T
        return weight, bias - weight @ self.mean


def _descend(
    x: Tensor, variance: Tensor, truth: Tensor, weight: Tensor, bias: Tensor, l2: float, tolerance: float
) -> tuple[float, int, bool]:
    """Move `weight` (K, D) and `bias` (K,) to the minimum, in place; return loss, steps and convergence.

    The Hessian of the loss is about p (1 - p) times the covariance of x, which is diagonal here, plus the penalty.
    L-BFGS works on u = W * sqrt(that diagonal), for which the Hessian is close to the identity.
    """
    classes = len(bias)
    curvature = (classes - 1) / classes**2  # p (1 - p) for equally likely classes, as at the start
    scale = (curvature * variance + l2).sqrt()  # (D,)
    scale = torch.where(scale > 0, scale, 1.0)
    u, c = weight * scale, bias * curvature**0.5
    optimizer = torch.optim.LBFGS(
        [u, c],
        max_iter=MOST_STEPS,
        max_eval=2 * MOST_STEPS,
        tolerance_grad=tolerance,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss_and_gradient() -> Tensor:
        torch.div(u, scale, out=weight)
        torch.div(c, curvature**0.5, out=bias)
        log_p = torch.addmm(bias, x, weight.T).log_softmax(1)  # (N, K)
        error = (log_p.exp() - truth) / len(x)
        u.grad = torch.addmm(weight, error.T, x, beta=l2) / scale
        c.grad = error.sum(0) / curvature**0.5
        return -(log_p * truth).sum() / len(x) + l2 / 2 * weight.square().sum()

    optimizer.step(loss_and_gradient)
    loss = loss_and_gradient()  # at the final point; the line search may have tried others later
    assert u.grad is not None and c.grad is not None
    steepest = max(u.grad.abs().max().item(), c.grad.abs().max().item())
    return loss.item(), optimizer.state[u]["n_iter"], steepest <= tolerance
