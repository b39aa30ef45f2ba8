"""Few-shot accuracies: draws that differ, means that add up, and the command on the same draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from sklearn.neighbors import KNeighborsClassifier

from barlowtwins.config import KNNConfig
from barlowtwins.core.errors import DataError
from barlowtwins.data.open import open_source
from barlowtwins.embedding.embedder import load_embedder
from barlowtwins.evaluate.draws import few_shot
from barlowtwins.evaluate.fewshot import few_shot_accuracy
from barlowtwins.evaluate.knn import evaluate_knn


def test_every_draw_counts_once_in_mean_and_deviation() -> None:
    labels = np.repeat(np.arange(3), 20)
    seen: list[list[int]] = []

    def accuracy_of(drawn: np.ndarray) -> float:
        seen.append(drawn.tolist())
        return float(drawn.sum() % 7)

    found = few_shot_accuracy(accuracy_of, labels, shots=4, tries=6, seed=3)
    assert [len(drawn) for drawn in seen] == [12] * 6 and len({tuple(drawn) for drawn in seen}) == 6
    assert seen[0] == few_shot(labels, 4, seed=3).tolist()
    assert found.accuracies == tuple(float(sum(drawn) % 7) for drawn in seen)
    assert found.mean == pytest.approx(np.mean(found.accuracies))
    assert found.deviation == pytest.approx(np.std(found.accuracies, ddof=1))
    assert few_shot_accuracy(accuracy_of, labels, shots=4, tries=1).deviation == 0


def test_the_command_agrees_with_scikit_learn_on_each_draw(tmp_path: Path) -> None:
    weights = tiny.write_weights(tmp_path / "w.safetensors")
    config = KNNConfig("shapes:120", weights=str(weights), k=(5,), shots=(1, 3), tries=3, workers=0, device="cpu")
    result = evaluate_knn(config)
    embedder = load_embedder(weights, device="cpu")
    train, val = open_source("shapes:120", split="train"), open_source("shapes:120", split="test")
    bank, queries = embedder.encode(train), embedder.encode(val)
    for found, shots, k in zip(result.few_shot, (1, 3), (5, 5), strict=True):
        assert found.shots == shots
        for seed, accuracy in enumerate(found.accuracies):
            drawn = few_shot(train.labels, shots, seed=seed)
            peer = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
            peer.fit(bank[drawn].astype(np.float64), train.labels[drawn])
            assert accuracy == pytest.approx(100 * peer.score(queries.astype(np.float64), val.labels), abs=0.9)
    assert "3 images per class: " in result.summary() and "(3 draws)" in result.summary()
    assert evaluate_knn(config).few_shot == result.few_shot


def test_unreadable_images_are_not_drawn_and_scarce_classes_are_named(tmp_path: Path) -> None:
    weights = tiny.write_weights(tmp_path / "w.safetensors")
    images = tiny.write_images(tmp_path / "images", 12, classes=2)
    for number in (0, 2, 4):
        (images / "class0" / f"{number:04}.png").write_bytes(b"")
    settings = {"val": str(images), "weights": str(weights), "k": (1,), "workers": 0, "device": "cpu"}
    assert evaluate_knn(KNNConfig(str(images), shots=(3,), **settings)).few_shot[0].mean > 50
    with pytest.raises(DataError, match="4 images per class are needed, but class 0 has 3; use fewer shots"):
        evaluate_knn(KNNConfig(str(images), shots=(4,), **settings))
