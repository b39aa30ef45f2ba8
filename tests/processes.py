"""Real processes, forked from one that has imported torch, and groups of them that share a gloo process group."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.context import BaseContext
from typing import Any

import torch
import torch.distributed as dist
from error_coverage import note_raises

# What takes seconds to import. A module that is not there would be passed over in silence, hence the check below.
PRELOADED = ["torch", "torchvision", "pytest", "safetensors.torch", "barlowtwins.embedding.embed"]


def forkserver() -> BaseContext:
    """Where processes begin with everything imported: in milliseconds, and without this one's state."""
    assert all(map(importlib.util.find_spec, PRELOADED))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def free_port() -> int:
    """A TCP port on loopback that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_processes(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Call `function(rank, world_size, *args)` in `world_size` new processes that form a group; results by rank.

    `function` must be importable (defined at the top of a module). A failure in any process is raised here, with its
    traceback.
    """
    context = forkserver()
    results: multiprocessing.Queue[Any] = context.Queue()
    port = free_port()
    processes = [
        context.Process(target=_entry, args=(function, rank, world_size, port, results, args), daemon=True)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    answers: dict[int, Any] = {}
    try:
        while len(answers) < world_size:
            rank, ok, value = results.get(timeout=120)
            if not ok:
                raise AssertionError(f"process {rank} failed:\n{value}")
            answers[rank] = value
    finally:
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
    return [answers[rank] for rank in range(world_size)]


def _entry(function: Callable[..., Any], rank: int, world_size: int, port: int, results: Any, args: Any) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    note_raises()
    try:
        dist.init_process_group("gloo", rank=rank, world_size=world_size)
        results.put((rank, True, function(rank, world_size, *args)))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:  # noqa: BLE001  # whatever it is, the parent raises it
        results.put((rank, False, traceback.format_exc()))
