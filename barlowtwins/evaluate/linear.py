"""The linear probe: how much of the classes is a linear function of frozen features?

Two forms of one question. The fast one extracts features once and trains a linear classifier on them to convergence;
the published one runs SGD on randomly cropped images through the frozen network, as the paper does.
"""

# N images, D features, K classes

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from barlowtwins.config import LinearConfig
from barlowtwins.device import default_workers
from barlowtwins.distributed import World, open_world
from barlowtwins.embedder import Embedder, Rows
from barlowtwins.errors import DataError
from barlowtwins.evaluate.draws import held_out
from barlowtwins.evaluate.features import extract_features
from barlowtwins.evaluate.job import open_job, write_results
from barlowtwins.evaluate.labelled import Labelled, open_pair
from barlowtwins.evaluate.logistic import L2_GRID, Fit, Trial, fit_logistic, sweep
from barlowtwins.evaluate.protocols import PUBLISHED_LINEAR
from barlowtwins.evaluate.results import EvaluationResult
from barlowtwins.evaluate.scores import Tally
from barlowtwins.evaluate.trained import evaluate_trained
from barlowtwins.head import Belonging, Head, save_head
from barlowtwins.model import feature_width
from barlowtwins.progress import Progress
from barlowtwins.weights import Weights, load_weights

__all__ = ["LinearFit", "evaluate_linear", "fit_head", "fit_linear"]

ASIDE = (0.2, 0.5)  # parts of each class by which penalties are judged: the second where the first is no whole image
UNTRIED_L2 = 0.01  # where every class has one image, and nothing can be set aside
MEMORY = 16 << 30  # bytes that the fast form may take to be the automatic choice
BATCH = 64  # images a forward pass of the fast form


class LinearFit(NamedTuple):
    """A linear classifier and how its penalty was chosen."""

    fit: Fit
    trials: list[Trial]
    """Penalties that were tried; empty where there was nothing to choose."""


