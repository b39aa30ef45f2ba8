"""Mixed Barlow Twins: a regulariser that lets images of a batch interact (Bandara et al. 2023, "Guarding Barlow Twins
Against Overfitting with Mixed Samples", https://arxiv.org/abs/2312.02151).

A mix of two views, y = alpha y1 + (1 - alpha) y2[order], should have the mix of their embeddings. With A, B and M the
standardized embeddings of y1, y2 and y, and C(X, Y) = X'Y / N, the authors' code adds to the loss

    weight * lambd * ( |C(M, A) - alpha C(A, A) - (1 - alpha) C(B[order], A)|^2
                     + |C(M, B) - alpha C(A, B) - (1 - alpha) C(B[order], B)|^2 )

Both differences are products with one matrix, E = M - alpha A - (1 - alpha) B[order]: they are E'A / N and E'B / N. So,
as in `loss`, N x N products will do where the batch is smaller than the projector is wide.
"""

# N images in the batch, D projector width, C channels, S side in pixels

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from barlowtwins.core.errors import ConfigError
from barlowtwins.loss import EPS, standardize
from barlowtwins.models.barlow_twins import BarlowTwins

__all__ = ["Mix", "draw_mix", "mixed_loss", "mixup_loss", "require_one_process"]


class Mix(NamedTuple):
    """How a batch is mixed."""

    alpha: float
    """Share of the first views, from 0 to 1."""
    order: Tensor
    """(N,) int64, a permutation: image i is mixed with the second view of image order[i]."""

    def of(self, a: Tensor, b: Tensor) -> Tensor:
        """alpha a + (1 - alpha) b[order], of tensors whose first dimension is N."""
        return self.alpha * a + (1 - self.alpha) * b[self.order.to(b.device)]


def draw_mix(seed: int, step: int, n: int) -> Mix:
    """The mix of a step, a function of (seed, step): alpha from Beta(1, 1) as the authors', and a permutation."""
    rng = np.random.default_rng([seed, step, 2])
    return Mix(rng.random(), torch.from_numpy(rng.permutation(n)))


def mixup_loss(z1: Tensor, z2: Tensor, z: Tensor, mix: Mix, *, eps: float = EPS) -> Tensor:
    """What the regulariser is before its weight and lambd; differentiable.

    Args:
        z1, z2: (N, D) embeddings of the two views, not standardized.
        z: (N, D) of their mix.
        mix: how they were mixed.
        eps: see `standardize`.

    Returns:
        scalar, in fp32 or fp64.
    """
    with torch.autocast(z1.device.type, enabled=False):
        a, b, m = (standardize(x, eps)[0] for x in (z1, z2, z))  # (N, D) each
        e = m - mix.of(a, b)  # (N, D)
        n, d = e.shape
        if n < d:
            return ((e @ e.T) * (a @ a.T + b @ b.T)).sum() / n**2  # (N, N): |E'A|^2 = <EE', AA'>
        return ((e.T @ a).square().sum() + (e.T @ b).square().sum()) / n**2  # (D, D)


def mixed_loss(model: BarlowTwins, y1: Tensor, y2: Tensor, mix: Mix, *, weight: float) -> Tensor:
    """The loss of a batch with the regulariser; `model.terms` keeps the parts of the loss without it.

    Args:
        model: passes the mix through the network as a third view.
        y1, y2: (N, C, S, S), the two views.
        mix: of this step.
        weight: 0 or more; 5 by default in the authors' code.
    """
    z1, z2, z = model.embed(y1), model.embed(y2), model.embed(mix.of(y1, y2))
    loss = model.loss
    return model.loss_of(z1, z2) + loss.scale_loss * weight * loss.lambd * mixup_loss(z1, z2, z, mix, eps=loss.eps)


def require_one_process(weight: float, world_size: int) -> None:
    """Raise ConfigError where images of several processes would have to be mixed."""
    if weight and world_size > 1:
        raise ConfigError(
            f"--mixup mixes any two images of a batch, which {world_size} processes do not hold together; "
            "train on one process, or leave it out"
        )
