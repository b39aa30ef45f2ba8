"""What stops a training run before it does harm: numbers that are not finite, and data that cannot be read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from barlowtwins.data.images import Unreadable
from barlowtwins.data.open import Source
from barlowtwins.distributed import World
from barlowtwins.errors import OutputError, TrainingError
from barlowtwins.files import write_json
from barlowtwins.model import BarlowTwins
from barlowtwins.progress import say
from barlowtwins.views.twins import TwinBatch

__all__ = ["TrainingBatch", "is_out_of_memory", "require_finite", "require_finite_weights", "require_readable"]

NO_MEMORY = ("can't allocate memory", "not enough memory")  # in the words of torch's CPU allocator


class TrainingBatch(Protocol):
    """What is known of a batch of images that were read for training; see `TwinBatch`."""

    @property
    def unreadable(self) -> dict[int, Unreadable]: ...
    @property
    def exhausted(self) -> bool: ...


def require_finite(
    loss: Tensor, model: BarlowTwins, batch: TwinBatch, source: Source, *, world: World, report: Path
) -> None:
    """Let the update happen only if the loss and every gradient are finite. All processes come to the same answer.

    Args:
        loss: of the global batch.
        model: its gradients are those of the global batch.
        batch: of this process.
        source: names the images.
        world: the processes; the first one writes the report.
        report: the file for the step, the images of all processes and the numbers.

    Raises:
        TrainingError: they are not finite.
    """
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norms = torch.stack(torch._foreach_norm(list(named.values())))  # (number of parameters,)
    if bool(torch.isfinite(torch.cat([norms, loss.detach().reshape(1)])).all()):  # one value read back from the device
        return
    gradients = dict(zip(named, norms.tolist(), strict=True))
    bad = [name for name, norm in gradients.items() if not math.isfinite(norm)]
    indices = batch.rows.indices if world.size == 1 else sorted(world.union(set(batch.rows.indices)))
    written = f"{report} has the images and the numbers"
    if world.writes:
        evidence = _evidence(loss, model, batch) | {
            "gradient_norms": {name: str(norm) for name, norm in gradients.items()},
            "gradients_not_finite": bad,
            "images": [source.key(index) for index in indices],
        }
        try:
            write_json(report, evidence)
        except OutputError as error:
            written = str(error)
    what = "the gradient of " + bad[0] if math.isfinite(loss.item()) else "the loss"
    value = gradients[bad[0]] if math.isfinite(loss.item()) else loss.item()
    raise TrainingError(
        f"{what} is {value} at step {batch.rows.step}; nothing was updated ({written}). "
        "Go on from the last checkpoint with a lower --lr or longer --warmup-epochs (and --allow-change), or look at "
        "the images"
    )


def _evidence(loss: Tensor, model: BarlowTwins, batch: TwinBatch) -> dict[str, Any]:
    """What one needs to find the cause; numbers as text, since JSON knows no NaN."""
    terms = model.terms
    return {
        "step": batch.rows.step,
        "epoch": batch.rows.epoch,
        "loss": str(loss.item()),
        "on_diagonal": str(terms.on_diagonal.item()) if terms else None,
        "off_diagonal": str(terms.off_diagonal.item()) if terms else None,
        "parameters_not_finite": [name for name, p in model.named_parameters() if not bool(p.isfinite().all())],
        "views": [
            {"min": str(y.min().item()), "max": str(y.max().item()), "mean": str(y.mean().item())}
            for y in (batch.y1, batch.y2)
        ],
    }


def require_finite_weights(model: BarlowTwins, step: int) -> None:
    """Let nothing be saved that cannot be gone on from: finite gradients, too, can make an update overflow.

    Raises:
        TrainingError: the network holds a number that is not finite.
    """
    named = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    finite = torch.stack([value.isfinite().all() for value in named.values()]).tolist()  # (number of tensors,)
    if bad := [name for name, good in zip(named, finite, strict=True) if not good]:
        raise TrainingError(
            f"{len(bad)} tensors of the network, {bad[0]} first, are not finite after step {step}: not saved. "
            "Go on from the last checkpoint with a lower --lr or longer --warmup-epochs (and --allow-change)"
        )


def require_readable(batch: TrainingBatch, unreadable: set[int], most: float, world: World) -> set[int]:
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
    too_many, exhausted = len(unreadable) > most, world.any(batch.exhausted)
    if too_many or exhausted:
        first = next(iter(batch.unreadable.values()), None)
        example = f" (such as {first.path}: {first.why})" if first else ""
        why = f"more than the {int(most)} that --max-bad allows" if too_many else "and none was found to stand in"
        raise TrainingError(
            f"images that cannot be read: {len(unreadable)}{example}, {why}; `barlowtwins check DATA` lists them"
        )
    return unreadable


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full; torch has a type of its own for that on a GPU only."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
