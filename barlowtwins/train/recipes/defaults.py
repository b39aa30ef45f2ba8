"""Settings that follow others: rules for what neither a flag nor the recipe decides, each with its reason in words.

    what a user overrides      what follows, unless a flag says otherwise
    batch size (LARS)          learning rate, by the authors' table
    learning rate              that of biases, in proportion
    projector width (LARS)     learning rate of biases, by the authors' loss scale
    optimizer                  learning rates and weight decay
    epochs                     warm-up: a tenth, or the recipe's part if that is more; at most ten, or the recipe's

and what a recipe leaves open follows the images: their size, and the views that suit it. Where there are fewer images
than the recipe's batch has, the batch follows them. Nothing here depends on the
number of processes: gradients are those of the global loss, so the published 1/W is not in any rate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["SMALL", "augmentation_for", "follow", "lars_rate", "size_for"]

SMALL = 64  # pixels: images up to this side get small views

# Batch size -> learning rate for 256 images (the authors, issue 7 of the published repository: ResNet-50, 300 epochs of
# ImageNet, LARS, one rate for all parameters, the loss scaled by 0.024). It gave 69.7, 70.7, 71.4, 71.7, 71.4, 70.7 %.
LARS_RATES = {128: 0.7, 256: 0.4, 512: 0.3, 1024: 0.25, 2048: 0.2, 4096: 0.2}

# Where a flag takes another optimizer than the recipe's: rates of weights and biases for 256 images, weight decay.
# LARS as published (its rate by the table); AdamW as in this project's recipes for small images.
ADAMW = {"lr": 0.002, "lr_bias": 0.002, "weight_decay": 1e-4}
LARS_DECAY = 1.6e-5
BIAS_SHARE = 0.024 / 16  # of the rate of weights: the authors' loss scale, which LARS does not feel, and their 16 GPUs
WIDTH = 8192  # projector width at which the loss scale is 196 / 8192 = 0.024 (the authors, issue 9)


def lars_rate(batch_size: int) -> float:
    """The authors' learning rate for 256 images at a batch size: linear in its logarithm between the table's points.

    Below 128, where the table ends, the line of its first two points goes on: 1.0 at 64, as the authors guess. Above
    4096 it stays 0.2.
    """
    points = sorted(LARS_RATES.items())
    if batch_size >= points[-1][0]:
        return points[-1][1]
    (low, rate), (high, next_rate) = next(pair for pair in itertools.pairwise(points) if batch_size < pair[1][0])
    part = math.log(batch_size / low) / math.log(high / low)
    return rate + part * (next_rate - rate)


def augmentation_for(channels: int, image_size: int) -> str:
    """The views that suit images of so many channels and, if square, so many pixels a side."""
    if channels not in (1, 3):
        return "grey"  # whose operations suit any number of channels
    if image_size > SMALL:
        return "imagenet"
    return "grey" if channels == 1 else "small"


def size_for(size: tuple[int, int] | None) -> int:
    """Side of the views for images of (height, width): their own up to 64 pixels, else 224; 32 if unknown."""
    if size is None:
        return 32
    return max(size) if max(size) <= SMALL else 224


def follow(
    values: dict[str, Any],
    recipe: Mapping[str, Any],
    flags: Collection[str],
    size: tuple[int, int] | None,
    images: int | None = None,
) -> list[str]:
    """Fill and adjust `values` in place by the rules at the top of this module.

    Args:
        values: the recipe's settings with the flags' over them.
        recipe: the recipe's alone.
        flags: names of the settings that flags gave.
        size: (height, width) of the images, where all have the same.
        images: how many there are, if it is known.

    Returns:
        What was decided and why, in words, a line a choice.
    """
    said = _follow_images(values, size)
    if "batch_size" not in flags and images is not None:
        said += _follow_few_images(values, images)
    said += _follow_optimizer(values, recipe, flags)
    if "lr" not in flags:
        said += _follow_batch_size(values, recipe)
    if "lr_bias" not in flags:
        said += _follow_with_biases(values, recipe)
    if "lambd" not in flags and _width(values) != _width(recipe) and "lambd" in recipe:
        said.append(
            f"lambda {values['lambd']:g} as at projector width {_width(recipe) or WIDTH}: it is not scaled with the "
            "width; --lambd overrides"
        )
    if "warmup_epochs" not in flags:
        said += _follow_epochs(values, recipe)
    return said


def _follow_images(values: dict[str, Any], size: tuple[int, int] | None) -> list[str]:
    said = []
    if "image_size" not in values:
        values["image_size"] = size_for(size)
        said.append(f"views of {values['image_size']} pixels: {_size_in_words(size)}; --image-size overrides")
    if "augmentation" not in values:
        values["augmentation"] = augmentation_for(values["channels"], values["image_size"])
        kind = {1: "grey", 3: "colour"}.get(values["channels"], f"{values['channels']}-channel")
        said.append(
            f"augmentation {values['augmentation']}: {kind} images, {values['image_size']} pixels; "
            "--augmentation overrides"
        )
    return said


def _follow_few_images(values: dict[str, Any], images: int) -> list[str]:
    """A batch of nearly all images where there are fewer than the recipe asks for: a multiple of 8, or of 2 below 8."""
    before = values.get("batch_size")
    if before is None or not 2 <= images < before:
        return []
    values["batch_size"] = images // 8 * 8 or images // 2 * 2
    return [f"batch size {values['batch_size']} instead of {before}: only {images} images; --batch-size overrides"]


def _follow_epochs(values: dict[str, Any], recipe: Mapping[str, Any]) -> list[str]:
    """Warm-up: a tenth of the run, or the recipe's part of it if that is more; at most ten epochs, or the recipe's."""
    if "epochs" not in values:
        return []
    epochs, before = values["epochs"], recipe.get("warmup_epochs")
    if before is None or "epochs" not in recipe:
        values["warmup_epochs"] = min(10.0 if before is None else before, epochs / 10)
        return []
    values["warmup_epochs"] = min(before, max(epochs / 10, before * epochs / recipe["epochs"]))
    if values["warmup_epochs"] == before:
        return []
    return [
        f"warm-up of {values['warmup_epochs']:.2g} epochs instead of {before:g}: the run has {epochs}, not "
        f"{recipe['epochs']}; --warmup-epochs overrides"
    ]


def _follow_optimizer(values: dict[str, Any], recipe: Mapping[str, Any], flags: Collection[str]) -> list[str]:
    """Where a flag takes another optimizer, the recipe's rates are of no use to it."""
    chosen, before = values.get("optimizer"), recipe.get("optimizer")
    if before is None or chosen == before:
        return []
    if chosen == "lars":
        found = {"lr": lars_rate(values.get("batch_size", 256)), "weight_decay": LARS_DECAY}
        source = "the authors' table"
    elif chosen == "adamw":
        found, source = dict(ADAMW), "this project's recipes for small images"
    else:
        return [f"warning: the recipe's learning rates are those of {before}, not {chosen}: give --lr and --lr-bias"]
    taken = {name: value for name, value in found.items() if name not in flags}
    if chosen == "lars" and "lr_bias" not in flags:
        taken["lr_bias"] = values.get("lr" if "lr" in flags else "", found["lr"]) * BIAS_SHARE * _scale(values)
    values |= taken
    numbers = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in taken.items())
    return [f"{numbers}: optimizer {chosen}, {source} instead of the recipe's for {before}"] if taken else []


