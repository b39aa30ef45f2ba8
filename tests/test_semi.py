"""A fraction of the labels: drawn evenly, listed in a file, or ImageNet's published lists."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from servers import Server, file

from barlowtwins.config import FinetuneConfig, SemiConfig
from barlowtwins.core.errors import DataError, DownloadError, UsageError
from barlowtwins.data.sources import FileSource
from barlowtwins.evaluate.finetune import evaluate_finetune
from barlowtwins.evaluate.labeled import LabeledImages, open_labeled
from barlowtwins.evaluate.semi import (
    IMAGENET_LISTS,
    PublishedList,
    draw_fraction,
    evaluate_semi,
    fetch_list,
    is_imagenet,
    listed_images,
)


def shapes(images: int = 500) -> LabeledImages:
    return open_labeled(f"shapes:{images}", split="train")


def imagenet(tmp_path: Path, each: int = 2) -> LabeledImages:
    """A listing with ImageNet's layout; no file of it exists."""
    classes = [f"n{number:08}" for number in range(1000)]
    keys = [f"{name}/{name}_{number}.JPEG" for name in classes for number in range(each)]
    source = FileSource("imagenet", tmp_path, keys, [key.split("/")[0] for key in keys])
    assert source.labels is not None
    return LabeledImages(source, source.labels, source.classes)


# Drawing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("percent", "each"), [("2", 1), ("10", 5), ("10.0", 5), ("100", 50), ("0.01", 1)])
def test_a_percentage_is_drawn_evenly(percent: str, each: int, tmp_path: Path) -> None:
    train = shapes()
    draw = draw_fraction(train, percent, seed=0, cache=tmp_path)
    assert np.bincount(train.labels[draw.indices]).tolist() == [each] * 10
    assert draw.how == {"percent": float(percent), "images": 10 * each, "seed": 0}
    assert (draw.indices == draw_fraction(train, percent, seed=0, cache=tmp_path).indices).all()
    if each < 50:
        assert (draw.indices != draw_fraction(train, percent, seed=1, cache=tmp_path).indices).any()


