"""What a run says while it works: lines of metrics.jsonl, the bar, and the online kNN at the end of an epoch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from torch import nn, optim

from barlowtwins.loss import LossTerms
from barlowtwins.monitor import OnlineKNN
from barlowtwins.progress import Progress, say
from barlowtwins.run import RunFolder

__all__ = ["Journal"]


class Journal:
    """Keeps the log of a run; made by the process that writes. A context manager: the bar ends with the block.

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
        self._evaluated = 0  # step of the last kNN
        self._pending: list[dict[str, Any]] = []
        for record in run.rewind_log(start):
            self.loss = record.get("loss", self.loss)
            if "knn" in record:
                self.accuracy, self._evaluated = record["knn"], record["step"]
        self._progress = Progress(steps * batch_size, desc="pretrain", initial=start * batch_size)
        self._mark = time.perf_counter()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.close()

    @property
    def rate(self) -> float | None:
        """Images a second (each gives two views), over this process's own steps."""
        return self.images / self.seconds if self.seconds > 0 else None

    def step(self, step: int, terms: LossTerms, optimizer: optim.Optimizer, unreadable: int, *, last: bool) -> None:
        """Count one optimizer step; write a line if it is time.

        Where a process happens to stop leaves no trace: the lines are those of a run that never stopped.

        Args:
            step: optimizer steps done.
            terms: of this step's loss.
            optimizer: its learning rates.
            unreadable: images that could not be read so far.
            last: this process's last step; its loss is kept, also if it is not logged.
        """
        now = time.perf_counter()
        self.images, self.seconds, self._mark = self.images + self.batch_size, self.seconds + now - self._mark, now
        due = step % self.log_every == 0 or step % self.steps_per_epoch == 0
        if due or last:
            self.loss = terms.loss.item()
        if due:
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

    def evaluate(self, step: int, backbone: nn.Module, give_up: Callable[[], bool] | None = None) -> None:
        """Run the online kNN, if this step ends an epoch whose turn it is, and if it was not run there before.

        Args:
            step: optimizer steps done.
            backbone: the network as it stands.
            give_up: asked now and then; once it says True, there is no kNN, and the next process makes up for it.
        """
        epoch, rest = divmod(step, self.steps_per_epoch)
        if self.knn is None or step <= self._evaluated or rest or epoch % self.knn_every:
            return
        with self.pause():
            accuracy = self.knn.accuracy(backbone, give_up)
        if accuracy is not None:
            self.accuracy, self._evaluated = accuracy, step
            self._write({"step": step, "epoch": epoch, "knn": accuracy})
            self._progress.update(0, knn=f"{accuracy:.1f} %")

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside does not count for the rate."""
        try:
            yield
        finally:
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
