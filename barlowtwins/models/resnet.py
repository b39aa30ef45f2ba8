"""Backbones: torchvision ResNets with additional stems and widths, built by name and recognized from keys.

A backbone is a plain `torchvision.models.ResNet`, so it works wherever a ResNet does, and loads without this package.
Its key names are those of the published checkpoint.
"""

# Legend: N images, C input channels, S side in pixels, F features of the backbone.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from barlowtwins.core.errors import ConfigError, WeightsError
from barlowtwins.models.timm import PREFIX, build_timm

__all__ = [
    "BACKBONES",
    "STEMS",
    "Recognized",
    "build_backbone",
    "build_resnet",
    "feature_identity",
    "feature_width",
    "recognize_backbone",
]

Stem = Literal["imagenet", "small", "small-stride2", "small-padding2"]
STEMS: tuple[Stem, ...] = ("imagenet", "small", "small-stride2", "small-padding2")


class Architecture(NamedTuple):
    """The numbers that define a ResNet."""

    blocks: tuple[int, int, int, int]  # per stage; a last stage of 0 blocks is left out
    bottleneck: bool = False
    groups: int = 1
    width_per_group: int = 64
    multiplier: float = 1.0  # of every width; torchvision has no name for such networks
    grid: int = 1  # the image is averaged over grid x grid parts, not as a whole


BACKBONES: dict[str, Architecture] = {
    # For small, centered images, where position matters: three stages, means over a 4 x 4 grid.
    "resnet8_x0_5_grid4": Architecture((1, 1, 1, 0), multiplier=0.5, grid=4),
    "resnet10_x0_5": Architecture((1, 1, 1, 1), multiplier=0.5),  # 1.2 M parameters: trains in minutes on a CPU
    "resnet10": Architecture((1, 1, 1, 1)),
    "resnet18": Architecture((2, 2, 2, 2)),
    "resnet34": Architecture((3, 4, 6, 3)),
    "resnet50": Architecture((3, 4, 6, 3), bottleneck=True),
    "resnet101": Architecture((3, 4, 23, 3), bottleneck=True),
    "resnet152": Architecture((3, 8, 36, 3), bottleneck=True),
    "resnext50_32x4d": Architecture((3, 4, 6, 3), bottleneck=True, groups=32, width_per_group=4),
    "resnext101_32x8d": Architecture((3, 4, 23, 3), bottleneck=True, groups=32, width_per_group=8),
    "resnext101_64x4d": Architecture((3, 4, 23, 3), bottleneck=True, groups=64, width_per_group=4),
    "wide_resnet50_2": Architecture((3, 4, 6, 3), bottleneck=True, width_per_group=128),
    "wide_resnet101_2": Architecture((3, 4, 23, 3), bottleneck=True, width_per_group=128),
}


def build_backbone(name: str = "resnet50", *, stem: Stem = "imagenet", channels: int = 3, **kwargs: Any) -> ResNet:
    """Build an untrained backbone: (N, C, S, S) -> (N, F).

    Args:
        name: a key of `BACKBONES`, or "timm:" followed by the name of a timm model (extra `timm`).
        stem: first layers of a ResNet, see `build_resnet`; timm models have their own.
        channels: input channels.
        **kwargs: passed to `torchvision.models.ResNet` or `timm.create_model`.

    Returns:
        A `torchvision.models.ResNet` or a `TimmBackbone`. In both, `fc` is an `nn.Identity` with `in_features` and
        `out_features`, both F.

    Raises:
        ConfigError: the name or stem is unknown.
        MissingExtraError: the name is of timm, which is not installed.
    """
    if not name.startswith(PREFIX):
        return build_resnet(name, stem=stem, channels=channels, **kwargs)
    if stem != "imagenet":
        raise ConfigError(f"{name} has its own first layers, and --stem {stem} is for ResNets; leave --stem out")
    made = build_timm(name, feature_identity, channels=channels, **kwargs)
    return cast(ResNet, made)  # it has the interface of a backbone: `forward`, and a replaceable `fc`


