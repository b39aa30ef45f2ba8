"""The random draw for a whole batch: the same parameters as `augmentation.draw_views`, as arrays.

The random streams of all images are computed in parallel. They are the streams of NumPy's Philox4x64-10 (Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", 2011), whose output is a function of a key and a counter.
"""

# N images, 2 views of each, T tries of a crop, b blocks of four numbers in a stream

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from barlowtwins.core.errors import ConfigError
from barlowtwins.views.augmentation import CROP_TRIES, UNIFORMS, Augmentation, Jitter, ViewParameters

__all__ = ["DrawnViews", "draw_batch", "pack_views", "uniforms_for"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_MULTIPLIERS = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B  # added to the two words of the key after each round
_ROUNDS = 10
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


@dataclass(frozen=True)
class DrawnViews:
    """All random choices of the views of N images: `ViewParameters` as arrays, the two views along the second axis."""

    box: Ints
    """(N, 2, 4): left, top, width, height of the crop in pixels of the source image."""
    flip: npt.NDArray[np.bool_]
    """(N, 2)."""
    jitter: npt.NDArray[np.bool_]
    """(N, 2): whether the color is jittered; if not, ignore the next two."""
    factors: Floats
    """(N, 2, 4): brightness, contrast, saturation, hue."""
    order: Ints
    """(N, 2, 4): a permutation of 0-3, the order of the factors."""
    grey: npt.NDArray[np.bool_]
    """(N, 2)."""
    blur_sigma: Floats
    """(N, 2): in pixels of the view; NaN means no blur."""
    solarize: npt.NDArray[np.bool_]
    """(N, 2)."""

    def __len__(self) -> int:
        return len(self.box)

    def __getitem__(self, rows: slice) -> DrawnViews:
        """Return the parameters of some of the images."""
        return DrawnViews(*(getattr(self, field.name)[rows] for field in fields(self)))

    def view(self, image: int, view: int) -> ViewParameters:
        """Return the parameters of one view, as `draw_view` does."""
        at = image, view
        left, top, width, height = self.box[at].tolist()
        factors, order = self.factors[at].tolist(), self.order[at].tolist()
        return ViewParameters(
            left,
            top,
            width,
            height,
            flip=bool(self.flip[at]),
            jitter=Jitter(tuple(factors), tuple(order)) if self.jitter[at] else None,
            grey=bool(self.grey[at]),
            blur_sigma=None if np.isnan(self.blur_sigma[at]) else float(self.blur_sigma[at]),
            solarize=bool(self.solarize[at]),
        )


def pack_views(pairs: Sequence[tuple[ViewParameters, ViewParameters]]) -> DrawnViews:
    """Return the parameters of N pairs of views as arrays; the inverse of `DrawnViews.view`."""
    neutral = Jitter((1.0, 1.0, 1.0, 0.0), (0, 1, 2, 3))
    views = [view for pair in pairs for view in pair]
    jitters = [view.jitter or neutral for view in views]
    shape = (len(pairs), 2)
    return DrawnViews(
        box=np.array([(v.left, v.top, v.width, v.height) for v in views], np.int64).reshape(*shape, 4),
        flip=np.array([v.flip for v in views], bool).reshape(shape),
        jitter=np.array([v.jitter is not None for v in views], bool).reshape(shape),
        factors=np.array([j.factors for j in jitters], np.float64).reshape(*shape, 4),
        order=np.array([j.order for j in jitters], np.int64).reshape(*shape, 4),
        grey=np.array([v.grey for v in views], bool).reshape(shape),
        blur_sigma=np.array([math.nan if v.blur_sigma is None else v.blur_sigma for v in views], np.float64).reshape(
            shape
        ),
        solarize=np.array([v.solarize for v in views], bool).reshape(shape),
    )


def draw_batch(
    augmentation: Augmentation,
    widths: int | npt.ArrayLike,
    heights: int | npt.ArrayLike,
    *,
    seed: int,
    epoch: int,
    indices: npt.ArrayLike,
) -> DrawnViews:
    """Draw both views of a batch, exactly as `draw_views` does with `rng_for(seed, epoch, index)`.

    Args:
        augmentation: the ranges and probabilities.
        widths, heights: of the source images in pixels, at least 1: one number for all, or (N,).
        seed, epoch: in [0, 2**63).
        indices: (N,), of the images, in [0, 2**63).

    Raises:
        ConfigError: a number is out of range.
    """
    uniforms = uniforms_for(seed, epoch, np.asarray(indices, np.int64), 2 * UNIFORMS).reshape(-1, 2, UNIFORMS)
    crop, order, factors, rest = np.split(uniforms, np.cumsum((4 * CROP_TRIES, 4, 4)), axis=2)
    flip, jitter, grey, blur, sigma, solarize = np.moveaxis(rest, 2, 0)  # (N, 2) each
    n = len(uniforms)
    width, height = (np.broadcast_to(np.asarray(size, np.int64), n) for size in (widths, heights))
    return DrawnViews(
        box=_crop_boxes(augmentation, width, height, crop.reshape(n, 2, CROP_TRIES, 4)),
        flip=flip < augmentation.flip_p,
        jitter=jitter < augmentation.jitter_p,
        factors=_factors(augmentation, factors),
        order=np.argsort(order, axis=2, kind="stable"),
        grey=grey < augmentation.grey_p,
        blur_sigma=np.where(blur < augmentation.blur_p, _between(*augmentation.blur_sigma, sigma), np.nan),
        solarize=solarize < augmentation.solarize_p,
    )


def _between(low: float, high: float, uniform: Floats) -> Floats:
    return low + (high - low) * uniform


def _factors(augmentation: Augmentation, uniforms: Floats) -> Floats:
    """(N, 2, 4)."""
    *strengths, hue = augmentation.jitter
    ranges = [(max(0.0, 1 - strength), 1 + strength) for strength in strengths]
    return np.stack([_between(*ends, uniforms[..., i]) for i, ends in enumerate([*ranges, (-hue, hue)])], 2)


def _crop_boxes(augmentation: Augmentation, widths: Ints, heights: Ints, uniforms: Floats) -> Ints:
    """(N,), (N,), (N, 2, T, 4) -> (N, 2, 4): the first try that fits, for each view."""
    width, height = (np.repeat(sizes, 2) for sizes in (widths, heights))  # (2N,), per view
    boxes = _central_boxes(augmentation, width, height)
    log_ratio = math.log(augmentation.ratio[0]), math.log(augmentation.ratio[1])
    open_ = np.arange(len(boxes))  # views that have no crop yet
    for u in np.moveaxis(uniforms.reshape(len(boxes), CROP_TRIES, 4), 1, 0):  # (2N, 4): area, ratio, left, top
        u_area, u_ratio, u_left, u_top = u[open_].T
        within = width[open_], height[open_]
        area = within[0] * within[1] * _between(*augmentation.scale, u_area)
        # NumPy's exp may differ in the last bit between processors
        ratio = np.array(list(map(math.exp, _between(*log_ratio, u_ratio).tolist())))
        w, h = (np.rint(np.sqrt(side)).astype(np.int64) for side in (area * ratio, area / ratio))
        fits = (w > 0) & (w <= within[0]) & (h > 0) & (h <= within[1])
        left, top = ((u_left * (within[0] - w + 1)).astype(np.int64), (u_top * (within[1] - h + 1)).astype(np.int64))
        boxes[open_[fits]] = np.stack([left, top, w, h], 1)[fits]
        open_ = open_[~fits]
        if not len(open_):
            break
    return boxes.reshape(-1, 2, 4)


def _central_boxes(augmentation: Augmentation, width: Ints, height: Ints) -> Ints:
    """Return (2N, 4), the central part with the nearest allowed ratio, for images that no try fits."""
    narrow, wide = (width / height < augmentation.ratio[0]), (width / height > augmentation.ratio[1])
    h = np.where(narrow, np.maximum(1, np.rint(width / augmentation.ratio[0])), height).astype(np.int64)
    w = np.where(wide & ~narrow, np.maximum(1, np.rint(height * augmentation.ratio[1])), width).astype(np.int64)
    return np.stack([(width - w) // 2, (height - h) // 2, w, h], 1)


# The random numbers ---------------------------------------------------------------------------------------------------


def uniforms_for(seed: int, epoch: int, indices: Ints, count: int) -> Floats:
    """Return `rng_for(seed, epoch, index).random(count)` for all images, (N, count).

    Raises:
        ConfigError: a number is outside [0, 2**63).
    """
    for name, value in (("seed", seed), ("epoch", epoch), ("index", int(indices.min(initial=0)))):
        if not 0 <= value < 2**63:
            raise ConfigError(f"{name} is {value}; it must be from 0 to 2**63 - 1")
    blocks = np.arange(1, -(-count // 4) + 1, dtype=np.uint64)  # (b,): NumPy increments before it computes
    zero = np.zeros((len(indices), len(blocks)), np.uint64)
    words = _philox(blocks + zero, zero, zero, indices.astype(np.uint64)[:, None] + zero, seed, epoch)  # (N, b, 4)
    words = words.reshape(len(indices), 4 * len(blocks))[:, :count]
    return (words >> np.uint64(11)) * 2.0**-53


def _philox(c0: Words, c1: Words, c2: Words, c3: Words, key0: int, key1: int) -> Words:
    """Return Philox4x64-10 of counters (c0, c1, c2, c3) of one shape under one key: (..., 4)."""
    for r in range(_ROUNDS):
        k0, k1 = (np.uint64((key + r * weyl) % 2**64) for key, weyl in ((key0, _WEYL[0]), (key1, _WEYL[1])))
        high0, low0 = _product(c0, _MULTIPLIERS[0])
        high1, low1 = _product(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return np.stack([c0, c1, c2, c3], -1)


def _product(a: Words, b: np.uint64) -> tuple[Words, Words]:
    """Return the high and low word of the 128-bit product, computed from 32-bit halves."""
    a_low, a_high, b_low, b_high = a & _LOW, a >> _HALF, b & _LOW, b >> _HALF
    cross = a_high * b_low + (a_low * b_low >> _HALF)  # does not overflow
    other = a_low * b_high + (cross & _LOW)
    return a_high * b_high + (cross >> _HALF) + (other >> _HALF), a * b
