"""Accuracies against scikit-learn and counting by hand; the interval against its defining equation."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from torch import nn

from barlowtwins.core.errors import DataError
from barlowtwins.core.printing import plain
from barlowtwins.metrics import scores as scores_module
from barlowtwins.metrics.scores import Scores, Tally, wilson_interval

NAMES = tuple("abcdefgh")


def tallied(logits: torch.Tensor, labels: torch.Tensor, names: tuple[str, ...] = NAMES, batch: int = 7) -> Scores:
    tally = Tally(len(names))
    for start in range(0, len(logits), batch):
        tally.add(logits[start : start + batch], labels[start : start + batch])
    return tally.scores(names)


def predictions(rows: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, len(NAMES) - 1, (rows,), generator=rng)  # the last class never occurs
    return torch.randn(rows, len(NAMES), generator=rng) + 2 * torch.eye(len(NAMES))[labels], labels


def test_agrees_with_scikit_learn() -> None:
    logits, labels = predictions()
    scores = tallied(logits, labels)
    classes = np.arange(len(NAMES))
    predicted = logits.argmax(1)
    assert (scores.confusion == confusion_matrix(labels, predicted, labels=classes)).all()
    assert scores.top1 == pytest.approx(100 * (predicted == labels).double().mean().item())
    assert scores.top5 == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=5, labels=classes))
    for k, name in enumerate(NAMES[:-1]):
        assert scores.per_class[name] == pytest.approx(100 * (predicted == k)[labels == k].double().mean().item())
    assert scores.per_class[NAMES[-1]] is None
    assert (scores.images, scores.unreadable) == (300, 0)


def test_batches_make_no_difference() -> None:
    logits, labels = predictions()
    assert plain(tallied(logits, labels, batch=1)) == plain(tallied(logits, labels, batch=1000))


def test_unreadable_images_are_counted_apart() -> None:
    logits, labels = predictions(50)
    broken = logits.clone()
    broken[[3, 10, 49]] = torch.nan
    kept = torch.ones(50, dtype=torch.bool)
    kept[[3, 10, 49]] = False
    found, expected = tallied(broken, labels), tallied(logits[kept], labels[kept])
    assert (found.images, found.unreadable, found.top1) == (47, 3, expected.top1)
    with pytest.raises(DataError, match="no readable image"):
        tallied(broken[[3, 10]], labels[[3, 10]])


def test_of_equal_logits_the_first_class_counts() -> None:
    scores = tallied(torch.zeros(3, 8), torch.tensor([0, 4, 5]))
    assert scores.confusion[:, 0].tolist() == [1, 0, 0, 0, 1, 1, 0, 0]
    assert scores.top5 == pytest.approx(200 / 3)


def test_top5_of_five_classes_says_nothing() -> None:
    assert tallied(torch.eye(5), torch.arange(5), NAMES[:5]).top5 is None
    assert tallied(torch.eye(6), torch.arange(6), NAMES[:6]).top5 == 100


def test_what_a_person_and_a_program_are_told() -> None:
    logits = torch.eye(8)[torch.tensor([1, 1, 0, 2, 2, 2, 7, 0])]
    labels = torch.tensor([0, 0, 0, 2, 2, 1, 7, 7])
    scores = tallied(logits, labels)
    assert scores.confusions == [("a", "b", 2), ("b", "c", 1), ("h", "a", 1)]
    assert "top-1 50.00 %" in scores.summary() and "a classified as b (2)" in scores.summary()
    assert "lowest accuracy: b 0.0 %, a 33.3 %, h 50.0 %" in scores.summary()
    record = json.loads(json.dumps(plain(scores), allow_nan=False))
    assert record["confusion"][0][1] == 2
    assert record["top1_interval"] == list(wilson_interval(4, 8))


def test_of_many_classes_only_the_pairs_that_occur_are_kept() -> None:
    """6,000 classes and 3,000 images: as a matrix 300 MB of zeros in results.json, and as much again in memory."""
    classes, images = 6000, 3000
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (images,), generator=rng)
    predicted = torch.where(torch.rand(images, generator=rng) < 0.5, labels, labels.roll(1))
    tally = Tally(classes)
    tracemalloc.start()
    for start in range(0, images, 500):
        logits = nn.functional.one_hot(predicted[start : start + 500], classes).float()
        tally.add(logits, labels[start : start + 500])
    scores = tally.scores([f"class {k}" for k in range(classes)])
    record = json.dumps(plain(scores), indent=2)
    _, most = tracemalloc.get_traced_memory()  # numpy's and Python's, of which a matrix would be 288 MB
    tracemalloc.stop()
    assert len(record) < 1e6 and most < 50e6
    found = json.loads(record)
    assert "confusion" not in found and len(found["confusion_pairs"]) <= images
    expected = Counter(zip(labels.tolist(), predicted.tolist(), strict=True))
    assert {(row, column): count for row, column, count in found["confusion_pairs"]} == expected
    assert (scores.confusion == confusion_matrix(labels, predicted, labels=np.arange(classes))).all()
    assert scores.top1 == pytest.approx(100 * (predicted == labels).double().mean().item())


def test_a_batch_of_more_logits_than_are_ranked_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = predictions()
    whole = plain(tallied(logits, labels, batch=300))
    monkeypatch.setattr(scores_module, "BLOCK", 5)  # less than one row
    assert plain(tallied(logits, labels, batch=300)) == whole


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_ends_of_the_interval_solve_wilsons_equation(pair: tuple[int, int]) -> None:
    """An end is a true proportion q from which p = right / n is just 1.96 of q's own standard deviations away."""
    right, n = pair
    low, high = (end / 100 for end in wilson_interval(right, n))
    p = right / n
    assert 0 <= low <= p + 1e-12 and p - 1e-12 <= high <= 1
    for q in (low, high):
        if 1e-12 < q < 1 - 1e-12:
            assert abs(p - q) / math.sqrt(q * (1 - q) / n) == pytest.approx(1.96, abs=1e-4)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    right = rng.binomial(500, 0.93, size=4000)
    covered = [low <= 93 <= high for low, high in (wilson_interval(int(r), 500) for r in right)]
    assert 0.935 < np.mean(covered) < 0.965