def fit_linear(
    features: Rows,
    labels: npt.NDArray[np.int64],
    *,
    num_classes: int,
    penalties: Sequence[float] = L2_GRID,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> LinearFit:
    """Choose the penalty on a fifth of each class's rows, then train on all.

    Args:
        features: (N, D); rows that are not finite, of unreadable images, are left out.
        labels: (N,) from 0 to K - 1.
        num_classes: K.
        penalties: to choose from, by top-1 on the rows set aside and then by loss; a single one is taken as it is.
        seed: of the rows that are set aside.
        device: where to compute, in float64.

    Raises:
        DataError: fewer than two classes have a readable image.
    """
    readable = np.isfinite(features).all(axis=1)
    features, labels = features[readable], labels[readable]
    if len(np.unique(labels)) < 2:
        raise DataError("a classifier needs readable images of two classes or more")
    x, y = torch.from_numpy(features).to(device), torch.from_numpy(labels).to(device)
    trials = []
    if len(penalties) > 1:
        aside = next((rows for part in ASIDE if (rows := held_out(labels, part, seed=seed)).any()), None)
        if aside is not None:
            places = torch.from_numpy(aside).to(device)
            with Progress(len(penalties), desc="sweep", unit="penalties") as bar:
                for trial in sweep(x, y, places, num_classes=num_classes, penalties=penalties):
                    trials.append(trial)
                    bar.update(1, l2=trial.l2, top1=trial.top1)
    untried = penalties[0] if len(penalties) == 1 else UNTRIED_L2
    chosen = max(trials, key=lambda trial: (trial.top1, -trial.loss)).l2 if trials else untried
    return LinearFit(fit_logistic(x, y, num_classes=num_classes, l2=chosen), trials)


def fit_head(
    features: Rows,
    labels: npt.NDArray[np.int64] | Sequence[int],
    classes: Sequence[str],
    embedder: Embedder,
    *,
    l2: float | None = None,
    seed: int = 0,
) -> Head:
    """Train a classifier on features, to be saved or used at once.

        head = fit_head(embedder.encode(train), train.labels, train.classes, embedder)

    Args:
        features: (N, D) float32, as `embedder.encode` gives them; rows of NaN, of unreadable images, are left out.
        labels: (N,) numbers into `classes`.
        classes: K names.
        embedder: what gave the features.
        l2: penalty on standardised features; unless told, the best of a sweep on a fifth of the rows.
        seed: of the rows that are set aside.

    Raises:
        DataError: labels that do not fit, or fewer than two classes.
    """
    numbers = np.asarray(labels, np.int64)
    if numbers.shape != (len(features),) or not ((numbers >= 0) & (numbers < len(classes))).all():
        raise DataError(f"{len(features)} rows of features need as many labels from 0 to {len(classes) - 1}")
    found = fit_linear(
        features,
        numbers,
        num_classes=len(classes),
        penalties=L2_GRID if l2 is None else (l2,),
        seed=seed,
        device=_for_float64(embedder.device),
    )
    return _head(found.fit, classes, Belonging.of_embedder(embedder), embedder)


def evaluate_linear(config: LinearConfig) -> EvaluationResult:
    """Train a linear classifier on a frozen backbone, and judge it on images that it has not seen.

    Raises:
        DataError: labels are missing or do not fit.
        ConfigError: no images to judge by, or a device that is not there.
        WeightsError: the weights cannot be had.
        OutputError: the folder belongs to another evaluation.
        StoppedEarly: a stop signal; the same call goes on.
    """
    with open_world(config.device) as world:
        train, val = open_pair(config.train, config.val, config.data_root)
        weights = load_weights(config.weights, progress=world.writes)
        if config.protocol == "published" or (config.protocol == "auto" and not _fits(train, weights)):
            protocol = PUBLISHED_LINEAR.with_flags(config)
            return evaluate_trained("linear", config, protocol, train, val, weights, world=world)
        return _fast(config, train, val, weights, world)


def _fast(config: LinearConfig, train: Labelled, val: Labelled, weights: Weights, world: World) -> EvaluationResult:
    """Features once, then the classifier on the process that writes; all processes get its result."""
    started = time.monotonic()
    embedder = Embedder(
        weights.build(),
        weights.preprocessing,
        device=world.device,
        precision=config.precision,
        name=weights.name,
        sha256=weights.sha256,
        weights=config.weights,
    )
    penalties = config.l2 or L2_GRID
    job = {
        "evaluation": "linear",
        "protocol": "fast",
        "penalties": penalties,
        "weights": weights.sha256,
        "train": train.source.fingerprint(),
        "val": val.source.fingerprint(),
        "precision": embedder.precision,
        "seed": config.seed,
    }
    result = None
    with open_job(config.out, job, overwrite=config.overwrite, world=world) as folder:
        learned, judged = (
            extract_features(
                labelled.source,
                embedder,
                folder and folder / "features" / name,
                world=world,
                batch_size=config.batch_size or BATCH,
                workers=default_workers() if config.workers is None else config.workers,
            )
            for name, labelled in (("train", train), ("val", val))
        )
        if learned is not None and judged is not None:
            device = _for_float64(world.device)
            found = fit_linear(
                learned,
                train.labels,
                num_classes=len(train.classes),
                penalties=penalties,
                seed=config.seed,
                device=device,
            )
            head = _head(found.fit, train.classes, Belonging.of(weights, config.weights), embedder)
            tally = Tally(len(train.classes))
            tally.add(head.logits(judged), torch.from_numpy(val.labels))
            head_file = config.save_head or (str(folder / "head.safetensors") if folder else None)
            result = EvaluationResult(
                evaluation="linear",
                protocol="fast",
                scores=tally.scores(train.classes),
                train_images=int(np.isfinite(learned).all(axis=1).sum()),
                hyperparameters={"l2": found.fit.l2},
                seconds=time.monotonic() - started,
                out=config.out,
                head=head_file,
                details={
                    "sweep": [trial._asdict() for trial in found.trials],
                    "loss": found.fit.loss,
                    "steps": found.fit.steps,
                    "converged": found.fit.converged,
                },
            )
            if head_file:
                save_head(head_file, head)
            if folder:
                write_results(folder, job, result)
                shutil.rmtree(folder / "features")
        result = world.same(result)
    assert result is not None  # the process that writes has one
    return result


def _head(fit: Fit, classes: Sequence[str], belonging: Belonging, embedder: Embedder) -> Head:
    return Head(fit.weight.float().cpu(), fit.bias.float().cpu(), tuple(classes), belonging, embedder.preprocessing)


def _for_float64(device: torch.device) -> torch.device:
    """Apple's GPUs have no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def _fits(train: Labelled, weights: Weights) -> bool:
    """Whether the features, and what the fit makes of them, fit into memory."""
    width = feature_width(weights.build())
    return len(train.source) * (2 * width + 3 * len(train.classes)) * 8 <= MEMORY
