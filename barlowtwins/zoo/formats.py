"""The layouts in which a ResNet trained by Barlow Twins is found, and how each becomes torchvision's key names.

    saved -> follow `path` -> strip wrappers -> the first format of the table that fits -> backbone, projector, head

A format is a row of FORMATS. Nothing is guessed or skipped: each key of a file belongs to the backbone, the projector,
the classifier or what the row says can be left out, and whatever is left over is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from barlowtwins.core.errors import WeightsError
from barlowtwins.models.resnet import Stem
from barlowtwins.zoo.safe_load import Contents

__all__ = ["FORMATS", "Format", "Parts", "as_published", "match_keys", "take_apart"]

WRAPPERS = {"module", "_orig_mod"}  # what DistributedDataParallel and torch.compile insert into key names
FEW = 3  # keys that an error names
WIDEST = 1 << 20  # features of a projector; the published one has 8192


@dataclass(frozen=True)
class Format:
    """One layout.

    Args:
        name: what `weights verify` and the registry call it.
        title: one line for people.
        paths: the keys that lead from what was saved to the state dict; a few layouts have more than one such place.
        flat: the state dict may also be all that was saved, as it is in safetensors.
        backbone: what the backbone's keys begin with, before torchvision's own names.
        children: the first part of a backbone's key -> torchvision's name of that layer, where they differ.
        projector: what the projector's keys begin with -> what they begin with in `BarlowTwins`.
        foreign_projector: the projector has biases and no `bn`: see `as_published`.
        head: what the keys of a linear classifier begin with, before "weight" and "bias".
        left_out: beginnings of keys that are known and not needed.
        small_stem: the stem that its makers build for small images, with a 3x3 convolution.
    """

    name: str
    title: str
    paths: tuple[tuple[str, ...], ...] = ()
    flat: bool = True
    backbone: str = ""
    children: Mapping[str, str] = field(default_factory=dict)
    projector: Mapping[str, str] = field(default_factory=dict)
    foreign_projector: bool = False
    head: str | None = None
    left_out: tuple[str, ...] = ()
    small_stem: Stem = "small"


OUR_PROJECTOR = {"projector.": "projector.", "bn.": "bn."}  # the published code's names are also ours
LIGHTLY_PROJECTOR = {"projection_head.layers.": "projector."}
SEQUENTIAL = {"0": "conv1", "1": "bn1", **{str(number + 3): f"layer{number}" for number in (1, 2, 3, 4)}}

FORMATS = {
    row.name: row
    for row in (
        Format(
            "barlowtwins",
            "backbone and projector: model.safetensors of a RUN folder, or a BarlowTwins state dict",
            backbone="backbone.",
            projector=OUR_PROJECTOR,
        ),
        Format(
            "checkpoint",
            "training checkpoint of the published code, or of this package: {model, optimizer, ...}",
            paths=(("model",),),
            flat=False,
            backbone="backbone.",
            projector=OUR_PROJECTOR,
        ),
        Format(
            "torchvision",
            "a ResNet with torchvision's key names, which timm's are too: the published backbone, or that of a RUN",
            paths=(("state_dict",), ("model",)),
            head="fc.",
        ),
        Format(
            "timm",
            "backbone.safetensors of a RUN whose backbone is a model of timm: its key names behind net.",
        ),
        Format(
            "vissl",
            "checkpoint of vissl: the trunk of a ResNet",
            paths=(("classy_state_dict", "base_model", "model", "trunk"),),
            backbone="_feature_blocks.",
        ),
        Format(
            "mmpretrain",
            "checkpoint of mmpretrain: a pretrained backbone, or one with a linear classifier on top",
            paths=(("state_dict",),),
            backbone="backbone.",
            head="head.fc.",
            left_out=("data_preprocessor.", "neck."),
        ),
        Format(
            "lightly",
            "Lightning checkpoint of lightly's benchmarks: backbone, projection head, online classifier",
            paths=(("state_dict",),),
            backbone="backbone.",
            projector=LIGHTLY_PROJECTOR,
            foreign_projector=True,
            head="online_classifier.classification_head.",
        ),
        Format(
            "lightly-sequential",
            "the same with the numbered layers of lightly's tutorials: nn.Sequential(*list(resnet.children())[:-1])",
            paths=(("state_dict",),),
            backbone="backbone.",
            children=SEQUENTIAL,
            projector=LIGHTLY_PROJECTOR,
            foreign_projector=True,
            head="online_classifier.classification_head.",
        ),
        Format(
            "solo-learn",
            "Lightning checkpoint of solo-learn: backbone, projector, online classifier",
            paths=(("state_dict",),),
            backbone="backbone.",
            projector={"projector.": "projector."},
            foreign_projector=True,
            head="classifier.",
            small_stem="small-padding2",  # what it builds for CIFAR
        ),
    )
}


@dataclass(frozen=True)
class Parts:
    """The contents of a weight file, told apart.

    Args:
        format: the format that fitted.
        backbone: by torchvision's key names, without `fc`.
        projector: by the key names of `BarlowTwins` (projector.*, bn.*); None if the file has none.
        head: "weight" and "bias" of a linear classifier on top; None if the file has none.
        metadata: what the file says about itself: backbone, stem, channels, preprocessing.
        epoch: epochs trained, if the file says so.
    """

    format: Format
    backbone: dict[str, Tensor]
    projector: dict[str, Tensor] | None
    head: dict[str, Tensor] | None
    metadata: Mapping[str, str]
    epoch: int | None


def take_apart(contents: Contents) -> Parts:
    """Recognise the format of what a file holds, and name its tensors as this package does.

    Of the formats whose backbone is there, the one is taken that explains the most keys.

    Raises:
        WeightsError: no format fits, or the file has keys that its format does not explain.
    """
    about, epoch = _about(contents)
    timms = about.get("backbone", "").startswith("timm:")  # its keys do not tell; only our files say so
    anchor, others = (("net.",), "torchvision") if timms else (("conv1.weight",), "timm")
    found = [
        _sort(row, state, about, epoch)
        for row in FORMATS.values()
        if row.name != others
        for state in _states(contents.value, row)
        if any(key.startswith(_beginnings(row, anchor)) for key in state)
    ]
    if not found:
        raise WeightsError(f"no known layout of a ResNet: it holds {_describe(contents.value)}; give weights of one")
    parts, unknown, _ = min(found, key=lambda each: len(each[1]) + each[2])  # of equals the first
    if unknown:
        name = parts.format.name
        raise WeightsError(
            f"{len(unknown)} keys do not belong in a file of the format {name!r} ({_few(unknown)}); leave them out"
        )
    return parts


def _beginnings(row: Format, anchor: tuple[str, ...]) -> tuple[str, ...]:
    numbers = {name: number for number, name in row.children.items()}
    return tuple(
        f"{row.backbone}{numbers.get(layer, layer)}.{rest}" for layer, _, rest in (key.partition(".") for key in anchor)
    )


def _sort(
    row: Format, state: Mapping[str, Tensor], about: Mapping[str, str], epoch: int | None
) -> tuple[Parts, list[str], int]:
    """The tensors of a state dict told apart as `row` says; the keys that it does not explain; parts that it lacks."""
    backbone: dict[str, Tensor] = {}
    projector: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        if key.startswith(row.left_out):
            continue
        if before := next((old for old in row.projector if key.startswith(old)), None):
            projector[row.projector[before] + key.removeprefix(before)] = tensor
        elif row.head is not None and key.startswith(row.head):
            head[key.removeprefix(row.head)] = tensor
        elif key.startswith(row.backbone):
            layer, dot, rest = key.removeprefix(row.backbone).partition(".")
            backbone[row.children.get(layer, layer) + dot + rest] = tensor
        else:
            unknown.append(key)
    lacking = int(bool(projector) and "bn." in row.projector and not any(key.startswith("bn.") for key in projector))
    if row.foreign_projector:
        projector = as_published(projector)
    return Parts(row, backbone, projector or None, head or None, about, epoch), unknown, lacking


def as_published(projector: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A projector whose linear layers have biases, as the published one without them: the same loss and gradients.

    A bias before a batch norm only moves the mean that is subtracted again, so it is taken off the running mean; the
    last one is removed by the standardisation in the loss. That has its running statistics in the published model
    (nothing uses them after training); where a file has none, they are those of an untrained one.
    """
    layers = {}  # number of a linear layer -> what its keys begin with
    for key, tensor in projector.items():
        found = re.fullmatch(r"(.*\.)(\d+)\.weight", key)
        if found and tensor.ndim == 2:
            layers[int(found[2])] = (found[1], f"{found[1]}{found[2]}.")
    ours = dict(projector)
    for number, (stem, layer) in layers.items():
        mean = f"{stem}{number + 1}.running_mean"
        bias = ours.pop(f"{layer}bias", None)
        if bias is not None and mean in ours and _is_vector(bias) and ours[mean].shape == bias.shape and bias.any():
            ours[mean] = ours[mean] - bias
    if layers and not any(key.startswith("bn.") for key in ours):
        width = len(projector[f"{layers[max(layers)][1]}weight"])
        if width <= WIDEST:
            ours["bn.running_mean"], ours["bn.running_var"] = torch.zeros(width), torch.ones(width)
            ours["bn.num_batches_tracked"] = torch.tensor(0)
    return ours


