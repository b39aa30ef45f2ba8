"""The EMB folder: what is in it, and when it is refused. (Kills, signals and full disks: tests/faults.)"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import DIM, write_images, write_weights

from barlowtwins.config import EmbedConfig
from barlowtwins.core.errors import MissingExtraError, OutputError
from barlowtwins.core.files import sha256_of
from barlowtwins.data.open import open_source
from barlowtwins.embedding.embed import EmbedResult, embed
from barlowtwins.embedding.embedder import load_embedder
from barlowtwins.embedding.embeddings import open_embeddings
from barlowtwins.reports.thumbnails import images_of


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_images(tmp_path_factory.mktemp("images"), 12, classes=3)
    (folder / "class1" / "0004.png").write_bytes(b"")
    return folder


@pytest.fixture
def config(weights: Path, images: Path, tmp_path: Path) -> EmbedConfig:
    return EmbedConfig(str(images), str(weights), str(tmp_path / "out"), device="cpu", workers=0, batch_size=5)


def contents(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def test_the_folder_holds_rows_index_and_meta(config: EmbedConfig, weights: Path, images: Path) -> None:
    result = embed(config)
    out = Path(config.out)
    assert result == EmbedResult(12, DIM, 1, result.seconds, config.out)
    assert "12 rows of 256 features" in result.summary() and "1 could not be read" in result.summary()
    assert sorted(contents(out)) == ["embeddings.npy", "index.csv", "meta.json"]

    embedder = load_embedder(weights, device="cpu")
    features = np.load(out / "embeddings.npy", mmap_mode="r")
    np.testing.assert_allclose(features, embedder.encode(images, batch_size=12), rtol=1e-4, atol=1e-5)

    with open(out / "index.csv", newline="", encoding="utf-8") as file:
        index = list(csv.DictReader(file))
    paths = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    assert [line["path"] for line in index] == paths
    assert [line["row"] for line in index] == [str(row) for row in range(12)]
    assert [line["label"] for line in index] == [path.split("/")[0] for path in paths]
    bad = paths.index("class1/0004.png")
    assert [line["status"] for line in index] == ["ok" if row != bad else embedder.failed[bad].why for row in range(12)]
    assert np.isnan(features[bad]).all()

    meta = json.loads((out / "meta.json").read_text())
    assert (meta["rows"], meta["dim"], meta["failed"], meta["normalized"]) == (12, DIM, 1, False)
    assert meta["weights"] == str(weights) and meta["weights_sha256"] == sha256_of(weights)
    assert meta["preprocessing"] == embedder.preprocessing.to_dict()
    assert meta["classes"] == ["class0", "class1", "class2"]
    assert {"barlowtwins", "torch", "python"} <= meta["versions"].keys()


@pytest.mark.parametrize("form", ["npy", "parquet", "safetensors"])
def test_every_format_holds_the_same_rows(form: str, config: EmbedConfig, tmp_path: Path) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    embed(replace(config, format=form))
    embed(replace(config, out=str(tmp_path / "npy")))
    opened = open_embeddings(config.out)
    np.testing.assert_array_equal(opened.features, open_embeddings(tmp_path / "npy").features)
    assert list(opened.index()) == list(open_embeddings(tmp_path / "npy").index())


def test_two_runs_and_any_workers_give_the_same_bytes(config: EmbedConfig, tmp_path: Path) -> None:
    embed(config)
    embed(replace(config, out=str(tmp_path / "again"), workers=2))
    assert contents(config.out) == contents(tmp_path / "again")


def test_normalize_scales_rows_and_is_recorded(config: EmbedConfig) -> None:
    embed(replace(config, normalize=True))
    opened = open_embeddings(config.out)
    length = np.linalg.norm(opened.features, axis=1)
    np.testing.assert_allclose(length[~np.isnan(length)], 1, rtol=1e-6)
    assert opened.meta["normalized"] is True


def test_image_size_overrides_that_of_the_weights(config: EmbedConfig) -> None:
    embed(replace(config, image_size=16))
    assert open_embeddings(config.out).meta["preprocessing"]["image_size"] == 16


def test_a_named_data_set_has_labels(config: EmbedConfig) -> None:
    embed(replace(config, data="shapes:20"))
    opened = open_embeddings(config.out)
    assert opened.features.shape == (20, DIM) and len(opened.meta["classes"]) == 10
    assert {entry.label for entry in opened.index()} <= set(opened.meta["classes"])


def test_a_flat_folder_has_empty_labels(config: EmbedConfig, tmp_path: Path) -> None:
    embed(replace(config, data=str(write_images(tmp_path / "flat", 3))))
    assert [entry.label for entry in open_embeddings(config.out).index()] == ["", "", ""]


def test_duplicates_are_kept_in_the_order_of_the_list(config: EmbedConfig, images: Path, tmp_path: Path) -> None:
    names = ["class2/0002.png", "class0/0000.png", "class2/0002.png"]
    (tmp_path / "list.txt").write_text("".join(f"{images}/{name}\n" for name in names))
    embed(replace(config, data=str(tmp_path / "list.txt")))
    opened = open_embeddings(config.out)
    assert [Path(entry.path).name for entry in opened.index()] == ["0002.png", "0000.png", "0002.png"]
    np.testing.assert_array_equal(opened.features[0], opened.features[2])
    assert not np.array_equal(opened.features[0], opened.features[1])


def test_a_finished_folder_is_refused_without_overwrite(config: EmbedConfig, tmp_path: Path) -> None:
    embed(config)
    before = contents(config.out)
    with pytest.raises(OutputError, match=r"holds embeddings already; choose another folder, or .* --overwrite"):
        embed(config)
    other = write_weights(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(OutputError, match="made with other weights, images;"):
        embed(replace(config, weights=str(other), data="shapes:5"))
    assert contents(config.out) == before

    embed(replace(config, weights=str(other), overwrite=True, format="safetensors"))
    assert sorted(contents(config.out)) == ["embeddings.safetensors", "index.csv", "meta.json"]
    assert open_embeddings(config.out).meta["weights_sha256"] == sha256_of(other)


def test_a_local_file_of_weights_is_found_from_any_folder(
    config: EmbedConfig, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(weights.parent)
    embed(replace(config, weights=weights.name))
    assert open_embeddings(config.out).meta["weights"] == str(weights)


def test_a_missing_extra_is_told_before_anything_is_done(config: EmbedConfig) -> None:
    code = """
