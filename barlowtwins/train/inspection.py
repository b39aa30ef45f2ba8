"""Inspects a network during training without side effects: effective rank, correlations, views, neighbors.

The images are a few hundred, evenly spread over the data: a look costs some percent of an epoch at most. It draws no
random number that training draws and leaves every mode and buffer as it was, so a run with looks is a run without them,
to the bit.
"""

# N images looked at, n of them in a batch, D features, P pairs of views, S side in pixels

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from barlowtwins.config import PretrainConfig
from barlowtwins.core.errors import OutputError
from barlowtwins.core.progress import say
from barlowtwins.data.batches import ranges, read_ahead
from barlowtwins.data.images import Unreadable
from barlowtwins.data.open import Source, has_split, open_source
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.embedding.embedder import Embedder
from barlowtwins.loss import cross_correlation
from barlowtwins.metrics.nearest import nearest
from barlowtwins.metrics.representation import (
    alignment,
    effective_rank,
    feature_deviation,
    singular_values,
    uniformity,
)
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.runs.run_folder import RunFolder
from barlowtwins.runs.snapshots import Snapshot, save_snapshot
from barlowtwins.train.callbacks import Callback, RunState
from barlowtwins.train.recipes import Settings
from barlowtwins.train.setup import Setup
from barlowtwins.views.transform import Augmentation, TwinTransform

__all__ = ["Inspection", "Inspector", "is_inspected", "unseen"]

MOST, LEAST = 512, 32  # images looked at; between them one in SHARE
SHARE = 20
BATCH = 64
BLOCK = 256  # features of C that are drawn
PAIRS, QUERIES, NEIGHBOURS = 8, 6, 5
THUMBNAIL = 96  # pixels
NAMED = 200  # unreadable images that are named


def unseen(config: PretrainConfig) -> Source | None:
    """Images that training does not see: what `--val` names, else the test split of a named data set, else None."""
    if config.val in (None, "none") and not has_split(config.data, "test"):
        return None
    named = config.data if config.val in (None, "none") else config.val
    assert named is not None
    return open_source(named, split="test", data_root=config.data_root)


def is_inspected(config: PretrainConfig, settings: Settings) -> bool:
    """Whether a run inspects its network; of other channels than 1 or 3 there are no pictures to show."""
    return bool(config.report_every) and settings.channels in (1, 3)


class Inspection(Callback):
    """Inspects the network at step 0 and every few epochs, and logs what it finds."""

    def __init__(self, inspector: Inspector) -> None:
        self.inspector = inspector

    @classmethod
    def of(cls, setup: Setup) -> Inspection | None:
        """The callback of a run; None for a run without it."""
        if not is_inspected(setup.config, setup.settings):
            return None
        preprocessing, folder = setup.transform.recipe.preprocessing(), RunFolder(setup.config.out)
        return cls(
            Inspector(
                setup.source,
                unseen(setup.config),
                setup.transform,
                preprocessing,
                folder.snapshots,
                device=str(setup.world.device),
                workers=setup.workers,
            )
        )

    def on_epoch(self, run: RunState, /) -> None:
        """Inspect if it is time, and no earlier process has done so at this step."""
        if run.step <= run.measured("effective_rank") or run.epoch % run.config.report_every:
            return
        found = self.inspector.look(
            run.model, step=run.step, epoch=run.epoch, unreadable=set(run.unreadable), give_up=run.stop_requested
        )
        if found is not None:
            run.log(found)


