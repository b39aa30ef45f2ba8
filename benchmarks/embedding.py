"""Images a second of `barlowtwins embed`, beside the usual loop, and what that makes of a large number of images.

    python benchmarks/embedding.py [--images 1024] [--backbone resnet50] [--rounds 3] [--for 300000000] [--quick]

Drawn JPEG files of 500 x 375 pixels, a network of random weights at 224 pixels (its values cost as much as trained
ones), on the GPU if there is one. From a list of files to `embeddings.npy`:

    loop    the article's: the eager network, torchvision's transforms, a DataLoader of batches of 32, np.save
    torch   `embed --runtime torch`
    onnx    `embed --runtime onnx` (CPUs), its graph built before

The bound is ONNX Runtime's bare session (on GPUs the bare network) on batches that are there already: neither reads,
decodes nor writes. Also how fast tar shards are indexed: every process reads each header once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from common import write_result
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from barlowtwins.config import EmbedConfig
from barlowtwins.core.device import default_workers, resolve_device
from barlowtwins.data.open import open_source
from barlowtwins.data.preprocess import IMAGENET_MEAN, IMAGENET_STD
from barlowtwins.embedding.embed import embed
from barlowtwins.embedding.embedder import load_embedder

DISTINCT = 64  # files, repeated in a list


def draw(folder: Path) -> list[Path]:
    """JPEG files with edges and a little noise, as photographs have."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(DISTINCT):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        noisy = np.clip(np.asarray(coarse, np.int16) + rng.integers(-12, 13, (375, 500, 3)), 0, 255)
        paths.append(folder / f"{number:03}.jpg")
        Image.fromarray(noisy.astype(np.uint8)).save(paths[-1], quality=85)
    return paths


def indexing(folder: Path, paths: list[Path], count: int) -> float:
    """Images a second of opening a tar archive of `count` images."""
    with tarfile.open(folder / "shard.tar", "w") as archive:
        for number in range(count):
            archive.add(paths[number % len(paths)], f"{number:06}.jpg")
    start = time.perf_counter()
    source = open_source(folder / "shard.tar")
    return len(source) / (time.perf_counter() - start)


class Files(Dataset[Tensor]):
    """The images of a list, as torchvision's own transforms prepare them."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.transform = transforms.Compose([
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Tensor:
        return self.transform(Image.open(self.paths[row]).convert("RGB"))


def usual_loop(weights: Path, backbone: str, paths: list[Path], out: Path, workers: int, device: torch.device) -> None:
    """What one writes without a library."""
    network = torchvision.models.get_model(backbone)
    network.load_state_dict(torch.load(weights), strict=False)
    network.fc = nn.Identity()
    network.eval().to(device)
    parts = []
    with torch.no_grad():
        for images in DataLoader(Files(paths), batch_size=32, num_workers=workers):
            parts.append(network(images.to(device)).cpu().numpy())  # noqa: PERF401
    np.save(out, np.concatenate(parts))


def bare(weights: Path, batch: int, count: int, device: torch.device) -> float:
    """Images a second of the network alone, by the runtime that embeds."""
    runtime = "onnx" if device.type == "cpu" else "torch"
    embedder = load_embedder(weights, device=device, runtime=runtime)
    images = torch.randn(batch, 3, 224, 224).to(device)
    embedder.forward(images)
    start = time.perf_counter()
    turns = max(1, count // batch)
    for _ in range(turns):
        embedder.forward(images)
    return turns * batch / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8192 if torch.cuda.is_available() else 1024)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--for", type=int, default=300_000_000, dest="rows")
    parser.add_argument("--quick", action="store_true", help="a few images, nothing written: does it work?")
    flags = parser.parse_args()
    if flags.quick:
        flags.images, flags.backbone, flags.batch, flags.workers, flags.rounds = 32, "resnet18", 16, 0, 1
    device = resolve_device("auto")
    workers = default_workers() if flags.workers is None else flags.workers
    seconds: dict[str, list[float]] = {}
    steady: dict[str, list[float]] = {}  # without loading, the comparison of runtimes, and joining
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["TORCH_HOME"] = str(folder / "home")  # for the graph
        paths = draw(folder)
        network = torchvision.models.get_model(flags.backbone)
        weights = folder / "weights.pth"
        torch.save({k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}, weights)
        listed = [paths[row % DISTINCT] for row in range(flags.images)]
        (folder / "list.txt").write_text("".join(f"{path}\n" for path in listed))
        rates = [bare(weights, flags.batch, flags.images // 4, device)]
        runtimes = ("torch", "onnx") if device.type == "cpu" else ("torch",)
        for turn in range(flags.rounds):
            start = time.perf_counter()
            usual_loop(weights, flags.backbone, listed, folder / f"{turn}.npy", workers, device)
            seconds.setdefault("loop", []).append(time.perf_counter() - start)
            for runtime in runtimes:
                out = folder / f"out-{runtime}-{turn}"
                start = time.perf_counter()
                done = embed(
                    EmbedConfig(
                        str(folder / "list.txt"),
                        str(weights),
                        str(out),
                        batch_size=flags.batch,
                        workers=flags.workers,
                        runtime=runtime,
                    )
                )
                seconds.setdefault(runtime, []).append(time.perf_counter() - start)
                steady.setdefault(runtime, []).append(done.images_per_second)
            rates.append(bare(weights, flags.batch, flags.images // 4, device))
        apart = np.abs(np.load(out / "embeddings.npy") - np.load(folder / "0.npy")).max()
        headers = indexing(folder, paths, flags.images)
        size = sum(os.path.getsize(path) for path in paths) / DISTINCT
    median = {name: statistics.median(values) for name, values in seconds.items()}
    fastest = min(runtimes, key=lambda name: median[name])
    rate, bound = flags.images / median[fastest], statistics.median(rates)
    on_its_way = statistics.median(steady[fastest])
    for name, value in median.items():
        print(
            f"{name:<6} {value:7.2f} s  {flags.images / value:7.1f} images/s  {median['loop'] / value:5.2f}x the loop"
        )
    print(
        f"bare   {bound:.1f} images/s of the network alone; {rate / bound:.2f} of it, {on_its_way / bound:.2f} once "
        f"loaded ({on_its_way:.1f}); features differ by {apart:.1e}"
    )
    hours = flags.rows / rate / 3600
    print(
        f"{flags.rows:,} images: {hours:,.0f} hours on one such device, {done.dim} features each, "
        f"{flags.rows * done.dim * 4 / 1e12:.2f} TB; tar headers {headers:,.0f} images/s; "
        f"JPEG files of {size / 1e3:.0f} kB"
    )
    if not flags.quick:
        settings = {name: getattr(flags, name) for name in ("images", "backbone", "batch", "rounds")}
        figures = {"images_per_second": rate, "tar_images_per_second": headers, "jpeg_bytes": size}
        ratios = {"to_the_loop": median["loop"] / median[fastest], "of_the_bare_network": rate / bound}
        ratios["of_the_bare_network_once_loaded"] = on_its_way / bound
        settings["workers"] = workers
        result = {
            "settings": settings,
            "seconds": seconds,
            "rates_once_loaded": steady,
            "bare_rates": rates,
            **figures,
            **ratios,
        }
        write_result("embedding", result)


if __name__ == "__main__":
    main()
