"""Faults 31 and 55: classes that do not fit, labels that are missing, heads of another backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from barlowtwins import hub
from barlowtwins.config import ClassifyConfig, FinetuneConfig, KNNConfig, LinearConfig, SemiConfig
from barlowtwins.core.errors import BarlowTwinsError, ConfigError, DataError, WeightsError
from barlowtwins.evaluate.classify import classify
from barlowtwins.evaluate.finetune import evaluate_finetune
from barlowtwins.evaluate.knn import evaluate_knn
from barlowtwins.evaluate.linear import evaluate_linear
from barlowtwins.evaluate.semi import evaluate_semi
from barlowtwins.zoo.heads import load_classifier

TRAINED: list[tuple[Callable[[Any], Any], type]] = [
    (evaluate_linear, LinearConfig),
    (evaluate_semi, SemiConfig),
    (evaluate_finetune, FinetuneConfig),
]
EVERY = [*TRAINED, (evaluate_knn, KNNConfig)]
names = ["linear", "semi", "finetune", "knn"]


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return str(tiny.write_weights(tmp_path / "w.safetensors"))


def settings(kind: type, train: Path | str, val: Path | str | None, weights: str, **changes: Any) -> Any:
    if kind is KNNConfig:
        changes.setdefault("k", (1,))
    elif kind is not LinearConfig:
        changes.setdefault("epochs", 1)
    return kind(str(train), val=val and str(val), weights=weights, workers=0, device="cpu", **changes)


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


# 31: one class only, a class with one image, more classes in val than in train ----------------------------------------


@pytest.mark.parametrize(("evaluate", "kind"), EVERY, ids=names)
def test_31_one_class_is_nothing_to_tell_apart(evaluate: Any, kind: type, weights: str, tmp_path: Path) -> None:
    images = tiny.write_images(tmp_path / "train", 6, classes=1)
    with pytest.raises(DataError, match=r"has one class, class0: .* needs two or more") as refusal:
        evaluate(settings(kind, images, images, weights))
    one_line(refusal.value)


@pytest.mark.parametrize(("evaluate", "kind"), EVERY, ids=names)
def test_31_classes_that_nothing_was_learned_of_are_named(
    evaluate: Any, kind: type, weights: str, tmp_path: Path
) -> None:
    train = tiny.write_images(tmp_path / "train", 8, classes=2)
    val = tiny.write_images(tmp_path / "val", 8, classes=4)
    with pytest.raises(DataError, match=r"2 classes of .* are not in the training data .class2, class3") as refusal:
        evaluate(settings(kind, train, val, weights))
    one_line(refusal.value)


@pytest.mark.parametrize(("evaluate", "kind"), TRAINED, ids=names[:-1])
def test_31_fewer_classes_to_judge_by_are_matched_by_name(
    evaluate: Any, kind: type, weights: str, tmp_path: Path
) -> None:
    """Only class2 to judge by: its number there is 0, and 2 where it was learned."""
    train = tiny.write_images(tmp_path / "train", 12, classes=3)
    val = tmp_path / "val"
    val.mkdir()
    (train / "class2").rename(tmp_path / "aside")
    tiny.write_images(tmp_path / "more", 4, classes=1)
    (tmp_path / "more" / "class0").rename(val / "class2")
    (tmp_path / "aside").rename(train / "class2")
    scores = evaluate(settings(kind, train, val, weights, **({"percent": "100"} if kind is SemiConfig else {}))).scores
    assert scores.per_class["class0"] is None and scores.per_class["class1"] is None
    assert scores.confusion[:2].sum() == 0 and scores.confusion[2].sum() == 4


@pytest.mark.parametrize(("evaluate", "kind"), TRAINED, ids=names[:-1])
def test_31_a_class_of_one_image_is_learned_all_the_same(
    evaluate: Any, kind: type, weights: str, tmp_path: Path
) -> None:
    train = tiny.write_images(tmp_path / "train", 10, classes=2)
    (train / "lonely").mkdir()
    (train / "class0" / "0000.png").rename(train / "lonely" / "0000.png")
    scores = evaluate(settings(kind, train, train, weights)).scores
    assert scores.images == 10 and scores.confusion.sum(1).tolist() == [4, 5, 1]


def test_31_one_image_of_each_class_is_enough_for_a_probe(weights: str, tmp_path: Path) -> None:
    train = tiny.write_images(tmp_path / "train", 3, classes=3)
    result = evaluate_linear(settings(LinearConfig, train, train, weights))
    assert result.scores.top1 == 100 and result.details["sweep"] == []  # nothing could be set aside


def test_31_one_class_that_can_be_read_is_one_class(weights: str, tmp_path: Path) -> None:
    train = tiny.write_images(tmp_path / "train", 8, classes=2)
    for path in (train / "class1").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="readable images of two classes or more"):
        evaluate_linear(settings(LinearConfig, train, train, weights))


# 55: labels missing where an evaluation needs them; head and backbone that do not belong together --------------------


@pytest.mark.parametrize(("evaluate", "kind"), EVERY, ids=names)
@pytest.mark.parametrize("which", ["train", "val"])
def test_55_missing_labels_are_asked_for(evaluate: Any, kind: type, which: str, weights: str, tmp_path: Path) -> None:
    folders = {"train": tiny.write_images(tmp_path / "train", 6, classes=2)}
    folders["val"] = tiny.write_images(tmp_path / "val", 6, classes=2)
    folders[which] = tiny.write_images(tmp_path / "flat", 6)
    with pytest.raises(DataError, match=r"flat has no labels.*folder of its own, or give a list") as refusal:
        evaluate(settings(kind, folders["train"], folders["val"], weights))
    one_line(refusal.value)


@pytest.mark.parametrize(("evaluate", "kind"), EVERY, ids=names)
def test_55_images_to_judge_by_are_asked_for(evaluate: Any, kind: type, weights: str, tmp_path: Path) -> None:
    train = tiny.write_images(tmp_path / "train", 6, classes=2)
    with pytest.raises(ConfigError, match="no test split of its own; pass validation images with --val") as refusal:
        evaluate(settings(kind, train, None, weights))
    one_line(refusal.value)


@pytest.fixture
def head(weights: str, tmp_path: Path) -> Path:
    train = tiny.write_images(tmp_path / "train", 6, classes=2)
    path = tmp_path / "head.safetensors"
    evaluate_linear(settings(LinearConfig, train, train, weights, save_head=str(path)))
    return path


LOADERS: list[Callable[[Path, Path, Path], Any]] = [
    lambda head, other, tmp: load_classifier(head, weights=other),
    lambda head, other, tmp: hub.resnet50(head=head, weights=other),
    lambda head, other, tmp: classify(
        ClassifyConfig(str(tmp / "train"), str(head), str(tmp / "l.csv"), weights=str(other), workers=0, device="cpu")
    ),
]


@pytest.mark.parametrize("load", LOADERS, ids=["python", "hub", "classify"])
def test_55_a_head_with_another_backbone_is_refused(load: Any, head: Path, tmp_path: Path) -> None:
    other = tiny.write_weights(tmp_path / "other.safetensors", seed=9)
    with pytest.raises(WeightsError, match=r"does not belong to .*other\.safetensors: .*; pass the weights") as refusal:
        load(head, other, tmp_path)
    assert "resnet10_x0_5" in one_line(refusal.value)
    assert not (tmp_path / "l.csv").exists()


@pytest.mark.parametrize("load", LOADERS, ids=["python", "hub", "classify"])
def test_55_weights_are_no_head(load: Any, weights: str, tmp_path: Path) -> None:
    with pytest.raises(BarlowTwinsError, match="a backbone without a classifier; `barlowtwins evaluate linear`") as no:
        load(Path(weights), Path(weights), tmp_path)
    one_line(no.value)


def test_55_weights_that_changed_under_the_same_name_are_noticed(head: Path, weights: str) -> None:
    assert load_classifier(head).weights.path == Path(weights)
    tiny.write_weights(Path(weights), seed=3)
    with pytest.raises(WeightsError, match="does not belong to"):
        load_classifier(head)
    Path(weights).unlink()
    with pytest.raises(WeightsError, match=r"the backbone of .*head\.safetensors is not at hand; pass its weights"):
        load_classifier(head)
