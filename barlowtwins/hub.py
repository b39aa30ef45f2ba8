"""The names that `torch.hub.load` offers; `hubconf.py` only passes them on. `torch.hub.help` prints the docstrings."""

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

PUBLISHED = {"resnet50": "resnet50"}  # architecture -> what `pretrained=True` means, by its registry name
PUBLISHED_FULL = "resnet50-full"
BACKBONE, PROJECTOR = "resnet50", "8192-8192-8192"  # the published ones
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

    `preprocess` makes the images. The model is a plain `torchvision.models.ResNet`: it can be saved with `torch.save`
    and loaded where this package is absent.

    Args:
        pretrained: load the published weights (1000 epochs on ImageNet without labels). False: a random backbone.
        weights: others in their place: a registry name ("resnet50-ljng"), a weight file, an https URL, or the RUN
            folder that `barlowtwins pretrain` has written.
        num_classes: put a fresh `Linear(2048, num_classes)` on top (normal, std 0.01, zero bias). None: `fc` is a plain
            `nn.Identity` that carries `in_features` and `out_features`, so that
            `model.fc = nn.Linear(model.fc.in_features, k)` works.
        head: a trained classifier, as `barlowtwins evaluate linear --save-head FILE` writes it: `model(x)` is then
            (N, K) logits and `model.classes` the K names. It decides the backbone, too; pass `weights` only where the
            place that it remembers is not at hand. A head of another backbone is refused. The registry has one that
            knows ImageNet's classes: "resnet50-mmpretrain-linear".
        progress: show a bar while downloading, if standard error is a terminal.
        **kwargs: `zero_init_residual`, `norm_layer`, `replace_stride_with_dilation` of torchvision's ResNet; `stem` and
            `channels` of `barlowtwins.models.resnet.build_resnet`.

    Returns:
        The model on the CPU: in evaluation mode with weights, so that features do not depend on the batch (call
        `.train()` to fine-tune); in training mode without.

    Raises:
        WeightsError: the weights are damaged, refused, those of another architecture, or not those of the head.
        DownloadError: they cannot be fetched; the message says which file to put where for use without a connection.
        TypeError: an argument that is not known.
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
    """ResNet-18: 512 features for each image. Nobody has published weights for it; bring your own.

    The small weight that comes with this package is no ResNet-18: `embedder("resnet10-fashion-mnist")` takes it.

        model = torch.hub.load("OWNER/barlowtwins:v0.1.0", "resnet18", weights="runs/mine", trust_repo=True)
        features = model(images)                                    # (N, C, S, S) -> (N, 512)

    Args:
        pretrained: there are no published weights, so True is an error unless `weights` is given.
        weights: a weight file, an https URL, or the RUN folder that `barlowtwins pretrain` has written, whose first
            layers and input channels are then used.
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
    """Backbone, projector and loss in one module, to train or to look at.

        model = torch.hub.load("OWNER/barlowtwins:v0.1.0", "barlow_twins", backbone="resnet18", trust_repo=True)
        loss = model(view1, view2)                                  # two (N, 3, S, S) -> a scalar; loss.backward()

    Args:
        backbone: a ResNet: resnet18, resnet50, wide_resnet50_2, ...
        projector: widths of its layers.
        pretrained: load the published training checkpoint, projector included (ResNet-50, 1.4 GB).
        weights: others in its place: a file with a projector, an https URL, or a RUN folder. What they hold decides the
            backbone and the projector unless you ask for others than the defaults.
        progress: show a bar while downloading, if standard error is a terminal.
        **kwargs: `lambd` (0.0051), `scale_loss` (1.0); without weights also `stem` and `channels`.

    Returns:
        The module, in training mode, on the CPU.

    Raises:
        WeightsError: the weights have no projector, do not fit, are damaged or refused.
        DownloadError: they cannot be fetched.
    """
    if weights is None and not pretrained:
        return BarlowTwins(backbone, projector, **kwargs)
    loaded = load_weights(PUBLISHED_FULL if weights is None else weights, full=True, progress=progress)
    if loaded.projector is None or loaded.projector_widths is None:
        raise WeightsError(f"{loaded.path} holds a backbone without projector; resnet50(weights=...) takes such a file")
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
    """A backbone with its preprocessing: images in, features out.

        embedder = torch.hub.load("OWNER/barlowtwins:v0.1.0", "embedder", trust_repo=True)
        features = embedder.encode("photos/")                       # a folder -> (N, 2048) float32, in sorted order

    Args:
        weights: a registry name, a weight file, an https URL, or a RUN folder.
        device: "cpu", "cuda", "cuda:1", "mps"; None takes the best there is.
        runtime: what runs the network: "torch"; "onnx", ONNX Runtime on a CPU (extra onnx); "compiled", torch.compile.
            The features of both are compared with torch's first. "auto" is torch here: how many images will come is
            not known yet.

    Raises:
        WeightsError, DownloadError: as for `resnet50`.
        ConfigError: there is no such device or runtime.
    """
    from barlowtwins.embedding.embedder import load_embedder

    return load_embedder(weights, device=device, runtime=runtime)


def preprocess(image_size: int = 224) -> Preprocessing:
    """The evaluation transform that the published weights expect: Resize 256, CenterCrop 224, ImageNet mean and std.

        preprocess = torch.hub.load("OWNER/barlowtwins:v0.1.0", "preprocess", trust_repo=True)
        images = torch.stack([preprocess(image) for image in photos])   # PIL images or paths -> (N, 3, 224, 224)

    Args:
        image_size: side of the square output in pixels; the resize is scaled with it.

    Returns:
        A callable: PIL image, uint8 array or path -> (3, S, S) float32. It can be pickled, as DataLoader workers need.
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
            raise ConfigError("a trained head has its own classes; pass head= or num_classes=, not both")
        return _load_with_head(name, head, weights, progress, options)
    source = weights if weights is not None else PUBLISHED.get(name) if pretrained else None
    if source is None and pretrained:
        raise WeightsError(f"nobody has published weights for {name}; pass weights=, or pretrained=False")
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
            f"{loaded.path} is a {loaded.backbone_name}, which does not fit this {name}: use the entry embedder, or "
            "barlowtwins.load_backbone(PATH), which build the network that the weights are of"
        )
    net = build_resnet(name, **{"stem": loaded.stem, "channels": loaded.channels, **options})
    expected = net.state_dict()
    state = {  # norms with frozen statistics count no batches
        key: tensor
        for key, tensor in loaded.backbone.items()
        if key in expected or not key.endswith(".num_batches_tracked")
    }
    match_keys(state, expected, f"{loaded.path} holds a {loaded.backbone_name}, which does not fit this {name}")
    net.load_state_dict(state)
    return net.eval()
