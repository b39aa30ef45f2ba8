"""Every protocol on one RUN and its data, from random and from pretrained weights: one table.

    python benchmarks/protocols.py RUN DATA [--val VAL] [--seeds 3] [--finetune-epochs N] [--quick]

kNN (k = 20), the linear probe (fast form), fine-tuning on 1 % and 10 % of the labels and on all. "Random" is the same
architecture with untrained weights, so that fine-tuning it is plain supervised training by the same protocol. Each seed
has its own untrained weights, draw of labels, order and crops; the pretrained weights are one and the same. Writes
results/protocols-DATA.json and .md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import machine, write_result

from barlowtwins.config import FinetuneConfig, KNNConfig, LinearConfig, SemiConfig
from barlowtwins.core.safetensors_file import write_safetensors
from barlowtwins.evaluate import evaluate_finetune, evaluate_knn, evaluate_linear, evaluate_semi
from barlowtwins.models.resnet import build_backbone
from barlowtwins.runs.run_folder import backbone_metadata
from barlowtwins.zoo.weights import load_weights

NEIGHBOURS = 20


def protocols(
    data: str, val: str | None, epochs: int | None, finetune_epochs: int | None
) -> dict[str, Callable[[str, int], float]]:
    """Name -> what gives the top-1 accuracy, in percent, of some weights and a seed."""
    where: dict[str, Any] = {"train": data, "val": val}
    return {
        f"kNN, k = {NEIGHBOURS}": lambda weights, seed: evaluate_knn(
            KNNConfig(**where, weights=weights, k=(NEIGHBOURS,))
        ).accuracy[NEIGHBOURS],
        "linear probe": lambda weights, seed: (
            evaluate_linear(LinearConfig(**where, weights=weights, protocol="fast", seed=seed)).scores.top1
        ),
        **{
            f"{percent} % of the labels": lambda weights, seed, percent=percent: (  # type: ignore[misc]
                evaluate_semi(
                    SemiConfig(**where, weights=weights, percent=percent, epochs=epochs, seed=seed)
                ).scores.top1
            )
            for percent in ("1", "10")
        },
        "fine-tuning": lambda weights, seed: (
            evaluate_finetune(
                FinetuneConfig(**where, weights=weights, epochs=finetune_epochs or epochs, seed=seed)
            ).scores.top1
        ),
    }


def write_untrained(like: str, path: Path, seed: int) -> str:
    """A weight file of the architecture of `like`, before it learned anything."""
    known = load_weights(like)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = build_backbone(known.backbone_name, stem=known.stem, channels=known.channels)
    metadata = backbone_metadata(known.backbone_name, known.stem, known.preprocessing)
    write_safetensors(path, backbone.state_dict(), metadata)
    return str(path)


def measure(
    run: str, data: str, val: str | None, *, seeds: int, epochs: int | None, finetune_epochs: int | None
) -> dict[str, dict[str, list[float]]]:
    """For each protocol the accuracies of each seed, from random and from pretrained."""
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, top1 in protocols(data, val, epochs, finetune_epochs).items():
            found[name] = {"random": [], "pretrained": []}
            for seed in range(seeds):
                untrained = write_untrained(run, Path(folder) / f"{seed}.safetensors", seed)
                for start, weights in (("random", untrained), ("pretrained", run)):
                    if seed == 0 or start == "random" or not name.startswith("kNN"):  # which no seed can change
                        found[name][start].append(top1(weights, seed))
                        print(f"{name}, {start}, seed {seed}: {found[name][start][-1]:.2f} %", file=sys.stderr)
    return found


def markdown(found: dict[str, dict[str, list[float]]], data: str, command: str) -> str:
    """The table, with what it was measured on."""
    here = machine()
    lines = [
        f"Top-1 on the held-out images of {data}, percent: mean +- standard deviation over seeds (how many).",
        "",
        "| protocol | from random | from pretrained |",
        "|---|---|---|",
        *(f"| {name} | {_cell(row['random'])} | {_cell(row['pretrained'])} |" for name, row in found.items()),
        "",
        f"`python benchmarks/protocols.py {command}`; {here['device']}, torch {here['torch']}, {here['date']}.",
    ]
    return "\n".join(lines) + "\n"


def _cell(values: list[float]) -> str:
    spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread} ({len(values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a RUN folder, or any weights")
    parser.add_argument("data", help="labelled images, or a data-set name")
    parser.add_argument("--val", help="labelled images to judge by; the test split of a named data set unless told")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--finetune-epochs", type=int, help="on all labels; the protocol's 20 unless told")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, nothing written: does it work?")
    flags = parser.parse_args()
    seeds, epochs = (1, 1) if flags.quick else (flags.seeds, None)
    found = measure(flags.run, flags.data, flags.val, seeds=seeds, epochs=epochs, finetune_epochs=flags.finetune_epochs)
    table = markdown(found, flags.data, " ".join(sys.argv[1:]))
    print(table)
    if flags.quick:
        return
    weights = load_weights(flags.run)
    name = f"protocols-{Path(flags.data).name.replace(':', '-')}"
    path = write_result(
        name,
        {
            "run": flags.run,
            "weights_sha256": weights.sha256,
            "backbone": weights.backbone_name,
            "data": flags.data,
            "val": flags.val,
            "finetune_epochs": flags.finetune_epochs,
            "top1": found,
        },
    )
    path.with_suffix(".md").write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
