"""Batch norm over the images of all processes, on any device; `torch.nn.SyncBatchNorm` needs a GPU."""

# n images on this process, C channels, W processes

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["GlobalBatchNorm", "synchronize_batch_norm"]


def synchronize_batch_norm(module: nn.Module) -> nn.Module:
    """Make all batch norms of a network use the statistics of the global batch; keys and parameters do not change.

    On a GPU they become `torch.nn.SyncBatchNorm`, elsewhere `GlobalBatchNorm`.
    """
    if any(p.is_cuda for p in module.parameters()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, GlobalBatchNorm.over(child))
    return module


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm with the mean and variance over all processes; (n, C, ...) -> (n, C, ...).

    The variance is computed from centered values, at least in fp32: a sum of squares is inaccurate for large means.
    """

    @classmethod
    def over(cls, norm: nn.modules.batchnorm._BatchNorm) -> GlobalBatchNorm:
        """Return one that shares the parameters and buffers of `norm`."""
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
        centered = x - mean.view(shape)
        var = _sum_over_processes(centered.square().sum(dims)) / count  # (C,), biased
        if self.track_running_stats:
            self._track(mean.detach(), var.detach() * (count / max(1, count - 1)))
        y = centered * torch.rsqrt(var + self.eps).view(shape)
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
    """A sum over processes, returned to all of them; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _sum_over_processes(grad)  # differentiable, for create_graph=True


def _sum_over_processes(x: Tensor) -> Tensor:
    return _SumOverProcesses.apply(x)
