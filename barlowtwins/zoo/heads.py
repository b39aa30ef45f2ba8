"""The HEAD file: a linear classifier, its class names, and the digest of the backbone that it belongs to.

    weight (K, D), bias (K,), and strings: classes, preprocessing, and which backbone

A head is as good as random on any other backbone, so one that does not belong is refused. The same backbone in a file
of another format is recognised by the digest of its tensors.
"""

# N images, D features of the backbone, K classes

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights
from torchvision.models.resnet import ResNet

from barlowtwins.core.errors import WeightsError
from barlowtwins.core.readers import parse_json
from barlowtwins.core.safetensors_file import write_safetensors
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.models.resnet import recognize_backbone
from barlowtwins.version import __version__
from barlowtwins.zoo.formats import Parts, take_apart
from barlowtwins.zoo.locate import locate
from barlowtwins.zoo.safe_load import Contents, read_weight_file
from barlowtwins.zoo.weights import Weights, load_weights, registry

__all__ = [
    "Belonging",
    "Classifier",
    "Head",
    "fresh_classifier",
    "load_classifier",
    "load_head",
    "save_head",
    "tensors_digest",
]

LAYOUT = "1"  # of the HEAD file
IMAGENET = 1000  # a foreign classifier of so many classes, and without names, is ImageNet's


@dataclass(frozen=True)
class Belonging:
    """Which backbone a head was trained on."""

    backbone: str
    """Its architecture: a key of `model.BACKBONES`."""
    tensors_sha256: str
    """`tensors_digest` of it."""
    file_sha256: str = ""
    """Of the weight file that it was loaded from; empty if it was not loaded from one."""
    weights: str = ""
    """Where that is: a registry name, an URL, or the path of a file or RUN folder; empty if nobody knows."""

    @classmethod
    def of(cls, weights: Weights, source: str | os.PathLike[str]) -> Belonging:
        """What is to be remembered of `weights`, which `load_weights(source)` gave."""
        return cls(weights.backbone_name, tensors_digest(weights.backbone), weights.sha256, _absolute(source))

    @classmethod
    def of_backbone(cls, backbone: nn.Module, *, weights: str | os.PathLike[str], file_sha256: str) -> Belonging:
        """What to record of a backbone that was loaded from `weights`."""
        state = backbone.state_dict()
        try:
            name = recognize_backbone(state).name
        except WeightsError:  # of timm
            name = type(backbone).__name__
        return cls(name, tensors_digest(state), file_sha256, _absolute(weights))

    def includes(self, weights: Weights) -> bool:
        """Whether these are the very weights, in whatever file."""
        same_file = bool(self.file_sha256) and weights.sha256 == self.file_sha256
        return same_file or tensors_digest(weights.backbone) == self.tensors_sha256


