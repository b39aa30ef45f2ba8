"""Matrix products on a CPU with the faster of two libraries.

torch multiplies fp32 matrices with Intel MKL, which uses AVX2 on AMD processors even if they have AVX-512. oneDNN,
which torch includes for convolutions, uses AVX-512: `benchmarks/products.py` measures both. The choice depends only on
the machine and the shapes, so a resumed run adds in the same order. Set `torch.backends.mkldnn.enabled = False` to
disable oneDNN.
"""

# n rows, k summed dimension, m columns

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Linear", "matmul", "processor_vendor", "uses_onednn"]

CPUINFO = Path("/proc/cpuinfo")
WORTH = 2**22  # multiplications; the lookup of a oneDNN kernel takes 10 microseconds, which pays off from here


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return `a @ b`, (n, k) (k, m) -> (n, m), without an autograd graph."""
    if uses_onednn(a, b):
        return torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")
    return torch.mm(a, b)


def uses_onednn(a: Tensor, b: Tensor) -> bool:
    """Return whether oneDNN multiplies these: large fp32 matrices on an AMD processor."""
    return (
        a.device.type == "cpu"
        and a.dtype == b.dtype == torch.float32
        and a.shape[0] * b.numel() >= WORTH
        and bool(torch.backends.mkldnn.enabled)
        and _onednn_is_faster()
    )


@functools.cache
def _onednn_is_faster() -> bool:
    there = torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and processor_vendor(CPUINFO) == "AuthenticAMD"


def processor_vendor(cpuinfo: Path) -> str:
    """Return the vendor name of the processor, such as "AuthenticAMD", or "" if unknown."""
    try:
        lines = cpuinfo.read_text("utf-8").splitlines()  # Linux
    except OSError:
        return platform.processor().rpartition(", ")[2]  # Windows: "AMD64 Family 25 ..., AuthenticAMD"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


class Linear(nn.Linear):
    """`nn.Linear` without a bias that uses `matmul` in the forward and the backward pass."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, k) -> (n, m)."""
        if x.ndim == 2 and uses_onednn(x, self.weight.T) and not torch.is_autocast_enabled("cpu"):
            return _Linear.apply(x, self.weight)
        return super().forward(x)


class _Linear(torch.autograd.Function):
    """x (n, k), weight (m, k) -> (n, m)."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return matmul(x, weight.T)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        multiply = torch.mm if torch.is_grad_enabled() else matmul  # create_graph=True needs a graph
        return multiply(grad, weight) if wanted[0] else None, multiply(grad.T, x) if wanted[1] else None
