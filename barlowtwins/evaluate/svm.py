"""One linear SVM per class on frozen features of images with several labels, as on VOC07.

Rows are scaled to unit length; the cost of each class is chosen by cross-validation on the training images (Goyal et
al. 2019, section 4; squared hinge loss, a present class weighs twice as much); judged by mean average precision.
"""

# N images, D features, K classes

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from barlowtwins.config import SVMConfig
from barlowtwins.core.device import resolve_workers
from barlowtwins.core.distributed import World, open_world
from barlowtwins.core.errors import DataError, MissingExtraError
from barlowtwins.core.printing import plural
from barlowtwins.core.progress import Progress
from barlowtwins.embedding.embedder import Embedder, FeatureArray, unit_length
from barlowtwins.evaluate.features import extract_features
from barlowtwins.evaluate.multilabel import IGNORED, PRESENT, open_multilabel
from barlowtwins.runs.job_folder import open_job, write_results
from barlowtwins.zoo.weights import load_weights

__all__ = ["ClassSVM", "SVMResult", "average_precision", "evaluate_svm", "fit_svm"]

COSTS = tuple(10.0**exponent for exponent in range(-3, 4))
FOLDS = 3
SVM_STEPS = 2000


class ClassSVM(NamedTuple):
    """The classifier of one class: score = x @ weight + bias, for rows of unit length."""

    weight: npt.NDArray[np.float64]
    """(D,)"""
    bias: float
    cost: float
    """Chosen by cross-validation."""
    cross_validated: float
    """Average precision of that cost in the cross-validation, in percent."""


@dataclass(frozen=True)
class SVMResult:
    """Average precisions on held-out images, in percent."""

    mean_average_precision: float
    average_precision: dict[str, float]
    """Of each class."""
    costs: dict[str, float]
    """Chosen for each class."""
    train_images: int
    val_images: int
    """Readable ones, both."""
    seconds: float
    out: str | None = None

    def summary(self) -> str:
        """Return a summary in words."""
        hardest = sorted(self.average_precision, key=lambda name: self.average_precision[name])[:3]
        named = ", ".join(f"{name} {self.average_precision[name]:.1f}" for name in hardest)
        return (
            f"mean average precision {self.mean_average_precision:.2f} over "
            f"{plural(len(self.costs), 'class', 'classes')}, {plural(self.train_images, 'image')} learned, "
            f"{self.val_images:,} judged ({self.seconds:.1f} s)\n"
            f"hardest classes: {named}"
        )


def evaluate_svm(config: SVMConfig) -> SVMResult:
    """Train an SVM for each class on a frozen backbone, and evaluate them on held-out images.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        ConfigError, DataError: images that do not fit each other, or too few of a class.
        WeightsError: the weights cannot be found or loaded.
        OutputError: the folder belongs to another evaluation.
        StoppedEarly: a stop signal; the same call resumes.
    """
    _sklearn()
    with open_world(config.device) as world:
        return _evaluate(config, world)


def fit_svm(
    features: FeatureArray,
    present: npt.NDArray[np.bool_],
    *,
    costs: Sequence[float] = COSTS,
    folds: int = FOLDS,
    seed: int = 0,
) -> ClassSVM:
    """Train the SVM of one class, with the cost that does best in a cross-validation.

    Args:
        features: (N, D) of unit length.
        present: (N,), whether the class is there.
        costs: to choose from: the C of the hinge loss.
        folds: of the cross-validation, each with its share of the images that have the class.
        seed: of the folds.

    Raises:
        DataError: fewer images than folds have the class, or lack it.
        MissingExtraError: scikit-learn is not installed.
    """
    sklearn = _sklearn()
    scarce = min(int(present.sum()), int((~present).sum()))
    if scarce < folds:
        raise DataError(f"{scarce} images have the class, or lack it, which is less than the {folds} folds; try fewer")
    split = sklearn.StratifiedKFold(folds, shuffle=True, random_state=seed)

    def machine(cost: float) -> Any:
        weights = {True: 2, False: 1}
        return sklearn.LinearSVC(C=cost, class_weight=weights, dual=False, max_iter=SVM_STEPS, random_state=0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sklearn.ConvergenceWarning)  # of hopeless costs, which are not chosen
        tried = {
            cost: sklearn.cross_val_score(
                machine(cost), features, present, cv=split, scoring="average_precision"
            ).mean()
            for cost in sorted(costs)
        }
        cost = max(tried, key=lambda cost: tried[cost])
        best = machine(cost).fit(features, present)
    return ClassSVM(best.coef_[0], float(best.intercept_[0]), cost, 100 * float(tried[cost]))


