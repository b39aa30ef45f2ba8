"""Prints, after `make faults`, what was done to the project for each row of the matrix, how often, and how it ended."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from matrix import ROWS, rows_of

COUNTED = "counted: "


@pytest.fixture
def counted(record_property: Callable[[str, object], None]) -> Callable[[str, int], None]:
    """Call it as `counted("kills", 100)`: the table says how often a test did what it does."""
    return lambda what, number: record_property(COUNTED + what, number)


@dataclass
class Row:
    """One test function, all its cases together."""

    cases: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, report: pytest.TestReport) -> None:
        self.cases += 1
        self.outcomes[report.outcome] += 1
        for name, value in report.user_properties:
            if name.startswith(COUNTED) and isinstance(value, int):
                self.counts[name.removeprefix(COUNTED)] += value

    @property
    def times(self) -> str:
        often = ", ".join(f"{number:,} {what}" for what, number in self.counts.items())
        return often or (f"{self.cases} cases" if self.cases > 1 else "once")

    @property
    def outcome(self) -> str:
        return ", ".join(name if len(self.outcomes) == 1 else f"{n} {name}" for name, n in self.outcomes.items())


def table(reports: list[pytest.TestReport]) -> list[str]:
    """The lines of the table: row, what was done, how often, outcome."""
    done: defaultdict[tuple[int, str], Row] = defaultdict(Row)
    for report in reports:
        function = report.nodeid.rpartition("::")[2].partition("[")[0]
        words = function.removeprefix("test_").lstrip("0123456789_").replace("_", " ")
        for row in rows_of(function) or (0,):
            done[row, words].add(report)
    lines, last = [], -1
    for (row, words), found in sorted(done.items()):
        if row != last:
            lines.append(f"{row or '-':>2}  {ROWS.get(row, 'beside the matrix')}")
            last = row
        lines.append(f"      {words:<88}  {found.times:<30}  {found.outcome}")
    return lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table, where tests of this folder alone were asked for."""
    if not all("faults" in argument for argument in terminalreporter.config.args):
        return
    reports = [
        report
        for kind in ("passed", "failed", "skipped", "error")
        for report in terminalreporter.stats.get(kind, [])
        if isinstance(report, pytest.TestReport) and "/faults/" in report.nodeid
        if report.when == "call" or report.outcome != "passed"
    ]
    if reports:
        terminalreporter.section("faults: row, what was done, how often, outcome")
        for line in table(reports):
            terminalreporter.write_line(line)
