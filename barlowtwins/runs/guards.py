"""What stops a training run before it does harm: numbers that are not finite, and data that cannot be read."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from barlowtwins.core.distributed import World
from barlowtwins.core.errors import OutputError, TrainingError
from barlowtwins.core.files import write_json
from barlowtwins.core.progress import say
from barlowtwins.data.images import Unreadable
from barlowtwins.data.open import Source
from barlowtwins.loss import LossTerms
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.views.twins import Rows, TwinBatch

__all__ = ["Evidence", "FiniteGuard", "TrainingBatch", "is_out_of_memory", "require_finite_weights", "require_readable"]

WAY_OUT = (
    "Resume from the last checkpoint with a lower --lr or longer --warmup-epochs (and --allow-change), or look at the "
    "images"
)
NO_MEMORY = ("can't allocate memory", "not enough memory")  # in the words of torch's CPU allocator


class TrainingBatch(Protocol):
    """What is known of a batch of images that were read for training; see `TwinBatch`."""

    @property
    def unreadable(self) -> dict[int, Unreadable]: ...
    @property
    def exhausted(self) -> bool: ...


class _Seen(NamedTuple):
    """What a step left behind to be judged."""

    rows: Rows
    norms: Tensor
    """(number of parameters + 1,) on the host: norms of the gradients, then the loss."""
    names: list[str]
    """Of the parameters that have a gradient."""
    terms: LossTerms | None
    arrived: torch.cuda.Event | None
    """When `norms` are there; None: they are."""


class Evidence(NamedTuple):
    """What a report of numbers that are not finite is made of."""

    source: Source
    """Names the images."""
    report: Path
    """The file for the step, the images of all processes and the numbers."""
    remake: Callable[[Rows], TwinBatch] | None = None
    """Makes the batch of this process's rows again; None: the report has no views."""


