"""Where a run begins: from nothing, from given weights, or from a checkpoint that belongs to it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from barlowtwins.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, load_newest
from barlowtwins.config import PretrainConfig
from barlowtwins.errors import CheckpointError, OutputError
from barlowtwins.model import BarlowTwins
from barlowtwins.progress import say
from barlowtwins.recipes import Settings
from barlowtwins.weights import load_weights

__all__ = ["find_checkpoint", "initialize"]

# What the rest of a run is a function of; other settings (workers, device, intervals) may change freely.
MATHS = (*(field.name for field in fields(Settings) if field.name != "recipe"), "seed")


def find_checkpoint(
    config: PretrainConfig, record: dict[str, Any], run: Path, data: dict[str, Any]
) -> Checkpoint | None:
    """The checkpoint to go on from, checked against the settings and the data; None to begin at step 0.

    Args:
        config: `resume` and `allow_change` are read.
        record: every setting, decided.
        run: the RUN folder.
        data: number of images and fingerprint of the source.

    Raises:
        CheckpointError: it cannot be read, or belongs to other settings or other data; the message names each.
        OutputError: `--resume never`, and there are checkpoints.
    """
    if config.resume == "never":
        if list_checkpoints(run):
            raise OutputError(f"{run} has checkpoints and --resume is never; choose another --out, or --resume auto")
        return None
    checkpoint = load_newest(run) if config.resume == "auto" else load_checkpoint(Path(config.resume))
    if checkpoint is None:
        return None

    changed: dict[str, tuple[Any, ...]] = {name: (checkpoint.config.get(name), record[name]) for name in MATHS}
    changed = {name: pair for name, pair in changed.items() if pair[0] != pair[1]}
    if checkpoint.data != data:
        changed["data"] = tuple(f"{d['images']} images, {d['fingerprint'][:10]}" for d in (checkpoint.data, data))
    for name, (before, now) in changed.items():
        say(f"changed since the checkpoint: {name} was {before}, is {now}")
    if refused := [name for name in changed if name not in config.allow_change]:
        listed = "; ".join(f"{name} was {changed[name][0]}, is {changed[name][1]}" for name in refused)
        raise CheckpointError(
            f"the checkpoint at step {checkpoint.step} of {run} was made with other settings ({listed}); "
            f"set them back, choose another --out, or accept with --allow-change {' '.join(refused)}"
        )
    return checkpoint


def initialize(model: BarlowTwins, init: str | None) -> None:
    """Start from given weights: the backbone's, and the projector's where the file has one of these widths.

    Raises:
        WeightsError: no such weights, or of another architecture.
    """
    if init is None:
        return
    weights = load_weights(init)
    model.backbone.load_state_dict(weights.backbone)
    projector = {key: value for key, value in model.state_dict().items() if not key.startswith("backbone.")}
    if weights.projector is None:
        say(f"{init} has no projector: it starts from random weights")
    elif {k: v.shape for k, v in weights.projector.items()} != {k: v.shape for k, v in projector.items()}:
        say(f"the projector of {init} has other widths and is not used: it starts from random weights")
    else:
        model.load_state_dict({**model.state_dict(), **weights.projector})
