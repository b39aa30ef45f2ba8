"""A backbone with the preprocessing that it expects: maps images to one row of features each."""

# N images, n of them in a batch, C channels, S side in pixels, D features

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from barlowtwins.core.device import autocast, default_workers, memory_layout, resolve_device, resolve_precision
from barlowtwins.core.errors import DataError, TrainingError
from barlowtwins.core.progress import Progress
from barlowtwins.data.batches import Batch, Readable, open_batches, ranges
from barlowtwins.data.images import Unreadable, read_image
from barlowtwins.data.open import open_source
from barlowtwins.data.preprocess import ImageLike, Preprocessing, as_image
from barlowtwins.data.remote import UrlSource
from barlowtwins.data.sources import FileSource, ItemSource, Source
from barlowtwins.data.tars import TarSource
from barlowtwins.embedding.runtime import Runtime, choose_runtime, require_runtime
from barlowtwins.zoo.weights import load_weights

__all__ = ["Embedder", "FeatureArray", "Images", "extract", "load_embedder", "unit_length"]

FeatureArray: TypeAlias = npt.NDArray[np.float32]
Images: TypeAlias = "Source | ImageLike | Sequence[ImageLike | bytes] | torch.Tensor"
Progressing: TypeAlias = "bool | Callable[[int, int], object] | None"

MANY = 512  # images from which worker processes are worth the seconds that they take to start
SMALL_WEIGHTS, FAR_LARGER = 64, 8  # sides in pixels of weights for small images; times as large, from where it is said

logger = logging.getLogger(__name__)