@pytest.mark.parametrize("percent", ["0", "-1", "100.5", "nan", "inf", "some", "no/such/list.txt"])
def test_what_is_neither_a_percentage_nor_a_file_is_refused(percent: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be a number from 0 to 100, or a file"):
        draw_fraction(shapes(50), percent, seed=0, cache=tmp_path)


# Lists ----------------------------------------------------------------------------------------------------------------


def test_a_list_names_images_by_key_or_by_file_name(tmp_path: Path) -> None:
    train = imagenet(tmp_path)
    (tmp_path / "list.txt").write_text("n00000007_1.JPEG\n\nn00000003/n00000003_0.JPEG\nn00000007_1.JPEG\n")
    draw = draw_fraction(train, str(tmp_path / "list.txt"), seed=0, cache=tmp_path)
    assert [train.source.key(index) for index in draw.indices] == [
        "n00000003/n00000003_0.JPEG",
        "n00000007/n00000007_1.JPEG",
    ]
    assert draw.how == {"list": str(tmp_path / "list.txt"), "images": 2}


def test_a_list_that_does_not_fit_is_refused_with_its_first_stranger(tmp_path: Path) -> None:
    source = FileSource("mine", tmp_path, ["a/1.png", "b/1.png", "b/2.png"], ["a", "b", "b"])
    listing = tmp_path / "list.txt"
    for text, complaint in (
        ("2.png\n3.png\n", r"1 of 2 images .* are not found in mine, the first: 3\.png \(there is no such image\)"),
        ("1.png\n", r"the first: 1\.png \(more than one image has this name\)"),
        ("\n \n", "names no image"),
    ):
        listing.write_text(text)
        with pytest.raises(DataError, match=complaint):
            listed_images(source, listing)
    listing.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot read the list"):
        listed_images(source, listing)
    listing.write_text("a/1.png\nb/1.png\n")
    assert listed_images(source, listing).tolist() == [0, 1]
    for encoding in ("utf-8-sig", "utf-16"):  # as Excel saves them
        listing.write_text("a/1.png\r\n2.png\r\n", encoding, newline="")
        assert listed_images(source, listing).tolist() == [0, 2]


def test_a_published_list_is_fetched_once_and_verified(server: Server, tmp_path: Path) -> None:
    text = b"n00000001_0.JPEG\nn00000002_1.JPEG\n"
    url = server.answer(
        "/1percent.txt", file(text, Content_Type="text/plain"), file(b"other", Content_Type="text/plain")
    )
    published = PublishedList(url, hashlib.sha256(text).hexdigest(), len(text), lines=2)
    path = fetch_list(published, tmp_path / "cache")
    assert path.read_bytes() == text
    assert fetch_list(published, tmp_path / "cache") == path and len(server.requests) == 1
    path.unlink()
    with pytest.raises(DownloadError):
        fetch_list(published, tmp_path / "cache")
    assert not path.exists()


def test_the_published_lists_are_those_on_record() -> None:
    assert {percent: (each.size, each.lines) for percent, each in IMAGENET_LISTS.items()} == {
        1.0: (260_323, 12_811),
        10.0: (2_603_168, 128_116),
    }
    assert all(len(each.sha256) == 64 and each.url.endswith("percent.txt") for each in IMAGENET_LISTS.values())
    assert IMAGENET_LISTS[1.0].sha256.startswith("71e82a48") and IMAGENET_LISTS[10.0].sha256.startswith("6d09de11")


def test_imagenet_is_told_by_its_folders(tmp_path: Path) -> None:
    assert is_imagenet(imagenet(tmp_path).source)
    assert not is_imagenet(shapes(20).source)


def test_one_percent_of_imagenet_is_the_list_and_two_percent_a_draw(server: Server, tmp_path: Path) -> None:
    train = imagenet(tmp_path, each=100)
    text = b"n00000001_0.JPEG\nn00000002_1.JPEG\n"
    url = server.answer("/1percent.txt", file(text, Content_Type="text/plain"))
    lists = {1.0: PublishedList(url, hashlib.sha256(text).hexdigest(), len(text), lines=2)}
    draw = draw_fraction(train, "1", seed=0, cache=tmp_path, lists=lists)
    assert draw.indices.tolist() == [100, 201] and draw.how == {"list": url, "images": 2}
    assert len(draw_fraction(train, "2", seed=0, cache=tmp_path, lists=lists).indices) == 2000
    assert len(draw_fraction(shapes(), "1", seed=0, cache=tmp_path, lists=lists).indices) == 10


# The evaluation -------------------------------------------------------------------------------------------------------


def test_it_is_fine_tuning_on_the_images_that_were_drawn(tmp_path: Path) -> None:
    weights = tiny.write_weights(tmp_path / "w.safetensors")
    images = tiny.write_images(tmp_path / "train", 60, classes=3)
    common = {"weights": str(weights), "val": str(images), "workers": 0, "device": "cpu", "epochs": 2, "batch_size": 4}
    config = SemiConfig(str(images), out=str(tmp_path / "semi"), percent="20", **common)
    result = evaluate_semi(config)
    assert result.evaluation == "semi" and result.train_images == 12
    record = json.loads((tmp_path / "semi" / "results.json").read_text())
    assert record["draw"] == {"percent": 20.0, "images": 12, "seed": 0}
    assert record["hyperparameters"]["batch_size"] == 4

    train = open_labeled(str(images), split="train")
    drawn = draw_fraction(train, "20", seed=0, cache=tmp_path).indices
    alone = tmp_path / "alone"
    for index in drawn:
        target = alone / train.source.key(index)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(train.source.path(index).read_bytes())
    by_hand = evaluate_finetune(FinetuneConfig(str(alone), out=str(tmp_path / "fine"), **common))
    heads = [(tmp_path / name / "backbone.safetensors").read_bytes() for name in ("semi", "fine")]
    assert heads[0] == heads[1]
    assert by_hand.scores.to_dict() == result.scores.to_dict()

    (tmp_path / "list.txt").write_text("".join(f"{train.source.key(index)}\n" for index in drawn))
    listed = SemiConfig(str(images), out=str(tmp_path / "listed"), percent=str(tmp_path / "list.txt"), **common)
    assert evaluate_semi(listed).scores.to_dict() == result.scores.to_dict()
