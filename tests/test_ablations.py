"""The paper's loss ablations as tests of truth: what each part of the loss is for, seen in what a network learns.

Published (ImageNet, 300 epochs, linear probe; Zbontar et al. 2021, section 4): whole loss 71.4, normalised along the
features instead of the batch 69.8, invariance term alone 57.3, redundancy term alone 0.1. The variants are composed
here from the package's own functions; nobody needs them as options.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from barlowtwins.data.open import Source, open_source
from barlowtwins.loss import barlow_twins_loss, cross_correlation
from barlowtwins.metrics.knn import Labeled, knn_accuracy
from barlowtwins.metrics.representation import effective_rank
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.models.resnet import feature_identity
from barlowtwins.views.executors import Executor
from barlowtwins.views.transform import TwinTransform
from barlowtwins.views.twins import plan_batches

# n images of a batch, D projector width

IMAGES, HELD_OUT, BATCH, STEPS, WIDTH = 2000, 500, 64, 200, 512
LAMBD = 0.0051


def whole(z1: Tensor, z2: Tensor) -> Tensor:
    return barlow_twins_loss(z1, z2, LAMBD).loss


def invariance_only(z1: Tensor, z2: Tensor) -> Tensor:
    return (cross_correlation(z1, z2).diagonal() - 1).square().sum()


def redundancy_only(z1: Tensor, z2: Tensor) -> Tensor:
    c = cross_correlation(z1, z2)  # (D, D)
    return LAMBD * (c.square().sum() - c.diagonal().square().sum())


def along_features(z1: Tensor, z2: Tensor) -> Tensor:
    """The whole loss of centred embeddings that are scaled to one length, image by image, and not standardised."""
    a, b = (nn.functional.normalize(z - z.mean(0), dim=1) for z in (z1, z2))  # (n, D) each
    c = a.T @ b * z1.shape[1] / len(a)  # (D, D); the features of a unit vector have variance 1 / D on average
    on = (c.diagonal() - 1).square().sum()
    return on + LAMBD * (c.square().sum() - c.diagonal().square().sum())


def tiny_network() -> nn.Module:
    """(n, 1, 32, 32) -> (n, 1024) by three convolutions, whose 4 x 4 places are kept."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Flatten())
    network.add_module("fc", feature_identity(64 * 4 * 4))
    return network


class Learned(NamedTuple):
    """What a short training came to, on held-out images."""

    knn: float
    """Percent, by 20 neighbours among the training images."""
    directions: float
    """Effective rank of the centred embeddings."""


def learn(loss: Callable[[Tensor, Tensor], Tensor] | None, seed: int) -> Learned:
    """Train the tiny network by a loss; None: leave it untrained."""
    torch.manual_seed(seed)
    train, held_out = (open_source(f"shapes:{n}", split=s) for n, s in ((IMAGES, "train"), (HELD_OUT, "test")))
    model = BarlowTwins(tiny_network(), f"{WIDTH}-{WIDTH}").train()
    views = Executor(train, TwinTransform("grey", size=32, seed=seed), torch.device("cpu"), "batched")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003, weight_decay=1e-4)
    for rows in plan_batches(IMAGES, BATCH, seed=seed, start=0, stop=STEPS if loss else 0):
        batch = views[rows]
        assert loss is not None
        loss(model.embed(batch.y1), model.embed(batch.y2)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        bank, queries = (torch.cat([model.backbone(part) for part in _grey(s).split(500)]) for s in (train, held_out))
        embeddings = model.projector(queries)  # (HELD_OUT, D)
    assert train.labels is not None
    assert held_out.labels is not None
    knn = knn_accuracy(Labeled(bank, train.labels), Labeled(queries, held_out.labels), k=20)[20].top1
    return Learned(knn, effective_rank(embeddings - embeddings.mean(0)))


def _grey(source: Source) -> Tensor:
    """(N, 1, 32, 32), normalised as the views are."""
    pixels = np.stack([np.asarray(source.read(i).convert("L")) for i in range(len(source))])  # type: ignore[union-attr]
    return torch.from_numpy(pixels)[:, None].float() / 127.5 - 1


@pytest.mark.slow
def test_the_losses_rank_as_published() -> None:
    """With seeds 0 and 1: whole 53.2 and 56.0, invariance alone 42.6 and 42.8, redundancy alone 24.8 and 25.8."""
    both, invariance, redundancy = (learn(loss, seed=0) for loss in (whole, invariance_only, redundancy_only))
    untrained = learn(None, seed=0)
    assert both.knn > invariance.knn + 5
    assert invariance.knn > redundancy.knn + 5
    assert both.knn > untrained.knn + 5
    assert redundancy.knn < untrained.knn  # worse than nothing: it pulls the two views apart
    assert both.directions > 2 * invariance.directions  # what the redundancy term is for
