"""Views by OpenCV: the parameters of the Pillow executor, and its pixels up to what is stated."""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import write_images
from training import outcome, tiny

from barlowtwins.core.errors import DataError, MissingExtraError
from barlowtwins.data.fast_jpeg import read_pixels
from barlowtwins.data.images import Unreadable, read_image
from barlowtwins.data.open import open_source
from barlowtwins.pretraining import pretrain
from barlowtwins.views import opencv as augment_opencv
from barlowtwins.views.augmentation import Jitter
from barlowtwins.views.executors import Executor
from barlowtwins.views.pillow import apply_view as by_pillow
from barlowtwins.views.transform import (
    AUGMENTATIONS,
    Augmentation,
    TwinTransform,
    ViewParameters,
    draw_views,
    rng_for,
)
from barlowtwins.views.twins import Rows, TwinReader, plan_batches

pytest.importorskip("cv2", reason="the extra fast is not installed")
pytest.importorskip("simplejpeg", reason="the extra fast is not installed")

RECIPE = dataclasses.replace(AUGMENTATIONS["imagenet"], size=96)
WHOLE = ViewParameters(0, 0, 96, 96)
NEUTRAL = (1.0, 1.0, 1.0, 0.0)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Edges, slopes and a little noise, as photographs have."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(coarse, np.int16) + rng.integers(-6, 7, (height, width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def difference(image: Image.Image, params: ViewParameters, recipe: Augmentation = RECIPE) -> np.ndarray:
    ours = augment_opencv.apply_view(np.asarray(image), params, recipe)
    theirs = np.asarray(by_pillow(image, params, recipe))
    assert ours.shape == theirs.shape and ours.dtype == np.uint8
    return np.abs(ours.astype(int) - theirs.astype(int))


def jitter(which: int, factor: float) -> ViewParameters:
    factors = tuple(factor if place == which else value for place, value in enumerate(NEUTRAL))
    return dataclasses.replace(WHOLE, jitter=Jitter(factors, (0, 1, 2, 3)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("params", "mean", "most"),
    [
        (WHOLE, 0, 0),
        (dataclasses.replace(WHOLE, flip=True), 0, 0),
        (dataclasses.replace(WHOLE, solarize=True), 0, 0),
        (dataclasses.replace(WHOLE, grey=True), 0.1, 1),
        (jitter(0, 0.6), 0, 0),
        (jitter(0, 1.4), 0, 0),
        (jitter(1, 0.6), 0.5, 1),
        (jitter(1, 1.4), 0.5, 1),
        (jitter(2, 0.8), 0.5, 1),
        (jitter(2, 1.2), 0.5, 1),
        (jitter(3, 0.1), 1.5, 16),
        (jitter(3, -0.1), 1.5, 16),
        (dataclasses.replace(WHOLE, blur_sigma=0.1), 0.1, 1),
        (dataclasses.replace(WHOLE, blur_sigma=1.0), 1, 8),
        (dataclasses.replace(WHOLE, blur_sigma=2.0), 1, 8),
    ],
    ids=str,
)
def test_an_operation_is_pillows(params: ViewParameters, mean: float, most: int) -> None:
    for seed in range(3):
        off = difference(photo(96, 96, seed), params)
        assert off.mean() <= mean
        assert off.max() <= most


@pytest.mark.parametrize("size", [(97, 97), (140, 120), (300, 260), (96, 400), (60, 70), (30, 300)], ids=str)
def test_a_resize_is_pillows_in_the_mean(size: tuple[int, int]) -> None:
    for seed in range(3):
        off = difference(photo(*size, seed), ViewParameters(0, 0, *size))
        assert off.mean() <= 3


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2)], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_slender_and_tiny_images(size: tuple[int, int], mode: str) -> None:
    recipe = RECIPE if mode == "RGB" else RECIPE.with_channels(1)
    image = photo(*size).convert(mode)
    for index in range(5):
        for params in draw_views(recipe, *size, rng_for(0, 0, index)):
            assert (
                difference(image, params, recipe).mean() < 12
            )  # the fewer pixels, the more each resize's own way shows


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_whole_views_are_near_and_drawn_alike(mode: str) -> None:
    """Over many draws of the published recipe: the views that Pillow makes of the same (seed, epoch, index)."""
    recipe = RECIPE if mode == "RGB" else RECIPE.with_channels(1)
    image = photo(250, 190).convert(mode)
    off = np.stack([
        difference(image, params, recipe)
        for index in range(60)
        for params in draw_views(recipe, *image.size, rng_for(1, 2, index))
    ])  # fmt: skip
    assert off.mean() < 2.5
    assert np.median(off.reshape(len(off), -1).mean(1)) < 2


