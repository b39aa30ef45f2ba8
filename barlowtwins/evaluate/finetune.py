"""Fine-tuning: the backbone is trained further, with a linear classifier on top, on all labels."""

from __future__ import annotations

from barlowtwins.config import FinetuneConfig
from barlowtwins.core.distributed import open_world
from barlowtwins.evaluate.labeled import open_pair, say_pair
from barlowtwins.evaluate.protocols import fine_tuning
from barlowtwins.evaluate.results import EvaluationResult
from barlowtwins.evaluate.supervised_job import evaluate_trained
from barlowtwins.zoo.weights import load_weights

__all__ = ["evaluate_finetune"]


def evaluate_finetune(config: FinetuneConfig) -> EvaluationResult:
    """Fine-tune a backbone on labeled images, and evaluate it on held-out images.

    Raises:
        DataError: labels are missing or do not fit.
        ConfigError: no validation images, too few to train on, or a device that is not there.
        WeightsError: the weights cannot be found or loaded.
        OutputError: the folder belongs to another evaluation.
        TrainingError: a loss that is not finite, or too many unreadable images.
        StoppedEarly: a stop signal; the same call resumes.
    """
    with open_world(config.device) as world:
        train, val = open_pair(config.train, config.val, config.data_root)
        say_pair(train, val, world)
        weights = load_weights(config.weights, progress=world.writes)
        protocol = fine_tuning(config.protocol, weights.preprocessing.image_size).with_flags(config)
        return evaluate_trained("finetune", config, protocol, train, val, weights, world=world)
