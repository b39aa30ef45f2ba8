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

from barlowtwins.model import BarlowTwins, build_backbone

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
