"""How good is the representation while it is being learned: kNN on held-out labels, every few epochs."""

from __future__ import annotations

import numpy as np
from torch import nn

from barlowtwins.batches import Readable
from barlowtwins.config import PretrainConfig
from barlowtwins.data import Source, has_split, open_source, subset
from barlowtwins.embedder import Embedder, extract
from barlowtwins.errors import DataError
from barlowtwins.evaluate.knn import knn_accuracy
from barlowtwins.preprocess import Preprocessing

__all__ = ["OnlineKNN", "held_out"]

BANK, QUERIES = 10_000, 2_000  # images at most: an evaluation should take seconds, not minutes
NEIGHBOURS = 20


def held_out(config: PretrainConfig, source: Source) -> tuple[Source, Source] | None:
    """The labelled images that are the bank and those that are classified by it, or None where there are no labels.

    `--val` says what to classify; a named data set has a test split; of other labelled sources every sixth image is
    set aside: training may see it, but its label counts for nothing there.
    """
    if source.labels is None or config.val == "none" or config.knn_every == 0:
        return None
    if config.val is not None or has_split(config.data, "test"):
        queries = open_source(config.val or config.data, split="test", data_root=config.data_root)
        if queries.labels is None:
            raise DataError(f"{config.val or config.data} has no labels, which --val needs; leave it out, or use none")
        if queries.classes and source.classes and queries.classes != source.classes:
            raise DataError(f"--val has classes {_some(queries.classes)}, training has {_some(source.classes)}")
        bank = source
    else:
        every = np.arange(len(source))
        bank, queries = subset(source, every[every % 6 != 0]), subset(source, every[every % 6 == 0])
    return _thin(bank, BANK), _thin(queries, QUERIES)


class OnlineKNN:
    """Weighted kNN (k = 20, T = 0.07) of held-out images, on features of the network as it stands."""

    def __init__(
        self, bank: Source, queries: Source, preprocessing: Preprocessing, *, device: str, workers: int
    ) -> None:
        self.bank, self.queries, self.preprocessing = bank, queries, preprocessing
        self.device, self.workers = device, workers

    def accuracy(self, backbone: nn.Module) -> float:
        """Percent of the held-out images whose class their neighbours name; the network is left as it was."""
        embedder = Embedder(backbone, self.preprocessing, device=self.device)
        bank, queries = (self._features(embedder, source) for source in (self.bank, self.queries))
        assert self.bank.labels is not None and self.queries.labels is not None
        k = min(NEIGHBOURS, len(self.bank))
        accuracy = knn_accuracy(bank, self.bank.labels, queries, self.queries.labels, k=k, device=self.device)
        return accuracy[k].top1

    def _features(self, embedder: Embedder, source: Readable) -> np.ndarray:
        return extract(source, embedder, batch_size=256, workers=self.workers)[0]


def _thin(source: Source, most: int) -> Source:
    """At most `most` images, evenly spread, so that every class keeps its share of a sorted listing."""
    if len(source) <= most:
        return source
    return subset(source, np.linspace(0, len(source) - 1, most).round().astype(np.int64))


def _some(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:5]) + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")
