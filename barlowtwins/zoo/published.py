"""The published code's training checkpoint, {epoch, model, optimizer}: read to go on from it, written for it to go on.

What its optimiser keeps is the momentum of each parameter, named `mu`, first of all weights and then of all 1-d
parameters (biases, batch norm), each in the order of the module: our order, too. It is taken over with one factor.
There, the gradient is 1/W of the true one on W GPUs; LARS scales that away for weights, but the momentum of the 1-d
parameters is 1/W of ours, and their learning rate W times ours (0.0048 instead of 0.0048/W). Since the update is
momentum times learning rate, the factor is the ratio of the two learning rates, each taken relative to that of weights.

What cannot be mapped, since the file does not say it: W, the seed and the order of the images, the peak learning rates,
the length of the run and its warm-up. The settings of this package's run say these; it begins with a whole epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from barlowtwins.core.errors import CheckpointError, WeightsError
from barlowtwins.core.progress import say
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.optim import parameter_groups
from barlowtwins.runs.checkpoint import Checkpoint
from barlowtwins.zoo.formats import take_apart
from barlowtwins.zoo.safe_load import read_weight_file

__all__ = ["BIAS_RATIO", "is_published", "published_checkpoint", "read_published"]

BIAS_RATIO = 0.0048 / 0.2  # learning rate of 1-d parameters / that of weights, as published
DEFAULTS = {"weight_decay": 1e-6, "momentum": 0.9, "eta": 0.001}


def is_published(value: Any) -> bool:
    """Whether what a file holds is laid out as the published code's checkpoint (this package's has a `step`, too)."""
    return isinstance(value, Mapping) and {"epoch", "model", "optimizer"} <= set(value) and "step" not in value


def read_published(path: Path, record: Mapping[str, Any], data: Mapping[str, Any]) -> Checkpoint | None:
    """What the published code saved, as if this package had saved it; None if the file is nothing of that kind.

    Args:
        path: such a file.
        record: every setting of the run that goes on from it, decided.
        data: number of images and fingerprint of the source.

    Raises:
        CheckpointError: it is such a checkpoint, but its network is not that of the settings, or it is damaged.
    """
    try:
        contents = read_weight_file(path)
        if not is_published(contents.value):
            return None
        parts = take_apart(contents)
    except WeightsError as error:
        raise CheckpointError(f"cannot go on from {path}: {error} (to start from its weights alone: --init)") from error
    epoch, per_epoch = contents.value["epoch"], data["images"] // record["batch_size"]
    if not (type(epoch) is int and 0 <= epoch < 1 << 20):
        raise CheckpointError(
            f"cannot go on from {path}: its epoch is {epoch!r}; to start from its weights alone: --init"
        )
    state, mapped = _our_momentum(contents.value["optimizer"], record, path)
    say(
        f"{path.name} is a checkpoint of the published code after {epoch} epochs: step {epoch * per_epoch} of this "
        f"run; {mapped}; its seed, order of images and peak learning rates are not in it: those of this run apply"
    )
    model = {f"backbone.{key}": tensor for key, tensor in parts.backbone.items()} | (parts.projector or {})
    return Checkpoint(epoch * per_epoch, model, {"state": state}, config=dict(record), data=dict(data))


def published_checkpoint(
    state: Mapping[str, Tensor],
    model: BarlowTwins,
    epoch: int,
    optimizer: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the published code would have saved of a network, and resumes.

    Args:
        state: state dict of a `BarlowTwins`.
        model: one of that architecture; its tensors may be on the meta device.
        epoch: whole epochs done.
        optimizer: state dict of this package's LARS; None writes one whose momentum starts anew.
        config: the settings that the optimiser ran with (`lr`, `lr_bias`, `weight_decay`).
    """
    momentum: dict[int, dict[str, Tensor]] = {}
    weights, biases = ([*group["params"]] for group in _groups(model))
    settings = dict(config or {})
    if optimizer is not None and settings.get("optimizer", "lars") == "lars":
        factor = _factor(BIAS_RATIO, settings)
        for index, kept in optimizer["state"].items():
            buffer = kept["momentum_buffer"]
            momentum[index] = {"mu": buffer if index < len(weights) else buffer / factor}
    common = {
        **DEFAULTS,
        **({"weight_decay": settings["weight_decay"]} if "weight_decay" in settings else {}),
        "weight_decay_filter": True,
        "lars_adaptation_filter": True,
    }
    count = len(weights)
    groups = [
        {"lr": 0, **common, "params": list(range(count))},  # the published code sets the rates at each step
        {"lr": 0, **common, "params": list(range(count, count + len(biases)))},
    ]
    return {
        "epoch": epoch,
        "model": {f"module.{key}": tensor for key, tensor in state.items()},
        "optimizer": {"state": momentum, "param_groups": groups},
    }


def _our_momentum(optimizer: Any, record: Mapping[str, Any], path: Path) -> tuple[dict[int, dict[str, Tensor]], str]:
    """The momentum of each parameter by its number, and what is said about it."""
    kept = optimizer.get("state") if isinstance(optimizer, Mapping) else None
    if not kept:
        return {}, "it has no momentum, which starts at 0"
    if record["optimizer"] != "lars":
        return {}, f"the momentum of its LARS does not fit {record['optimizer']} and starts at 0"
    with torch.device("meta"):
        model = BarlowTwins(record["backbone"], record["projector"], stem=record["stem"], channels=record["channels"])
    weights, biases = ([*group["params"]] for group in _groups(model))
    kept = kept if isinstance(kept, Mapping) else {}
    momentum: list[Tensor] = []
    for index, parameter in enumerate([*weights, *biases]):
        mu = kept[index].get("mu") if isinstance(kept.get(index), Mapping) else None
        if not isinstance(mu, Tensor) or mu.shape != parameter.shape:
            what = f"shape {tuple(mu.shape)}" if isinstance(mu, Tensor) else "none"
            network = f"{record['backbone']} ({record['stem']} stem) + {record['projector']}"
            raise CheckpointError(
                f"cannot go on from {path}: the momentum of parameter {index} has {what} instead of "
                f"{tuple(parameter.shape)}; its network is not {network} (to start from its weights alone: --init)"
            )
        momentum.append(mu)
    factor = _factor(_relative_rate(optimizer.get("param_groups")), record)
    momentum[len(weights) :] = [mu * factor for mu in momentum[len(weights) :]]
    said = f"momentum taken over (that of 1-d parameters x {factor:g}, since its gradient was 1/W of the true one)"
    return {index: {"momentum_buffer": mu} for index, mu in enumerate(momentum)}, said


def _relative_rate(groups: Any) -> float:
    """Their learning rate of 1-d parameters over that of weights; as published if the file does not say."""
    rates: list[Any] = (
        [group.get("lr") for group in groups if isinstance(group, Mapping)] if isinstance(groups, list) else []
    )
    if len(rates) == 2 and all(isinstance(rate, float) and rate > 0 for rate in rates):
        return rates[1] / rates[0]
    return BIAS_RATIO


def _factor(theirs: float, settings: Mapping[str, Any]) -> float:
    """From their momentum of 1-d parameters to ours: their relative learning rate of these over ours."""
    lr, lr_bias = settings.get("lr", 0.2), settings.get("lr_bias", 0.0003)
    factor = theirs * lr / lr_bias if lr > 0 and lr_bias > 0 else 1.0
    return round(factor) if abs(factor - round(factor)) < 1e-6 * factor else factor  # it is W: a whole number


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    return parameter_groups(model, lr=0.0, lr_bias=0.0, weight_decay=0.0)
