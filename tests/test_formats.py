"""Each known layout, built from its documentation, comes out as our key names with the same numbers to the bit."""

from __future__ import annotations

import copy
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn
from weight_files import (
    TINY,
    backbone_state,
    equal,
    lightning_checkpoint,
    lightning_module,
    mmpretrain_checkpoint,
    published_checkpoint,
    saved,
    twins_state,
    vissl_checkpoint,
)

from barlowtwins.core.errors import WeightsError
from barlowtwins.hub import resnet18
from barlowtwins.loss import BarlowTwinsLoss
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.models.resnet import BACKBONES, build_backbone
from barlowtwins.runs.checkpoint import Checkpoint, save_checkpoint
from barlowtwins.zoo.formats import FORMATS, match_keys, take_apart
from barlowtwins.zoo.registry import registry
from barlowtwins.zoo.safe_load import Contents, read_weight_file
from barlowtwins.zoo.weights import load_weights

BACKBONE, TWINS = backbone_state(), twins_state()
PROJECTOR = {key: tensor for key, tensor in TWINS.items() if not key.startswith("backbone.")}
TWINS_BACKBONE = {key.removeprefix("backbone."): tensor for key, tensor in TWINS.items() if key not in PROJECTOR}


@pytest.mark.parametrize(
    ("value", "name", "backbone", "projector"),
    [
        (BACKBONE, "torchvision", BACKBONE, None),
        (BACKBONE | {"fc.weight": torch.zeros(10, 256), "fc.bias": torch.zeros(10)}, "torchvision", BACKBONE, None),
        (TWINS, "barlowtwins", TWINS_BACKBONE, PROJECTOR),
        ({f"backbone.{key}": tensor for key, tensor in BACKBONE.items()}, "barlowtwins", BACKBONE, None),
        (published_checkpoint(TWINS), "checkpoint", TWINS_BACKBONE, PROJECTOR),
    ],
    ids=["torchvision", "with a classifier", "whole model", "backbone in a model", "published checkpoint"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickled_layouts(tmp_path: Path, value: Any, name: str, backbone: Any, projector: Any, zipped: bool) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(saved(value, _use_new_zipfile_serialization=zipped))
    loaded = load_weights(path)
    assert loaded.format == name
    assert loaded.backbone_name == TINY
    assert equal(loaded.backbone, backbone)
    assert (loaded.projector is None) if projector is None else equal(loaded.projector, projector)
    assert loaded.projector_widths == (None if projector is None else "32-32-16")
    assert loaded.epoch == (1000 if name == "checkpoint" else None)


def test_a_training_checkpoint_of_this_package(tmp_path: Path) -> None:
    state = twins_state(stem="small-stride2", channels=1)
    settings = {"backbone": TINY, "stem": "small-stride2", "channels": 1, "lambd": 0.0051}
    path = save_checkpoint(tmp_path, Checkpoint(step=7, model=state, optimizer={}, config=settings, data={}))
    loaded = load_weights(path)
    assert (loaded.format, loaded.stem, loaded.channels) == ("checkpoint", "small-stride2", 1)
    assert equal({f"backbone.{key}": tensor for key, tensor in loaded.backbone.items()} | loaded.projector, state)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype)
)
def test_safetensors_are_read_as_their_library_reads_them(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in BACKBONE.items()}
    tensors |= {"empty": torch.empty(0, 3), "scalar": torch.tensor(3.0), "flag": torch.tensor([True, False, True])}
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(tensors, path, {"format": "pt", "größe": "ß"})
    ours = read_weight_file(path)
    theirs = safetensors.torch.load_file(path)
    assert equal(ours.value, theirs)
    assert all(ours.value[key].dtype == theirs[key].dtype for key in theirs)
    assert ours.metadata == {"format": "pt", "größe": "ß"}


def test_half_precision_files_give_float32(tmp_path: Path) -> None:
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in BACKBONE.items()}
    safetensors.torch.save_file(half, tmp_path / "w.safetensors")
    loaded = load_weights(tmp_path / "w.safetensors").backbone
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in loaded.values())
    assert all(torch.equal(loaded[key], half[key].to(loaded[key].dtype)) for key in half)


