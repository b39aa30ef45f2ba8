"""Batch norm over the images of all processes, on any device; torch's own `SyncBatchNorm` needs a GPU."""

# n images on this process, C channels, W processes

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["GlobalBatchNorm", "synchronize_batch_norm"]


def synchronize_batch_norm(module: nn.Module) -> nn.Module:
    """Make every batch norm of a network take the statistics of the global batch; keys and parameters stay.

    On a GPU that is torch's SyncBatchNorm, elsewhere `GlobalBatchNorm`.
    """
    if any(p.is_cuda for p in module.parameters()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, GlobalBatchNorm.over(child))
    return module


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose mean and variance are those of all processes' images together; (n, C, ...) -> (n, C, ...).

    The variance is computed from centred values, in fp32 at least: a sum of squares would lose it for large means.
    """

    @classmethod
    def over(cls, norm: nn.modules.batchnorm._BatchNorm) -> GlobalBatchNorm:
        """One with the very parameters and buffers of `norm`."""
        made = cls(norm.num_features, norm.eps, norm.momentum, affine=False)
        made.affine, made.training = norm.affine, norm.training
        made.weight, made.bias = norm.weight, norm.bias
        made.running_mean, made.running_var = norm.running_mean, norm.running_var
        made.num_batches_tracked = norm.num_batches_tracked
        return made

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # any (n, C, ...)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        x = input if input.dtype == torch.float64 else input.float()
        dims = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = _sum_over_processes(x.sum(dims)) / count  # (C,)
        centred = x - mean.view(shape)
        var = _sum_over_processes(centred.square().sum(dims)) / count  # (C,), biased
        if self.track_running_stats:
            self._track(mean.detach(), var.detach() * (count / max(1, count - 1)))
        y = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(var.to(self.running_var.dtype), momentum)


class _SumOverProcesses(torch.autograd.Function):
    """A sum that every process gets: so every process's gradient reaches every part of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


def _sum_over_processes(x: Tensor) -> Tensor:
    return _SumOverProcesses.apply(x)
