"""The log of a run: lines of metrics.jsonl, the progress bar, and warnings of a collapse."""

from __future__ import annotations

from typing import Any

from barlowtwins.core.progress import Progress, say
from barlowtwins.metrics.representation import judge, judge_loss
from barlowtwins.train.callbacks import Callback, RunState

__all__ = ["CollapseWarning", "Logger"]

SHOWN = ("knn", "probe")  # in percent, beside the bar


class Logger(Callback):
    """Writes every record to metrics.jsonl, those of steps among them, and draws the bar.

    Where a process stops leaves no trace: the lines are those of a run that never stopped. Lines that a full disk
    refuses are kept and written later.
    """

    def __init__(self) -> None:
        self._pending: list[dict[str, Any]] = []
        self._bar: Progress | None = None

    def on_start(self, run: RunState, /) -> None:
        """Open the bar."""
        n = run.settings.batch_size
        self._bar = Progress(run.plan.steps * n, desc="pretrain", initial=run.step * n)

    def on_step(self, run: RunState, /) -> None:
        """Log the loss if it is due."""
        shown = {}
        if run.log_due:
            record = step_record(run)
            run.log(record)
            shown["loss"] = record["loss"]
        if self._bar:
            self._bar.update(run.settings.batch_size, **shown)

    def on_log(self, run: RunState, record: dict[str, Any], /) -> None:
        """Append to metrics.jsonl."""
        self._pending.append(record)
        try:
            run.folder.log(self._pending)
        except OSError as error:
            if len(self._pending) == 1:
                say(f"warning: cannot write {run.folder.metrics} ({error.strerror}); its lines are kept in memory")
        else:
            self._pending = []
        if self._bar and (shown := {name: f"{record[name]:.1f} %" for name in SHOWN if name in record}):
            self._bar.update(0, **shown)

    def close(self) -> None:
        """End the bar."""
        if self._bar:
            self._bar.close()


def step_record(run: RunState) -> dict[str, Any]:
    """The line of a step: the loss and its parts, learning rates, unreadable images, rate."""
    terms = run.model.terms
    assert terms is not None
    loss = terms.loss.item()
    weights, one_dimensional = (group["lr"] for group in run.optimizer.param_groups)
    return {
        "step": run.step,
        "epoch": round(run.step / run.plan.steps_per_epoch, 4),
        "loss": loss,
        "on_diagonal": terms.on_diagonal.item(),
        "off_diagonal": terms.off_diagonal.item(),
        "floor": terms.floor,
        "above_floor": loss - run.settings.lambd * terms.floor,
        "form": terms.form,
        "lr": weights,
        "lr_bias": one_dimensional,
        "unreadable": len(run.unreadable),
        "images_per_second": round(run.clock.rate or 0.0, 1),
    }


class CollapseWarning(Callback):
    """Warns when the run collapses or diverges, once per kind for as long as it lasts."""

    FIELDS = ("loss", "effective_rank", "rank_limit", "feature_deviation")

    def __init__(self) -> None:
        self._seen: list[dict[str, Any]] = []
        self._said = ""

    def on_start(self, run: RunState, /) -> None:
        """Recall what earlier processes logged."""
        for record in run.folder.read_log():
            self.on_log(run, record)

    def on_log(self, run: RunState, record: dict[str, Any], /) -> None:
        """Keep what a verdict is made of."""
        if kept := {name: record[name] for name in self.FIELDS if name in record}:
            self._seen.append(kept)

    def on_epoch(self, run: RunState, /) -> None:
        """Judge what was logged so far."""
        verdicts = [verdict for verdict in (judge(self._seen), judge_loss(self._seen)) if verdict.level == "bad"]
        kinds = ", ".join(verdict.words.partition(":")[0] for verdict in verdicts)
        if verdicts and kinds != self._said:
            for verdict in verdicts:
                say(f"warning: {verdict.words} {verdict.advice}")
        self._said = kinds
