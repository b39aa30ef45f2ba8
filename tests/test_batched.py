"""The batched executor beside Pillow's, on the same parameters: level for level where it says so, near it elsewhere."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from barlowtwins.views.augmentation import AUGMENTATIONS, Augmentation, Jitter, ViewParameters
from barlowtwins.views.batched import (
    DARKEST,
    bicubic,
    blur_matrix,
    finish_views,
    make_views,
    resize_matrix,
    turn_hue,
)
from barlowtwins.views.draw import DrawnViews, draw_batch, pack_views
from barlowtwins.views.pillow import apply_view, crop_view, turn_hue as pillow_hue

# N images, H x W their size, S side of the views, C channels

PLAIN = Augmentation("plain", jitter_p=0.0, grey_p=0.0, blur_p=(0.0, 0.0), solarize_p=(0.0, 0.0))
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def pictures(n: int, height: int, width: int, channels: int) -> np.ndarray:
    """(N, H, W, C): half of them noise, half coarse blobs with a little noise, as photographs have."""
    rng = np.random.default_rng(height * width + channels)
    noise = rng.integers(0, 256, (n, height, width, channels), dtype=np.uint8)
    coarse = rng.integers(0, 256, (n, height // 6 + 1, width // 6 + 1, channels), dtype=np.uint8)
    smooth = coarse.repeat(6, 1).repeat(6, 2)[:, :height, :width].astype(int) + noise % 16
    return np.where(np.arange(n)[:, None, None, None] % 2 == 0, noise, smooth.clip(0, 255)).astype(np.uint8)


def as_pillow(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def levels(view: Tensor, recipe: Augmentation) -> Tensor:
    """Views (..., C, S, S) back in levels of 0-255."""
    mean, std = (torch.tensor(values, device=view.device)[:, None, None] for values in (recipe.mean, recipe.std))
    return (view * std + mean) * 255


def by_pillow(images: np.ndarray, drawn: DrawnViews, recipe: Augmentation) -> Tensor:
    """(2, N, C, S, S) levels."""
    views = [
        [np.array(apply_view(as_pillow(image), drawn.view(i, view), recipe)) for i, image in enumerate(images)]
        for view in range(2)
    ]
    shape = (2, len(images), recipe.size, recipe.size, recipe.channels)
    return torch.from_numpy(np.array(views).reshape(shape)).permute(0, 1, 4, 2, 3).float()


def difference(images: np.ndarray, recipe: Augmentation, drawn: DrawnViews | None = None, seed: int = 0) -> Tensor:
    """(2, N, C, S, S): by how many levels the executors differ."""
    n, height, width, _ = images.shape
    if drawn is None:
        drawn = draw_batch(recipe, width, height, seed=seed, epoch=0, indices=np.arange(n))
    views = torch.stack(make_views(torch.from_numpy(images), drawn, recipe))
    assert views.shape == (2, n, recipe.channels, recipe.size, recipe.size)
    assert views.dtype == torch.float32
    return (levels(views, recipe) - by_pillow(images, drawn, recipe)).abs()


# Height, width, channels, side: both ways of scaling, unequal sides, one pixel, one row, one column.
SHAPES = [
    *((28, 28, 1, 28), (32, 32, 3, 32), (20, 30, 3, 64), (40, 90, 1, 24), (64, 64, 3, 32), (150, 260, 3, 224)),
    *((1, 1, 3, 24), (1, 5000, 3, 28), (5000, 1, 3, 28), (3, 5000, 1, 224), (5000, 2, 1, 24)),
]


@pytest.mark.parametrize(("height", "width", "channels", "size"), SHAPES)
def test_crops_are_pillows_but_for_ties(height: int, width: int, channels: int, size: int) -> None:
    recipe = dataclasses.replace(PLAIN, size=size).with_channels(channels)
    n = 4 if size == 224 else 24
    images = pictures(n, height, width, channels)
    drawn = draw_batch(recipe, width, height, seed=0, epoch=0, indices=np.arange(n))
    found = difference(images, recipe, drawn).transpose(0, 1)  # (N, 2, C, S, S)
    # A crop taller than wide that shrinks downwards is resized down first by newer versions of Pillow, and across first
    # by this executor and older ones: 8 bits in between then fall elsewhere.
    tall = torch.from_numpy((drawn.box[..., 3] > drawn.box[..., 2]) & (drawn.box[..., 3] > size))
    others = found[~tall]
    assert others.numel() == 0 or others.max() <= 1.01
    assert others.numel() == 0 or others.mean() < 0.01
    assert tall.sum() == 0 or found[tall].mean() < 0.6


def test_crops_at_the_border_and_of_one_pixel_are_pillows() -> None:
    recipe = dataclasses.replace(PLAIN, size=16)
    boxes = [
        (0, 0, 1, 1),
        (29, 19, 1, 1),
        (0, 0, 30, 20),
        (0, 0, 16, 16),
        (14, 4, 16, 16),
        (29, 0, 1, 20),
        (0, 19, 30, 1),
    ]
    pairs = [(ViewParameters(*box), ViewParameters(*box, flip=True)) for box in boxes]
    assert difference(pictures(len(boxes), 20, 30, 3), recipe, pack_views(pairs)).max() <= 1.01


def test_a_crop_that_changes_no_size_changes_no_level() -> None:
    images = pictures(6, 16, 16, 3)
    whole = ViewParameters(0, 0, 16, 16)
    recipe = dataclasses.replace(PLAIN, size=16, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    y1, y2 = make_views(
        torch.from_numpy(images), pack_views([(whole, dataclasses.replace(whole, flip=True))] * 6), recipe
    )
    expected = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(y1, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(y2, expected.flip(3), atol=1e-4, rtol=0)


WHOLE = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
OPERATIONS = {
    "brightness": ({"jitter_p": 1.0, "jitter": (0.4, 0.0, 0.0, 0.0)}, 0.0, 0.0),
    "contrast": ({"jitter_p": 1.0, "jitter": (0.0, 0.4, 0.0, 0.0)}, 0.0, 0.0),
    "saturation": ({"jitter_p": 1.0, "jitter": (0.0, 0.0, 0.4, 0.0)}, 0.0, 0.0),
    "hue": ({"jitter_p": 1.0, "jitter": (0.0, 0.0, 0.0, 0.5)}, 0.01, 6.0),
    "grey": ({"grey_p": 1.0}, 0.0, 0.0),
    "blur": ({"blur_p": (1.0, 1.0)}, 0.5, 3.0),
    "solarise": ({"solarize_p": (1.0, 1.0)}, 0.0, 0.0),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_alone_is_as_near_to_pillows_as_it_says(name: str, channels: int) -> None:
    """Mean and largest difference in levels, on whole images whose size stays."""
    changes, mean, largest = OPERATIONS[name]
    recipe = dataclasses.replace(PLAIN, size=32, **WHOLE, **changes).with_channels(channels)  # type: ignore[arg-type]
    images = pictures(48, 32, 32, channels)
    found = difference(images, recipe)
    assert found.mean() <= mean + 1e-3
    assert found.max() <= largest + 1e-3
    plain, changed = (by_pillow(images, draw_batch(r, 32, 32, seed=0, epoch=0, indices=range(48)), r)
                      for r in (dataclasses.replace(recipe, **PLAIN_CHANCES), recipe))  # fmt: skip
    assert torch.equal(plain, changed) == (channels == 1 and name in ("saturation", "hue", "grey"))  # it did something


PLAIN_CHANCES = {"jitter_p": 0.0, "grey_p": 0.0, "blur_p": (0.0, 0.0), "solarize_p": (0.0, 0.0)}


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize(("height", "width", "size"), [(28, 28, 28), (32, 32, 32), (40, 50, 64), (100, 160, 224)])
def test_all_together_are_near_to_pillows(name: str, height: int, width: int, size: int) -> None:
    recipe = dataclasses.replace(AUGMENTATIONS[name], size=size)
    images = pictures(6 if size == 224 else 64, height, width, recipe.channels)
    found = difference(images, recipe, seed=7)
    blurred = max(recipe.blur_p) > 0
    assert found.mean() < (0.4 if blurred else 0.03)
    assert (found > 3).float().mean() < 0.003  # hue on the edge of a step, and what contrast makes of a difference


def test_every_order_of_jitter_is_pillows() -> None:
    orders = list(itertools.permutations(range(4)))
    whole = ViewParameters(0, 0, 16, 16)
    pairs = [
        (
            dataclasses.replace(whole, jitter=Jitter((0.6, 1.4, 1.7, 0.0), order)),  # type: ignore[arg-type]
            dataclasses.replace(whole, jitter=Jitter((1.4, 0.6, 0.3, 0.1), order)),  # type: ignore[arg-type]
        )
        for order in orders
    ]
    recipe = dataclasses.replace(PLAIN, size=16)
    images = np.repeat(pictures(2, 16, 16, 3)[1:], len(orders), 0)
    first, second = difference(images, recipe, pack_views(pairs))
    assert first.max() < 0.01
    assert second.mean() < 0.1
    assert len({view.numpy().tobytes() for view in by_pillow(images, pack_views(pairs), recipe)[0]}) > 3


def test_hue_is_pillows_for_all_turns_of_all_kinds_of_colours() -> None:
    """Every 15th level of each channel, 5,832 colours, at turns of both signs, one that does nothing among them."""
    axis = np.arange(0, 256, 15, dtype=np.uint8)
    colours = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(81, 72, 3)
    for turn in (-0.5, -0.1, -0.003, 0.003, 0.02, 0.25, 0.5):
        expected = np.asarray(pillow_hue(Image.fromarray(colours), turn)).astype(np.float32)
        found = turn_hue(
            torch.from_numpy(colours).permute(2, 0, 1)[None].float(), torch.tensor([float(int(turn * 255))])
        )
        off = np.abs(found[0].permute(1, 2, 0).numpy() - expected)
        assert off.max() <= 6
        assert (off > 0).mean() < 0.01
    assert sorted(DARKEST) == [1.0, 3.0, 5.0]


# The matrices ---------------------------------------------------------------------------------------------------------


def test_the_kernel_is_keys_cubic() -> None:
    x = torch.linspace(-2.5, 2.5, 2001, dtype=torch.float64)
    p = x.abs()
    near, far = 1.5 * p**3 - 2.5 * p**2 + 1, -0.5 * p**3 + 2.5 * p**2 - 4 * p + 2
    expected = torch.where(p < 1, near, torch.where(p < 2, far, 0))
    torch.testing.assert_close(bicubic(x.clone()), expected)


@pytest.mark.parametrize(("pixels", "start", "length", "size"), [(32, 5, 20, 32), (500, 100, 300, 28), (7, 0, 1, 9)])
def test_resizing_takes_from_the_part_alone_and_keeps_the_level(
    pixels: int, start: int, length: int, size: int
) -> None:
    part = torch.tensor([float(start)]), torch.tensor([float(length)])
    matrix = resize_matrix(*part, pixels, size)[0]  # (P, S)
    torch.testing.assert_close(matrix.sum(0), torch.ones(size))
    assert (matrix[:start] == 0).all()
    assert (matrix[start + length :] == 0).all()
    mirrored = resize_matrix(*part, pixels, size, torch.ones(1))[0]
    torch.testing.assert_close(mirrored, matrix.flip(1), atol=1e-5, rtol=0)


def test_blur_keeps_the_level_and_has_its_standard_deviation() -> None:
    sigma = torch.tensor([0.1, 0.7, 1.3, 2.0], dtype=torch.float64)
    matrix = blur_matrix(sigma, 41)
    torch.testing.assert_close(matrix.sum(2), torch.ones(4, 41, dtype=torch.float64))
    at = torch.arange(41, dtype=torch.float64) - 20
    torch.testing.assert_close((matrix[:, 20] * at.square()).sum(1).sqrt(), sigma, atol=1e-6, rtol=0)


# The whole ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_views_do_not_depend_on_the_batch_they_are_made_in(device: str) -> None:
    recipe = dataclasses.replace(AUGMENTATIONS["imagenet"], size=24)
    images = torch.from_numpy(pictures(40, 30, 26, 3)).to(device)
    drawn = draw_batch(recipe, 26, 30, seed=1, epoch=2, indices=np.arange(40))
    y1, y2 = make_views(images, drawn, recipe)
    for rows in (slice(0, 1), slice(7, 20)):
        for whole, part in zip((y1, y2), make_views(images[rows], drawn[rows], recipe), strict=True):
            off = (levels(whole[rows], recipe) - levels(part, recipe)).abs()
            assert (off > 0.01).float().mean() < 0.001  # a product of another size may round a tie the other way
    assert y1.device.type == device


@pytest.mark.parametrize("device", [device for device in DEVICES if device != "cpu"])
def test_every_device_makes_the_same_views(device: str) -> None:
    recipe = dataclasses.replace(AUGMENTATIONS["imagenet"], size=32)
    images = torch.from_numpy(pictures(64, 40, 40, 3))
    drawn = draw_batch(recipe, 40, 40, seed=1, epoch=2, indices=np.arange(64))
    made = [make_views(images.to(place), drawn, recipe) for place in ("cpu", device)]
    for here, there in zip(*made, strict=True):
        assert (levels(here, recipe) - levels(there.cpu(), recipe)).abs().mean() < 0.05


def test_the_device_is_never_asked_for_a_value() -> None:
    """On torch's meta device there are shapes and no values: whatever reads one back, or a shape from one, raises."""
    recipe = dataclasses.replace(AUGMENTATIONS["imagenet"], size=24, blur_p=(0.5, 0.5), solarize_p=(0.5, 0.5))
    images = torch.from_numpy(pictures(40, 30, 26, 3)).to("meta")
    drawn = draw_batch(recipe, 26, 30, seed=1, epoch=2, indices=np.arange(40))
    for view in make_views(images, drawn, recipe):
        assert view.shape == (40, 3, 24, 24)
        assert view.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_never_waited_for() -> None:
    recipe = dataclasses.replace(AUGMENTATIONS["imagenet"], size=24, blur_p=(0.5, 0.5), solarize_p=(0.5, 0.5))
    images = torch.from_numpy(pictures(40, 30, 26, 3)).to("cuda")
    drawn = draw_batch(recipe, 26, 30, seed=1, epoch=2, indices=np.arange(40))
    torch.cuda.set_sync_debug_mode("error")
    try:
        make_views(images, drawn, recipe)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_an_operation_that_no_view_drew_is_left_out_and_images_are_left_alone() -> None:
    images = torch.from_numpy(pictures(5, 20, 20, 3))
    before = images.clone()
    recipe = dataclasses.replace(PLAIN, size=20)
    make_views(images, draw_batch(recipe, 20, 20, seed=0, epoch=0, indices=range(5)), recipe)
    assert torch.equal(images, before)


