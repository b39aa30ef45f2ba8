"""What an earlier version wrote keeps working: recipes, checkpoints and RUN folders, and also where settings are added.

`fixtures/run-0.1.0` is a RUN folder of version 0.1.0, stopped by --max-steps after 6 of 12 steps. That version wrote it
as this one would with `COMMAND`, and with the tiny backbone of `BACKBONE` in its table; report.html is left out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training import log, steps

import barlowtwins
from barlowtwins.cli import main
from barlowtwins.core.errors import ConfigError, DataError
from barlowtwins.models import resnet
from barlowtwins.runs import migrations
from barlowtwins.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from barlowtwins.runs.run_folder import RunFolder

OLD = Path(__file__).parent / "fixtures" / "run-0.1.0"
BACKBONE = "resnet8_x0_125"
TINY = resnet.Architecture((1, 1, 1, 0), multiplier=0.125)
COMMAND = (
    f"pretrain shapes:64 --backbone {BACKBONE} --projector 16-16 --batch-size 16 --epochs 3 --image-size 16 "
    "--workers 0 --device cpu --checkpoint-every 6 --log-every 2 --probe-every 2 --seed 3"
).split()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old RUN folder, whose backbone is known."""
    monkeypatch.setitem(resnet.BACKBONES, BACKBONE, TINY)
    return Path(shutil.copytree(OLD, tmp_path / "run"))


# A RUN folder of version 0.1.0 ----------------------------------------------------------------------------------------


def test_it_is_of_0_1_0_and_small() -> None:
    record = json.loads((OLD / "config.json").read_text())
    assert record["versions"]["barlowtwins"] == "0.1.0"
    assert "schema" not in record
    assert sum(path.stat().st_size for path in OLD.rglob("*") if path.is_file()) < 600_000


def test_it_resumes_where_it_stopped(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = log(OLD)
    assert main([*COMMAND, "--out", str(run)]) == 0
    said = capsys.readouterr().err
    assert "resuming at step 6" in said
    changes = [line for line in said.splitlines() if "changed since the checkpoint" in line]
    assert changes == ["changed since the checkpoint: max_steps was 6, is None"]
    assert log(run)[: len(before)] == before
    assert steps(run) == [2, 4, 6, 8, 10, 12]

    assert main([*COMMAND, "--out", str(tmp_path / "whole")]) == 0
    after, whole = ([line for line in log(folder) if "loss" in line][-3:] for folder in (run, tmp_path / "whole"))
    for ours, theirs in zip(after, whole, strict=True):
        assert ours["lr"] == theirs["lr"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)  # another version, perhaps another machine


def test_it_is_drawn_as_a_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["step"], told["steps"]) == (6, 12)
    page = (run / "report.html").read_text()
    assert BACKBONE in page
    assert "shapes:64" in page


