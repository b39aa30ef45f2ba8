"""A backbone compiled by torch, for GPUs: fewer kernels, with the normalization and activations in them.

Compiled once for any number of images, and compared with the plain network in fp32 before every use.
"""

# N images, C channels, S side in pixels, D features

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from barlowtwins.core.device import autocast
from barlowtwins.core.errors import WeightsError
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.embedding.parity import parity

__all__ = ["PARITY", "WORTH", "compiled_program"]

# Largest difference of a feature from the plain network's in fp32, relative to the largest one of its image. bf16 has
# 8 bits of mantissa: the plain network in bf16 is 0.009 (ResNet-18) and 0.004 (ResNet-50) away, untrained.
PARITY = {"fp32": 1e-4, "bf16": 2e-2}
WORTH = 1_000_000  # images from which a minute of compiling is paid back by a fifth less of half a millisecond each


def compiled_program(
    backbone: nn.Module, preprocessing: Preprocessing, device: torch.device, precision: str
) -> Callable[[Tensor], Tensor]:
    """What maps images (N, C, S, S) float32 on the device, any N, to features (N, D), to be called under autocast.

    Args:
        backbone: in evaluation mode, on the device.
        preprocessing: says C and S.
        device: where it runs.
        precision: "fp32" or "bf16".

    Raises:
        WeightsError: torch cannot compile the network here, or it then gives other features than in fp32.
    """
    compiled = torch.compile(backbone)

    def program(images: Tensor) -> Tensor:
        n = len(images)
        if n == 1:  # of one image torch would compile a network of its own
            images = images.expand(2, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        torch._dynamo.maybe_mark_dynamic(images, 0)
        return compiled(images)[:n]

    def under_autocast(images: Tensor) -> Tensor:
        with autocast(device, precision):
            return program(images.contiguous(memory_format=torch.channels_last))

    try:
        difference = parity(backbone, under_autocast, preprocessing, device)
    except Exception as error:  # the compiler, and whatever it calls, have many errors of their own
        said = str(error).strip().partition("\n")[0]
        raise WeightsError(f"torch cannot compile this network here ({said}); use --runtime torch") from error
    if not difference <= PARITY[precision]:  # nor NaN
        raise WeightsError(
            f"compiled in {precision} the network gives features that differ by {difference:.2g} from those in fp32, "
            f"more than {PARITY[precision]:g}; use --runtime torch"
        )
    return program
