"""A batch is drawn exactly as its images are one by one, and its random numbers are numpy's own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from barlowtwins.core.errors import ConfigError
from barlowtwins.views.augmentation import AUGMENTATIONS, UNIFORMS, Augmentation, draw_views, rng_for
from barlowtwins.views.draw import draw_batch, pack_views, uniforms_for

NUMBER = st.integers(0, 2**63 - 1)
RECIPES = [
    *AUGMENTATIONS.values(),
    Augmentation("wide", scale=(0.5, 1.0), ratio=(0.2, 9.0), jitter=(2.0, 0.0, 1.0, 0.5), blur_sigma=(0.0, 3.0)),
]


@given(NUMBER, NUMBER, st.lists(NUMBER, max_size=5), st.integers(1, 130))
def test_random_numbers_are_numpys_to_the_bit(seed: int, epoch: int, indices: list[int], count: int) -> None:
    ours = uniforms_for(seed, epoch, np.array(indices, np.int64), count)
    assert ours.shape == (len(indices), count)
    for row, index in zip(ours, indices, strict=True):
        np.testing.assert_array_equal(row, rng_for(seed, epoch, index).random(count))


def test_the_generator_is_numpys_for_every_carry_of_a_product() -> None:
    """Ten thousand keys and counters, each used for one block: a half word's carry that is lost shows here."""
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 2**63 - 1, 10_000)
    indices[:3] = 0, 2**32 - 1, 2**63 - 1
    ours = uniforms_for(2**63 - 1, 2**32 - 1, indices, 2)
    theirs = [rng_for(2**63 - 1, 2**32 - 1, index).random(2) for index in indices.tolist()]
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("sizes", ["one", "any", "slender"])
def test_parameters_are_those_of_one_image_after_the_other(recipe: Augmentation, sizes: str) -> None:
    n = 600
    rng = np.random.default_rng(UNIFORMS)
    width, height = rng.integers(1, {"one": 2, "any": 900, "slender": 5000}[sizes], (2, n))
    width, height = {"one": (width * 32, height * 28), "any": (width, height), "slender": (width, height % 3 + 1)}[
        sizes
    ]
    seed, epoch = (int(number) for number in rng.integers(0, 2**63 - 1, 2))
    indices = rng.integers(0, 2**63 - 1, n)

    drawn = draw_batch(recipe, width, height, seed=seed, epoch=epoch, indices=indices)

    assert len(drawn) == n
    for place, index in enumerate(indices.tolist()):
        expected = draw_views(recipe, int(width[place]), int(height[place]), rng_for(seed, epoch, index))
        assert (drawn.view(place, 0), drawn.view(place, 1)) == expected


@settings(deadline=None)
@given(NUMBER, st.integers(0, 5000), st.integers(0, 10**9), st.integers(1, 6000), st.integers(1, 6000))
def test_parameters_are_those_of_one_image_whatever_its_size(
    seed: int, epoch: int, index: int, width: int, height: int
) -> None:
    recipe = AUGMENTATIONS["imagenet"]
    drawn = draw_batch(recipe, width, height, seed=seed, epoch=epoch, indices=[index])
    assert (drawn.view(0, 0), drawn.view(0, 1)) == draw_views(recipe, width, height, rng_for(seed, epoch, index))


def test_views_can_be_packed_cut_and_taken_out_again() -> None:
    pairs = [draw_views(AUGMENTATIONS["imagenet"], 50, 40, rng_for(0, 0, index)) for index in range(20)]
    packed = pack_views(pairs)
    assert [(packed.view(i, 0), packed.view(i, 1)) for i in range(20)] == pairs
    assert [packed[5:8].view(i, 1) for i in range(3)] == [pair[1] for pair in pairs[5:8]]
    drawn = draw_batch(AUGMENTATIONS["imagenet"], 50, 40, seed=0, epoch=0, indices=range(20))
    for field in dataclasses.fields(drawn):
        if field.name not in ("factors", "order"):  # which mean nothing without jitter
            np.testing.assert_array_equal(getattr(packed, field.name), getattr(drawn, field.name))


@pytest.mark.parametrize("bad", [(-1, 0, 0), (0, 2**63, 0), (0, 0, -1)])
def test_a_number_out_of_range_is_refused_as_for_one_image(bad: tuple[int, int, int]) -> None:
    seed, epoch, index = bad
    with pytest.raises(ConfigError, match="2\\*\\*63"):
        draw_batch(AUGMENTATIONS["small"], 8, 8, seed=seed, epoch=epoch, indices=[index])


def test_a_batch_of_none_is_drawn() -> None:
    assert draw_batch(AUGMENTATIONS["small"], 8, 8, seed=0, epoch=0, indices=[]).box.shape == (0, 2, 4)
