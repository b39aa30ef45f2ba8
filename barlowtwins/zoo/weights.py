"""Weights, from any place and of any known format, as tensors whose names and shapes are checked.

locate (verified file) -> safe_load (plain data) -> formats (our key names) -> compare with the architecture
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.resnet import ResNet

from barlowtwins.core.errors import ConfigError, WeightsError
from barlowtwins.core.progress import say
from barlowtwins.core.readers import parse_json
from barlowtwins.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.models.resnet import Recognized, Stem, build_backbone, recognize_backbone
from barlowtwins.zoo.formats import FORMATS, Parts, match_keys, take_apart
from barlowtwins.zoo.locate import Located, locate
from barlowtwins.zoo.registry import WeightRecord, registry
from barlowtwins.zoo.safe_load import read_weight_file

__all__ = ["Weights", "load_backbone", "load_weights", "registry"]

OWN = ("barlowtwins", "checkpoint", "timm", "torchvision")  # layouts that nobody needs to be told about


@dataclass(frozen=True)
class Weights:
    """Tensors that fit a known architecture, and where they are from."""

    name: str
    """The registry name, or that of the file or RUN folder."""
    path: Path
    """The file that they were read from."""
    sha256: str
    """Of that file."""
    format: str
    """The layout that was recognised: a name of `formats.FORMATS`."""
    backbone: dict[str, Tensor]
    """float32 on the CPU (counters int64), by torchvision's key names, without `fc`."""
    projector: dict[str, Tensor] | None
    """projector.* and bn.*, if the file has them."""
    projector_widths: str | None
    """Such as "8192-8192-8192"."""
    backbone_name: str
    """The architecture, as `model.build_backbone` takes it."""
    stem: Stem
    """Its first layers."""
    channels: int
    """Its input channels."""
    preprocessing: Preprocessing
    """What images must go through; ImageNet's if the file does not say."""
    epoch: int | None = None
    """Epochs trained, if known."""
    assumed: str = ""
    """What the file does not tell, and how it was read."""
    classes: int | None = None
    """Of a classifier that the file has and that is left out here; see `load_classifier`."""
    digest: str = "unknown"
    """Whether anybody vouches for it: see `locate.Located`."""

    def build(self, **kwargs: Any) -> ResNet:
        """A backbone with these weights, in evaluation mode; `kwargs` go to `model.build_backbone`."""
        net = build_backbone(self.backbone_name, stem=self.stem, channels=self.channels, **kwargs)
        net.load_state_dict(self.backbone)
        return net.eval()


def load_weights(source: str | os.PathLike[str], *, full: bool = False, progress: bool = True) -> Weights:
    """Load weights, with their digest, format, names and shapes checked.

    Args:
        source: registry name, https URL, weight file of any format in `formats.FORMATS`, or RUN folder.
        full: the projector is wanted, too (of a RUN folder, this takes the larger file).
        progress: show a bar while fetching; say which layout a file of somebody else's has.

    Raises:
        WeightsError: no such weight, a wrong digest, a damaged file, one that could run code, or one whose tensors
            are not those of the architecture.
        DownloadError: it could not be fetched.
    """
    located = locate(source, full=full, progress=progress)
    try:
        weights = _read(located)
        if progress and located.record is None and weights.format not in OWN:
            say(f"{located.path}: {FORMATS[weights.format].title}")
        if progress and weights.assumed:
            say(f"{located.path}: {weights.assumed}")
        return weights
    except (WeightsError, ConfigError) as error:
        where = "" if str(located.path) in str(error) else f"{located.path}: "
        raise WeightsError(f"{where}{error}") from error


def load_backbone(name_or_path: str | os.PathLike[str], *, progress: bool = True) -> ResNet:
    """A trained backbone in evaluation mode: (N, C, S, S) -> (N, F).

    Args:
        name_or_path: registry name, https URL, weight file or RUN folder.
        progress: show a bar while fetching.

    Raises:
        WeightsError, DownloadError: see `load_weights`.
    """
    return load_weights(name_or_path, progress=progress).build()