def test_metadata_says_what_shapes_cannot(tmp_path: Path) -> None:
    """The stride of a small stem leaves no trace in the weights; the preprocessing never does."""
    state = backbone_state(stem="small-stride2", channels=1)
    preprocessing = {"image_size": 28, "resize": None, "channels": 1, "mean": [0.3], "std": [0.2]}
    metadata = {"backbone": TINY, "stem": "small-stride2", "channels": "1", "preprocessing": json.dumps(preprocessing)}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors", metadata)
    loaded = load_weights(tmp_path / "w.safetensors")
    assert (loaded.stem, loaded.channels) == ("small-stride2", 1)
    assert loaded.preprocessing.image_size == 28
    assert loaded.build().conv1.stride == (2, 2)
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    loaded = load_weights(tmp_path / "w.safetensors")
    assert (loaded.stem, loaded.channels, loaded.preprocessing.channels) == ("small", 1, 1)


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ({"backbone": "resnet9000"}, "unknown backbone 'resnet9000'"),
        ({"backbone": "resnet18"}, "do not make a resnet18"),
        ({"backbone": TINY, "stem": "huge"}, "unknown stem 'huge'"),
        ({"backbone": TINY, "channels": "many"}, "'many' channels"),
        ({"backbone": TINY, "channels": "1"}, "1 of another shape"),
        ({"preprocessing": "{"}, "preprocessing"),
        ({"preprocessing": "3"}, "preprocessing"),
        ({"preprocessing": '{"image_size": "x"}'}, "preprocessing"),
    ],
)
def test_metadata_that_lies_is_named(tmp_path: Path, metadata: dict[str, str], complaint: str) -> None:
    safetensors.torch.save_file(BACKBONE, tmp_path / "w.safetensors", metadata)
    with pytest.raises(WeightsError, match=rf"w\.safetensors.*{complaint}"):
        load_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_torchvisions_own_state_dicts_fit(name: str) -> None:
    """The oracle for the key names: what torchvision itself builds."""
    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    parts = take_apart(Contents(state))
    assert parts.format.name == "torchvision"
    assert set(state) - set(parts.backbone) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(256, dtype=torch.complex64),
        torch.zeros(256).to_sparse(),
        torch.zeros(256, device="meta"),
    ],
    ids=["complex", "sparse", "meta"],
)
def test_tensors_of_other_kinds_are_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(saved(BACKBONE | {"layer4.0.bn2.bias": tensor}))
    with pytest.raises(WeightsError, match=r"w\.pth.*(layer4\.0\.bn2\.bias|holds torch\._utils\._rebuild_.*refused)"):
        load_weights(path)


def test_a_tensor_that_only_claims_to_be_large_costs_no_memory(tmp_path: Path) -> None:
    """Its storage is one number; a copy would take 4 TB."""
    path = tmp_path / "w.pth"
    path.write_bytes(saved(BACKBONE | {"bn1.bias": torch.zeros(1).expand(1 << 40)}))
    with pytest.raises(WeightsError, match=r"shape \(1099511627776,\) does not fit into its storage of 1 numbers"):
        load_weights(path)


def test_the_loaded_tensors_belong_to_nobody_else(tmp_path: Path) -> None:
    shared = BACKBONE | {"bn1.bias": BACKBONE["bn1.weight"]}  # one storage under two names
    path = tmp_path / "w.pth"
    path.write_bytes(saved(shared))
    loaded = load_weights(path)
    loaded.backbone["bn1.bias"].zero_()
    assert torch.equal(loaded.backbone["bn1.weight"], BACKBONE["bn1.weight"])
    net = loaded.build()
    net.conv1.weight.data.zero_()
    assert torch.equal(loaded.backbone["conv1.weight"], BACKBONE["conv1.weight"])


def test_counts_are_of_all_keys_and_names_of_the_first_three() -> None:
    expected = {name: torch.zeros(1) for name in "abcdefg"}
    found = {name: torch.zeros(2) for name in "efghijkl"}
    with pytest.raises(WeightsError) as caught:
        match_keys(found, expected, "no")
    assert str(caught.value) == (
        "no: 4 missing (a, b, c, ...); 5 unexpected (h, i, j, ...); 3 of another shape "
        "(e (2,) instead of (1,), f (2,) instead of (1,), g (2,) instead of (1,))"
    )


def test_every_record_names_a_format_and_a_backbone_that_exist() -> None:
    for record in registry().values():
        assert record.format in FORMATS
        assert record.backbone in BACKBONES


# Other people's layouts -----------------------------------------------------------------------------------------------


def _backbone_module(state: dict[str, Any] = BACKBONE) -> torch.nn.Module:
    net = build_backbone(TINY)
    net.load_state_dict(state)
    return net


