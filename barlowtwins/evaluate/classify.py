"""Label any number of images with a trained classifier, in constant memory: one CSV line per image.

    row, path, status, label, probability, label_2, probability_2, ...

An image that cannot be read keeps its line, with the reason as its status. If the process is stopped or killed, the
same command resumes from the shards of logits that are there.
"""

# N images, n of them in a shard, K classes, k of them named

from __future__ import annotations

import dataclasses
import io
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from barlowtwins.config import ClassifyConfig
from barlowtwins.core.device import resolve_workers
from barlowtwins.core.distributed import open_world
from barlowtwins.core.errors import OutputError
from barlowtwins.core.files import atomic_write
from barlowtwins.core.printing import plural
from barlowtwins.core.progress import say
from barlowtwins.data.describe import describe
from barlowtwins.data.open import Source, open_source
from barlowtwins.embedding.embedder import Embedder, FeatureArray
from barlowtwins.embedding.embeddings import OK, PATH_ERRORS, row_writer
from barlowtwins.embedding.shards import SHARD_ROWS, Shard, read_failures, read_features
from barlowtwins.evaluate.features import make_shards
from barlowtwins.evaluate.labeled import labels_within
from barlowtwins.metrics.scores import Scores, Tally
from barlowtwins.runs.job_folder import JobFolder, open_job
from barlowtwins.zoo.heads import load_classifier, tensors_digest

__all__ = ["ClassifyResult", "classify"]

HEADS = ("row", "path", "status", "label", "probability")


@dataclass(frozen=True, eq=False)
class ClassifyResult:
    """What `classify` made of the images."""

    out: str
    """The CSV file."""
    rows: int
    """Its lines, one per image."""
    failed: int
    """Images that could not be read."""
    counts: dict[str, int]
    """Images by their label, the most frequent first."""
    seconds: float
    """Of this run; those of one that was stopped before are not counted."""
    scores: Scores | None = None
    """Scores, where the images have labels of the same names."""

    def summary(self) -> str:
        """Return a summary in words."""
        most = ", ".join(f"{name} {count:,}" for name, count in list(self.counts.items())[:5])
        more = f" and {plural(len(self.counts) - 5, 'class', 'classes')} more" if len(self.counts) > 5 else ""
        lines = [f"{plural(self.rows, 'image')} labeled in {self.out} ({self.seconds:.1f} s): {most}{more}"]
        if self.scores:
            lines.append(f"compared with the images' own labels: {self.scores.summary()}")
        elif self.failed:
            lines.append(f"{self.failed:,} could not be read: see their status")
        return "\n".join(lines)


def classify(config: ClassifyConfig, *, shard_rows: int = SHARD_ROWS) -> ClassifyResult:
    """Label images with the classifier of a HEAD file, as `torch.hub.load(REPO, "resnet50", head=FILE)` does.

    Args:
        config: which images, which classifier, and where to.
        shard_rows: rows that are saved at once: as many are lost at most when the process is killed.

    Raises:
        WeightsError: head or weights are missing or damaged, or do not belong together.
        DataError: there are no such images.
        OutputError: the CSV file exists and `overwrite` is not set, or cannot be written.
        StoppedEarly: a stop signal; the same call resumes.
    """
    started = time.monotonic()
    with open_world(config.device) as world:
        out = Path(config.out)
        if out.exists() and not config.overwrite:
            raise OutputError(f"{out} exists already; choose another --out, or replace it with --overwrite")
        classifier = load_classifier(config.head, weights=config.weights, progress=world.writes)
        source = open_source(config.images, split=config.split, data_root=config.data_root)
        if world.writes:
            say(describe(source))
        preprocessing = classifier.head.preprocessing
        embedder = Embedder(classifier.build(), preprocessing, device=world.device, precision=config.precision)
        parts = out.with_name(f"{out.name}.parts")
        job = {
            "head": tensors_digest({"weight": classifier.head.weight, "bias": classifier.head.bias}),
            "classes": classifier.head.classes,
            "weights": classifier.weights.sha256,
            "images": source.fingerprint(),
            "precision": embedder.precision,
            "shard_rows": shard_rows,
        }
        with open_job(str(parts), job, overwrite=config.overwrite, world=world):
            shards = make_shards(
                source,
                embedder,
                parts / "features",
                world=world,
                batch_size=config.batch_size,
                workers=resolve_workers(config.workers),
                shard_rows=shard_rows,
            )
            result = None
            if world.writes:
                written = _write(source, parts / "features", shards, classifier.head.classes, config)
                result = dataclasses.replace(written, seconds=time.monotonic() - started)
            result = world.same(result)
        if world.writes:
            JobFolder(parts, {}).clear()
            shutil.rmtree(parts)
    assert result is not None  # the process that writes has one
    return result


def _write(
    source: Source, folder: Path, shards: Sequence[Shard], classes: Sequence[str], config: ClassifyConfig
) -> ClassifyResult:
    """Write the CSV file, one shard after the other, counting on the way."""
    k = min(config.topk, len(classes))
    comparable = source.labels is not None and set(source.classes) <= set(classes)
    labels = labels_within(classes, source) if comparable else None
    tally, counts, failed = Tally(len(classes)), Counter[str](), 0
    with atomic_write(config.out) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors=PATH_ERRORS, newline="")
        write_row = row_writer(text)
        write_row([*HEADS, *(f"{head}_{place}" for place in range(2, k + 1) for head in HEADS[-2:])])
        for shard in shards:
            logits, reasons = read_features(shard, folder), read_failures(shard, folder)  # (n, K)
            failed += len(reasons)
            if labels is not None:
                tally.add(torch.from_numpy(logits), torch.from_numpy(labels[shard.rows.start : shard.rows.stop]))
            for row, named in zip(shard.rows, _most_probable(logits, classes, k), strict=True):
                if row in reasons:
                    write_row([row, source.key(row), reasons[row]] + [""] * 2 * k)
                else:
                    write_row([row, source.key(row), OK, *named])
                    counts[named[0]] += 1
        text.detach()  # flushes, and leaves the file open
    scores = tally.scores(classes) if labels is not None and failed < len(source) else None
    return ClassifyResult(config.out, len(source), failed, dict(counts.most_common()), 0.0, scores)


def _most_probable(logits: FeatureArray, classes: Sequence[str], k: int) -> Iterator[list[str]]:
    """For each row of (n, K): the first class and its probability, the second and its own, ... k of them."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]  # (n, k)
    for places, row in zip(order.tolist(), probabilities, strict=True):
        yield [text for place in places for text in (classes[place], f"{row[place]:.6f}")]
