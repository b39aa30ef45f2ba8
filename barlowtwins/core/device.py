"""Device and precision selection, and the default number of worker processes."""

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
    "memory_layout",
    "resolve_device",
    "resolve_precision",
    "resolve_workers",
    "usable_cores",
]

MOST_WORKERS = 16  # with more, unpickling in the parent is the limit, and memory grows with each process
DEVICE_FORM = re.compile(r"(auto|cpu|mps|cuda(?::(\d+))?)")


def available_devices() -> list[str]:
    """List the devices of this machine, best first, such as ["cuda:0", "cpu"]."""
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def resolve_device(name: str | torch.device | None = "auto") -> torch.device:
    """Return the device for a name on this machine.

    Args:
        name: "auto" (or None: the first GPU, else the CPU), "cpu", "cuda", "cuda:1", "mps", or a torch.device.

    Raises:
        UsageError: the name is unknown.
        ConfigError: this machine has no such device; the message lists those that it has.
    """
    text = "auto" if name is None else str(name).strip().lower()
    form = DEVICE_FORM.fullmatch(text)
    if form is None:
        near = difflib.get_close_matches(text, ("auto", "cpu", "cuda", "mps"), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"unknown device {str(name)!r}{hint}; choose auto, cpu, cuda, cuda:N or mps")
    there = available_devices()
    if text == "auto":
        return torch.device("cuda" if there[0].startswith("cuda") else there[0])
    wanted = f"cuda:{int(form[2] or 0)}" if text.startswith("cuda") else text
    if wanted not in there:
        raise ConfigError(f"device {text} is not available{_why_no_cuda(text)}; choose one of {', '.join(there)}")
    return torch.device(text if text == "cuda" else wanted)


def _why_no_cuda(text: str) -> str:
    if text.startswith("cuda") and torch.version.cuda is None and torch.version.hip is None:
        return f" (torch {torch.__version__} is built without CUDA)"
    return ""


def resolve_precision(precision: str, device: torch.device) -> Literal["fp32", "bf16"]:
    """Return the precision to use: "auto" is bf16 autocast on GPUs with native support, else fp32.

    Args:
        precision: "auto", "fp32" or "bf16". A CPU also accepts bf16 (slow without AMX or AVX512-BF16).

    Raises:
        UsageError: the precision is unknown.
        ConfigError: bf16 is requested, and the GPU or CPU does not support it.
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
            f"bf16 crashes with {killed_by} on this CPU: it reports instructions that it does not support, as on some "
            "virtual machines; use --precision fp32, or set ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 and try again"
        )
    return "bf16"


@functools.cache
def _bf16_kills() -> str | None:
    """Try a bf16 matrix product in a child process; return the signal that kills it, or None.

    This happens if the host disables AMX and oneDNN uses it anyway.
    """
    if not hasattr(os, "fork"):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads: the child takes no lock
        child = os.fork()
    if child == 0:
        faulthandler.disable()  # no traceback for an expected crash
        torch.set_num_threads(1)  # the threads of the parent do not exist here
        ones = torch.ones(64, 64, dtype=torch.bfloat16)
        torch.nn.functional.linear(ones, ones)
        os._exit(0)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else None
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)  # no answer: it waits for a lock that a thread of the parent held
    os.waitpid(child, 0)
    return None


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return a context that runs networks in "fp32" or "bf16"; fp32 also disables an outer autocast."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def memory_layout(device: torch.device) -> torch.memory_format:
    """The layout of images and weights with which convolutions are fastest: channels_last, but on Apple GPUs.

    It is faster on GPUs, and by a tenth or more on CPUs.
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def device_name(device: torch.device) -> str:
    """Return a readable name of the device, such as "NVIDIA H200" or "CPU (x86_64, 2 cores)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    cores = usable_cores()
    return f"CPU ({platform.machine()}, {cores} core{'s' if cores != 1 else ''})"


def usable_cores() -> int:
    """Return the number of cores that this process may use, by affinity mask and container quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min(cores, _container_quota(Path("/sys/fs/cgroup/cpu.max"), cores)))


def _container_quota(cpu_max: Path, cores: int) -> int:
    """Return the cores of a cgroup-v2 `cpu.max` file ("QUOTA PERIOD" in microseconds), or `cores` without a quota."""
    try:
        quota, period = cpu_max.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return cores


def default_workers() -> int:
    """Return the default number of processes that read images: one per core but one.

    The cores are shared by the training processes of this machine (LOCAL_WORLD_SIZE of `torchrun`). 0 on a single
    core: the main process reads.
    """
    local = os.environ.get("LOCAL_WORLD_SIZE", "1")
    processes = int(local) if local.isdigit() and int(local) > 0 else 1
    return max(0, min(usable_cores() // processes - 1, MOST_WORKERS))


def resolve_workers(workers: int | None) -> int:
    """`workers`, or by default as many as `default_workers` finds for this machine."""
    return default_workers() if workers is None else workers
