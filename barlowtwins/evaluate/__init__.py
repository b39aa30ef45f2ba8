"""How good the features are: k nearest neighbours."""

from __future__ import annotations

from barlowtwins.evaluate.knn import Accuracy, KNNResult, evaluate_knn, knn_accuracy, knn_predict

__all__ = ["Accuracy", "KNNResult", "evaluate_knn", "knn_accuracy", "knn_predict"]
