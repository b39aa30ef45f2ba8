"""Weighted kNN against its definition in float64 and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from barlowtwins.core.errors import ConfigError, DataError
from barlowtwins.metrics.knn import Labeled, knn_accuracy, knn_predict, votes

CLASSES = 7


def clusters(n: int, seed: int, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clusters, so that neighbors disagree."""
    centres = np.random.default_rng(99).normal(size=(CLASSES, width))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    return (centres[labels] + 1.5 * rng.normal(size=(n, width))).astype(np.float32), labels


def scores_by_definition(bank, labels, queries, k: int, temperature: float) -> np.ndarray:
    """(Q, C) float64: for each query, sort all cosines and add exp(cosine / T) of the first k."""
    out = np.zeros((len(queries), CLASSES))
    for row, query in enumerate(queries.astype(np.float64)):
        cosine = [query @ other / np.linalg.norm(query) / np.linalg.norm(other) for other in bank.astype(np.float64)]
        for i in np.argsort(cosine)[::-1][:k]:
            out[row, labels[i]] += np.exp(cosine[i] / temperature)
    return out / out.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("chunk", [7, 64, 1000])
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 1.0), (150, 0.07)])
def test_scores_are_the_definition(k: int, temperature: float, chunk: int) -> None:
    (bank, labels), (queries, _) = clusters(150, 1), clusters(40, 2)
    scores = knn_predict(bank, labels, queries, k=k, temperature=temperature, num_classes=CLASSES, chunk=chunk)
    np.testing.assert_allclose(scores.numpy(), scores_by_definition(bank, labels, queries, k, temperature), atol=2e-5)


@pytest.mark.parametrize("k", [3, 20, 200])
def test_agrees_with_scikit_learn(k: int) -> None:
    (bank, labels), (queries, truth) = clusters(2000, 3), clusters(500, 4)
    peer = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    peer.fit(bank.astype(np.float64), labels)
    theirs = peer.predict_proba(queries.astype(np.float64))
    ours = knn_predict(bank, labels, queries, k=k, chunk=256)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-5)
    assert (ours.argmax(1).numpy() == peer.predict(queries.astype(np.float64))).all()

    accuracy = knn_accuracy(Labeled(bank, labels), Labeled(queries, truth), k=k, chunk=256)[k]
    assert accuracy.top1 == pytest.approx(100 * peer.score(queries.astype(np.float64), truth))
    five = np.argsort(-theirs, axis=1, kind="stable")[:, :5]
    voted = np.take_along_axis(theirs, five, axis=1) > 0
    assert accuracy.top5 == pytest.approx(100 * ((five == truth[:, None]) & voted).any(axis=1).mean(), abs=1e-9)
    assert accuracy.top1 < accuracy.top5 < 100  # the clusters overlap: neither figure is trivial


def test_several_k_from_one_search_equal_one_at_a_time() -> None:
    (bank, labels), (queries, truth) = clusters(300, 5), clusters(90, 6)
    together = knn_accuracy(Labeled(bank, labels), Labeled(queries, truth), k=(1, 10, 100), chunk=50)
    for k in (1, 10, 100):
        assert together[k] == knn_accuracy(Labeled(bank, labels), Labeled(queries, truth), k=k)[k]


def test_top5_counts_only_classes_that_have_a_vote() -> None:
    bank, labels = np.eye(6, dtype=np.float32), np.arange(6)
    accuracy = knn_accuracy(Labeled(bank, labels), Labeled(np.eye(6)[:1], [1]), k=1, num_classes=6)[1]
    assert accuracy == (0, 0)  # the one neighbour votes 0; class 1 does not come second by default


def test_equal_scores_go_to_the_first_class() -> None:
    bank = np.array([[1, 0], [1, 0], [1, 0], [1, 0]], dtype=np.float32)
    labels = np.array([2, 1, 1, 2])
    assert knn_accuracy(Labeled(bank, labels), Labeled(bank[:1], [1]), k=4)[4].top1 == 100
    assert knn_accuracy(Labeled(bank, labels), Labeled(bank[:1], [2]), k=4)[4].top1 == 0
    assert int(knn_predict(bank, labels, bank[:1], k=4).argmax()) == 1


