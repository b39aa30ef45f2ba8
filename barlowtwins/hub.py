"""Entry points for `torch.hub.load`, re-exported by `hubconf.py`. `torch.hub.help` prints the docstrings."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torchvision.models.resnet import ResNet

from barlowtwins.core.errors import ConfigError, WeightsError
from barlowtwins.data.preprocess import Preprocessing, preprocess as _preprocess
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.models.resnet import build_resnet
from barlowtwins.zoo.formats import match_keys
from barlowtwins.zoo.heads import fresh_classifier, load_classifier
from barlowtwins.zoo.weights import Weights, load_weights

if TYPE_CHECKING:
    from barlowtwins.embedding.embedder import Embedder

__all__ = ["barlow_twins", "embedder", "preprocess", "resnet18", "resnet50"]

PUBLISHED = {"resnet50": "resnet50"}  # architecture -> registry name of the weights for `pretrained=True`
PUBLISHED_FULL = "resnet50-full"
BACKBONE, PROJECTOR = "resnet50", "8192-8192-8192"  # as published
RESNET_OPTIONS = ("zero_init_residual", "norm_layer", "replace_stride_with_dilation", "stem", "channels")


def resnet50(
    pretrained: bool = True,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    head: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> ResNet:
    """ResNet-50 trained with Barlow Twins: 2048 features for each image.

        model = torch.hub.load("OWNER/barlowtwins:v0.1.0", "resnet50", trust_repo=True)
        features = model(images)                                    # (N, 3, 224, 224) -> (N, 2048)

        model = torch.hub.load("OWNER/barlowtwins:v0.1.0", "resnet50", num_classes=10, trust_repo=True).train()
        loss = cross_entropy(model(images), labels)                 # (N, 10): fine-tuning with a fresh classifier

        model = torch.hub.load("OWNER/barlowtwins:v0.1.0", "resnet50", head="pets.safetensors", trust_repo=True)
        names = [model.classes[k] for k in model(images).argmax(1)]         # a trained classifier

    Prepare images with `preprocess`. The model is a plain `torchvision.models.ResNet`: `torch.save` can save it, and it
    loads without this package.

    Args:
        pretrained: load the published weights (1000 epochs on ImageNet without labels). False: a random backbone.
        weights: other weights to load: a registry name ("resnet50-ljng"), a weight file, an https URL, or a RUN folder
            written by `barlowtwins pretrain`.
        num_classes: add a new `Linear(2048, num_classes)` (normal, std 0.01, zero bias). None: `fc` is an `nn.Identity`
            with `in_features` and `out_features`, so `model.fc = nn.Linear(model.fc.in_features, k)` works.
        head: a trained classifier, as written by `barlowtwins evaluate linear --save-head FILE`. `model(x)` then
            returns (N, K) logits, and `model.classes` holds the K names. The head also selects the backbone; pass
            `weights` only if the weights are no longer where the head expects them. A head of another backbone is
            refused. The registry has a head for the classes of ImageNet: "resnet50-mmpretrain-linear".
        progress: show a progress bar while downloading, if standard error is a terminal.
        **kwargs: `zero_init_residual`, `norm_layer`, `replace_stride_with_dilation` of torchvision's ResNet; `stem` and
            `channels` of `barlowtwins.models.resnet.build_resnet`.

    Returns:
        The model on the CPU. With weights it is in evaluation mode, so features do not depend on the batch (call
        `.train()` to fine-tune); without weights it is in training mode.

    Raises:
        WeightsError: the weights are damaged, unsafe, of another architecture, or do not belong to the head.
        DownloadError: the download failed; the message says which file to put where for offline use.
        TypeError: an argument is unknown.
    """
    return _resnet("resnet50", pretrained, weights, num_classes, head, progress, kwargs)


def resnet18(
    pretrained: bool = False,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    head: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> ResNet:
    """ResNet-18: 512 features for each image. No published weights exist; pass `weights=`.

    The small weights in this package are not of a ResNet-18; load them with `embedder("resnet10-fashion-mnist")`.

        model = torch.hub.load("OWNER/barlowtwins:v0.1.0", "resnet18", weights="runs/mine", trust_repo=True)
        features = model(images)                                    # (N, C, S, S) -> (N, 512)

    Args:
        pretrained: no published weights exist, so True needs `weights`.
        weights: a weight file, an https URL, or a RUN folder written by `barlowtwins pretrain`, whose first layers and
            input channels are then used.
        num_classes, head, progress, **kwargs: as for `resnet50`.

    Returns:
        The model on the CPU: in evaluation mode with weights, in training mode without.

    Raises:
        WeightsError, DownloadError, TypeError: as for `resnet50`.
    """
    return _resnet("resnet18", pretrained, weights, num_classes, head, progress, kwargs)


def barlow_twins(
    backbone: str = BACKBONE,
    projector: str = PROJECTOR,
    pretrained: bool = False,
    weights: str | os.PathLike[str] | None = None,
    *,
    progress: bool = True,
    **kwargs: Any,
) -> BarlowTwins:
    """Backbone, projector and loss in one module, to train or to inspect.

        model = torch.hub.load("OWNER/barlowtwins:v0.1.0", "barlow_twins", backbone="resnet18", trust_repo=True)
        loss = model(view1, view2)                                  # two (N, 3, S, S) -> a scalar; loss.backward()

    Args:
        backbone: a ResNet: resnet18, resnet50, wide_resnet50_2, ...
        projector: widths of its layers.
        pretrained: load the published training checkpoint, including the projector (ResNet-50, 1.4 GB).
        weights: other weights to load: a file with a projector, an https URL, or a RUN folder. They determine the
            backbone and the projector, except where you pass other values than the defaults.
        progress: show a progress bar while downloading, if standard error is a terminal.
        **kwargs: `lambd` (0.0051), `scale_loss` (1.0); without weights also `stem` and `channels`.

    Returns:
        The module, in training mode, on the CPU.

    Raises:
        WeightsError: the weights have no projector, do not fit, are damaged or unsafe.
        DownloadError: the download failed.
        TypeError: an argument is unknown.
    """
    if weights is None and not pretrained:
        return BarlowTwins(backbone, projector, **kwargs)
    loaded = load_weights(PUBLISHED_FULL if weights is None else weights, full=True, progress=progress)
    if loaded.projector is None or loaded.projector_widths is None:
        raise WeightsError(f"{loaded.path} contains no projector; load the backbone with resnet50(weights=...)")
    model = BarlowTwins(
        loaded.backbone_name if backbone == BACKBONE else backbone,
        loaded.projector_widths if projector == PROJECTOR else projector,
        **{"stem": loaded.stem, "channels": loaded.channels, **kwargs},
    )
    state = {f"backbone.{key}": tensor for key, tensor in loaded.backbone.items()} | loaded.projector
    match_keys(state, model.state_dict(), f"{loaded.path} does not fit BarlowTwins({backbone!r}, {projector!r})")
    model.load_state_dict(state)
    return model


def embedder(
    weights: str | os.PathLike[str] = "resnet50",
    device: str | torch.device | None = None,
    runtime: str = "auto",
) -> Embedder:
    """A backbone with its preprocessing, which turns images into features.

        embedder = torch.hub.load("OWNER/barlowtwins:v0.1.0", "embedder", trust_repo=True)
        features = embedder.encode("photos/")                       # a folder -> (N, 2048) float32, in sorted order

    Args:
        weights: a registry name, a weight file, an https URL, or a RUN folder.
        device: "cpu", "cuda", "cuda:1", "mps"; None selects the best available one.
        runtime: how to run the network: "torch"; "onnx", ONNX Runtime on a CPU (extra onnx); "compiled", torch.compile.
            The features of the last two are first compared with those of torch. "auto" means "torch" here, since the
            number of images is not known yet.

    Raises:
        WeightsError, DownloadError: as for `resnet50`.
        ConfigError: the device or runtime does not exist.
    """
    from barlowtwins.embedding.embedder import load_embedder

    return load_embedder(weights, device=device, runtime=runtime)


def preprocess(image_size: int = 224) -> Preprocessing:
    """The evaluation transform for the published weights: Resize 256, CenterCrop 224, ImageNet mean and std.

        preprocess = torch.hub.load("OWNER/barlowtwins:v0.1.0", "preprocess", trust_repo=True)
        images = torch.stack([preprocess(image) for image in photos])   # PIL images or paths -> (N, 3, 224, 224)

    Args:
        image_size: side of the square output in pixels; the resize scales with it.

    Returns:
        A callable: PIL image, uint8 array or path -> (3, S, S) float32. It can be pickled for DataLoader workers.
    """
    return _preprocess(image_size)


def _resnet(
    name: str,
    pretrained: bool,
    weights: str | os.PathLike[str] | None,
    num_classes: int | None,
    head: str | os.PathLike[str] | None,
    progress: bool,
    options: dict[str, Any],
) -> ResNet:
    if unknown := [option for option in options if option not in RESNET_OPTIONS]:
        raise TypeError(f"{name}() has no argument {unknown[0]!r}; it also takes {', '.join(RESNET_OPTIONS)}")
    if num_classes is not None and num_classes < 1:
        raise ConfigError(f"num_classes is {num_classes}; it must be 1 or more")
    if head is not None:
        if num_classes is not None:
            raise ConfigError("a trained head defines the classes; pass head= or num_classes=, not both")
        return _load_with_head(name, head, weights, progress, options)
    source = weights if weights is not None else PUBLISHED.get(name) if pretrained else None
    if source is None and pretrained:
        raise WeightsError(f"no published weights exist for {name}; pass weights=, or pretrained=False")
    if source is None:
        net = build_resnet(name, **options)
    else:
        net = _build(name, load_weights(source, progress=progress), options)
    if num_classes is not None:
        net.fc = fresh_classifier(net.fc.in_features, num_classes)
    return net


def _load_with_head(
    name: str,
    head: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None,
    progress: bool,
    options: dict[str, Any],
) -> ResNet:
    classifier = load_classifier(head, weights=weights, progress=progress)
    return classifier.head.on(_build(name, classifier.weights, options))


def _build(name: str, loaded: Weights, options: dict[str, Any]) -> ResNet:
    if loaded.backbone_name != name:
        raise WeightsError(
            f"{loaded.path} is a {loaded.backbone_name}, not a {name}; load it with the entry embedder, or with "
            "barlowtwins.load_backbone(PATH), which build the matching network"
        )
    net = build_resnet(name, **{"stem": loaded.stem, "channels": loaded.channels, **options})
    expected = net.state_dict()
    state = {  # norms with frozen statistics do not count batches
        key: tensor
        for key, tensor in loaded.backbone.items()
        if key in expected or not key.endswith(".num_batches_tracked")
    }
    match_keys(state, expected, f"{loaded.path} holds a {loaded.backbone_name}, which does not fit this {name}")
    net.load_state_dict(state)
    return net.eval()
