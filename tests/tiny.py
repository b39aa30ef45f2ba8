"""A tiny trained network and tiny images, in files, for tests that embed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.models.resnet import build_backbone

TINY = Preprocessing(image_size=8, resize=None)
DIM = 256


def write_weights(path: Path, *, seed: int = 0, preprocessing: Preprocessing = TINY) -> Path:
    """A weight file as pretraining leaves it, of a resnet10_x0_5."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_backbone("resnet10_x0_5", stem="small", zero_init_residual=False)
        network.train()(torch.randn(16, 3, 8, 8))  # so that batch norm has seen something
    metadata = {
        "format": "pt",
        "barlowtwins": "0.1.0",
        "backbone": "resnet10_x0_5",
        "stem": "small",
        "channels": "3",
        "preprocessing": json.dumps(preprocessing.to_dict()),
    }
    save_file(network.state_dict(), path, metadata)
    return path


def write_images(folder: Path, count: int, *, classes: int = 0, seed: int = 0) -> Path:
    """`count` PNG files of 8 x 8 pixels, in one folder or in as many class folders."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        place = folder / f"class{number % classes}" if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:04}.png")
    return folder
