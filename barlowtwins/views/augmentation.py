"""The numbers of an augmentation, and the random draw of the parameters of one view.

    Augmentation + image width, height + random numbers -> ViewParameters        (this file; it touches no pixels)
    ViewParameters + pixels -> view                                              (pillow.py, opencv.py, batched.py)

The published pair of pipelines is one augmentation: the views differ only in the probabilities of blur and solarize.

Every view consumes the same number of uniform random numbers, each with a fixed meaning, used or not. So one decision
never shifts another, and a batch of views can be drawn from one (N, 2, UNIFORMS) array.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass

import numpy as np

from barlowtwins.core.errors import ConfigError
from barlowtwins.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, check_normalization

__all__ = [
    "AUGMENTATIONS",
    "UNIFORMS",
    "AugmentRecipe",
    "Augmentation",
    "Jitter",
    "ViewParameters",
    "augmentation",
    "draw_view",
    "draw_views",
    "rng_for",
]

CROP_TRIES = 10  # like torchvision's RandomResizedCrop; then the central crop with the nearest allowed ratio
WHOLE = 64  # pixels; images up to this side are evaluated whole, larger images by their central 224/256


@dataclass(frozen=True)
class Augmentation:
    """The numbers of a pair of views; the defaults are the published values for ImageNet.

    Operations run in the order of the fields. A pair of numbers in `blur_p` and `solarize_p` is (view 1, view 2).

    Args:
        name: name of the augmentation.
        size: side S of the square views, in pixels.
        scale: area of the crop as a fraction of the image area, (from, to).
        ratio: width / height of the crop, (from, to), log-uniform.
        flip_p: probability of a horizontal flip.
        jitter: strength of brightness, contrast, saturation (factor uniform in [1 - s, 1 + s], not below 0) and of hue
            (shift uniform in [-s, s] of the full circle, s <= 0.5). The four are applied in random order.
        jitter_p: probability of the color jitter.
        grey_p: probability of conversion to grayscale.
        blur_p: probability of a Gaussian blur.
        blur_sigma: its standard deviation in pixels, uniform in (from, to).
        solarize_p: probability of inverting the levels at or above `solarize_threshold`.
        solarize_threshold: a level, 0-256.
        mean, std: of each channel, for pixels in [0, 1]: the last step is (pixels - mean) / std.
        channels: 3 (RGB) or 1 (grayscale).

    Raises:
        ConfigError: a number is out of range; the message names it.
    """

    name: str
    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_p: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_p: float = 0.8
    grey_p: float = 0.2
    blur_p: tuple[float, float] = (1.0, 0.1)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_p: tuple[float, float] = (0.0, 0.2)
    solarize_threshold: int = 128
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: int = 3

    def __post_init__(self) -> None:
        self._require(self.size >= 1, "size", "must be 1 or more")
        self._require(0 < self.scale[0] <= self.scale[1] <= 1, "scale", "must satisfy 0 < from <= to <= 1")
        self._require(0 < self.ratio[0] <= self.ratio[1] < math.inf, "ratio", "must satisfy 0 < from <= to")
        for name in ("flip_p", "jitter_p", "grey_p"):
            self._require(0 <= getattr(self, name) <= 1, name, "must be a probability, from 0 to 1")
        for name in ("blur_p", "solarize_p"):
            pair = getattr(self, name)
            self._require(
                len(pair) == 2 and all(0 <= p <= 1 for p in pair), name, "must be two probabilities, one per view"
            )
        self._require(
            len(self.jitter) == 4 and min(self.jitter) >= 0, "jitter", "must be four strengths, none negative"
        )
        self._require(self.jitter[3] <= 0.5, "jitter", "must shift the hue by 0.5 or less, half the circle")
        self._require(0 <= self.blur_sigma[0] <= self.blur_sigma[1] < math.inf, "blur_sigma", "must be 0 <= from <= to")
        self._require(0 <= self.solarize_threshold <= 256, "solarize_threshold", "must be a level, from 0 to 256")
        check_normalization(self.channels, self.mean, self.std)

    def _require(self, condition: bool, name: str, rule: str) -> None:
        if not condition:
            raise ConfigError(f"{name} of augmentation {self.name!r} is {getattr(self, name)}; it {rule}")

    def with_channels(self, channels: int) -> Augmentation:
        """Return the same augmentation for other channels, with mean and std averaged over channels."""
        if channels == self.channels:
            return self
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        return dataclasses.replace(self, channels=channels, mean=(mean,) * channels, std=(std,) * channels)

    def preprocessing(self) -> Preprocessing:
        """Return the evaluation transform for networks trained on these views.

        Views up to 64 pixels: the whole image, resized to the square. Larger: the center, 224/256 of the short side.
        """
        resize = None if self.size <= WHOLE else round(self.size * 256 / 224)
        return Preprocessing(self.size, resize, self.channels, self.mean, self.std)


AugmentRecipe = Augmentation
"""Earlier name of `Augmentation`."""

# "small" and "grey" keep the published numbers except where small images need others: crops start at a quarter of the
# area, since 8 % of 32 x 32 is 9 x 9 pixels, and there is no blur, which removes too much at these sizes. Mean and std
# are 0.5 for any data; the batch norm after the first convolution absorbs the difference.
AUGMENTATIONS: dict[str, Augmentation] = {
    preset.name: preset
    for preset in (
        Augmentation("imagenet"),
        Augmentation("small", size=32, scale=(0.25, 1.0), blur_p=(0.0, 0.0), mean=(0.5,) * 3, std=(0.5,) * 3),
        Augmentation(  # strong color changes leave the outline as the only cue; large crops keep it visible
            "shapes",
            size=32,
            scale=(0.5, 1.0),
            jitter=(0.6, 0.6, 1.0, 0.5),
            grey_p=0.5,
            blur_p=(0.0, 0.0),
            solarize_p=(0.0, 0.0),
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
        ),
        Augmentation(
            "grey",
            size=28,
            scale=(0.4, 1.0),
            jitter=(0.4, 0.4, 0.0, 0.0),
            grey_p=0.0,
            blur_p=(0.0, 0.0),
            solarize_p=(0.0, 0.0),  # an inverted garment or digit belongs to another data set
            mean=(0.5,),
            std=(0.5,),
            channels=1,
        ),
        Augmentation(  # aligned objects in one orientation: large crops and no flips
            "fashion-mnist",
            size=28,
            scale=(0.4, 1.0),
            flip_p=0.0,
            jitter=(0.4, 0.4, 0.0, 0.0),
            grey_p=0.0,
            blur_p=(0.5, 0.5),
            solarize_p=(0.0, 0.0),
            mean=(0.5,),
            std=(0.5,),
            channels=1,
        ),
    )
}


def augmentation(name: str) -> Augmentation:
    """Return the augmentation of that name.

    Raises:
        ConfigError: the name is unknown; the message suggests one.
    """
    if name in AUGMENTATIONS:
        return AUGMENTATIONS[name]
    close = difflib.get_close_matches(name.lower(), AUGMENTATIONS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(AUGMENTATIONS)}"
    raise ConfigError(f"unknown augmentation {name!r}; {hint}")


@dataclass(frozen=True, slots=True)
class Jitter:
    """Color jitter of one view.

    Args:
        factors: factors of brightness, contrast and saturation (1: no change), and the shift of the hue in
            [-0.5, 0.5] (0: no change).
        order: a permutation of 0-3, indices into `factors`, in the order of application.
    """

    factors: tuple[float, float, float, float]
    order: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class ViewParameters:
    """All random choices of one view: the same parameters and pixels always give the same view.

    Args:
        left, top, width, height: the crop box in pixels of the source image.
        flip: flip horizontally.
        jitter: color jitter, or None.
        grey: convert to grayscale.
        blur_sigma: standard deviation of the Gaussian blur in pixels of the view, or None.
        solarize: invert bright levels.
    """

    left: int
    top: int
    width: int
    height: int
    flip: bool = False
    jitter: Jitter | None = None
    grey: bool = False
    blur_sigma: float | None = None
    solarize: bool = False


def rng_for(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the random generator of one image in one epoch, a function of three integers in [0, 2**63).

    Philox is counter-based: (seed, epoch) is the key, and the image index the high word of the counter. So streams do
    not overlap, and do not depend on the order of drawing. Both views of an image use this one stream.

    Raises:
        ConfigError: a number is out of range.
    """
    for name, value in (("seed", seed), ("epoch", epoch), ("index", index)):
        if not 0 <= value < 2**63:
            raise ConfigError(f"{name} is {value}; it must be from 0 to 2**63 - 1")
    key, counter = np.array([seed, epoch], np.uint64), np.array([0, 0, 0, index], np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))


