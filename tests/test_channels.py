"""Images of any number of channels and depth: what is read from real files, how it is scaled, and a run on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training import equal

from barlowtwins import load_backbone
from barlowtwins.config import PretrainConfig
from barlowtwins.core.errors import ConfigError, DataError
from barlowtwins.data.channels import ChannelSource, open_channels, scale_to_levels
from barlowtwins.data.images import Unreadable, read_array
from barlowtwins.data.open import open_source, subset
from barlowtwins.data.preprocess import Preprocessing, as_image
from barlowtwins.data.sources import ArraySource
from barlowtwins.embedding.embedder import Embedder, extract
from barlowtwins.pretraining import pretrain
from barlowtwins.views.executors import Executor
from barlowtwins.views.transform import TwinTransform
from barlowtwins.views.twins import Rows

CPU = torch.device("cpu")


def values(shape: tuple[int, ...], top: int = 65536, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, shape, dtype=np.uint16)


# Files ----------------------------------------------------------------------------------------------------------------


def test_arrays_are_read_as_they_are(tmp_path: Path) -> None:
    for shape in ((6, 7, 5), (6, 7)):
        np.save(tmp_path / "image.npy", values(shape))
        read = read_array(tmp_path / "image.npy")
        assert not isinstance(read, Unreadable)
        assert np.array_equal(read, values(shape).reshape(6, 7, -1))
        assert read.dtype == np.uint16


def test_each_page_of_a_tiff_is_a_channel_with_all_its_bits(tmp_path: Path) -> None:
    bands = values((6, 7, 4))
    pages = [Image.fromarray(bands[..., c]) for c in range(4)]
    pages[0].save(tmp_path / "bands.tif", save_all=True, append_images=pages[1:])
    read = read_array(tmp_path / "bands.tif")
    assert not isinstance(read, Unreadable)
    assert np.array_equal(read, bands)
    pages[1] = pages[1].resize((3, 3))
    pages[0].save(tmp_path / "bands.tif", save_all=True, append_images=pages[1:])
    assert read_array(tmp_path / "bands.tif") == Unreadable(
        str(tmp_path / "bands.tif"), "its pages differ in size or depth"
    )


def test_sixteen_bits_of_grey_stay_sixteen_and_colours_are_three_channels(tmp_path: Path) -> None:
    grey = values((5, 6))
    Image.fromarray(grey).save(tmp_path / "scan.png")
    read = read_array(tmp_path / "scan.png")
    assert not isinstance(read, Unreadable)
    assert np.array_equal(read[..., 0], grey)
    rgb = values((5, 6, 3), 256).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "photo.png")
    read = read_array(tmp_path / "photo.png")
    assert not isinstance(read, Unreadable)
    assert np.array_equal(read, rgb)


def test_what_is_no_image_and_no_array_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "sentinel",))  # type: ignore[return-value]

    np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("text")
    (tmp_path / "text.tif").write_text("text")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "flat.npy", np.zeros(3))
    np.save(tmp_path / "complex.npy", np.zeros((3, 3), complex))
    Image.fromarray(values((40, 50))).save(tmp_path / "large.png")
    whole = (tmp_path / "large.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").symlink_to("nowhere")
    monkeypatch.setattr("barlowtwins.data.images.MAX_PIXELS", 1000)
    for path in sorted(tmp_path.iterdir()):
        assert isinstance(read_array(path), Unreadable), path
    assert not (tmp_path / "sentinel").exists()


# Sources --------------------------------------------------------------------------------------------------------------


def folder(place: Path, count: int = 6, channels: int = 4, *, top: int = 4096, classes: int = 2) -> str:
    for row in range(count):
        where = place / f"class{row % classes}"
        where.mkdir(parents=True, exist_ok=True)
        np.save(where / f"{row:03}.npy", values((10, 12, channels), top, row))
    return f"channels:{place}"


def test_a_folder_has_classes_keys_and_a_fingerprint_as_ever(tmp_path: Path) -> None:
    data = folder(tmp_path / "bands")
    (tmp_path / "bands" / ".hidden.npy").write_text("no")
    source = open_source(data.replace("channels:", "channels:0-4095:"))
    assert isinstance(source, ChannelSource)
    assert (len(source), source.channels, source.size) == (6, 4, (10, 12))
    assert source.classes == ("class0", "class1")
    assert source.key(3) == "class1/001.npy"
    assert source.path(3) == tmp_path / "bands" / "class1" / "001.npy"
    image = source.read(3)
    assert isinstance(image, np.ndarray)
    assert np.array_equal(image, np.rint(values((10, 12, 4), 4096, 1) / 4095 * 255))
    assert source.fingerprint() == open_source(data.replace("channels:", "channels:0-4095:")).fingerprint()
    assert source.fingerprint() != open_source(data.replace("channels:", "channels:0-4000:")).fingerprint()
    assert subset(source, [3]).array() is not None


def test_one_array_of_many_images(tmp_path: Path) -> None:
    np.save(tmp_path / "many.npy", values((5, 8, 9, 7), 256).astype(np.uint8))
    source = open_source(str(tmp_path / "many.npy"))
    assert (len(source), source.channels, source.size, source.key(2)) == (5, 7, (8, 9), "many.npy/000002")
    assert source.path(2) is None
    assert np.array_equal(np.asarray(source.read(2)), values((5, 8, 9, 7), 256)[2])  # 8 bits are left alone
    np.save(tmp_path / "grey.npy", values((5, 8, 9), 256).astype(np.uint8))
    grey = open_source(str(tmp_path / "grey.npy"))
    image = grey.read(0)
    assert isinstance(image, Image.Image)
    assert (image.mode, grey.channels) == ("L", 1)


def test_values_are_scaled_by_the_stated_range_or_by_percentiles_of_each_channel(
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = np.stack([values((4, 30, 30), 4096), 10 * values((4, 30, 30), 100, 1)], -1).astype(np.float32)
    levels = scale_to_levels(images, (0, 4095))
    assert np.array_equal(levels[..., 0], np.rint(images[..., 0] / 4095 * 255))
    assert capsys.readouterr().err == ""
    low, high = np.percentile(images.reshape(-1, 2), [0.1, 99.9], axis=0)
    wanted = np.rint(((images - low) / (high - low)).clip(0, 1) * 255)
    assert np.abs(scale_to_levels(images, name="scans").astype(int) - wanted).max() <= 1
    assert "scans: values " in capsys.readouterr().err
    odd = np.array([np.nan, -np.inf, np.inf, 1.0, 3.0, 5.0]).reshape(1, 2, 3, 1)
    assert scale_to_levels(odd, (1, 5)).ravel().tolist() == [0, 0, 255, 0, 128, 255]
    assert scale_to_levels(np.full((1, 2, 2, 1), 7.0)).max() == 0  # constant
    assert scale_to_levels(np.full((1, 2, 2, 1), np.nan)).max() == 0


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images and no arrays in"):
        open_channels(f"channels:{tmp_path / 'empty'}")
    with pytest.raises(DataError, match=r"cannot read .*nowhere: No such file"):
        open_channels(f"channels:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match="states values from 9 to 3; put the lower one first"):
        open_channels(f"channels:9-3:{tmp_path / 'empty'}")
    data = folder(tmp_path / "bands")
    np.save(tmp_path / "bands" / "class0" / "zzz.npy", values((10, 12, 5)))
    with pytest.raises(DataError, match=r"zzz\.npy is 10 x 12 x 5 of uint16, .*000\.npy is 10 x 12 x 4 of uint16"):
        open_channels(data)
    (tmp_path / "bands" / "class0" / "zzz.npy").write_text("")
    with pytest.raises(DataError, match=r"cannot read .*zzz\.npy: .*; remove it, or mend it"):
        open_channels(data)


# Views, evaluation and a run ------------------------------------------------------------------------------------------


def test_views_of_equal_channels_are_those_of_one_of_them() -> None:
    grey = values((6, 20, 20), 256).astype(np.uint8)
    many = ChannelSource("many", np.repeat(grey[..., None], 5, axis=3), [str(i) for i in range(6)])
    rows = Rows(0, 2, (4, 1, 3))
    one = Executor(ArraySource("grey", grey), TwinTransform("grey", size=16, seed=3), CPU, "batched")[rows]
    five = Executor(many, TwinTransform("grey", size=16, channels=5, seed=3), CPU)[rows]
    for a, b in ((one.y1, five.y1), (one.y2, five.y2)):
        assert b.shape == (3, 5, 16, 16)
        assert equal(b.contiguous(), a.expand(-1, 5, -1, -1).contiguous())


def test_channels_are_treated_alike_by_colour_recipes_too() -> None:
    images = values((4, 20, 20, 6), 256).astype(np.uint8)
    source = ChannelSource("bands", images, list("abcd"))
    views = Executor(source, TwinTransform("imagenet", size=16, channels=6, seed=0), CPU)[Rows(0, 0, (0, 1, 2, 3))]
    turned = ChannelSource("bands", np.ascontiguousarray(images[..., ::-1]), list("abcd"))
    mirror = Executor(turned, TwinTransform("imagenet", size=16, channels=6, seed=0), CPU)[Rows(0, 0, (0, 1, 2, 3))]
    torch.testing.assert_close(views.y1, mirror.y1.flip(1))
    assert bool(views.y2.isfinite().all())


@pytest.mark.parametrize(("resize", "size"), [(None, 12), (None, 20), (16, 14)])
def test_evaluation_is_that_of_pictures_channel_by_channel(resize: int | None, size: int) -> None:
    image = values((20, 24, 5), 256).astype(np.uint8)
    mean, std = (0.1, 0.2, 0.3, 0.4, 0.5), (0.5, 0.4, 0.3, 0.2, 0.1)
    found = Preprocessing(size, resize, 5, mean, std)(image)
    assert found.shape == (5, size, size)
    for c in range(5):
        wanted = Preprocessing(size, resize, 1, (mean[c],), (std[c],))(np.ascontiguousarray(image[..., c]))[0]
        assert (found[c] - wanted).abs().max().item() * std[c] * 255 <= 1.51  # Pillow rounds twice


def test_pictures_and_other_backends_are_refused_clearly() -> None:
    source = ChannelSource("bands", np.zeros((4, 8, 8, 5), np.uint8), list("abcd"))
    transform = TwinTransform("grey", size=8, channels=5)
    with pytest.raises(ConfigError, match="bands has 5 channels, the network 5: others than grey and RGB are trained"):
        Executor(source, transform, CPU, "pillow")
    with pytest.raises(ConfigError, match="bands has 5 channels, the network 3"):
        Executor(source, TwinTransform("grey", size=8, channels=3), CPU)
    with pytest.raises(ConfigError, match="5 channels are no picture of Pillow's"):
        transform(source.read(0))
    with pytest.raises(ConfigError, match="5 channels are no picture of Pillow's"):
        as_image(Image.new("L", (4, 4)), 5)
    with pytest.raises(DataError, match="the network wants 5 channels, and no picture has so many"):
        Preprocessing(8, None, 5, (0.5,) * 5, (0.5,) * 5)(Image.new("RGB", (8, 8)))


@pytest.mark.parametrize(
    ("channels", "recipe"), [(1, "medical-grey"), pytest.param(5, "multispectral", marks=pytest.mark.slow)]
)
def test_a_run_from_files_to_features(tmp_path: Path, channels: int, recipe: str) -> None:
    data = folder(tmp_path / "bands", 24, channels).replace("channels:", "channels:0-4095:")
    config = PretrainConfig(
        data,
        str(tmp_path / "run"),
        recipe,
        backbone="resnet10_x0_5",
        stem="small-stride2",
        projector="8-8",
        image_size=10,
        batch_size=8,
        epochs=1,
        workers=0,
        device="cpu",
        optimizer="adamw",
    )
    result = pretrain(config)
    assert result.settings.channels == channels
    assert result.settings.augmentation == "grey"
    assert result.knn is not None
    backbone = load_backbone(str(tmp_path / "run"))
    assert backbone.conv1.in_channels == channels
    preprocessing = Preprocessing(10, None, channels, (0.5,) * channels, (0.5,) * channels)
    rows, good = extract(open_source(data), Embedder(backbone, preprocessing, device="cpu"), workers=0)
    assert rows.shape == (24, 256)
    assert good.all()