class Inspector:
    """Looks at the network when asked to, and keeps what it saw.

    Args:
        source: the training data.
        queries: held-out images whose neighbors are looked for; a few of the training data's unless there are any.
        transform: makes the views, a function of (seed, epoch, index).
        preprocessing: what the backbone is evaluated with.
        folder: for the snapshots.
        device: where the network is.
        workers: processes that read images.
    """

    def __init__(
        self,
        source: Source,
        queries: Source | None,
        transform: TwinTransform,
        preprocessing: Preprocessing,
        folder: Path,
        *,
        device: str,
        workers: int,
    ) -> None:
        self.source, self.transform, self.preprocessing = source, transform, preprocessing
        self.folder, self.device, self.workers = folder, device, workers
        rows = _spread(len(source), min(MOST, max(LEAST, len(source) // SHARE)))
        if queries is None and len(rows) > 2 * QUERIES:  # set some of our own aside
            aside = _spread(len(rows), QUERIES)
            self.queries, self.query_rows = source, rows[aside]
            rows = np.delete(rows, aside)
        else:
            self.queries = source if queries is None else queries
            self.query_rows = _spread(len(self.queries), QUERIES)
        self.rows = rows

    def look(
        self, model: BarlowTwins, *, step: int, epoch: int, unreadable: set[int], give_up: Callable[[], bool]
    ) -> dict[str, Any] | None:
        """Look once: write a snapshot, and say what is to be logged.

        Args:
            model: the network as it stands.
            step, epoch: where it stands; its views are those of the epoch that ends here.
            unreadable: indices of images that could not be read so far.
            give_up: asked after each batch; once it says True there is nothing.

        Returns:
            effective_rank, rank_limit and feature_deviation of the backbone's features; alignment and uniformity of the
            embeddings of two views; None if it gave up, or if there is next to nothing to see. A snapshot that cannot
            be written is a warning.
        """
        seen = self._see(model, max(0, epoch - 1), give_up)
        if seen is None:
            return None
        snapshot = self._snapshot(seen, model, step, epoch, unreadable)
        try:
            save_snapshot(self.folder, snapshot)
        except OutputError as error:
            say(f"warning: {error}; the report does without this look at the network")
        return {
            "effective_rank": effective_rank(seen.features),
            "rank_limit": min(seen.features.shape),
            "feature_deviation": feature_deviation(seen.features),
            "alignment": alignment(seen.z1, seen.z2),
            "uniformity": uniformity(seen.z1),
        }

    def _see(self, model: BarlowTwins, epoch: int, give_up: Callable[[], bool]) -> _Seen | None:
        """Read the images and run them, and two views of each, through the network."""
        features = Embedder(model.backbone, self.preprocessing, device=self.device)
        embeddings = Embedder(_Embedding(model), self.preprocessing, device=self.device)
        reader = _Reader(self.source, self.transform, self.preprocessing, epoch)
        plan = [tuple(self.rows[r.start : r.stop].tolist()) for r in ranges(0, len(self.rows), BATCH)]
        found: list[tuple[npt.NDArray[np.int64], Tensor, Tensor, Tensor]] = []
        pairs, pair_rows = torch.empty(0), np.empty(0, np.int64)
        with read_ahead(reader, plan, workers=min(self.workers, len(plan) - 1)) as batches:
            for indices, batch in zip(plan, batches, strict=True):
                rows = np.asarray(indices)[batch.good.numpy()]
                if len(rows):
                    y1, y2 = batch.y1[batch.good], batch.y2[batch.good]
                    if not found:
                        pairs, pair_rows = torch.stack([y1[:PAIRS], y2[:PAIRS]], 1), rows[:PAIRS]  # (P, 2, C, S, S)
                    clean = features.forward(batch.images[batch.good])  # (n, D)
                    found.append((rows, clean, embeddings.forward(y1), embeddings.forward(y2)))
                if give_up():
                    return None
        if not found:
            return None
        rows = np.concatenate([part[0] for part in found])
        clean, z1, z2 = (torch.cat([part[i] for part in found]) for i in (1, 2, 3))  # type: ignore[misc]
        finite = (clean.isfinite().all(1) & z1.isfinite().all(1) & z2.isfinite().all(1)).numpy()
        if finite.sum() < 2:
            return None
        return _Seen(rows[finite], clean[finite].numpy(), z1[finite], z2[finite], pairs, pair_rows)

    def _snapshot(self, seen: _Seen, model: BarlowTwins, step: int, epoch: int, unreadable: set[int]) -> Snapshot:
        # Double precision, next to no eps: in evaluation mode an untrained network's features vary by very little.
        z1, z2 = (z[:, :BLOCK].double() for z in (seen.z1, seen.z2))
        block = cross_correlation(z1, z2, eps=1e-24)  # (d, d)
        shown = self._neighbors(seen, model)
        first = sorted(unreadable)[:NAMED]
        return Snapshot(
            step=step,
            epoch=epoch,
            images=len(seen.rows),
            width=seen.z1.shape[1],
            correlation=block.numpy().astype(np.float16),
            singular_values=singular_values(seen.features).astype(np.float32),
            pairs=_pixels(seen.pairs, self.transform.recipe),
            pair_keys=[self.source.key(row) for row in seen.pair_rows.tolist()],
            held_out=self.queries is not self.source,
            unreadable=[self.source.key(row) for row in first],
            unreadable_count=len(unreadable),
            **shown,
        )

    def _neighbors(self, seen: _Seen, model: BarlowTwins) -> dict[str, Any]:
        """The queries, and the images looked at that are nearest to each, as the fields of a snapshot."""
        k = min(NEIGHBOURS, len(seen.rows))
        embedder = Embedder(model.backbone, self.preprocessing, device=self.device)
        read = [(row, self.queries.read(row)) for row in self.query_rows.tolist()]
        good = [(row, image) for row, image in read if not isinstance(image, Unreadable)]
        features = np.empty((0, seen.features.shape[1]), np.float32)
        if good:
            features = embedder.forward(torch.stack([self.preprocessing(image) for _, image in good])).numpy()
        keep = np.atleast_1d(np.isfinite(features).all(axis=1))
        good = [item for item, kept in zip(good, keep.tolist(), strict=True) if kept]
        similarity, places = (t.numpy() for t in nearest(seen.features, features[keep], k))  # (Q, K) each
        found = [[int(seen.rows[place]) for place in line] for line in places]
        pictures = [[self._thumbnail(self.source.read(row)) for row in line] for line in found]
        return {
            "queries": _stack([self._thumbnail(image) for _, image in good], (0,)),
            "query_keys": [self.queries.key(row) for row, _ in good],
            "query_labels": [_label(self.queries, row) for row, _ in good],
            "neighbours": _stack([_stack(line, (0,)) for line in pictures], (0, k)),
            "neighbour_keys": [[self.source.key(row) for row in line] for line in found],
            "neighbour_labels": [[_label(self.source, row) for row in line] for line in found],
            "similarity": similarity.astype(np.float32),
        }

    def _thumbnail(self, image: Image.Image | Unreadable) -> npt.NDArray[np.uint8]:
        """(s, s, 3): the square that evaluation sees."""
        side = min(THUMBNAIL, self.preprocessing.image_size)
        if isinstance(image, Unreadable):  # it has vanished meanwhile
            return np.full((side, side, 3), 128, np.uint8)
        square = self.preprocessing.crop(image)
        return np.asarray(square.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class _Seen:
    """What came of the images that could be read."""

    rows: npt.NDArray[np.int64]  # (N,) of the source
    features: npt.NDArray[np.float32]  # (N, D) of the backbone
    z1: Tensor  # (N, D) embeddings of the first views
    z2: Tensor
    pairs: Tensor  # (P, 2, C, S, S), normalized
    pair_rows: npt.NDArray[np.int64]  # (P,) of the source


class _Batch(NamedTuple):
    images: Tensor  # (n, C, S', S') as evaluation sees them
    y1: Tensor  # (n, C, S, S)
    y2: Tensor
    good: Tensor  # (n,) bool


class _Reader:
    """Reads images and their views of an epoch, in whichever process it is called."""

    def __init__(self, source: Source, transform: TwinTransform, preprocessing: Preprocessing, epoch: int) -> None:
        self.source, self.transform, self.preprocessing, self.epoch = source, transform, preprocessing, epoch

    def __getitem__(self, indices: tuple[int, ...]) -> _Batch:
        side, channels = self.transform.recipe.size, self.transform.recipe.channels
        clean = torch.zeros(len(indices), channels, self.preprocessing.image_size, self.preprocessing.image_size)
        y1, y2 = torch.zeros(2, len(indices), channels, side, side)
        good = torch.zeros(len(indices), dtype=torch.bool)
        for place, index in enumerate(indices):
            image = self.source.read(index)
            if not isinstance(image, Unreadable):
                clean[place] = self.preprocessing(image)
                y1[place], y2[place] = self.transform(image, epoch=self.epoch, index=index)
                good[place] = True
        return _Batch(clean, y1, y2, good)


class _Embedding(nn.Module):
    """The network up to the projector's output: (n, C, S, S) -> (n, D)."""

    def __init__(self, model: BarlowTwins) -> None:
        super().__init__()
        self.model = model

    def forward(self, y: Tensor) -> Tensor:
        return self.model.embed(y)


def _spread(count: int, most: int) -> npt.NDArray[np.int64]:
    """At most `most` of 0..count - 1, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _pixels(views: Tensor, recipe: Augmentation) -> npt.NDArray[np.uint8]:
    """Normalised views (P, 2, C, S, S) as pictures (P, 2, s, s, 3)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (recipe.mean, recipe.std))
    levels = ((views * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    levels = levels.expand(-1, -1, 3, -1, -1).permute(0, 1, 3, 4, 2)  # (P, 2, S, S, 3)
    side = min(THUMBNAIL, recipe.size)
    small = [
        [np.asarray(Image.fromarray(view).resize((side, side), Image.Resampling.BICUBIC)) for view in pair]
        for pair in levels.contiguous().numpy()
    ]
    return np.asarray(small, np.uint8)


def _label(source: Source, row: int) -> str:
    return "" if source.labels is None else source.classes[source.labels[row]]


def _stack(pictures: list[npt.NDArray[np.uint8]], empty: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    return np.stack(pictures) if pictures else np.zeros((*empty, 1, 1, 3), np.uint8)
