"""The linear probe: scikit-learn's answer on the same features, chosen without a look at the images to judge by."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from barlowtwins.config import ClassifyConfig, EmbedConfig, LinearConfig
from barlowtwins.core.errors import ConfigError, DataError, OutputError, StoppedEarly
from barlowtwins.data.open import open_source
from barlowtwins.embedding.embed import embed
from barlowtwins.embedding.embedder import load_embedder
from barlowtwins.evaluate.classify import classify
from barlowtwins.evaluate.linear import MEMORY, _allowed_memory, evaluate_linear, fit_head, fit_linear
from barlowtwins.metrics.logistic import L2_GRID
from barlowtwins.zoo.heads import load_head, save_head

DATA = "shapes:400"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_weights(tmp_path_factory.mktemp("weights") / "w.safetensors")


def settings(weights: Path, out: Path | None, data: str = DATA, **changes: Any) -> LinearConfig:
    usual = {"workers": 0, "device": "cpu", "out": out and str(out)}
    return LinearConfig(data, weights=str(weights), **(usual | changes))


def features(weights: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of `DATA`: to learn from with labels, to judge by with labels."""
    embedder = load_embedder(weights, device="cpu")
    train, val = open_source(DATA, split="train"), open_source(DATA, split="test")
    assert train.labels is not None and val.labels is not None
    return embedder.encode(train), train.labels, embedder.encode(val), val.labels


def test_agrees_with_scikit_learn_on_the_same_features(weights: Path, tmp_path: Path) -> None:
    """Of 400 predictions no more than one differs, for any penalty, and so the accuracies by 0.25 % at most."""
    x, labels, queries, truth = features(weights)
    for l2 in (1.0, 0.01):
        head_file = str(tmp_path / "head.safetensors")
        result = evaluate_linear(settings(weights, None, l2=(l2,), save_head=head_file, overwrite=True))
        peer = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (l2 * len(x)), tol=1e-8, max_iter=10_000))
        theirs = peer.fit(x.astype(np.float64), labels).predict(queries.astype(np.float64))
        ours = load_head(tmp_path / "head.safetensors").predict(queries)
        assert (ours != theirs).sum() <= 1
        assert result.scores.top1 == pytest.approx(100 * (theirs == truth).mean(), abs=0.25)
        assert result.hyperparameters == {"l2": l2}


def test_it_learns_something(weights: Path) -> None:
    scores = evaluate_linear(settings(weights, None, data="shapes:2000")).scores
    assert scores.interval[0] > 12  # chance is 10


def test_what_is_judged_by_chooses_nothing(weights: Path, tmp_path: Path) -> None:
    """Other images to judge by: the same penalty, the same sweep, the same classifier."""
    images = tiny.write_images(tmp_path / "train", 60, classes=3)
    results = [
        evaluate_linear(
            settings(
                weights,
                tmp_path / str(seed),
                str(images),
                val=str(tiny.write_images(tmp_path / f"val{seed}", 30, classes=3, seed=seed)),
            )
        )
        for seed in (1, 2)
    ]
    heads = [(tmp_path / str(seed) / "head.safetensors").read_bytes() for seed in (1, 2)]
    assert heads[0] == heads[1]
    assert results[0].details == results[1].details and results[0].hyperparameters == results[1].hyperparameters
    assert results[0].scores.top1 != results[1].scores.top1


def test_the_penalty_is_the_best_of_the_sweep_and_the_fit_is_on_all_rows(weights: Path) -> None:
    x, labels, _, _ = features(weights)
    found = fit_linear(x, labels, num_classes=10)
    best = max(found.trials, key=lambda trial: (trial.top1, -trial.loss))
    assert found.fit.l2 == best.l2 and len(found.trials) > 3
    alone = fit_linear(x, labels, num_classes=10, penalties=(best.l2,))
    assert not alone.trials
    assert torch.equal(alone.fit.weight, found.fit.weight)
    again = fit_linear(x, labels, num_classes=10)
    assert again.trials == found.trials and torch.equal(again.fit.weight, found.fit.weight)
    other = fit_linear(x, labels, num_classes=10, seed=1)
    assert other.trials != found.trials  # another fifth is set aside


