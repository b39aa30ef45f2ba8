"""Labels for a folder of images: the same as by hand and through the hub, a line for every image, whatever happens."""

from __future__ import annotations

import csv
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from barlowtwins.config import ClassifyConfig
from barlowtwins.core.errors import OutputError, StoppedEarly, WeightsError
from barlowtwins.core.safetensors_file import write_safetensors
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.evaluate.classify import classify
from barlowtwins.models.resnet import build_backbone
from barlowtwins.runs.run_folder import backbone_metadata
from barlowtwins.zoo.heads import Belonging, Head, load_classifier, save_head
from barlowtwins.zoo.weights import load_weights

REPO = Path(__file__).parents[1]
CLASSES = ("class0", "class1", "naïve, with a comma")


def write_head(path: Path, weights: Path, *, seed: int = 1) -> Path:
    loaded = load_weights(weights)
    rng = torch.Generator().manual_seed(seed)
    width = loaded.build().fc.in_features
    weight, bias = torch.randn(len(CLASSES), width, generator=rng), torch.randn(len(CLASSES), generator=rng)
    save_head(path, Head(weight, bias, CLASSES, Belonging.of(loaded, weights), loaded.preprocessing))
    return path


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    return write_head(folder / "head.safetensors", tiny.write_weights(folder / "w.safetensors"))


def settings(images: Path, head: Path, out: Path, **changes: Any) -> ClassifyConfig:
    return ClassifyConfig(
        str(images), str(head), str(out), **{"workers": 0, "device": "cpu", "batch_size": 4, **changes}
    )


def lines(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def test_every_image_has_its_line_with_the_networks_own_answer(head: Path, tmp_path: Path) -> None:
    images = tiny.write_images(tmp_path / "images", 11)
    (images / "0003.png").write_bytes(b"no image")
    result = classify(settings(images, head, tmp_path / "labels.csv", topk=2))
    found = lines(tmp_path / "labels.csv")
    assert [line["path"] for line in found] == sorted(path.name for path in images.iterdir())
    assert [int(line["row"]) for line in found] == list(range(11))
    assert list(found[0]) == ["row", "path", "status", "label", "probability", "label_2", "probability_2"]

    network = load_classifier(head).build()
    for line in found:
        if line["path"] == "0003.png":
            assert line["status"] != "ok" and not any(list(line.values())[3:])
            continue
        with torch.no_grad():
            probabilities = network(tiny.TINY(images / line["path"])[None])[0].softmax(0)
        first, second = probabilities.argsort(descending=True)[:2].tolist()
        assert (line["label"], line["label_2"]) == (CLASSES[first], CLASSES[second])
        assert float(line["probability"]) == pytest.approx(probabilities[first].item(), abs=1e-5)
        assert float(line["probability_2"]) == pytest.approx(probabilities[second].item(), abs=1e-5)
    assert (result.rows, result.failed, result.scores) == (11, 1, None)
    labels = [line["label"] for line in found if line["status"] == "ok"]
    assert result.counts == {name: labels.count(name) for name in set(labels)}
    assert "11 images labeled" in result.summary() and "1 could not be read" in result.summary()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("labels")] == ["labels.csv"]