# Meaning of the uniforms of one view, in order. Each crop try uses four: area, ratio, left, top.
_CROP = slice(0, 4 * CROP_TRIES)
_ORDER = slice(_CROP.stop, _CROP.stop + 4)
_FACTORS = slice(_ORDER.stop, _ORDER.stop + 4)
_REST = slice(_FACTORS.stop, _FACTORS.stop + 6)  # flip, jitter, grey, blur, sigma, solarize
UNIFORMS = _REST.stop


def draw_view(
    augmentation: Augmentation, view: int, width: int, height: int, rng: np.random.Generator
) -> ViewParameters:
    """Draw the parameters of one view of a width x height image.

    Args:
        augmentation: the ranges and probabilities.
        view: 0 or 1, the first or the second of the pair.
        width, height: of the source image, in pixels, at least 1.
        rng: supplies the next `UNIFORMS` numbers; nothing else is random.
    """
    uniforms = rng.random(UNIFORMS).tolist()  # Python floats are faster than NumPy scalars here
    flip, jitter, grey, blur, sigma, solarize = uniforms[_REST]
    return ViewParameters(
        *_crop_box(augmentation, width, height, uniforms[_CROP]),
        flip=flip < augmentation.flip_p,
        jitter=_jitter(augmentation, uniforms[_ORDER], uniforms[_FACTORS]) if jitter < augmentation.jitter_p else None,
        grey=grey < augmentation.grey_p,
        blur_sigma=_between(*augmentation.blur_sigma, sigma) if blur < augmentation.blur_p[view] else None,
        solarize=solarize < augmentation.solarize_p[view],
    )


