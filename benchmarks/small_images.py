"""Pretraining on small images in memory: seconds of ours against lightly's loss, transforms and DataLoader.

    python benchmarks/small_images.py [--images 10000] [--epochs 1] [--rounds 3] [--workers N] [--quick]

Fashion-MNIST; network, projector, batch size, epochs and the rest of the training loop are equal (see learning.py, from
which both candidates come). Each is timed as its users run it: lightly with as many reading processes as there are
cores, ours from memory with none. `--workers 0` gives lightly none either. On a GPU the network is a ResNet-18 with the
3x3 stem, all 60,000 images, and 16 reading processes if there are as many cores.

The bound is the network alone: the same steps on views that are there already.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from typing import Any

import torch
from common import new_trainer, twins, write_result
from learning import DATA, arguments, lightly, network, ours, some

from barlowtwins.data.open import open_source
from barlowtwins.data.sources import ArraySource


def bare(source: ArraySource, seed: int, settings: argparse.Namespace) -> float:
    """Seconds of network, loss and update for as many steps, on views that are random numbers."""
    device = settings.device
    trainer = new_trainer(network(settings, seed, device), settings.batch_size, device)
    batch = twins(*torch.randn(2, settings.batch_size, 1, 28, 28, device=device))  # one channel: both layouts at once
    steps = len(source) // settings.batch_size * settings.epochs
    start = time.perf_counter()
    for _ in range(steps):
        trainer.train_step(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--images", type=int, default=60_000 if torch.cuda.is_available() else 10_000)
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1), help="of lightly's DataLoader")
    parser.add_argument("--quick", action="store_true", help="a few images, nothing written: does it work?")
    flags = parser.parse_args()
    sys.argv[1:] = ["--quick"] if flags.quick else []
    settings = arguments()  # network, projector and batch size of learning.py
    if flags.quick:
        flags.rounds, flags.workers = 1, 0
    else:
        settings.epochs, settings.images, settings.batch_size = flags.epochs, flags.images, 256
    opened = open_source(DATA)
    assert isinstance(opened, ArraySource)
    source = some(opened, settings.images)
    seconds: dict[str, list[float]] = {"ours": [], "lightly": [], "network alone": []}
    for seed in range(flags.rounds):
        for name, candidate in (("ours", ours), ("lightly", lightly)):
            settings.workers = 0 if name == "ours" else flags.workers
            seconds[name].append(candidate(source, seed, settings)[1])
        seconds["network alone"].append(bare(source, seed, settings))
        print(
            f"round {seed}: " + ", ".join(f"{name} {values[-1]:.1f} s" for name, values in seconds.items()), flush=True
        )
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratio, bound = median["lightly"] / median["ours"], median["network alone"] / median["ours"]
    rate = len(source) // settings.batch_size * settings.batch_size * settings.epochs / median["ours"]
    print(f"{ratio:.2f} times as fast as lightly; {rate:,.0f} images/s, {bound:.0%} of the network alone")
    if not flags.quick:
        shown: dict[str, Any] = {
            name: str(value) for name, value in vars(settings).items() if name not in ("only", "quick")
        }
        shown["workers"] = f"lightly {flags.workers}, ours 0"
        result = {"settings": shown, "seconds": seconds, "ratio": ratio, "of_the_network_alone": bound}
        write_result("small_images", result)


if __name__ == "__main__":
    main()