class Embedder:
    """Embed images with a backbone.

        embedder = torch.hub.load(REPO, "embedder")
        features = embedder.encode("photos/")           # (N, 2048) float32, in the order of the sorted paths

    The backbone is moved to the device; its weights, their layout and its training mode are unchanged, so a network can
    be used in the middle of its training.

    Args:
        backbone: (n, C, S, S) float32 -> (n, D), such as a ResNet whose `fc` is the identity.
        preprocessing: what the backbone was trained to expect.
        device: "auto" or None, "cpu", "cuda", "cuda:1", "mps".
        precision: "auto", "fp32" or "bf16".
        name, sha256: of the weights, for the record.
        weights: where they are from, as `load_weights` takes it, for classifiers that are trained on the features.
        runtime: what runs the network: "torch", or what made the program: "onnx" or "compiled".
        program: runs in place of the backbone: what `onnx_program` or `compiled_program` makes of it.

    Attributes:
        failed: the images of the last `encode` that could not be read, by row.
    """

    def __init__(  # noqa: PLR0913 - a public signature, whose keywords are a promise
        self,
        backbone: nn.Module,
        preprocessing: Preprocessing,
        *,
        device: str | torch.device | None = None,
        precision: str = "auto",
        name: str = "",
        sha256: str = "",
        weights: str = "",
        runtime: Runtime = "torch",
        program: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        self.backbone = backbone.to(self.device)
        self.preprocessing = preprocessing
        self.name, self.sha256, self.weights = name, sha256, weights
        self.runtime = runtime
        self.failed: dict[int, Unreadable] = {}
        self._network = program or self.backbone

    def __repr__(self) -> str:
        return f"Embedder({self.name or type(self.backbone).__name__}, dim={self.dim}, device={self.device})"

    @functools.cached_property
    def dim(self) -> int:
        """D: how many features the backbone gives an image (asked of it with a blank one)."""
        side = self.preprocessing.image_size
        return self.forward(torch.zeros(1, self.preprocessing.channels, side, side)).shape[1]

    def encode(
        self,
        images: Images,
        *,
        batch_size: int = 64,
        normalize: bool = False,
        progress: Progressing = None,
        workers: int | None = None,
    ) -> FeatureArray:
        """Embed images; row i belongs to image i.

        Args:
            images: a folder, a list file or a data-set name (its test split), as `barlowtwins embed` takes them; one
                image or a sequence of them: paths, PIL images, (H, W) or (H, W, C) uint8 arrays; one uint8 array
                (N, H, W) or (N, H, W, C); a source from `open_source`; or a float tensor (N, C, S, S), preprocessed
                already.
            batch_size: images per forward pass; the result does not depend on it, up to float rounding.
            normalize: scale each row to unit length.
            progress: True shows a bar on standard error; or a function that is called with (done, total).
            workers: processes that read images. By default none for few images, for images in memory, and where
                processes are spawned (macOS, Windows), since an unguarded script would then start over in each.

        Returns:
            (N, D) float32. The row of an image that cannot be read is NaN; their number is logged as a warning, and
            `failed` names them.

        Raises:
            DataError: the data is missing, or something in it is not an image.
            TrainingError: the device is out of memory.
        """
        if isinstance(images, torch.Tensor) and images.is_floating_point():
            self._check(images)
            plan = ranges(0, len(images), batch_size)
            batches = (Batch(rows.start, images[rows.start : rows.stop], {}) for rows in plan)
            features, self.failed = _collect(self, batches, len(images), progress)
        else:
            features, self.failed = _read_and_collect(_as_source(images), self, batch_size, workers, progress)
        if self.failed:
            first = next(iter(self.failed.values()))
            count = f"{len(self.failed)} of {len(features)} images could not be read; their rows are NaN"
            logger.warning("%s (the first: %s: %s)", count, first.path, first.why)
        return unit_length(features) if normalize else features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """One batch through the backbone, without a graph.

        Args:
            images: (n, C, S, S) float32, or as `Preprocessing.prepare` makes them, (n, S, S, C) uint8.

        Returns:
            (n, D) float32, on the CPU.

        Raises:
            TrainingError: the device is out of memory.
        """
        layout = torch.contiguous_format if self.runtime == "onnx" else memory_layout(self.device)
        try:
            with torch.inference_mode(), _evaluating(self.backbone), autocast(self.device, self.precision):
                images = self.preprocessing.finish(images.to(self.device, non_blocking=True), layout).to(self._dtype())
                return self._network(images.contiguous(memory_format=layout)).flatten(1).float().cpu()  # (n, D)
        except torch.OutOfMemoryError as error:
            half = max(1, len(images) // 2)
            raise TrainingError(
                f"out of memory on {self.device} with {len(images)} images; try --batch-size {half}"
            ) from error

    def _dtype(self) -> torch.dtype:
        """Of the input: that of the weights, which a caller may have changed; a program's is float32."""
        if self._network is not self.backbone:
            return torch.float32
        kinds = (parameter.dtype for parameter in self.backbone.parameters() if parameter.is_floating_point())
        return next(kinds, torch.float32)

    def embed(self, batch: Batch) -> tuple[FeatureArray, dict[int, Unreadable]]:
        """Features (n, D) of a batch, and by row what has none; those rows are NaN."""
        features = self.forward(batch.images).numpy().copy()
        failed = dict(batch.failed)
        for place in np.flatnonzero(~np.isfinite(features).all(axis=1)).tolist():
            row = batch.start + place
            failed.setdefault(row, Unreadable(f"row {row}", "its features are not finite"))
        features[[row - batch.start for row in failed]] = np.nan
        return features, failed

    def _check(self, images: torch.Tensor) -> None:
        channels = self.preprocessing.channels
        if images.ndim != 4 or images.shape[1] != channels:
            raise DataError(
                f"a preprocessed tensor of shape {tuple(images.shape)} was given; it must be (N, {channels}, S, S), "
                "as `preprocessing` makes it (or give uint8 images)"
            )


def load_embedder(
    weights: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    precision: str = "auto",
    image_size: int | None = None,
    progress: bool = True,
    runtime: str = "torch",
    images: int | None = None,
) -> Embedder:
    """Load a backbone and the preprocessing that it was trained with.

    Args:
        weights: a registry name, a local weight file, an https URL, or a RUN folder.
        device, precision: as for `Embedder`.
        image_size: side of the square input in pixels; the weights' own by default.
        progress: show a bar while downloading.
        runtime: what runs the network: "torch"; "onnx", ONNX Runtime on a CPU; "compiled", torch.compile; or "auto",
            which takes one of these two where it can and where it pays, and says so if its features are not those of
            torch.
        images: how many are to be embedded, for "auto": from 512 on a CPU, or a million on a GPU, preparing pays.

    Raises:
        WeightsError: the weights cannot be loaded; or another runtime gives other features than torch.
        ConfigError: there is no such runtime, or none on this device or in this precision.
        MissingExtraError: ONNX Runtime is asked for and not installed.
    """
    require_runtime(runtime)
    loaded = load_weights(weights, progress=progress)
    preprocessing = loaded.preprocessing
    if image_size is not None:
        resize = preprocessing.resize and round(preprocessing.resize * image_size / preprocessing.image_size)
        preprocessing = dataclasses.replace(preprocessing, image_size=image_size, resize=resize)
    backbone, place = loaded.build(), resolve_device(device)
    precision = resolve_precision(precision, place)
    chosen, program = choose_runtime(runtime, backbone, preprocessing, loaded.sha256, place, precision, images)
    return Embedder(
        backbone,
        preprocessing,
        device=place,
        precision=precision,
        name=loaded.name,
        sha256=loaded.sha256,
        weights=str(weights),
        runtime=chosen,
        program=program,
    )


def extract(
    source: Readable,
    embedder: Embedder,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    progress: Progressing = None,
) -> tuple[FeatureArray, npt.NDArray[np.bool_]]:
    """Embed a whole source into memory.

    Args:
        source: N images, as `barlowtwins.data.open.open_source` gives them.
        embedder, batch_size, workers, progress: as for `Embedder.encode`.

    Returns:
        Features (N, D) float32, and which rows are good, (N,) bool; the others are NaN.

    Raises:
        DataError: a process that reads images died or hangs.
        TrainingError: the device is out of memory.
    """
    features, failed = _read_and_collect(source, embedder, batch_size, workers, progress)
    good = np.ones(len(features), dtype=np.bool_)
    good[list(failed)] = False
    return features, good


def unit_length(features: FeatureArray) -> FeatureArray:
    """Scale each row (N, D) to length 1; rows of zeros and of NaN stay as they are."""
    length = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return (features / np.where(length > 0, length, 1)).astype(np.float32)


def _read_and_collect(
    source: Readable,
    embedder: Embedder,
    batch_size: int,
    workers: int | None,
    progress: Progressing,
) -> tuple[FeatureArray, dict[int, Unreadable]]:
    plan = ranges(0, len(source), batch_size)
    if workers is None:
        workers = _worth_workers(source)
    _warn_of_size(source, embedder)
    pin = embedder.device.type == "cuda"
    with open_batches(source, embedder.preprocessing, plan, workers=workers, pin_memory=pin) as batches:
        return _collect(embedder, batches, len(source), progress)


def _warn_of_size(source: Readable, embedder: Embedder) -> None:
    """Say if the weights are for small images, and the first of these, a file, is many times as large."""
    side, channels = embedder.preprocessing.image_size, embedder.preprocessing.channels
    if side > SMALL_WEIGHTS or not isinstance(source, Source) or not len(source):
        return
    first = source.read(0)
    if isinstance(first, Image.Image) and min(first.size) >= FAR_LARGER * side:
        kind = "grey " if channels == 1 else ""
        logger.warning(
            "%s is %d x %d pixels, the weights are for %simages of %d: little of it is left after resizing; "
            "weights for larger images would see more",
            *(source.key(0), *first.size, kind, side),
        )


def _collect(
    embedder: Embedder, batches: Iterable[Batch], total: int, progress: Progressing
) -> tuple[FeatureArray, dict[int, Unreadable]]:
    """Run the batches, which cover rows 0..total, through the network."""
    features = np.empty((total, embedder.dim), dtype=np.float32)
    failed: dict[int, Unreadable] = {}
    with Progress(total, desc="embed", enabled=progress is True) as bar:
        for batch in batches:
            rows, bad = embedder.embed(batch)
            features[batch.start : batch.start + len(rows)] = rows
            failed |= bad
            bar.update(len(rows), **({"failed": len(failed)} if failed else {}))
            if callable(progress):
                progress(bar.done, total)
    return features, failed


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every part is in the mode in which it was, frozen layers included."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


class _Held(ItemSource):
    """Images that the caller holds, or paths, in any mixture; each is checked when it is read."""

    def read(self, index: int) -> Image.Image | Unreadable:
        item = self.items[index]
        return read_image(item) if isinstance(item, (bytes, str, os.PathLike, Image.Image)) else as_image(item)


def _as_source(images: Images) -> Source:
    """Whatever a user calls images, preprocessed tensors apart, as a source."""
    if isinstance(images, torch.Tensor):
        images = images.numpy(force=True)
        if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3, 4):
            images = images.transpose(0, 2, 3, 1)  # tensors have channels first, arrays last
    if isinstance(images, Image.Image):
        return _Held("images", [images])
    if isinstance(images, np.ndarray) and (images.ndim == 2 or images.shape[2:] in ((1,), (3,), (4,))):
        return _Held("images", [images])
    if isinstance(images, (str, os.PathLike, Source, np.ndarray)):
        return open_source(images, split="test")
    if not isinstance(images, Iterable):
        raise DataError(f"{type(images).__name__} is not a supported input; give a folder, paths, images, or a tensor")
    items = list(images)
    all_paths = bool(items) and all(isinstance(item, (str, os.PathLike)) for item in items)
    return open_source(items) if all_paths else _Held("images", items)


def _worth_workers(source: Readable) -> int:
    """Readers pay where there are many files to decode and starting a process does not run the caller's script."""
    has_files = isinstance(source, (FileSource, TarSource, UrlSource)) and len(source) >= MANY
    may_fork = multiprocessing.get_start_method() == "fork" and not multiprocessing.current_process().daemon
    return default_workers() if has_files and may_fork else 0
