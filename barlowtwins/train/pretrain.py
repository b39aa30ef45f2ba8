"""Pretraining, from top to bottom: settings, data, network, then a loop of two views, one loss, one update.

    barlowtwins pretrain DATA --out RUN            pretrain(PretrainConfig("DATA", out="RUN"))

Everything random is a function of (seed, epoch, index) and the learning rate is a function of the step, so a stopped or
killed run resumes from its newest checkpoint as if nothing had happened: on a CPU to the bit. The step itself is
`trainer.Trainer.train_step`; the log, checkpoints and evaluation are callbacks (see `callbacks`).
"""

# N images in the global batch, C channels, S side in pixels

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import torch

from barlowtwins.config import PretrainConfig
from barlowtwins.core.device import device_name
from barlowtwins.core.distributed import open_world
from barlowtwins.core.errors import TrainingError
from barlowtwins.core.locks import FolderLock
from barlowtwins.core.printing import plural
from barlowtwins.core.progress import say
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.runs.guards import Evidence, FiniteGuard, is_out_of_memory
from barlowtwins.runs.loop import Stopping
from barlowtwins.runs.run_folder import RunFolder
from barlowtwins.train.callbacks import Callback, RunState
from barlowtwins.train.checkpointing import Checkpointing
from barlowtwins.train.estimate import estimate_run
from barlowtwins.train.inspection import Inspection
from barlowtwins.train.logger import CollapseWarning, Logger
from barlowtwins.train.online_evaluation import OnlineEvaluation
from barlowtwins.train.plan import Plan, plan_run
from barlowtwins.train.recipes import Settings
from barlowtwins.train.result import PretrainResult
from barlowtwins.train.resume import agree_on_checkpoint, initialize, restore
from barlowtwins.train.setup import Setup, set_up
from barlowtwins.train.trackers import Tracker, Tracking
from barlowtwins.train.trainer import Trainer, prepare
from barlowtwins.views.twins import plan_batches

__all__ = ["Plan", "PretrainResult", "build_model", "plan_run", "pretrain"]


def pretrain(
    config: PretrainConfig, *, callbacks: Sequence[Callback] = (), trackers: Sequence[Tracker] = ()
) -> PretrainResult:
    """Train a backbone and a projector on unlabeled images, or resume doing so.

    Under `torchrun` all processes share each batch, and the result is that of one process within float tolerance.

    Args:
        config: what to do; every `None` in it is decided by the recipe or the data.
        callbacks: called after the built-in ones, on the process that writes (see `callbacks`).
        trackers: get each line of metrics.jsonl as well (see `trackers`), on the process that writes.

    Returns:
        the outcome; the files are in `config.out` (see `RunFolder`).

    Raises:
        ConfigError: settings that do not fit the data or the machine.
        DataError: no such data, or labels that a kNN needs are missing.
        CheckpointError: the checkpoint is damaged, or belongs to other settings or data.
        TrainingError: a loss or gradient that is not finite, too many unreadable images, no memory.
        MissingExtraError: `track` names what is not installed.
        StoppedEarly: a signal asked to stop; a checkpoint is saved.
    """
    with open_world(config.device) as world:
        setup = set_up(config, world)
        with _out_of_memory_explained(setup):
            everything = [*standard_callbacks(setup, trackers), *callbacks] if world.writes else []
            model = build_model(setup.settings, config.seed)
            if config.dry_run:
                found = estimate_run(setup, model)
                return PretrainResult(config.out, 0, setup.plan, setup.settings, _parameters(model), estimate=found)
            with FolderLock(config.out) if world.writes else contextlib.nullcontext():
                return _train(setup, model, everything)


def standard_callbacks(setup: Setup, trackers: Sequence[Tracker] = ()) -> list[Callback]:
    """What every run has: log, trackers, inspection of the network, online evaluation, warnings.

    Raises:
        DataError: what `val` names is missing, or has no labels, or other classes than the training data.
    """
    inspection, evaluation = Inspection.of(setup), OnlineEvaluation.of(setup)
    optional = [callback for callback in (inspection, evaluation) if callback]
    return [Tracking(trackers, setup.config.track), Logger(), *optional, CollapseWarning()]


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


