"""The demo: draw shapes, pretrain on them without labels, and measure what was learned.

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
NEIGHBORS = 20
BAR = 40  # characters for 100 %


@dataclass(frozen=True)
class DemoResult:
    """Result of the demo; accuracies in percent on held-out shapes, k = 20."""

    out: str
    """The RUN folder."""
    pixels: float
    untrained: float
    trained: float
    chance: float
    hub_features: tuple[int, int]
    """Shape of the features of the test images, from the network loaded with `torch.hub.load`."""
    seconds: float
    trained_before: bool
    """Whether the run, or a part of it, existed before; `seconds` does not include it."""
    report: str | None
    """The report of the run; None without the extra `report`."""

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
            took += " (earlier training not included)"
        page = [f"Report of the run: {self.report}"] if self.report else []
        return "\n".join(
            [
                *page,
                f"kNN on held-out shapes, k = {NEIGHBORS}, after {took}:",
                *lines,
                f"The network is in {self.out}. Loaded with torch.hub.load, it returned "
                f"{self.hub_features[0]:,} x {self.hub_features[1]} features. Next:",
                f"  barlowtwins embed YOUR_IMAGES --weights {self.out} --out embeddings",
                "  barlowtwins pretrain YOUR_IMAGES --out runs/mine",
            ]
        )


def demo(config: DemoConfig) -> DemoResult:
    """Pretrain on drawn shapes for about two minutes on two CPU cores, and compare kNN accuracies.

    A stopped demo resumes, like any run.

    Args:
        config: where to write the run; with `fast` it takes seconds and learns little.

    Raises:
        BarlowTwinsError: any error of pretraining, embedding or loading.
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
    say("kNN accuracy of pixels, the untrained and the trained network ...")
    pixels, untrained, trained = (
        evaluate_knn(KNNConfig(data, weights=weights, k=(NEIGHBORS,), seed=config.seed)).accuracy[NEIGHBORS]
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
    """Load the result of a run as a user would: `torch.hub.load(REPO, "embedder", weights=RUN)`."""
    repository = Path(__file__).resolve().parent.parent
    if not (repository / "hubconf.py").exists():  # installed from a wheel: the same function without the hub
        from barlowtwins.hub import embedder

        return embedder(weights=run)
    return torch.hub.load(str(repository), "embedder", weights=run, source="local", trust_repo=True)
