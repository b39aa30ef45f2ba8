"""The kNN that watches a run: which images it takes, what it says, and that it never ends or changes the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from barlowtwins.config import PretrainConfig
from barlowtwins.core.errors import DataError
from barlowtwins.data.open import open_source, subset
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.data.sources import ArraySource, Source
from barlowtwins.embedding.embedder import extract as extract_features
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.models.resnet import build_backbone
from barlowtwins.train import online_evaluation as monitor
from barlowtwins.train.online_evaluation import BANK, QUERIES, OnlineKNN, held_out

SMALL = Preprocessing(image_size=8, resize=None)


def images(folder: Path, classes: dict[str, int]) -> str:
    """A class-per-folder tree; the class "" puts its images into the folder itself."""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = np.random.default_rng(number + 1000 * len(name)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return str(folder)


def parts(data: str, **changes: Any) -> tuple[Source, Source] | None:
    return held_out(PretrainConfig(data, "run", **changes), open_source(data))


def keys(source: Source) -> list[str]:
    return [source.key(index) for index in range(len(source))]


# Which images ---------------------------------------------------------------------------------------------------------


def test_a_named_data_set_is_watched_with_its_test_split() -> None:
    found = parts("shapes:30")
    assert found is not None
    bank, queries = found
    assert (len(bank), len(queries)) == (30, 30)
    for part, split in ((bank, "train"), (queries, "test")):
        wanted = open_source("shapes:30", split=split)
        assert np.array_equal(np.asarray(part.read(7)), np.asarray(wanted.read(7)))


def test_of_labelled_folders_every_sixth_image_is_asked_about(tmp_path: Path) -> None:
    data = images(tmp_path, {"cat": 12, "dog": 13})
    found = parts(data)
    assert found is not None
    bank, queries = found
    everything = keys(open_source(data))
    assert keys(queries) == everything[::6]
    assert sorted(keys(bank) + keys(queries)) == everything
    assert queries.labels is not None
    assert set(queries.labels.tolist()) == {0, 1}


def test_val_names_what_is_asked_about(tmp_path: Path) -> None:
    data, val = images(tmp_path / "train", {"a": 5, "b": 4}), images(tmp_path / "val", {"a": 2, "b": 1})
    found = parts(data, val=val)
    assert found is not None
    assert (len(found[0]), len(found[1])) == (9, 3)


def test_unlabelled_data_are_watched_on_labelled_ones_alone(tmp_path: Path) -> None:
    data, val = images(tmp_path / "train", {"": 9}), images(tmp_path / "val", {"a": 7, "b": 6})
    assert parts(data) is None
    found = parts(data, val=val)
    assert found is not None
    assert keys(found[1]) == ["a/00.png", "a/06.png", "b/05.png"]
    assert len(found[0]) == 10


def test_a_probe_alone_needs_the_images_too() -> None:
    assert parts("shapes:30", knn_every=0, probe_every=3) is not None


@pytest.mark.parametrize("changes", [{"val": "none"}, {"knn_every": 0, "probe_every": 0}])
def test_it_can_be_turned_off(changes: dict[str, Any]) -> None:
    assert parts("shapes:30", **changes) is None


def test_many_images_are_thinned_evenly() -> None:
    labels = np.repeat(np.arange(10), 6000)
    many = ArraySource("many", np.zeros((60_000, 1, 1), np.uint8), labels)
    found = held_out(PretrainConfig("photos", "run"), many)
    assert found is not None
    bank, queries = found
    assert (len(bank), len(queries)) == (BANK, QUERIES)
    for part in found:
        assert part.labels is not None
        counts = np.bincount(part.labels)
        assert len(counts) == 10
        assert np.ptp(counts) <= 2
        assert len(set(keys(part))) == len(part)
    assert not set(keys(bank)) & set(keys(queries))


def test_val_without_labels_is_refused(tmp_path: Path) -> None:
    data, val = images(tmp_path / "train", {"a": 5, "b": 4}), images(tmp_path / "val", {"": 3})
    with pytest.raises(DataError, match="val has no labels, which --val needs"):
        parts(data, val=val)


def test_val_may_lack_classes_and_labels_are_matched_by_name(tmp_path: Path) -> None:
    data, val = images(tmp_path / "train", {"a": 5, "b": 4, "c": 3}), images(tmp_path / "val", {"c": 2, "b": 1})
    found = parts(data, val=val)
    assert found is not None
    bank, queries = found
    assert queries.classes == bank.classes == ("a", "b", "c")
    assert queries.labels is not None and queries.labels.tolist() == [1, 2, 2]
    assert [queries.key(row)[0] for row in range(3)] == ["b", "c", "c"]


def test_more_classes_in_val_than_in_training_are_refused_by_name(tmp_path: Path) -> None:
    data, val = images(tmp_path / "train", {"a": 5, "b": 4}), images(tmp_path / "val", {"a": 3, "b": 1, "zebra": 2})
    with pytest.raises(DataError, match=r"--val has classes that the training data lack: zebra"):
        parts(data, val=val)


# What it says ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_backbone("resnet10_x0_5", stem="small")


def watch(bank: Source, queries: Source, workers: int = 0) -> OnlineKNN:
    return OnlineKNN(bank, queries, SMALL, device="cpu", workers=workers)


def test_it_is_the_weighted_knn_of_features_in_evaluation_mode(backbone: torch.nn.Module) -> None:
    bank, queries = open_source("shapes:200"), open_source("shapes:100", split="test")
    features = []
    for source in (bank, queries):
        with torch.no_grad():
            batch = torch.stack([SMALL(source.read(index)) for index in range(len(source))])
            rows = backbone.eval()(batch)
            features.append(torch.nn.functional.normalize(rows).double().numpy())
    oracle = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d**2 / 2) / 0.07), algorithm="brute")
    oracle.fit(features[0], bank.labels)
    wanted = 100 * (oracle.predict(features[1]) == queries.labels).mean()
    assert watch(bank, queries).accuracy(backbone) == pytest.approx(wanted, abs=1e-6)


def test_the_probe_is_logistic_regression_on_the_same_features(
    backbone: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, queries = open_source("shapes:200"), open_source("shapes:100", split="test")
    extracted: list[np.ndarray] = []

    def extract(*arguments: Any, **named: Any) -> Any:
        rows, good = extract_features(*arguments, **named)
        extracted.append(rows)
        return rows, good

    monkeypatch.setattr(monitor, "extract", extract)
    found = watch(bank, queries).evaluate(backbone, probe=True)
    assert found is not None
    assert len(extracted) == 2  # the bank and the queries, once for both
    assert found["knn"] == watch(bank, queries).accuracy(backbone)
    scaler = StandardScaler().fit(extracted[0].astype(np.float64))
    oracle = LogisticRegression(C=1 / (200 * monitor.PENALTY), tol=1e-8, max_iter=5000)
    oracle.fit(scaler.transform(extracted[0]), bank.labels)
    wanted = 100 * (oracle.predict(scaler.transform(extracted[1])) == queries.labels).mean()
    assert found["probe"] == pytest.approx(wanted, abs=1.01)  # one image of a hundred may lie on the border
    assert set(watch(bank, queries).evaluate(backbone, knn=False, probe=True) or ()) == {"probe"}


def test_the_network_and_all_random_states_are_left_as_they_were() -> None:
    model = BarlowTwins("resnet10_x0_5", "8-8", stem="small")
    model.train()
    model.get_submodule("backbone.layer1").eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    source = open_source("shapes:40")
    watch(source, source, workers=1).accuracy(model.backbone)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    model(torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)).backward()  # and can be trained


def test_a_single_class_and_a_class_of_one_image_have_a_result(tmp_path: Path, backbone: torch.nn.Module) -> None:
    for number, (classes, wanted) in enumerate([({"only": 12}, 100.0), ({"a": 11, "lone": 1}, None)]):
        found = parts(images(tmp_path / str(number), classes))
        assert found is not None
        accuracy = watch(*found).accuracy(backbone)
        assert accuracy is not None
        assert accuracy == wanted if wanted is not None else 0 <= accuracy <= 100


def test_images_that_cannot_be_read_do_not_count(tmp_path: Path, backbone: torch.nn.Module) -> None:
    folder = Path(images(tmp_path, {"a": 15, "b": 15}))
    found = parts(str(folder))
    assert found is not None
    bank, queries = found
    bad = [source.path(index) for source in found for index in (1, 3)] + [bank.path(index) for index in range(5, 12)]
    for path in bad:
        assert path is not None
        path.write_bytes(b"")
    good = [subset(source, [i for i in range(len(source)) if source.path(i) not in bad]) for source in found]
    assert len(good[0]) < 20  # fewer than neighbours are asked for
    assert watch(bank, queries).accuracy(backbone) == watch(*good).accuracy(backbone)


def test_where_nothing_can_be_read_there_is_a_warning_and_no_result(
    tmp_path: Path, backbone: torch.nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    found = parts(images(tmp_path, {"a": 4, "b": 4}))
    assert found is not None
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    assert watch(*found).accuracy(backbone) is None
    assert "warning: no kNN" in capsys.readouterr().err


def test_a_network_that_gives_no_numbers_is_no_reason_to_stop(capsys: pytest.CaptureFixture[str]) -> None:
    broken = build_backbone("resnet10_x0_5", stem="small")
    with torch.no_grad():
        broken.conv1.weight.fill_(float("nan"))
    source = open_source("shapes:20")
    assert watch(source, source).accuracy(broken) is None
    assert "warning: no kNN" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_it_gives_up_within_a_batch_when_it_is_told_to(backbone: torch.nn.Module, workers: int) -> None:
    source, asked = open_source("shapes:1000"), 0

    def give_up() -> bool:
        nonlocal asked
        asked += 1
        return asked == 2

    assert watch(source, source, workers).accuracy(backbone, give_up) is None
    assert asked == 2
