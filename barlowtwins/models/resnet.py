"""Backbones: torchvision ResNets with the stems and widths of this project, built by name and recognized from keys.

A backbone is a plain `torchvision.models.ResNet`, so that anything that takes one takes ours, and a saved one loads
where this package is absent. Its key names are the published checkpoint's.
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

Stem = Literal["imagenet", "small", "small-stride2"]
STEMS: tuple[Stem, ...] = ("imagenet", "small", "small-stride2")


class Architecture(NamedTuple):
    """What tells one ResNet from another."""

    blocks: tuple[int, int, int, int]  # of each stage; a last one of 0 is left out
    bottleneck: bool = False
    groups: int = 1
    width_per_group: int = 64
    multiplier: float = 1.0  # of every width; torchvision has no name for it
    grid: int = 1  # features are means over so many parts a side of the image, not over all of it


BACKBONES: dict[str, Architecture] = {
    # For small images in which the place counts, such as centred ones: three stages, means over a 4 x 4 grid.
    "resnet8_x0_5_grid4": Architecture((1, 1, 1, 0), multiplier=0.5, grid=4),
    "resnet10_x0_5": Architecture((1, 1, 1, 1), multiplier=0.5),  # 1.2 M parameters: a CPU trains it in minutes
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
        name: a key of `BACKBONES`, or "timm:" and the name of any model of timm (the extra `timm`).
        stem: first layers of a ResNet, see `build_resnet`; the models of timm have their own.
        channels: input channels.
        **kwargs: passed to `torchvision.models.ResNet` or `timm.create_model`.

    Returns:
        A `torchvision.models.ResNet`, or a `TimmBackbone`; the `fc` of both is a plain `nn.Identity` that carries
        `in_features` and `out_features`, both F.

    Raises:
        ConfigError: a name or stem that is not known.
        MissingExtraError: timm is asked for and not installed.
    """
    if not name.startswith(PREFIX):
        return build_resnet(name, stem=stem, channels=channels, **kwargs)
    if stem != "imagenet":
        raise ConfigError(f"{name} has its own first layers: --stem {stem} is for ResNets; leave it out")
    made = build_timm(name, feature_identity, channels=channels, **kwargs)
    return cast(ResNet, made)  # it has what is asked of a backbone: `forward`, and an `fc` that may be replaced


def build_resnet(name: str = "resnet50", *, stem: Stem = "imagenet", channels: int = 3, **kwargs: Any) -> ResNet:
    """Build an untrained ResNet: (N, C, S, S) -> (N, F).

    Args:
        name: a key of `BACKBONES`.
        stem: first layers. "imagenet": 7x7 stride 2 and max-pooling. "small": 3x3 stride 1 without pooling, for images
            up to 64 pixels. "small-stride2": 3x3 stride 2 without pooling, a quarter of that one's work.
        channels: input channels.
        **kwargs: passed to `torchvision.models.ResNet`; `zero_init_residual` is True unless told (as published),
            but False with one block a stage: runs of a few epochs barely get past the zeros.

    Returns:
        A `torchvision.models.ResNet` whose `fc` is a plain `nn.Identity` that carries `in_features` and
        `out_features`, both F.

    Raises:
        ConfigError: a name or stem that is not known.
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
    for module in net.modules():  # torchvision's own initialisation, again: the replaced layers need it too
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
    """The `fc` of a backbone: the plain identity, but `nn.Linear(model.fc.in_features, k)` still works."""
    identity = nn.Identity()
    for name in ("in_features", "out_features"):
        setattr(identity, name, features)
    return identity


def feature_width(backbone: nn.Module) -> int:
    """F, the width of what a backbone gives, as its `fc` carries it."""
    width = getattr(getattr(backbone, "fc", None), "in_features", None)
    if not isinstance(width, int):
        raise ConfigError(f"a {type(backbone).__name__} does not say its feature width; set backbone.fc.in_features")
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
    width = net.layer1[0].conv1.in_channels  # not of bn1, which a norm_layer of the caller may not tell
    if stem == "imagenet":
        net.conv1 = nn.Conv2d(channels, width, kernel_size=7, stride=2, padding=3, bias=False)
    else:
        stride = 2 if stem == "small-stride2" else 1
        net.conv1 = nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1, bias=False)
        net.maxpool = nn.Identity()


class Recognized(NamedTuple):
    """An architecture read off the keys and shapes of a state dict."""

    name: str
    stem: Stem
    channels: int


def recognize_backbone(state_dict: Mapping[str, Tensor]) -> Recognized:
    """Tell which backbone torchvision-style keys and shapes belong to.

    A stride leaves no trace in the weights: a 3x3 stem is reported as "small", and files of this package say more in
    their metadata.

    Raises:
        WeightsError: no backbone of `BACKBONES` has these keys and shapes.
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
            f"the keys are not a ResNet's (no {error}; first keys: {some}); "
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
        if found == known._replace(grid=1):  # which leaves no trace; no two backbones differ in that alone
            return Recognized(name, "imagenet" if kernel == 7 else "small", channels)
    raise WeightsError(
        f"a ResNet of {blocks} {'bottleneck' if bottleneck else 'basic'} blocks, first width {width}, "
        f"{groups} group(s) of {inner[1]} is unknown; choose one of {', '.join(BACKBONES)}"
    )