def draw_views(
    augmentation: Augmentation, width: int, height: int, rng: np.random.Generator
) -> tuple[ViewParameters, ViewParameters]:
    """Draw both views of a width x height image from one stream, the first view first."""
    return draw_view(augmentation, 0, width, height, rng), draw_view(augmentation, 1, width, height, rng)


def _between(low: float, high: float, uniform: float) -> float:
    return low + (high - low) * uniform


def _crop_box(augmentation: Augmentation, width: int, height: int, uniforms: list[float]) -> tuple[int, int, int, int]:
    """Return left, top, width, height of a crop, distributed as in torchvision's RandomResizedCrop."""
    log_ratio = math.log(augmentation.ratio[0]), math.log(augmentation.ratio[1])
    for i in range(0, len(uniforms), 4):
        u_area, u_ratio, u_left, u_top = uniforms[i : i + 4]
        area = width * height * _between(*augmentation.scale, u_area)
        ratio = math.exp(_between(*log_ratio, u_ratio))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(u_left * (width - w + 1)), int(u_top * (height - h + 1)), w, h

    # No try fitted, because the image is too narrow: use the central part with the nearest allowed ratio.
    w, h = width, height
    if width / height < augmentation.ratio[0]:
        h = max(1, round(width / augmentation.ratio[0]))
    elif width / height > augmentation.ratio[1]:
        w = max(1, round(height * augmentation.ratio[1]))
    return (width - w) // 2, (height - h) // 2, w, h


def _jitter(augmentation: Augmentation, order: list[float], factors: list[float]) -> Jitter:
    brightness, contrast, saturation, hue = augmentation.jitter
    first, second, third, fourth = sorted(range(4), key=order.__getitem__)  # a uniformly random permutation
    return Jitter(
        factors=(
            _factor(brightness, factors[0]),
            _factor(contrast, factors[1]),
            _factor(saturation, factors[2]),
            _between(-hue, hue, factors[3]),
        ),
        order=(first, second, third, fourth),
    )


def _factor(strength: float, uniform: float) -> float:
    return _between(max(0.0, 1 - strength), 1 + strength, uniform)
