"""How long nothing takes: `barlowtwins --help`, and what `import barlowtwins` adds to torch and torchvision.

    python benchmarks/startup.py [--rounds 10] [--quick]

Each is a fresh interpreter; the bound is an interpreter that does nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from common import interleaved, write_result

PROGRAMS = {
    "nothing": ["-c", "pass"],
    "barlowtwins --help": ["-m", "barlowtwins", "--help"],
    "import torch, torchvision": ["-c", "import torch, torchvision"],
    "and barlowtwins": ["-c", "import torch, torchvision, barlowtwins"],
    "and its hub's names": ["-c", "import torch, torchvision; from barlowtwins import resnet50, embedder, preprocess"],
}


def run(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="one round, nothing written: does it work?")
    flags = parser.parse_args()
    candidates = {name: (lambda arguments=arguments: run(arguments)) for name, arguments in PROGRAMS.items()}
    times = interleaved(candidates, rounds=1 if flags.quick else flags.rounds, warm_up=not flags.quick)
    for name, seconds in times.items():
        print(f"{name:<28} {seconds['median']:.3f} s  ({seconds['least']:.3f} to {seconds['most']:.3f})")
    libraries = times["import torch, torchvision"]["median"]
    beyond = {name: times[name]["median"] - libraries for name in ("and barlowtwins", "and its hub's names")}
    for name, seconds in beyond.items():
        print(f"beyond torch and torchvision, {name}: {seconds:.3f} s")
    if not flags.quick:
        write_result("startup", {"times": times, "beyond": beyond})


if __name__ == "__main__":
    main()