def _read(located: Located) -> Weights:
    parts = take_apart(read_weight_file(located.path))
    kind = _architecture(parts, located.record)
    preprocessing = _preprocessing(parts, kind.channels, located.record)
    widths = _projector_widths(parts.projector or {})
    with torch.device("meta"):  # names and shapes without numbers
        backbone = build_backbone(kind.name, stem=kind.stem, channels=kind.channels)
        match_keys(parts.backbone, backbone.state_dict(), f"the tensors do not make a {kind.name}")
        if parts.projector is not None:
            model = BarlowTwins(backbone, widths).state_dict()
            expected = {key: tensor for key, tensor in model.items() if not key.startswith("backbone.")}
            match_keys(parts.projector, expected, f"the tensors do not make a projector {widths}")
    return Weights(
        name=located.name,
        path=located.path,
        sha256=located.sha256,
        format=parts.format.name,
        backbone=_own(parts.backbone),
        projector=None if parts.projector is None else _own(parts.projector),
        projector_widths=widths if parts.projector is not None else None,
        backbone_name=kind.name,
        stem=kind.stem,
        channels=kind.channels,
        preprocessing=preprocessing,
        epoch=located.record.epochs if located.record is not None else parts.epoch,
        assumed=_assumed(parts, kind, located.record),
        classes=len(parts.head["weight"]) if parts.head else None,
        digest=located.digest,
    )


def _architecture(parts: Parts, record: WeightRecord | None) -> Recognized:
    """As on record, else as the file says, else read off its keys and shapes; it is compared with them afterwards."""
    if record is not None:
        return Recognized(record.backbone, record.stem, record.channels)  # type: ignore[arg-type]  # checked on building
    says = parts.metadata
    if "backbone" not in says:
        found = recognize_backbone(parts.backbone)
        return found._replace(stem=parts.format.small_stem) if found.stem == "small" else found
    channels = says.get("channels", "3")
    if not (channels.isascii() and channels.isdigit() and 1 <= int(channels) <= 10_000):
        raise WeightsError(f"its metadata says {channels!r} channels; it must be a number, such as 3")
    return Recognized(says["backbone"], says.get("stem", "imagenet"), int(channels))  # type: ignore[arg-type]


def _assumed(parts: Parts, kind: Recognized, record: WeightRecord | None) -> str:
    """Return how a first layer was read whose stride and padding are not in the file; empty if they are."""
    if record is not None or "backbone" in parts.metadata or kind.stem == "imagenet":
        return ""
    padding = 2 if kind.stem == "small-padding2" else 1
    return (
        "the file does not contain the stride and padding of its 3x3 first layer; "
        f"reading it as stem {kind.stem!r} (stride 1, padding {padding})"
    )


def _preprocessing(parts: Parts, channels: int, record: WeightRecord | None) -> Preprocessing:
    if record is not None:
        return Preprocessing.from_dict(record.preprocessing)
    if "preprocessing" in parts.metadata:
        try:
            return Preprocessing.from_dict(parse_json(parts.metadata["preprocessing"]))
        except (ValueError, TypeError) as error:
            raise WeightsError(
                f"the preprocessing in its metadata is not understood: {error}; write the file again"
            ) from error
    if channels == 3:
        return Preprocessing()
    mean, std = sum(IMAGENET_MEAN) / 3, sum(IMAGENET_STD) / 3
    return Preprocessing(channels=channels, mean=(mean,) * channels, std=(std,) * channels)


def _projector_widths(projector: Mapping[str, Tensor]) -> str:
    """Such as "8192-8192-8192": the outputs of the linear layers, in the order of their numbers."""
    linear = {key: len(tensor) for key, tensor in projector.items() if tensor.ndim == 2}
    order = sorted(linear, key=lambda key: [int(part) if part.isdigit() else -1 for part in key.split(".")])
    return "-".join(str(linear[key]) for key in order)


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in plain memory: a large file is only mapped, and views of one storage must not stay tied."""
    for key, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_complex():
            raise WeightsError(
                f"{key} is no plain tensor of real numbers ({tensor.dtype}, {tensor.layout}); save it as dense numbers"
            )
    return {
        key: tensor.detach().to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True).contiguous()
        for key, tensor in tensors.items()
    }
