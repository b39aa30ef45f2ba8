"""The backbone under torchvision's detectors: the same features, frozen parts that stay, and losses that fall."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator

from barlowtwins.core.errors import ConfigError, WeightsError
from barlowtwins.core.safetensors_file import write_safetensors
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.models.resnet import build_backbone
from barlowtwins.runs.run_folder import backbone_metadata
from barlowtwins.zoo.detection import detection_backbone

SIDE = 64


def save(path: Path, name: str, *, channels: int = 3, **kwargs: Any) -> Path:
    """Weights whose batch norm has seen something, so that frozen and fresh statistics differ."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_backbone(name, channels=channels, zero_init_residual=False, **kwargs)
        network.train()(torch.randn(8, channels, 64, 64))
    mean = tuple(0.4 + 0.1 * channel for channel in range(channels))
    preprocessing = Preprocessing(SIDE, None, channels, mean, (0.5,) * channels)
    write_safetensors(path, network.state_dict(), backbone_metadata(name, "imagenet", preprocessing))
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("weights") / "resnet18.safetensors", "resnet18")


def scene() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images with a bright rectangle each, its box, class and mask."""
    images, targets = [], []
    for number, (left, top, right, bottom) in enumerate([(8, 8, 40, 36), (20, 24, 56, 60)]):
        image, mask = torch.full((3, SIDE, SIDE), 0.2), torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
        image[number, top:bottom, left:right] = 0.9
        mask[0, top:bottom, left:right] = 1
        boxes = torch.tensor([[left, top, right, bottom]], dtype=torch.float32)
        images.append(image)
        targets.append({"boxes": boxes, "labels": torch.tensor([number + 1]), "masks": mask})
    return images, targets


@pytest.mark.parametrize("detector", [FasterRCNN, MaskRCNN])
def test_training_steps_lower_the_loss_and_move_only_what_is_trained(detector: Any, weights: Path) -> None:
    torch.manual_seed(0)
    backbone = detection_backbone(weights, trainable_layers=2, out_channels=32)
    before = {name: value.clone() for name, value in backbone.body.state_dict().items()}
    model = detector(
        backbone,
        num_classes=3,
        min_size=SIDE,
        max_size=SIDE,
        image_mean=backbone.image_mean,
        image_std=backbone.image_std,
        rpn_anchor_generator=AnchorGenerator(((16,), (24,), (32,), (48,), (64,)), ((1.0,),) * 5),
        rpn_post_nms_top_n_train=50,
        box_batch_size_per_image=32,
    )
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02, momentum=0.9)
    images, targets = scene()
    losses = []
    for _ in range(8):
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < 0.6 * losses[0]
    after = backbone.body.state_dict()
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"layer3", "layer4"}  # frozen statistics included in what stays

    with torch.no_grad():
        found = model.eval()(images)
    assert set(found[0]) >= {"boxes", "labels", "scores"} and ("masks" in found[0]) == (detector is MaskRCNN)


def test_the_stages_give_what_the_classifiers_layers_give(tmp_path: Path) -> None:
    name = "resnet50"
    path = save(tmp_path / "w.safetensors", name)
    backbone = detection_backbone(path).train()  # frozen batch norm does not care
    plain = build_backbone(name).eval()
    plain.load_state_dict(load_file(path))
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        stages = backbone.body(x)
        y = plain.layer1(plain.maxpool(plain.relu(plain.bn1(plain.conv1(x)))))
        for number, layer in enumerate((None, plain.layer2, plain.layer3, plain.layer4)):
            y = layer(y) if layer else y
            torch.testing.assert_close(stages[str(number)], y, rtol=1e-4, atol=1e-4)
        pyramid = backbone(x)
    assert {key: tuple(value.shape[1:]) for key, value in pyramid.items()} == {
        "0": (256, 16, 24),
        "1": (256, 8, 12),
        "2": (256, 4, 6),
        "3": (256, 2, 3),
        "pool": (256, 1, 2),
    }


@pytest.mark.parametrize(
    ("layers", "trained"),
    [(0, set()), (1, {"layer4"}), (4, {"layer1", "layer2", "layer3", "layer4"})],
)
def test_how_much_is_trained(layers: int, trained: set[str], weights: Path) -> None:
    backbone = detection_backbone(weights, trainable_layers=layers)
    assert {name.split(".")[0] for name, p in backbone.body.named_parameters() if p.requires_grad} == trained
    assert all(p.requires_grad for p in backbone.fpn.parameters())


def test_everything_is_trained_with_batch_norm_if_asked(weights: Path) -> None:
    backbone = detection_backbone(weights, trainable_layers=5, freeze_norm=False)
    assert all(p.requires_grad for p in backbone.parameters())
    names = dict(backbone.body.named_parameters())
    assert {"conv1.weight", "bn1.weight", "layer1.0.bn1.bias"} <= set(names)


def test_it_says_what_images_must_be_like(weights: Path) -> None:
    backbone = detection_backbone(weights)
    assert backbone.image_mean == pytest.approx([0.4, 0.5, 0.6]) and backbone.image_std == [0.5] * 3


def test_what_does_not_fit_is_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trainable_layers is 6"):
        detection_backbone(weights, trainable_layers=6)
    with pytest.raises(WeightsError, match="grey"):
        detection_backbone(save(tmp_path / "grey.safetensors", "resnet10_x0_5", channels=1))
    with pytest.raises(WeightsError, match="resnet8_x0_5_grid4; a feature pyramid needs a ResNet's four stages"):
        detection_backbone(save(tmp_path / "three.safetensors", "resnet8_x0_5_grid4"))