def test_its_weights_are_as_good_as_0_1_0_found(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"evaluate knn shapes:64 --weights {run} --k 5 --workers 0 --device cpu --json"
    assert main(command.split()) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["accuracy"]["5"] == pytest.approx(14.0625, abs=2)  # of 64 images, one may fall otherwise elsewhere
    assert told["top5"]["5"] == pytest.approx(42.1875, abs=2)


# A version with more settings -----------------------------------------------------------------------------------------

GROW = {
    "config/pretraining.py": (
        "    backbone: str | None = None\n",
        '    sharpness: float = 0.25\n    """A flag."""\n    depth: int | None = None\n    """A setting, too."""\n',
    ),
    "config/settings.py": ("    chosen: tuple[str, ...]", "    depth: int = 3\n"),
}
RUNS = """
import sys
from barlowtwins.models import resnet
from barlowtwins.cli import main
resnet.BACKBONES[{name!r}] = resnet.Architecture((1, 1, 1, 0), multiplier=0.125)
for command in {commands!r}:
    print("exit", main(command), file=sys.stderr, flush=True)
"""


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package in which PretrainConfig has two fields more, and Settings one."""
    folder = tmp_path_factory.mktemp("grown")
    package = Path(barlowtwins.__file__).parent
    shutil.copytree(package, folder / "barlowtwins", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(package.parent / "weights", folder / "weights")
    for name, (place, lines) in GROW.items():
        path = folder / "barlowtwins" / name
        text = path.read_text("utf-8")
        assert text.count(place) == 1
        path.write_text(text.replace(place, lines + place), "utf-8")
    return folder


def with_more_settings(grown: Path, *commands: list[str]) -> str:
    """What the grown package says of each command, with its exit code."""
    done = subprocess.run(
        [sys.executable, "-c", RUNS.format(name=BACKBONE, commands=commands)],
        capture_output=True,
        text=True,
        cwd=grown,
        env={**os.environ, "PYTHONPATH": str(grown)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_setting_more_breaks_neither_recipe_nor_checkpoint_nor_run_folder(grown: Path, tmp_path: Path) -> None:
    run, drawn = (Path(shutil.copytree(OLD, tmp_path / name)) for name in ("run", "drawn"))
    recipe = tmp_path / "old.toml"
    shutil.copy(Path(barlowtwins.__file__).parent / "train" / "recipes" / "shapes.toml", recipe)
    said = with_more_settings(
        grown,
        ["report", str(drawn)],
        [*COMMAND, "--out", str(run), "--depth", "4"],
        [*COMMAND, "--out", str(run)],
        [*COMMAND, "--out", str(tmp_path / "new"), "--recipe", str(recipe), "--dry-run"],
    )
    assert [line for line in said.splitlines() if line.startswith("exit ")] == ["exit 0", "exit 1", "exit 0", "exit 0"]
    assert "was made with depth 3, not depth 4; set it back" in said
    assert "resuming at step 6" in said
    changes = {line for line in said.splitlines() if line.startswith("changed since")}
    assert changes == {"changed since the checkpoint: max_steps was 6, is None"}
    assert (drawn / "report.html").exists()
    written = json.loads((run / "config.json").read_text())
    assert (written["sharpness"], written["depth"]) == (0.25, 3)


# The schema and its migrations ----------------------------------------------------------------------------------------


def record(**settings: Any) -> dict[str, Any]:
    return {"lambd": 0.02, "batch_size": 16, **settings}


def written(folder: Path, settings: dict[str, Any]) -> tuple[Path, RunFolder]:
    """A checkpoint and a config.json with these settings."""
    run = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    run.write_config(settings)
    return save_checkpoint(folder, Checkpoint(1, {}, {}, settings, {"images": 3})), run


def test_records_carry_the_schema_and_come_back_without_it(tmp_path: Path) -> None:
    path, run = written(tmp_path, record())
    assert json.loads(run.config.read_text())["schema"] == migrations.SCHEMA
    assert torch.load(path, weights_only=True)["config"]["schema"] == migrations.SCHEMA
    assert load_checkpoint(path).config == record()
    read = run.read_config()
    assert "schema" not in read
    assert {name: read[name] for name in record()} == record()
    assert (read["mixup"], read["log_every"]) == (0.0, 10)  # defaults, which this record lacks


def test_older_records_are_migrated_one_schema_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, run = written(tmp_path, record())
    monkeypatch.setattr(migrations, "SCHEMA", 4)
    monkeypatch.setitem(migrations.MIGRATIONS, 2, lambda old: {**old, "lambd": old["lambd"] * 10})
    monkeypatch.setitem(migrations.MIGRATIONS, 3, lambda old: {"weight": old.pop("lambd"), **old})
    expected = {"weight": 0.2, "batch_size": 16}
    assert load_checkpoint(path).config == expected
    read = run.read_config()
    assert {name: read[name] for name in expected} == expected
    assert migrations.current(record(), path) == expected  # of schema 1, without a number
    assert migrations.current({"schema": 3, "lambd": 5}, path) == {"weight": 5}


@pytest.mark.parametrize("schema", [migrations.SCHEMA + 1, 0, "2", None])
def test_records_of_a_later_version_are_refused(tmp_path: Path, schema: Any) -> None:
    path, run = written(tmp_path, record(schema=schema))
    for reading in (lambda: load_checkpoint(path), run.read_config):
        with pytest.raises(ConfigError, match=rf"has settings of schema {schema!r}, this version of barlowtwins reads"):
            reading()


def test_every_older_schema_has_a_migration() -> None:
    assert sorted(migrations.MIGRATIONS) == list(range(1, migrations.SCHEMA))


@pytest.mark.parametrize("text", ["", "[1]", None])
def test_what_is_not_a_run_folder_is_told(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(DataError, match="is not a folder that `barlowtwins pretrain` has made"):
        RunFolder(tmp_path).read_config()
