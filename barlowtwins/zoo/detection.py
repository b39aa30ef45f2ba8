"""A trained backbone under torchvision's detectors: Faster R-CNN, Mask R-CNN, Keypoint R-CNN, RetinaNet, FCOS.

    from torchvision.models.detection import FasterRCNN, MaskRCNN

    backbone = detection_backbone("resnet50")
    model = FasterRCNN(backbone, num_classes=21)           # 20 classes and the background
    losses = model(images, targets)                        # as torchvision documents it; the sum is trained

Weights that were trained with another mean and standard deviation than ImageNet's, as small images often are, say so:
`FasterRCNN(backbone, 21, image_mean=backbone.image_mean, image_std=backbone.image_std)`.
"""

from __future__ import annotations

import os

from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from barlowtwins.core.errors import ConfigError, WeightsError
from barlowtwins.zoo.weights import load_weights

__all__ = ["detection_backbone"]

STAGES = ("layer1", "layer2", "layer3", "layer4")  # C2 to C5: strides 4 to 32 with an ImageNet stem
PARTS = (*reversed(STAGES), "conv1", "bn1")  # in the order in which more and more of them are trained


def detection_backbone(
    weights: str | os.PathLike[str],
    *,
    trainable_layers: int = 3,
    freeze_norm: bool = True,
    out_channels: int = 256,
    progress: bool = True,
) -> BackboneWithFPN:
    """Load a ResNet and put a feature pyramid on it, as the detectors of torchvision take it.

    Args:
        weights: a registry name, a local weight file, an https URL, or a RUN folder.
        trainable_layers: how many of the five parts (layer4, layer3, layer2, layer1, the stem) are trained, from the
            last on; the others stay as they are.
        freeze_norm: let batch norm use its trained statistics and never change, which suits the few images of a
            detector's batch. False: leave it as it is, for large batches or synchronised batch norm.
        out_channels: width of the pyramid.
        progress: show a bar while fetching.

    Returns:
        (N, 3, H, W) -> {"0": stride 4, "1": 8, "2": 16, "3": 32, "pool": 64}, each (N, out_channels, h, w). Its
        `image_mean` and `image_std` are what the weights expect.

    Raises:
        ConfigError: `trainable_layers` is not 0 to 5.
        WeightsError: the weights cannot be had, or are no ResNet's, or take grey images.
    """
    if not 0 <= trainable_layers <= 5:
        raise ConfigError(f"trainable_layers is {trainable_layers}; it must be 0 to 5")
    loaded = load_weights(weights, progress=progress)
    net = loaded.build()
    if not isinstance(net, ResNet) or isinstance(net.layer4, nn.Identity):
        raise WeightsError(f"{weights} holds a {loaded.backbone_name}; a feature pyramid needs a ResNet's four stages")
    if loaded.channels != 3:
        raise WeightsError(f"{weights} takes grey images; torchvision's detectors give colour images of 3 channels")
    if freeze_norm:
        _freeze_norm(net)
    trained = PARTS[:trainable_layers] if trainable_layers < 5 else PARTS
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    backbone = BackboneWithFPN(
        net,
        return_layers={stage: str(number) for number, stage in enumerate(STAGES)},
        in_channels_list=[_width(getattr(net, stage)) for stage in STAGES],
        out_channels=out_channels,
    )
    backbone.image_mean, backbone.image_std = (
        list(values) for values in (loaded.preprocessing.mean, loaded.preprocessing.std)
    )
    return backbone


def _freeze_norm(module: nn.Module) -> None:
    """Replace every batch norm by one that never changes, and gives what the old one gave in evaluation mode."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
            frozen.load_state_dict({key: value for key, value in child.state_dict().items() if "batches" not in key})
            setattr(module, name, frozen)
        else:
            _freeze_norm(child)


def _width(stage: nn.Sequential) -> int:
    """Channels that a stage gives."""
    last = stage[-1]
    convolution = last.conv3 if isinstance(last, Bottleneck) else last.conv2
    assert isinstance(convolution, nn.Conv2d)
    return convolution.out_channels
