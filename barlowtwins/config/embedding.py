"""Settings of `barlowtwins embed`, `neighbours` and `check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from barlowtwins.config.rules import part_of, require

__all__ = ["CheckConfig", "EmbedConfig", "NeighboursConfig"]


@dataclass(frozen=True)
class EmbedConfig:
    """Embed images: one row of features for each, in the order of the sorted source."""

    data: Positional[str]
    """A folder of images, a text file of paths, tar shards, or a data-set name."""
    weights: str
    """A registry name, a local weight file, an https URL, or a RUN folder."""
    out: Annotated[str, arg(metavar="FOLDER")]
    """The EMB folder: embeddings.npy, index.csv and meta.json go there."""
    format: Literal["npy", "parquet", "safetensors"] = "npy"
    """File format of the embeddings."""
    split: str = "test"
    """The split of a named data set: train or test."""
    data_root: str | None = None
    """Where named data sets lie or are downloaded to."""
    image_size: int | None = None
    """Side of the square input; the weights' own unless told."""
    normalize: bool = False
    """Scale each row to unit length."""
    batch_size: int = 64
    """Images a forward pass."""
    workers: int | None = None
    """Processes that read images; from the machine's cores unless told. 0: in the main process."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the network."""
    runtime: Literal["auto", "torch", "onnx", "compiled"] = "auto"
    """What runs the network: torch as it is; onnx, ONNX Runtime on a CPU in fp32 (extra onnx); compiled, torch.compile.
    auto takes onnx on a CPU from 512 images on if it is installed, compiled on a GPU from a million on; neither where
    its features are not those of torch."""
    part: str | None = None
    """Embed one part of the rows, such as 3/16 on the third of 16 machines. The parts share one EMB folder; the last
    one to end joins them."""
    launch: Literal["here", "ray"] = "here"
    """here: in this process, or in those that torchrun started. ray: on the Ray cluster that is running, or one of this
    machine (extra ray); all its machines must see the images, the weights and the EMB folder under the same names."""
    overwrite: bool = False
    """Replace an EMB folder that is complete or that was made with other weights or preprocessing."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"--batch-size is {self.batch_size}; it must be 1 or more")
        require(self.workers is None or self.workers >= 0, f"--workers is {self.workers}; it must not be negative")
        if self.part is not None:
            part_of(self.part)
            require(
                not self.overwrite, "--part and --overwrite: each part would drop the others; remove the folder first"
            )
            require(self.launch == "here", "--part and --launch ray each divide the work; use one of them")
        require(self.image_size is None or self.image_size >= 1, f"--image-size is {self.image_size}; it must be >= 1")


@dataclass(frozen=True)
class NeighboursConfig:
    """Find the nearest rows of an EMB folder to an image or to one of its own rows."""

    embeddings: Positional[str]
    """An EMB folder made by `barlowtwins embed`."""
    query: str
    """An image file, or a row number."""
    k: int = 10
    """Neighbours to show."""
    sheet: str | None = None
    """A PNG, JPEG or WebP file for a picture of the query and its neighbours."""
    data_root: str | None = None
    """Where named data sets lie, for the picture."""

    def __post_init__(self) -> None:
        require(self.k >= 1, f"--k is {self.k}; it must be 1 or more")


@dataclass(frozen=True)
class CheckConfig:
    """Read every image once and list those that cannot be used."""

    data: Positional[str]
    """A folder of images, a text file of paths, tar shards, or a data-set name."""
    data_root: str | None = None
    """Where named data sets lie or are downloaded to."""
    workers: int | None = None
    """Processes that read images; from the machine's cores unless told."""