def _is_vector(tensor: Tensor) -> bool:
    """One that can be computed with: a file may claim any size, and kinds of tensors that know no arithmetic."""
    return tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_quantized and len(tensor) <= WIDEST


def match_keys(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], complaint: str) -> None:
    """Compare names and shapes; values do not matter, so `expected` may lie on the meta device.

    Args:
        complaint: what the error says before the counts.

    Raises:
        WeightsError: counts the keys that are missing, unexpected and of another shape, and names the first few.
    """
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    reshaped = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in found and found[key].shape != tensor.shape
    ]
    lists = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    if any(keys for _, keys in lists):
        counts = "; ".join(f"{len(keys)} {how} ({_few(keys)})" for how, keys in lists if keys)
        raise WeightsError(f"{complaint}: {counts}")


def _states(value: Any, row: Format) -> list[dict[str, Tensor]]:
    """The state dicts at the places where a format has one."""
    return [_follow(value, path) for path in (*row.paths, *([()] if row.flat else ()))]


def _follow(value: Any, path: Sequence[str]) -> dict[str, Tensor]:
    """The state dict at `path` with wrappers' names taken out of its keys; empty if there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if not (isinstance(value, Mapping) and all(isinstance(tensor, Tensor) for tensor in value.values())):
        return {}
    state = {".".join(part for part in str(key).split(".") if part not in WRAPPERS): value[key] for key in value}
    if len(state) < len(value):
        raise WeightsError(
            f"{len(value) - len(state)} keys occur twice, with and without {' or '.join(WRAPPERS)}; keep one"
        )
    return state


def _about(contents: Contents) -> tuple[Mapping[str, str], int | None]:
    """What the file says about itself: safetensors' metadata, or the settings in a training checkpoint."""
    metadata, value = contents.metadata, contents.value
    if not isinstance(value, Mapping):
        return metadata, None
    epoch = value.get("epoch")
    if isinstance(epoch, int) and "pytorch-lightning_version" in value:
        epoch += 1  # Lightning counts the epoch that it is in
    settings = value.get("config")
    if isinstance(settings, Mapping):
        metadata = {name: str(settings[name]) for name in ("backbone", "stem", "channels") if name in settings}
    return metadata, epoch if isinstance(epoch, int) else None


def _describe(value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"a {type(value).__name__}"
    return f"a dict of {len(value)} ({_few([str(key) for key in value])})"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:FEW]) + (", ..." if len(names) > FEW else "")
