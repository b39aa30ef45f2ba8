"""What every benchmark shares: timing in rounds, the machine, and where results go."""

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

from barlowtwins.core.device import device_name, resolve_device
from barlowtwins.core.matmul import CPUINFO, processor_vendor
from barlowtwins.version import __version__

__all__ = ["interleaved", "machine", "write_result"]

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
