"""The embedder against the plain forward pass of torchvision, for everything that a user calls images."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from barlowtwins.core.errors import ConfigError, DataError, TrainingError
from barlowtwins.data.open import open_source
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.embedding.embedder import Embedder, extract, unit_length
from barlowtwins.models.resnet import build_backbone

COUNT = 9


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """An untrained backbone whose batch norm has seen something, so that evaluation and training mode differ."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_backbone("resnet10_x0_5", stem="small", zero_init_residual=False)
        network.train()
        network(torch.randn(16, 3, 16, 16))
    return network.eval()


@pytest.fixture(scope="module")
def embedder(network: nn.Module) -> Embedder:
    return Embedder(network, Preprocessing(image_size=16, resize=None), device="cpu", name="tiny", sha256="ab" * 32)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(COUNT)]


@pytest.fixture(scope="module")
def folder(images: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, image in enumerate(images):
        image.save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def expected(network: nn.Module, images: list[Image.Image]) -> np.ndarray:
    """(9, D): one image at a time, without any of the machinery."""
    preprocessing = Preprocessing(image_size=16, resize=None)
    with torch.no_grad():
        return np.stack([network(preprocessing(image)[None])[0].numpy() for image in images])


def close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


KINDS = {
    "folder": lambda folder, images: folder,
    "folder as str": lambda folder, images: str(folder),
    "source": lambda folder, images: open_source(folder),
    "paths": lambda folder, images: sorted(folder.iterdir()),
    "paths as str": lambda folder, images: [str(path) for path in sorted(folder.iterdir())],
    "PIL images": lambda folder, images: images,
    "tuple": lambda folder, images: tuple(images),
    "arrays": lambda folder, images: [np.asarray(image) for image in images],
    "one array": lambda folder, images: np.stack([np.asarray(image) for image in images]),
    "uint8 tensor": lambda folder, images: torch.stack([torch.tensor(np.asarray(i)) for i in images]).movedim(3, 1),
    "mixed": lambda folder, images: [folder / "00.png", *images[1:8], np.asarray(images[8])],
    "preprocessed": lambda folder, images: torch.stack([Preprocessing(16, None)(image) for image in images]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_images(kind: str, embedder: Embedder, folder: Path, images: list, expected: np.ndarray) -> None:
    close(embedder.encode(KINDS[kind](folder, images), batch_size=4), expected)
    assert embedder.failed == {}


ONE = {
    "path": lambda folder, images: folder / "02.png",
    "PIL image": lambda folder, images: images[2],
    "array": lambda folder, images: np.asarray(images[2]),
}


@pytest.mark.parametrize("kind", ONE)
def test_one_image_is_one_row(kind: str, embedder: Embedder, folder: Path, images: list, expected: np.ndarray) -> None:
    close(embedder.encode(ONE[kind](folder, images)), expected[2:3])


def test_a_list_file_keeps_its_order(embedder: Embedder, folder: Path, expected: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(f"{folder}/{number:02}.png\n" for number in (5, 1, 5)))
    close(embedder.encode(tmp_path / "list.txt"), expected[[5, 1, 5]])


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (2, 1), (7, 2), (100, 0)])
def test_batch_size_and_workers_change_nothing(
    batch_size: int, workers: int, embedder: Embedder, folder: Path, expected: np.ndarray
) -> None:
    close(embedder.encode(folder, batch_size=batch_size, workers=workers), expected)


def test_an_unreadable_image_is_a_row_of_nan_and_a_warning(
    embedder: Embedder, folder: Path, expected: np.ndarray, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    paths = [folder / "00.png", tmp_path / "empty.png", folder / "01.png", tmp_path / "absent.png"]
    with caplog.at_level(logging.WARNING, "barlowtwins"):
        features = embedder.encode(paths, batch_size=3)
    close(features[[0, 2]], expected[:2])
    assert np.isnan(features[[1, 3]]).all()
    assert sorted(embedder.failed) == [1, 3]
    assert Path(embedder.failed[1].path).name == "empty.png"
    assert "2 of 4 images could not be read" in caplog.text and "empty.png" in caplog.text

    features, good = extract(open_source(paths), embedder, batch_size=3)
    assert good.tolist() == [True, False, True, False]
    assert np.isnan(features[~good]).all() and np.isfinite(features[good]).all()
    embedder.encode(folder)
    assert embedder.failed == {}


def test_features_that_are_not_finite_count_as_failed(embedder: Embedder) -> None:
    images = torch.zeros(3, 3, 16, 16)
    images[1, 0, 0, 0] = torch.inf
    features = embedder.encode(images)
    assert np.isnan(features[1]).all() and np.isfinite(features[[0, 2]]).all()
    assert embedder.failed[1].why == "its features are not finite"
    assert images.isnan().sum() == 0  # the caller's tensor is not written to


def test_normalized_rows_have_unit_length(embedder: Embedder, images: list, expected: np.ndarray) -> None:
    rows = embedder.encode(images, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    close(rows, expected / np.linalg.norm(expected, axis=1, keepdims=True))
    odd = np.array([[0, 0], [np.nan, np.nan], [3e30, 4e30]], dtype=np.float32)
    np.testing.assert_allclose(unit_length(odd), [[0, 0], [np.nan, np.nan], [0.6, 0.8]], rtol=1e-6)


def test_no_images_are_no_rows(embedder: Embedder) -> None:
    assert embedder.encode([]).shape == (0, embedder.dim)
    assert embedder.encode(torch.empty(0, 3, 16, 16)).shape == (0, embedder.dim)


def test_the_backbone_is_given_back_as_it_was(images: list) -> None:
    network = build_backbone("resnet10_x0_5", stem="small")
    network.train()
    network.bn1.eval()  # frozen by its owner
    before = {name: value.clone() for name, value in network.state_dict().items()}
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    Embedder(network, Preprocessing(image_size=16, resize=None), device="cpu").encode(images)
    assert network.training and network.layer1.training and not network.bn1.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(weight.is_contiguous() and weight.requires_grad for weight in network.parameters())
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, grad)


def test_progress_is_told_to_a_function(embedder: Embedder, images: list) -> None:
    calls: list[tuple[int, int]] = []
    embedder.encode(images, batch_size=4, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(4, 9), (8, 9), (9, 9)]


def test_any_module_serves_and_grey_images_too() -> None:
    pixels = Embedder(nn.Flatten(), Preprocessing(4, None, 1, (0.0,), (1.0,)), device="cpu")
    image = np.arange(16, dtype=np.uint8).reshape(4, 4)
    np.testing.assert_allclose(pixels.encode(image), image.reshape(1, 16) / np.float32(255))
    assert pixels.dim == 16


def test_bf16_gives_nearly_the_same_rows_in_float32(network: nn.Module, images: list, expected: np.ndarray) -> None:
    rows = Embedder(network, Preprocessing(16, None), device="cpu", precision="bf16").encode(images)
    assert rows.dtype == np.float32
    assert np.abs(rows - expected).max() < 0.05 * np.abs(expected).max()
    assert np.abs(rows - expected).max() > 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 16, 16), r"shape \(2, 1, 16, 16\) was given; it must be \(N, 3, S, S\)"),
        (torch.zeros(3, 16, 16), r"must be \(N, 3, S, S\)"),
        (np.zeros((2, 5, 16, 16, 3), np.uint8), r"shape \(2, 5, 16, 16, 3\)"),
        ([np.zeros((16, 16, 3), np.float64)], "float64"),
        ([None], "NoneType"),
        (42, "int"),
        ("no/such/folder", "no/such"),
    ],
)
def test_what_is_no_image_is_refused(embedder: Embedder, images: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        embedder.encode(images)


def test_a_device_that_is_not_there_is_refused(network: nn.Module) -> None:
    with pytest.raises(ConfigError, match="cuda:77"):
        Embedder(network, Preprocessing(), device="cuda:77")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_gives_the_same_rows_and_tells_when_its_memory_is_short(
    network: nn.Module, folder: Path, expected: np.ndarray
) -> None:
    for workers in (0, 2):  # with workers the batches lie in page-locked memory
        on_gpu = Embedder(copy.deepcopy(network), Preprocessing(16, None), device="cuda", precision="fp32")
        found = on_gpu.encode(folder, batch_size=4, workers=workers)
        assert np.abs(found - expected).max() < 5e-3 * np.abs(expected).max()  # convolutions may run in TF32
    torch.cuda.set_per_process_memory_fraction(0.001)
    try:
        with pytest.raises(TrainingError, match=r"out of memory on cuda .*try --batch-size"):
            on_gpu.encode(torch.zeros(20_000, 3, 64, 64), batch_size=20_000)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_uint8_tensor_of_two_readings_is_refused(embedder: Embedder) -> None:
    with pytest.raises(DataError, match=r"can be 3 grey images of .* or one image of 3 channels"):
        embedder.encode(torch.zeros(3, 40, 50, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_input_has_the_type_of_the_weights(dtype: torch.dtype, network: nn.Module) -> None:
    embedder = Embedder(copy.deepcopy(network), Preprocessing(16, None), device="cpu")
    images = np.random.default_rng(0).integers(0, 256, (4, 40, 50, 3), np.uint8)
    wanted = embedder.encode(images)
    embedder.backbone.to(dtype)
    found = embedder.encode(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=np.abs(wanted).max() * {torch.float64: 1e-5}.get(dtype, 0.05))


def test_a_default_type_of_float64(network: nn.Module) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        embedder = Embedder(copy.deepcopy(network), Preprocessing(16, None), device="cpu")
        rows = embedder.encode(np.zeros((2, 40, 50, 3), np.uint8))
    finally:
        torch.set_default_dtype(torch.float32)
    assert rows.dtype == np.float32 and np.isfinite(rows).all()


def test_photographs_for_weights_of_small_images_are_said_once(
    embedder: Embedder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2):
        Image.new("RGB", (400, 300)).save(tmp_path / f"{number}.png")
    embedder.encode(tmp_path)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and said[0].startswith("0.png is 400 x 300 pixels, the weights are for images of 16")
    caplog.clear()
    Image.new("RGB", (100, 90)).save(tmp_path / "0.png")
    embedder.encode(tmp_path)
    assert not caplog.records
