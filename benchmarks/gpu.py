"""What one GPU does, in one call of under eight minutes: loss, optimizer, training step, files to step, embedding.

    python benchmarks/gpu.py [--only loss lars ...] [--quick]

| part | compared with |
|---|---|
| loss | the published formula, in fp32, TF32, on bf16 embeddings: time, peak memory, error of the gradient |
| lars | a loop over the parameters, as published |
| resident | ResNet-50 at 224 on views that lie on the device, bf16, channels_last; compiled or not |
| files | the same step fed from JPEG files, with every core reading |
| small | seconds an epoch of Fashion-MNIST with ResNet-18, from memory on the device |
| embedding | `encode` of JPEG files, with the same network on a batch that lies on the device; compiled or not |
| waiting | how often the host waits for the device in a step, by the profiler: only for the end of the step before |

Parts are written to results/gpu.json one by one, so that what was measured is kept if time runs out. Without a GPU it
runs with --quick alone: tiny sizes, to see that it works.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import interleaved, new_trainer, twins, write_result
from embedding import draw
from loss import LAMBD, published
from torch import Tensor

from barlowtwins.config import PretrainConfig
from barlowtwins.core.device import default_workers, memory_layout, resolve_device
from barlowtwins.data.open import open_source
from barlowtwins.embedding.embedder import load_embedder
from barlowtwins.loss import barlow_twins_loss
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.optim import build_optimizer
from barlowtwins.pretraining import pretrain
from barlowtwins.train.trainer import Trainer
from barlowtwins.views.executors import Executor
from barlowtwins.views.transform import TwinTransform
from barlowtwins.views.twins import TwinBatch, plan_batches

IMAGENET, EPOCHS = 1_281_167, 1000  # images and epochs of the paper's run


class Sizes(NamedTuple):
    """How much of everything."""

    losses: tuple[tuple[int, int], ...] = ((256, 8192), (1024, 8192), (2048, 8192))
    backbone: str = "resnet50"
    projector: str = "8192-8192-8192"
    batch: int = 256
    side: int = 224
    steps: int = 20
    files: int = 12_800
    small: tuple[str, str, int, int] = ("resnet18", "2048-2048-2048", 256, 3)  # backbone, projector, batch, epochs
    images: int | None = None  # of Fashion-MNIST; None: all


QUICK = Sizes(((8, 64), (64, 8)), "resnet18", "32-32", 4, 32, 2, 24, ("resnet10_x0_5", "32-32", 8, 1), 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing written: does it work?")
    flags = parser.parse_args()
    device = resolve_device("auto")
    if device.type == "cpu" and not flags.quick:
        print("left out: there is no GPU here (--quick tries the parts on this CPU)")
        return
    sizes = QUICK if flags.quick else Sizes()
    results: dict[str, Any] = {}
    for name in flags.only:
        start = time.perf_counter()
        results[name] = PARTS[name](sizes, device)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        if not flags.quick:
            write_result("gpu", {"sizes": sizes._asdict(), **results})
    if "resident" in results:
        rate = max(row["pairs_per_second"] for row in results["resident"])
        hours = IMAGENET * EPOCHS / rate / 3600
        print(f"{EPOCHS} epochs of ImageNet at {rate:,.0f} pairs/s: {hours:,.0f} hours, {hours / 24:.1f} days")


def loss(sizes: Sizes, device: torch.device) -> list[dict[str, Any]]:
    rows = []
    for (n, d), form in itertools.product(sizes.losses, ("fp32", "tf32", "bf16")):
        torch.set_float32_matmul_precision("high" if form == "tf32" else "highest")
        dtype = torch.bfloat16 if form == "bf16" else torch.float32
        generator = torch.Generator().manual_seed(0)
        z1 = torch.randn(n, d, generator=generator)
        z2 = z1 + 0.3 * torch.randn(n, d, generator=generator)
        views = [z.to(device, dtype) for z in (z1, z2)]
        exact = _gradient(published, [z.double() for z in views])
        candidates: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "published": lambda a, b: published(a.float(), b.float()),
            "ours": lambda a, b: barlow_twins_loss(a, b, LAMBD).loss,
        }
        calls = {name: functools.partial(_gradient, function, views) for name, function in candidates.items()}
        times = interleaved(calls, rounds=7)
        row: dict[str, Any] = {"N": n, "D": d, "precision": form}
        for name, call in calls.items():
            memory, gradient = _peak(call, device)
            error = (gradient.double() - exact).norm() / exact.norm()
            row[name] = {**times[name], "peak_bytes": memory, "gradient_error": error.item()}
        row["ratio"] = row["published"]["median"] / row["ours"]["median"]
        rows.append(row)
        print(
            f"loss N {n:5}  D {d:5}  {form}  published {row['published']['median'] * 1e3:8.2f} ms  "
            f"ours {row['ours']['median'] * 1e3:7.2f} ms  {row['ratio']:5.1f}x  memory "
            f"{row['published']['peak_bytes'] / 1e6:6.0f} and {row['ours']['peak_bytes'] / 1e6:5.0f} MB  "
            f"errors {row['published']['gradient_error']:.1e} and {row['ours']['gradient_error']:.1e}"
        )
    torch.set_float32_matmul_precision("highest")
    return rows


def _gradient(function: Callable[[Tensor, Tensor], Tensor], views: list[Tensor]) -> Tensor:
    """Of the first view, (N, D)."""
    leaves = [z.detach().requires_grad_() for z in views]
    return torch.autograd.grad(function(*leaves), leaves)[0]


def _peak(call: Callable[[], Tensor], device: torch.device) -> tuple[int, Tensor]:
    """Bytes that a call allocates at most beyond what is there (0 on a CPU), and its result."""
    if device.type != "cuda":
        return 0, call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, result


def lars(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    model = BarlowTwins(sizes.backbone, sizes.projector).to(device)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    twin = copy.deepcopy(model)
    for p, q in zip(twin.parameters(), model.parameters(), strict=True):
        p.grad = q.grad
    optimizer = build_optimizer("lars", model, lr=0.2, lr_bias=0.005, weight_decay=1e-6)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3 * group["peak_lr"]
    buffers = [torch.zeros_like(p) for p in twin.parameters()]

    @torch.no_grad()
    def loop() -> None:
        """The published update, re-expressed, one parameter after another."""
        for p, buffer in zip(twin.parameters(), buffers, strict=True):
            update, rate = p.grad, 0.005e-3
            assert update is not None
            if p.ndim > 1:
                update, rate = update + 1e-6 * p, 0.2e-3
                p_norm, g_norm = p.norm(), update.norm()
                one = torch.ones_like(p_norm)
                ratio = torch.where(p_norm > 0, torch.where(g_norm > 0, 0.001 * p_norm / g_norm, one), one)
                update = update * ratio
            buffer.mul_(0.9).add_(update)
            p.add_(buffer, alpha=-rate)

    times = interleaved({"loop": loop, "ours": optimizer.step}, rounds=10)
    apart = max((p - q).abs().max().item() for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    ratio = times["loop"]["median"] / times["ours"]["median"]
    print(
        f"LARS: loop {times['loop']['median'] * 1e3:.2f} ms, ours {times['ours']['median'] * 1e3:.2f} ms, {ratio:.1f}x"
    )
    return {**times, "ratio": ratio, "largest_difference_after_11_steps": apart}


def _new_trainer(sizes: Sizes, device: torch.device, *, compiled: bool = False) -> Trainer:
    torch.manual_seed(0)
    trainer = new_trainer(BarlowTwins(sizes.backbone, sizes.projector), sizes.batch, device)
    if compiled:
        trainer.network = torch.compile(trainer.network)  # type: ignore[assignment]
    return trainer


def _resident_batch(sizes: Sizes, device: torch.device) -> TwinBatch:
    y1, y2 = torch.randn(2, sizes.batch, 3, sizes.side, sizes.side, device=device)
    layout = memory_layout(device)
    return twins(y1.contiguous(memory_format=layout), y2.contiguous(memory_format=layout))


def resident(sizes: Sizes, device: torch.device) -> list[dict[str, Any]]:
    rows = []
    for compiled in (False, True) if device.type == "cuda" else (False,):
        trainer = _new_trainer(sizes, device, compiled=compiled)
        step = functools.partial(trainer.train_step, _resident_batch(sizes, device))
        seconds = _per_call(step, sizes.steps, device)
        rate, precision = sizes.batch / seconds, trainer.how.precision
        rows.append({"compiled": compiled, "precision": precision, "pairs_per_second": rate})
        memory = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else math.nan
        print(f"resident, compiled {compiled}: {rate:,.1f} pairs/s, at most {memory:.1f} GB")
    return rows


def _per_call(call: Callable[[], Any], rounds: int, device: torch.device) -> float:
    """Seconds a call takes in a row of them, after two that do not count."""
    call()
    call()
    _wait(device)
    start = time.perf_counter()
    for _ in range(rounds):
        call()
    _wait(device)
    return (time.perf_counter() - start) / rounds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def files(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        source = open_source(_listed(Path(temporary), sizes.files))
        transform = TwinTransform("imagenet", size=sizes.side, seed=0)
        executor, workers = Executor(source, transform, device), default_workers()
        trainer = _new_trainer(sizes, device)
        order = plan_batches(len(source), sizes.batch, seed=0, start=0, stop=len(source) // sizes.batch)
        step = functools.partial(trainer.train_step, _resident_batch(sizes, device))
        bare = sizes.batch / _per_call(step, sizes.steps, device)
        stamps = []
        with executor.batches(order, workers=workers) as batches:
            for batch in batches:
                trainer.train_step(batch)
                _wait(device)
                stamps.append(time.perf_counter())
    warm = min(len(stamps) // 3, 2 * workers)  # batches that were read while nobody waited for them
    rate = sizes.batch * (len(stamps) - 1 - warm) / (stamps[-1] - stamps[warm])
    print(f"files: {rate:,.1f} pairs/s with {workers} workers, {executor}; {rate / bare:.2f} of resident {bare:,.1f}")
    return {"pairs_per_second": rate, "resident": bare, "of_resident": rate / bare, "workers": workers}


def _listed(folder: Path, count: int) -> Path:
    """A list of `count` drawn JPEG files, some of which repeat."""
    paths = draw(folder)
    (folder / "list.txt").write_text("".join(f"{path}\n" for path in itertools.islice(itertools.cycle(paths), count)))
    return folder / "list.txt"


def small(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    backbone, projector, batch, epochs = sizes.small
    data = "fashion-mnist" if sizes.images is None else "shapes"
    steps = None if sizes.images is None else sizes.images // batch
    with tempfile.TemporaryDirectory() as run:
        config = PretrainConfig(
            data,
            run,
            recipe="fashion-mnist" if sizes.images is None else "shapes",
            backbone=backbone,
            projector=projector,
            batch_size=batch,
            epochs=epochs,
            max_steps=steps,
            val="none",
            report_every=0,
        )
        start = time.perf_counter()
        done = pretrain(config)
        seconds = time.perf_counter() - start
    rate = done.images_per_second or math.nan
    print(f"small: {rate:,.0f} images/s, {60_000 / rate:.2f} s an epoch of 60,000; {seconds:.1f} s in all")
    return {"images_per_second": rate, "seconds_of_60000": 60_000 / rate, "backbone": backbone, "batch": batch}


def embedding(sizes: Sizes, device: torch.device) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        source = open_source(_listed(Path(temporary), sizes.files))
        paths = [source.key(row) for row in range(len(source))]
        weights = Path(temporary) / "weights.pth"
        torch.save(BarlowTwins(sizes.backbone, "8-8").backbone.state_dict(), weights)
        images = torch.randn(sizes.batch, 3, sizes.side, sizes.side, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        for runtime in ("torch", "compiled") if device.type == "cuda" else ("torch",):
            start = time.perf_counter()
            embedder = load_embedder(weights, device=device, image_size=sizes.side, runtime=runtime)
            embedder.encode(paths[: sizes.batch])  # the first call opens files and picks algorithms
            ready = time.perf_counter() - start
            bare = sizes.batch / _per_call(functools.partial(embedder.forward, images), sizes.steps, device)
            start = time.perf_counter()
            features = embedder.encode(paths, batch_size=sizes.batch)
            rate = len(features) / (time.perf_counter() - start)
            rows.append({"runtime": runtime, "images_per_second": rate, "resident": bare, "of_resident": rate / bare})
            rows[-1] |= {"precision": embedder.precision, "seconds_before": ready}
            print(
                f"embedding, {runtime}, {embedder.precision}: {rate:,.1f} images/s from files, {rate / bare:.2f} of "
                f"resident {bare:,.1f}, after {ready:.1f} s"
            )
    return rows


def waiting(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Calls with which the host waits for the device: none in network, loss and update, one event in the guard.

    That event is the end of the step before, which passed long ago unless the host is a whole step ahead.
    """
    trainer, batch = _new_trainer(sizes, device), _resident_batch(sizes, device)
    trainer.train_step(batch)
    _wait(device)
    with torch.profiler.profile() as profile:
        for _ in range(3):
            trainer.train_step(batch)
    names = [event.key for event in profile.key_averages() for _ in range(event.count)]
    waits = [name for name in names if "Synchronize" in name]
    events = waits.count("cudaEventSynchronize")
    print(f"waiting: 3 steps wait {events} times for the step before, {len(waits) - events} times for themselves")
    return {"steps": 3, "waits": waits}


PARTS: dict[str, Callable[[Sizes, torch.device], Any]] = {
    "loss": loss,
    "lars": lars,
    "resident": resident,
    "files": files,
    "small": small,
    "embedding": embedding,
    "waiting": waiting,
}


if __name__ == "__main__":
    main()
