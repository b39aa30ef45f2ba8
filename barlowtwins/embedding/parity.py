"""How far the features of what runs in a network's place are from the network's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from barlowtwins.data.preprocess import Preprocessing

__all__ = ["parity"]

TRIED = 3  # images: another number than a program was traced with


@torch.inference_mode()
def parity(
    backbone: nn.Module,
    program: Callable[[Tensor], Tensor],
    preprocessing: Preprocessing,
    device: torch.device | str = "cpu",
) -> float:
    """The largest difference of a feature from the backbone's on fixed random images, relative to its image's largest.

    Args:
        backbone: (N, C, S, S) -> (N, D), in evaluation mode, on the device.
        program: what maps the same images to what should be the same features.
        preprocessing: says C and S.
        device: where both run.
    """
    side = preprocessing.image_size
    drawn = torch.randn(TRIED, preprocessing.channels, side, side, generator=torch.Generator().manual_seed(0))
    images = drawn.to(device)
    expected, given = backbone(images).flatten(1).float(), program(images).flatten(1).float()  # (n, D)
    scale = expected.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
    return float(((given - expected).abs() / scale).max())
