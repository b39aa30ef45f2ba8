"""Peak memory and time of a step by micro-batches, against the step in one shot.

    python benchmarks/microbatch.py [--batch 256] [--micro 32] [--backbone resnet18] [--size 64] [--quick]

Each variant runs in a process of its own. Memory is the most that the step held above what the process held before it,
with the network and the batch in place: resident memory on a CPU (Linux), allocated memory on a GPU. Gradients and the
optimizer's momentum are part of it in both variants.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import new_trainer, twins, write_result

from barlowtwins.core.device import resolve_device
from barlowtwins.models.barlow_twins import BarlowTwins


def measure(settings: dict[str, Any], micro: int | None) -> dict[str, float]:
    """Seconds and peak memory of a training step, in this fresh process."""
    torch.manual_seed(0)
    device = resolve_device("auto")
    model = BarlowTwins(settings["backbone"], settings["projector"])
    trainer = new_trainer(model, settings["batch"], device, micro=micro)
    batch = twins(*torch.randn(2, settings["batch"], 3, settings["size"], settings["size"], device=device))
    before = start_of_peak(device)
    seconds = []
    for _ in range(settings["rounds"]):
        start = time.perf_counter()
        trainer.train_step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "megabytes": (peak(device) - before) / 1e6}


def start_of_peak(device: torch.device) -> float:
    """Memory held now, in bytes; the peak counts from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def peak(device: torch.device) -> float:
    """The most memory held since `start_of_peak`, in bytes."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else resident("VmHWM")


def resident(what: str) -> float:
    """A line of /proc/self/status in bytes: unlike getrusage, it knows nothing of the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(what))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--micro", type=int, default=32)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--projector", default="2048-2048-2048")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a small batch, nothing written: does it work?")
    flags = parser.parse_args()
    if flags.quick:
        flags.batch, flags.micro, flags.projector, flags.rounds = 64, 8, "64-64", 1
    settings = {name: getattr(flags, name) for name in ("batch", "backbone", "projector", "size", "rounds")}
    context = multiprocessing.get_context("spawn")
    result: dict[str, Any] = {"settings": {**settings, "micro": flags.micro}}
    for name, micro in (("one shot", None), ("micro-batches", flags.micro)):
        with context.Pool(1) as pool:
            result[name] = pool.apply(measure, (settings, micro))
        print(f"{name:<14} {result[name]['megabytes']:8.0f} MB  {result[name]['seconds']:6.2f} s")
    one, many = result["one shot"], result["micro-batches"]
    result["memory ratio"] = one["megabytes"] / many["megabytes"]
    result["time ratio"] = many["seconds"] / one["seconds"]
    print(f"{result['memory ratio']:.1f} times less memory for {result['time ratio']:.2f} times the time")
    if not flags.quick:
        write_result("microbatch", result)


if __name__ == "__main__":
    main()