@dataclass(frozen=True)
class Head:
    """A linear classifier on the features of one backbone.

    head = load_head("pets.safetensors")
    names = [head.classes[k] for k in head.predict(embedder.encode("photos/"))]
    """

    weight: Tensor
    """(K, D) float32."""
    bias: Tensor
    """(K,) float32."""
    classes: tuple[str, ...]
    """K names."""
    belonging: Belonging
    preprocessing: Preprocessing
    """What images must go through before the backbone."""

    def logits(self, features: Tensor | npt.NDArray[np.float32]) -> Tensor:
        """(N, D) features -> (N, K) float32."""
        return nn.functional.linear(torch.as_tensor(features, dtype=torch.float32), self.weight, self.bias)

    def predict(self, features: Tensor | npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """(N, D) features -> (N,) places in `classes`; -1 where the features are NaN, as of an unreadable image."""
        logits = self.logits(features)
        return torch.where(logits.isfinite().all(1), logits.argmax(1), -1).numpy(force=True)

    def on(self, backbone: ResNet) -> ResNet:
        """Put the head on a backbone in place of its `fc`: (N, C, S, S) -> (N, K); its `classes` are the names."""
        backbone.fc = nn.Linear(self.weight.shape[1], self.weight.shape[0]).train(backbone.training)
        backbone.fc.load_state_dict({"weight": self.weight, "bias": self.bias})
        backbone.classes = self.classes
        return backbone


class Classifier(NamedTuple):
    """A head, and the weights of the backbone that it belongs to."""

    head: Head
    weights: Weights

    def build(self) -> ResNet:
        """The network: (N, C, S, S) -> (N, K) logits; in evaluation mode, on the CPU."""
        return self.head.on(self.weights.build())


def fresh_classifier(features: int, classes: int, *, seed: int | None = None) -> nn.Linear:
    """An untrained classifier, as the published linear probe starts: normal with standard deviation 0.01, bias 0.

    Args:
        features, classes: D and K.
        seed: of the weights; torch's global generator unless told.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    linear = nn.utils.skip_init(nn.Linear, features, classes)
    nn.init.normal_(linear.weight, std=0.01, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear


def tensors_digest(backbone: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, shapes and float32 values of a backbone, 64 hex digits: the same in any file format.

    `fc` does not count, nor do the counters of batch norm, which some formats leave out.
    """
    digest = hashlib.sha256()
    for key in sorted(backbone):
        if not key.startswith("fc.") and not key.endswith(".num_batches_tracked"):
            tensor = backbone[key].detach().to("cpu", torch.float32).contiguous()
            digest.update(f"{key} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()


def save_head(path: str | os.PathLike[str], head: Head) -> None:
    """Write a HEAD file.

    Raises:
        OutputError: it cannot be written.
    """
    belonging = head.belonging
    write_safetensors(
        path,
        {"weight": head.weight, "bias": head.bias},
        {
            "format": "pt",
            "barlowtwins": __version__,
            "head": LAYOUT,
            "classes": json.dumps(head.classes, ensure_ascii=False),
            "preprocessing": json.dumps(head.preprocessing.to_dict()),
            "backbone": belonging.backbone,
            "backbone_tensors_sha256": belonging.tensors_sha256,
            "backbone_file_sha256": belonging.file_sha256,
            "weights": belonging.weights,
        },
    )


def load_head(source: str | os.PathLike[str], *, progress: bool = True) -> Head:
    """Read a HEAD file, or the linear classifier in a foreign checkpoint, with its shapes checked.

    Args:
        source: a file of `save_head`, or the folder of an evaluation that has one; or a file that holds a backbone with
            a linear classifier on top (mmpretrain's, or a torchvision state dict with `fc`), by path, https URL or
            registry name ("resnet50-mmpretrain-linear"). 1000 classes without names are taken for ImageNet's.
        progress: show a bar while fetching.

    Raises:
        WeightsError: it is missing, damaged, refused, or holds no classifier.
        DownloadError: it could not be fetched.
    """
    path = _locate_head(source, progress)
    contents = read_weight_file(path)
    try:
        if "head" in contents.metadata:
            return _of_head_file(contents, path)
        return _of_checkpoint(take_apart(contents), contents, path)
    except (KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"{path} is no sound HEAD file ({error!r}); fetch, copy or train it again") from error
    except WeightsError as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise WeightsError(f"{where}{error}") from error


def load_classifier(
    head: str | os.PathLike[str], *, weights: str | os.PathLike[str] | None = None, progress: bool = True
) -> Classifier:
    """Load a head and the backbone that it belongs to.

    Args:
        head: as `load_head` takes it.
        weights: the backbone's, where the place that the head remembers is not at hand: a registry name, a weight file,
            an https URL, or a RUN folder.
        progress: show a bar while fetching the weights.

    Raises:
        WeightsError: one of the two is missing or damaged, or they do not belong together.
        DownloadError: the weights could not be fetched.
    """
    loaded = load_head(head, progress=progress)
    belonging = loaded.belonging
    source = weights if weights is not None else belonging.weights
    if not source:
        raise WeightsError(f"{head} does not say where its backbone ({belonging.backbone}) is; pass its weights")
    try:
        backbone = load_weights(source, progress=progress)
    except WeightsError as error:
        if weights is not None:
            raise
        raise WeightsError(f"the backbone of {head} is not at hand; pass its weights ({error})") from error
    if not belonging.includes(backbone):
        raise WeightsError(
            f"{head} does not belong to {source}: it was trained on a {belonging.backbone} with tensors "
            f"{belonging.tensors_sha256[:10]}, and this is a {backbone.backbone_name} with "
            f"{tensors_digest(backbone.backbone)[:10]}; pass the weights it was trained on"
            + (f" ({belonging.weights})" if belonging.weights else "")
        )
    return Classifier(loaded, backbone)


def _locate_head(source: str | os.PathLike[str], progress: bool) -> Path:
    if str(source) in registry() or "://" in str(source):
        return locate(str(source), progress=progress).path
    path = Path(source).expanduser()
    return path / "head.safetensors" if path.is_dir() else path


def _of_head_file(contents: Contents, path: Path) -> Head:
    says = contents.metadata
    if says["head"] != LAYOUT:
        raise WeightsError(f"it was made by a newer barlowtwins; this one reads layout {LAYOUT}")
    belonging = Belonging(
        says["backbone"],
        says["backbone_tensors_sha256"],
        says["backbone_file_sha256"],
        _locate_near(says["weights"], path.parent),
    )
    preprocessing = Preprocessing.from_dict(parse_json(says["preprocessing"]))
    return _checked(contents.value, tuple(parse_json(says["classes"])), belonging, preprocessing)


def _of_checkpoint(parts: Parts, contents: Contents, path: Path) -> Head:
    if parts.head is None:
        raise WeightsError("it holds a backbone without a classifier; `barlowtwins evaluate linear` makes one")
    name = recognize_backbone(parts.backbone).name
    classes = _class_names(contents.value.get("meta"), len(parts.head["weight"]))
    belonging = Belonging(name, tensors_digest(parts.backbone), weights=str(path.absolute()))
    return _checked(parts.head, classes, belonging, Preprocessing())


def _checked(tensors: Mapping[str, Tensor], classes: tuple[Any, ...], where: Belonging, how: Preprocessing) -> Head:
    weight, bias = tensors["weight"].float(), tensors["bias"].float()
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or len(classes) != len(weight):
        shapes = f"weight {tuple(weight.shape)}, bias {tuple(bias.shape)} and {len(classes)} class names"
        raise WeightsError(f"{shapes} do not make a linear classifier; give a HEAD file as evaluate writes it")
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise WeightsError("it holds numbers that are not finite")
    return Head(weight.contiguous(), bias.contiguous(), tuple(map(str, classes)), where, how)


def _class_names(meta: Any, count: int) -> tuple[str, ...]:
    """As mmpretrain's `meta` says, else ImageNet's, else the numbers themselves."""
    meta = meta if isinstance(meta, Mapping) else {}
    about = meta.get("dataset_meta")
    named = (about.get("classes") if isinstance(about, Mapping) else None) or meta.get("CLASSES")
    if named and len(named) == count:
        return tuple(named)
    if count == IMAGENET:
        return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
    return tuple(map(str, range(count)))


def _absolute(source: str | os.PathLike[str]) -> str:
    """A local path so that it is found from any folder; a registry name or an URL as it is."""
    text = str(source)
    return text if not text or text in registry() or not Path(text).exists() else str(Path(text).absolute())


def _locate_near(weights: str, folder: Path) -> str:
    """Where the weights are now: as recorded, or, if the head was moved together with them, beside it."""
    if Path(weights).is_absolute() and not Path(weights).exists():
        beside = folder / Path(weights).name
        if beside.exists():
            return str(beside)
        if (folder / "backbone.safetensors").exists():
            return str(folder)
    return weights
