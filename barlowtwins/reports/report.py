"""RUN/report.html: the report of a run, from its config.json, metrics.jsonl and snapshots/."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from barlowtwins.config import ReportConfig
from barlowtwins.core.errors import DataError
from barlowtwins.core.files import write_text
from barlowtwins.core.printing import data_size
from barlowtwins.core.readers import UnsoundFile, sound
from barlowtwins.metrics.representation import judge
from barlowtwins.reports.figures import require_matplotlib
from barlowtwins.reports.report_page import build
from barlowtwins.runs.run_folder import RunFolder
from barlowtwins.runs.snapshots import list_snapshots, load_snapshot

__all__ = ["ReportResult", "report", "write_report"]


@dataclass(frozen=True)
class ReportResult:
    """Result of `report`."""

    out: str
    """The HTML file."""
    bytes: int
    step: int
    steps: int
    verdict: str
    """Whether the representation has collapsed, in words."""

    def summary(self) -> str:
        return f"{self.out} ({data_size(self.bytes)}), step {self.step:,} of {self.steps:,}. {self.verdict}"


def report(config: ReportConfig) -> ReportResult:
    """Write the HTML report of a run, which may still be training.

    Raises:
        DataError: the folder is not a RUN folder.
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    return write_report(config.run)


def write_report(run: str | Path) -> ReportResult:
    """Write the report of a RUN folder; called during training."""
    require_matplotlib()
    folder = RunFolder(run)
    config = folder.read_config()
    records = folder.read_log()
    found = [load_snapshot(path) for path in list_snapshots(folder.snapshots)]
    snapshots = [snapshot for snapshot in found if snapshot is not None]
    verdict = judge(records)
    plan = config.get("plan")
    steps = int(plan.get("steps") or 0) if isinstance(plan, dict) else 0
    step = max((record["step"] for record in records), default=0)
    try:
        with sound():
            page = build(folder.path.absolute().name, config, records, snapshots, verdict)
    except UnsoundFile as error:
        raise DataError(
            f"{folder.path} holds what no run writes, so it has no report ({error}); move what you have changed away"
        ) from error
    write_text(folder.report, page)
    return ReportResult(str(folder.report), folder.report.stat().st_size, step, steps, verdict.words)
