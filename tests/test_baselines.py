"""The baselines: pixels as they are, and networks that are a function of their seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import DIM, TINY, write_images, write_weights

from barlowtwins.core.errors import DataError, WeightsError
from barlowtwins.data.open import open_source
from barlowtwins.data.sources import ArraySource
from barlowtwins.evaluate.baselines import open_embedder, pixel_embedder, random_embedder


def test_pixels_of_one_size_are_only_standardised() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 6), dtype=np.uint8)
    rows = pixel_embedder([ArraySource("grey", images)], device="cpu").encode(images)
    levels = images.reshape(20, 36) / 255
    np.testing.assert_allclose(rows, (levels - levels.mean()) / levels.std(), atol=1e-5)


def test_pixels_of_several_sizes_are_resized(tmp_path: Path) -> None:
    folder = open_source(write_images(tmp_path, 3))
    small = ArraySource("small", np.zeros((2, 9, 9, 3), np.uint8))
    wide = ArraySource("wide", np.zeros((2, 9, 5, 3), np.uint8))
    for sources in ([folder], [small, folder], [wide], [wide, wide]):
        assert pixel_embedder(sources, device="cpu").dim == 3 * 32 * 32
    assert pixel_embedder([small, small], device="cpu").dim == 3 * 9 * 9


def test_constant_images_give_finite_pixels() -> None:
    images = np.full((4, 5, 5, 1), 7, np.uint8)
    assert np.isfinite(pixel_embedder([ArraySource("constant", images)], device="cpu").encode(images)).all()


def test_no_readable_image_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="has no readable image"):
        pixel_embedder([open_source(tmp_path)], device="cpu")


def test_an_untrained_network_is_a_function_of_its_seed(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "tiny.safetensors")
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    first, again, other = (random_embedder(str(weights), device="cpu", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(first.encode(images), again.encode(images))
    assert not np.allclose(first.encode(images), other.encode(images))
    trained = open_embedder(str(weights), [], device="cpu")
    assert not np.allclose(first.encode(images), trained.encode(images))
    assert first.preprocessing == trained.preprocessing == TINY
    assert first.dim == trained.dim == DIM
    assert first.name == "random:tiny.safetensors" and first.sha256 == ""


def test_words_and_weights_are_told_apart(tmp_path: Path) -> None:
    images = [ArraySource("grey", np.zeros((2, 4, 4), np.uint8))]
    assert open_embedder("pixels", images, device="cpu").dim == 16
    random = open_embedder("random", images, device="cpu")
    assert (random.dim, random.preprocessing.image_size) == (2048, 224)
    with pytest.raises(WeightsError):
        open_embedder(str(tmp_path / "absent.pth"), images)
