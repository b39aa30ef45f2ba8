"""What features are compared with: the pixels themselves, and the same network before it learned anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from barlowtwins.embedder import Embedder, load_embedder
from barlowtwins.model import build_backbone
from barlowtwins.preprocess import Preprocessing
from barlowtwins.sources import Source
from barlowtwins.weights import load_weights

__all__ = ["open_embedder", "pixel_embedder", "random_embedder"]

PIXEL_SIDE = 32  # of images that are not all of one square size


def open_embedder(
    weights: str, sources: Sequence[Source], *, device: str = "auto", precision: str = "auto", seed: int = 0
) -> Embedder:
    """An embedder for trained weights, or for a baseline.

    Args:
        weights: what `load_weights` takes; or "pixels"; or "random", an untrained ResNet-50 for ImageNet's images; or
            "random:W", the architecture and preprocessing of the weights W, untrained.
        sources: the images that it is for; "pixels" depends on their size.
        device, precision: as for `Embedder`.
        seed: of the untrained network.

    Raises:
        WeightsError: there are no such weights.
    """
    if weights == "pixels":
        return pixel_embedder(sources, device=device)
    if weights == "random" or weights.startswith("random:"):
        return random_embedder(weights.partition(":")[2], device=device, precision=precision, seed=seed)
    return load_embedder(weights, device=device, precision=precision)


def pixel_embedder(sources: Sequence[Source], *, device: str = "auto") -> Embedder:
    """Pixels in [0, 1] as features: as they are if all images have one square size, else resized to 32 x 32."""
    sizes = {source.size for source in sources}
    height, width = next(iter(sizes)) or (0, 1) if len(sizes) == 1 else (0, 1)
    side = height if height == width else PIXEL_SIDE
    channels = max(source.channels for source in sources)
    as_they_are = Preprocessing(side, None, channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    return Embedder(nn.Flatten(), as_they_are, device=device, precision="fp32", name="pixels")


def random_embedder(like: str = "", *, device: str = "auto", precision: str = "auto", seed: int = 0) -> Embedder:
    """An untrained backbone, with the architecture and preprocessing of the weights `like` if there are any."""
    known = load_weights(like) if like else None
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it is
        torch.manual_seed(seed)
        if known is None:
            backbone, preprocessing = build_backbone("resnet50"), Preprocessing()
        else:
            backbone = build_backbone(known.backbone_name, stem=known.stem, channels=known.channels)
            preprocessing = known.preprocessing
    name = f"random:{known.name}" if known else "random"
    return Embedder(backbone, preprocessing, device=device, precision=precision, name=name)
