"""`Settings`: what a pretraining run was decided to be, once flags, recipe and data have been consulted.

A setting that is added here or to `PretrainConfig` needs a default: the value that older recipes, checkpoints and RUN
folders were made with.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from barlowtwins.config.pretraining import PretrainConfig

__all__ = ["FIELDS", "Settings", "default_values", "with_defaults"]


@dataclass(frozen=True)
class Settings:
    """The settings that make the result, each with a value; `PretrainConfig` says what they mean."""

    recipe: str
    backbone: str
    stem: str
    channels: int
    projector: str
    image_size: int
    augmentation: str
    epochs: int
    batch_size: int
    lambd: float
    scale_loss: float
    optimizer: str
    lr: float
    lr_bias: float
    weight_decay: float
    warmup_epochs: float
    chosen: tuple[str, ...] = field(default=(), compare=False)
    """What was decided by neither flag nor recipe, or follows a flag, and why: in words, one line per choice."""


FIELDS = tuple(setting.name for setting in fields(Settings) if setting.name not in ("recipe", "chosen"))
"""The settings that a recipe may have."""


def default_values(settings: type) -> dict[str, Any]:
    """The fields of a dataclass that have a default, with it."""
    return {field.name: field.default for field in fields(settings) if field.default is not MISSING}


def with_defaults(record: dict[str, Any]) -> dict[str, Any]:
    """The record of a run, with the default of every setting that did not exist when it was written."""
    return {**default_values(PretrainConfig), **default_values(Settings), **record}
