"""Evaluate features by every protocol of the paper: nearest neighbors, linear probes, few labels, fine-tuning."""

from __future__ import annotations

from barlowtwins.evaluate.fewshot import FewShot
from barlowtwins.evaluate.finetune import evaluate_finetune
from barlowtwins.evaluate.knn import KNNResult, evaluate_knn
from barlowtwins.evaluate.linear import evaluate_linear, fit_head
from barlowtwins.evaluate.results import EvaluationResult
from barlowtwins.evaluate.semi import evaluate_semi
from barlowtwins.evaluate.svm import SVMResult, evaluate_svm
from barlowtwins.metrics.knn import Accuracy, Labeled, knn_accuracy, knn_predict
from barlowtwins.metrics.scores import Scores

__all__ = [
    "Accuracy",
    "EvaluationResult",
    "FewShot",
    "KNNResult",
    "Labeled",
    "SVMResult",
    "Scores",
    "evaluate_finetune",
    "evaluate_knn",
    "evaluate_linear",
    "evaluate_semi",
    "evaluate_svm",
    "fit_head",
    "knn_accuracy",
    "knn_predict",
]