def build_resnet(name: str = "resnet50", *, stem: Stem = "imagenet", channels: int = 3, **kwargs: Any) -> ResNet:
    """Build an untrained ResNet: (N, C, S, S) -> (N, F).

    Args:
        name: a key of `BACKBONES`.
        stem: first layers. "imagenet": 7x7, stride 2, and max pooling. "small": 3x3, stride 1, no pooling, for images
            up to 64 pixels. "small-stride2": 3x3, stride 2, no pooling; a quarter of the work. "small-padding2":
            "small" with padding 2 instead of 1, as solo-learn builds it for CIFAR.
        channels: input channels.
        **kwargs: passed to `torchvision.models.ResNet`. `zero_init_residual` is True by default (as published), but
            False with one block per stage, which would learn too slowly in short runs.

    Returns:
        A `torchvision.models.ResNet` whose `fc` is an `nn.Identity` with `in_features` and `out_features`, both F.

    Raises:
        ConfigError: the name or stem is unknown.
    """
    if name not in BACKBONES:
        raise ConfigError(f"unknown backbone {name!r}; choose one of {', '.join(BACKBONES)}, or timm:NAME")
    if stem not in STEMS:
        raise ConfigError(f"unknown stem {stem!r}; choose one of {', '.join(STEMS)}")
    kind = BACKBONES[name]
    zero_init_residual = kwargs.pop("zero_init_residual", max(kind.blocks) > 1)
    net = ResNet(
        Bottleneck if kind.bottleneck else BasicBlock,
        [max(1, blocks) for blocks in kind.blocks],
        groups=kind.groups,
        width_per_group=kind.width_per_group,
        **kwargs,
    )
    net.fc = feature_identity(net.fc.in_features)
    if kind.multiplier != 1.0:
        _narrow(net, kind.multiplier)
    if kind.blocks[-1] == 0:
        net.fc = feature_identity(cast(BasicBlock, net.layer4[0]).conv1.in_channels)
        net.layer4 = nn.Identity()
    if kind.grid > 1:
        net.avgpool = nn.AdaptiveAvgPool2d(kind.grid)
        net.fc = feature_identity(feature_width(net) * kind.grid**2)
    _replace_stem(net, stem, channels)
    for module in net.modules():  # torchvision's initialization, again, for the replaced layers
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if zero_init_residual:  # each block starts as the identity (as published; He et al. 2019, section 3.1)
        for module in net.modules():
            if isinstance(module, (Bottleneck, BasicBlock)):
                last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
                if getattr(last, "weight", None) is not None:
                    nn.init.zeros_(last.weight)
    return net


def feature_identity(features: int) -> nn.Identity:
    """Return the `fc` of a backbone: an identity with `in_features`, so `nn.Linear(model.fc.in_features, k)` works."""
    identity = nn.Identity()
    for name in ("in_features", "out_features"):
        setattr(identity, name, features)
    return identity


def feature_width(backbone: nn.Module) -> int:
    """Return F, the feature width of a backbone, from its `fc`."""
    width = getattr(getattr(backbone, "fc", None), "in_features", None)
    if not isinstance(width, int):
        raise ConfigError(f"{type(backbone).__name__} does not define its feature width; set backbone.fc.in_features")
    return width


def _narrow(net: ResNet, multiplier: float) -> None:
    """Multiply every width of a basic-block ResNet by `multiplier`."""
    norm = type(net.bn1)
    widths = [round(width * multiplier) for width in (64, 128, 256, 512)]
    net.inplanes = widths[0]
    net.bn1 = norm(widths[0])
    for stage, (width, stride) in enumerate(zip(widths, (1, 2, 2, 2), strict=True), start=1):
        blocks = len(getattr(net, f"layer{stage}"))
        setattr(net, f"layer{stage}", net._make_layer(BasicBlock, width, blocks, stride=stride))
    net.fc = feature_identity(widths[-1])


def _replace_stem(net: ResNet, stem: Stem, channels: int) -> None:
    width = net.layer1[0].conv1.in_channels  # bn1 may be any norm_layer, without a width
    if stem == "imagenet":
        net.conv1 = nn.Conv2d(channels, width, kernel_size=7, stride=2, padding=3, bias=False)
    else:
        stride = 2 if stem == "small-stride2" else 1
        padding = 2 if stem == "small-padding2" else 1
        net.conv1 = nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=padding, bias=False)
        net.maxpool = nn.Identity()


class Recognized(NamedTuple):
    """An architecture recognized from the keys and shapes of a state dict."""

    name: str
    stem: Stem
    channels: int


def recognize_backbone(state_dict: Mapping[str, Tensor]) -> Recognized:
    """Return the backbone that torchvision-style keys and shapes belong to.

    Weights do not contain stride and padding: every 3x3 stem is reported as "small". Files of this package name the
    stem in their metadata.

    Raises:
        WeightsError: no backbone in `BACKBONES` has these keys and shapes.
    """
    try:
        blocks = tuple(
            len({key.split(".")[1] for key in state_dict if key.startswith(f"layer{stage}.")}) for stage in (1, 2, 3, 4)
        )
        width, channels, kernel, _ = state_dict["conv1.weight"].shape
        bottleneck = "layer1.0.conv3.weight" in state_dict
        inner = state_dict["layer1.0.conv2.weight"].shape  # (out, in / groups, 3, 3)
    except (KeyError, IndexError, ValueError) as error:
        some = ", ".join(list(state_dict)[:3]) or "none"
        raise WeightsError(
            f"the keys are not those of a ResNet (no {error}; first keys: {some}); "
            "a backbone has conv1, bn1 and layer1 to layer4"
        ) from error
    groups = inner[0] // inner[1]
    found = Architecture(
        blocks,  # type: ignore[arg-type]
        bottleneck,
        groups,
        inner[0] // groups if bottleneck else 64,
        width / 64,
    )
    for name, known in BACKBONES.items():
        if found == known._replace(grid=1):  # keys do not show the grid; no two backbones differ only in it
            return Recognized(name, "imagenet" if kernel == 7 else "small", channels)
    raise WeightsError(
        f"a ResNet of {blocks} {'bottleneck' if bottleneck else 'basic'} blocks, first width {width}, "
        f"{groups} group(s) of {inner[1]} is unknown; choose one of {', '.join(BACKBONES)}"
    )
