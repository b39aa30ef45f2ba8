"""Images a second of `barlowtwins embed`, and what that makes of a large number of images.

    python benchmarks/embedding.py [--images 2048] [--backbone resnet50] [--for 300000000] [--quick]

Drawn JPEG files of 500 x 375 pixels, a network of random weights at 224 pixels (its values cost as much as trained
ones), on the GPU if there is one. Also how fast tar shards are indexed: every process reads each header once.
"""

from __future__ import annotations

import argparse
import os
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from common import write_result
from PIL import Image

from barlowtwins.config import EmbedConfig
from barlowtwins.data.open import open_source
from barlowtwins.embedding.embed import embed

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--for", type=int, default=300_000_000, dest="rows")
    parser.add_argument("--quick", action="store_true", help="a few images, nothing written: does it work?")
    flags = parser.parse_args()
    if flags.quick:
        flags.images, flags.backbone, flags.batch, flags.workers = 32, "resnet18", 16, 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = draw(folder)
        network = torchvision.models.get_model(flags.backbone)
        torch.save({k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}, folder / "weights.pth")
        names = [f"{paths[row % DISTINCT]}\n" for row in range(flags.images)]
        (folder / "list.txt").write_text("".join(names))
        done = embed(
            EmbedConfig(
                str(folder / "list.txt"),
                str(folder / "weights.pth"),
                str(folder / "out"),
                batch_size=flags.batch,
                workers=flags.workers,
            )
        )
        headers = indexing(folder, paths, flags.images)
        size = sum(os.path.getsize(path) for path in paths) / DISTINCT
    rate = done.images_per_second
    hours = flags.rows / rate / 3600
    print(
        f"{rate:,.1f} images/s; {flags.rows:,} images: {hours:,.0f} hours on one such device, {done.dim} features each,"
    )
    print(
        f"{flags.rows * done.dim * 4 / 1e12:.2f} TB; tar headers {headers:,.0f} images/s; "
        f"JPEG files of {size / 1e3:.0f} kB"
    )
    if not flags.quick:
        settings = {name: getattr(flags, name) for name in ("images", "backbone", "batch", "workers")}
        figures = {"images_per_second": rate, "tar_images_per_second": headers, "jpeg_bytes": size}
        write_result("embedding", {"settings": settings, **figures})


if __name__ == "__main__":
    main()
