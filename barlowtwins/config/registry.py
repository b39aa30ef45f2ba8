"""Settings of `barlowtwins weights`."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import Positional

__all__ = ["WeightsGetConfig", "WeightsListConfig", "WeightsShowConfig", "WeightsVerifyConfig"]


@dataclass(frozen=True)
class WeightsListConfig:
    """List the registry: name, architecture, epochs, accuracy, licence, and whether it is in the cache."""


@dataclass(frozen=True)
class WeightsShowConfig:
    """Show all that is known of a weight: where it is from, its digest, preprocessing, recipe and results."""

    name: Positional[str]
    """A registry name."""


@dataclass(frozen=True)
class WeightsGetConfig:
    """Fetch a weight into the cache, verify it, and say where it lies."""

    name: Positional[str]
    """A registry name, or an https URL."""


@dataclass(frozen=True)
class WeightsVerifyConfig:
    """Check a weight file: digest, format, architecture, and that every value is finite."""

    weights: Positional[str]
    """A registry name, a local weight file, an https URL, or a RUN folder."""
