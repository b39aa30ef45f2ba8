"""`barlowtwins weights convert`: weights of any known format, written in the format that another program reads.

load_weights (any format -> our key names) -> a row of WRITERS -> one file, written whole or not at all
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from barlowtwins.core.errors import ConfigError, OutputError, WeightsError
from barlowtwins.core.files import atomic_write, sha256_of
from barlowtwins.core.safetensors_file import write_safetensors
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.models.resnet import build_backbone
from barlowtwins.runs.run_folder import backbone_metadata
from barlowtwins.version import __version__
from barlowtwins.zoo.published import is_published, published_checkpoint
from barlowtwins.zoo.safe_load import read_weight_file
from barlowtwins.zoo.weights import Weights, load_weights

if TYPE_CHECKING:
    from barlowtwins.config import WeightsConvertConfig

__all__ = ["WRITERS", "Conversion", "detectron2_name", "torch_save", "weights_convert", "write_as"]


@dataclass(frozen=True)
class Conversion:
    """A file that was written in another program's format."""

    out: Path
    format: str
    sha256: str
    tensors: int
    source: str
    """Where the weights are from."""
    source_format: str
    notes: tuple[str, ...]
    """What the format has no place for."""


def weights_convert(config: WeightsConvertConfig) -> Conversion:
    """Write the weights `config.weights` to the file `config.out` in the format `config.to`.

    Raises:
        WeightsError, DownloadError: the weights cannot be loaded, or do not go into that format.
        OutputError: the file exists, or cannot be written.
    """
    check_free(Path(config.out), config.overwrite)
    full = config.to in NEED_PROJECTOR
    return write_as(config.to, load_weights(config.weights, full=full), Path(config.out))


def check_free(out: Path, overwrite: bool) -> None:
    """Raises OutputError if the file `out` exists and may not be replaced."""
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists; choose another name, or add --overwrite")


def write_as(to: str, weights: Weights, out: Path) -> Conversion:
    """Write loaded weights to `out` in the format `to`, a key of `WRITERS`.

    Raises:
        ConfigError: there is no such format.
        WeightsError: the format cannot hold these weights.
        OutputError: the file cannot be written.
    """
    if to not in WRITERS:
        raise ConfigError(f"there is no format {to!r} to write; choose one of {', '.join(WRITERS)}")
    is_timm = weights.backbone_name.startswith("timm:")
    if is_timm and to in ("torchvision", "published", "detectron2"):
        raise WeightsError(
            f"{weights.path} is a {weights.backbone_name}, which {to} has no names for; choose another format"
        )
    count, notes = WRITERS[to](weights, out)
    if weights.stem != "imagenet" and to not in ("safetensors", "safetensors-half", "published"):
        notes += (f"the network has the {weights.stem!r} stem, which {to} does not build by itself",)
    if weights.projector is not None and to in ("torchvision", "timm", "detectron2"):
        notes += ("the projector is left out: the format has no place for it",)
    if weights.classes is not None:
        notes += (f"the classifier of {weights.classes} classes is left out: head={str(weights.path)!r} takes it",)
    return Conversion(out, to, sha256_of(out), count, str(weights.path), weights.format, notes)


def torch_save(value: Any, out: Path) -> None:
    """`torch.save`, written whole or not at all."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with atomic_write(out) as file:
        file.write(buffer.getbuffer())


Written = tuple[int, tuple[str, ...]]  # how many tensors, and notes


def _torchvision(weights: Weights, out: Path) -> Written:
    """The layout of the published backbone: torchvision's key names, no fc."""
    torch_save(weights.backbone, out)
    return len(weights.backbone), ()


def _safetensors(weights: Weights, out: Path) -> Written:
    """As a RUN folder has it: the backbone, or, where there is a projector, the whole model."""
    tensors = weights.backbone
    if weights.projector is not None:
        tensors = _model_state(weights)
    write_safetensors(out, tensors, backbone_metadata(weights.backbone_name, weights.stem, weights.preprocessing))
    return len(tensors), ()


def _half(weights: Weights, out: Path) -> Written:
    """The backbone in half precision, half as large; loading gives float32 again."""
    tensors = {key: value.half() if value.is_floating_point() else value for key, value in weights.backbone.items()}
    if large := [key for key, value in tensors.items() if not value.isfinite().all()]:
        raise WeightsError(
            f"{weights.path}: {large[0]} has values beyond half precision (65504); choose --to safetensors"
        )
    said = backbone_metadata(weights.backbone_name, weights.stem, weights.preprocessing)
    write_safetensors(out, tensors, said, dtype=torch.float16)
    return len(tensors), ("numbers are rounded to half precision, 11 bits",)


def _timm(weights: Weights, out: Path) -> Written:
    """timm names a ResNet's layers as torchvision does; its own models keep their own names."""
    tensors = {key.removeprefix("net."): tensor for key, tensor in weights.backbone.items()}
    write_safetensors(out, tensors, {"format": "pt"})
    return len(tensors), ()


