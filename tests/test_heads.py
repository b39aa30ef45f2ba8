"""The HEAD file: read by another library, bound to its backbone, and the same logits whichever way it is loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from servers import Server, file
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights

from barlowtwins import hub
from barlowtwins.core.errors import BarlowTwinsError, ConfigError, OutputError, WeightsError
from barlowtwins.core.safetensors_file import write_safetensors
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.models.resnet import build_backbone
from barlowtwins.runs.run_folder import backbone_metadata
from barlowtwins.zoo.heads import Belonging, Head, load_classifier, load_head, save_head, tensors_digest
from barlowtwins.zoo.weights import load_weights

NAME, WIDTH, CLASSES = "resnet10_x0_5", 256, ("Katze", "chien, dog", "日本")
PREPROCESSING = Preprocessing(32, None)


def backbone_state(seed: int = 0) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_backbone(NAME, stem="small").state_dict()


STATE = backbone_state()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a RUN: a backbone, and a head that was trained on it."""
    folder = tmp_path_factory.mktemp("run")
    write_safetensors(folder / "backbone.safetensors", STATE, backbone_metadata(NAME, "small", PREPROCESSING))
    save_head(folder / "head.safetensors", make_head(folder))
    return folder


def make_head(weights: Path) -> Head:
    rng = torch.Generator().manual_seed(1)
    weight = torch.randn(len(CLASSES), WIDTH, generator=rng)
    belonging = Belonging.of(load_weights(weights), weights)
    return Head(weight, torch.randn(len(CLASSES), generator=rng), CLASSES, belonging, PREPROCESSING)


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def logits_by_hand(head: Head) -> Tensor:
    network = build_backbone(NAME, stem="small").eval()
    network.load_state_dict(STATE)
    with torch.no_grad():
        return network(images()) @ head.weight.T + head.bias


def test_what_is_saved_is_loaded(run: Path) -> None:
    head, loaded = make_head(run), load_head(run / "head.safetensors")
    assert torch.equal(loaded.weight, head.weight) and torch.equal(loaded.bias, head.bias)
    assert dataclasses.replace(loaded, weight=head.weight, bias=head.bias) == head


def test_the_file_is_safetensors_with_readable_strings(run: Path) -> None:
    with safe_open(run / "head.safetensors", "pt") as file:
        assert set(file.keys()) == {"weight", "bias"}
        assert file.get_tensor("weight").shape == (3, WIDTH)
        says = file.metadata()
    assert json.loads(says["classes"]) == list(CLASSES)
    assert "日本" in says["classes"]
    assert says["backbone"] == NAME
    assert says["backbone_file_sha256"] == load_weights(run).sha256
    assert json.loads(says["preprocessing"])["image_size"] == 32


def test_logits_and_predictions_are_the_formula() -> None:
    rng = np.random.default_rng(3)
    weight, bias = rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    head = Head(torch.tensor(weight), torch.tensor(bias), tuple("abcd"), Belonging("", ""), PREPROCESSING)
    features = rng.normal(size=(5, 6)).astype(np.float32)
    expected = np.array([[row @ w + b for w, b in zip(weight, bias, strict=True)] for row in features])
    np.testing.assert_allclose(head.logits(features).numpy(), expected, rtol=1e-5, atol=1e-5)
    features[2] = np.nan  # an image that could not be read
    predicted = head.predict(torch.tensor(features))
    assert predicted.tolist() == [*expected.argmax(1)[:2], -1, *expected.argmax(1)[3:]]


def test_a_loaded_network_gives_logits_and_knows_its_classes(run: Path, tmp_path: Path) -> None:
    network = load_classifier(run / "head.safetensors").build()
    assert network.classes == CLASSES == load_head(run).classes  # a folder with a head in it will do
    assert not any(part.training for part in network.modules())
    with torch.no_grad():
        torch.testing.assert_close(network(images()), logits_by_hand(load_head(run / "head.safetensors")))

    torch.save(network, tmp_path / "model.pt")  # and it may go where this package is absent
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert again.classes == CLASSES and type(again).__module__ == "torchvision.models.resnet"


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


@pytest.mark.parametrize(
    "save",
    [
        lambda folder: saved(folder / "flat.pth", STATE),
        lambda folder: saved(folder / "counted.pth", STATE | COUNTERS),
        lambda folder: saved(
            folder / "checkpoint.pth", {"epoch": 3, "model": {f"module.backbone.{k}": v for k, v in STATE.items()}}
        ),
    ],
    ids=["flat", "other counters", "checkpoint"],
)
def test_the_same_backbone_in_another_format_is_recognised(
    run: Path, tmp_path: Path, save: Callable[[Path], Path]
) -> None:
    other = save(tmp_path)
    assert load_weights(other).sha256 != load_weights(run).sha256
    network = load_classifier(run / "head.safetensors", weights=other).build()
    with torch.no_grad():
        torch.testing.assert_close(network(images()), logits_by_hand(load_head(run / "head.safetensors")))


