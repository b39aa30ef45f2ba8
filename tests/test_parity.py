"""How far a program's features are from the network's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.embedding.parity import parity

SMALL = Preprocessing(4, None)


class Sums(nn.Module):
    """Two features: the sum of an image, and ten times that."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.flatten(1).sum(1, keepdim=True)
        return torch.cat([total, 10 * total], 1)


def test_the_same_features_differ_by_nothing() -> None:
    assert parity(Sums(), Sums(), SMALL) == 0


def test_a_difference_is_relative_to_the_largest_feature_of_its_image() -> None:
    def off(x: Tensor) -> Tensor:
        features = Sums()(x)
        features[1, 0] *= 1.1  # a tenth of what is a tenth of the largest
        return features

    assert parity(Sums(), off, SMALL) == pytest.approx(0.01, rel=1e-4)


def test_what_is_no_number_is_no_parity() -> None:
    assert not parity(Sums(), lambda x: Sums()(x) * float("nan"), SMALL) <= 1e9
