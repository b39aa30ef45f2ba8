"""Pretraining, from top to bottom: settings, data, network, then a loop of two views, one loss, one update.

    barlowtwins pretrain DATA --out RUN            pretrain(PretrainConfig("DATA", out="RUN"))

Everything random is a function of (seed, epoch, index) and the learning rate is a function of the step, so a stopped or
killed run goes on from its newest checkpoint as if nothing had happened: on a CPU to the bit.
"""

# N images in the global batch, n = N / W on this process, C channels, S side in pixels, W processes

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from barlowtwins.config import PretrainConfig
from barlowtwins.core.device import autocast, default_workers, device_name, resolve_precision
from barlowtwins.core.distributed import World, open_world
from barlowtwins.core.errors import StoppedEarly, TrainingError
from barlowtwins.core.locks import FolderLock
from barlowtwins.core.printing import plural
from barlowtwins.core.signals import StopSignals
from barlowtwins.data.open import Source, open_source
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.optim import build_optimizer, learning_rate_factor
from barlowtwins.runs.checkpoint import Checkpoint, Saver
from barlowtwins.runs.guards import FiniteGuard, is_out_of_memory, require_finite_weights, require_readable
from barlowtwins.runs.run_folder import RunFolder
from barlowtwins.train.companions import Watched, open_journal, open_watched, say_how
from barlowtwins.train.estimate import estimate_run
from barlowtwins.train.microbatch import micro_batched_backward
from barlowtwins.train.mixup import draw_mix, mixed_loss, require_one_process
from barlowtwins.train.plan import Plan, plan_run
from barlowtwins.train.recipes import Settings, record, resolve
from barlowtwins.train.recipes.probe_images import observe
from barlowtwins.train.result import PretrainResult
from barlowtwins.train.resume import agree_on_checkpoint, initialize, restore
from barlowtwins.train.trackers import Tracker
from barlowtwins.views.executors import Executor
from barlowtwins.views.transform import TwinTransform
from barlowtwins.views.twins import plan_batches

__all__ = ["Plan", "PretrainResult", "build_model", "plan_run", "pretrain"]


def pretrain(
    config: PretrainConfig,
    *,
    trackers: Sequence[Tracker] = (),
    write_report: Callable[[Path], object] | None = None,
) -> PretrainResult:
    """Train a backbone and a projector on unlabelled images, or go on doing so.

    Under `torchrun` all processes share each batch, and the result is that of one process within float tolerance.

    Args:
        config: what to do; every `None` in it is decided by the recipe or the data.
        trackers: get each line of metrics.jsonl as well (see `trackers`), on the process that writes.
        write_report: writes the page of a RUN folder; called after evaluations and at the end.

    Returns:
        what came of it; the files are in `config.out` (see `RunFolder`).

    Raises:
        ConfigError: settings that do not fit the data or the machine.
        DataError: no such data, or labels that a kNN needs are missing.
        CheckpointError: the checkpoint is damaged, or belongs to other settings or data.
        TrainingError: a loss or gradient that is not finite, too many unreadable images, no memory.
        MissingExtraError: `track` names what is not installed.
        StoppedEarly: a signal asked to stop; a checkpoint is saved.
    """
    with open_world(config.device) as world:
        source = open_source(config.data, split="train", data_root=config.data_root)
        settings = resolve(config, **observe(source)._asdict(), images=len(source))
        require_one_process(config.mixup, world.size)
        plan = plan_run(settings, len(source), world_size=world.size, micro=config.micro_batch_size)
        watched = open_watched(config, source) if world.writes else None
        try:
            model = build_model(settings, config.seed)
            if config.dry_run:
                found = estimate_run(config, settings, model, source, world, steps=plan.steps)
                return PretrainResult(config.out, 0, plan, settings, _parameters(model), estimate=found)
            with FolderLock(config.out) if world.writes else contextlib.nullcontext():
                return _train(config, settings, plan, model, source, watched, world, trackers, write_report)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"out of memory on {device_name(world.device)} with --batch-size {settings.batch_size}; try "
                "--micro-batch-size with a part of it (nearly the same training), --precision bf16, or a smaller "
                "batch, projector, backbone or image size"
            ) from error