COUNTERS = {key: torch.tensor(7) for key in STATE if key.endswith("num_batches_tracked")}


def test_the_digest_sees_every_value_name_and_shape() -> None:
    digest = tensors_digest(STATE)
    assert digest == tensors_digest(dict(reversed(STATE.items()))) == tensors_digest(STATE | COUNTERS)
    assert digest == tensors_digest(STATE | {"fc.weight": torch.zeros(3, 2)})
    one_ulp = STATE["layer3.0.conv1.weight"].clone()
    one_ulp.view(-1)[5] = torch.nextafter(one_ulp.view(-1)[5], torch.tensor(torch.inf))
    others = [
        STATE | {"layer3.0.conv1.weight": one_ulp},
        STATE | {"bn1.weight": STATE["bn1.bias"], "bn1.bias": STATE["bn1.weight"]},
        STATE | {"conv1.weight": STATE["conv1.weight"].reshape(3, 32, 3, 3)},
        {key: value for key, value in STATE.items() if key != "bn1.bias"},
    ]
    assert len({digest, *map(tensors_digest, others)}) == 5


def test_a_head_and_its_backbone_may_be_moved_together(run: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    for name in ("backbone.safetensors", "head.safetensors"):
        (old / name).write_bytes((run / name).read_bytes())
    save_head(old / "head.safetensors", make_head(old))
    save_head(old / "of-file.safetensors", make_head(old / "backbone.safetensors"))
    old.rename(new)
    for name in ("head.safetensors", "of-file.safetensors"):
        assert load_classifier(new / name).weights.path == new / "backbone.safetensors"


def test_weights_that_are_gone_are_asked_for(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.safetensors"
    nowhere = dataclasses.replace(make_head(run).belonging, weights=str(tmp_path / "gone"))
    save_head(alone, dataclasses.replace(make_head(run), belonging=nowhere))
    with pytest.raises(WeightsError, match=r"backbone of .*alone\.safetensors is not at hand; pass its weights"):
        load_classifier(alone)
    assert load_classifier(alone, weights=run).head.classes == CLASSES
    save_head(alone, dataclasses.replace(make_head(run), belonging=dataclasses.replace(nowhere, weights="")))
    with pytest.raises(WeightsError, match=r"does not say where its backbone \(resnet10_x0_5\) is"):
        load_classifier(alone)


def test_the_hub_puts_heads_on_its_networks(run: Path, tmp_path: Path) -> None:
    backbone = build_backbone("resnet18").eval()
    weights = saved(tmp_path / "resnet18.pth", backbone.state_dict())
    weight, bias = torch.randn(2, 512), torch.randn(2)
    belonging = Belonging.of(load_weights(weights), weights)
    save_head(tmp_path / "head.safetensors", Head(weight, bias, ("a", "b"), belonging, PREPROCESSING))
    network = hub.resnet18(head=tmp_path / "head.safetensors")
    assert network.classes == ("a", "b")
    with torch.no_grad():
        torch.testing.assert_close(network(images()), backbone(images()) @ weight.T + bias)

    with pytest.raises(ConfigError, match="not both"):
        hub.resnet18(head=tmp_path / "head.safetensors", num_classes=3)
    with pytest.raises(WeightsError, match="does not belong to"):
        hub.resnet18(head=tmp_path / "head.safetensors", weights=run)
    with pytest.raises(WeightsError, match="not a resnet18; load it with"):
        hub.resnet18(head=run / "head.safetensors")


# Foreign checkpoints that carry a classifier --------------------------------------------------------------------------


def mmpretrain_file(path: Path, classes: int, meta: dict[str, Any]) -> Path:
    """A checkpoint of the form of mmpretrain's linear evaluation."""
    state = {f"backbone.{key}": value for key, value in build_backbone("resnet18").state_dict().items()}
    state |= {"head.fc.weight": torch.randn(classes, 512), "head.fc.bias": torch.randn(classes)}
    state |= {"data_preprocessor.mean": torch.zeros(3, 1, 1), "data_preprocessor.std": torch.ones(3, 1, 1)}
    return saved(path, {"meta": {"epoch": 100, **meta}, "state_dict": state})


def test_the_linear_classifier_of_mmpretrain_is_an_imagenet_head(tmp_path: Path) -> None:
    path = mmpretrain_file(tmp_path / "resnet_linear.pth", 1000, {"mmengine_version": "0.1.0"})
    state = torch.load(path)["state_dict"]
    network = hub.resnet18(head=path)
    assert network.classes == tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
    assert network.classes[281] == "tabby"
    by_hand = build_backbone("resnet18").eval()
    by_hand.load_state_dict(
        {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    )
    with torch.no_grad():
        expected = by_hand(images()) @ state["head.fc.weight"].T + state["head.fc.bias"]
        torch.testing.assert_close(network(images()), expected)

    backbone = saved(tmp_path / "backbone.pth", by_hand.state_dict())  # the pretraining's own file, say
    assert load_classifier(path, weights=backbone).head.preprocessing == Preprocessing()
    with pytest.raises(WeightsError, match="does not belong to"):
        load_classifier(path, weights=saved(tmp_path / "other.pth", STATE))


def test_a_classifier_on_record_is_fetched_by_its_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = mmpretrain_file(tmp_path / "made.pth", 3, {"dataset_meta": {"classes": ["a", "b", "c"]}})
    data = made.read_bytes()
    made.unlink()
    record = {
        "name": "mine-linear",
        "summary": "a classifier",
        "backbone": "resnet18",
        "format": "mmpretrain",
        "licence": "MIT",
        "citation": "none",
        "preprocessing": {},
        "url": server.answer("/linear.pth", file(data)),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    (tmp_path / "registry.json").write_text(json.dumps({"weights": [record]}))
    monkeypatch.setenv("BARLOWTWINS_REGISTRY", str(tmp_path / "registry.json"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    network = hub.resnet18(head="mine-linear")
    assert network.classes == ("a", "b", "c") and network(images()).shape == (3, 3)
    assert len(server.requests) == 1  # the backbone is in the same file


def test_class_names_in_the_file_are_used(tmp_path: Path) -> None:
    path = mmpretrain_file(tmp_path / "a.pth", 2, {"dataset_meta": {"classes": ["cat", "dog"]}})
    assert load_head(path).classes == ("cat", "dog")
    assert load_head(mmpretrain_file(tmp_path / "b.pth", 3, {})).classes == ("0", "1", "2")


def test_a_supervised_network_is_a_head_too(tmp_path: Path) -> None:
    network = build_backbone(NAME)
    network.fc = nn.Linear(WIDTH, 4)
    path = saved(tmp_path / "supervised.pth", network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(load_classifier(path).build()(images()), network.eval()(images()))


# Files that are no heads ----------------------------------------------------------------------------------------------


def broken(path: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    says = {
        "head": "1",
        "classes": '["a", "b"]',
        "preprocessing": "{}",
        "backbone": NAME,
        "backbone_tensors_sha256": "",
        "backbone_file_sha256": "",
        "weights": "",
    }
    save_file(tensors, path, {key: value for key, value in (says | metadata).items() if value != "absent"})
    return path


SOUND = {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda p: p, "there is no weight file"),
        (lambda p: (p.write_bytes(b"") and p) or p, r"empty \(0 bytes\)"),
        (lambda p: saved(p, backbone_state()), "a backbone without a classifier"),
        (lambda p: saved(p, {"weight": torch.zeros(2)}), "no known layout"),
        (lambda p: broken(p, {"weight": torch.zeros(2, 4)}), "'bias'"),
        (lambda p: broken(p, SOUND, classes='["a"]'), "1 class names do not make a linear classifier"),
        (lambda p: broken(p, SOUND | {"bias": torch.zeros(3)}), "do not make"),
        (lambda p: broken(p, SOUND | {"weight": torch.zeros(2)}), "do not make"),
        (lambda p: broken(p, SOUND | {"bias": torch.tensor([0, torch.nan])}), "not finite"),
        (lambda p: broken(p, SOUND, classes="{"), "no sound HEAD"),
        (lambda p: broken(p, SOUND, classes="7"), "no sound HEAD"),
        (lambda p: broken(p, SOUND, classes="absent"), "'classes'"),
        (lambda p: broken(p, SOUND, preprocessing='{"image_size": "x"}'), "preprocessing"),
        (lambda p: broken(p, SOUND, preprocessing="[1]"), "preprocessing|HEAD"),
        (lambda p: broken(p, SOUND, head="2"), "newer barlowtwins"),
    ],
)
def test_what_is_no_head_is_refused_by_name(tmp_path: Path, make: Callable[[Path], Path], complaint: str) -> None:
    path = make(tmp_path / "x.pth")
    with pytest.raises(BarlowTwinsError, match=complaint) as refusal:
        load_head(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_head_is_not_written_over_a_folder(run: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        save_head(tmp_path, make_head(run))
