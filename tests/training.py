"""Tiny trainings, a second each on one core, and what of two of them must be equal to the bit."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from barlowtwins.config import PretrainConfig
from barlowtwins.pretraining import pretrain

torch.set_num_threads(1)  # as the processes of `pool`: sums depend on how they are shared out

TINY = PretrainConfig(
    "shapes:64",
    out="",
    backbone="resnet10_x0_5",
    projector="32-32",
    image_size=16,
    batch_size=16,
    epochs=3,
    lr=0.02,
    log_every=1,
    report_every=0,
    workers=0,
    device="cpu",
)
"""Twelve steps in three epochs."""


def tiny(out: Path, **changes: Any) -> PretrainConfig:
    """`TINY` with another folder and other settings."""
    return dataclasses.replace(TINY, out=str(out), **changes)


def words(config: PretrainConfig) -> list[str]:
    """`config` as arguments of the command line."""
    found = ["pretrain", config.data]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name != "data" and value != field.default:
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            found += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return found


def log(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the rates, which no two runs share. A line that is being written is left out."""
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return [{name: value for name, value in record.items() if name != "images_per_second"} for record in records]


def steps(run: Path) -> list[int]:
    """Steps whose loss is logged."""
    return [record["step"] for record in log(run) if "loss" in record]


def outcome(run: Path) -> dict[str, Any]:
    """What a run came to: its log and its weights."""
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in run.glob("*.safetensors")}
    assert sorted(digests) == ["backbone.safetensors", "model.safetensors"]
    return {"log": log(run), **digests}


@functools.cache
def uninterrupted(**changes: Any) -> dict[str, Any]:
    """The outcome of a run of `TINY`, with other settings, that nothing disturbs."""
    with tempfile.TemporaryDirectory() as folder:
        pretrain(tiny(Path(folder), **changes))
        return outcome(Path(folder))


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Look every 20 ms until `condition` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def equal(a: Any, b: Any) -> bool:
    """Whether two nests of plain data and tensors are the same, types and bits included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if dataclasses.is_dataclass(a):
        return equal(vars(a), vars(b))
    return bool(a == b)


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: a write fails with a real error of the system."""
    resource = pytest.importorskip("resource", reason="limits of POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
