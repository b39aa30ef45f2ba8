"""The exact loss of a large batch in the memory of a small one.

The loss couples all images of a batch, so the usual accumulation over micro-batches computes another loss. But it
couples them only through the embeddings, which are small. So:

    1. embed all micro-batches without a graph                          z = (z1, z2), (n, D) each
    2. loss of the whole batch, and its gradient with respect to z      dz
    3. embed each micro-batch again with a graph, and pass dz backward

costs one more forward pass, and holds the activations of one micro-batch of one view. The gradient is the one-shot one
but for batch norm inside the network, which takes the statistics of a micro-batch instead of the batch's; with batch
norm frozen or absent the two are equal. (Gradient caching: Gao et al. 2021, https://arxiv.org/abs/2101.06983.)
"""

# n images on this process, m of them in a micro-batch, C channels, S side in pixels, D projector width

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from barlowtwins.models.barlow_twins import BarlowTwins

__all__ = ["micro_batched_backward"]


def micro_batched_backward(
    model: BarlowTwins, y1: Tensor, y2: Tensor, size: int, *, embed: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Loss of the batch, with its gradient added to every parameter's `.grad`.

    Args:
        model: in training mode; across processes its batch norms are synchronised, and the caller averages gradients.
        y1, y2: (n, C, S, S), the two views; they may lie on another device than the model if `embed` moves them.
        size: m, images in a micro-batch; the last one may be smaller, but not a single image (batch norm needs two).
        embed: (m, C, S, S) -> (m, D) in place of `model.embed`, such as one that moves its input and autocasts.

    Returns:
        The scalar loss, without a graph.
    """
    embed = embed or model.embed
    with torch.no_grad(), _statistics_untouched(model):
        z1, z2 = (torch.cat([embed(part) for part in _split(y, size)]) for y in (y1, y2))  # (n, D)

    z1.requires_grad_()
    z2.requires_grad_()
    loss = model.loss_of(z1, z2)
    loss.backward()

    for y, z in ((y1, z1), (y2, z2)):
        assert z.grad is not None
        for part, gradient in zip(_split(y, size), _split(z.grad, size), strict=True):
            embed(part).backward(gradient)
    return loss.detach()


def _split(x: Tensor, size: int) -> list[Tensor]:
    """Parts of `size` rows; a last part of one row joins the one before it, since batch norm needs two."""
    parts = list(x.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1 and size > 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


@contextlib.contextmanager
def _statistics_untouched(model: nn.Module) -> Iterator[None]:
    """Batch norms normalize by the batch inside, but do not move their running statistics: the second pass does."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
