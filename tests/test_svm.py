"""SVMs for several labels: precision by its definition, scikit-learn as the peer, VOC's own file layout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, strategies as st
from PIL import Image
from processes import run_processes
from sklearn.metrics import average_precision_score
from sklearn.svm import LinearSVC

from barlowtwins.config import SVMConfig
from barlowtwins.core.errors import ConfigError, DataError, MissingExtraError
from barlowtwins.embedding.embedder import load_embedder, unit_length
from barlowtwins.evaluate.multilabel import open_multilabel
from barlowtwins.evaluate.svm import average_precision, evaluate_svm, fit_svm

COLOURS = {"blue": (40, 60, 200), "green": (30, 180, 60), "red": (210, 50, 40)}


def precision_by_definition(scores: np.ndarray, targets: np.ndarray) -> float:
    """For each image of the class: the best precision of any threshold that finds it; the mean of those."""
    scores, hits = scores[targets != 0], targets[targets != 0] == 1
    best = []
    for score in scores[hits]:
        thresholds = [t for t in scores if t <= score]
        best.append(max(hits[scores >= t].mean() for t in thresholds))
    return 100 * float(np.mean(best))


Ranked = st.lists(st.tuples(st.integers(0, 8), st.sampled_from([-1, -1, 0, 1])), min_size=1, max_size=25)


@given(Ranked)
def test_average_precision_is_its_definition(pairs: list[tuple[int, int]]) -> None:
    scores, targets = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs])
    if not (targets == 1).any():
        with pytest.raises(DataError, match="no image has the class"):
            average_precision(scores, targets)
        return
    assert average_precision(scores, targets) == pytest.approx(precision_by_definition(scores, targets))


def test_average_precision_is_never_below_the_uninterpolated_one_and_near_it() -> None:
    rng = np.random.default_rng(0)
    targets = np.where(rng.random(2000) < 0.2, 1, -1)
    scores = rng.normal(size=2000) + targets
    peer = 100 * average_precision_score(targets == 1, scores)
    assert peer <= average_precision(scores, targets) < peer + 2


def clusters(rows: int = 150) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    present = rng.random(rows) < 0.3
    x = rng.normal(size=(rows, 8)) + 2 * present[:, None] * np.eye(8)[0] + 3
    return unit_length(x.astype(np.float32)), present


def test_the_machine_is_scikit_learns_with_the_cost_that_did_best() -> None:
    x, present = clusters()
    found = fit_svm(x, present, costs=(1e-4, 1.0, 10.0), folds=3, seed=0)
    assert found.cost in (1.0, 10.0)  # a hopeless one is not chosen
    peer = LinearSVC(C=found.cost, class_weight={True: 2, False: 1}, dual=False).fit(x, present)
    np.testing.assert_allclose(x @ found.weight + found.bias, peer.decision_function(x), atol=1e-3)
    targets = np.where(present, 1, -1)
    assert 50 < found.cross_validated < average_precision(x @ found.weight + found.bias, targets) + 5
    assert fit_svm(x, present, costs=(1e-4, 1.0, 10.0), folds=3, seed=0).cost == found.cost


def test_a_class_of_fewer_images_than_folds_is_refused() -> None:
    x, _ = clusters(20)
    with pytest.raises(DataError, match="2 images have the class, or lack it, which is less than the 3 folds"):
        fit_svm(x, np.arange(20) < 2)


# The command ----------------------------------------------------------------------------------------------------------


def draw(path: Path, colours: list[str], seed: int) -> None:
    """An image with a stripe of each colour on a noisy ground."""
    pixels = np.random.default_rng(seed).integers(80, 140, (8, 8, 3), dtype=np.uint8)
    for number, colour in enumerate(colours):
        pixels[:, 2 * number : 2 * number + 2] = COLOURS[colour]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


def contents(number: int) -> list[str]:
    return [colour for bit, colour in enumerate(COLOURS) if number >> bit & 1]


def voc_folder(root: Path) -> Path:
    """VOC2007's layout: 48 images to learn from, 24 to judge by, one of them with things that are hard to see."""
    for split, first, count in (("trainval", 0, 48), ("test", 100, 24)):
        lines: dict[str, list[str]] = {colour: [] for colour in COLOURS}
        for number in range(first, first + count):
            name = f"{number:06}"
            draw(root / "JPEGImages" / f"{name}.jpg", contents(number), number)
            for colour in COLOURS:
                value = 1 if colour in contents(number) else 0 if number == 100 else -1
                lines[colour].append(f"{name} {value:2}")
        for colour, text in lines.items():
            file = root / "ImageSets" / "Main" / f"{colour}_{split}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(text) + "\n")
    return root


