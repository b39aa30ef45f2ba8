"""Settings of `barlowtwins evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from barlowtwins.config.rules import require

__all__ = ["KNNConfig"]


@dataclass(frozen=True)
class KNNConfig:
    """Weighted k-nearest-neighbour classification on frozen features."""

    train: Positional[str]
    """Labelled images that form the bank: a class-per-folder tree, a data-set name, or an EMB folder."""
    val: str | None = None
    """Labelled images to classify; the test split of a named data set unless told."""
    weights: str = "resnet50"
    """A registry name, a local weight file, an https URL, a RUN folder; "pixels" or "random" for the baselines."""
    k: tuple[int, ...] = (20, 200)
    """Numbers of neighbours."""
    temperature: float = 0.07
    """Votes are weighted by exp(cosine / temperature)."""
    out: str | None = None
    """A folder for results.json."""
    data_root: str | None = None
    """Where named data sets lie or are downloaded to."""
    batch_size: int = 64
    """Images a forward pass."""
    workers: int | None = None
    """Processes that read images; from the machine's cores unless told."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the network."""
    seed: int = 0
    """Seed of the "random" baseline's weights."""

    def __post_init__(self) -> None:
        require(len(self.k) > 0 and min(self.k) >= 1, f"--k is {self.k}; each must be 1 or more")
        require(self.temperature > 0, f"--temperature is {self.temperature}; it must be > 0")
        require(self.batch_size >= 1, f"--batch-size is {self.batch_size}; it must be 1 or more")
