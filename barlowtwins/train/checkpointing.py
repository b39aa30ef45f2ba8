"""The callback that saves checkpoints."""

from __future__ import annotations

from typing import Any

from barlowtwins.runs.checkpoint import Checkpoint, Saver
from barlowtwins.runs.guards import require_finite_weights
from barlowtwins.runs.run_folder import RunFolder
from barlowtwins.train.callbacks import Callback, RunState
from barlowtwins.train.trainer import Trainer

__all__ = ["Checkpointing"]


class Checkpointing(Callback):
    """Saves the state of a trainer whenever a checkpoint is due.

    Args:
        folder: of the run.
        trainer: whose state is saved.
        facts: the other fields of a checkpoint: `config`, `data` and `world_size`.
    """

    def __init__(self, folder: RunFolder, trainer: Trainer, facts: dict[str, Any]) -> None:
        self.trainer, self.facts = trainer, facts
        self.saver = Saver(folder.path, start=trainer.step)

    def on_save(self, run: RunState, /) -> None:
        """Save; one failure is a warning, unless this process ends before the run does."""
        require_finite_weights(run.model, run.step)
        ends_early = run.stopping or run.step == run.last < run.plan.steps
        self.saver.save(Checkpoint(**self.trainer.state_dict(), **self.facts), last_chance=ends_early)
