"""Pretraining as the command and the package offer it: the training loop with the run report.

The loop knows nothing of pages; this face hands it the function that writes one.
"""

from __future__ import annotations

from collections.abc import Sequence

from barlowtwins.config import PretrainConfig
from barlowtwins.reports.report import write_report
from barlowtwins.train import pretrain as training
from barlowtwins.train.pretrain import PretrainResult
from barlowtwins.train.trackers import Tracker

__all__ = ["PretrainResult", "pretrain"]


def pretrain(config: PretrainConfig, *, trackers: Sequence[Tracker] = ()) -> PretrainResult:
    """Train a backbone and a projector on unlabeled images, or continue; see `barlowtwins.train.pretrain.pretrain`."""
    return training.pretrain(config, trackers=trackers, write_report=write_report)
