"""What a run says while it works: lines of metrics.jsonl, the bar, and the online kNN at the end of an epoch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from torch import nn, optim

from barlowtwins.loss import LossTerms
from barlowtwins.monitor import OnlineKNN
from barlowtwins.progress import Progress, say
from barlowtwins.run import RunFolder

__all__ = ["Journal"]


class Journal:
    """Keeps the log of a run; made by the process that writes.

    Args:
        run: where metrics.jsonl lies.
        start: step from which this process goes on; later lines of an earlier process are dropped.
        steps: of the whole run.
        steps_per_epoch, batch_size: for epochs and rates.
        log_every: steps between lines.
        knn, knn_every: the evaluation, if there are labels, and the epochs between two.
    """

    def __init__(
        self,
        run: RunFolder,
        *,
        start: int,
        steps: int,
        steps_per_epoch: int,
        batch_size: int,
        log_every: int,
        knn: OnlineKNN | None,
        knn_every: int,
    ) -> None:
        self.run, self.steps_per_epoch, self.batch_size = run, steps_per_epoch, batch_size
        self.log_every, self.knn, self.knn_every = log_every, knn, knn_every
        self.loss: float | None = None
        self.accuracy: float | None = None
        self.images, self.seconds = 0, 0.0  # of this process's own steps, evaluations and saves not counted
        self._pending: list[dict[str, Any]] = []
        self._mark = time.perf_counter()
        self._progress = Progress(steps * batch_size, desc="pretrain", initial=start * batch_size)
        for record in run.rewind_log(start):
            self.loss, self.accuracy = record.get("loss", self.loss), record.get("knn", self.accuracy)

    @property
    def rate(self) -> float | None:
        """Images a second (each gives two views), over this process's own steps."""
        return self.images / self.seconds if self.seconds > 0 else None

    def step(self, step: int, terms: LossTerms, optimizer: optim.Optimizer, unreadable: int, *, last: bool) -> None:
        """Count one optimizer step; write a line if it is time."""
        now = time.perf_counter()
        self.images, self.seconds, self._mark = self.images + self.batch_size, self.seconds + now - self._mark, now
        if step % self.log_every == 0 or step % self.steps_per_epoch == 0 or last:
            self.loss = terms.loss.item()
            weights, one_dimensional = (group["lr"] for group in optimizer.param_groups)
            self._write(
                {
                    "step": step,
                    "epoch": round(step / self.steps_per_epoch, 4),
                    "loss": self.loss,
                    "on_diagonal": terms.on_diagonal.item(),
                    "off_diagonal": terms.off_diagonal.item(),
                    "floor": terms.floor,
                    "form": terms.form,
                    "lr": weights,
                    "lr_bias": one_dimensional,
                    "unreadable": unreadable,
                    "images_per_second": round(self.images / self.seconds, 1),
                }
            )
            self._progress.update(self.batch_size, loss=self.loss)
        else:
            self._progress.update(self.batch_size)

    def evaluate(self, step: int, backbone: nn.Module) -> None:
        """Run the online kNN, if this step ends an epoch whose turn it is."""
        epoch, rest = divmod(step, self.steps_per_epoch)
        if self.knn is None or rest or epoch % self.knn_every:
            return
        with self.pause():
            self.accuracy = self.knn.accuracy(backbone)
        self._write({"step": step, "epoch": epoch, "knn": self.accuracy})
        self._progress.update(0, knn=f"{self.accuracy:.1f} %")

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside does not count for the rate."""
        yield
        self._mark = time.perf_counter()

    def _write(self, record: dict[str, Any]) -> None:
        """Append to the log; lines that a full disk refuses are kept for the next time."""
        self._pending.append(record)
        try:
            self.run.log(self._pending)
        except OSError as error:
            if len(self._pending) == 1:
                say(f"warning: cannot write {self.run.metrics} ({error.strerror}); its lines are kept in memory")
        else:
            self._pending = []

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._progress.close()
