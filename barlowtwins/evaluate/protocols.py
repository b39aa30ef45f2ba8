"""Protocols: the numbers of a supervised training, and the learning rate as a function of the step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from barlowtwins.errors import ConfigError
from barlowtwins.optim import learning_rate_factor

__all__ = ["FINE_TUNING", "PUBLISHED_LINEAR", "Protocol", "learning_rate"]


@dataclass(frozen=True)
class Protocol:
    """How a classifier is trained by SGD with momentum 0.9; learning rates are for 256 images.

    "cosine" and "steps" change the rates once an epoch, as published: half a cosine down to 0; or a fifth after three
    fifths of the epochs and another after four fifths. "warm-up" changes them at every step: a linear rise during a
    twentieth of the steps, then half a cosine.
    """

    name: str
    epochs: int
    batch_size: int
    lr_head: float
    lr_backbone: float
    """0: the backbone is frozen and in evaluation mode, so that its batch norm stays as it is, too."""
    weight_decay: float
    schedule: Literal["cosine", "steps", "warm-up"]
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Area of the random crops, as a fraction of the image's."""

    @property
    def frozen(self) -> bool:
        """Whether the classifier alone is trained."""
        return self.lr_backbone == 0

    def with_flags(self, flags: object) -> Protocol:
        """This protocol with the fields of a configuration that are not None in place of its own."""
        given: dict[str, Any] = {name: getattr(flags, name, None) for name in OPEN}
        return dataclasses.replace(self, **{name: value for name, value in given.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "name"}


OPEN = ("epochs", "batch_size", "lr_head", "lr_backbone", "weight_decay")  # what flags may change

# Section 3.1 of the paper, and the published evaluation code.
PUBLISHED_LINEAR = Protocol("published", 100, 256, 0.3, 0.0, 1e-6, "cosine")

FINE_TUNING = {
    protocol.name: protocol
    for protocol in (
        Protocol("default", 30, 64, 0.5, 0.05, 1e-4, "warm-up", (0.3, 1.0)),
        Protocol("published", 20, 256, 0.5, 0.005, 0.0, "cosine"),  # the published code's command for 1 % of ImageNet
        Protocol("paper", 20, 256, 0.5, 0.002, 0.0, "steps"),  # the paper's appendix
    )
}


def learning_rate(protocol: Protocol, step: int, steps_per_epoch: int) -> float:
    """What the peak learning rates are multiplied by at a step, counted from 0."""
    steps, epoch = protocol.epochs * steps_per_epoch, step // steps_per_epoch
    if protocol.schedule == "cosine":
        return learning_rate_factor(epoch, steps=protocol.epochs, warmup_steps=0, final=0.0)
    if protocol.schedule == "steps":
        return 0.2 ** ((5 * epoch >= 3 * protocol.epochs) + (5 * epoch >= 4 * protocol.epochs))
    if protocol.schedule == "warm-up":
        return learning_rate_factor(step, steps=steps, warmup_steps=max(1, steps // 20), final=0.0)
    raise ConfigError(f"there is no schedule {protocol.schedule!r}")
