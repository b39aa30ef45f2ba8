"""How good is the representation while it is learned: kNN and a linear probe on held-out labels, every few epochs."""

# M images in the bank, Q queries, D features

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from barlowtwins.config import PretrainConfig
from barlowtwins.core.errors import DataError
from barlowtwins.core.progress import say
from barlowtwins.data.open import Source, has_split, open_source, relabeled, subset
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.embedding.embedder import Embedder, extract
from barlowtwins.metrics.knn import Labeled, knn_accuracy
from barlowtwins.metrics.logistic import COARSE, fit_logistic
from barlowtwins.train.callbacks import Callback, RunState
from barlowtwins.train.setup import Setup

__all__ = ["OnlineEvaluation", "OnlineKNN", "held_out"]

BANK, QUERIES = 10_000, 2_000  # images at most: an evaluation should take seconds, not minutes
NEIGHBOURS = 20
PENALTY = 1e-3  # of the probe, one for all: `evaluate linear` looks for the best
BATCH = 128
ASIDE = 6  # of labeled images without a test split, every sixth is a query


def held_out(config: PretrainConfig, source: Source) -> tuple[Source, Source] | None:
    """The labeled images that are the bank and those that are classified by it, or None where there are no labels.

    Queries are what `--val` names, else the test split of a named data set, else every sixth image of the training
    data: training may see it, but its label counts for nothing there. Where the training data have no labels, `--val`
    gives both, queries being every sixth of it.

    Raises:
        DataError: `--val` has no labels, or a class that the training data lack.
    """
    watched = config.knn_every or config.probe_every
    if config.val == "none" or not watched or (source.labels is None and config.val is None):
        return None
    queries = None
    if config.val is not None or has_split(config.data, "test"):
        queries = open_source(config.val or config.data, split="test", data_root=config.data_root)
        if queries.labels is None:
            raise DataError(f"{config.val or config.data} has no labels, which --val needs; leave it out, or use none")
    bank = source
    if bank.labels is None and queries is not None:
        bank, queries = queries, None
    if queries is None:
        every = np.arange(len(bank))
        bank, queries = subset(bank, every[every % ASIDE != 0]), subset(bank, every[every % ASIDE == 0])
    if unknown := sorted(set(queries.classes) - set(bank.classes)):
        raise DataError(
            f"--val has classes that the training data lack: {_some(unknown)}. Leave --val out, or use none"
        )
    queries = relabeled(queries, bank.classes)
    return _thin(bank, BANK), _thin(queries, QUERIES)


class OnlineEvaluation(Callback):
    """Runs the kNN and the linear probe at their turns, and logs what they find."""

    def __init__(self, judge: OnlineKNN) -> None:
        self.judge = judge

    @classmethod
    def of(cls, setup: Setup) -> OnlineEvaluation | None:
        """The callback of a run; None where there are no labels.

        Raises:
            DataError: see `held_out`.
        """
        labeled = held_out(setup.config, setup.source)
        if labeled is None:
            return None
        preprocessing = setup.transform.recipe.preprocessing()
        return cls(OnlineKNN(*labeled, preprocessing, device=str(setup.world.device), workers=setup.workers))

    def on_epoch(self, run: RunState, /) -> None:
        """Evaluate what is due, and was not evaluated at this step by an earlier process."""

        def due(name: str, every: int) -> bool:
            return bool(every) and run.step > max(0, run.measured(name)) and run.epoch % every == 0

        knn, probe = due("knn", run.config.knn_every), due("probe", run.config.probe_every)
        if knn or probe:
            found = self.judge.evaluate(run.model.backbone, knn=knn, probe=probe, give_up=run.stop_requested)
            if found is not None:
                run.log(found)


class OnlineKNN:
    """Weighted kNN (k = 20, T = 0.07) and a linear probe of held-out images, on features of the network as it stands.

    The probe is multinomial logistic regression on standardized features, penalty 1e-3, trained to convergence.
    """

    def __init__(
        self, bank: Source, queries: Source, preprocessing: Preprocessing, *, device: str, workers: int
    ) -> None:
        self.bank, self.queries, self.preprocessing = bank, queries, preprocessing
        self.device, self.workers = device, workers

    def accuracy(self, backbone: nn.Module, give_up: Callable[[], bool] | None = None) -> float | None:
        """`evaluate`, kNN alone."""
        found = self.evaluate(backbone, give_up=give_up)
        return None if found is None else found["knn"]

    def evaluate(
        self,
        backbone: nn.Module,
        *,
        knn: bool = True,
        probe: bool = False,
        give_up: Callable[[], bool] | None = None,
    ) -> dict[str, float] | None:
        """Percent of the held-out images whose class is found; the network is left as it was.

        Args:
            backbone: (n, C, S, S) -> (n, D).
            knn: by their neighbors in the bank.
            probe: by a linear classifier trained on the bank. Both take the same features.
            give_up: asked after each batch; the answer True ends it.

        Returns:
            "knn" and "probe", as asked for; None if it gave up, or if no image could be read: a run does not fail for
            being watched.
        """

        def ask(done: int, total: int) -> None:
            if give_up is not None and give_up():
                raise _GivenUpError

        embedder = Embedder(backbone, self.preprocessing, device=self.device)
        features, labels = [], []
        for source in (self.bank, self.queries):
            try:
                rows, good = extract(source, embedder, batch_size=BATCH, workers=self.workers, progress=ask)
            except _GivenUpError:
                return None
            assert source.labels is not None
            features.append(rows[good])  # (M, D), then (Q, D)
            labels.append(source.labels[good])
        if not all(map(len, features)):
            say("warning: no kNN, since none of the held-out images, or none of the bank's, gives features")
            return None
        found = {}
        if knn:
            k = min(NEIGHBOURS, len(features[0]))
            bank, queries = map(Labeled, features, labels)
            found["knn"] = knn_accuracy(bank, queries, k=k, device=self.device)[k].top1
        if probe:
            found["probe"] = self._probe(features, labels)
        return found

    def _probe(self, features: list[npt.NDArray[np.float32]], labels: list[npt.NDArray[np.int64]]) -> float:
        x, queries = (torch.from_numpy(part) for part in features)  # (M, D), (Q, D)
        truth, wanted = (torch.from_numpy(part) for part in labels)
        fit = fit_logistic(x, truth, num_classes=len(self.bank.classes), l2=PENALTY, tolerance=COARSE)
        return 100 * (fit.logits(queries).argmax(1) == wanted).double().mean().item()


class _GivenUpError(Exception):
    """Leaves an evaluation through a progress callback."""


def _thin(source: Source, most: int) -> Source:
    """At most `most` images, evenly spread, so that every class keeps its share of a sorted listing."""
    if len(source) <= most:
        return source
    return subset(source, np.linspace(0, len(source) - 1, most).round().astype(np.int64))


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
