"""Oracle: torchvision's own Compose of Resize, CenterCrop, ToTensor and Normalize on PIL images, to the bit."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from barlowtwins.core.errors import ConfigError, DataError
from barlowtwins.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, as_image, preprocess, to_tensor


def draw(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise on a gradient: has fine detail, smooth parts and all levels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    ramp = np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], -1)
    return Image.fromarray(np.clip(ramp + rng.normal(0, 30, ramp.shape), 0, 255).astype(np.uint8))


def published(resize: int, size: int, interpolation: str = "bilinear") -> transforms.Compose:
    return transforms.Compose(
        [
            transforms.Resize(resize, InterpolationMode(interpolation)),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


@pytest.mark.parametrize(
    "width_height", [(500, 375), (375, 500), (333, 1001), (256, 256), (224, 224), (40, 31), (1, 1)]
)
def test_equals_torchvision_to_the_bit(width_height: tuple[int, int]) -> None:
    image = draw(*width_height)
    ours = Preprocessing()(image)
    assert ours.shape == (3, 224, 224) and ours.dtype == torch.float32 and ours.is_contiguous()
    assert torch.equal(ours, published(256, 224)(image))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_batch_that_is_prepared_and_finished_is_that_of_single_images(
    channels: int, layout: torch.memory_format
) -> None:
    transform = Preprocessing(32, 36, channels, (0.4,) * channels, (0.3,) * channels)
    drawn = [draw(50, 40, seed) for seed in range(3)]
    images = drawn if channels != 4 else [np.asarray(image.convert("RGBA")) for image in drawn]
    prepared = transform.blank(3)
    for place, image in enumerate(images):
        prepared[place] = transform.prepare(image)
    finished = transform.finish(prepared, layout)
    assert finished.shape == (3, channels, 32, 32)
    assert channels == 4 or finished.is_contiguous(memory_format=layout)
    assert torch.equal(finished, torch.stack([transform(image) for image in images]))
    assert transform.finish(finished) is finished


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 120),
    st.integers(1, 120),
    st.integers(8, 60),
    st.integers(0, 9),
    st.sampled_from(["bilinear", "bicubic"]),
)
def test_equals_torchvision_for_any_size(width: int, height: int, size: int, margin: int, interpolation: str) -> None:
    if max(width, height) > 16 * min(width, height):
        width = height
    image = draw(width, height)
    ours = Preprocessing(size, size + margin, interpolation=interpolation)(image)
    assert torch.equal(ours, published(size + margin, size, interpolation)(image))


@pytest.mark.parametrize("width_height", [(680, 40), (40, 680), (2000, 30), (30, 2000), (1500, 7), (3, 900)])
def test_slender_images_are_resized_only_where_the_crop_is(width_height: tuple[int, int]) -> None:
    image = draw(*width_height)
    whole = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(56)])(image)
    ours = np.asarray(Preprocessing(56, 64).crop(image), dtype=int)
    assert np.abs(ours - np.asarray(whole, dtype=int)).max() <= 2  # of 255 levels: only the sampling points round


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (112, 128), (96, 110), (32, 37), (299, 342), (1, 1)])
def test_preprocess_keeps_the_ratio_of_256_to_224(size: int, resize: int) -> None:
    assert preprocess(size) == Preprocessing(image_size=size, resize=resize)
    assert preprocess(size)(draw(50, 40)).shape == (3, size, size)


def test_without_resize_the_whole_image_becomes_the_square() -> None:
    image = draw(60, 20)
    expected = transforms.Compose([transforms.Resize((32, 32)), transforms.ToTensor()])(image)
    ours = Preprocessing(32, None, mean=(0.0,) * 3, std=(1.0,) * 3)(image)
    assert torch.equal(ours, expected)


def test_without_resize_an_image_of_that_size_stays_as_it_is() -> None:
    image = draw(28, 28).convert("L")
    ours = Preprocessing(28, None, 1, (0.0,), (1.0,))(image)
    assert torch.equal(ours, torch.from_numpy(np.array(image))[None] / 255)


def test_kinds_of_input_give_the_same_tensor(tmp_path: Path) -> None:
    image = draw(90, 70)
    image.save(tmp_path / "image.png")
    transform = preprocess(56)
    expected = transform(image)
    array = np.asarray(image)
    flipped_twice = np.ascontiguousarray(array[:, ::-1])[:, ::-1]  # negative strides
    for same in (array, flipped_twice, tmp_path / "image.png", str(tmp_path / "image.png")):
        assert torch.equal(transform(same), expected)


def test_grey_input_and_grey_output() -> None:
    image = draw(40, 40)
    grey = image.convert("L")
    one = Preprocessing(32, 36, 1, (0.5,), (0.5,))
    assert one(image).shape == (1, 32, 32)
    for same in (grey, np.asarray(grey), np.asarray(grey)[..., None], grey.convert("RGB")):
        assert torch.equal(one(same), one(image))
    three = preprocess(32)(grey)
    assert torch.equal(three, preprocess(32)(grey.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "RGBA", "LA"])
def test_odd_modes_become_rgb_or_grey(mode: str) -> None:
    image = draw(20, 20).convert(mode)
    assert as_image(image, 3).mode == "RGB" and as_image(image, 1).mode == "L"


def test_rgba_arrays_are_composited_as_rgba_images_are() -> None:
    image = draw(20, 20).convert("RGBA")
    image.putalpha(100)
    assert as_image(np.asarray(image)).tobytes() == as_image(image).tobytes() != image.convert("RGB").tobytes()


def test_to_tensor_is_totensor_and_normalize_at_every_level() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([levels, levels, levels], -1))
    expected = transforms.functional.normalize(transforms.functional.to_tensor(image), IMAGENET_MEAN, IMAGENET_STD)
    assert torch.equal(to_tensor(image, IMAGENET_MEAN, IMAGENET_STD), expected)


def test_the_image_given_is_left_alone() -> None:
    image = draw(224, 224)
    before = image.tobytes()
    Preprocessing(224, None)(image).zero_()
    assert image.tobytes() == before


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), ["(4, 4, 3)", "float32", "uint8"]),
        (np.zeros((3, 8, 8), np.uint8), ["(3, 8, 8)", "transpose"]),
        (np.zeros((2, 8, 8, 3), np.uint8), ["(2, 8, 8, 3)"]),
        (np.zeros((5,), np.uint8), ["(5,)"]),
        (np.zeros((0, 8, 3), np.uint8), ["(0, 8, 3)", "no pixels"]),
        (Image.new("RGB", (0, 5)), ["0 x 5"]),
        (torch.zeros(3, 4, 4), ["Tensor"]),
        (None, ["NoneType"]),
    ],
)
def test_what_is_no_image_is_refused_with_its_numbers(wrong: object, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        Preprocessing()(wrong)  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_path_that_cannot_be_read_says_which_and_why(tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    for path in (text, tmp_path / "missing.png"):
        with pytest.raises(DataError, match=path.name):
            Preprocessing()(path)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"resize": 200}, "resize is 200"),
        ({"channels": 0}, "channels is 0"),
        ({"channels": 1}, "3 means"),
        ({"std": (1.0, 0.0, 1.0)}, "positive"),
        ({"mean": (float("nan"),) * 3}, "finite"),
        ({"interpolation": "cubic"}, "bicubic"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Preprocessing(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("transform", [Preprocessing(), Preprocessing(28, None, 1, (0.5,), (0.25,), "bicubic")])
def test_survives_json_and_pickle(transform: Preprocessing) -> None:
    assert Preprocessing.from_dict(json.loads(json.dumps(transform.to_dict()))) == transform
    assert pickle.loads(pickle.dumps(transform)) == transform


@pytest.mark.parametrize("record", [{"image_sise": 3}, {"mean": 3}, {"mean": ["a", "b", "c"]}, {"image_size": "224"}])
def test_a_damaged_record_is_refused(record: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="preprocessing"):
        Preprocessing.from_dict(record)


def test_an_old_record_takes_the_defaults() -> None:
    assert Preprocessing.from_dict({"image_size": 224}) == Preprocessing()
