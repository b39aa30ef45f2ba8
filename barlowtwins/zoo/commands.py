"""What `barlowtwins weights list|show|get|verify` do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from barlowtwins.core.errors import WeightsError
from barlowtwins.core.printing import data_size
from barlowtwins.zoo.locate import find_file, locate
from barlowtwins.zoo.registry import WeightRecord, closest_names, registry
from barlowtwins.zoo.weights import load_weights

if TYPE_CHECKING:
    from barlowtwins.config import WeightsGetConfig, WeightsListConfig, WeightsShowConfig, WeightsVerifyConfig

__all__ = [
    "WeightsCard",
    "WeightsFile",
    "WeightsReport",
    "WeightsRow",
    "WeightsTable",
    "weights_get",
    "weights_list",
    "weights_show",
    "weights_verify",
]


@dataclass(frozen=True)
class WeightsRow:
    """One line of `weights list`."""

    name: str
    backbone: str
    format: str
    """The layout of its file: a name of `formats.FORMATS`."""
    size: str
    """Of the file, such as "94 MB"; "~" before it where only about is known, "?" where nothing is."""
    epochs: int | None
    top1: float | None
    """Percent: the ImageNet linear probe, as its publishers report it."""
    digest: str
    """How much of it is published: "full", "prefix" or "none"."""
    licence: str
    """In short; its card has the words of the publishers."""
    here: bool
    """Its file is on this disk."""


@dataclass(frozen=True)
class WeightsTable:
    """All weights on record."""

    weights: tuple[WeightsRow, ...]


@dataclass(frozen=True)
class WeightsCard:
    """All that is known of one weight."""

    record: WeightRecord
    path: Path | None
    """Its file, if it is on this disk."""
    card: str
    """Markdown."""

    def summary(self) -> str:
        """The card, and where the file is."""
        name = self.record.name
        where = f"on this disk: {self.path}" if self.path else f"not on this disk: barlowtwins weights get {name}"
        return f"{self.card.rstrip() or f'{name}: {self.record.summary}'}\n\n{where}"


@dataclass(frozen=True)
class WeightsFile:
    """A weight file on this disk whose digest has just been checked."""

    name: str
    path: Path
    size: int
    """Bytes."""
    sha256: str
    digest: str
    """Whether anybody vouches for it: see `locate.Located`."""


@dataclass(frozen=True)
class WeightsReport:
    """What a weight file turned out to be. One that is damaged or unknown raises an error and has no report."""

    name: str
    path: Path
    sha256: str
    digest: str
    """Whether anybody vouches for it: see `locate.Located`."""
    format: str
    backbone: str
    stem: str
    channels: int
    projector: str | None
    parameters: int
    """Trainable numbers, those of the projector included."""
    not_finite: tuple[str, ...]
    """Tensors that hold NaN or infinity."""

    @property
    def exit_code(self) -> int:
        """1 if a tensor is not finite."""
        return 1 if self.not_finite else 0


def weights_list(config: WeightsListConfig | None = None) -> WeightsTable:
    """List the weights on record."""
    return WeightsTable(tuple(_row(record) for record in registry().values()))


def _row(record: WeightRecord) -> WeightsRow:
    top1 = next((metric.value for metric in record.metrics if metric.name.endswith("linear probe, top-1")), None)
    digest = "none" if record.sha256 is None else "full" if len(record.sha256) == 64 else "prefix"
    here = find_file(record) is not None
    if record.size is None:
        size = f"~{data_size(record.approximate_size)}" if record.approximate_size else "?"
    else:
        size = data_size(record.size)
    licence = record.licence.partition(",")[0]
    return WeightsRow(record.name, record.backbone, record.format, size, record.epochs, top1, digest, licence, here)


def weights_show(config: WeightsShowConfig) -> WeightsCard:
    """Show all that is known of the weight `config.name`.

    Raises:
        WeightsError: there is no such name on record.
    """
    record = registry().get(config.name)
    if record is None:
        raise WeightsError(f"no weights {config.name!r} on record; there are {', '.join(closest_names(config.name))}")
    return WeightsCard(record, find_file(record), record.card)


def weights_get(config: WeightsGetConfig) -> WeightsFile:
    """Fetch the weight `config.name` into the cache unless it is there, and check its digest.

    Raises:
        WeightsError, DownloadError: see `locate.locate`.
    """
    found = locate(config.name)
    return WeightsFile(found.name, found.path, found.path.stat().st_size, found.sha256, found.digest)


def weights_verify(config: WeightsVerifyConfig) -> WeightsReport:
    """Check digest, format, names, shapes and values of the weight `config.weights`.

    Raises:
        WeightsError, DownloadError: see `weights.load_weights`.
    """
    weights = load_weights(config.weights)
    tensors = weights.backbone | (weights.projector or {})
    trained = [tensor for key, tensor in tensors.items() if key.endswith((".weight", ".bias"))]
    return WeightsReport(
        name=weights.name,
        path=weights.path,
        sha256=weights.sha256,
        digest=weights.digest,
        format=weights.format,
        backbone=weights.backbone_name,
        stem=weights.stem,
        channels=weights.channels,
        projector=weights.projector_widths,
        parameters=sum(tensor.numel() for tensor in trained),
        not_finite=tuple(key for key, tensor in tensors.items() if not tensor.isfinite().all()),
    )
