"""Backbones of timm by name, "timm:convnext_tiny", in the form that the rest of this package expects.

timm is the extra of that name. Its models give (N, F) features when they are built without a classifier.
"""

# Legend: N images, C input channels, S side in pixels, F features.

from __future__ import annotations

import difflib
import warnings
from typing import Any

from torch import Tensor, nn

from barlowtwins.core.errors import ConfigError, MissingExtraError

__all__ = ["PREFIX", "TimmBackbone", "build_timm"]

PREFIX = "timm:"


class TimmBackbone(nn.Module):
    """A model of timm, and behind it an `fc` as a ResNet has: (N, C, S, S) -> (N, F).

    Args:
        net: the model, without a classifier.
        fc: what follows; the identity, until somebody puts a classifier in its place.
    """

    def __init__(self, net: nn.Module, fc: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.fc = fc
        patches: Any = getattr(net, "patch_embed", None)
        size = getattr(patches, "patch_size", None)
        pads = getattr(patches, "dynamic_img_pad", False) or not hasattr(patches, "dynamic_img_pad")
        self.patch: tuple[int, int] | None = None if pads or not isinstance(size, tuple) else (size[0], size[1])

    def forward(self, x: Tensor) -> Tensor:
        if self.patch is not None and (x.shape[-2] % self.patch[0] or x.shape[-1] % self.patch[1]):
            high, wide = self.patch
            raise ConfigError(
                f"images of {x.shape[-2]} x {x.shape[-1]} pixels do not divide into patches of {high} x {wide}, which "
                "this network sees; take a multiple for --image-size"
            )
        return self.fc(self.net(x))


def build_timm(name: str, fc: type[nn.Module] | Any, *, channels: int = 3, **kwargs: Any) -> TimmBackbone:
    """Build an untrained model of timm without its classifier.

    Args:
        name: what timm calls it, with or without "timm:" before it.
        fc: makes the layer behind it from F.
        channels: input channels.
        **kwargs: passed to `timm.create_model`. Models with a grid of position embeddings are built with
            `dynamic_img_size`, so that they take any S that is a multiple of their patches.

    Raises:
        MissingExtraError: timm is not installed.
        ConfigError: it has no such model, or does not build it that way.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm's own, about what it will rename
            import timm
    except ImportError as error:
        raise MissingExtraError("timm", "timm") from error
    name = name.removeprefix(PREFIX)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ConfigError(f"timm {timm.__version__} has no model {name!r}; {_hint(near)}")
    made = {"pretrained": False, "num_classes": 0, "in_chans": channels, **kwargs}
    try:
        try:
            net = timm.create_model(name, **{"dynamic_img_size": True, **made})
        except TypeError:  # this one has no such argument, since it takes any size as it is
            net = timm.create_model(name, **made)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        gist = str(error).partition("\n")[0][:200]
        raise ConfigError(
            f"timm does not build {name!r} for {channels} channel(s): {gist}; choose another model"
        ) from error
    width = getattr(net, "head_hidden_size", None) or net.num_features
    return TimmBackbone(net, fc(width))


def _hint(near: list[str]) -> str:
    return f"did you mean {', '.join(near)}?" if near else "timm.list_models() names them"
