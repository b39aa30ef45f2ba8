"""Peak memory and time of a step by micro-batches, against the step in one shot.

    python benchmarks/microbatch.py [--batch 256] [--micro 32] [--backbone resnet18] [--size 64]

Each variant runs in a process of its own, whose peak resident memory (on a GPU: peak allocated memory) is compared with
that of the same process after it has built the network and the batch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from typing import Any

import torch
from common import write_result

from barlowtwins.microbatch import micro_batched_backward
from barlowtwins.model import BarlowTwins

ROUNDS = 3


def measure(settings: dict[str, Any], micro: int | None) -> dict[str, float]:
    """Seconds and peak memory of forward and backward, in this fresh process."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = BarlowTwins(settings["backbone"], settings["projector"]).to(device).train()
    y1, y2 = torch.randn(2, settings["batch"], 3, settings["size"], settings["size"], device=device)
    before = peak(device)
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        if micro is None:
            model(y1, y2).backward()
        else:
            micro_batched_backward(model, y1, y2, micro)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        model.zero_grad()
    return {"seconds": statistics.median(seconds), "megabytes": (peak(device) - before) / 1e6}


def peak(device: torch.device) -> float:
    """Peak memory of this process so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in kB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--micro", type=int, default=32)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--projector", default="2048-2048-2048")
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    settings = {name: getattr(arguments, name) for name in ("batch", "backbone", "projector", "size")}
    context = multiprocessing.get_context("spawn")
    result: dict[str, Any] = {"settings": {**settings, "micro": arguments.micro}}
    for name, micro in (("one shot", None), ("micro-batches", arguments.micro)):
        with context.Pool(1) as pool:
            result[name] = pool.apply(measure, (settings, micro))
        print(f"{name:<14} {result[name]['megabytes']:8.0f} MB  {result[name]['seconds']:6.2f} s")
    one, many = result["one shot"], result["micro-batches"]
    result["memory ratio"] = one["megabytes"] / many["megabytes"]
    result["time ratio"] = many["seconds"] / one["seconds"]
    print(f"{result['memory ratio']:.1f} times less memory for {result['time ratio']:.2f} times the time")
    write_result("microbatch", result)


if __name__ == "__main__":
    main()