def build_model(settings: Settings, seed: int) -> BarlowTwins:
    """The untrained network; its weights are a function of the settings and the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BarlowTwins(
            settings.backbone,
            settings.projector,
            settings.lambd,
            settings.scale_loss,
            stem=settings.stem,  # type: ignore[arg-type]  # checked there
            channels=settings.channels,
        )


def _train(
    config: PretrainConfig,
    settings: Settings,
    plan: Plan,
    model: BarlowTwins,
    source: Source,
    watched: Watched | None,
    world: World,
    trackers: Sequence[Tracker],
    write_report: Callable[[Path], object] | None,
) -> PretrainResult:
    device, n = world.device, settings.batch_size
    workers = default_workers() if config.workers is None else config.workers
    precision = resolve_precision(config.precision, device)
    transform = TwinTransform(
        settings.augmentation, size=settings.image_size, channels=settings.channels, seed=config.seed
    )
    preprocessing = transform.recipe.preprocessing()
    executor = Executor(source, transform, device, config.augment_backend)
    run = RunFolder(config.out)
    found_out = {"precision": precision, "workers": workers, "augment_backend": executor.backend}
    decided = {**record(config, settings), **found_out}
    data = {"images": len(source), "fingerprint": source.fingerprint()}

    # The network and its optimiser, new or as the newest checkpoint left them.
    layout = torch.channels_last  # faster than contiguous on GPUs, and by a tenth or more on CPUs
    model.to(device).to(memory_format=layout).train()
    scale = n / 256  # learning rates are given for 256 images
    optimizer = build_optimizer(
        settings.optimizer,
        model,
        lr=settings.lr * scale,
        lr_bias=settings.lr_bias * scale,
        weight_decay=settings.weight_decay,
    )
    step, unreadable = 0, set[int]()
    checkpoint = agree_on_checkpoint(world, config, decided, run.path, data)
    if checkpoint is None:
        initialize(model, config.init)
    else:
        restore(checkpoint, model, optimizer)
        step, unreadable = checkpoint.step, set(checkpoint.unreadable)
    network = world.share(model)
    last = min(plan.steps, plan.steps if config.max_steps is None else config.max_steps)

    # Rank 0 keeps the journal, with a look at the network and a kNN where there are labels, and saves.
    begun_at = step
    saver = Saver(run.path, start=step)
    journal = None
    if watched is not None:
        run.sweep()
        facts = {"data_facts": data, "classes": list(source.classes), "plan": dataclasses.asdict(plan)}
        run.write_config({**decided, **facts, "chosen": list(settings.chosen), "world_size": world.size})
        reading = f"{plural(executor.workers(workers), 'worker')} each; {executor}"
        machine = f"{device_name(device)}, {precision}, {plural(world.size, 'process', 'processes')}, {reading}"
        say_how(settings, plan, model, machine, step)
        journal = open_journal(
            config,
            settings,
            plan,
            source,
            watched,
            transform,
            run,
            start=step,
            device=device,
            workers=workers,
            trackers=trackers,
            write_report=write_report,
        )

    guard = FiniteGuard(model, executor.__getitem__, source, world=world, report=run.path / "nonfinite.json")

    def save(*, last_chance: bool = False) -> None:
        guard.settle()
        if journal is None:
            return
        with journal.pause():
            require_finite_weights(model, step)
            states = model.state_dict(), optimizer.state_dict()
            bad = tuple(sorted(unreadable))
            saver.save(Checkpoint(step, *states, decided, data, world.size, bad), last_chance=last_chance)

    def evaluate_or_stop() -> None:
        """At the end of a step: a stop signal also ends looks and kNN, which the next process then makes up for."""
        if journal:
            journal.evaluate(step, model, unreadable, lambda: stop.requested)
        if world.any(stop.requested) and step < last:
            save(last_chance=True)
            again = "the same command goes" if config.resume == "auto" else "--resume auto goes"
            raise StoppedEarly(
                f"stopped by {stop.name or 'another process'} after step {step} of {plan.steps}, saved in {run.path}; "
                f"{again} on from there"
            )

    def to_device(y: Tensor) -> Tensor:
        return y.to(device, non_blocking=True, memory_format=layout)

    def embed(y: Tensor) -> Tensor:
        with autocast(device, precision):
            return model.embed(to_device(y))

    micro = config.micro_batch_size and config.micro_batch_size // world.size
    order = plan_batches(
        len(source), n, seed=config.seed, start=step, stop=last, rank=world.rank, world_size=world.size
    )
    with (
        StopSignals() as stop,
        journal or contextlib.nullcontext(),
        executor.batches(order, workers=workers) as batches,
    ):
        evaluate_or_stop()
        for batch in batches:
            unreadable = require_readable(batch, unreadable, config.max_bad * plan.images, world)

            # The learning rate of this step.
            factor = learning_rate_factor(step, steps=plan.steps, warmup_steps=plan.warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor

            # Two views, one loss, one update.
            if micro is None:
                with autocast(device, precision):
                    y1, y2 = to_device(batch.y1), to_device(batch.y2)
                    mix = draw_mix(config.seed, step, n) if config.mixup else None
                    loss = network(y1, y2) if mix is None else mixed_loss(model, y1, y2, mix, weight=config.mixup)
                loss.backward()
            else:
                loss = micro_batched_backward(model, batch.y1, batch.y2, micro, embed=embed)
                world.average_gradients(model)
            guard.check(loss, batch.rows)
            optimizer.step()
            optimizer.zero_grad()
            step += 1

            # The rest only watches, and saves: by then a step that leaves a trace is judged.
            if step % config.log_every == 0 or step % plan.steps_per_epoch == 0:
                guard.settle()
            if journal and model.terms:
                journal.step(step, model.terms, optimizer, len(unreadable), last=step == last)
            if step % (config.checkpoint_every or plan.steps_per_epoch) == 0 or step == last:
                save(last_chance=step == last < plan.steps)
            evaluate_or_stop()

    if journal is None:
        world.wait()
        return PretrainResult(config.out, step, plan, settings, _parameters(model))
    run.write_weights(model, name=settings.backbone, stem=settings.stem, preprocessing=preprocessing)
    journal.report()
    world.wait()
    return PretrainResult(
        config.out,
        step,
        plan,
        settings,
        _parameters(model),
        begun_at=begun_at,
        loss=journal.loss,
        knn=journal.accuracy,
        images_per_second=journal.rate,
        unreadable=len(unreadable),
    )


def _parameters(model: BarlowTwins) -> int:
    return sum(p.numel() for p in model.parameters())