class FiniteGuard:
    """Stops a run whose loss or gradients are not finite. All processes come to the same answer.

    On a CPU a step is judged before its update. On a GPU the host would have to wait for the device at every step, so
    a step is judged during the next one, when its numbers have come over by themselves. Its update has happened then,
    in memory alone: whoever saves or looks at the network calls `settle` before.

    Args:
        model: its gradients are those of the global batch.
        world: the processes; the first one writes the report.
        evidence: for the report; None: no report is written.
        way_out: what to do about it, for the message.
        late: judge a step during the next one; by default on a GPU.
    """

    def __init__(
        self,
        model: nn.Module,
        world: World,
        evidence: Evidence | None = None,
        *,
        way_out: str = WAY_OUT,
        late: bool | None = None,
    ) -> None:
        self.model, self.world, self.evidence, self.way_out = model, world, evidence, way_out
        self.late = world.device.type == "cuda" if late is None else late
        self._seen: _Seen | None = None

    def check(self, loss: Tensor, rows: Rows) -> None:
        """Judge this step, between its backward and its update; or the one before.

        Args:
            loss: of the global batch.
            rows: what this process had of it.

        Raises:
            TrainingError: a number is not finite.
        """
        named = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        norms = torch.stack([*torch._foreach_norm(list(named.values())), loss.detach()])
        terms = getattr(self.model, "terms", None)  # of the Barlow Twins loss; a classifier has none
        seen = _Seen(rows, norms.to("cpu", non_blocking=True), list(named), terms, _mark(norms.device))
        if self.late:
            self.settle()
        self._seen = seen
        if not self.late:
            self.settle()

    def settle(self) -> None:
        """Judge what has not been judged yet.

        Raises:
            TrainingError: a number is not finite.
        """
        seen, self._seen = self._seen, None
        if seen is None:
            return
        if seen.arrived is not None:
            seen.arrived.synchronize()
        if bool(torch.isfinite(seen.norms).all()):
            return
        *norms, loss = seen.norms.tolist()
        gradients = dict(zip(seen.names, norms, strict=True))
        bad = [name for name, norm in gradients.items() if not math.isfinite(norm)]
        written = f" ({self._report(self.evidence, seen, gradients, loss)})" if self.evidence else ""
        what, value = ("the gradient of " + bad[0], gradients[bad[0]]) if math.isfinite(loss) else ("the loss", loss)
        kept = "saved of it" if self.late else "updated"
        raise TrainingError(f"{what} is {value} at step {seen.rows.step}; nothing was {kept}{written}. {self.way_out}")

    def _report(self, evidence: Evidence, seen: _Seen, gradients: dict[str, float], loss: float) -> str:
        """Write the images and the numbers, on the process that writes; returns where they are, in words."""
        mine = set(seen.rows.indices)
        indices = seen.rows.indices if self.world.size == 1 else sorted(self.world.union(mine))
        if self.world.writes:
            record = self._numbers(evidence, seen, loss) | {
                "gradient_norms": {name: str(norm) for name, norm in gradients.items()},
                "gradients_not_finite": [name for name, norm in gradients.items() if not math.isfinite(norm)],
                "images": [evidence.source.key(index) for index in indices],
            }
            try:
                write_json(evidence.report, record)
            except OutputError as error:
                return str(error)
        return f"{evidence.report} has the images and the numbers"

    def _numbers(self, evidence: Evidence, seen: _Seen, loss: float) -> dict[str, Any]:
        """What one needs to find the cause; numbers as text, since JSON knows no NaN."""
        terms, batch = seen.terms, evidence.remake(seen.rows) if evidence.remake else None
        broken = [name for name, p in self.model.named_parameters() if not bool(p.isfinite().all())]
        return {
            "step": seen.rows.step,
            "epoch": seen.rows.epoch,
            "loss": str(loss),
            "on_diagonal": str(terms.on_diagonal.item()) if terms else None,
            "off_diagonal": str(terms.off_diagonal.item()) if terms else None,
            "parameters_not_finite": broken,
            "views": [
                {"min": str(y.min().item()), "max": str(y.max().item()), "mean": str(y.mean().item())}
                for y in ((batch.y1, batch.y2) if batch else ())
            ],
        }


def _mark(device: torch.device) -> torch.cuda.Event | None:
    """The end of what the device has been given to do so far; None where nothing is given and left."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event


def require_finite_weights(model: BarlowTwins, step: int) -> None:
    """Refuse to save a network that cannot be resumed from: finite gradients, too, can make an update overflow.

    Raises:
        TrainingError: the network holds a number that is not finite.
    """
    named = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    finite = torch.stack([value.isfinite().all() for value in named.values()]).tolist()  # (number of tensors,)
    if bad := [name for name, good in zip(named, finite, strict=True) if not good]:
        raise TrainingError(
            f"{len(bad)} tensors of the network, {bad[0]} first, are not finite after step {step}: not saved. "
            "Resume from the last checkpoint with a lower --lr or longer --warmup-epochs (and --allow-change)"
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
        TrainingError: there are more than `most`, or no readable image was found to replace one.
    """
    if not world.any(bool(batch.unreadable)):
        return unreadable
    for index in sorted(set(batch.unreadable) - unreadable)[:3]:
        say(f"skipping unreadable image (substituted): {batch.unreadable[index].path}: {batch.unreadable[index].why}")
    unreadable = world.union(unreadable | set(batch.unreadable))
    too_many, exhausted = len(unreadable) > most, world.any(batch.exhausted)
    if too_many or exhausted:
        first = next(iter(batch.unreadable.values()), None)
        example = f" (such as {first.path}: {first.why})" if first else ""
        why = f"more than the {int(most)} that --max-bad allows" if too_many else "and no replacement was found"
        raise TrainingError(
            f"images that cannot be read: {len(unreadable)}{example}, {why}; `barlowtwins check DATA` lists them"
        )
    return unreadable


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full; torch has a type of its own for that on a GPU only."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
