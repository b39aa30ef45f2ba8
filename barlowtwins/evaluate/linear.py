"""The linear probe: how well a linear classifier separates the classes on frozen features.

Two forms of one question. The fast one extracts features once and trains a linear classifier on them to convergence;
the published one runs SGD on randomly cropped images through the frozen network, as the paper does.
"""

# N images, D features, K classes

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from barlowtwins.config import LinearConfig
from barlowtwins.core.device import resolve_workers
from barlowtwins.core.distributed import World, open_world
from barlowtwins.core.errors import ConfigError, DataError, WeightsError
from barlowtwins.core.progress import Progress, say
from barlowtwins.data.batches import ranges
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.embedding.embedder import Embedder, FeatureArray
from barlowtwins.embedding.embeddings import is_embeddings, open_embeddings
from barlowtwins.evaluate.draws import set_aside
from barlowtwins.evaluate.feature_pair import open_embedded_pair
from barlowtwins.evaluate.features import extract_features
from barlowtwins.evaluate.labeled import LabeledImages, open_pair, say_pair
from barlowtwins.evaluate.protocols import PUBLISHED_LINEAR
from barlowtwins.evaluate.results import EvaluationResult
from barlowtwins.evaluate.supervised_job import evaluate_trained
from barlowtwins.metrics.logistic import L2_GRID, Fit, Trial, fit_logistic, sweep
from barlowtwins.metrics.scores import Tally
from barlowtwins.models.resnet import feature_width
from barlowtwins.runs.job_folder import check_head_file, open_job, write_results
from barlowtwins.zoo.heads import Belonging, Head, save_head
from barlowtwins.zoo.weights import Weights, load_weights

__all__ = ["LinearFit", "evaluate_linear", "fit_head", "fit_linear"]

ASIDE_PARTS = (0.2, 0.5)  # of each class, to judge penalties by: the second where the first is not a whole image
UNTRIED_L2 = 0.01  # where every class has one image, and nothing can be set aside
MEMORY = 16 << 30  # bytes that the fast form may take where the free memory is unknown
FAST_BATCH = 64  # images per forward pass of the fast form
JUDGED_AT_ONCE = 1024  # rows of logits: of 6,000 classes 25 MB
PUBLISHED_FLAGS = ("epochs", "lr_head", "weight_decay")


class LinearFit(NamedTuple):
    """A linear classifier and how its penalty was chosen."""

    fit: Fit
    trials: list[Trial]
    """Penalties that were tried; empty where there was nothing to choose."""


