"""The training module: backbone, projector and loss, for two views of each image.

Its key names are those of the published checkpoint: `backbone.*`, `projector.{0,1,3,4,6}.*` and `bn.*`.
"""

# Legend: N images, C input channels, S side in pixels, F features of the backbone, D projector width.

from __future__ import annotations

import itertools
from typing import NoReturn

import torch
from torch import Tensor, nn

from barlowtwins.core.errors import ConfigError
from barlowtwins.core.matmul import Linear
from barlowtwins.loss import BarlowTwinsLoss, LossTerms, refuse_unknown
from barlowtwins.models.resnet import Stem, build_backbone, feature_width

__all__ = ["BarlowTwins", "build_projector", "parse_projector"]


def parse_projector(widths: str) -> tuple[int, ...]:
    """Return the widths of "8192-8192-8192" as numbers; raise ConfigError if they are not positive."""
    parts = widths.split("-")
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"projector {widths!r} is not valid; write widths joined by dashes, such as 8192-8192-8192")
    return tuple(int(part) for part in parts)


def build_projector(features: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Build the projector, (N, F) -> (N, D): linear layers without bias, each but the last with batch norm and ReLU.

    Section 2.2 of the paper.
    """
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise((features, *widths)):
        layers += [Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-2])


class BarlowTwins(nn.Module):
    """Backbone, projector and loss in one module: `forward(y1, y2)` returns the loss of two views of a batch.

    The state dict has the keys of the published checkpoint: `backbone.*`, `projector.{0,1,3,4,6}.*` and `bn.*`. The
    last are running statistics of the standardized embedding; they are not used after training.

    Args:
        backbone: a name for `build_backbone`, or a module that returns (N, F) and whose `fc` has `in_features` F.
        projector: layer widths joined by dashes.
        lambd: weight of the off-diagonal terms.
        scale_loss: factor on the whole loss.
        stem, channels: see `build_backbone`; only used with a backbone name.

    Raises:
        ConfigError: an unknown backbone, a bad projector or a number out of range.
        TypeError: an unknown argument; the names of other packages get a hint.
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
        **unknown: NoReturn,
    ) -> None:
        refuse_unknown("BarlowTwins", unknown)
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
        """The parts of the last loss, for logging."""
        return self.loss.terms

    def embed(self, y: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, D), the output of the projector, not standardized."""
        z: Tensor = self.projector(self.backbone(y))
        return z

    def forward(self, y1: Tensor, y2: Tensor) -> Tensor:
        """Return the scalar loss of two views (N, C, S, S) of the same images, normalized.

        The views pass through the network one after the other, so each has its own batch statistics, as published.
        """
        return self.loss_of(self.embed(y1), self.embed(y2))

    def loss_of(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return the scalar loss of two embeddings (n, D); in training mode, update the running statistics of `bn`."""
        loss: Tensor = self.loss(z1, z2)
        if self.training:
            self._track_statistics()
        return loss

    @torch.no_grad()
    def _track_statistics(self) -> None:
        """Update the running statistics as `bn` itself would: once per view, with the unbiased variance."""
        assert self.loss.terms is not None
        n = self.loss.terms.images
        for mean, var in self.loss.terms.statistics:
            for running, value in ((self.bn.running_mean, mean), (self.bn.running_var, var * (n / (n - 1)))):
                assert running is not None
                running.lerp_(value.to(running.dtype), self.bn.momentum or 0.1)
        if self.bn.num_batches_tracked is not None:
            self.bn.num_batches_tracked.add_(2)