def test_crops_of_pillow_are_finished_as_pillow_does() -> None:
    recipe = dataclasses.replace(AUGMENTATIONS["imagenet"], size=32)
    images = pictures(32, 50, 40, 3)
    drawn = draw_batch(recipe, 40, 50, seed=5, epoch=0, indices=range(32))
    crops = np.array([
        [np.array(crop_view(as_pillow(image), drawn.view(i, view), recipe)) for i, image in enumerate(images)]
        for view in range(2)
    ])  # fmt: skip
    views = torch.stack(finish_views(torch.from_numpy(crops), drawn, recipe))
    found = (levels(views, recipe) - by_pillow(images, drawn, recipe)).abs()
    assert found.mean() < 0.4
    assert (found > 3).float().mean() < 0.003


def test_both_executors_draw_the_same_distribution() -> None:
    """The mean, the deviation and the roughness of 600 views of one image, from other parameters for each executor."""
    recipe = dataclasses.replace(AUGMENTATIONS["imagenet"], size=16)
    n = 600
    image = pictures(2, 40, 30, 3)[1]
    ours = draw_batch(recipe, 30, 40, seed=0, epoch=0, indices=np.arange(n))
    theirs = draw_batch(recipe, 30, 40, seed=1, epoch=0, indices=np.arange(n))
    repeated = torch.from_numpy(image).expand(n, -1, -1, -1)
    a = levels(make_views(repeated, ours, recipe)[1], recipe)
    b = by_pillow(np.broadcast_to(image, (n, *image.shape)), theirs, recipe)[1]
    for x, y in ((a, b), (a.diff(dim=3).abs(), b.diff(dim=3).abs())):
        for mine, pillows in ((x.mean((1, 2, 3)), y.mean((1, 2, 3))), (x.std((1, 2, 3)), y.std((1, 2, 3)))):
            assert stats.ks_2samp(mine, pillows, method="asymp").pvalue > 1e-4
