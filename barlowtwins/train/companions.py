"""What goes along with a run on the process that writes: the first words on the terminal, and a journal with whoever
looks at the network meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from barlowtwins.config import PretrainConfig
from barlowtwins.core.printing import plural
from barlowtwins.core.progress import say
from barlowtwins.data.open import Source
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.runs.run_folder import RunFolder
from barlowtwins.train.inspection import Watch, unseen
from barlowtwins.train.logger import Journal
from barlowtwins.train.online_evaluation import OnlineKNN, held_out
from barlowtwins.train.recipes import Settings
from barlowtwins.train.trackers import Tracker, open_tracker
from barlowtwins.views.transform import TwinTransform

if TYPE_CHECKING:
    from barlowtwins.train.plan import Plan

__all__ = ["Watched", "open_journal", "open_watched", "say_how"]


class Watched(NamedTuple):
    """Images that a run is looked at with, besides those that it trains on."""

    labelled: tuple[Source, Source] | None
    """Bank and queries of the kNN, where there are labels."""
    unseen: Source | None
    """What the report shows."""


def open_watched(config: PretrainConfig, source: Source) -> Watched:
    """Open what `config.val` names, or what stands for it, before a run writes anything.

    Raises:
        DataError: there is no such data, or it has no labels, or other classes than the training data.
    """
    return Watched(held_out(config, source), unseen(config) if config.report_every else None)


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
        f"{plural(plan.images, 'image')} of {settings.channels} x {settings.image_size} x {settings.image_size}",
        f"{plural(settings.epochs, 'epoch')} x {plural(plan.steps_per_epoch, 'step')} of {settings.batch_size}",
        machine,
    ]
    begin = f"resuming at step {step}" if step else "pretraining"
    say("\n".join([f"{begin}: " + "; ".join(parts), *settings.chosen]))


def open_journal(
    config: PretrainConfig,
    settings: Settings,
    plan: Plan,
    source: Source,
    watched: Watched,
    transform: TwinTransform,
    run: RunFolder,
    *,
    start: int,
    device: torch.device,
    workers: int,
    trackers: Sequence[Tracker],
    write_report: Callable[[Path], object] | None,
) -> Journal:
    """The journal of a run, with a look at the network each few epochs, and a kNN where there are labels.

    Args:
        config, settings, plan: of the run.
        source: the training images.
        watched: those to look at.
        transform: makes the views that the report shows.
        run: where the journal lies.
        start: step from which this process goes on.
        device, workers: as the run has them.
        trackers: get each line, as does the one that `config.track` names.
        write_report: writes the page of a RUN folder, if there is to be one.

    Raises:
        MissingExtraError: `config.track` names what is not installed.
    """
    preprocessing = transform.recipe.preprocessing()
    knn = watched.labelled and OnlineKNN(*watched.labelled, preprocessing, device=str(device), workers=workers)
    watch = None
    if config.report_every and settings.channels in (1, 3):  # of other channels the report has no pictures to show
        watch = Watch(
            source, watched.unseen, transform, preprocessing, run.snapshots, device=str(device), workers=workers
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
        write_report=write_report,
    )