def average_precision(scores: npt.NDArray[np.floating], targets: npt.NDArray[np.integer]) -> float:
    """Area under the curve of precision over recall, in percent.

    Precision at a recall is the best at that recall or a higher one, as in VOC since 2010; images with equal scores are
    one point of the curve.

    Args:
        scores: (N,), higher for images that should have the class.
        targets: (N,) PRESENT, IGNORED (not counted) or ABSENT.

    Raises:
        DataError: no image has the class.
    """
    counted = targets != IGNORED
    scores, hits = scores[counted], targets[counted] == PRESENT
    if not hits.any():
        raise DataError("no image has the class, so precision is undefined; leave the class out")
    order = np.argsort(-scores, kind="stable")
    last_of_equals = np.append(np.diff(scores[order]) != 0, True)
    found = np.cumsum(hits[order])[last_of_equals]
    precision = found / (np.flatnonzero(last_of_equals) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    recall_steps = np.diff(found / hits.sum(), prepend=0)
    return 100 * float((precision * recall_steps).sum())


def _evaluate(config: SVMConfig, world: World) -> SVMResult:
    started = time.monotonic()
    train, val = open_multilabel(config.train, config.val)
    weights = load_weights(config.weights, progress=world.writes)
    embedder = Embedder(weights.build(), weights.preprocessing, device=world.device, precision=config.precision)
    costs = config.c or COSTS
    job = {
        "evaluation": "svm",
        "costs": costs,
        "folds": config.folds,
        "weights": weights.sha256,
        "train": [train.source.fingerprint(), train.classes],
        "val": val.source.fingerprint(),
        "precision": embedder.precision,
        "seed": config.seed,
    }
    result = None
    with open_job(config.out, job, overwrite=config.overwrite, world=world) as folder:
        learned, judged = (
            extract_features(
                labeled.source,
                embedder,
                folder and folder / "features" / name,
                world=world,
                batch_size=config.batch_size,
                workers=resolve_workers(config.workers),
            )
            for name, labeled in (("train", train), ("val", val))
        )
        if learned is not None and judged is not None:
            learned, targets = _readable(learned, train.targets)
            judged, wanted = _readable(judged, val.targets)
            precisions, chosen = {}, {}
            with Progress(len(train.classes), desc="svm", unit="classes") as bar:
                for k, name in enumerate(train.classes):
                    present = targets[:, k] == PRESENT
                    machine = fit_svm(learned, present, costs=costs, folds=config.folds, seed=config.seed)
                    precisions[name] = average_precision(judged @ machine.weight + machine.bias, wanted[:, k])
                    chosen[name] = machine.cost
                    bar.update(1)
            mean = float(np.mean(list(precisions.values())))
            seconds = time.monotonic() - started
            result = SVMResult(mean, precisions, chosen, len(learned), len(judged), seconds, config.out)
            if folder:
                write_results(folder, job, result)
                shutil.rmtree(folder / "features")
        result = world.same(result)
    assert result is not None  # the process that writes has one
    return result


def _readable(features: FeatureArray, targets: npt.NDArray[np.int8]) -> tuple[FeatureArray, npt.NDArray[np.int8]]:
    """The rows of readable images, of unit length, and their targets."""
    good = np.isfinite(features).all(axis=1)
    return unit_length(features[good]), targets[good]


class _SKLearn(NamedTuple):
    """What is used of scikit-learn, which takes a second to import."""

    LinearSVC: Any
    StratifiedKFold: Any
    cross_val_score: Any
    ConvergenceWarning: Any


def _sklearn() -> _SKLearn:
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.model_selection import StratifiedKFold, cross_val_score
        from sklearn.svm import LinearSVC
    except ModuleNotFoundError:
        raise MissingExtraError("scikit-learn", "eval") from None
    return _SKLearn(LinearSVC, StratifiedKFold, cross_val_score, ConvergenceWarning)