def test_the_transform_gives_what_the_executor_gives(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    photo(120, 100).save(path, quality=90)
    transform = TwinTransform(RECIPE, "fast", seed=5)
    y1, y2 = transform(path, epoch=1, index=0)
    assert y1.shape == (3, 96, 96) and y1.dtype == torch.float32 and not torch.equal(y1, y2)
    for same in (Image.open(path), np.asarray(Image.open(path))):
        again = transform(same, epoch=1, index=0)
        assert torch.equal(again[0], y1) and torch.equal(again[1], y2)
    made = Executor(open_source(str(tmp_path)), transform, torch.device("cpu"), "fast")[Rows(0, 1, (0,))]
    assert torch.equal(made.y1[0], y1) and torch.equal(made.y2[0], y2)
    slow = TwinTransform(RECIPE, "pillow", seed=5)(path, epoch=1, index=0)
    assert (y1 - slow[0]).abs().mean() * 255 * 0.226 < 2.5
    grey = TwinTransform(RECIPE, "fast", channels=1, seed=5)(path, epoch=1, index=0)
    assert grey[0].shape == (1, 96, 96)


def test_a_transform_without_a_seed_follows_torch() -> None:
    transform, image = TwinTransform(RECIPE, "fast"), photo(120, 100)
    torch.manual_seed(3)
    first = transform(image)
    torch.manual_seed(3)
    assert torch.equal(transform(image)[0], first[0])
    assert not torch.equal(transform(image)[0], first[0])


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_batches_do_not_depend_on_workers_and_bad_images_are_told(tmp_path: Path, suffix: str) -> None:
    for number in range(11):
        photo(40 + number, 50, number).save(tmp_path / f"{number:02}.{suffix}")
    (tmp_path / f"broken.{suffix}").write_bytes((tmp_path / f"00.{suffix}").read_bytes()[:-400])
    source, transform = open_source(str(tmp_path)), TwinTransform(RECIPE, seed=3)
    executor = Executor(source, transform, torch.device("cpu"), "fast")
    assert executor.workers(2) == 2
    plan = list(plan_batches(12, 4, seed=3, start=0, stop=3))
    whole = [executor[rows] for rows in plan]
    with executor.batches(plan, workers=2) as batches:
        for made, expected in zip(batches, whole, strict=True):
            assert torch.equal(made.y1, expected.y1) and torch.equal(made.y2, expected.y2)
            assert made.unreadable == expected.unreadable
    reader = TwinReader(source, transform)
    bad = {}
    for rows, made in zip(plan, whole, strict=True):
        assert made.unreadable == reader[rows].unreadable
        bad |= made.unreadable
    assert [source.key(index) for index in bad] == [f"broken.{suffix}"]


# The decoder ----------------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photo(50, 40), exif=exif)


@pytest.mark.parametrize(
    "data",
    [
        encoded(photo(500, 375), quality=85),
        encoded(photo(33, 17), quality=95, subsampling=0),
        encoded(photo(33, 17), quality=50, subsampling=1, progressive=True),
        encoded(photo(64, 48).convert("L")),
        encoded(photo(64, 48).convert("CMYK")),
        *(turned(orientation) for orientation in (1, 3, 6, 8)),
    ],
    ids=["photo", "4:4:4", "4:2:2, progressive", "grey", "CMYK", "upright", "180", "90", "270"],
)
def test_pixels_are_those_of_pillow(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    pixels, expected = read_pixels(path), read_image(path)
    assert isinstance(pixels, np.ndarray)
    np.testing.assert_array_equal(pixels, np.asarray(expected))


def test_damage_is_told_as_ever(tmp_path: Path) -> None:
    data, path = encoded(photo(200, 150)), tmp_path / "a.jpg"
    for part in (data[:0], data[:2], data[:100], data[: len(data) // 2], data[:-2], b"text", data[:300] + bytes(50)):
        path.write_bytes(part)
        pixels, expected = read_pixels(path), read_image(path)
        if isinstance(expected, Unreadable):
            assert pixels == expected
        else:
            np.testing.assert_array_equal(pixels, np.asarray(expected))  # type: ignore[arg-type]
    assert read_pixels(tmp_path / "absent.jpg") == read_image(tmp_path / "absent.jpg")
    assert read_pixels(tmp_path) == read_image(tmp_path)
    with pytest.raises(DataError, match=r"cannot read .*absent\.jpg"):
        TwinTransform(RECIPE, "fast", seed=0)(tmp_path / "absent.jpg", epoch=0, index=0)


def test_random_damage_is_an_image_or_told_as_ever(tmp_path: Path) -> None:
    """What simplejpeg takes, Pillow takes too, with the same pixels; all else goes to Pillow."""
    data, path = bytearray(encoded(photo(120, 90), quality=80)), tmp_path / "a.jpg"
    rng = np.random.default_rng(0)
    for _ in range(300):
        hurt = bytearray(data)
        for place in rng.integers(2, len(data), rng.integers(1, 4)):
            hurt[place] = rng.integers(256)
        path.write_bytes(hurt)
        pixels, expected = read_pixels(path), read_image(path)
        if isinstance(expected, Unreadable):
            assert pixels == expected
        else:
            np.testing.assert_array_equal(pixels, np.asarray(expected))  # type: ignore[arg-type]


# A run ----------------------------------------------------------------------------------------------------------------


def test_a_run_with_it_resumes_to_the_bit(tmp_path: Path) -> None:
    data = write_images(tmp_path / "images", 12)
    whole, parts = (
        tiny(tmp_path / name, data=str(data), augment_backend="fast", batch_size=4, epochs=2)
        for name in ("whole", "parts")
    )
    pretrain(whole)
    pretrain(dataclasses.replace(parts, max_steps=2))
    pretrain(parts)
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "parts")


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cv2", "simplejpeg"):
        augment_opencv.require_opencv.cache_clear()
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(MissingExtraError, match=r"barlowtwins\[fast\]"):
                TwinTransform(RECIPE, "fast")
            with pytest.raises(MissingExtraError, match=r"barlowtwins\[fast\]"):
                Executor(open_source("shapes:4"), TwinTransform(RECIPE), torch.device("cpu"), "fast")