def _train(setup: Setup, model: BarlowTwins, callbacks: Sequence[Callback]) -> PretrainResult:
    config, settings, plan, world = setup.config, setup.settings, setup.plan, setup.world
    folder = RunFolder(config.out)

    # The network and its optimizer, new or as the newest checkpoint left them.
    optimizer = prepare(model, settings, world)
    checkpoint = agree_on_checkpoint(world, config, setup.decided, folder.path, setup.data)
    if checkpoint is None:
        initialize(model, config.init)
    else:
        restore(checkpoint, model, optimizer)
    step, unreadable = (checkpoint.step, checkpoint.unreadable) if checkpoint else (0, ())

    # The step, and what the callbacks of the process that writes know of it.
    evidence = Evidence(setup.source, folder.path / "nonfinite.json", setup.executor.__getitem__)
    guard = FiniteGuard(model, world, evidence)
    trainer = Trainer(model, optimizer, setup.step, world, guard=guard, step=step, unreadable=unreadable)
    run = RunState(config, settings, plan, folder, model, optimizer, step, step, set(unreadable))
    if world.writes:
        facts = {"config": setup.decided, "data": setup.data, "world_size": world.size}
        run.callbacks = (Checkpointing(folder, trainer, facts), *callbacks)
        _write_config(setup, folder)
        _announce(setup, model, step)

    # The loop.
    order = plan_batches(
        plan.images,
        settings.batch_size,
        seed=config.seed,
        start=step,
        stop=run.last,
        rank=world.rank,
        world_size=world.size,
    )
    again = "the same command" if config.resume == "auto" else "--resume auto"
    with contextlib.closing(run):
        if world.writes:
            run.begin()
        with (
            Stopping(world, folder.path, again=again) as stop,
            setup.executor.batches(order, workers=setup.workers) as batches,
        ):
            trainer.train(batches, run, stop)
        if world.writes:
            preprocessing = setup.transform.recipe.preprocessing()
            folder.write_weights(model, name=settings.backbone, stem=settings.stem, preprocessing=preprocessing)
        for callback in run.callbacks:
            callback.on_end(run)
    world.wait()
    return PretrainResult(
        config.out,
        run.step,
        plan,
        settings,
        _parameters(model),
        begun_at=run.start,
        loss=run.loss,
        knn=run.latest.get("knn"),
        images_per_second=run.clock.rate,
        unreadable=len(run.unreadable),
    )


def _write_config(setup: Setup, folder: RunFolder) -> None:
    folder.sweep()
    facts = {"data_facts": setup.data, "classes": list(setup.source.classes), "plan": dataclasses.asdict(setup.plan)}
    chosen = list(setup.settings.chosen)
    folder.write_config({**setup.decided, **facts, "chosen": chosen, "world_size": setup.world.size})


def _announce(setup: Setup, model: BarlowTwins, step: int) -> None:
    """Print what is trained, on what and how long, and each setting that was chosen by the data."""
    settings, plan = setup.settings, setup.plan
    parts = [
        f"recipe {settings.recipe}",
        f"{settings.backbone} ({settings.stem} stem) + {settings.projector}, {_parameters(model) / 1e6:.1f} M weights",
        f"{plural(plan.images, 'image')} of {settings.channels} x {settings.image_size} x {settings.image_size}",
        f"{plural(settings.epochs, 'epoch')} x {plural(plan.steps_per_epoch, 'step')} of {settings.batch_size}",
        setup.machine,
    ]
    begin = f"resuming at step {step}" if step else "pretraining"
    say("\n".join([f"{begin}: " + "; ".join(parts), *settings.chosen]))


@contextlib.contextmanager
def _out_of_memory_explained(setup: Setup) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory on {device_name(setup.world.device)} with --batch-size {setup.settings.batch_size}; try "
            "--micro-batch-size with a part of it (nearly the same training), --precision bf16, or a smaller "
            "batch, projector, backbone or image size"
        ) from error


def _parameters(model: BarlowTwins) -> int:
    return sum(p.numel() for p in model.parameters())