def list_file(folder: Path, first: int, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    lines = []
    for number in range(first, first + count):
        draw(folder / f"{number}.png", contents(number % 7 + 1), number)
        lines.append(f"{number}.png\t{'; '.join(contents(number % 7 + 1))}")
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    return folder / "list.txt"


def test_voc_folders_are_read_as_they_are(tmp_path: Path) -> None:
    train, val = open_multilabel(str(voc_folder(tmp_path / "VOC2007")))
    assert train.classes == val.classes == ("blue", "green", "red")
    assert train.targets.shape == (48, 3) and val.targets.shape == (24, 3)
    assert train.targets[5].tolist() == [1, -1, 1]
    assert train.source.key(5) == "JPEGImages/000005.jpg"
    assert val.targets[0].tolist() == [0, 0, 1]
    assert np.asarray(train.source.read(5))[4, 4].argmax() == 0  # its red stripe


def test_lists_have_labels_joined_by_semicolons(tmp_path: Path) -> None:
    train, val = open_multilabel(str(list_file(tmp_path / "a", 0, 14)), str(list_file(tmp_path / "b", 2, 3)))
    assert train.classes == ("blue", "green", "red")
    assert [train.targets[number].tolist() for number in range(3)] == [[1, -1, -1], [-1, 1, -1], [1, 1, -1]]
    assert val.targets.shape == (3, 3)


@pytest.mark.parametrize("kind", ["voc", "list"])
def test_the_command_does_what_its_parts_do(kind: str, tmp_path: Path) -> None:
    weights = tiny.write_weights(tmp_path / "w.safetensors")
    if kind == "voc":
        data, val = str(voc_folder(tmp_path / "VOC2007")), None
    else:
        data, val = str(list_file(tmp_path / "a", 0, 49)), str(list_file(tmp_path / "b", 100, 21))
    config = SVMConfig(data, val, str(weights), c=(0.1, 10.0), out=str(tmp_path / "out"), workers=0, device="cpu")
    result = evaluate_svm(config)
    assert result.mean_average_precision == pytest.approx(np.mean(list(result.average_precision.values())))
    assert result.mean_average_precision > 80  # colours are easy, even for an untrained network

    train, judged = open_multilabel(data, val)
    embedder = load_embedder(weights, device="cpu")
    x, queries = (unit_length(embedder.encode(labelled.source)) for labelled in (train, judged))
    machine = fit_svm(x, train.targets[:, 1] == 1, costs=(0.1, 10.0))
    expected = average_precision(queries @ machine.weight + machine.bias, judged.targets[:, 1])
    assert result.average_precision["green"] == pytest.approx(expected, abs=1e-6)
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["mean_average_precision"] == result.mean_average_precision
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["job.json", "results.json"]
    assert "mean average precision" in result.summary()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    some = list_file(tmp_path / "a", 0, 14)
    with pytest.raises(ConfigError, match="--val"):
        open_multilabel(str(some))
    other = tmp_path / "a" / "other.txt"
    other.write_text("0.png\tpurple\n")
    with pytest.raises(DataError, match="not in the training data: purple"):
        open_multilabel(str(some), str(other))
    other.write_text("0.png\n1.png\n")
    with pytest.raises(DataError, match="no labels"):
        open_multilabel(str(other), str(some))
    voc = voc_folder(tmp_path / "VOC2007")
    column = voc / "ImageSets" / "Main" / "red_trainval.txt"
    column.write_text(column.read_text().replace("000004", "000999"))
    with pytest.raises(DataError, match=r"red_trainval\.txt does not name the same images"):
        open_multilabel(str(voc))
    column.write_text("000001 2\n")
    with pytest.raises(DataError, match="the value 2"):
        open_multilabel(str(voc))
    column.write_text("000001\n")
    with pytest.raises(DataError, match="an image and 1, 0 or -1 per line"):
        open_multilabel(str(voc))


def test_without_scikit_learn_one_line_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sklearn", "sklearn.exceptions", "sklearn.svm", "sklearn.model_selection"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(MissingExtraError, match=r"pip install 'barlowtwins\[eval\]'"):
        evaluate_svm(SVMConfig("nothing"))


def judge_among(rank: int, world_size: int, data: str, weights: str, out: str) -> dict[str, float]:
    config = SVMConfig(data, None, weights, c=(0.1, 10.0), out=out, workers=0, device="cpu")
    return evaluate_svm(config).average_precision


def test_two_processes_come_to_what_one_does(tmp_path: Path) -> None:
    weights, data = tiny.write_weights(tmp_path / "w.safetensors"), voc_folder(tmp_path / "VOC2007")
    alone = judge_among(0, 1, str(data), str(weights), str(tmp_path / "one"))
    assert run_processes(judge_among, 2, str(data), str(weights), str(tmp_path / "two")) == [alone, alone]