def test_results_are_whole_and_the_same_again(weights: Path, tmp_path: Path) -> None:
    result = evaluate_linear(settings(weights, tmp_path / "a"))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["head.safetensors", "job.json", "results.json"]
    record = json.loads((tmp_path / "a" / "results.json").read_text())
    assert record["protocol"] == "fast" and record["top1"] == result.scores.top1
    assert np.array(record["confusion"]).shape == (10, 10) and np.sum(record["confusion"]) == 400
    assert set(record["per_class"]) == set(open_source(DATA).classes)
    assert record["top1_interval"][0] < record["top1"] < record["top1_interval"][1]
    assert [trial["l2"] for trial in record["sweep"]] == list(L2_GRID[: len(record["sweep"])])
    assert record["converged"] and record["versions"]["torch"] == torch.__version__
    assert "linear (fast) on 400 labeled images: l2" in result.summary()

    evaluate_linear(settings(weights, tmp_path / "b"))
    heads = [(tmp_path / name / "head.safetensors").read_bytes() for name in "ab"]
    assert heads[0] == heads[1]
    with pytest.raises(OutputError, match=r"holds another evaluation \(seed was 0, is 7\)"):
        evaluate_linear(settings(weights, tmp_path / "b", seed=7))


def test_the_published_form_trains_on_crops(weights: Path, tmp_path: Path) -> None:
    result = evaluate_linear(settings(weights, tmp_path, protocol="published", epochs=2, batch_size=50))
    used = result.hyperparameters
    assert (used["epochs"], used["batch_size"], used["lr_head"], used["weight_decay"]) == (2, 50, 0.3, 1e-6)
    assert result.details["steps"] == 16 and result.protocol == "published"
    head = load_head(tmp_path / "head.safetensors")
    assert head.belonging.weights == str(weights)  # the backbone is frozen: the head belongs to the one that was given
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3  # every tenth step, and the epochs' last


