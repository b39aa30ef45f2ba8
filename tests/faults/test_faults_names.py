"""FAULT 27, at length: file and class names of any bytes, in every file and page that is written of them.

A name that is not UTF-8 keeps its bytes (`surrogateescape`) in index.csv and labels.csv: `os.fsencode` of what is
read names the file again; in pages and in Parquet, which know text only, its odd bytes are spelled out.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from tiny import write_images, write_weights

from barlowtwins.cli import main
from barlowtwins.config import ClassifyConfig, EmbedConfig, MapConfig, NeighborsConfig
from barlowtwins.embedding.embed import embed
from barlowtwins.embedding.embeddings import as_data, open_embeddings
from barlowtwins.evaluate.classify import classify
from barlowtwins.reports.map import map
from barlowtwins.reports.neighbors import neighbors
from barlowtwins.zoo.heads import Belonging, Head, save_head, tensors_digest
from barlowtwins.zoo.weights import load_weights

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes are Linux's")

NAMES = [
    b"caf\xe9",
    b"\xff\xfe",
    b"a,b",
    b'quo"te',
    b"new\nline",
    b"carriage\rreturn",
    b" space ",
    b"=1+1",
    b"tab\t",
    b"\xed\xa0\x80",
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights; a folder for each of `NAMES`, with images of all of them; one image is unreadable."""
    folder = tmp_path_factory.mktemp("work")
    write_weights(folder / "w.safetensors")
    plain = write_images(folder / "plain", 1) / "0000.png"
    for label in NAMES:
        for name in NAMES:
            place = folder / "images" / os.fsdecode(label)
            place.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copy(plain, place / os.fsdecode(name + b".png"))
            except OSError:
                pytest.skip("this file system has only Unicode names")
    (folder / "images" / os.fsdecode(NAMES[0]) / os.fsdecode(NAMES[1] + b".png")).write_bytes(b"")
    return folder


def expected() -> list[bytes]:
    return sorted((b"%b/%b.png" % (label, name) for label in NAMES for name in NAMES), key=os.fsdecode)


@pytest.fixture(scope="module")
def emb(work: Path) -> Path:
    out = work / "emb"
    embed(EmbedConfig(str(work / "images"), str(work / "w.safetensors"), str(out), device="cpu", workers=0))
    return out


def test_27_index_csv_names_the_files_again(work: Path, emb: Path) -> None:
    entries = list(open_embeddings(emb).index())
    assert [os.fsencode(entry.path) for entry in entries] == expected()
    assert {os.fsencode(entry.label) for entry in entries} == set(NAMES)
    assert all((work / "images" / entry.path).exists() for entry in entries)
    assert sum(entry.status != "ok" for entry in entries) == 1
    written = (emb / "index.csv").read_bytes()
    assert b"caf\xe9" in written  # the bytes themselves


def test_27_labels_csv_names_the_files_again(work: Path, tmp_path: Path) -> None:
    import torch

    weights = load_weights(work / "w.safetensors")
    classes = tuple(sorted(map_names()))
    head = Head(
        torch.randn(len(classes), 256),
        torch.zeros(len(classes)),
        classes,
        Belonging(weights.backbone_name, tensors_digest(weights.backbone), weights=str(work / "w.safetensors")),
        weights.preprocessing,
    )
    save_head(tmp_path / "head.safetensors", head)
    out = tmp_path / "labels.csv"
    classify(
        ClassifyConfig(
            str(work / "images"), head=str(tmp_path / "head.safetensors"), out=str(out), device="cpu", workers=0
        )
    )
    with open(out, encoding="utf-8", errors="surrogateescape", newline="") as file:
        heads, *rows = csv.reader(file)
    assert [os.fsencode(as_data(row[heads.index("path")])) for row in rows] == expected()
    named = {row[3] for row in rows if row[2] == "ok"}
    assert named <= set(classes)


def map_names() -> list[str]:
    return [os.fsdecode(name) for name in NAMES]


def test_27_pages_and_parquet_spell_them_out(work: Path, emb: Path, tmp_path: Path) -> None:
    page = tmp_path / "map.html"
    map(MapConfig(str(emb), str(page), method="pca", export=str(tmp_path / "map.parquet")))
    assert "caf" in page.read_text("utf-8")
    out = tmp_path / "emb"
    embed(
        EmbedConfig(
            str(work / "images"), str(work / "w.safetensors"), str(out), format="parquet", device="cpu", workers=0
        )
    )
    assert len(list(open_embeddings(out).index())) == len(NAMES) ** 2


def test_27_results_are_printed(emb: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["neighbours", str(emb), "--query", "0", "--k", "99", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(found["neighbours"]) == 98  # all but the row itself and the unreadable one
    assert main(["neighbours", str(emb), "--query", "0", "--k", "99"]) == 0
    assert "\x00" not in capsys.readouterr().out
    result = neighbors(NeighborsConfig(str(emb), query="0", k=99))
    assert {os.fsencode(each.path) for each in result.neighbours} < set(expected())
