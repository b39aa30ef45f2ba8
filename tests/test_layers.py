"""The layers of the package, as `make lint` checks them: a folder imports only from the rows below its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter", reason="the layers are checked by import-linter (test extra)")

ROOT = Path(__file__).parent.parent
LINT = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its contract, to be broken."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "barlowtwins", tmp_path / "barlowtwins", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def _lint(folder: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache", "--no-logo"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        timeout=120,
        check=False,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_no_folder_imports_from_a_row_above(copy: Path) -> None:
    code, said = _lint(copy)
    assert code == 0, said
    assert "0 broken" in said


@pytest.mark.parametrize(
    "line",
    [
        "from barlowtwins.train import plan",
        "def _late(): from barlowtwins.train import plan",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING: from barlowtwins.train import plan",
        "import barlowtwins.train.plan",
    ],
    ids=["plain", "lazy", "type-only", "dotted"],
)
def test_an_import_from_above_is_an_error(copy: Path, line: str) -> None:
    with (copy / "barlowtwins" / "metrics" / "nearest.py").open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    code, said = _lint(copy)
    assert code == 1
    assert "barlowtwins.metrics.nearest -> barlowtwins.train.plan" in said


def test_a_public_name_is_no_way_around(copy: Path) -> None:
    """The package's own __init__ leads to everything."""
    with (copy / "barlowtwins" / "metrics" / "nearest.py").open("a", encoding="utf-8") as file:
        file.write("\nimport barlowtwins\n")
    code, said = _lint(copy)
    assert code == 1
    assert "barlowtwins.metrics.nearest -> barlowtwins" in said


def test_a_folder_without_a_row_is_an_error(copy: Path) -> None:
    (copy / "barlowtwins" / "helpers").mkdir()
    (copy / "barlowtwins" / "helpers" / "__init__.py").touch()
    code, said = _lint(copy)
    assert code == 1
    assert "helpers" in said
