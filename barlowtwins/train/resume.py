"""Where a run begins: from nothing, from given weights, or from a checkpoint that belongs to it."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import torch

from barlowtwins.config import PretrainConfig
from barlowtwins.config.settings import FIELDS, with_defaults
from barlowtwins.core.distributed import World
from barlowtwins.core.errors import CheckpointError, ConfigError, OutputError, WeightsError
from barlowtwins.core.printing import plural
from barlowtwins.core.progress import say
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.runs import loop
from barlowtwins.runs.checkpoint import (
    Checkpoint,
    checkpoint_path,
    list_checkpoints,
    load_checkpoint,
    load_newest,
)
from barlowtwins.zoo.published import read_published

__all__ = ["agree_on_checkpoint", "find_checkpoint", "initialize", "restore"]

# What the rest of a run is a function of; other settings (workers, device, intervals) may change freely.
MATHS = (
    *FIELDS,
    *("seed", "precision", "micro_batch_size", "mixup", "augment_backend"),
)
# Of those, what the tensors of a checkpoint are made for: no flag carries them over.
SHAPES = ("backbone", "stem", "channels", "projector", "optimizer")
# What a change of the others means for the run that resumes.
MEANS = {
    "precision": "rounding differs from here on",
    "micro_batch_size": "the loss is still that of the whole batch, but batch norm in the backbone sees other parts",
    "augment_backend": "the views are drawn alike, and their pixels differ in rounding",
    "workers": "the views do not depend on it",
    "device": "the same, up to rounding",
}
# What says where and how to resume, not how to train; of `data` the fingerprint counts.
ASKED = ("out", "resume", "allow_change", "dry_run", "data")


def agree_on_checkpoint(
    world: World, config: PretrainConfig, record: dict[str, Any], run: Path, data: dict[str, Any]
) -> Checkpoint | None:
    """`find_checkpoint` for processes that share a run: one looks, checks and speaks, all load what it found.

    Args:
        world: the processes; `run` is a folder that all of them see.
        config, record, run, data: as for `find_checkpoint`.

    Raises:
        BarlowTwinsError: as `find_checkpoint`, on every process.
    """
    named = Path(config.resume) if config.resume not in ("auto", "never") else None
    return loop.checkpoint_for_all(
        world,
        lambda: find_checkpoint(config, record, run, data, world_size=world.size),
        run,
        load=lambda step: _given(named or checkpoint_path(run, step), record, data),
    )


def find_checkpoint(
    config: PretrainConfig, record: dict[str, Any], run: Path, data: dict[str, Any], *, world_size: int = 1
) -> Checkpoint | None:
    """The checkpoint to resume from, checked against the settings and the data; None to begin at step 0.

    Args:
        config: `resume` and `allow_change` are read.
        record: every setting, decided.
        run: the RUN folder.
        data: number of images and fingerprint of the source.
        world_size: processes that share the batch; another number than before is said, and changes only rounding.

    Raises:
        ConfigError: `--allow-change` names something that is not a setting.
        CheckpointError: it cannot be read, or belongs to other settings or other data; the message names each.
        OutputError: `--resume never`, and there are checkpoints; or there is a result, but nothing to resume from.
    """
    allowed = _allowed(config, record)
    if config.resume == "never" and list_checkpoints(run):
        raise OutputError(f"{run} has checkpoints and --resume is never; choose another --out, or --resume auto")
    if config.resume in ("auto", "never"):
        checkpoint = load_newest(run)
    else:
        checkpoint = _given(Path(config.resume), record, data)
    if checkpoint is None:
        if (run / "model.safetensors").exists():
            raise OutputError(
                f"{run} holds the weights of a run, but no checkpoint to resume from; choose another --out, so that "
                "they are not written over"
            )
        return None

    changed = _differences(checkpoint, record, data)
    which = f"the checkpoint at step {checkpoint.step} of {run}" if config.resume == "auto" else config.resume
    decisive = [name for name in changed if name in (*MATHS, "data")]
    fixed = [name for name in decisive if name in SHAPES]
    if refused := fixed or [name for name in decisive if name not in allowed]:
        was, now = (", ".join(f"{name} {changed[name][side]}" for name in refused) for side in (0, 1))
        way_out = (
            f"it cannot change within a run; set it back, or begin another --out, perhaps with --init {run}"
            if fixed
            else f"set it back, choose another --out, or accept it with --allow-change {' '.join(decisive)}"
        )
        raise CheckpointError(f"{which} was made with {was}, not {now}; {way_out}")
    for name, (before, now) in changed.items():
        meaning = f" ({MEANS[name]})" if name in MEANS else ""
        say(f"changed since the checkpoint: {name} was {before}, is {now}{meaning}")
    if checkpoint.world_size != world_size:
        say(
            f"changed since the checkpoint: {plural(checkpoint.world_size, 'process', 'processes')} shared a batch, "
            f"now {world_size} do; "
            "the batches, the loss and its gradient are the same, up to rounding"
        )
    epoch_before = checkpoint.data["images"] // checkpoint.config["batch_size"]
    epoch_now = data["images"] // record["batch_size"]
    if epoch_before != epoch_now:
        say(
            f"an epoch had {epoch_before} steps and has {epoch_now} now: step {checkpoint.step} was in epoch "
            f"{checkpoint.step / epoch_before:.2f} and is in epoch {checkpoint.step / epoch_now:.2f}"
        )
    if "data" in changed:  # its numbers mean other images now
        checkpoint = dataclasses.replace(checkpoint, unreadable=())
    return checkpoint


def restore(checkpoint: Checkpoint, model: BarlowTwins, optimizer: torch.optim.Optimizer) -> None:
    """Put the network and its optimizer where the checkpoint left them.

    The optimizer's own settings (learning rates, decay) stay as they were built: they may have been allowed to change.

    Raises:
        CheckpointError: the tensors are not those of this network and optimizer.
    """
    try:
        model.load_state_dict(checkpoint.model)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": checkpoint.optimizer["state"]})
    except (RuntimeError, ValueError, KeyError) as error:
        gist = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the checkpoint at step {checkpoint.step} does not fit the network: {gist}; use one of this run"
        ) from error


def initialize(model: BarlowTwins, init: str | None) -> None:
    """Start from given weights: the backbone's, and the projector's where the file has one of these widths.

    Raises:
        WeightsError: no such weights, or of another architecture.
    """
    if init is None:
        return
    from barlowtwins.zoo.formats import match_keys
    from barlowtwins.zoo.weights import load_weights

    weights = load_weights(init, full=True)
    channels = getattr(getattr(model.backbone, "conv1", None), "in_channels", weights.channels)
    if channels != weights.channels:
        raise WeightsError(
            f"--init {init} was trained on {plural(weights.channels, 'channel')}, the network here has {channels}; "
            f"give --channels {weights.channels}"
        )
    state = model.state_dict()
    backbone = {f"backbone.{key}": value for key, value in weights.backbone.items()}
    expected = {key: value for key, value in state.items() if key.startswith("backbone.")}
    match_keys(backbone, expected, f"--init {init} is a {weights.backbone_name} and does not fit the network")
    ours, theirs = (getattr(getattr(net, "conv1", None), "stride", None) for net in (model.backbone, weights.build()))
    if ours != theirs:  # which leaves no trace in keys and shapes
        say(f"warning: the first layer of {init} has stride {theirs}, that of this network {ours}; see --stem")
    projector = {key: value for key, value in state.items() if not key.startswith("backbone.")}
    if weights.projector is None:
        say(f"{init} has no projector: it starts from random weights")
    elif {k: v.shape for k, v in weights.projector.items()} != {k: v.shape for k, v in projector.items()}:
        say(f"the projector of {init} has other widths and is not used: it starts from random weights")
    else:
        backbone |= weights.projector
    model.load_state_dict({**state, **backbone})


def _given(path: Path, record: dict[str, Any], data: dict[str, Any]) -> Checkpoint:
    """A checkpoint file that the user names: this package's, or one of the published code."""
    try:
        return load_checkpoint(path)
    except CheckpointError:
        published = read_published(path, record, data) if path.is_file() else None
        if published is None:
            raise
        return published


def _allowed(config: PretrainConfig, record: dict[str, Any]) -> set[str]:
    allowed = {name.lstrip("-").replace("-", "_") for name in config.allow_change}
    for name in sorted(allowed - set(record)):
        near = difflib.get_close_matches(name, [*MATHS, "data"], n=1)
        hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(('data', *MATHS))}"
        raise ConfigError(f"--allow-change {name}: there is no such setting; {hint}")
    return allowed


def _differences(checkpoint: Checkpoint, record: dict[str, Any], data: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What was and what is, of every setting that is not the same."""
    before = with_defaults(checkpoint.config)
    names = [name for name in record if name not in ASKED]
    changed = {name: (before.get(name), record[name]) for name in names if before.get(name) != record[name]}
    if checkpoint.data != data:
        was, now = (f"{d['images']} images ({d['fingerprint'][:10]})" for d in (checkpoint.data, data))
        changed["data"] = (was, now)
    return changed