def _follow_batch_size(values: dict[str, Any], recipe: Mapping[str, Any]) -> list[str]:
    n, before = values.get("batch_size"), recipe.get("batch_size")
    if n is None or n == before:
        return []
    if values.get("optimizer") != "lars":
        if "lr" not in values or before is None:
            return []
        at_peak = values["lr"] * n / 256
        return [
            f"learning rate {values['lr']:.4g} per 256 images, {at_peak:.4g} at its peak: batch size {n} instead of "
            f"{before}, in proportion; --lr overrides"
        ]
    if recipe.get("optimizer") == "lars":
        rate = lars_rate(n)
        if before is not None and "lr" in recipe:  # a recipe with a rate of its own keeps its distance from the table
            rate *= recipe["lr"] / lars_rate(before)
        values["lr"] = rate
        source = "authors' table" if n >= min(LARS_RATES) else "beyond the authors' table"
        said = [f"learning rate {rate:.4g} per 256 images: batch size {n}, {source}; --lr overrides"]
    else:
        said = []
    if n < min(LARS_RATES):
        said.append(
            f"warning: batch size {n} is below the authors' table ({min(LARS_RATES)} to {max(LARS_RATES)}): its rate "
            "is their guess, and they think that --optimizer sgd may do better than lars there"
        )
    return said


def _follow_with_biases(values: dict[str, Any], recipe: Mapping[str, Any]) -> list[str]:
    """The rate of biases keeps its ratio to that of weights; under LARS, which does not feel the loss's scale, it also
    takes the authors' loss scale 196 / width."""
    lars = values.get("optimizer") == "lars"
    if "lr_bias" not in values:
        if not lars or "lr" not in values:
            return []
        values["lr_bias"] = values["lr"] * BIAS_SHARE * _scale(values)
    elif recipe.get("optimizer") == values.get("optimizer") and recipe.get("lr"):
        factor = values["lr"] / recipe["lr"]
        if lars and _width(recipe) and _width(values):
            factor *= _width(recipe) / _width(values)
        if factor == 1:
            return []
        values["lr_bias"] = values["lr_bias"] * factor
    else:
        return []
    by = "the rate of weights" + (" and the authors' loss scale, 196 / projector width" if lars else "")
    return [f"learning rate of biases {values['lr_bias']:.4g} per 256 images: follows {by}; --lr-bias overrides"]


def _scale(values: Mapping[str, Any]) -> float:
    """The authors' loss scale as a part of that at width 8192."""
    return WIDTH / (_width(values) or WIDTH)


def _width(values: Mapping[str, Any]) -> int:
    """D, the projector's last width; 0 where it is not given or not understood."""
    last = str(values.get("projector", "")).rpartition("-")[2]
    return int(last) if last.isascii() and last.isdigit() else 0


def _size_in_words(size: tuple[int, int] | None) -> str:
    return "images of unknown size" if size is None else f"images of {size[0]} x {size[1]}"
