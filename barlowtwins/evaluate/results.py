"""The result of an evaluation that trains a classifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from barlowtwins.metrics.scores import Scores

__all__ = ["EvaluationResult"]


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """A classifier's scores on held-out images, and how it was made."""

    evaluation: str
    """linear, semi or finetune."""
    protocol: str
    """Such as fast or published."""
    scores: Scores
    """On the validation images after the last step; these are never used to choose hyperparameters."""
    train_images: int
    """Labeled images used for training."""
    hyperparameters: dict[str, Any]
    """Those that were used, and how they were found."""
    seconds: float
    """Of this run; those of one that was stopped before are not counted."""
    out: str | None = None
    """The folder with results.json."""
    head: str | None = None
    """The classifier's file."""
    details: dict[str, Any] = field(default_factory=dict)
    """What else happened: the sweep, the last training loss, unreadable images."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them, the scores first."""
        return {
            "evaluation": self.evaluation,
            "protocol": self.protocol,
            **self.scores.to_dict(),
            "train_images": self.train_images,
            "hyperparameters": self.hyperparameters,
            **self.details,
            "seconds": self.seconds,
            "out": self.out,
            "head": self.head,
        }

    def summary(self) -> str:
        """Return a summary in words."""
        used = ", ".join(f"{name} {_text(value)}" for name, value in self.hyperparameters.items())
        lines = [
            f"{self.evaluation} ({self.protocol}) on {self.train_images:,} labeled images: {used}",
            self.scores.summary(),
        ]
        if self.out:
            lines.append(f"results in {self.out} ({self.seconds:.1f} s)")
        if self.head:
            lines.append(f"classifier in {self.head}: barlowtwins classify IMAGES --head {self.head} --out labels.csv")
        return "\n".join(lines)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
