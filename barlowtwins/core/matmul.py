"""Matrix products on a CPU, by the library that has the faster kernels there.

torch multiplies fp32 matrices by Intel's MKL, which gives AMD's processors its AVX2 kernels also where they have
AVX-512. oneDNN, which torch brings along for convolutions, uses what there is: `benchmarks/products.py` measures both.
The choice is a function of the machine and the shapes alone, so that a run and its resumption add in the same order;
`torch.backends.mkldnn.enabled = False` turns oneDNN off.
"""

# n rows, k what is summed over, m columns

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["Linear", "matmul", "processor_vendor", "uses_onednn"]

CPUINFO = Path("/proc/cpuinfo")
WORTH = 2**22  # multiplications from which finding oneDNN's kernel, some 10 microseconds, is paid back twice


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` of two matrices, (n, k) (k, m) -> (n, m), without a graph: for code that has gradients of its own."""
    if uses_onednn(a, b):
        return torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")
    return torch.mm(a, b)


def uses_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN multiplies these two: large ones in fp32, on an AMD processor."""
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
    """What the processor calls its maker, such as "AuthenticAMD"; empty where nobody says."""
    try:
        lines = cpuinfo.read_text("utf-8").splitlines()  # Linux
    except OSError:
        return platform.processor().rpartition(", ")[2]  # Windows: "AMD64 Family 25 ..., AuthenticAMD"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


class Linear(nn.Linear):
    """`nn.Linear` without a bias whose three products go through `matmul`: forward, and both gradients."""

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
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return matmul(grad, weight) if wanted[0] else None, matmul(grad.T, x) if wanted[1] else None
