"""Run an evaluation that trains a network: folder, training, scores, saved classifier."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from barlowtwins.config import FinetuneConfig, LinearConfig
from barlowtwins.core.device import resolve_precision, resolve_workers
from barlowtwins.core.distributed import World
from barlowtwins.core.safetensors_file import write_safetensors
from barlowtwins.evaluate.labeled import LabeledImages
from barlowtwins.evaluate.protocols import Protocol
from barlowtwins.evaluate.results import EvaluationResult
from barlowtwins.evaluate.supervised_loop import LoopOptions, score, train_classifier
from barlowtwins.models.resnet import feature_width
from barlowtwins.runs.job_folder import check_head_file, open_job, write_results
from barlowtwins.runs.run_folder import backbone_metadata
from barlowtwins.zoo.heads import Belonging, Head, fresh_classifier, save_head
from barlowtwins.zoo.weights import Weights, load_weights

__all__ = ["evaluate_trained"]


def evaluate_trained(
    evaluation: str,
    config: LinearConfig | FinetuneConfig,
    protocol: Protocol,
    train: LabeledImages,
    val: LabeledImages,
    weights: Weights,
    *,
    world: World,
    draw: dict[str, Any] | None = None,
) -> EvaluationResult:
    """Train a new classifier, and the backbone unless it is frozen; evaluate and save it.

    Args:
        evaluation: what it is called.
        config: where things are and go.
        protocol: the numbers.
        train, val: labeled images.
        weights: where the backbone starts from.
        world: the processes.
        draw: how the training images were drawn, for the record.

    Raises:
        OutputError: the folder belongs to another evaluation, or the classifier cannot be saved.
        ConfigError, TrainingError, StoppedEarly: as `train_classifier` raises them.
    """
    started = time.monotonic()
    if world.writes:
        check_head_file(config.save_head, overwrite=config.overwrite)
    precision = resolve_precision(config.precision, world.device)
    job = {
        "evaluation": evaluation,
        "protocol": protocol,
        "draw": draw or {},
        "weights": weights.sha256,
        "train": train.source.fingerprint(),
        "val": val.source.fingerprint(),
        "precision": precision,
        "seed": config.seed,
    }
    with open_job(config.out, job, overwrite=config.overwrite, world=world) as folder:
        network = weights.build()
        network.fc = fresh_classifier(feature_width(network), len(train.classes), seed=config.seed)
        options = LoopOptions(
            weights.preprocessing,
            world,
            seed=config.seed,
            workers=resolve_workers(config.workers),
            precision=precision,
            max_bad=config.max_bad,
            folder=folder,
            save_every=config.save_every,
        )
        trained = train_classifier(network, train, protocol, options)
        scores = score(network, val, options)
        used = dataclasses.replace(protocol, epochs=trained.epochs, batch_size=trained.batch_size, least_steps=0)
        head_file = Path(config.save_head) if config.save_head else folder / "head.safetensors" if folder else None
        result = EvaluationResult(
            evaluation=evaluation,
            protocol=protocol.name,
            scores=scores,
            train_images=len(train.source),
            hyperparameters=used.to_dict(),
            seconds=time.monotonic() - started,
            out=config.out,
            head=str(head_file) if head_file else None,
            details={
                "draw": draw or {},
                "steps": trained.steps,
                "train_loss": trained.loss,
                "train_accuracy": trained.accuracy,
                "unreadable_train": trained.unreadable,
            },
        )
        if world.writes:
            if folder:
                write_results(folder, job, result)  # first: the results stay if the classifier cannot be saved
            state = {key: value.detach().cpu() for key, value in network.state_dict().items()}
            if head_file:
                belonging = Belonging.of(weights, config.weights)
                if not protocol.frozen:
                    belonging = _keep_backbone(state, weights, folder, head_file)
                head = Head(state["fc.weight"], state["fc.bias"], train.classes, belonging, weights.preprocessing)
                save_head(head_file, head)
        world.wait()
    return result


def _keep_backbone(state: dict[str, Any], weights: Weights, folder: Path | None, head_file: Path) -> Belonging:
    """Write the fine-tuned backbone, which its head needs: into the folder, or beside the head."""
    path = folder / "backbone.safetensors" if folder else head_file.with_suffix(".backbone.safetensors")
    backbone = {key: value for key, value in state.items() if not key.startswith("fc.")}
    write_safetensors(path, backbone, backbone_metadata(weights.backbone_name, weights.stem, weights.preprocessing))
    return Belonging.of(load_weights(path), path)
