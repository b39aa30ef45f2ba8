"""Every benchmark runs: with --quick, which tries it on next to nothing and writes no result."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_images, write_weights

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if path.name != "common.py")
PEERS = {"learning.py": "lightly", "small_images.py": "lightly"}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_it_runs_and_writes_nothing(script: str, tmp_path: Path) -> None:
    if script in PEERS and importlib.util.find_spec(PEERS[script]) is None:
        pytest.skip(f"{PEERS[script]} is not installed; pip install 'barlowtwins[bench]'")
    before = {path: path.stat().st_mtime_ns for path in (FOLDER / "results").iterdir()}
    command = [sys.executable, str(FOLDER / script), "--quick"]
    if script == "protocols.py":
        data, weights = write_images(tmp_path / "images", 30, classes=3), write_weights(tmp_path / "w.safetensors")
        command += [str(weights), str(data), "--val", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) >= 1
    assert {path: path.stat().st_mtime_ns for path in (FOLDER / "results").iterdir()} == before


@pytest.mark.parametrize("path", sorted((FOLDER / "results").glob("*.json")), ids=lambda path: path.name)
def test_a_result_names_its_machine_versions_and_date(path: Path) -> None:
    machine = json.loads(path.read_text("utf-8"))["machine"]
    assert {"device", "threads", "python", "torch", "torchvision", "barlowtwins", "date"} <= machine.keys()
    assert (FOLDER / f"{path.stem.partition('-')[0]}.py").exists()  # of a script that measures several data sets
