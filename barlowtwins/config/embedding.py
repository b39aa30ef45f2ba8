"""Settings of `barlowtwins embed`, `neighbors` and `check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from barlowtwins.config.flags import Positional, arg
from barlowtwins.config.rules import Count, DataPath, FilePath, part_of, require, shared_last
from barlowtwins.config.shared import Batched, Computing, NamedData, Reading

__all__ = ["CheckConfig", "EmbedConfig", "NeighborsConfig", "NeighboursConfig"]


@shared_last
@dataclass(frozen=True)
class EmbedConfig(NamedData, Computing, Reading, Batched):
    """Embed images: one row of features for each, in the order of the sorted source."""

    data: Positional[DataPath]
    """A folder of images, a text file of paths, tar shards, or a data-set name."""
    weights: FilePath
    """A registry name, a local weight file, an https URL, or a RUN folder."""
    out: Annotated[FilePath, arg(metavar="FOLDER")]
    """The EMB folder: embeddings.npy, index.csv and meta.json go there."""
    format: Literal["npy", "parquet", "safetensors"] = "npy"
    """File format of the embeddings."""
    split: str = "test"
    """The split of a named data set: train or test."""
    image_size: Count | None = None
    """Side of the square input; by default, the weights' own."""
    normalize: bool = False
    """Scale each row to unit length."""
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
        super().__post_init__()
        if self.part is not None:
            part_of(self.part)
            together = "each part would drop the others; remove the folder first"
            require(not self.overwrite, f"part {self.part} and overwrite: {together}", "part", "overwrite")
            together = "each divides the work; use one of them"
            require(self.launch == "here", f"part {self.part} and launch {self.launch}: {together}", "part", "launch")


@shared_last
@dataclass(frozen=True)
class NeighborsConfig(NamedData):
    """Find the nearest rows of an EMB folder to an image or to one of its own rows."""

    embeddings: Positional[FilePath]
    """An EMB folder made by `barlowtwins embed`."""
    query: FilePath
    """An image file, or a row number."""
    k: Count = 10
    """Neighbors to show."""
    sheet: FilePath | None = None
    """A PNG, JPEG or WebP file for a picture of the query and its neighbors."""
    data: FilePath | None = None
    """The images of the rows, for the picture, where they may not be opened by the folder's word alone: behind a URL,
    or outside the working folder."""
    weights: FilePath | None = None
    """The weights that made the rows, to embed an image; needed where the folder names a URL."""


NeighboursConfig = NeighborsConfig  # the name before


@shared_last
@dataclass(frozen=True)
class CheckConfig(NamedData, Reading):
    """Read every image once; say what will be used and how, what cannot be, and what looks wrong."""

    data: Positional[DataPath]
    """A folder of images, a text file of paths, tar shards, or a data-set name."""
    val: FilePath | None = None
    """Images to judge by: those of them that are also in DATA are counted."""
