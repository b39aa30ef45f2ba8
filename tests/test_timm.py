"""timm: its ResNets load ours, ours are read from its files, and any of its models is a backbone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import write_images
from torch import nn
from training import tiny
from weight_files import backbone_state, equal, saved

from barlowtwins.config import ExportConfig, WeightsConvertConfig
from barlowtwins.core.errors import ConfigError, WeightsError
from barlowtwins.embedding.embedder import load_embedder
from barlowtwins.hub import resnet50
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.models.resnet import build_backbone, feature_width
from barlowtwins.pretraining import pretrain
from barlowtwins.zoo.conversion import weights_convert
from barlowtwins.zoo.export import export
from barlowtwins.zoo.weights import load_weights

timm = pytest.importorskip("timm", reason="the extra timm is not installed")

SMALL = ("timm:test_vit", "timm:test_convnext")  # timm's own, for tests: 0.3 and 0.2 M parameters, F 64


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_key_names_of_its_resnets_are_ours(name: str) -> None:
    with torch.device("meta"):
        theirs, ours = timm.create_model(name, num_classes=0).state_dict(), build_backbone(name).state_dict()
    assert {key: tensor.shape for key, tensor in theirs.items()} == {key: tensor.shape for key, tensor in ours.items()}


def test_its_resnet50_loads_ours_strictly_and_gives_the_same_features(tmp_path: Path) -> None:
    state = backbone_state("resnet50")
    (tmp_path / "in.pth").write_bytes(saved(state))
    made = weights_convert(WeightsConvertConfig(str(tmp_path / "in.pth"), str(tmp_path / "w.safetensors"), "timm"))
    theirs = timm.create_model("resnet50", num_classes=0, checkpoint_path=str(made.out))
    assert equal(theirs.state_dict(), state)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(resnet50(weights=made.out)(images), theirs.eval()(images))


@pytest.mark.parametrize("wrapped", [False, True])
def test_its_checkpoints_of_resnets_are_read(tmp_path: Path, wrapped: bool) -> None:
    net = timm.create_model("resnet18", num_classes=10)
    state = net.state_dict()
    value = {"epoch": 4, "arch": "resnet18", "state_dict": state, "version": 2} if wrapped else state
    (tmp_path / "w.pth.tar").write_bytes(saved(value))
    loaded = load_weights(tmp_path / "w.pth.tar")
    assert (loaded.backbone_name, loaded.format) == ("resnet18", "torchvision")
    assert equal(loaded.backbone, {key: tensor for key, tensor in state.items() if not key.startswith("fc.")})
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    assert equal(load_weights(tmp_path / "model.safetensors").backbone, loaded.backbone)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_any_of_its_models_is_a_backbone(name: str, channels: int) -> None:
    net = build_backbone(name, channels=channels).eval()
    assert type(net.fc) is nn.Identity and feature_width(net) == 64
    images = torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(images), net.net(images))
    assert net(images).shape == (2, 64)
    net.fc = nn.Linear(net.fc.in_features, 5)
    assert net(images).shape == (2, 5)
    model = BarlowTwins(name, "16-8", channels=channels)
    loss = model(images, images.flip(3))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_feature_width_is_what_comes_out() -> None:
    for name in ("test_efficientnet", "test_resnet", "test_vit2", "mobilenetv3_small_050"):
        net = build_backbone(f"timm:{name}").eval()
        assert net(torch.zeros(1, 3, 64, 64)).shape == (1, feature_width(net))


@pytest.mark.parametrize("name", SMALL)
def test_pretraining_embedding_and_export(name: str, tmp_path: Path) -> None:
    """The whole path: train, resume, load the RUN, embed, give to timm and to torch.export."""
    changes = {"backbone": name, "image_size": 32, "data": "shapes:32", "epochs": 2, "knn_every": 0}
    assert pretrain(tiny(tmp_path / "run", **changes, max_steps=2)).step == 2
    result = pretrain(tiny(tmp_path / "run", **changes))
    assert (result.step, result.settings.stem) == (4, "imagenet")
    loaded = load_weights(tmp_path / "run")
    full = load_weights(tmp_path / "run", full=True)
    newest = load_weights(tmp_path / "run" / "checkpoints" / "step-00000004.pt")
    for one in (loaded, full, newest):
        assert one.backbone_name == name and equal(one.backbone, loaded.backbone)
    assert (loaded.format, full.format, newest.format) == ("timm", "barlowtwins", "checkpoint")
    assert full.projector_widths == "32-32" == newest.projector_widths

    images = write_images(tmp_path / "images", 3)
    features = load_embedder(tmp_path / "run", device="cpu").encode(images)
    assert features.shape == (3, 64) and np.isfinite(features).all()

    out = str(tmp_path / "timm.safetensors")
    weights_convert(WeightsConvertConfig(str(tmp_path / "run"), out, "timm"))
    sizes = {"dynamic_img_size": True} if "vit" in name else {}
    theirs = timm.create_model(name.removeprefix("timm:"), num_classes=0, **sizes).eval()
    theirs.load_state_dict(load_file(out), strict=True)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded.build()(x), theirs(x))
    with pytest.raises(WeightsError, match="which detectron2 has no names for"):
        export(ExportConfig(str(tmp_path / "run"), str(tmp_path / "d.pkl"), "detectron2"))

    made = export(ExportConfig(str(tmp_path / "run"), str(tmp_path / "net.pt2"), "torch-export"))
    assert made.features == 64 and made.difference is not None and made.difference < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_onnx(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    pretrain(tiny(tmp_path / "run", backbone=name, image_size=32, data="shapes:16", epochs=1, knn_every=0))
    made = export(ExportConfig(str(tmp_path / "run"), str(tmp_path / "net.onnx"), "onnx"))  # it compares by itself
    assert made.features == 64 and made.difference is not None and made.difference < 1e-4


def test_what_is_not_there_is_told() -> None:
    with pytest.raises(ConfigError, match=r"no model 'convnext_tinny'; did you mean convnext_tiny"):
        build_backbone("timm:convnext_tinny")
    with pytest.raises(ConfigError, match="has its own first layers, and --stem small is for ResNets"):
        build_backbone("timm:test_vit", stem="small")
    with pytest.raises(ConfigError, match=r"unknown backbone 'convnext_tiny'.*timm:NAME"):
        build_backbone("convnext_tiny")
    with pytest.raises(ConfigError, match=r"images of 20 x 32 pixels do not divide into the 16 x 16 patches"):
        build_backbone("timm:test_vit")(torch.zeros(1, 3, 20, 32))
