"""The loss, forward and backward, against the published formula in the same run.

    python benchmarks/loss.py [--rounds 5] [--quick]

The published formula is written out below: batch norm of each view, the D x D product, the squares, autograd. Ours is
`barlow_twins_loss`, which chooses its form, and on an AMD processor the library of its products (products.py); without
that it is measured, too. The bound is what the matrix products of the chosen form would take at the rate of one plain
product of the same size; half of a symmetric product is not computed, which is how a figure gets past it.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import interleaved, write_result
from torch import Tensor

from barlowtwins.core.matmul import matmul
from barlowtwins.loss import barlow_twins_loss, choose_form

SHAPES = [(256, 8192), (1024, 8192), (2048, 8192)]
GRID = [(2, 8192), (64, 512), (256, 16384), (512, 512), (4096, 256), (8192, 1024)]
LAMBD = 0.0051


def published(z1: Tensor, z2: Tensor) -> Tensor:
    """The loss as published, re-expressed: C from two batch norms, diagonal and off-diagonal squares."""
    n, d = z1.shape
    a, b = (torch.nn.functional.batch_norm(z, None, None, training=True) for z in (z1, z2))
    c = a.T @ b / n
    on = (torch.diagonal(c) - 1).pow(2).sum()
    off = c.flatten()[:-1].view(d - 1, d + 1)[:, 1:].pow(2).sum()
    return on + LAMBD * off


def ours(z1: Tensor, z2: Tensor) -> Tensor:
    return barlow_twins_loss(z1, z2, LAMBD).loss


def without_onednn(z1: Tensor, z2: Tensor) -> Tensor:
    """Ours with the very products of the published formula; all of ours are done in its forward pass."""
    torch.backends.mkldnn.enabled = False
    try:
        return ours(z1, z2)
    finally:
        torch.backends.mkldnn.enabled = True


def step(loss: Any, z1: Tensor, z2: Tensor) -> None:
    z1.grad = z2.grad = None
    loss(z1, z2).backward()


def compare(n: int, d: int, rounds: int, device: torch.device) -> dict[str, Any]:
    torch.manual_seed(0)
    z1 = torch.randn(n, d, device=device, requires_grad=True)
    z2 = (z1.detach() + 0.3 * torch.randn(n, d, device=device)).requires_grad_()
    form = choose_form(n, d)
    x = torch.randn(n, d, device=device)
    product = (lambda: matmul(x, x.T)) if form == "gram" else (lambda: matmul(x.T, x))
    candidates = {"published": lambda: step(published, z1, z2), "ours": lambda: step(ours, z1, z2)}
    if (n, d) in SHAPES:
        candidates["ours by torch.mm"] = lambda: step(without_onednn, z1, z2)
    times = interleaved({**candidates, "one product": product}, rounds=rounds)
    medians = {name: spent["median"] for name, spent in times.items()}
    ratios = {name: medians["published"] / medians[name] for name in list(candidates)[1:]}
    near = (4 if form == "gram" else 3) * medians["one product"] / medians["ours"]
    print(
        f"N {n:5}  D {d:5}  {form:5}  "
        + "  ".join(f"{name} {medians[name] * 1e3:7.1f} ms" for name in candidates)
        + "  ratio "
        + ", ".join(f"{ratio:.1f}x" for ratio in ratios.values())
        + f"  {near:.0%} of the rate of the bare products"
    )
    return {"n": n, "d": d, "form": form, "times": times, "ratios": ratios, "of the bare products": near}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it runs")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shapes = [(8, 64), (64, 8)] if arguments.quick else [*SHAPES, *GRID]
    rows = [compare(n, d, arguments.rounds, device) for n, d in shapes]
    if not arguments.quick:
        write_result("loss", {"rows": rows, "rounds": arguments.rounds})


if __name__ == "__main__":
    main()