import sys
sys.modules["pyarrow"] = None  # as where it is not installed
from barlowtwins.config import EmbedConfig
from barlowtwins.data.open import open_source
from barlowtwins.embedding.embed import embed
embed(EmbedConfig("no such data", "no such weights", sys.argv[1], format="parquet"))
"""
    run = subprocess.run([sys.executable, "-c", code, config.out], capture_output=True, text=True, timeout=120)
    assert MissingExtraError.__name__ in run.stderr and "barlowtwins[parquet]" in run.stderr
    assert not Path(config.out).exists()


def test_a_file_in_the_way_is_told(config: EmbedConfig) -> None:
    Path(config.out).write_text("precious")
    with pytest.raises(OutputError):
        embed(config)
    assert Path(config.out).read_text() == "precious"


@pytest.mark.parametrize("split", ["test", "train"])
def test_the_split_of_a_named_data_set_is_said_and_recorded(
    config: EmbedConfig, split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    embed(replace(config, data="shapes:4", split=split))
    assert f"shapes:4: embedding its {split} split; --split overrides" in capsys.readouterr().err
    meta = json.loads((Path(config.out) / "meta.json").read_text())
    assert (meta["data"], meta["split"]) == ("shapes:4", split)
    found = images_of(open_embeddings(config.out))
    assert found is not None and found.fingerprint() == open_source("shapes:4", split=split).fingerprint()


def test_a_folder_has_no_split(config: EmbedConfig, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embed(config)
    meta = json.loads((Path(config.out) / "meta.json").read_text())
    assert (meta["data"], meta["split"]) == (str(images), None)
    assert "split" not in capsys.readouterr().err
