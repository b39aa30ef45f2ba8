"""The layouts in which a ResNet trained by Barlow Twins is found, and how each becomes torchvision's key names.

    saved -> follow `path` -> strip wrappers -> the first format of the table that fits -> backbone, projector, head

A format is a row of FORMATS. Nothing is guessed or skipped: each key of a file belongs to the backbone, the projector,
the classifier or what the row says can be left out, and whatever is left over is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from barlowtwins.errors import WeightsError
from barlowtwins.safe_load import Contents

__all__ = ["FORMATS", "Format", "Parts", "match_keys", "take_apart"]

WRAPPERS = {"module", "_orig_mod"}  # what DistributedDataParallel and torch.compile insert into key names
FEW = 3  # keys that an error names


@dataclass(frozen=True)
class Format:
    """One layout.

    Args:
        name: what `weights verify` and the registry call it.
        title: one line for people.
        path: the keys that lead from what was saved to the state dict.
        backbone: what the backbone's keys begin with, before torchvision's own names.
        projector: what the projector's keys begin with -> what they begin with in `BarlowTwins`.
        head: what the keys of a linear classifier begin with, before "weight" and "bias".
        left_out: beginnings of keys that are known and not needed.
    """

    name: str
    title: str
    path: tuple[str, ...] = ()
    backbone: str = ""
    projector: Mapping[str, str] = field(default_factory=dict)
    head: str | None = None
    left_out: tuple[str, ...] = ()


OUR_PROJECTOR = {"projector.": "projector.", "bn.": "bn."}  # the published code's names are also ours

FORMATS = {
    row.name: row
    for row in (
        Format(
            "checkpoint",
            "training checkpoint of the published code, or of this package: {model, optimizer, ...}",
            path=("model",),
            backbone="backbone.",
            projector=OUR_PROJECTOR,
        ),
        Format(
            "barlowtwins",
            "backbone and projector: model.safetensors of a RUN folder, or a BarlowTwins state dict",
            backbone="backbone.",
            projector=OUR_PROJECTOR,
        ),
        Format(
            "torchvision",
            "a ResNet with torchvision's key names: the published backbone, or backbone.safetensors of a RUN folder",
            head="fc.",
        ),
        Format(
            "mmpretrain",
            "checkpoint of mmpretrain: a pretrained backbone, or one with a linear classifier on top",
            path=("state_dict",),
            backbone="backbone.",
            head="head.fc.",
            left_out=("data_preprocessor.", "neck."),
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

    Raises:
        WeightsError: no format fits, or the file has keys that its format does not explain.
    """
    for row in FORMATS.values():
        state = _follow(contents.value, row.path)
        if f"{row.backbone}conv1.weight" in state:
            break
    else:
        raise WeightsError(f"no known layout of a ResNet: it holds {_describe(contents.value)}")

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
            backbone[key.removeprefix(row.backbone)] = tensor
        else:
            unknown.append(key)
    if unknown:
        raise WeightsError(f"{len(unknown)} keys do not belong in a file of the format {row.name!r} ({_few(unknown)})")
    return Parts(row, backbone, projector or None, head or None, *_about(contents))


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


def _follow(value: Any, path: Sequence[str]) -> dict[str, Tensor]:
    """The state dict at `path` with wrappers' names taken out of its keys; empty if there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if not (isinstance(value, Mapping) and all(isinstance(tensor, Tensor) for tensor in value.values())):
        return {}
    state = {".".join(part for part in str(key).split(".") if part not in WRAPPERS): value[key] for key in value}
    if len(state) < len(value):
        raise WeightsError(f"{len(value) - len(state)} keys occur twice, with and without {' or '.join(WRAPPERS)}")
    return state


def _about(contents: Contents) -> tuple[Mapping[str, str], int | None]:
    """What the file says about itself: safetensors' metadata, or the settings in a training checkpoint."""
    metadata, value = contents.metadata, contents.value
    epoch = value.get("epoch")
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
