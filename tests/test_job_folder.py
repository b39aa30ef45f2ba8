"""A folder belongs to one job: begun, continued, refused for another, replaced without a mix, swept."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from barlowtwins.config import FinetuneConfig
from barlowtwins.core.distributed import World
from barlowtwins.core.errors import OutputError, RunLockedError
from barlowtwins.evaluate.finetune import evaluate_finetune
from barlowtwins.runs.job_folder import JobFolder, open_job

ALONE = World(0, 1, torch.device("cpu"))
FIRST, OTHER = {"evaluation": "knn", "k": [5]}, {"evaluation": "knn", "k": [20]}


def begin(folder: Path, job: dict[str, Any], *, overwrite: bool = False) -> None:
    with open_job(str(folder), job, overwrite=overwrite, world=ALONE):
        pass


def fill(folder: Path) -> None:
    """What jobs leave: features, checkpoints and results."""
    for name in ("features/train/00000-of-00001.npz", "checkpoints/step-00000003.pt", "results.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("of the first job")


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_same_job_continues_and_another_one_replaces_all_or_is_refused(tmp_path: Path) -> None:
    begin(tmp_path, FIRST)
    fill(tmp_path)
    (tmp_path / "notes.txt").write_text("of a person")
    before = files(tmp_path)
    begin(tmp_path, FIRST)
    assert files(tmp_path) == before
    with pytest.raises(OutputError, match=r"holds another evaluation \(k was \[5\], is \[20\]\); choose another --out"):
        begin(tmp_path, OTHER)
    assert files(tmp_path) == before
    begin(tmp_path, OTHER, overwrite=True)
    assert files(tmp_path) == ["job.json", "notes.txt"]
    assert json.loads((tmp_path / "job.json").read_text()) == OTHER


def test_killed_while_it_is_replaced_nothing_is_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record goes last: as long as anything of a job is there, so is its owner."""
    begin(tmp_path, FIRST)
    fill(tmp_path)
    unlink = Path.unlink

    def dies(path: Path, missing_ok: bool = False) -> None:
        if path.name == "results.json":
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "unlink", dies)
        begin(tmp_path, OTHER, overwrite=True)
    assert files(tmp_path) == ["job.json", "results.json"]
    with pytest.raises(OutputError, match="holds another evaluation"):
        begin(tmp_path, OTHER)
    begin(tmp_path, OTHER, overwrite=True)
    assert files(tmp_path) == ["job.json"]


def test_what_no_job_made_is_neither_used_nor_removed(tmp_path: Path) -> None:
    """Such as features or checkpoints of a person's own, in the folder that a command is called in."""
    fill(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"holds checkpoints, features, results\.json, but no job\.json"):
            begin(tmp_path, FIRST, overwrite=overwrite)
    assert len(files(tmp_path)) == 3


def test_a_classifier_that_was_saved_there_may_stay(tmp_path: Path) -> None:
    """As by --save-head runs/pets/head.safetensors, before --out runs/pets."""
    (tmp_path / "head.safetensors").write_text("of a person")
    begin(tmp_path, FIRST)
    assert files(tmp_path) == ["head.safetensors", "job.json"]


def test_an_evaluation_does_not_touch_a_pretraining_run(tmp_path: Path) -> None:
    """Fine-tuning into it would write over its backbone, and --overwrite would remove its checkpoints."""
    (tmp_path / "run").mkdir()
    weights = tiny.write_weights(tmp_path / "run" / "backbone.safetensors")
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "run" / "checkpoints").mkdir()
    before = files(tmp_path), weights.read_bytes()
    for overwrite in (False, True):
        config = FinetuneConfig(
            "shapes:20", weights=str(weights), out=str(weights.parent), overwrite=overwrite, device="cpu", workers=0
        )
        with pytest.raises(
            OutputError, match=r"holds backbone\.safetensors, checkpoints, but no job\.json: not from an evalua"
        ):
            evaluate_finetune(config)
    assert (files(tmp_path), weights.read_bytes()) == before


def test_what_killed_processes_left_half_written_is_swept_wherever_it_is(tmp_path: Path) -> None:
    begin(tmp_path, FIRST)
    fill(tmp_path)
    kept = files(tmp_path)
    (tmp_path / "mine").mkdir()
    for folder in (".", "features/train", "checkpoints", "mine"):
        (tmp_path / folder / ".x.1.0a.partial").write_text("half")
    begin(tmp_path, FIRST)
    assert files(tmp_path) == sorted([*kept, "mine/.x.1.0a.partial"])  # that folder is no job's


def test_one_process_at_a_time_and_several_locks(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "new", FIRST)
    with folder.hold(), folder.hold(".part.lock"):
        with pytest.raises(RunLockedError, match=f"in use by process {os.getpid()}"), folder.hold():
            pass
        with pytest.raises(RunLockedError):
            begin(tmp_path / "new", FIRST)
    begin(tmp_path / "new", FIRST)


def test_older_records_mean_what_they_meant(tmp_path: Path) -> None:
    """A field that was added later has the value that everything had before."""
    older = JobFolder(tmp_path, {"seed": 0}, contents=("*.npz",))
    older.begin()
    (tmp_path / "rows.npz").write_text("rows")
    now = {"seed": 0, "runtime": "torch"}
    newer = JobFolder(tmp_path, now, contents=older.contents, earlier={"runtime": "torch"})
    assert newer.is_begun() and not newer.changes({"seed": 0, "unknown": 1})
    other = JobFolder(tmp_path, {**now, "runtime": "onnx"}, contents=older.contents, earlier={"runtime": "torch"})
    assert other.changes(other.begun_by()) == {"runtime": ("torch", "onnx")}
    newer.begin()
    assert newer.left() == [tmp_path / "rows.npz"]
    other.begin()
    assert other.left() == [] and other.begun_by() == other.record


def test_only_the_process_that_writes_touches_the_folder(tmp_path: Path) -> None:
    class Second(World):
        def wait(self) -> None:
            waited.append(time.monotonic())

    waited: list[float] = []
    with open_job(str(tmp_path / "out"), FIRST, overwrite=False, world=Second(1, 2, torch.device("cpu"))) as folder:
        assert folder == tmp_path / "out" and not folder.exists() and len(waited) == 1
