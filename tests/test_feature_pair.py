"""`evaluate knn` from images and from EMB folders: the same figures, and clear errors for what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import write_images, write_weights

from barlowtwins.cli import main
from barlowtwins.config import EmbedConfig, KNNConfig
from barlowtwins.core.errors import ConfigError, DataError, OutputError
from barlowtwins.data.open import open_source
from barlowtwins.embedding.embed import embed
from barlowtwins.embedding.embedder import load_embedder
from barlowtwins.evaluate import Labeled, evaluate_knn, knn_accuracy


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, training and held-out images of three classes (of the latter two, and one image unreadable)."""
    work = tmp_path_factory.mktemp("work")
    write_weights(work / "tiny.safetensors")
    write_images(work / "train", 30, classes=3)
    write_images(work / "val", 20, classes=2, seed=1)
    (work / "val" / "class1" / "0003.png").write_bytes(b"")
    return work


@pytest.fixture(scope="module")
def embedded(work: Path) -> Path:
    for name in ("train", "val"):
        embed(EmbedConfig(str(work / name), str(work / "tiny.safetensors"), str(work / f"{name}-emb"), workers=0))
    return work


@pytest.fixture
def config(work: Path) -> KNNConfig:
    return KNNConfig(
        str(work / "train"), str(work / "val"), str(work / "tiny.safetensors"), k=(1, 5), device="cpu", workers=0
    )


def test_images_are_embedded_and_compared(config: KNNConfig, work: Path) -> None:
    result = evaluate_knn(config)
    embedder = load_embedder(work / "tiny.safetensors", device="cpu")
    train, val = open_source(work / "train"), open_source(work / "val")
    expected = knn_accuracy(
        Labeled(embedder.encode(train), train.labels), Labeled(embedder.encode(val), val.labels), k=(1, 5)
    )
    assert result.accuracy == {k: expected[k].top1 for k in (1, 5)}
    assert result.top5 == {k: expected[k].top5 for k in (1, 5)}
    assert (result.n_train, result.n_val, result.unreadable, result.classes) == (30, 19, 1, 3)
    assert "19 images among 30 of 3 classes; 1 could not be read" in result.summary()


@pytest.mark.parametrize(("train", "val"), [("train-emb", "val-emb"), ("train-emb", "val"), ("train", "val-emb")])
def test_emb_folders_give_the_same_figures(train: str, val: str, config: KNNConfig, embedded: Path) -> None:
    result = evaluate_knn(replace(config, train=str(embedded / train), val=str(embedded / val)))
    images = evaluate_knn(config)
    assert replace(result, seconds=0) == replace(images, seconds=0)


def test_results_are_kept_and_printed(
    config: KNNConfig, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "knn", config.train, "--val", str(config.val), "--weights", config.weights]
    assert main([*arguments, "--k", "1", "5", "--workers", "0", "--out", str(tmp_path / "out"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert printed["accuracy"].keys() == {"1", "5"}
    assert {name: kept[name] for name in printed} == printed
    assert kept["job"]["weights"] == config.weights


def test_classes_are_matched_by_name(config: KNNConfig, work: Path, tmp_path: Path) -> None:
    """The held-out classes are the last of the training classes, so that numbers alone would mislead."""
    for name in ("class1", "class2"):
        (tmp_path / "val" / name).mkdir(parents=True)
        for image in (work / "train" / name).iterdir():
            (tmp_path / "val" / name / image.name).write_bytes(image.read_bytes())
    result = evaluate_knn(replace(config, val=str(tmp_path / "val"), k=(1,)))
    assert result.accuracy == {1: 100}  # each image finds itself in the bank


def test_what_does_not_fit_is_told(config: KNNConfig, embedded: Path, tmp_path: Path) -> None:
    flat, one = str(write_images(tmp_path / "flat", 6)), str(write_images(tmp_path / "one", 6, classes=1))
    with pytest.raises(DataError, match=r"flat has no labels, which an evaluation needs: put the images of each class"):
        evaluate_knn(replace(config, val=flat))
    with pytest.raises(ConfigError, match="pass validation images with --val"):
        evaluate_knn(replace(config, val=None))
    with pytest.raises(DataError, match=r"1 classes of .*train are not in the training data \(class2\)"):
        evaluate_knn(replace(config, train=config.val, val=config.train))
    with pytest.raises(DataError, match="has one class, class0"):
        evaluate_knn(replace(config, train=one, val=one))
    with pytest.raises(ConfigError, match="--k 200 is more than the 30 training images; choose --k up to 30"):
        evaluate_knn(replace(config, k=(20, 200)))

    embed(EmbedConfig(flat, config.weights, str(tmp_path / "flat-emb"), workers=0))
    with pytest.raises(DataError, match=r"6 of 6 rows of .*flat-emb have no label, which an evaluation needs"):
        evaluate_knn(replace(config, train=str(embedded / "train-emb"), val=str(tmp_path / "flat-emb")))
    other = str(write_weights(tmp_path / "other.safetensors", seed=1))
    with pytest.raises(ConfigError, match=r"made by tiny\.safetensors and those of .*val by other\.safetensors"):
        evaluate_knn(replace(config, train=str(embedded / "train-emb"), weights=other))


def test_a_named_data_set_brings_its_own_test_split(config: KNNConfig) -> None:
    result = evaluate_knn(replace(config, train="shapes:40", val=None, weights="pixels"))
    assert (result.n_train, result.n_val, result.classes, result.weights) == (40, 40, 10, "pixels")


def test_pixels_are_standardised_and_compared_as_they_are(config: KNNConfig) -> None:
    result = evaluate_knn(replace(config, train="shapes:60", val=None, weights="pixels"))
    train, val = open_source("shapes:60"), open_source("shapes:60", split="test")
    pixels = [np.stack([np.asarray(s.read(i), dtype=np.float64) for i in range(60)]) for s in (train, val)]
    mean, std = pixels[0].mean((0, 1, 2)), pixels[0].std((0, 1, 2))
    bank, queries = (((part - mean) / std).reshape(60, -1) for part in pixels)
    expected = knn_accuracy(Labeled(bank, train.labels), Labeled(queries, val.labels), k=(1, 5))
    assert result.accuracy == {k: expected[k].top1 for k in (1, 5)}


def test_another_evaluation_is_not_overwritten_unless_told(config: KNNConfig, tmp_path: Path) -> None:
    settings = replace(config, out=str(tmp_path))
    evaluate_knn(settings)
    first = (tmp_path / "results.json").read_bytes()
    with pytest.raises(OutputError, match=r"holds another evaluation \(temperature was 0\.07, is 0\.5\)"):
        evaluate_knn(replace(settings, temperature=0.5))
    assert (tmp_path / "results.json").read_bytes() == first
    evaluate_knn(replace(settings, temperature=0.5, overwrite=True))
    assert json.loads((tmp_path / "results.json").read_text())["temperature"] == 0.5


def test_the_usual_k_are_cut_to_a_small_bank(config: KNNConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(evaluate_knn(replace(config, k=())).accuracy) == [20, 30]
    assert "k is 20 and 30 instead of 20 and 200: the bank has 30 images" in capsys.readouterr().err
