"""Settings that several commands share, each in one place; they are given by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from barlowtwins.config.rules import Checked, Count, FilePath, Natural, Seed

__all__ = ["Batched", "Computing", "NamedData", "Reading", "Seeded"]


@dataclass(frozen=True, kw_only=True)
class NamedData(Checked):
    """Data that may be a named data set."""

    data_root: FilePath | None = None
    """Where named data sets are, or where they are downloaded to."""


@dataclass(frozen=True, kw_only=True)
class Reading(Checked):
    """Images that worker processes read."""

    workers: Natural | None = None
    """Processes that read images; by default, from the machine's cores. 0: in the main process."""


@dataclass(frozen=True, kw_only=True)
class Batched(Checked):
    """A network that only computes features."""

    batch_size: Count = 64
    """Images per forward pass."""


@dataclass(frozen=True, kw_only=True)
class Computing(Checked):
    """A network on a device."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the network. auto: bf16 autocast on GPUs that support it, else fp32."""


@dataclass(frozen=True, kw_only=True)
class Seeded(Checked):
    """A result that depends on random numbers."""

    seed: Seed = 0
    """Random seed: the result is a function of it."""
