"""What stops a training run before it does harm: numbers that are not finite, and data that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from barlowtwins.data import Source
from barlowtwins.distributed import World
from barlowtwins.errors import TrainingError
from barlowtwins.files import write_json
from barlowtwins.model import BarlowTwins
from barlowtwins.progress import say
from barlowtwins.twins import TwinBatch

__all__ = ["require_finite", "require_readable"]


def require_finite(loss: Tensor, model: BarlowTwins, batch: TwinBatch, source: Source, *, report: Path | None) -> None:
    """Let the update happen only if the loss and every gradient are finite.

    Raises:
        TrainingError: they are not; the file `report`, if given, then has the step, the images and the numbers.
    """
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norms = torch.stack(torch._foreach_norm(list(named.values())))  # (number of parameters,)
    if bool(torch.isfinite(norms.sum() + loss.detach())):  # one value read back from the device
        return
    bad = [name for name, norm in zip(named, norms.tolist(), strict=True) if not _finite(norm)]
    if report is not None:
        write_json(report, _evidence(loss, model, batch, source, bad))
    what = f"the loss is {loss.item()}" if not _finite(loss.item()) else f"the gradient of {bad[0]} is not finite"
    raise TrainingError(
        f"{what} at step {batch.rows.step}; nothing was updated, and {report or 'nonfinite.json'} has "
        "the images and numbers. "
        "Try a lower --lr, or a longer --warmup-epochs, from the last checkpoint"
    )


def _evidence(loss: Tensor, model: BarlowTwins, batch: TwinBatch, source: Source, bad: list[str]) -> dict[str, Any]:
    """What one needs to find the cause; numbers as text, since JSON knows no NaN."""
    terms = model.terms
    return {
        "step": batch.rows.step,
        "epoch": batch.rows.epoch,
        "loss": str(loss.item()),
        "on_diagonal": str(terms.on_diagonal.item()) if terms else None,
        "off_diagonal": str(terms.off_diagonal.item()) if terms else None,
        "gradients_not_finite": bad,
        "parameters_not_finite": [name for name, p in model.named_parameters() if not bool(p.isfinite().all())],
        "views": [
            {"min": str(y.min().item()), "max": str(y.max().item()), "mean": str(y.mean().item())}
            for y in (batch.y1, batch.y2)
        ],
        "images": [source.key(index) for index in batch.rows.indices],
    }


def require_readable(batch: TwinBatch, unreadable: set[int], most: float, world: World) -> set[int]:
    """Count the images that could not be read, on any process, and stop when they are too many.

    Args:
        batch: the next batch of this process.
        unreadable: indices met so far, on all processes.
        most: how many there may be.
        world: the processes.

    Returns:
        `unreadable` with the new ones.

    Raises:
        TrainingError: there are more than `most`, or no readable image was found to stand in for one.
    """
    if not world.any(bool(batch.unreadable)):
        return unreadable
    for index in sorted(set(batch.unreadable) - unreadable)[:3]:
        say(f"unreadable, another image stands in: {batch.unreadable[index].path}: {batch.unreadable[index].why}")
    unreadable = world.union(unreadable | set(batch.unreadable))
    if len(unreadable) > most or world.any(batch.exhausted):
        first = next(iter(batch.unreadable.values()), None)
        example = f" (such as {first.path}: {first.why})" if first else ""
        raise TrainingError(
            f"{len(unreadable)} images cannot be read{example}, more than the {int(most)} that --max-bad allows; "
            "`barlowtwins check DATA` lists them"
        )
    return unreadable


def _finite(value: float) -> bool:
    return value - value == 0