def test_auto_is_fast_where_the_features_fit(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluate_linear(settings(weights, None, l2=(0.1,))).protocol == "fast"
    monkeypatch.setattr("barlowtwins.evaluate.linear._allowed_memory", lambda: 1 << 20)
    assert evaluate_linear(settings(weights, None, epochs=1)).protocol == "published"


def test_flags_of_the_other_form_are_refused(weights: Path) -> None:
    with pytest.raises(ConfigError, match="the fast form does not use --epochs"):
        evaluate_linear(settings(weights, None, epochs=3))
    with pytest.raises(ConfigError, match="the published form does not use --l2"):
        evaluate_linear(settings(weights, None, protocol="published", l2=(0.1,)))


def test_in_python_it_is_a_few_lines_with_the_same_result(weights: Path, tmp_path: Path) -> None:
    images = tiny.write_images(tmp_path / "train", 40, classes=2)
    val = tiny.write_images(tmp_path / "val", 20, classes=2, seed=1)
    result = evaluate_linear(settings(weights, tmp_path / "out", str(images), val=str(val)))

    embedder, source = load_embedder(weights, device="cpu"), open_source(images)
    assert source.labels is not None
    head = fit_head(embedder.encode(source), source.labels, source.classes, embedder)
    predicted = head.predict(embedder.encode(val))
    assert 100 * (predicted == open_source(val).labels).mean() == pytest.approx(result.scores.top1)

    save_head(tmp_path / "head.safetensors", head)
    labelled = classify(
        ClassifyConfig(str(val), str(tmp_path / "head.safetensors"), str(tmp_path / "l.csv"), device="cpu", workers=0)
    )
    assert labelled.scores is not None and labelled.scores.top1 == pytest.approx(result.scores.top1)

    with pytest.raises(DataError, match="need as many labels from 0 to 1"):
        fit_head(embedder.encode(source), [0, 1], source.classes, embedder)


def test_embedded_images_give_the_same_classifier(weights: Path, tmp_path: Path) -> None:
    images = tiny.write_images(tmp_path / "train", 40, classes=2)
    val = tiny.write_images(tmp_path / "val", 20, classes=2, seed=1)
    (val / "class1" / "0003.png").write_bytes(b"")
    for name in ("train", "val"):
        embed(EmbedConfig(str(tmp_path / name), str(weights), str(tmp_path / f"emb-{name}"), workers=0, device="cpu"))
    of_images = evaluate_linear(settings(weights, tmp_path / "a", str(images), val=str(val)))
    emb = (str(tmp_path / "emb-train"), str(tmp_path / "emb-val"))
    of_features = evaluate_linear(LinearConfig(emb[0], val=emb[1], out=str(tmp_path / "b"), device="cpu"))
    assert of_features.scores.to_dict() == of_images.scores.to_dict() and of_images.scores.unreadable == 1
    heads = [(tmp_path / name / "head.safetensors").read_bytes() for name in "ab"]
    assert heads[0] == heads[1]

    with pytest.raises(ConfigError, match="pass another EMB folder with --val"):
        evaluate_linear(LinearConfig(emb[0], device="cpu"))
    with pytest.raises(ConfigError, match="published needs the images"):
        evaluate_linear(LinearConfig(emb[0], val=emb[1], protocol="published", device="cpu"))
    with pytest.raises(DataError, match="is not a folder that `barlowtwins embed` has made"):
        evaluate_linear(LinearConfig(emb[0], val=str(val), device="cpu"))
    unit = tmp_path / "unit"
    embed(EmbedConfig(str(images), str(weights), str(unit), workers=0, device="cpu", normalize=True))
    with pytest.raises(ConfigError, match="embed without --normalize"):
        evaluate_linear(LinearConfig(str(unit), val=str(unit), device="cpu"))


def test_unreadable_images_are_left_out_and_counted(weights: Path, tmp_path: Path) -> None:
    images = tiny.write_images(tmp_path / "train", 40, classes=2)
    val = tiny.write_images(tmp_path / "val", 20, classes=2, seed=1)
    for bad in (images / "class0" / "0002.png", val / "class1" / "0003.png", val / "class1" / "0005.png"):
        bad.write_bytes(b"not an image")
    result = evaluate_linear(settings(weights, None, str(images), val=str(val)))
    assert (result.train_images, result.scores.images, result.scores.unreadable) == (39, 18, 2)
    (images / "class0" / "0002.png").unlink()
    without = evaluate_linear(settings(weights, None, str(images), val=str(val)))
    assert without.scores.top1 == result.scores.top1


def test_a_stopped_extraction_goes_on(weights: Path, tmp_path: Path) -> None:
    """With a folder, finished shards stay; a stop loses what is between two of them."""
    images = tmp_path / "train"
    rng = np.random.default_rng(0)
    for number in range(150):
        folder = images / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (160, 160, 3), dtype=np.uint8)).save(folder / f"{number:03}.png")
    config = settings(weights, tmp_path / "out", str(images), val=str(images), batch_size=4)

    def stop_soon() -> None:
        while not (tmp_path / "out" / "job.json").exists():
            time.sleep(0.001)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop_soon)
    stopper.start()
    with pytest.raises(StoppedEarly, match="SIGTERM after"):
        evaluate_linear(config)
    stopper.join()
    assert not (tmp_path / "out" / "results.json").exists()
    assert evaluate_linear(config).scores.images == 150


@pytest.mark.parametrize("protocol", ["fast", "published"])
def test_a_head_that_cannot_be_saved_is_refused_before_anything_is_trained(
    protocol: str, weights: Path, tmp_path: Path
) -> None:
    there, file = tmp_path / "head.safetensors", tmp_path / "file"
    there.write_bytes(b"precious")
    file.write_bytes(b"")
    for target, why in (
        (there, "exists already; choose another --save-head, or replace it with --overwrite"),
        (tmp_path, "is a folder; give the name of a file in it"),
        (file / "head.safetensors", "nothing can be written in"),
    ):
        with pytest.raises(OutputError, match=why):
            evaluate_linear(settings(weights, tmp_path / "out", protocol=protocol, save_head=str(target)))
    assert there.read_bytes() == b"precious" and not (tmp_path / "out").exists()


def test_figures_outlive_a_head_that_could_not_be_saved(weights: Path, tmp_path: Path) -> None:
    """The disk is full when the classifier is written: here, a folder has taken its name."""
    (tmp_path / "head.safetensors").mkdir()
    with pytest.raises(OutputError, match="is a folder where a file is to be written"):
        evaluate_linear(settings(weights, tmp_path, "shapes:40", l2=(0.1,)))
    assert json.loads((tmp_path / "results.json").read_text())["top1"] >= 0


def test_half_of_the_free_memory_may_be_taken(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  4000 kB\n")
    assert _allowed_memory(tmp_path / "meminfo") == 2000 * 1024
    assert _allowed_memory(tmp_path / "none") == MEMORY
