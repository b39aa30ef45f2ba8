"""The operations of pillow.py with OpenCV, image by image, several times as fast.

Order and parameters are the same. The results differ by at most (checked by tests):

| operation | implementation | difference in levels (of 255), mean over an image |
|---|---|---|
| crop, flip | slices | none |
| resize | area averages when shrinking by 1.6 or more, else bilinear or bicubic (a = -0.75) | below 3 |
| brightness, contrast, solarize | table of 256 levels | below 0.5: the mean gray level may round differently |
| saturation, grayscale | luma of OpenCV, 14 bits instead of 16 | below 0.5 |
| hue | 8-bit HSV of OpenCV | below 1.5 |
| blur | a true Gaussian; Pillow uses three box blurs | below 1 |
"""

# H x W pixels of the image, S side of the view, C channels: arrays are (H, W, 3), or (H, W) for grayscale

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from barlowtwins.core.errors import MissingExtraError
from barlowtwins.views.augmentation import Augmentation, Jitter, ViewParameters

__all__ = ["apply_view", "require_opencv"]

# Shrink factors from which area averages are closer to Pillow's resize than bilinear, and bilinear than bicubic. Area
# averages take four times as long.
AREA_FROM, LINEAR_FROM = 1.6, 1.15

Levels = npt.NDArray[np.uint8]


@functools.cache
def require_opencv() -> Any:
    """Return the module `cv2`, limited to one thread, or raise MissingExtraError."""
    try:
        import cv2
    except ModuleNotFoundError:
        raise MissingExtraError("opencv-python-headless", "fast") from None
    cv2.setNumThreads(0)
    return cv2


def apply_view(image: Levels, params: ViewParameters, augmentation: Augmentation) -> Levels:
    """Apply the parameters of one view; nothing here is random.

    Args:
        image: (H, W, 3) RGB or (H, W) gray, of the size that the parameters were drawn for; not changed.
        params: parameters from `draw_view`.
        augmentation: defines the side S of the view and the solarize threshold.

    Returns:
        (S, S, 3) or (S, S).
    """
    cv2 = require_opencv()
    view = crop_view(cv2, image, params, augmentation.size)
    if params.jitter is not None:
        view = jitter_color(cv2, view, params.jitter)
    if params.grey and view.ndim == 3:
        view = cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if params.blur_sigma is not None:
        view = cv2.GaussianBlur(view, (0, 0), params.blur_sigma)
    if params.solarize:
        levels = np.arange(256)
        view = cv2.LUT(view, np.where(levels < augmentation.solarize_threshold, levels, 255 - levels).astype(np.uint8))
    return np.ascontiguousarray(view)


def crop_view(cv2: Any, image: Levels, params: ViewParameters, side: int) -> Levels:
    """Crop, resize and flip."""
    view = image[params.top : params.top + params.height, params.left : params.left + params.width]
    shrinks = max(params.width, params.height) / side
    if shrinks > AREA_FROM:
        smaller = min(params.width, side), min(params.height, side)
        view = cv2.resize(view, smaller, interpolation=cv2.INTER_AREA)
    if view.shape[:2] != (side, side):
        how = cv2.INTER_LINEAR if LINEAR_FROM < shrinks <= AREA_FROM else cv2.INTER_CUBIC
        view = cv2.resize(view, (side, side), interpolation=how)
    return cv2.flip(view, 1) if params.flip else view


def jitter_color(cv2: Any, view: Levels, jitter: Jitter) -> Levels:
    """Change brightness, contrast, saturation and hue in the drawn order; neutral factors are skipped."""
    view = np.ascontiguousarray(view)
    for which in jitter.order:
        factor = jitter.factors[which]
        if which == 3:
            view = turn_hue(cv2, view, factor) if factor != 0 else view
        elif factor == 1:
            continue
        elif which == 0:
            view = cv2.LUT(view, _towards(0, factor))
        elif which == 1:
            grey = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY) if view.ndim == 3 else view
            view = cv2.LUT(view, _towards(int(cv2.mean(grey)[0] + 0.5), factor))
        elif view.ndim == 3:
            grey = cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            view = cv2.addWeighted(view, factor, grey, 1 - factor, -0.5)  # Pillow truncates, OpenCV rounds
    return view


def turn_hue(cv2: Any, view: Levels, turn: float) -> Levels:
    """Shift the hue by `turn` of the full circle, [-0.5, 0.5], in 8-bit HSV; gray images have no hue."""
    if view.ndim == 2:
        return view
    hsv = cv2.cvtColor(view, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(turn * 255) % 256)  # wraps around the circle of 256 levels
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _towards(level: int, factor: float) -> Levels:
    """Return a table that moves each level away from `level` (factor > 1) or toward it, truncated as in Pillow."""
    levels = np.arange(256, dtype=np.float32)
    return np.clip(level + (levels - level) * np.float32(factor), 0, 255).astype(np.uint8)
