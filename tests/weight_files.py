"""Weight files of the published layouts, with random numbers in them, and a registry that points to them."""

from __future__ import annotations

import hashlib
import io
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.models.resnet import build_backbone

TINY = "resnet10_x0_5"  # 5 MB, where the architecture does not matter


def backbone_state(name: str = TINY, seed: int = 0, **kwargs: Any) -> dict[str, Tensor]:
    """A backbone's state dict whose every tensor, running statistics included, is random."""
    torch.manual_seed(seed)
    return _randomize(build_backbone(name, **kwargs).state_dict())


def twins_state(name: str = TINY, projector: str = "32-32-16", seed: int = 0, **kwargs: Any) -> dict[str, Tensor]:
    """The same for backbone, projector and bn."""
    torch.manual_seed(seed)
    return _randomize(BarlowTwins(name, projector, **kwargs).state_dict())


def _randomize(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key: torch.rand_like(tensor) * 0.1 + 0.5 * key.endswith("var") if tensor.is_floating_point() else tensor + 7
        for key, tensor in state.items()
    }


def published_checkpoint(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The layout of the published code's training checkpoint, written under DistributedDataParallel."""
    groups = [
        {"params": [0], "lr": 0, "weight_decay": 1e-6, "momentum": 0.9, "eta": 0.001, "lars_adaptation_filter": True},
        {"params": [1], "lr": 0, "weight_decay": 1e-6, "momentum": 0.9, "eta": 0.001, "lars_adaptation_filter": True},
    ]
    return {
        "epoch": 1000,
        "model": OrderedDict((f"module.{key}", tensor) for key, tensor in state.items()),
        "optimizer": {"state": {0: {"mu": torch.zeros(3)}}, "param_groups": groups},
    }


def saved(value: Any, **options: Any) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def record(name: str, url: str | None = None, **fields: Any) -> dict[str, Any]:
    """An entry of registry.json."""
    return {
        "name": name,
        "summary": "random numbers",
        "backbone": TINY,
        "format": "torchvision",
        "licence": "MIT",
        "citation": "nobody",
        "preprocessing": {"image_size": 32, "resize": None},
        **({} if url is None else {"url": url}),
        **fields,
    }


def write_registry(path: Path, *records: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"weights": records}))
    return path


def equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Same keys, same numbers to the bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# Foreign layouts, each as its makers document it ----------------------------------------------------------------------


def vissl_checkpoint(backbone: Mapping[str, Tensor]) -> dict[str, Any]:
    """vissl keeps the trunk's layers in a ModuleDict named _feature_blocks, deep inside what Classy Vision saves."""
    trunk = {f"_feature_blocks.{key}": tensor for key, tensor in backbone.items()}
    heads = {"0.clf.0.weight": torch.ones(4, 256)}
    return {
        "phase_idx": 299,
        "loss": 3.0,
        "classy_state_dict": {
            "phase_idx": 299,
            "base_model": {"model": {"trunk": trunk, "heads": heads}},
            "optimizer": {"optim": {"state": {}, "param_groups": []}},
        },
    }


def mmpretrain_checkpoint(backbone: Mapping[str, Tensor], head: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """mmpretrain: of a pretraining with its neck, or of a linear evaluation with its classifier."""
    state = {f"backbone.{key}": tensor for key, tensor in backbone.items()}
    state["data_preprocessor.mean"] = torch.ones(3, 1, 1)
    state |= {"neck.fc0.weight": torch.ones(8, 256)} if head is None else {}
    state |= {f"head.fc.{key}": tensor for key, tensor in (head or {}).items()}
    return {"meta": {"mmengine_version": "0.1.0", "epoch": 300}, "state_dict": state}


def lightning_checkpoint(module: torch.nn.Module, **others: Any) -> dict[str, Any]:
    """What Lightning saves of a module after its hundredth epoch, which it calls 99."""
    return {
        "epoch": 99,
        "global_step": 500400,
        "pytorch-lightning_version": "2.0.6",
        "state_dict": OrderedDict(module.state_dict()),
        "callbacks": {},
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "hyper_parameters": {"batch_size_per_device": 256, "num_classes": 10},
        **others,
    }


def lightning_module(style: str, backbone: torch.nn.Module, widths: tuple[int, int, int]) -> torch.nn.Module:
    """The parts of lightly's and solo-learn's Barlow Twins modules under the names that they have there.

    Args:
        style: "lightly" (biases where no batch norm follows) or "solo-learn" (biases everywhere).
        backbone: gives 256 features.
        widths: of the projector.
    """
    from torch import nn

    features = 256
    layers: list[nn.Module] = []
    for before, after in zip((features, *widths[:2]), widths, strict=True):
        last = after is widths[2] and len(layers) == 6
        layers.append(nn.Linear(before, after, bias=last or style == "solo-learn"))
        layers += [] if last else [nn.BatchNorm1d(after), nn.ReLU()]
    module = nn.Module()
    module.backbone = backbone
    if style == "lightly":
        module.projection_head = nn.Module()
        module.projection_head.layers = nn.Sequential(*layers)
        module.online_classifier = nn.Module()
        module.online_classifier.classification_head = nn.Linear(features, 10)
    else:
        module.projector = nn.Sequential(*layers)
        module.classifier = nn.Linear(features, 10)
    return module
