"""Neighbours in an EMB folder, compared with a full sort of all cosines."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import write_images, write_weights

from barlowtwins.cli import main
from barlowtwins.config import EmbedConfig, NeighborsConfig
from barlowtwins.core.errors import DataError, UsageError, WeightsError
from barlowtwins.embedding.embed import embed
from barlowtwins.embedding.embeddings import open_embeddings
from barlowtwins.reports.neighbors import neighbors


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, thirteen images of two classes of which one cannot be read and two are alike, and their EMB folder."""
    work = tmp_path_factory.mktemp("work")
    write_weights(work / "tiny.safetensors")
    images = write_images(work / "images", 13, classes=2)
    (images / "class0" / "0004.png").write_bytes(b"")
    shutil.copy(images / "class1" / "0007.png", images / "class0" / "twin.png")
    config = EmbedConfig(str(images), str(work / "tiny.safetensors"), str(work / "out"), device="cpu", workers=0)
    embed(config)
    return work


def by_sorting(work: Path, query: np.ndarray, without: int = -1) -> list[tuple[int, float]]:
    rows = open_embeddings(work / "out").features.astype(np.float64)
    cosine = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    order = [row for row in np.argsort(-cosine, kind="stable") if row != without and not np.isnan(cosine[row])]
    return [(int(row), float(cosine[row])) for row in order]


def test_a_row_is_compared_with_all_others(work: Path) -> None:
    opened = open_embeddings(work / "out")
    index = list(opened.index())
    row = next(entry.row for entry in index if entry.path == "class1/0007.png")
    twin = next(entry.row for entry in index if entry.path == "class0/twin.png")
    result = neighbors(NeighborsConfig(str(work / "out"), str(row), k=5))
    expected = by_sorting(work, opened.features[row].astype(np.float64), without=row)[:5]
    assert [found.row for found in result.neighbours] == [row for row, _ in expected]
    np.testing.assert_allclose(
        [found.cosine for found in result.neighbours], [cosine for _, cosine in expected], atol=1e-6
    )
    assert result.query == "class1/0007.png"
    assert result.neighbours[0].row == twin and result.neighbours[0].cosine == pytest.approx(1)
    for found in result.neighbours:
        assert (found.path, found.label) == index[found.row][1:3]


def test_an_image_file_is_embedded_as_the_rows_were(work: Path) -> None:
    image = work / "images" / "class1" / "0005.png"
    result = neighbors(NeighborsConfig(str(work / "out"), str(image), k=3))
    assert result.neighbours[0].path == "class1/0005.png"
    assert result.neighbours[0].cosine == pytest.approx(1, abs=1e-5)
    assert len(result.neighbours) == 3


def test_other_preprocessing_than_the_weights_own_is_followed(work: Path, tmp_path: Path) -> None:
    config = EmbedConfig(
        str(work / "images"), str(work / "tiny.safetensors"), str(tmp_path / "out"), device="cpu", workers=0
    )
    embed(replace(config, image_size=16, normalize=True))
    image = work / "images" / "class1" / "0005.png"
    first = neighbors(NeighborsConfig(str(tmp_path / "out"), str(image), k=1)).neighbours[0]
    assert first.path == "class1/0005.png" and first.cosine == pytest.approx(1, abs=1e-5)


def test_all_readable_rows_at_most(work: Path) -> None:
    rows = [found.row for found in neighbors(NeighborsConfig(str(work / "out"), "0", k=1000)).neighbours]
    bad = next(entry.row for entry in open_embeddings(work / "out").index() if entry.status != "ok")
    assert sorted(rows) == [row for row in range(1, 14) if row != bad]


def test_what_cannot_be_asked_is_told(work: Path, tmp_path: Path) -> None:
    out = str(work / "out")
    bad = next(entry.row for entry in open_embeddings(out).index() if entry.status != "ok")
    with pytest.raises(UsageError, match=r"row 14 does not exist: .* has rows 0 to 13"):
        neighbors(NeighborsConfig(out, "14"))
    with pytest.raises(DataError, match=f"row {bad} .*has no features .*; choose another row"):
        neighbors(NeighborsConfig(out, str(bad)))
    with pytest.raises(DataError, match=r"cannot read .*absent\.png"):
        neighbors(NeighborsConfig(out, str(tmp_path / "absent.png")))
    with pytest.raises(DataError, match="is not a folder that"):
        neighbors(NeighborsConfig(str(tmp_path), "0"))


def test_weights_that_changed_or_went_are_told(work: Path, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "tiny.safetensors")
    out = str(tmp_path / "out")
    embed(EmbedConfig(str(work / "images"), str(weights), out, device="cpu", workers=0))
    image = str(work / "images" / "class1" / "0005.png")
    write_weights(weights, seed=1)
    with pytest.raises(WeightsError, match=r"has changed since .*; restore it, or embed again"):
        neighbors(NeighborsConfig(out, image))
    weights.unlink()
    with pytest.raises(WeightsError, match=r"tiny\.safetensors"):
        neighbors(NeighborsConfig(out, image))
    assert neighbors(NeighborsConfig(out, "0")).neighbours  # rows need no weights


def test_preprocessing_that_cannot_be_is_told(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "out", tmp_path / "out")
    meta = tmp_path / "out" / "meta.json"
    record = json.loads(meta.read_text())
    meta.write_text(json.dumps({**record, "preprocessing": {**record["preprocessing"], "image_size": 10**9}}))
    image = str(work / "images" / "class1" / "0007.png")
    with pytest.raises(DataError, match=r"the preprocessing that .* names cannot be: .*; embed again"):
        neighbors(NeighborsConfig(str(tmp_path / "out"), image))


def test_from_the_command_line(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["neighbours", str(work / "out"), "--query", "0", "--k", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [set(found) for found in result["neighbours"]] == [{"row", "path", "label", "cosine"}] * 2
    assert result["label"] == "class0" and result["sheet"] is None
    assert main(["neighbours", str(work / "out"), "--query", "0", "--k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "nearest to class0/0000.png (class0):"
    assert lines[1].split() == ["cosine", "row", "path", "label"]
    assert len(lines) == 4


def test_the_label_of_a_file_is_known_where_it_is_one_of_the_rows(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = work / "images" / "class1" / "0005.png"
    shutil.copy(image, tmp_path / "other.png")
    monkeypatch.chdir(image.parent)
    found = [
        neighbors(NeighborsConfig(str(work / "out"), str(query), k=1))
        for query in (image, "0005.png", tmp_path / "other.png")
    ]
    assert [each.label for each in found] == ["class1", "class1", ""]
    assert found[2].summary().startswith(f"nearest to {tmp_path / 'other.png'}:\n")
