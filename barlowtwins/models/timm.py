"""timm models as backbones, by name, such as "timm:convnext_tiny". Needs the extra `timm`.

Without a classifier, timm models return (N, F) features.
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
    """A timm model followed by an `fc`, like a ResNet: (N, C, S, S) -> (N, F).

    Args:
        net: the model, without a classifier.
        fc: the last layer; an identity, which may be replaced by a classifier.
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
                f"images of {x.shape[-2]} x {x.shape[-1]} pixels do not divide into the {high} x {wide} patches of "
                "this network; use a multiple as --image-size"
            )
        features: Tensor = self.fc(self.net(x))
        return features


def build_timm(name: str, fc: type[nn.Module] | Any, *, channels: int = 3, **kwargs: Any) -> TimmBackbone:
    """Build an untrained timm model without its classifier.

    Args:
        name: name in timm, with or without the prefix "timm:".
        fc: builds the last layer from F.
        channels: input channels.
        **kwargs: passed to `timm.create_model`. Models with position embeddings get `dynamic_img_size`, so they accept
            any S that is a multiple of the patch size.

    Raises:
        MissingExtraError: timm is not installed.
        ConfigError: timm has no such model, or cannot build it with these arguments.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside timm
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
        except TypeError:  # models that accept any size do not have this argument
            net = timm.create_model(name, **made)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        gist = str(error).partition("\n")[0][:200]
        raise ConfigError(
            f"timm cannot build {name!r} for {channels} channel(s): {gist}; choose another model"
        ) from error
    width = getattr(net, "head_hidden_size", None) or net.num_features
    return TimmBackbone(net, fc(width))


def _hint(near: list[str]) -> str:
    return f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them"