def test_unreadable_images_neither_vote_nor_count() -> None:
    (bank, labels), (queries, truth) = clusters(200, 7), clusters(60, 8)
    holed_bank, holed_queries = bank.copy(), queries.copy()
    holed_bank[::5], holed_queries[::3] = np.nan, np.nan
    keep, asked = np.arange(200) % 5 != 0, np.arange(60) % 3 != 0
    assert knn_accuracy(Labeled(holed_bank, labels), Labeled(holed_queries, truth), k=9, chunk=32) == knn_accuracy(
        Labeled(bank[keep], labels[keep]), Labeled(queries[asked], truth[asked]), k=9
    )
    with pytest.raises(DataError, match="no readable image"):
        knn_accuracy(Labeled(bank, labels), Labeled(np.full_like(queries, np.nan), truth), k=9)


def test_one_class_is_always_right() -> None:
    bank, _ = clusters(30, 9)
    assert knn_accuracy(Labeled(bank, np.zeros(30, int)), Labeled(bank, np.zeros(30, int)), k=5)[5] == (100, 100)


def test_a_small_temperature_overflows_nothing() -> None:
    (bank, labels), (queries, _) = clusters(50, 10), clusters(10, 11)
    cold = knn_predict(bank, labels, queries, k=10, temperature=1e-6, num_classes=CLASSES)
    nearest_one = knn_predict(bank, labels, queries, k=1, num_classes=CLASSES)
    torch.testing.assert_close(cold, nearest_one)
    with pytest.raises(ConfigError, match="temperature is 0"):
        votes(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64), temperature=0, num_classes=1)


def test_bad_labels_and_sizes_are_told() -> None:
    (bank, labels), (queries, truth) = clusters(50, 12), clusters(10, 13)
    with pytest.raises(ConfigError, match="k is 200, but the bank has 50 rows; choose k from 1 to 50"):
        knn_accuracy(Labeled(bank, labels), Labeled(queries, truth), k=(20, 200))
    with pytest.raises(DataError, match=r"the bank: 50 rows but labels of shape \(49,\)"):
        knn_accuracy(Labeled(bank, labels[1:]), Labeled(queries, truth), k=5)
    with pytest.raises(DataError, match="labels run from -1 to"):
        knn_accuracy(Labeled(bank, labels), Labeled(queries, truth - 1), k=5)
    with pytest.raises(DataError, match="must be 0 to 2"):
        knn_predict(bank, labels, queries, k=5, num_classes=3)


@pytest.mark.parametrize("odd", [0.5, float("nan"), float("inf"), 1 + 2j])
@pytest.mark.parametrize("kind", ["list", "array", "tensor"])
def test_labels_that_are_not_whole_numbers_are_refused(odd: complex, kind: str) -> None:
    (bank, labels), (queries, truth) = clusters(50, 12), clusters(10, 13)
    given = [*truth[:-1].tolist(), odd]
    convert = {"list": list, "array": np.asarray, "tensor": torch.tensor}[kind]
    with pytest.raises(DataError, match=r"the queries: label .* is not a whole number; number the classes 0, 1, 2"):
        knn_accuracy(Labeled(bank, labels), Labeled(queries, convert(given)), k=5)
    with pytest.raises(DataError, match=r"the bank: label .* is not a whole number"):
        knn_predict(bank, [odd, *labels[1:].tolist()], queries, k=5)


def test_names_as_labels_are_refused_and_whole_floats_are_read() -> None:
    (bank, labels), (queries, truth) = clusters(50, 12), clusters(10, 13)
    with pytest.raises(DataError, match=r"the bank: labels have dtype <U3; number the classes 0, 1, 2"):
        knn_accuracy(Labeled(bank, ["cat"] * 50), Labeled(queries, truth), k=5)
    expected = knn_accuracy(Labeled(bank, labels), Labeled(queries, truth), k=5)
    for dtype in (np.float32, np.float16, np.uint8, np.int16):
        whole = Labeled(bank, labels.astype(dtype)), Labeled(queries, torch.tensor(truth).double())
        assert knn_accuracy(*whole, k=5) == expected
