"""How long a run is: images, batches and epochs become steps."""

from __future__ import annotations

from dataclasses import dataclass

from barlowtwins.core.errors import ConfigError
from barlowtwins.train.recipes import Settings

__all__ = ["Plan", "plan_run"]


@dataclass(frozen=True)
class Plan:
    """How long a run is."""

    images: int
    steps_per_epoch: int
    steps: int
    warmup_steps: int


def plan_run(settings: Settings, images: int, *, world_size: int = 1, micro: int | None = None) -> Plan:
    """Count the steps.

    Raises:
        ConfigError: the batch is larger than the data, too small for a correlation, or not divisible by the processes.
    """
    n, w = settings.batch_size, world_size
    if min(n, images) < 2:
        what = f"batch size {n} is too small" if n < 2 else f"{images} image is too few"
        raise ConfigError(f"{what}: a correlation over the batch needs 2 images or more")
    if n > images:
        raise ConfigError(f"batch size {n} is larger than the data: {images} images; try a --batch-size up to that")
    if n % w:
        raise ConfigError(f"batch size {n} is not divisible by {w} processes; try {max(w, n // w * w)}")
    if micro is not None and (micro < 2 * w or micro > n or micro % w):
        fitting = max(2 * w, micro // w * w)
        raise ConfigError(
            f"micro-batch size {micro} does not fit batch size {n} on {w} process(es): it must be a multiple of {w}, "
            f"with 2 or more images a process; try {min(n, fitting)}"
        )
    per_epoch = images // n
    steps = per_epoch * settings.epochs
    return Plan(images, per_epoch, steps, min(steps, round(settings.warmup_epochs * per_epoch)))
