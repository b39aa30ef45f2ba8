"""Real signals to real processes: the loop ends at its own time, a second Ctrl-C at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from barlowtwins.core.signals import StopSignals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")

LOOP = """
import sys, time
from barlowtwins.core.signals import StopSignals
try:
    with StopSignals() as stop:
        print("ready", flush=True)
        while not stop.requested:
            time.sleep(0.01)
        print("saving", flush=True)
        if sys.argv[1] == "slow":
            time.sleep(60)
    print("saved, stopped by", stop.name)
except KeyboardInterrupt:
    print("at once")
"""


def _start(pace: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", LOOP, pace], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_lets_the_loop_save_and_end(name: str) -> None:
    process = _start("quick")
    process.send_signal(getattr(signal, name))
    out, _ = process.communicate(timeout=30)
    assert out == f"saving\nsaved, stopped by {name}\n"
    assert process.returncode == 0


@pytest.mark.parametrize("between", [None, signal.SIGTERM])
def test_a_second_interrupt_stops_at_once(between: signal.Signals | None) -> None:
    process = _start("slow")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "saving\n"
    if between is not None:
        process.send_signal(between)  # not a second Ctrl-C
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert out == "at once\n"


def test_several_terminations_are_one_request() -> None:
    with StopSignals() as stop:
        for name in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), name)
        assert stop.requested
        assert stop.name == "SIGUSR1"


def test_previous_handlers_come_back_also_after_a_failure() -> None:
    seen: list[int] = []
    previous = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    try:
        with pytest.raises(ZeroDivisionError), StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.requested
            _ = 1 / 0
        assert seen == []
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == handlers
        os.kill(os.getpid(), signal.SIGUSR1)
        assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_in_another_thread_nothing_changes() -> None:
    before = signal.getsignal(signal.SIGTERM)
    inside: list[object] = []

    def work() -> None:
        with StopSignals() as stop:
            inside.extend([signal.getsignal(signal.SIGTERM), stop.requested])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before, False]
