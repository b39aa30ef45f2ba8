"""What every benchmark shares: timing in rounds, the training step, the machine, and where results go."""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from barlowtwins.config import PretrainConfig
from barlowtwins.core.device import device_name, resolve_device, resolve_precision
from barlowtwins.core.distributed import World
from barlowtwins.core.matmul import CPUINFO, processor_vendor
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.train.recipes import resolve
from barlowtwins.train.trainer import StepSettings, Trainer, prepare
from barlowtwins.version import __version__
from barlowtwins.views.twins import Rows, TwinBatch

__all__ = ["interleaved", "machine", "new_trainer", "twins", "write_result"]

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    return {
        "device": device_name(resolve_device("auto")),
        "processor": f"{processor_vendor(CPUINFO)} {torch.backends.cpu.get_cpu_capability()}".strip(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "barlowtwins": __version__,
        "date": datetime.date.today().isoformat(),
    }


def new_trainer(model: BarlowTwins, batch_size: int, device: torch.device, *, micro: int | None = None) -> Trainer:
    """What trains `model` as a run does: LARS, the run's memory layout and precision."""
    rates = {"optimizer": "lars", "lr": 0.2, "lr_bias": 3e-4, "weight_decay": 1e-6}
    config = PretrainConfig("shapes", "unused", recipe="imagenet-300ep", batch_size=batch_size, **rates)  # type: ignore[arg-type]
    settings = resolve(config, channels=3, size=None)
    world = World(0, 1, device)
    how = StepSettings(100_000, 1000, resolve_precision("auto", device), micro)
    return Trainer(model, prepare(model, settings, world), how, world, step=10)  # the rate of step 0 is 0


def twins(y1: Tensor, y2: Tensor) -> TwinBatch:
    """Two views (N, C, S, S) as a batch of a run."""
    return TwinBatch(Rows(0, 0, tuple(range(len(y1)))), y1, y2, {}, False)


def interleaved(
    candidates: dict[str, Callable[[], Any]], *, rounds: int, warm_up: bool = True
) -> dict[str, dict[str, float]]:
    """Time every candidate once a round, in turn, so that a slow moment of the machine hits all of them.

    Returns:
        For each name the median of its seconds, the least and the most.
    """
    for function in candidates.values() if warm_up else ():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, function in candidates.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {"median": statistics.median(values), "least": min(values), "most": max(values)}
        for name, values in seconds.items()
    }


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write `results/NAME.json` with the machine and versions beside the figures."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**result, "machine": machine()}, indent=2) + "\n", encoding="utf-8")
    print(f"written: {path}")
    return path
