"""What goes along with a run on the process that writes: the first words on the terminal, and a journal with whoever
looks at the network meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from barlowtwins.augment import TwinTransform
from barlowtwins.config import PretrainConfig
from barlowtwins.data import Source
from barlowtwins.journal import Journal
from barlowtwins.model import BarlowTwins
from barlowtwins.monitor import OnlineKNN, held_out
from barlowtwins.progress import say
from barlowtwins.recipes import Settings
from barlowtwins.run import RunFolder
from barlowtwins.tracking import Tracker, open_tracker
from barlowtwins.watch import Watch, unseen

if TYPE_CHECKING:
    from barlowtwins.plan import Plan

__all__ = ["open_journal", "say_how"]


def say_how(settings: Settings, plan: Plan, model: BarlowTwins, machine: str, step: int) -> None:
    """Say what is trained, on what and how long, and each setting that was chosen by the data.

    Args:
        settings, plan, model: of the run.
        machine: device, precision, processes and workers in words.
        step: 0 for a new run, else the one that it goes on from.
    """
    weights = sum(p.numel() for p in model.parameters()) / 1e6
    parts = [
        f"recipe {settings.recipe}",
        f"{settings.backbone} ({settings.stem} stem) + {settings.projector}, {weights:.1f} M weights",
        f"{plan.images:,} images of {settings.channels} x {settings.image_size} x {settings.image_size}",
        f"{settings.epochs} epochs x {plan.steps_per_epoch} steps of {settings.batch_size}",
        machine,
    ]
    begin = f"resuming at step {step}" if step else "pretraining"
    say("\n".join([f"{begin}: " + "; ".join(parts), *settings.chosen]))


def open_journal(
    config: PretrainConfig,
    settings: Settings,
    plan: Plan,
    source: Source,
    transform: TwinTransform,
    run: RunFolder,
    *,
    start: int,
    device: torch.device,
    workers: int,
    trackers: Sequence[Tracker],
) -> Journal:
    """The journal of a run, with a look at the network each few epochs, and a kNN where there are labels.

    Args:
        config, settings, plan: of the run.
        source: the training images; `config.val` may name others to be looked at.
        transform: makes the views that the report shows.
        run: where the journal lies.
        start: step from which this process goes on.
        device, workers: as the run has them.
        trackers: get each line, as does the one that `config.track` names.

    Raises:
        DataError: `config.val` has no labels, or other classes than the training data.
        MissingExtraError: `config.track` names what is not installed.
    """
    preprocessing = transform.recipe.preprocessing()
    labelled = held_out(config, source)
    knn = labelled and OnlineKNN(*labelled, preprocessing, device=str(device), workers=workers)
    watch = None
    if config.report_every and settings.channels in (1, 3):  # of other channels the report has no pictures to show
        watch = Watch(
            source, unseen(config), transform, preprocessing, run.snapshots, device=str(device), workers=workers
        )
    opened = [] if config.track == "none" else [open_tracker(config.track, run.path, start=start)]
    return Journal(
        run,
        start=start,
        steps=plan.steps,
        steps_per_epoch=plan.steps_per_epoch,
        batch_size=settings.batch_size,
        log_every=config.log_every,
        knn=knn,
        knn_every=config.knn_every,
        probe_every=config.probe_every,
        lambd=settings.lambd,
        watch=watch,
        report_every=config.report_every,
        trackers=[*trackers, *opened],
    )