def _published(weights: Weights, out: Path) -> Written:
    """The full checkpoint, with the momentum if the source is a checkpoint that has it."""
    state = _model_state(weights)
    with torch.device("meta"):
        backbone = build_backbone(weights.backbone_name, stem=weights.stem, channels=weights.channels)
        model = BarlowTwins(backbone, weights.projector_widths or "")
    held = read_weight_file(weights.path).value if weights.format == "checkpoint" else {}
    notes: tuple[str, ...] = ()
    if is_published(held):
        value = {**published_checkpoint(state, model, held["epoch"]), "optimizer": held["optimizer"]}
    else:
        optimizer, config, data = (held.get(name) or {} for name in ("optimizer", "config", "data"))
        epoch = weights.epoch or 0
        if "step" in held and data and config:
            epoch, rest = divmod(held["step"], max(1, data["images"] // config["batch_size"]))
            notes += (
                (f"{rest} steps of a begun epoch are not counted, since that format counts epochs",) if rest else ()
            )
        has_momentum = optimizer.get("state") and config.get("optimizer") == "lars"
        notes += () if has_momentum else ("the source has no momentum of LARS: it starts at 0",)
        value = published_checkpoint(state, model, epoch, optimizer if has_momentum else None, config)
    if weights.stem != "imagenet" or weights.channels != 3 or weights.backbone_name != "resnet50":
        kind = f"a {weights.backbone_name} with the {weights.stem!r} stem and {weights.channels} channels"
        notes += (f"the published code builds a resnet50 for 3 channels; this is {kind}",)
    torch_save(value, out)
    return len(state), notes


def _lightly(weights: Weights, out: Path) -> Written:
    """The Lightning checkpoint of lightly's benchmark, as far as it concerns the network."""
    state = {f"backbone.{key}": tensor for key, tensor in weights.backbone.items()}
    notes: tuple[str, ...] = ("there is no online classifier in it: load it with strict=False",)
    if weights.projector is not None:
        layers = {key: tensor for key, tensor in weights.projector.items() if key.startswith("projector.")}
        state |= {key.replace("projector.", "projection_head.layers.", 1): tensor for key, tensor in layers.items()}
        last = max(int(key.split(".")[1]) for key in layers)
        state[f"projection_head.layers.{last}.bias"] = torch.zeros(len(layers[f"projector.{last}.weight"]))
        notes += ("lightly has no place for the running statistics of the standardised embedding (bn)",)
    epoch = max(0, (weights.epoch or 0) - 1)  # Lightning counts the epoch that it is in
    torch_save({"epoch": epoch, "global_step": 0, "pytorch-lightning_version": "2.0.0", "state_dict": state}, out)
    return len(state), notes


def _detectron2(weights: Weights, out: Path) -> Written:
    """What detectron2's converter from torchvision writes. The format is a pickle, so a pickle is written: plain data.

    Its model expects RGB input, PIXEL_MEAN and PIXEL_STD of ImageNet x 255, and STRIDE_IN_1X1 False.
    """
    if weights.stem != "imagenet":
        raise WeightsError(
            f"{weights.path} has the {weights.stem!r} stem; detectron2's ResNets begin with 7x7 and pooling"
        )
    arrays = {detectron2_name(key): tensor.numpy() for key, tensor in weights.backbone.items()}
    value = {"model": arrays, "__author__": f"barlowtwins {__version__}", "matching_heuristics": True}
    with atomic_write(out) as file:
        pickle.dump(value, file, protocol=4)
    return len(arrays), (
        'set INPUT.FORMAT "RGB", PIXEL_MEAN, PIXEL_STD and RESNETS.STRIDE_IN_1X1 False, as for torchvision',
    )


def detectron2_name(key: str) -> str:
    """torchvision's name of a tensor -> detectron2's: layer1.0.bn2.bias -> res2.0.conv2.norm.bias."""
    parts = key.split(".")
    if parts[0].startswith("layer"):
        parts[0] = f"res{int(parts[0].removeprefix('layer')) + 1}"
    else:
        parts.insert(0, "stem")
    named = []
    for part in parts:
        if part.startswith("bn") and part[2:].isdigit():
            named += [f"conv{part[2:]}", "norm"]
        else:
            named.append(part)
    text = ".".join(named)
    return text.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def _model_state(weights: Weights) -> dict[str, Tensor]:
    if weights.projector is None:
        raise WeightsError(
            f"{weights.path} holds a backbone without projector, and that format needs one; take model.safetensors or "
            "a checkpoint of the RUN folder"
        )
    return {f"backbone.{key}": tensor for key, tensor in weights.backbone.items()} | weights.projector


WRITERS: dict[str, Callable[[Weights, Path], Written]] = {
    "torchvision": _torchvision,
    "published": _published,
    "safetensors": _safetensors,
    "safetensors-half": _half,
    "timm": _timm,
    "detectron2": _detectron2,
    "lightly": _lightly,
}
NEED_PROJECTOR = ("published", "lightly")
