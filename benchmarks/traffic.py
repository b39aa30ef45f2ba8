"""Bytes that a step of the loss sends between processes, counted, beside those of the published D x D all-reduce.

    python benchmarks/traffic.py [--processes 2] [--quick]

Every tensor that the loss hands to a collective is counted, forward and backward. "received" is what reaches each
process where collectives go round a ring: (W - 1) parts of a gather, 2 (W - 1) / W of what is summed. What the network
sends besides (gradients, batch norm) is the same for any loss, and left out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
from typing import Any

import torch
import torch.distributed as dist
from common import write_result

from barlowtwins.loss import barlow_twins_loss, choose_form

SHAPES = [(256, 8192), (1024, 8192), (2048, 8192), (4096, 1024)]  # N, D


def count(rank: int, processes: int, port: int, shapes: list[tuple[int, int]], answers: Any) -> None:
    """Count the traffic of one process of a group."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes)
    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    gather, reduce = getattr(dist, name), dist.all_reduce
    received = 0.0

    def counting_gather(output: torch.Tensor, part: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal received
        received += (processes - 1) * part.numel() * part.element_size()
        return gather(output, part, *args, **kwargs)

    def counting_reduce(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal received
        received += 2 * (processes - 1) / processes * tensor.numel() * tensor.element_size()
        return reduce(tensor, *args, **kwargs)

    setattr(dist, name, counting_gather)
    dist.all_reduce = counting_reduce
    rows = []
    for n, d in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            z1, z2 = (torch.randn(n // processes, d).to(dtype).requires_grad_() for _ in range(2))
            received = 0.0
            loss = barlow_twins_loss(z1, z2, group=dist.group.WORLD).loss
            forward, received = received, 0.0
            loss.backward()
            published = 2 * (processes - 1) / processes * d * d * 4
            form = choose_form(n, d)
            rows.append({"N": n, "D": d, "dtype": str(dtype).removeprefix("torch."), "form": form})
            rows[-1] |= {"forward": forward, "backward": received, "published": published}
    answers.put((rank, rows))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="tiny shapes, nothing written: does it work?")
    flags = parser.parse_args()
    shapes = [(8, 64), (64, 8)] if flags.quick else SHAPES
    context = multiprocessing.get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    answers = context.Queue()
    group = [
        context.Process(target=count, args=(rank, flags.processes, port, shapes, answers))
        for rank in range(flags.processes)
    ]
    for process in group:
        process.start()
    rows = dict(answers.get(timeout=600) for _ in group)[0]
    for process in group:
        process.join()
    for row in rows:
        total = row["forward"] + row["backward"]
        print(
            f"N {row['N']:5}  D {row['D']:5}  {row['dtype']:8}  {row['form']:5}  "
            f"forward {row['forward'] / 1e6:8.2f} MB  backward {row['backward'] / 1e6:5.2f} MB  "
            f"D x D sum {row['published'] / 1e6:8.2f} MB  {row['published'] / total:6.1f} times as much"
        )
    if not flags.quick:
        write_result("traffic", {"processes": flags.processes, "bytes": rows})


if __name__ == "__main__":
    main()
