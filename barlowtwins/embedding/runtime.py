"""Choose what runs a backbone: torch, ONNX Runtime on a CPU, or torch's compiler."""

from __future__ import annotations

import logging
from typing import Literal, TypeAlias, cast, get_args

import torch
from torch import nn

from barlowtwins.core.errors import ConfigError, WeightsError
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.embedding import compiled, onnx_runtime

__all__ = ["Runtime", "choose_runtime", "require_runtime", "what_pays"]

Runtime: TypeAlias = Literal["torch", "onnx", "compiled"]

logger = logging.getLogger(__name__)


def require_runtime(name: str) -> None:
    """Raises ConfigError unless `name` is a `Runtime` or "auto"."""
    if name not in ("auto", *get_args(Runtime)):
        raise ConfigError(f"there is no runtime {name!r}; use 'auto', 'torch', 'onnx' or 'compiled'")


def choose_runtime(
    asked: str,
    backbone: nn.Module,
    preprocessing: Preprocessing,
    sha256: str,
    device: torch.device,
    precision: str,
    images: int | None,
) -> tuple[Runtime, onnx_runtime.Program | None]:
    """The runtime, and what it makes of the backbone; None where torch runs it as it is.

    Args:
        asked: a `Runtime`, or "auto": what pays, or torch, with a warning, if that has other features.
        backbone: put into evaluation mode and on the device if another runtime is to have it.
        preprocessing: says how images are to come.
        sha256: of the weights, for what is cached.
        device, precision: where and how it runs.
        images: how many there are; None if unknown.

    Raises:
        ConfigError: a runtime that does not run there.
        WeightsError: one that cannot have this network, or gives other features than torch.
        MissingExtraError: ONNX Runtime is asked for and not installed.
    """
    chosen = what_pays(device, precision, images) if asked == "auto" else cast(Runtime, asked)
    try:
        return chosen, _program(chosen, backbone, preprocessing, sha256, device, precision)
    except WeightsError as error:
        if asked != "auto":
            raise
        logger.warning("torch runs the network: %s", error)
        return "torch", None


def what_pays(device: torch.device, precision: str, images: int | None) -> Runtime:
    """The runtime whose preparation is paid back by so many images."""
    if images is None:
        return "torch"
    if device.type == "cpu":
        pays = images >= onnx_runtime.WORTH and precision == "fp32" and onnx_runtime.installed()
        return "onnx" if pays else "torch"
    return "compiled" if device.type == "cuda" and images >= compiled.WORTH else "torch"


def _program(
    runtime: Runtime,
    backbone: nn.Module,
    preprocessing: Preprocessing,
    sha256: str,
    device: torch.device,
    precision: str,
) -> onnx_runtime.Program | None:
    if runtime == "onnx" and (device.type != "cpu" or precision != "fp32"):
        raise ConfigError(f"--runtime onnx runs in fp32 on a CPU, not in {precision} on {device}; use --runtime torch")
    if runtime == "onnx":
        return onnx_runtime.onnx_program(backbone.eval(), preprocessing, sha256)
    if runtime == "compiled":
        return compiled.compiled_program(backbone.eval().to(device), preprocessing, device, precision)
    return None
