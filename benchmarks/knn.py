"""Nearest neighbours: ours against scikit-learn's brute force on the same rows, with the same answer.

    python benchmarks/knn.py [--queries 10000] [--bank 60000] [--dim 2048] [--rounds 3] [--disk ROWS] [--quick]

The bound is the bare matrix product of queries and bank, in tiles whose numbers nobody looks at: by what ours
multiplies with (products.py), and by torch.mm, which on an AMD processor is slower. `--disk ROWS` also writes a bank of
so many rows to a file (1281167 of 2048 are 10.5 GB), maps it, and looks up 256 queries in it: seconds, and the most
memory that the process held.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import interleaved, write_result

from barlowtwins.core.matmul import matmul
from barlowtwins.metrics.nearest import nearest, unit_rows

TILE = 4096
DISK_QUERIES = 256


def product(queries: torch.Tensor, bank: torch.Tensor, multiply: Callable[..., torch.Tensor]) -> None:
    """All similarities, thrown away tile by tile."""
    for q in queries.split(TILE):
        for b in bank.split(TILE):
            multiply(q, b.T)


def same_rows(ours: tuple[Any, Any], theirs: tuple[Any, Any], k: int) -> float:
    """The part of neighbours that both name; where similarities are equal to rounding, either order is right."""
    found = [len(set(a) & set(b)) for a, b in zip(ours[1].tolist(), theirs[1].tolist(), strict=True)]
    return sum(found) / (len(found) * k)


def on_disk(rows: int, dim: int, k: int) -> dict[str, float]:
    """Look up some queries in a bank that lies in a file."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bank.npy"
        bank = np.lib.format.open_memmap(path, "w+", np.float32, (rows, dim))
        for start in range(0, rows, 10_000):
            bank[start : start + 10_000] = rng.standard_normal((min(10_000, rows - start), dim), np.float32)
        bank.flush()
        del bank
        mapped = np.load(path, mmap_mode="r")
        queries = rng.standard_normal((DISK_QUERIES, dim), np.float32)
        start_time = time.perf_counter()
        nearest(mapped, queries, k)
        seconds = time.perf_counter() - start_time
    status = Path("/proc/self/status").read_text("utf-8").splitlines()
    megabytes = int(next(line for line in status if line.startswith("RssAnon")).split()[1]) / 1000  # no file's pages
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(f"bank of {rows:,} x {dim} in a file: {seconds:.1f} s for {DISK_QUERIES} queries, {megabytes:,.0f} MB held")
    return {"rows": rows, "queries": DISK_QUERIES, "seconds": seconds, "held_megabytes": megabytes, "peak_rss": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--bank", type=int, default=60_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--k", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--disk", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few rows, nothing written: does it work?")
    flags = parser.parse_args()
    if flags.quick:
        flags.queries, flags.bank, flags.dim, flags.k, flags.rounds, flags.disk = 100, 5000, 16, 20, 1, 20_000
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(0)
    bank, queries = (rng.standard_normal((n, flags.dim), np.float32) for n in (flags.bank, flags.queries))
    unit_bank, unit_queries = (unit_rows(torch.from_numpy(x))[0] for x in (bank, queries))
    brute = NearestNeighbors(n_neighbors=flags.k, algorithm="brute", metric="cosine").fit(bank)
    agreement = same_rows(nearest(bank, queries[:100], flags.k), brute.kneighbors(queries[:100]), flags.k)
    times = interleaved(
        {
            "scikit-learn": lambda: brute.kneighbors(queries),
            "ours": lambda: nearest(bank, queries, flags.k),
            "product": lambda: product(unit_queries, unit_bank, matmul),
            "product by torch.mm": lambda: product(unit_queries, unit_bank, torch.mm),
        },
        rounds=flags.rounds,
    )
    theirs, ours, bare, by_torch = (spent["median"] for spent in times.values())
    print(
        f"{flags.queries:,} queries, bank {flags.bank:,} x {flags.dim}, k = {flags.k}: scikit-learn {theirs:.2f} s, "
        f"ours {ours:.2f} s, {theirs / ours:.2f}x; {bare / ours:.0%} of the bare product "
        f"({bare:.2f} s; {by_torch:.2f} s by torch.mm); {agreement:.3%} of the neighbours are the same"
    )
    result: dict[str, Any] = {"times": times, "ratio": theirs / ours, "of_the_product": bare / ours}
    result["of_the_product_by_torch_mm"] = by_torch / ours
    result |= {"same": agreement, "settings": vars(flags)}
    if flags.disk:
        result["disk"] = on_disk(flags.disk, flags.dim, flags.k)
    if not flags.quick:
        write_result("knn", result)


if __name__ == "__main__":
    main()
