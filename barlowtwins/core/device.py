"""Which device computes, in which precision, and how many processes feed it."""

from __future__ import annotations

import difflib
import faulthandler
import functools
import os
import platform
import re
import signal
import time
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import torch

from barlowtwins.core.errors import ConfigError, UsageError

__all__ = [
    "autocast",
    "available_devices",
    "default_workers",
    "device_name",
    "resolve_device",
    "resolve_precision",
    "usable_cores",
]

MOST_WORKERS = 16  # beyond this the parent's unpickling is the limit, and memory grows with each process
DEVICE_FORM = re.compile(r"(auto|cpu|mps|cuda(?::(\d+))?)")


def available_devices() -> list[str]:
    """Names that `resolve_device` accepts on this machine, best first, such as ["cuda:0", "cpu"]."""
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def resolve_device(name: str | torch.device | None = "auto") -> torch.device:
    """The device that `name` means on this machine.

    Args:
        name: "auto" (or None: the first GPU, else the CPU), "cpu", "cuda", "cuda:1", "mps", or a torch.device.

    Raises:
        UsageError: the name is not one of those.
        ConfigError: this machine has no such device; the message lists what there is.
    """
    text = "auto" if name is None else str(name).strip().lower()
    form = DEVICE_FORM.fullmatch(text)
    if form is None:
        near = difflib.get_close_matches(text, ("auto", "cpu", "cuda", "mps"), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"there is no kind of device {str(name)!r}{hint}; choose auto, cpu, cuda, cuda:N or mps")
    there = available_devices()
    if text == "auto":
        return torch.device("cuda" if there[0].startswith("cuda") else there[0])
    wanted = f"cuda:{int(form[2] or 0)}" if text.startswith("cuda") else text
    if wanted not in there:
        raise ConfigError(f"device {text} is not on this machine{_why_no_cuda(text)}; there is: {', '.join(there)}")
    return torch.device(text if text == "cuda" else wanted)


def _why_no_cuda(text: str) -> str:
    if text.startswith("cuda") and torch.version.cuda is None and torch.version.hip is None:
        return f" (torch {torch.__version__} is built without CUDA)"
    return ""


def resolve_precision(precision: str, device: torch.device) -> Literal["fp32", "bf16"]:
    """What "auto" means: bf16 autocast on a GPU that computes in it natively, else fp32.

    Args:
        precision: "auto", "fp32" or "bf16"; the last is also taken for a CPU (slow without AMX or AVX512-BF16).

    Raises:
        UsageError: another word.
        ConfigError: bf16 asked for on a GPU that cannot, or on a CPU that announces instructions it does not have.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise UsageError(f"precision {precision!r} is unknown; choose auto, fp32 or bf16")
    if precision == "fp32" or (precision == "auto" and device.type != "cuda"):
        return "fp32"
    if device.type == "cuda":
        with torch.cuda.device(device):
            if not torch.cuda.is_bf16_supported(including_emulation=precision == "bf16"):
                if precision == "bf16":
                    raise ConfigError(f"{device_name(device)} cannot compute in bf16; use --precision fp32")
                return "fp32"
    elif device.type == "cpu" and (killed_by := _bf16_kills()):
        raise ConfigError(
            f"bf16 ends the process with {killed_by} here: the CPU announces instructions that it refuses, as some "
            "virtual machines do; use --precision fp32, or set ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 and try again"
        )
    return "bf16"


@functools.cache
def _bf16_kills() -> str | None:
    """The signal that a matrix product in bf16 dies of on this CPU, tried in a process of its own; None if it lives.

    Seen where the host had switched off AMX, and oneDNN used it all the same.
    """
    if not hasattr(os, "fork"):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: the child takes no lock
        child = os.fork()
    if child == 0:
        faulthandler.disable()  # a caller's would print a page about what is only a question
        torch.set_num_threads(1)  # the parent's threads are not there
        ones = torch.ones(64, 64, dtype=torch.bfloat16)
        torch.nn.functional.linear(ones, ones)
        os._exit(0)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else None
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)  # waits for a lock that a thread of the parent held: no answer
    os.waitpid(child, 0)
    return None


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Run the network in `precision` ("fp32" or "bf16") inside; fp32 also turns an outer autocast off."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def device_name(device: torch.device) -> str:
    """What a person calls the device, such as "NVIDIA H200" or "CPU (x86_64, 2 cores)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    cores = usable_cores()
    return f"CPU ({platform.machine()}, {cores} core{'s' if cores != 1 else ''})"


def usable_cores() -> int:
    """Cores that this process may use: its affinity mask, and the quota of its container."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min(cores, _container_quota(Path("/sys/fs/cgroup/cpu.max"), cores)))


def _container_quota(cpu_max: Path, cores: int) -> int:
    """Cores granted by a cgroup-v2 `cpu.max` file ("QUOTA PERIOD" in microseconds), or `cores` where none is set."""
    try:
        quota, period = cpu_max.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return cores


def default_workers() -> int:
    """Processes that read images, unless told: a core each but one, shared among the processes of this machine.

    `torchrun` says in LOCAL_WORLD_SIZE how many those are. 0 on a single core: then the main process reads.
    """
    local = os.environ.get("LOCAL_WORLD_SIZE", "1")
    processes = int(local) if local.isdigit() and int(local) > 0 else 1
    return max(0, min(usable_cores() // processes - 1, MOST_WORKERS))
