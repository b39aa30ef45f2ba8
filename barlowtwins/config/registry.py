"""Settings of `barlowtwins weights` and `export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from barlowtwins.config.flags import Positional
from barlowtwins.config.rules import Checked, Count, FilePath

__all__ = [
    "ExportConfig",
    "WeightsConvertConfig",
    "WeightsGetConfig",
    "WeightsListConfig",
    "WeightsShowConfig",
    "WeightsVerifyConfig",
]


@dataclass(frozen=True)
class WeightsListConfig(Checked):
    """List the registry: name, architecture, format, size, epochs, accuracy, license, whether it is here."""


@dataclass(frozen=True)
class WeightsShowConfig(Checked):
    """Show all that is known of a weight: where it is from, its digest, preprocessing, recipe and results."""

    name: Positional[str]
    """A registry name."""


@dataclass(frozen=True)
class WeightsGetConfig(Checked):
    """Fetch a weight into the cache, verify it, and say where it lies."""

    name: Positional[FilePath]
    """A registry name, or an https URL."""


@dataclass(frozen=True)
class WeightsVerifyConfig(Checked):
    """Check a weight file (fetched if it is not here): digest, format, architecture, and that values are finite."""

    weights: Positional[FilePath]
    """A registry name, a local weight file, an https URL, or a RUN folder."""


@dataclass(frozen=True)
class WeightsConvertConfig(Checked):
    """Write weights of any known format in another one; only safetensors-half changes numbers."""

    weights: Positional[FilePath]
    """A registry name, a weight file of any known format, an https URL, or a RUN folder."""
    out: Positional[FilePath]
    """The file to write."""
    to: Literal["torchvision", "published", "safetensors", "safetensors-half", "timm", "detectron2", "lightly"]
    """torchvision: .pth of a ResNet; published: the full checkpoint that the published code resumes; safetensors: as in
    a RUN folder; safetensors-half: its backbone in half precision; timm: safetensors; detectron2: .pkl; lightly:
    Lightning checkpoint."""
    overwrite: bool = False
    """Replace a file that exists."""


@dataclass(frozen=True)
class ExportConfig(Checked):
    """Export a backbone: as a program that runs without this package, or as a weight file for another one."""

    weights: FilePath
    """A registry name, a weight file, an https URL, or a RUN folder."""
    out: FilePath
    """The file to write."""
    format: Literal["onnx", "torch-export", "torchscript", "safetensors", "torchvision", "timm", "detectron2"] = "onnx"
    """onnx, torch-export (.pt2) and torchscript are programs for any number of images; the others hold the weights."""
    image_size: Count | None = None
    """Side of the square input that a program takes; by default, the weights' own."""
    overwrite: bool = False
    """Replace a file that exists."""
