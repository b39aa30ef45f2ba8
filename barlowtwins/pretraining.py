"""Pretraining as the command and the package offer it: the training loop with the run report.

The loop knows nothing of pages; this face adds the callback that writes report.html.
"""

from __future__ import annotations

from collections.abc import Sequence

from barlowtwins.config import PretrainConfig
from barlowtwins.reports.report_callback import ReportCallback
from barlowtwins.train import pretrain as training
from barlowtwins.train.callbacks import Callback, RunState
from barlowtwins.train.pretrain import PretrainResult
from barlowtwins.train.trackers import Tracker

__all__ = ["Callback", "PretrainResult", "RunState", "pretrain"]


def pretrain(
    config: PretrainConfig, *, callbacks: Sequence[Callback] = (), trackers: Sequence[Tracker] = ()
) -> PretrainResult:
    """Train a backbone and a projector on unlabeled images, or resume doing so.

    Args:
        config: what to do; every `None` in it is decided by the recipe or the data.
        callbacks: hooks of your own, called on rank 0 after the built-in ones (see `barlowtwins.Callback`).
        trackers: get each line of metrics.jsonl as well (see `barlowtwins.Tracker`).

    Returns:
        the outcome; the files are in `config.out`.

    Raises:
        BarlowTwinsError: see `barlowtwins.train.pretrain.pretrain`.
    """
    return training.pretrain(config, callbacks=[*callbacks, ReportCallback()], trackers=trackers)