def fit_linear(
    features: FeatureArray,
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
        aside = next((rows for part in ASIDE_PARTS if (rows := set_aside(labels, part, seed=seed)).any()), None)
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
    features: FeatureArray,
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
        l2: penalty on standardized features; by default the best of a sweep on a fifth of the rows.
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
    return _head(
        found.fit,
        classes,
        Belonging.of_backbone(embedder.backbone, weights=embedder.weights, file_sha256=embedder.sha256),
        embedder.preprocessing,
    )


def evaluate_linear(config: LinearConfig) -> EvaluationResult:
    """Train a linear classifier on a frozen backbone, and evaluate it on held-out images.

    Raises:
        DataError: labels are missing or do not fit.
        ConfigError: no validation images, or a device that is not there.
        WeightsError: the weights cannot be found or loaded.
        OutputError: the folder belongs to another evaluation, or the classifier cannot be saved.
        StoppedEarly: a stop signal; the same call resumes.
    """
    with open_world(config.device) as world:
        if world.writes:
            check_head_file(config.save_head, overwrite=config.overwrite)
        if is_embeddings(config.train):
            _refuse(config, PUBLISHED_FLAGS, "the fast form")
            return _from_embeddings(config, world)
        train, val = open_pair(config.train, config.val, config.data_root)
        say_pair(train, val, world)
        weights = load_weights(config.weights, progress=world.writes)
        if config.protocol == "published" or (config.protocol == "auto" and not _fits(train, weights)):
            _refuse(config, ("l2",), "the published form")
            protocol = PUBLISHED_LINEAR.with_flags(config)
            return evaluate_trained("linear", config, protocol, train, val, weights, world=world)
        _refuse(config, PUBLISHED_FLAGS, "the fast form")
        return _from_images(config, train, val, weights, world)


def _refuse(config: LinearConfig, names: Sequence[str], form: str) -> None:
    """Refuse flags that would be ignored."""
    for name in names:
        if getattr(config, name):
            raise ConfigError(
                f"{form} does not use --{name.replace('_', '-')}; remove it, or choose another --protocol"
            )


class _Probe(NamedTuple):
    """Inputs of the fast form, on the process that writes."""

    learned: FeatureArray
    """(N, D)"""
    labels: npt.NDArray[np.int64]
    judged: FeatureArray
    truth: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    weights: Weights
    source: str
    """Of the weights."""


def _from_images(
    config: LinearConfig, train: LabeledImages, val: LabeledImages, weights: Weights, world: World
) -> EvaluationResult:
    """Share the embedding among the processes; one of them trains the classifier, and all get its result."""
    started = time.monotonic()
    embedder = Embedder(weights.build(), weights.preprocessing, device=world.device, precision=config.precision)
    job = {
        **_job(config, weights.sha256),
        "train": train.source.fingerprint(),
        "val": val.source.fingerprint(),
        "precision": embedder.precision,
    }
    result = None
    with open_job(config.out, job, overwrite=config.overwrite, world=world) as folder:
        learned, judged = (
            extract_features(
                labeled.source,
                embedder,
                folder and folder / "features" / name,
                world=world,
                batch_size=config.batch_size or FAST_BATCH,
                workers=resolve_workers(config.workers),
            )
            for name, labeled in (("train", train), ("val", val))
        )
        if learned is not None and judged is not None:
            probe = _Probe(learned, train.labels, judged, val.labels, train.classes, weights, config.weights)
            result = _judge(probe, config, folder, job, world, started)
        result = world.same(result)
    assert result is not None  # the process that writes has one
    return result


def _from_embeddings(config: LinearConfig, world: World) -> EvaluationResult:
    """Two EMB folders: what made them is on record in the first."""
    started = time.monotonic()
    if config.protocol == "published":
        raise ConfigError(f"{config.train} holds features; --protocol published needs the images")
    train, val = open_embedded_pair(config.train, config.val)
    meta = open_embeddings(config.train).meta
    if meta["normalized"]:
        raise ConfigError(f"the features in {config.train} are scaled to unit length; embed without --normalize")
    weights = load_weights(meta["weights"], progress=world.writes)
    if weights.sha256 != meta["weights_sha256"]:
        raise WeightsError(f"{config.train} was made by other weights than {meta['weights']} now is; embed again")
    job = {
        **_job(config, weights.sha256),
        "train": meta["data_fingerprint"],
        "val": open_embeddings(config.val or "").meta["data_fingerprint"],
        "precision": meta["precision"],
    }
    result = None
    with open_job(config.out, job, overwrite=config.overwrite, world=world) as folder:
        if world.writes:
            rows = [np.array(part.features) for part in (train, val)]
            probe = _Probe(rows[0], train.labels, rows[1], val.labels, train.classes, weights, meta["weights"])
            result = _judge(probe, config, folder, job, world, started)
        result = world.same(result)
    assert result is not None  # the process that writes has one
    return result


def _job(config: LinearConfig, weights_sha256: str) -> dict[str, Any]:
    """What decides the result, but for the images."""
    return {
        "evaluation": "linear",
        "protocol": "fast",
        "penalties": config.l2 or L2_GRID,
        "weights": weights_sha256,
        "seed": config.seed,
    }


def _judge(
    probe: _Probe, config: LinearConfig, folder: Path | None, job: dict[str, Any], world: World, started: float
) -> EvaluationResult:
    """Train the classifier, evaluate it, and save both it and the result."""
    found = fit_linear(
        probe.learned,
        probe.labels,
        num_classes=len(probe.classes),
        penalties=config.l2 or L2_GRID,
        seed=config.seed,
        device=_for_float64(world.device),
    )
    head = _head(found.fit, probe.classes, Belonging.of(probe.weights, probe.source), probe.weights.preprocessing)
    tally = Tally(len(probe.classes))
    for rows in ranges(0, len(probe.judged), JUDGED_AT_ONCE):
        part = slice(rows.start, rows.stop)
        tally.add(head.logits(probe.judged[part]), torch.from_numpy(probe.truth[part]))
    head_file = config.save_head or (str(folder / "head.safetensors") if folder else None)
    result = EvaluationResult(
        evaluation="linear",
        protocol="fast",
        scores=tally.scores(probe.classes),
        train_images=int(np.isfinite(probe.learned).all(axis=1).sum()),
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
    if folder:
        write_results(folder, job, result)  # first: a classifier that cannot be saved costs no figure
    if head_file:
        save_head(head_file, head)
    if folder:
        shutil.rmtree(folder / "features", ignore_errors=True)
    return result


def _head(fit: Fit, classes: Sequence[str], belonging: Belonging, preprocessing: Preprocessing) -> Head:
    return Head(fit.weight.float().cpu(), fit.bias.float().cpu(), tuple(classes), belonging, preprocessing)


def _for_float64(device: torch.device) -> torch.device:
    """Apple's GPUs have no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def _fits(train: LabeledImages, weights: Weights) -> bool:
    """Whether the features, and what the fit makes of them, fit into memory."""
    needed = len(train.source) * (2 * feature_width(weights.build()) + 3 * len(train.classes)) * 8  # float64
    allowed = _allowed_memory()
    if needed > allowed:
        say(
            f"the fast form would take {needed >> 30} GiB of memory, more than half of what is free; "
            "training as published, on crops of the images"
        )
    return needed <= allowed


def _allowed_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that the fast form may take to be the automatic choice: half of what the machine has free."""
    try:
        free = next(line for line in meminfo.read_text("ascii").splitlines() if line.startswith("MemAvailable:"))
        return int(free.split()[1]) * 1024 // 2  # the file counts in KiB
    except (OSError, ValueError, IndexError, StopIteration):  # no Linux
        return MEMORY
