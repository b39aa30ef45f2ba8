"""The training module: a backbone, a projector and the loss, for two views of each image.

Key names are the published checkpoint's: `backbone.*`, `projector.{0,1,3,4,6}.*` and `bn.*`.
"""

# Legend: N images, C input channels, S side in pixels, F features of the backbone, D projector width.

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from barlowtwins.core.errors import ConfigError
from barlowtwins.core.matmul import Linear
from barlowtwins.loss import BarlowTwinsLoss, LossTerms
from barlowtwins.models.resnet import Stem, build_backbone, feature_width

__all__ = ["BarlowTwins", "build_projector", "parse_projector"]


def parse_projector(widths: str) -> tuple[int, ...]:
    """ "8192-8192-8192" -> (8192, 8192, 8192); raises ConfigError for anything but positive numbers and dashes."""
    parts = widths.split("-")
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"projector {widths!r} is not understood; write widths joined by dashes: 8192-8192-8192")
    return tuple(int(part) for part in parts)


def build_projector(features: int, widths: tuple[int, ...]) -> nn.Sequential:
    """(N, F) -> (N, D): linear layers without bias, batch norm and ReLU after all but the last (paper, section 2.2)."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise((features, *widths)):
        layers += [Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-2])


class BarlowTwins(nn.Module):
    """Two views, one network, one loss: `forward(y1, y2)` is the loss of a batch of twins.

    The state dict has the published checkpoint's keys: `backbone.*`, `projector.{0,1,3,4,6}.*` and `bn.*`, the running
    statistics of the standardised embedding, which nothing uses after training.

    Args:
        backbone: a name as `build_backbone` takes it, or a module that gives (N, F) and whose `fc` has `in_features` F.
        projector: layer widths joined by dashes.
        lambd: weight of the off-diagonal terms.
        scale_loss: factor on the whole loss.
        stem, channels: see `build_backbone`; only for a backbone given by name.
    """

    def __init__(
        self,
        backbone: str | nn.Module = "resnet50",
        projector: str = "8192-8192-8192",
        lambd: float = 0.0051,
        scale_loss: float = 1.0,
        *,
        stem: Stem = "imagenet",
        channels: int = 3,
    ) -> None:
        super().__init__()
        widths = parse_projector(projector)
        network: nn.Module
        network = build_backbone(backbone, stem=stem, channels=channels) if isinstance(backbone, str) else backbone
        self.backbone = network
        self.projector = build_projector(feature_width(network), widths)
        self.bn = nn.BatchNorm1d(widths[-1], affine=False)
        self.loss: BarlowTwinsLoss = BarlowTwinsLoss(lambd, scale_loss, eps=self.bn.eps)

    @property
    def terms(self) -> LossTerms | None:
        """The parts of the last loss, for a log."""
        return self.loss.terms

    def embed(self, y: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, D), the projector's output, not standardised."""
        return self.projector(self.backbone(y))

    def forward(self, y1: Tensor, y2: Tensor) -> Tensor:
        """Two views (N, C, S, S) of the same images, normalised -> the scalar loss.

        The views pass one after the other, so that each is normalised by its own batch statistics, as published.
        """
        return self.loss_of(self.embed(y1), self.embed(y2))

    def loss_of(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Two embeddings (n, D) -> the scalar loss; in training it also moves `bn`'s running statistics."""
        loss = self.loss(z1, z2)
        if self.training:
            self._track_statistics()
        return loss

    @torch.no_grad()
    def _track_statistics(self) -> None:
        """Move `bn`'s running statistics as it would have done itself: once a view, with the unbiased variance."""
        assert self.loss.terms is not None
        n = self.loss.terms.images
        for mean, var in self.loss.terms.statistics:
            for running, value in ((self.bn.running_mean, mean), (self.bn.running_var, var * (n / (n - 1)))):
                assert running is not None
                running.lerp_(value.to(running.dtype), self.bn.momentum or 0.1)
        if self.bn.num_batches_tracked is not None:
            self.bn.num_batches_tracked.add_(2)
