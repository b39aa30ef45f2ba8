"""Folders handed on by others: nothing is opened by their word alone, and nothing but our errors comes out."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from barlowtwins.config import MapConfig, NeighborsConfig
from barlowtwins.core.errors import CheckpointError, ConfigError, DataError, WeightsError
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.embedding.embeddings import IndexRow, open_embeddings, write_index
from barlowtwins.reports.map import map as draw_map
from barlowtwins.reports.neighbors import neighbors
from barlowtwins.reports.report import write_report
from barlowtwins.reports.thumbnails import images_of
from barlowtwins.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from barlowtwins.runs.run_folder import RunFolder

URLS = ["http://127.0.0.1:{port}/x", "webhdfs://127.0.0.1:{port}/x", "ftp://127.0.0.1:{port}/x", "reference://x",
        "http://127.0.0.1:{port}/x.tar", "simplecache::http://127.0.0.1:{port}/x"]  # fmt: skip


def folder_of(place: Path, keys: list[str], **says: Any) -> Path:
    """An EMB folder of three numbers a row."""
    place.mkdir()
    features = np.eye(len(keys), 3, dtype=np.float32)
    np.save(place / "embeddings.npy", features)
    with open(place / "index.csv", "wb") as file:
        write_index(file, (IndexRow(row, key, "cat", "ok") for row, key in enumerate(keys)))
    meta = {"layout": 1, "format": "npy", "rows": len(keys), "dim": 3, "failed": 0, "root": None, "weights": "none",
            "weights_name": "none", "weights_sha256": "0" * 64, "data": "photos", "data_fingerprint": "",
            "classes": ["cat"], "preprocessing": {}}  # fmt: skip
    (place / "meta.json").write_text(json.dumps({**meta, **says}))
    return place


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), "red").save(folder / name)
    return folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that holds nothing."""
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("url", URLS)
def test_74_a_url_in_a_folder_is_not_opened(
    url: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        named = url.format(port=server.getsockname()[1])
        emb = folder_of(tmp_path / "emb", ["a.png", "b.png"], data=named, weights=named)
        draw_map(MapConfig(str(emb), out="map.html", workers=0, clusters=1))
        assert f"repeat it as --data {named}" in capsys.readouterr().err
        with pytest.raises(DataError, match="repeat it as --data"):
            neighbors(NeighborsConfig(str(emb), "0", sheet="sheet.png"))
        Image.new("RGB", (8, 8)).save("query.png")
        with pytest.raises(WeightsError, match="repeat it as --weights"):
            neighbors(NeighborsConfig(str(emb), "query.png"))
        server.settimeout(0)
        with pytest.raises(BlockingIOError):  # nobody has knocked
            server.accept()


def test_a_url_that_the_user_repeats_is_opened(work: Path, tmp_path: Path) -> None:
    emb = folder_of(tmp_path / "emb", ["a.png"], data="memory://absent/x.tar")
    assert images_of(open_embeddings(emb), data="memory://absent/x.tar") is None  # it was looked for
    with pytest.raises(DataError, match="repeat it as --data"):
        images_of(open_embeddings(emb))


def test_images_outside_the_working_folder_are_read_when_the_user_names_them(
    photos: Path, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    emb = folder_of(tmp_path / "emb", ["a.png", "b.png"], root=str(photos))
    assert draw_map(MapConfig(str(emb), out="map.html", workers=0, clusters=1)).thumbnails == 0
    assert f"repeat it as --data {photos}" in capsys.readouterr().err
    named = MapConfig(str(emb), out="map.html", workers=0, clusters=1, data=str(photos))
    assert draw_map(named).thumbnails == 2
    inside = shutil.copytree(photos, work / "photos")
    emb = folder_of(tmp_path / "other", ["a.png", "b.png"], root=str(inside))
    assert draw_map(MapConfig(str(emb), out="map.html", workers=0, clusters=1)).thumbnails == 2


@pytest.mark.parametrize("key", ["../secret.png", "/etc/hostname", "x/../../secret.png"])
def test_a_key_that_leaves_its_folder_is_refused(key: str, photos: Path, work: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    emb = folder_of(tmp_path / "emb", ["a.png", key], root=str(photos))
    with pytest.raises(DataError, match="outside of"):
        images_of(open_embeddings(emb), data=str(photos))
    emb = folder_of(tmp_path / "other", [key, "a.png"])
    assert images_of(open_embeddings(emb)) is None


def test_a_data_set_of_another_size_is_not_made(work: Path, tmp_path: Path) -> None:
    emb = folder_of(tmp_path / "emb", ["a", "b"], data="shapes:99999999999")
    assert images_of(open_embeddings(emb)) is None


def test_fields_that_are_missing_or_wrong_are_told(work: Path, tmp_path: Path) -> None:
    emb = folder_of(tmp_path / "emb", ["a", "b"])
    (emb / "meta.json").write_text('{"layout": 1, "format": "npy", "rows": 2, "dim": 3}')
    with pytest.raises(DataError, match="does not say 'failed'"):
        neighbors(NeighborsConfig(str(emb), "0"))
    for wrong in ({"rows": "2"}, {"rows": -1}, {"dim": 0}, {"format": "pkl"}, {"root": 3}, {"layout": None}):
        emb = folder_of(tmp_path / f"emb{wrong}", ["a", "b"], **wrong)
        with pytest.raises(DataError, match="are damaged"):
            open_embeddings(emb)


def test_an_index_that_is_cut_at_a_line_end_is_refused(work: Path, tmp_path: Path) -> None:
    emb = folder_of(tmp_path / "emb", [f"{n}.png" for n in range(4)])
    lines = (emb / "index.csv").read_bytes().splitlines(keepends=True)
    (emb / "index.csv").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(DataError, match="it has 3 rows of 4"):
        list(open_embeddings(emb).index())
    (emb / "index.csv").write_bytes(lines[0])
    with pytest.raises(DataError, match="too short for 4 rows"):
        open_embeddings(emb)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have names on Unix only")
@pytest.mark.parametrize("name", ["embeddings.npy", "index.csv", "meta.json"])
def test_67_a_pipe_in_the_place_of_a_file_is_refused_at_once(name: str, work: Path, tmp_path: Path) -> None:
    emb = folder_of(tmp_path / "emb", ["a"])
    (emb / name).unlink()
    os.mkfifo(emb / name)
    command = [sys.executable, "-m", "barlowtwins", "map", str(emb), "--out", "map.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_a_cell_that_a_spreadsheet_takes_for_a_formula_is_text_and_reads_back(work: Path, tmp_path: Path) -> None:
    keys = ["=1+1.png", "+a.png", "-a.png", "@a.png", "'=a.png", "'a.png", "a=b.png", "''+x.png"]
    emb = folder_of(tmp_path / "emb", keys)
    assert [row.path for row in open_embeddings(emb).index()] == keys
    written = (emb / "index.csv").read_text().splitlines()[1:]
    assert [line.split(",")[1][0] for line in written] == ["'"] * 6 + ["a", "'"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", '{"lambd": "x"}'),
        ("config.json", '{"plan": {"steps": "many"}}'),
        ("config.json", "[" * 500_000),
        ("config.json", '{"lambd": ' + "9" * 5000 + "}"),
        ("config.json", '{"classes": 3}'),
    ],
)
def test_70_a_run_of_a_stranger_is_reported_or_refused(
    name: str, content: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "run").mkdir()
    (work / "run" / name).write_text(content)
    with pytest.raises(DataError) as caught:
        RunFolder(work / "run").read_config()
    assert "\n" not in str(caught.value)


def test_70_lines_that_no_run_writes_are_left_out(work: Path) -> None:
    run = RunFolder(work)
    lines = ['{"step": 1, "loss": 2}', '{"step": 2, "loss": "x"}', '{"step": -1}', '{"step": 1e400}', "[" * 9000,
             '{"step": ' + "9" * 5000 + "}", '{"step": 3, "loss": null}']  # fmt: skip
    run.metrics.write_text("\n".join(lines))
    assert [record["step"] for record in run.read_log()] == [1, 3]
    run.metrics.unlink()
    run.metrics.mkdir()
    with pytest.raises(DataError, match=r"cannot read .*metrics\.jsonl"):
        run.read_log()


@pytest.mark.parametrize(
    "wrong",
    [{"step": 10**18}, {"step": -1}, {"model": {"a": 3}}, {"model": {"a": torch.zeros(2, dtype=torch.complex64)}},
     {"model": {3: torch.zeros(2)}}, {"step": "3"}, {"optimizer": []}],
)  # fmt: skip
def test_70_a_checkpoint_that_no_run_writes_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    parts: dict[str, Any] = {"step": 3, "model": {"a": torch.zeros(2)}, "optimizer": {}, "config": {}, "data": {}}
    made = save_checkpoint(tmp_path, Checkpoint(**parts))
    assert load_checkpoint(made).step == 3
    buffer = io.BytesIO()
    torch.save({"format": 1, **parts, **wrong}, buffer)
    seal = f"\nsha256 {hashlib.sha256(buffer.getvalue()).hexdigest()}\n"
    made.write_bytes(buffer.getvalue() + seal.encode())
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(made)
    assert str(made) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "asked",
    [{"image_size": 60000}, {"image_size": 28.5}, {"resize": 10**9}, {"channels": 10**6}, {"image_size": True},
     {"image_size": "224"}, {"channels": None}],
)  # fmt: skip
def test_69_preprocessing_that_asks_for_memory_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Preprocessing.from_dict(asked)


def test_70_a_report_that_cannot_be_drawn_is_an_error_in_one_line(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise KeyError("what\nnobody foresaw")

    monkeypatch.setattr("barlowtwins.reports.report.build", fail)
    (work / "config.json").write_text("{}")
    with pytest.raises(DataError, match="holds what no run writes, so it has no report"):
        write_report(work)