def _trained(module: torch.nn.Module) -> torch.nn.Module:
    """With biases far from 0."""
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if not name.startswith("backbone."):
            torch.nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.parametrize("container", ["torch.save", "safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize(
    ("name", "value", "inner"),
    [
        ("vissl", vissl_checkpoint(BACKBONE), ("classy_state_dict", "base_model", "model", "trunk")),
        ("mmpretrain", mmpretrain_checkpoint(BACKBONE), ("state_dict",)),
        ("torchvision", {"state_dict": BACKBONE, "arch": "resnet50", "epoch": 3}, ("state_dict",)),
        ("lightly", lightning_checkpoint(lightning_module("lightly", _backbone_module(), (8, 8, 4))), ("state_dict",)),
        (
            "lightly-sequential",
            lightning_checkpoint(
                lightning_module("lightly", nn.Sequential(*list(_backbone_module().children())[:-1]), (8, 8, 4))
            ),
            ("state_dict",),
        ),
        (
            "solo-learn",
            lightning_checkpoint(lightning_module("solo-learn", _backbone_module(), (8, 8, 4))),
            ("state_dict",),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_foreign_layouts(
    tmp_path: Path,
    name: str,
    value: Any,
    inner: tuple[str, ...],
    prefix: str,
    container: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = copy.deepcopy(value)
    place = value
    for key in inner:
        outer, place = place, place[key]
    outer[inner[-1]] = {prefix + key: tensor for key, tensor in place.items()}
    path = tmp_path / "w.ckpt"
    if container == "torch.save":
        path.write_bytes(saved(value))
    else:
        safetensors.torch.save_file(dict(outer[inner[-1]]), path)
    loaded = load_weights(path)
    assert (loaded.format, loaded.backbone_name) == (name, TINY)
    assert equal(loaded.backbone, BACKBONE)
    assert (FORMATS[name].title in capsys.readouterr().err) == (name != "torchvision")
    if "projector" in str(FORMATS[name].projector):
        assert loaded.projector_widths == "8-8-4"
    if name in ("lightly", "lightly-sequential", "solo-learn") and container == "torch.save":
        assert loaded.epoch == 100  # Lightning counts from 0, and saves the epoch that has just been


def test_the_classifiers_of_lightning_files_are_heads() -> None:
    for style, prefix in (("lightly", "online_classifier.classification_head."), ("solo-learn", "classifier.")):
        module = lightning_module(style, _backbone_module(), (8, 8, 4))
        parts = take_apart(Contents(lightning_checkpoint(module)))
        assert parts.head is not None
        assert equal(parts.head, {key: module.state_dict()[prefix + key] for key in ("weight", "bias")})


class SoloLearn(nn.Module):
    """The layout of solo-learn for CIFAR: torchvision's ResNet with a 3x3 stem of padding 2 and without pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torchvision.models.resnet18()
        self.backbone.fc = nn.Identity()
        self.backbone.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=2, bias=False)
        self.backbone.maxpool = nn.Identity()
        self.classifier = nn.Linear(512, 10)
        layers = [nn.Linear(512, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()]
        self.projector = nn.Sequential(*layers, nn.Linear(8, 4))


def test_a_solo_learn_checkpoint_for_cifar_gives_the_features_of_its_own_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    theirs = SoloLearn()
    images = torch.randn(4, 3, 32, 32)
    theirs.backbone.train()(images)  # running statistics of their own
    path = tmp_path / "solo.ckpt"
    path.write_bytes(saved(lightning_checkpoint(theirs)))
    loaded = load_weights(path)
    assert (loaded.format, loaded.backbone_name, loaded.stem) == ("solo-learn", "resnet18", "small-padding2")
    assert "reading it as stem 'small-padding2' (stride 1, padding 2)" in capsys.readouterr().err
    with torch.no_grad():
        expected = theirs.backbone.eval()(images)
        torch.testing.assert_close(loaded.build()(images), expected, rtol=1e-5, atol=1e-6)
        wrong = build_backbone("resnet18", stem="small").eval()
        wrong.load_state_dict(loaded.backbone)
        assert (wrong(images) - expected).norm() > 0.02 * expected.norm()  # padding matters
    with torch.no_grad():
        torch.testing.assert_close(resnet18(weights=path)(images), expected, rtol=1e-5, atol=1e-6)


def test_other_small_stems_are_read_with_padding_1_and_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = {f"backbone.{key}": tensor for key, tensor in backbone_state(stem="small").items()}
    (tmp_path / "w.ckpt").write_bytes(saved({"state_dict": bare}))
    assert load_weights(tmp_path / "w.ckpt").stem == "small"
    assert "does not contain the stride and padding" in capsys.readouterr().err
    (tmp_path / "large.ckpt").write_bytes(saved({"state_dict": BACKBONE}))
    load_weights(tmp_path / "large.ckpt")
    assert "stride and padding" not in capsys.readouterr().err


@pytest.mark.parametrize("style", ["lightly", "solo-learn"])
def test_a_foreign_projector_gives_the_same_loss_and_gradients(style: str) -> None:
    """Oracle: their module itself, biases included, in training and in evaluation mode."""
    module = _trained(lightning_module(style, _backbone_module(), (8, 8, 4))).double()
    projector = module.projector if style == "solo-learn" else module.projection_head.layers
    features = torch.randn(32, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(3):
        projector.train()(features)  # running statistics that have seen the biases
    parts = take_apart(Contents(lightning_checkpoint(module)))
    ours = BarlowTwins(_backbone_module(), "8-8-4").double()
    state = {f"backbone.{key}": tensor for key, tensor in parts.backbone.items()} | (parts.projector or {})
    ours.load_state_dict(state)
    for mode in (True, False):
        theirs = projector.train(mode)(features)
        mine = ours.projector.train(mode)(features)
        last = projector[-1].bias
        torch.testing.assert_close(mine, theirs - last)  # a constant, which standardisation removes
    views = (features + 0.1, features.roll(1, 1))
    losses = [BarlowTwinsLoss()(net(views[0]), net(views[1])) for net in (projector.train(), ours.projector.train())]
    torch.testing.assert_close(losses[0], losses[1])
    weights = [projector[0].weight, ours.projector[0].weight]
    gradients = [torch.autograd.grad(loss, weight)[0] for loss, weight in zip(losses, weights, strict=True)]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_objects_of_known_makers_beside_the_tensors_are_neither_kept_nor_run(tmp_path: Path) -> None:
    """Classes of libraries that are not installed, under the names that their files have."""
    modules = {"omegaconf.dictconfig": "DictConfig", "mmengine.logging.history_buffer": "HistoryBuffer"}
    made = []
    for module, name in modules.items():
        kind = type(name, (), {"__module__": module, "__init__": lambda self: setattr(self, "content", [1, {"a": 2}])})
        sys.modules.setdefault(module.split(".")[0], types.ModuleType(module.split(".")[0]))
        sys.modules[module] = types.ModuleType(module)
        setattr(sys.modules[module], name, kind)
        made.append(kind())
    path = tmp_path / "solo.ckpt"
    checkpoint = lightning_checkpoint(lightning_module("solo-learn", _backbone_module(), (8, 8, 4)))
    beside = {"cfg": made[0], "history": made[1], "top1": np.float64(92.1), "curve": np.arange(3.0), "where": tmp_path}
    try:
        path.write_bytes(saved({**checkpoint, "hyper_parameters": beside}))
    finally:
        for module in modules:
            del sys.modules[module]
            sys.modules.pop(module.split(".")[0], None)
    loaded = load_weights(path)
    assert (loaded.format, equal(loaded.backbone, BACKBONE)) == ("solo-learn", True)
    assert vars(read_weight_file(path).value["hyper_parameters"]["cfg"]) == {}


def test_a_file_with_two_owners_is_of_the_one_who_explains_more() -> None:
    """Both begin with backbone. and lie under state_dict; what else is there decides."""
    for style in ("lightly", "solo-learn"):
        module = lightning_module(style, _backbone_module(), (8, 8, 4))
        assert take_apart(Contents(lightning_checkpoint(module))).format.name == style
    strange = mmpretrain_checkpoint(BACKBONE)
    strange["state_dict"]["teacher.conv1.weight"] = torch.ones(1)
    with pytest.raises(WeightsError, match=r"1 keys do not belong in a file of the format 'mmpretrain' \(teacher"):
        take_apart(Contents(strange))


@pytest.mark.parametrize(
    "odd",
    [
        {"projection_head.layers.weight": torch.ones(3, 3), "projection_head.layers.bias": torch.ones(3)},
        {"projection_head.layers.0.bias": torch.zeros(1).expand(1 << 40)},
        {"projection_head.layers.1.running_mean": torch.zeros(1).expand(1 << 40)}
        | {"projection_head.layers.0.bias": torch.ones(1).expand(1 << 40)},
        {"projection_head.layers.6.weight": torch.zeros(1, 1).expand(1 << 40, 8)},
        {"projection_head.layers.0.weight": torch.tensor(3.0)},
        {"projection_head.layers.01.weight": torch.ones(3, 3)},
    ],
    ids=["unnumbered", "huge bias", "huge mean", "huge layer", "scalar", "numbered oddly"],
)
def test_odd_projectors_are_refused_without_memory(tmp_path: Path, odd: dict[str, torch.Tensor]) -> None:
    checkpoint = lightning_checkpoint(lightning_module("lightly", _backbone_module(), (8, 8, 4)))
    checkpoint["state_dict"] |= odd
    path = tmp_path / "w.ckpt"
    path.write_bytes(saved(checkpoint))
    with pytest.raises(WeightsError, match=r"w\.ckpt"):
        load_weights(path)
