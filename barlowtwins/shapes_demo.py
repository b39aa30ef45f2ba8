"""The main job on the embedded default: draw shapes, pretrain on them without labels, and see what was learned.

shapes -> pretrain -> kNN of pixels, of the untrained and of the trained network -> torch.hub.load -> features
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from barlowtwins.config import DemoConfig, KNNConfig, PretrainConfig
from barlowtwins.core.progress import say
from barlowtwins.data.open import open_source
from barlowtwins.evaluate import evaluate_knn
from barlowtwins.pretraining import pretrain
from barlowtwins.runs.run_folder import RunFolder

__all__ = ["DemoResult", "demo"]

FAST_TRAIN, FAST_EPOCHS = 1_000, 2
NEIGHBOURS = 20
BAR = 40  # characters that 100 % takes


@dataclass(frozen=True)
class DemoResult:
    """What the demo found; accuracies are percent of held-out shapes, k = 20."""

    out: str
    """The RUN folder."""
    pixels: float
    untrained: float
    trained: float
    chance: float
    hub_features: tuple[int, int]
    """Shape of what the network, loaded back through `torch.hub.load`, gave for the test images."""
    seconds: float
    trained_before: bool
    """Whether the run, or a part of it, was there already: the seconds are without it."""
    report: str | None
    """The page of the run; None without the extra `report`."""

    def summary(self) -> str:
        rows = [
            ("chance", self.chance),
            ("pixels", self.pixels),
            ("untrained network", self.untrained),
            ("trained, no labels", self.trained),
        ]
        lines = [f"  {name:<19} {value:5.1f} %  {'█' * round(value / 100 * BAR)}" for name, value in rows]
        took = f"{self.seconds:.0f} seconds"
        if self.trained_before:
            took += ", without what was trained before"
        page = [f"The run as a page: {self.report}"] if self.report else []
        return "\n".join(
            [
                *page,
                f"kNN on held-out shapes, k = {NEIGHBOURS}, after {took}:",
                *lines,
                f"The network is in {self.out}; torch.hub.load gave {self.hub_features[0]:,} x {self.hub_features[1]} "
                "features with it. Next:",
                f"  barlowtwins embed YOUR_IMAGES --weights {self.out} --out embeddings",
                "  barlowtwins pretrain YOUR_IMAGES --out runs/mine",
            ]
        )


def demo(config: DemoConfig) -> DemoResult:
    """Pretrain on drawn shapes for about two minutes on two CPU cores, and compare kNN accuracies.

    A demo that was stopped goes on from where it was, as any run does.

    Args:
        config: where the run goes; `fast` makes it a run of seconds that shows the way and learns little.

    Raises:
        BarlowTwinsError: whatever pretraining, embedding or loading may raise.
    """
    begin = time.perf_counter()
    data = f"shapes:{FAST_TRAIN}" if config.fast else "shapes"
    out = config.out or ("runs/demo-fast" if config.fast else "runs/demo")
    run = pretrain(
        PretrainConfig(
            data,
            out,
            recipe="shapes",
            epochs=FAST_EPOCHS if config.fast else None,
            seed=config.seed,
            val="none",  # measured once, below
        )
    )
    say("kNN of pixels, of the untrained and of the trained network ...")
    pixels, untrained, trained = (
        evaluate_knn(KNNConfig(data, weights=weights, k=(NEIGHBOURS,), seed=config.seed)).accuracy[NEIGHBOURS]
        for weights in ("pixels", f"random:{out}", out)
    )
    test = open_source(data, split="test")
    embedder = _through_the_hub(out)
    features = embedder.encode(test, batch_size=256)
    page = RunFolder(run.out).report
    return DemoResult(
        out=run.out,
        pixels=pixels,
        untrained=untrained,
        trained=trained,
        chance=100 / len(test.classes),
        hub_features=(features.shape[0], features.shape[1]),
        seconds=time.perf_counter() - begin,
        trained_before=run.begun_at > 0,
        report=str(page.absolute()) if page.exists() else None,
    )


def _through_the_hub(run: str):  # type: ignore[no-untyped-def]
    """Load a run's own result as anybody would: `torch.hub.load(REPO, "embedder", weights=RUN)`."""
    repository = Path(__file__).resolve().parent.parent
    if not (repository / "hubconf.py").exists():  # installed from a wheel: the same function, without the hub around it
        from barlowtwins.hub import embedder

        return embedder(weights=run)
    return torch.hub.load(str(repository), "embedder", weights=run, source="local", trust_repo=True)
