"""Matrix products in fp32 on a CPU: `barlowtwins.core.matmul.matmul` against torch's own, on the shapes that
count here.

    python benchmarks/products.py [--rounds 7] [--quick]

On an AMD processor ours is oneDNN's, elsewhere it is torch's and the ratio 1. The bound is the best rate of all shapes.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import interleaved, write_result

from barlowtwins.core.matmul import matmul, uses_onednn

SHAPES = {  # (n, k) (k, m)
    "loss, AA', N = 256, D = 8192": (256, 8192, 256),
    "loss, (BB')A, N = 256": (256, 256, 8192),
    "loss, AA', N = 1024": (1024, 8192, 1024),
    "loss, (BB')A, N = 1024": (1024, 1024, 8192),
    "neighbours, a tile": (2048, 2048, 2048),
    "projector, 1024 to 1024, batch 256": (256, 1024, 1024),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one round, nothing written: does it work?")
    flags = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, (n, k, m) in SHAPES.items():
        a, b = torch.randn(n, k), torch.randn(k, m)
        times = interleaved(
            {"torch": lambda a=a, b=b: torch.mm(a, b), "ours": lambda a=a, b=b: matmul(a, b)},  # type: ignore[misc]
            rounds=1 if flags.quick else flags.rounds,
        )
        rates = {who: 2e-9 * n * k * m / spent["median"] for who, spent in times.items()}
        rows.append({"what": name, "times": times, "gigaflops": rates, "onednn": uses_onednn(a, b)})
        rows[-1]["ratio"] = times["torch"]["median"] / times["ours"]["median"]
    best = max(max(row["gigaflops"].values()) for row in rows)
    for row in rows:
        rates = row["gigaflops"]
        print(
            f"{row['what']:36} torch {rates['torch']:5.0f} GFLOP/s  ours {rates['ours']:5.0f}  {row['ratio']:4.2f}x  "
            f"{rates['ours'] / best:4.0%} of the best"
        )
    if not flags.quick:
        write_result("products", {"rows": rows, "rounds": flags.rounds})


if __name__ == "__main__":
    main()
