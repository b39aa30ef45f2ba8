"""Two views of a JPEG file on one core, from the file to what the device gets: ours, the published pipeline, lightly's.

    python benchmarks/views.py [--images 64] [--rounds 7] [--quick]

Drawn photographs of 500 x 375 pixels, the published recipe at 224 pixels:

    published   its operations on PIL images by torchvision, file to two normalised float tensors
    lightly     its BYOL transform, the nearest of its own to that recipe; "not installed" where it is not
    pillow      `TwinTransform(backend="pillow")`: the same pixels as the published one
    fast        what a reading process of `--augment-backend fast` does: both views as uint8; the device normalises

The bound is the decoder alone: no pipeline can be faster than reading the file.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import interleaved, write_result
from embedding import draw
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms

from barlowtwins.data.fast_jpeg import read_pixels
from barlowtwins.data.preprocess import IMAGENET_MEAN, IMAGENET_STD
from barlowtwins.views.transform import TwinTransform


class Blur:
    """With probability p, a Gaussian blur of a radius uniform in 0.1-2."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() >= self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


class Solarize:
    """With probability p, levels from 128 on are inverted."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.solarize(image) if random.random() < self.p else image


def published(blur: float, solarize: float) -> Callable[[Image.Image], torch.Tensor]:
    """One of the two published pipelines, re-expressed."""
    return transforms.Compose([
        transforms.RandomResizedCrop(224, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
        transforms.RandomGrayscale(0.2),
        Blur(blur),
        Solarize(solarize),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ])  # fmt: skip


def pipelines(paths: list[Path]) -> dict[str, Callable[[], Any]]:
    """Name -> both views of every file."""
    first, second = published(1.0, 0.0), published(0.1, 0.2)
    pillow, fast = (TwinTransform("imagenet", backend, seed=0) for backend in ("pillow", "fast"))

    def by_torchvision() -> None:
        for path in paths:
            image = Image.open(path).convert("RGB")
            first(image), second(image)

    found: dict[str, Callable[[], Any]] = {
        "published": by_torchvision,
        "pillow": lambda: [pillow(path, epoch=0, index=index) for index, path in enumerate(paths)],
        "fast": lambda: [
            torch.from_numpy(fast.fast_views(read_pixels(path), 0, 0, index)) for index, path in enumerate(paths)
        ],
        "decoder alone": lambda: [read_pixels(path) for path in paths],
    }
    if importlib.util.find_spec("lightly") is not None:
        from lightly.transforms import BYOLTransform

        twins = BYOLTransform()
        found["lightly"] = lambda: [twins(Image.open(path).convert("RGB")) for path in paths]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a few images, nothing written: does it work?")
    flags = parser.parse_args()
    if flags.quick:
        flags.images, flags.rounds = 4, 1
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        times = interleaved(pipelines(draw(Path(folder))[: flags.images]), rounds=flags.rounds)
    each = {name: seconds["median"] / flags.images * 1e3 for name, seconds in times.items()}
    for name, value in each.items():
        spread = ", ".join(f"{times[name][which] / flags.images * 1e3:.2f}" for which in ("least", "most"))
        print(f"{name:<14} {value:6.2f} ms an image ({spread})  {each['published'] / value:5.2f}x the published one")
    if "lightly" not in each:
        print("lightly        not installed")
    print(f"fast spends {each['decoder alone'] / each['fast']:.0%} of its time in the decoder")
    if not flags.quick:
        result: dict[str, Any] = {"milliseconds_an_image": each, "times": times, "images": flags.images}
        result["ratio"] = each["published"] / each["fast"]
        result["ratio_to_lightly"] = each["lightly"] / each["fast"] if "lightly" in each else None
        write_result("views", result)


if __name__ == "__main__":
    main()
