"""The RUN folder's files: a log that is always whole lines, and weights that are one file for one network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors import safe_open
from training import full_disk

from barlowtwins.config import PretrainConfig
from barlowtwins.core.errors import OutputError
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.runs.run_folder import RunFolder
from barlowtwins.train.recipes import record, resolve
from barlowtwins.version import __version__
from barlowtwins.zoo.weights import load_weights

RECORDS = [{"step": step, "epoch": step / 4, "loss": 100.0 / step} for step in range(1, 9)]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(OutputError, match="run is a file; --out must name a folder"):
        RunFolder(tmp_path / "run")


# metrics.jsonl --------------------------------------------------------------------------------------------------------


def test_lines_are_appended_and_read_back(run: RunFolder) -> None:
    assert run.read_log() == []
    run.log(RECORDS[:1])
    run.log([])
    run.log(RECORDS[1:3])
    assert run.read_log() == RECORDS[:3]
    assert [json.loads(line) for line in run.metrics.read_text().splitlines()] == RECORDS[:3]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 400))
def test_a_log_cut_anywhere_keeps_its_whole_lines(run: RunFolder, cut: int) -> None:
    whole = "".join(json.dumps(line) + "\n" for line in RECORDS).encode()
    run.metrics.write_bytes(whole[:cut])
    kept = run.read_log()
    assert kept == RECORDS[: len(kept)]
    complete = whole[:cut].count(b"\n")
    assert len(kept) in (complete, complete + (whole[cut : cut + 1] == b"\n"))
    run.rewind_log(100)
    run.log([{"step": 9}])
    assert run.read_log() == [*kept, {"step": 9}]


def test_going_on_forgets_what_came_after(run: RunFolder) -> None:
    run.log(RECORDS)
    assert run.rewind_log(5) == RECORDS[:5]
    assert run.read_log() == RECORDS[:5]
    assert run.rewind_log(0) == []
    assert run.metrics.read_bytes() == b""


@pytest.mark.parametrize("odd", [b"\xff\xfe\x00", b"3", b"[1]", b"{}", b'{"step": "1"}', b"null", b"{" * 50, b"NaN"])
def test_lines_that_are_no_records_are_left_out(run: RunFolder, odd: bytes) -> None:
    lines = [json.dumps(line).encode() for line in RECORDS]
    run.metrics.write_bytes(b"\n".join([*lines[:3], odd, *lines[3:]]) + b"\n")
    assert run.read_log() == RECORDS
    assert run.rewind_log(4) == RECORDS[:4]


def test_a_full_disk_leaves_whole_lines(run: RunFolder) -> None:
    run.log(RECORDS[:2])
    size = run.metrics.stat().st_size
    for room in (0, 1, 30, 60):
        with full_disk(size + room), pytest.raises(OSError, match="too large"):
            run.log(RECORDS[2:5])
        assert run.metrics.stat().st_size == size
    run.log(RECORDS[2:5])
    assert run.read_log() == RECORDS[:5]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_reason_is_the_disks_own(run: RunFolder) -> None:
    run.metrics.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        run.log(RECORDS)


# config.json and what processes leave behind --------------------------------------------------------------------------


def test_the_configuration_is_kept_with_versions(run: RunFolder) -> None:
    config = PretrainConfig("shapes", str(run.path), lambd=0.02)
    run.write_config({**record(config, resolve(config, channels=3, size=(32, 32))), "world_size": 1})
    kept = json.loads(run.config.read_text())
    assert (kept["data"], kept["lambd"], kept["optimizer"], kept["world_size"]) == ("shapes", 0.02, "adamw", 1)
    assert kept["versions"]["barlowtwins"] == __version__
    assert kept["versions"]["torch"] == torch.__version__


def test_what_killed_processes_left_is_swept_however_young(run: RunFolder) -> None:
    (run.path / "checkpoints").mkdir()
    for name in (".config.json.1.aa.partial", "checkpoints/.step-00000001.pt.2.bb.partial"):
        (run.path / name).write_text("half")
    for name in ("mine.partial", "checkpoints/step-00000001.pt"):
        (run.path / name).write_text("whole")
    run.sweep()
    left = sorted(path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file())
    assert left == ["checkpoints/step-00000001.pt", "mine.partial"]


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> BarlowTwins:
    torch.manual_seed(0)
    return BarlowTwins("resnet10_x0_5", "16-8", stem="small-stride2", channels=1)


PREPROCESSING = Preprocessing(28, None, channels=1, mean=(0.3,), std=(0.4,))


def write(run: RunFolder, model: BarlowTwins) -> None:
    run.write_weights(model, name="resnet10_x0_5", stem="small-stride2", preprocessing=PREPROCESSING)


def test_weights_come_back_as_they_were(run: RunFolder, model: BarlowTwins) -> None:
    write(run, model)
    for full in (False, True):
        loaded = load_weights(run.path, full=full)
        assert (loaded.backbone_name, loaded.stem, loaded.channels) == ("resnet10_x0_5", "small-stride2", 1)
        assert loaded.preprocessing == PREPROCESSING
        for key, value in model.backbone.state_dict().items():
            assert torch.equal(loaded.backbone[key], value)
        assert (loaded.projector is not None) == full
        for key, value in (loaded.projector or {}).items():
            assert torch.equal(value, model.state_dict()[key])


def test_the_backbones_file_has_torchvisions_names_in_fp32(run: RunFolder, model: BarlowTwins) -> None:
    write(run, model)
    with safe_open(run.backbone, "pt") as file:
        keys = set(file.keys())
        assert keys == set(model.backbone.state_dict())
        assert not any(key.startswith("fc") for key in keys)
        assert {file.get_tensor(key).dtype for key in keys} == {torch.float32, torch.int64}  # counters are whole
        about = file.metadata()
    assert {name: about[name] for name in ("format", "barlowtwins", "backbone", "stem", "channels")} == {
        "format": "pt",
        "barlowtwins": __version__,
        "backbone": "resnet10_x0_5",
        "stem": "small-stride2",
        "channels": "1",
    }
    assert Preprocessing.from_dict(json.loads(about["preprocessing"])) == PREPROCESSING
    with safe_open(run.model, "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
        assert file.metadata() == about


def test_the_same_network_makes_the_same_bytes(run: RunFolder, model: BarlowTwins) -> None:
    """Their digest says which weights an embedding was made with; safetensors alone would shuffle the metadata."""
    seen = set()
    for _ in range(8):
        write(run, model)
        seen.add((run.backbone.read_bytes(), run.model.read_bytes()))
    assert len(seen) == 1
    for path in (run.backbone, run.model):  # numbers begin where a reader can map them
        assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_a_full_disk_keeps_the_weights_of_before(run: RunFolder, model: BarlowTwins) -> None:
    write(run, model)
    before = run.backbone.read_bytes()
    with full_disk(10**6), pytest.raises(OutputError, match="no space left to write"):
        write(run, model)
    assert run.backbone.read_bytes() == before
    assert not list(run.path.glob(".*"))
