"""What a run is made of: everything that is decided before the first step, each in one place."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from barlowtwins.config import PretrainConfig
from barlowtwins.core.device import device_name, resolve_precision, resolve_workers
from barlowtwins.core.distributed import World
from barlowtwins.core.printing import plural
from barlowtwins.core.progress import say
from barlowtwins.data.describe import describe
from barlowtwins.data.open import Source, open_source
from barlowtwins.train.mixup import require_one_process
from barlowtwins.train.plan import Plan, plan_run
from barlowtwins.train.recipes import Settings, record, resolve
from barlowtwins.train.recipes.probe_images import observe
from barlowtwins.train.trainer import StepSettings
from barlowtwins.views.executors import Executor
from barlowtwins.views.transform import TwinTransform

__all__ = ["Setup", "set_up"]


@dataclass(frozen=True)
class Setup:
    """The parts of a run."""

    config: PretrainConfig
    settings: Settings
    plan: Plan
    world: World
    source: Source
    transform: TwinTransform
    executor: Executor
    """Makes the batches."""

    @property
    def workers(self) -> int:
        """Processes that read images, where there is something to read."""
        return resolve_workers(self.config.workers)

    @functools.cached_property
    def precision(self) -> str:
        return resolve_precision(self.config.precision, self.world.device)

    @property
    def step(self) -> StepSettings:
        """What the training step needs of it all."""
        config, plan = self.config, self.plan
        return StepSettings(
            steps=plan.steps,
            warmup_steps=plan.warmup_steps,
            precision=self.precision,
            micro=config.micro_batch_size and config.micro_batch_size // self.world.size,
            mixup=config.mixup,
            seed=config.seed,
            max_unreadable=config.max_bad * plan.images,
        )

    @property
    def decided(self) -> dict[str, Any]:
        """Every setting with its value, as checkpoints and config.json record it."""
        found = {"precision": self.precision, "workers": self.workers, "augment_backend": self.executor.backend}
        return {**record(self.config, self.settings), **found}

    @functools.cached_property
    def data(self) -> dict[str, Any]:
        """What is trained on, to be recognized at a resume."""
        return {"images": len(self.source), "fingerprint": self.source.fingerprint()}

    @property
    def machine(self) -> str:
        """Device, precision, processes and workers in words."""
        processes = plural(self.world.size, "process", "processes")
        reading = f"{plural(self.executor.workers(self.workers), 'worker')} each; {self.executor}"
        return f"{device_name(self.world.device)}, {self.precision}, {processes}, {reading}"


def set_up(config: PretrainConfig, world: World) -> Setup:
    """Open the data and decide every setting.

    Raises:
        ConfigError: settings that do not fit the data or the machine.
        DataError: no such data.
    """
    source = open_source(config.data, split="train", data_root=config.data_root)
    if world.writes:
        say(describe(source))
    settings = resolve(config, **observe(source)._asdict(), images=len(source))
    require_one_process(config.mixup, world.size)
    plan = plan_run(settings, len(source), world_size=world.size, micro=config.micro_batch_size)
    transform = TwinTransform(
        settings.augmentation, size=settings.image_size, channels=settings.channels, seed=config.seed
    )
    executor = Executor(source, transform, world.device, config.augment_backend)
    return Setup(config, settings, plan, world, source, transform, executor)
