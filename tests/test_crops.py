"""Crops for supervised training against torchvision's own operations."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, functional

from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.evaluate.crops import CropFlip, LabeledReader
from barlowtwins.evaluate.labeled import open_labeled
from barlowtwins.views.augmentation import Augmentation, draw_view, rng_for
from barlowtwins.views.twins import Rows

GREY = Preprocessing(20, None, 1, (0.3,), (0.2,), "bicubic")


def picture(width: int = 61, height: int = 47) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("how", [Preprocessing(32), GREY])
@pytest.mark.parametrize("index", range(6))
def test_a_view_is_what_torchvision_makes_of_the_same_box(how: Preprocessing, index: int) -> None:
    """As published: RandomResizedCrop (scale 0.08-1, ratio 3/4-4/3), flip, ToTensor, Normalize; to the bit."""
    image = picture().convert("L") if how.channels == 1 else picture()
    view = CropFlip(how, seed=3)(image, epoch=2, index=index)
    box = draw_view(Augmentation("published"), 0, image.width, image.height, rng_for(3, 2, index))
    mode = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}[how.interpolation]
    size = [how.image_size, how.image_size]
    expected = functional.resized_crop(image, box.top, box.left, box.height, box.width, size, mode)
    expected = functional.hflip(expected) if box.flip else expected
    expected = functional.normalize(functional.to_tensor(expected), how.mean, how.std)
    assert torch.equal(view, expected)


def test_views_are_functions_of_seed_epoch_and_index() -> None:
    crop, image = CropFlip(Preprocessing(32), seed=1), picture()
    first = crop(image, epoch=0, index=0)
    assert torch.equal(first, crop(image, epoch=0, index=0))
    others = [crop(image, epoch=1, index=0), crop(image, epoch=0, index=1), CropFlip(crop.preprocessing, seed=2)]
    assert not any(
        torch.equal(first, other if isinstance(other, torch.Tensor) else other(image, epoch=0, index=0))
        for other in others
    )


def test_the_scale_bounds_the_crops() -> None:
    whole = CropFlip(Preprocessing(16, None), scale=(1.0, 1.0))
    image = Image.new("RGB", (40, 40))
    image.paste((255, 255, 255), (0, 0, 40, 20))  # white above, black below
    views = torch.stack([whole(image, epoch=0, index=index) for index in range(20)])
    assert (views[:, :, 0].mean() - views[:, :, -1].mean()) > 3  # every one shows both


def test_the_reader_pairs_images_with_their_labels(tmp_path: Path) -> None:
    train = open_labeled(str(tiny.write_images(tmp_path, 8, classes=2)), split="train")
    reader = pickle.loads(pickle.dumps(LabeledReader(train, CropFlip(tiny.TINY, seed=4))))
    batch = reader[Rows(0, 0, (5, 0, 7))]
    assert batch.labels.tolist() == train.labels[[5, 0, 7]].tolist()
    assert batch.images.shape == (3, 3, 8, 8) and not batch.exhausted
    assert torch.equal(batch.images[1], CropFlip(tiny.TINY, seed=4)(train.source.path(0), epoch=0, index=0))


def test_another_image_stands_in_for_an_unreadable_one_with_its_own_label(tmp_path: Path) -> None:
    tiny.write_images(tmp_path, 8, classes=2)
    train = open_labeled(str(tmp_path), split="train")
    colours = [30 * index for index in range(8)]  # so that an image says which one it is
    for index, level in enumerate(colours):
        Image.new("RGB", (8, 8), (level, 0, 0)).save(train.source.path(index))
    for bad in (2, 3):
        train.source.path(bad).write_bytes(b"")
    reader = LabeledReader(train, CropFlip(Preprocessing(8, None, mean=(0.0,) * 3, std=(1.0,) * 3)))
    for epoch in range(6):
        batch = reader[Rows(0, epoch, (2, 5, 3))]
        assert {2, 3} <= set(batch.unreadable) and not batch.exhausted
        shown = [colours.index(round(255 * image[0].mean().item())) for image in batch.images]
        assert shown[1] == 5 and not {2, 3} & set(shown)
        assert batch.labels.tolist() == [int(train.labels[index]) for index in shown]
    for index in range(8):
        train.source.path(index).write_bytes(b"")
    assert reader[Rows(0, 0, (1,))].exhausted