def test_the_hub_agrees(tmp_path: Path) -> None:
    """`torch.hub.load` of this repository, on the tensors of the preprocessing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone("resnet18", zero_init_residual=False)
    preprocessing = Preprocessing(32, 36)
    write_safetensors(
        tmp_path / "w.safetensors", backbone.state_dict(), backbone_metadata("resnet18", "imagenet", preprocessing)
    )
    head = write_head(tmp_path / "head.safetensors", tmp_path / "w.safetensors")
    images = tiny.write_images(tmp_path / "images", 5)
    classify(settings(images, head, tmp_path / "labels.csv", topk=9))
    model = torch.hub.load(str(REPO), "resnet18", source="local", head=head)
    with torch.no_grad():
        logits = model(torch.stack([preprocessing(path) for path in sorted(images.iterdir())]))
    for line, expected in zip(lines(tmp_path / "labels.csv"), logits.softmax(1), strict=True):
        assert line["label"] == model.classes[int(expected.argmax())]
        values = [float(line[name]) for name in ("probability", "probability_2", "probability_3")]
        np.testing.assert_allclose(values, expected.sort(descending=True).values, atol=1e-5)


def test_labelled_images_are_compared_with_their_labels(head: Path, tmp_path: Path) -> None:
    images = tiny.write_images(tmp_path / "images", 12, classes=2)
    result = classify(settings(images, head, tmp_path / "labels.csv"))
    found = lines(tmp_path / "labels.csv")
    right = sum(line["label"] == line["path"].split("/")[0] for line in found)
    assert result.scores is not None and result.scores.top1 == pytest.approx(100 * right / 12)
    assert "compared with the images' own labels" in result.summary()
    (images / "class0").rename(images / "unknown")
    assert classify(settings(images, head, tmp_path / "other.csv")).scores is None


def test_batches_workers_and_shards_change_nothing(head: Path, tmp_path: Path) -> None:
    images = tiny.write_images(tmp_path / "images", 23)
    (images / "0007.png").write_bytes(b"")
    classify(settings(images, head, tmp_path / "a.csv"))
    classify(settings(images, head, tmp_path / "b.csv", batch_size=7, workers=2), shard_rows=5)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_a_file_that_is_there_is_kept_unless_told(head: Path, tmp_path: Path) -> None:
    images = tiny.write_images(tmp_path / "images", 2)
    out = tmp_path / "labels.csv"
    out.write_text("mine")
    with pytest.raises(OutputError, match=r"exists already; .*--overwrite"):
        classify(settings(images, head, out))
    assert out.read_text() == "mine"
    classify(settings(images, head, out, overwrite=True))
    assert len(lines(out)) == 2


def test_odd_file_names_stay_what_they_are(head: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    names = [b'com,ma "quoted".png', "süß 日本.png".encode()]
    if sys.platform == "linux":
        names.append(b"not-utf8-\xff.png")
    for name in names:
        Image.new("RGB", (8, 8), "red").save(os.fsdecode(tmp_path / "x.png"))
        (tmp_path / "x.png").rename(os.fsdecode(os.path.join(os.fsencode(folder), name)))
    classify(settings(folder, head, tmp_path / "labels.csv"))
    assert sorted(os.fsencode(line["path"]) for line in lines(tmp_path / "labels.csv")) == sorted(names)


def test_a_stopped_run_goes_on_and_ends_with_the_same_file(head: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in range(120):
        Image.fromarray(rng.integers(0, 256, (160, 160, 3), dtype=np.uint8)).save(images / f"{number:03}.png")
    config = settings(images, head, tmp_path / "labels.csv")
    shards = tmp_path / "labels.csv.parts" / "features"

    def stop_after_two_shards() -> None:
        while len(list(shards.glob("*.npz"))) < 2:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop_after_two_shards)
    stopper.start()
    with pytest.raises(StoppedEarly, match=r"SIGTERM after .* of 120 images; the same command resumes"):
        classify(config, shard_rows=8)
    stopper.join()
    kept = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.npz")}
    assert 2 <= len(kept) < 15 and not (tmp_path / "labels.csv").exists()

    (tmp_path / "w2").mkdir()
    other = write_head(tmp_path / "w2" / "head.safetensors", head.parent / "w.safetensors", seed=2)
    with pytest.raises(OutputError, match="holds another evaluation"):  # another classifier's logits are not mixed in
        classify(settings(images, other, tmp_path / "labels.csv"), shard_rows=8)
    assert {path.name: path.stat().st_mtime_ns for path in shards.glob("*.npz")} == kept

    classify(config, shard_rows=8)
    classify(settings(images, head, tmp_path / "undisturbed.csv"))
    assert (tmp_path / "labels.csv").read_bytes() == (tmp_path / "undisturbed.csv").read_bytes()
    assert not shards.parent.exists()


def test_weights_that_do_not_belong_are_refused_before_anything_is_written(head: Path, tmp_path: Path) -> None:
    images = tiny.write_images(tmp_path / "images", 2)
    other = tiny.write_weights(tmp_path / "other.safetensors", seed=5)
    with pytest.raises(WeightsError, match="does not belong to"):
        classify(settings(images, head, tmp_path / "labels.csv", weights=str(other)))
    assert not list(tmp_path.glob("labels*"))
