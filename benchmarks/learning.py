"""What is learned in the same time: ours, lightly's components and the published loop on Fashion-MNIST.

    python benchmarks/learning.py [--quick] [--seeds 3] [--images 8000] [--epochs 3] [--backbone resnet10_x0_5] ...

Equal for all: images, network, projector, batch size, epochs. Each has its own views, loss, optimizer and schedule, and
reads as its users would: ours from memory, the others by as many processes as there are cores (`--workers`).

    ours        `barlowtwins pretrain` with the fashion-mnist recipe
    lightly     its loss and SimCLR transform without blur; SGD 0.06 x batch / 128, momentum 0.9, weight decay 5e-4,
                cosine by epoch (its CIFAR-10 benchmark's settings, apart from the network)
    published   the published loop, re-expressed: its operations on PIL images, the D x D loss, LARS with 0.2 and
                0.0048, weight decay 1e-6; the warm-up is a tenth of the run: ten epochs would be more than all of it

Judged alike: kNN (k = 20, cosine, temperature 0.07) and a linear probe (multinomial logistic regression on standardised
features, penalty 1e-3, to convergence), bank and training rows the images of the pretraining, queries the test split,
images as they are. Seconds are those of training alone. Means and deviations over seeds go to results/learning.json,
unless --quick.

On a CPU the defaults take about 20 minutes on two cores (29 in a slow hour of theirs); on a GPU they are all 60,000
images, ResNet-18 with the 3x3 stem, a projector of 2048 and 30 epochs.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from common import write_result
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from barlowtwins.config import PretrainConfig
from barlowtwins.core.device import autocast, memory_layout, resolve_device, resolve_precision, usable_cores
from barlowtwins.data.open import open_source
from barlowtwins.data.sources import ArraySource
from barlowtwins.metrics.knn import Labeled, knn_accuracy
from barlowtwins.metrics.logistic import fit_logistic
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.optim import build_optimizer, learning_rate_factor
from barlowtwins.pretraining import pretrain
from barlowtwins.train.recipes import load_recipe
from barlowtwins.views.transform import Augmentation, TwinTransform
from barlowtwins.zoo.weights import load_weights

# N images in a batch, D projector width, S side in pixels

DATA = "fashion-mnist"
GREY = {"mean": [0.5], "std": [0.5]}
PENALTY = 1e-3
Views = tuple[Tensor, Tensor]  # (N, 1, S, S) each


class Pairs(Dataset[Views]):
    """Two views of each image by a transform of PIL images."""

    def __init__(self, source: ArraySource, transform: Callable[[Any], Any]) -> None:
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Views:
        first, second = self.transform(self.source.read(index))
        return first, second


def network(settings: argparse.Namespace, seed: int, device: torch.device) -> BarlowTwins:
    torch.manual_seed(seed)
    model = BarlowTwins(settings.backbone, settings.projector, stem=settings.stem, channels=1).to(device).train()
    return model.to(memory_format=memory_layout(device))  # as ours runs


def loader(source: ArraySource, transform: Callable[[Any], Any], settings: argparse.Namespace) -> DataLoader[Views]:
    workers = settings.workers
    return DataLoader(
        Pairs(source, transform),
        settings.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=settings.device.type == "cuda",
    )


def passes(
    model: BarlowTwins,
    batches: DataLoader[Views],
    loss: Callable[[Tensor, Tensor], Tensor],
    settings: argparse.Namespace,
) -> Iterator[tuple[int, int]]:
    """Forward and backward of each batch; yields (epoch, step) for the caller to set its rates and update."""
    device, step = settings.device, 0
    precision = resolve_precision("auto", device)
    for epoch in range(settings.epochs):
        for y1, y2 in batches:
            with autocast(device, precision):
                z1, z2 = (model.embed(y.to(device, non_blocking=True)) for y in (y1, y2))
            loss(z1.float(), z2.float()).backward()
            yield epoch, step
            model.zero_grad()
            step += 1


def ours(source: ArraySource, seed: int, settings: argparse.Namespace) -> tuple[nn.Module, float]:
    # A part of a data set has no name that the command takes, so it is handed over where the data would be opened.
    with (
        tempfile.TemporaryDirectory() as run,
        mock.patch("barlowtwins.train.setup.open_source", return_value=source),
    ):
        start = time.perf_counter()
        result = pretrain(
            PretrainConfig(
                DATA,
                run,
                recipe=DATA,
                backbone=settings.backbone,
                stem=settings.stem,
                projector=settings.projector,
                batch_size=settings.batch_size,
                epochs=settings.epochs,
                workers=settings.workers,
                seed=seed,
                val="none",
                report_every=0,
            )
        )
        seconds = time.perf_counter() - start
        assert result.plan.images == len(source)
        return load_weights(run).build().to(settings.device), seconds


def lightly(source: ArraySource, seed: int, settings: argparse.Namespace) -> tuple[nn.Module, float]:
    from lightly.loss import BarlowTwinsLoss
    from lightly.transforms import SimCLRTransform

    model = network(settings, seed, settings.device)
    transform = SimCLRTransform(input_size=28, gaussian_blur=0.0, normalize=GREY)
    batches, criterion = loader(source, transform, settings), BarlowTwinsLoss()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.06 * settings.batch_size / 128, momentum=0.9, weight_decay=5e-4
    )
    peak = optimizer.param_groups[0]["lr"]
    start = time.perf_counter()
    for epoch, _ in passes(model, batches, criterion, settings):
        optimizer.param_groups[0]["lr"] = peak * 0.5 * (1 + math.cos(math.pi * epoch / settings.epochs))
        optimizer.step()
    return model.backbone, time.perf_counter() - start


def published(source: ArraySource, seed: int, settings: argparse.Namespace) -> tuple[nn.Module, float]:
    model = network(settings, seed, settings.device)
    recipe = Augmentation("published", size=28, mean=(0.5,), std=(0.5,), channels=1)  # all other numbers as published
    batches = loader(source, TwinTransform(recipe, "pillow"), settings)
    scale = settings.batch_size / 256
    optimizer = build_optimizer("lars", model, lr=0.2 * scale, lr_bias=0.0048 * scale, weight_decay=1e-6)
    norm = nn.BatchNorm1d(int(settings.projector.split("-")[-1]), affine=False).to(settings.device)

    def loss(z1: Tensor, z2: Tensor) -> Tensor:
        c = norm(z1).T @ norm(z2) / len(z1)  # (D, D)
        on = (c.diagonal() - 1).square().sum()
        return on + 0.0051 * (c.square().sum() - c.diagonal().square().sum())

    steps = len(batches) * settings.epochs
    start = time.perf_counter()
    for _, step in passes(model, batches, loss, settings):
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * learning_rate_factor(step, steps=steps, warmup_steps=steps // 10)
        optimizer.step()
    return model.backbone, time.perf_counter() - start


@torch.no_grad()
def features(backbone: nn.Module, source: ArraySource, device: torch.device) -> Tensor:
    """(N, F) of the images as they are."""
    backbone.eval()
    images = torch.tensor(source.images)[:, None]  # (N, 1, 28, 28) uint8
    parts = [backbone((part.to(device).float() / 255 - 0.5) / 0.5).float().cpu() for part in images.split(500)]
    return torch.cat(parts)


def judge(backbone: nn.Module, train: ArraySource, test: ArraySource, device: torch.device) -> dict[str, float]:
    x, queries = features(backbone, train, device), features(backbone, test, device)
    assert train.labels is not None
    assert test.labels is not None
    knn = knn_accuracy(Labeled(x, train.labels), Labeled(queries, test.labels), k=20, temperature=0.07)[20].top1
    fit = fit_logistic(x, torch.from_numpy(train.labels), num_classes=10, l2=PENALTY, tolerance=1e-3)
    right = fit.logits(queries).argmax(1) == torch.from_numpy(test.labels)
    return {"knn": knn, "linear": 100 * right.double().mean().item()}


def some(source: ArraySource, count: int) -> ArraySource:
    """The first `count` images: their order has no pattern."""
    assert source.labels is not None
    return ArraySource(source.name, source.images[:count], source.labels[:count], source.classes)


CANDIDATES: dict[str, Callable[[ArraySource, int, argparse.Namespace], tuple[nn.Module, float]]] = {
    "ours": ours,
    "lightly": lightly,
    "published": published,
}


def arguments() -> argparse.Namespace:
    device = resolve_device("auto")
    gpu = device.type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=60_000 if gpu else 8_000)
    parser.add_argument("--epochs", type=int, default=30 if gpu else 3)
    parser.add_argument("--batch-size", type=int, default=256 if gpu else 128)
    parser.add_argument("--backbone", default="resnet18" if gpu else "resnet10_x0_5")
    parser.add_argument("--stem", default="small" if gpu else "small-stride2")
    parser.add_argument("--projector", default="2048-2048-2048" if gpu else "1024-1024-1024")
    parser.add_argument("--workers", type=int, default=min(16, usable_cores()))
    parser.add_argument("--only", nargs="+", choices=sorted(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--quick", action="store_true", help="a try of a minute, whose figures mean nothing")
    found = parser.parse_args()
    found.device = device
    if found.quick:
        found.seeds, found.images, found.epochs, found.batch_size, found.projector = 2, 256, 1, 64, "64-64"
        found.workers = 0
    return found


def main() -> None:
    settings = arguments()
    opened = open_source(DATA), open_source(DATA, split="test")
    assert all(isinstance(source, ArraySource) for source in opened)
    train, test = some(opened[0], settings.images), some(opened[1], 500 if settings.quick else 10_000)  # type: ignore[arg-type]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in settings.only}
    for seed in range(settings.seeds):
        for name in settings.only:  # in turn, so that a slow hour of the machine hits all of them
            backbone, seconds = CANDIDATES[name](train, seed, settings)
            runs[name].append({**judge(backbone, train, test, settings.device), "seconds": seconds})
            print(f"seed {seed}, {name}: {runs[name][-1]}", flush=True)
    table = {name: summarize(found) for name, found in runs.items()}
    for name, row in table.items():
        cells = [f"{what} {row[what]['mean']:6.2f} +- {row[what]['deviation']:.2f}" for what in row]
        print(f"{name:<10} {'   '.join(cells)}")
    verdicts = compare(table) if "ours" in table and len(table) > 1 else {}
    for what, words in verdicts.items():
        print(f"{what}: {words}")
    if not settings.quick:
        shown = {
            name: value for name, value in vars(settings).items() if name not in ("data", "device", "quick", "only")
        }
        shown["ours"] = load_recipe(DATA)
        write_result("learning", {"settings": shown, "runs": runs, "summary": table, "verdicts": verdicts})


def summarize(found: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over seeds of each number."""
    columns = {what: [run[what] for run in found] for what in found[0]}
    return {
        what: {"mean": statistics.mean(x), "deviation": statistics.stdev(x) if len(x) > 1 else 0.0}
        for what, x in columns.items()
    }


def compare(table: dict[str, dict[str, dict[str, float]]]) -> dict[str, str]:
    """Ours against the best of the others: behind by more than one deviation or not; for seconds, the ratio."""
    mine, others = table["ours"], {name: row for name, row in table.items() if name != "ours"}
    said = {}
    for what in ("knn", "linear"):
        name, row = max(others.items(), key=lambda item: item[1][what]["mean"])
        gap = mine[what]["mean"] - row[what]["mean"]
        allowed = float(np.hypot(mine[what]["deviation"], row[what]["deviation"]))
        said[what] = f"{gap:+.2f} to {name}, {'behind' if gap < -allowed else 'not behind'} (deviation {allowed:.2f})"
    name, row = min(others.items(), key=lambda item: item[1]["seconds"]["mean"])
    said["seconds"] = f"{row['seconds']['mean'] / mine['seconds']['mean']:.2f} times as fast as {name}"
    return said


if __name__ == "__main__":
    main()
