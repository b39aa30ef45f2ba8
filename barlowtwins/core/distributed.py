"""Communication between the processes that train one model, as started by `torchrun`.

A single process is a world of size 1, for which every function here returns at once.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from barlowtwins.core.batch_norm import synchronize_batch_norm
from barlowtwins.core.device import resolve_device
from barlowtwins.core.errors import ConfigError

__all__ = ["World", "open_world"]

T = TypeVar("T")

PATIENCE = datetime.timedelta(minutes=30)  # rank 0 may evaluate or download in the meantime


@dataclass(frozen=True)
class World:
    """This process and its place among the processes of a run."""

    rank: int
    size: int
    device: torch.device

    @property
    def writes(self) -> bool:
        """Whether this process writes files and messages; only rank 0 does."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is set on any process, the same on all. Does not wait for the GPU."""
        if self.size == 1:
            return flag
        shared = torch.tensor([flag], dtype=torch.int32)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return bool(shared)

    def union(self, items: set[T]) -> set[T]:
        """Return the union of the sets of all processes."""
        if self.size == 1:
            return items
        parts: list[set[T]] = [set()] * self.size
        dist.all_gather_object(parts, items)
        return set().union(*parts)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all processes, on the device of the tensor."""
        if self.size == 1:
            return tensor
        total = tensor.to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def same(self, value: T) -> T:
        """Return the value of rank 0 on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def share(self, model: nn.Module) -> nn.Module:
        """Wrap `model` to train on the global batch, with synchronized batch norm and averaged gradients."""
        if self.size == 1:
            return model
        model = synchronize_batch_norm(model)
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, devices, broadcast_buffers=False, gradient_as_bucket_view=True)

    def average_gradients(self, model: nn.Module) -> None:
        """Average all gradients over the processes in one message, for a backward outside of DDP."""
        if self.size == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for gradient, mean in zip(gradients, flat.div_(self.size).split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def wait(self) -> None:
        """Wait until all processes arrive."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def open_world(device: str = "auto") -> Iterator[World]:
    """Join the processes started by `torchrun` (RANK, WORLD_SIZE, LOCAL_RANK), or run as a single process.

    Args:
        device: as for `resolve_device`; "auto" and "cuda" assign one GPU to each process of a machine.

    Raises:
        ConfigError: the device is missing, or there are more processes than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(0, 1, resolve_device(device))
        return
    place = resolve_device(device)
    if place.type == "cuda":
        local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= gpus:
            raise ConfigError(f"process {local} of this machine has no GPU; there are {gpus}: --nproc-per-node={gpus}")
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    ours = not dist.is_initialized()
    if ours:
        backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=_store(), rank=int(os.environ["RANK"]), world_size=size, timeout=PATIENCE
        )
    try:
        yield World(dist.get_rank(), dist.get_world_size(), place)
    finally:
        if ours:
            dist.destroy_process_group()


def _store() -> Store:
    """Return the store through which the processes find each other, a separate one for each restart.

    A restarted job gets the same store, which holds addresses of dead processes (pytorch issue 135712). On one machine
    `torchrun` gives all processes the same restart count. Across machines it does not; there, set
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for the launch, so that each restart gets a new store.
    """
    store, _, _ = next(iter(rendezvous("env://", timeout=PATIENCE)))
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return store
    return PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
