"""Baselines for features: raw pixels, and the same network untrained."""

# n images, C channels, S side in pixels

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from barlowtwins.core.errors import DataError
from barlowtwins.data.images import Unreadable
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.data.sources import Source
from barlowtwins.embedding.embedder import Embedder, load_embedder
from barlowtwins.models.resnet import build_backbone
from barlowtwins.zoo.weights import load_weights

__all__ = ["open_embedder", "pixel_embedder", "random_embedder"]

PIXEL_SIDE = 32  # of images that are not all of one square size
STATISTICS = 1000  # images that the mean and standard deviation are taken from


def open_embedder(
    weights: str,
    sources: Sequence[Source],
    *,
    device: torch.device | str = "auto",
    precision: str = "auto",
    seed: int = 0,
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


def pixel_embedder(sources: Sequence[Source], *, device: torch.device | str = "auto") -> Embedder:
    """Pixels as features: as they are if all images have one square size, else resized to 32 x 32.

    They are standardized by the mean and standard deviation of each channel, as a network would see them: levels are
    never negative, so without it the cosine of any two images is near 1, and the baseline weaker than it could be.

    Args:
        sources: whose images will be compared; the statistics are those of the first.
        device: as for `Embedder`.
    """
    size = sources[0].size
    square = size is not None and size[0] == size[1] and all(source.size == size for source in sources)
    side = size[0] if size is not None and square else PIXEL_SIDE
    channels = max(source.channels for source in sources)
    levels = Preprocessing(side, None, channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    mean, std = _statistics(sources[0], levels)
    standardized = dataclasses.replace(levels, mean=mean, std=std)
    return Embedder(nn.Flatten(), standardized, device=device, precision="fp32", name="pixels")


def _statistics(source: Source, levels: Preprocessing) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, over images evenly spread over the source."""
    rows = np.unique(np.linspace(0, len(source) - 1, STATISTICS).round().astype(np.int64)).tolist()
    images = [levels(image) for image in map(source.read, rows) if not isinstance(image, Unreadable)]
    if not images:
        raise DataError(f"{source.name} has no readable image; `barlowtwins check` says why")
    pixels = torch.stack(images).double()  # (n, C, S, S)
    std = pixels.std(dim=(0, 2, 3), correction=0).clamp_min(1e-3)  # of constant images, too
    return tuple(pixels.mean(dim=(0, 2, 3)).tolist()), tuple(std.tolist())


def random_embedder(
    like: str = "", *, device: torch.device | str = "auto", precision: str = "auto", seed: int = 0
) -> Embedder:
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
