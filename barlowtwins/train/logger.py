"""What a run says while it works: lines of metrics.jsonl and the bar; at the end of an epoch a look at the network, the
online kNN, and the report."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import optim

from barlowtwins.core.errors import BarlowTwinsError, MissingExtraError
from barlowtwins.core.progress import Progress, say
from barlowtwins.loss import LossTerms
from barlowtwins.metrics.representation import judge, judge_loss
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.runs.run_folder import RunFolder
from barlowtwins.train.inspection import Watch
from barlowtwins.train.online_evaluation import OnlineKNN
from barlowtwins.train.trackers import Tracker

__all__ = ["Journal"]

REPORT_SHARE = 0.05  # of a run's time at most for its reports: where epochs are that short, some go without one


class Journal:
    """Keeps the log of a run; made by the process that writes. A context manager: the bar ends with the block.

    Args:
        run: where metrics.jsonl lies.
        start: step from which this process goes on; later lines of an earlier process are dropped.
        steps: of the whole run.
        steps_per_epoch, batch_size: for epochs and rates.
        log_every: steps between lines.
        knn, knn_every, probe_every: the evaluation, if there are labels, and the epochs between two of its kNNs and of
            its linear probes; 0: none.
        lambd: weight of the off-diagonal terms; with it the log says how far above its floor the loss is.
        watch, report_every: what looks at the network, if anything does, and the epochs between two looks.
        trackers: what else gets each line.
        write_report: writes the page of a RUN folder, if there is to be one.
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
        probe_every: int = 0,
        lambd: float | None = None,
        watch: Watch | None = None,
        report_every: int = 1,
        trackers: Sequence[Tracker] = (),
        write_report: Callable[[Path], object] | None = None,
    ) -> None:
        self.run, self.steps_per_epoch, self.batch_size = run, steps_per_epoch, batch_size
        self.log_every, self.knn, self.knn_every = log_every, knn, knn_every
        self.probe_every, self.lambd = probe_every, lambd
        self.watch, self.report_every, self.trackers = watch, report_every, trackers
        self.write_report = write_report
        self.loss: float | None = None
        self.accuracy: float | None = None
        self.images, self.seconds = 0, 0.0  # of this process's own steps, evaluations and saves not counted
        self._evaluated = self._probed = 0  # step of the last kNN, of the last probe
        self._looked = -1  # step of the last look
        self._next_report = 0.0  # not before this time
        self._pending: list[dict[str, Any]] = []
        self._seen: list[dict[str, Any]] = []  # what verdicts are made of
        self._said = ""  # the last warning
        for record in run.rewind_log(start):
            self._remember(record)
            self.loss = record.get("loss", self.loss)
            if "knn" in record:
                self.accuracy, self._evaluated = record["knn"], record["step"]
            if "probe" in record:
                self._probed = record["step"]
            if "effective_rank" in record:
                self._looked = record["step"]
        self._progress = Progress(steps * batch_size, desc="pretrain", initial=start * batch_size)
        self._mark = time.perf_counter()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.close()
        for tracker in self.trackers:
            tracker.close()

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
            self.loss = loss = terms.loss.item()
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
                    **({} if self.lambd is None else {"above_floor": loss - self.lambd * terms.floor}),
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

    def evaluate(self, step: int, model: BarlowTwins, unreadable: Collection[int], give_up: Callable[[], bool]) -> None:
        """At the end of an epoch: a look at the network, the online kNN and the report, each if it is its turn.

        What was done at this step before, by an earlier process, is not done again.

        Args:
            step: optimizer steps done.
            model: the network as it stands.
            unreadable: indices of images that could not be read so far.
            give_up: asked now and then; once it says True, what is under way comes to nothing, and the next process
                makes up for it.
        """
        epoch, rest = divmod(step, self.steps_per_epoch)
        if rest:
            return
        told = False
        if self.watch and step > self._looked and epoch % self.report_every == 0:
            with self.pause():
                seen = self.watch.look(model, step=step, epoch=epoch, unreadable=set(unreadable), give_up=give_up)
            if seen is not None:
                self._looked, told = step, True
                self._write({"step": step, "epoch": epoch, **seen})
        knn = bool(self.knn_every) and step > self._evaluated and epoch % self.knn_every == 0
        probe = bool(self.probe_every) and step > self._probed and epoch % self.probe_every == 0
        if self.knn and (knn or probe):
            with self.pause():
                found = self.knn.evaluate(model.backbone, knn=knn, probe=probe, give_up=give_up)
            if found is not None:
                told = True
                self.accuracy = found.get("knn", self.accuracy)
                self._evaluated, self._probed = step if knn else self._evaluated, step if probe else self._probed
                self._write({"step": step, "epoch": epoch, **found})
                self._progress.update(0, **{name: f"{percent:.1f} %" for name, percent in found.items()})
        self._warn()
        if told and step and time.perf_counter() >= self._next_report:
            self.report()

    def report(self) -> None:
        """Write report.html, if the run looks at its network at all; that it cannot be is no failure."""
        if self.write_report is None or self.watch is None or self._next_report == math.inf:
            return
        started = time.perf_counter()
        try:
            with self.pause():
                self.write_report(self.run.path)
        except MissingExtraError as error:
            say(f"no {self.run.report.name}: {error}")
            self._next_report = math.inf
        except Exception as error:  # noqa: BLE001  a run of days does not end for want of a picture
            what = error if isinstance(error, BarlowTwinsError) else f"{type(error).__name__}: {error}"
            say(f"warning: no new {self.run.report.name}: {what}; training goes on")
        else:
            now = time.perf_counter()
            self._next_report = now + (now - started) / REPORT_SHARE

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside does not count for the rate."""
        try:
            yield
        finally:
            self._mark = time.perf_counter()

    def _warn(self) -> None:
        """Say it when the run collapses or diverges, once as long as it is of one kind."""
        verdicts = [verdict for verdict in (judge(self._seen), judge_loss(self._seen)) if verdict.level == "bad"]
        kinds = ", ".join(verdict.words.partition(":")[0] for verdict in verdicts)
        if verdicts and kinds != self._said:
            for verdict in verdicts:
                say(f"warning: {verdict.words} {verdict.advice}")
        self._said = kinds

    def _remember(self, record: dict[str, Any]) -> None:
        fields = ("loss", "effective_rank", "rank_limit", "feature_deviation")
        if kept := {name: record[name] for name in fields if name in record}:
            self._seen.append(kept)

    def _write(self, record: dict[str, Any]) -> None:
        """Append to the log; lines that a full disk refuses are kept for the next time."""
        self._remember(record)
        for tracker in self.trackers:
            tracker.log(dict(record))
        self._pending.append(record)
        try:
            self.run.log(self._pending)
        except OSError as error:
            if len(self._pending) == 1:
                say(f"warning: cannot write {self.run.metrics} ({error.strerror}); its lines are kept in memory")
        else:
            self._pending = []
