"""The result of `pretrain`, and its summary."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from barlowtwins.core.printing import plural, render
from barlowtwins.loss import off_diagonal_floor
from barlowtwins.runs.run_folder import RunFolder
from barlowtwins.train.estimate import Estimate
from barlowtwins.train.online_evaluation import BANK, NEIGHBOURS
from barlowtwins.train.plan import Plan
from barlowtwins.train.recipes import Settings

__all__ = ["PretrainResult"]


@dataclass(frozen=True)
class PretrainResult:
    """What a run came to."""

    out: str
    step: int
    """Optimizer steps done, of `plan.steps`."""
    plan: Plan
    settings: Settings
    parameters: int
    loss: float | None = None
    """Of the last logged step."""
    knn: float | None = None
    """Percent; the last online kNN."""
    images_per_second: float | None = None
    """Over this process's own steps."""
    begun_at: int = 0
    """The step at which this process began."""
    unreadable: int = 0
    """Images that could not be read and were replaced."""
    estimate: Estimate | None = None
    """Of a dry run: the memory and time that the run would take."""

    def summary(self) -> str:
        if self.estimate is None:
            return _last_words(self)
        settings = {name: value for name, value in vars(self.settings).items() if name != "chosen"}
        shown = {**settings, "plan": self.plan, "parameters": self.parameters}
        return "\n".join([render(shown), *self.settings.chosen, self.estimate.summary()])


def _last_words(result: PretrainResult) -> str:
    """What a person is told at the end of a run: how good it is, and what to do next."""
    settings, steps, out = result.settings, result.plan.steps, shlex.quote(result.out)
    if result.step < steps:
        head = f"stopped at --max-steps, step {result.step:,} of {steps:,}; rerun without it to continue"
    elif result.begun_at == steps:
        head = f"already finished at step {steps:,}: nothing was left to do in {result.out}"
    else:
        done = f"{plural(steps, 'step')}, {plural(settings.epochs, 'epoch')} of {plural(result.plan.images, 'image')}"
        head = f"finished: {done}, in {result.out}"
    found = []
    if result.loss is not None:
        floor = settings.lambd * off_diagonal_floor(settings.batch_size, int(settings.projector.split("-")[-1]))
        found.append(f"loss {result.loss:,.4g}" + (f" (its floor is {floor:,.4g})" if floor else ""))
    if result.knn is not None:
        less = f"; in a bank of {BANK:,}: all images as the bank give more" if result.plan.images > BANK else ""
        found.append(f"kNN {result.knn:.1f} % (k = {NEIGHBOURS}{less})")
    if result.images_per_second is not None:
        found.append(f"{result.images_per_second:,.1f} images/s")
    if result.unreadable:
        found.append(f"{plural(result.unreadable, 'image')} could not be read")
    lines = [head, *([", ".join(found)] if found else [])]
    if (page := RunFolder(result.out).report).exists():
        lines.append(f"The run as a page: {page}")
    return "\n".join(
        [
            *lines,
            "Next:",
            f"  barlowtwins embed YOUR_IMAGES --weights {out} --out embeddings",
            f"  barlowtwins evaluate knn LABELLED_IMAGES --val OTHERS --weights {out}",
        ]
    )
