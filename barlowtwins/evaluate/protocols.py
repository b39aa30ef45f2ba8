"""Protocols: the hyperparameters of supervised training, and the learning rate as a function of the step."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from barlowtwins.core.errors import ConfigError
from barlowtwins.optim import learning_rate_factor

__all__ = ["FINE_TUNING", "PUBLISHED_LINEAR", "Protocol", "fine_tuning", "learning_rate"]


@dataclass(frozen=True)
class Protocol:
    """How a classifier is trained by SGD with momentum 0.9; learning rates are for 256 images.

    "cosine" and "steps" change the rates once an epoch, as published: half a cosine down to 0; or a fifth after three
    fifths of the epochs and another after four fifths. "warm-up" changes them at every step: a linear rise during a
    twentieth of the steps, then half a cosine.

    Every batch is whole: what is left of an epoch's shuffled images is dropped, where the published loader trains on it
    as a last, shorter batch.
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
    least_steps: int = 0
    """More epochs on little data, until there are so many steps."""

    @property
    def frozen(self) -> bool:
        """Whether the classifier alone is trained."""
        return self.lr_backbone == 0

    def with_flags(self, flags: object) -> Protocol:
        """Return this protocol with the fields of a configuration that are not None in place of its own."""
        flagged: dict[str, Any] = {name: getattr(flags, name, None) for name in OPEN}
        given = {name: value for name, value in flagged.items() if value is not None}
        least_steps = 0 if "epochs" in given else self.least_steps
        return dataclasses.replace(self, **given, least_steps=least_steps)

    def for_data(self, steps_per_epoch: int) -> Protocol:
        """Return this protocol with the number of epochs for data of this length."""
        epochs = max(self.epochs, math.ceil(self.least_steps / steps_per_epoch))
        return dataclasses.replace(self, epochs=epochs, least_steps=0)

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name; `least_steps` only where it decides something."""
        numbers = {name: value for name, value in dataclasses.asdict(self).items() if name != "name"}
        return {name: value for name, value in numbers.items() if name != "least_steps" or value}


OPEN = ("epochs", "batch_size", "lr_head", "lr_backbone", "weight_decay")  # what flags may change

# Section 3.1 of the paper, and the published evaluation code.
PUBLISHED_LINEAR = Protocol("published", 100, 256, 0.3, 0.0, 1e-6, "cosine")

FINE_TUNING = {
    protocol.name: protocol
    for protocol in (
        Protocol("default", 20, 64, 0.5, 0.2, 5e-4, "warm-up", (0.25, 1.0), least_steps=1000),
        Protocol("published", 20, 256, 0.5, 0.005, 0.0, "cosine"),  # the published code's command for 1 % of ImageNet
        Protocol("paper", 20, 256, 0.5, 0.002, 0.0, "steps"),  # the paper's appendix
    )
}
SMALL_SIDE, SMALL_CROPS = 64, (0.6, 1.0)  # pixels; a crop of a quarter of a small image shows too little


def fine_tuning(name: str, image_size: int) -> Protocol:
    """The protocol of that name in `FINE_TUNING`; the default one crops images of up to 64 pixels less."""
    protocol = FINE_TUNING[name]
    if name == "default" and image_size <= SMALL_SIDE:
        return dataclasses.replace(protocol, crop_scale=SMALL_CROPS)
    return protocol


def learning_rate(protocol: Protocol, step: int, steps_per_epoch: int) -> float:
    """What the peak learning rates are multiplied by at a step, counted from 0."""
    steps, epoch = protocol.epochs * steps_per_epoch, step // steps_per_epoch
    if protocol.schedule == "cosine":
        return learning_rate_factor(epoch, steps=protocol.epochs, warmup_steps=0, final=0.0)
    if protocol.schedule == "steps":
        return 0.2 ** ((5 * epoch >= 3 * protocol.epochs) + (5 * epoch >= 4 * protocol.epochs))
    if protocol.schedule == "warm-up":
        return learning_rate_factor(step, steps=steps, warmup_steps=max(1, steps // 20), final=0.0)
    raise ConfigError(f"there is no schedule {protocol.schedule!r}; use cosine, steps or warm-up")
