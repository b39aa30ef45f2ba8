"""Processes to be signalled and killed, forked from one that has imported everything: each is there in milliseconds.

Each child is the leader of its own session, so that a signal to its group reaches its workers too. Run as a script,
this file is the process that they are forked from.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Child", "ProcessPool"]

COMMAND_LINE = "import sys; from barlowtwins.cli import main; sys.exit(main(sys.argv[1:]))"


class ProcessPool:
    """A context manager; `start` forks a process."""

    def __enter__(self) -> ProcessPool:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=pipe, stdout=pipe, text=True, env=environment, start_new_session=True
        )
        self._pids: list[int] = []
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self._process.communicate("")

    def start(self, *arguments: str, log: Path, code: str = COMMAND_LINE, before: str = "") -> Child:
        """Fork a process that runs `before` and then `code`.

        Args:
            arguments: `sys.argv[1:]` of the process; those of `barlowtwins` unless `code` says otherwise.
            log: the file for its standard output and error.
            code: Python source.
            before: more of it, such as what makes a disk slow.
        """
        pid = self.ask(code=f"{before}\n{code}", arguments=arguments, log=str(log))
        self._pids.append(pid)
        return Child(self, pid, log)

    def ask(self, **request: Any) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


@dataclass(frozen=True)
class Child:
    """A process of the pool."""

    pool: ProcessPool
    pid: int
    log: Path

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this process alone."""
        os.kill(self.pid, number)

    def send_to_all(self, number: signal.Signals) -> None:
        """Send a signal to it and its workers, as a terminal and some schedulers do."""
        os.killpg(self.pid, number)

    def workers(self) -> list[int]:
        """Process ids of its children (Linux)."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def wait(self, seconds: float = 120) -> int:
        """Its exit code, as `subprocess` gives it: negative for a signal that ended it."""
        code = self.pool.ask(wait=self.pid, seconds=seconds)
        assert code != 1000, f"still running after {seconds} s:\n{self.output()}"
        return code

    def output(self) -> str:
        """What it printed so far."""
        return self.log.read_text()


def _serve() -> dict[str, Any] | None:
    """Fork what is asked for; returns the request in the child, and None at the end in the parent."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(_wait(request["wait"], request["seconds"]), flush=True)
            continue
        ready, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            _settle(request["log"])
            os.write(tell, b"!")
            return request
        os.read(ready, 1)
        os.close(ready)
        os.close(tell)
        print(pid, flush=True)
    return None


def _settle(log: str) -> None:
    os.setsid()
    with open(log, "ab") as file, open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _wait(pid: int, seconds: float) -> int:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return 1000


if __name__ == "__main__":
    ours = ("barlowtwins.cli", "barlowtwins.train.pretrain", "barlowtwins.core.printing")
    for module in ("safetensors.torch", "tqdm", "tyro", *ours):
        importlib.import_module(module)
    importlib.import_module("error_coverage").note_raises()
    asked = _serve()
    if asked is not None:
        sys.argv[1:] = asked["arguments"]
        exec(compile(asked["code"], "<pool>", "exec"), {"__name__": "__main__"})
