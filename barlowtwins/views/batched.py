"""The operations of pillow.py for a whole batch, with a few large tensor operations, on any device.

    images (N, H, W, C) uint8 + DrawnViews -> crop_batch -> distort_batch -> normalize -> two (N, C, S, S) float32

Each view has its own parameters, the same as with Pillow. The order is the published one: crop and resize, flip, color
jitter in the order drawn for the view, grayscale, blur, solarize, then scale and normalize.

After each operation the levels are whole numbers, rounded or truncated as in Pillow. The results differ by:

| operation | implementation | difference from Pillow |
|---|---|---|
| crop, resize, flip | two matrix products: bicubic (a = -0.5), antialiased, 8 bits in between | 1 level; see below |
| brightness, contrast, saturation, grayscale, solarize | the same arithmetic | none |
| hue | the same arithmetic in 8-bit HSV | 1/255 of the hue, at most 6 levels, in 0.1 % of the numbers |
| blur | the same three extended box blurs as one matrix, not rounded in between | mean 0.3-0.4, at most 3 levels |

For a crop that is taller than wide and shrinks vertically, newer versions of Pillow resize vertically first; older
ones and this module resize horizontally first. The rounding in between then differs, by 0.4 levels on average on noise.

The parameters are on the host, so all shapes are known there: the device is never synchronized, and an operation
computes only the views that need it.
"""

# N images, n views in a call, C channels, H x W the images' size, S side of the views, P pixels

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from barlowtwins.views.augmentation import Augmentation
from barlowtwins.views.draw import DrawnViews

__all__ = ["crop_batch", "distort_batch", "finish_views", "make_views", "normalize", "to_device"]

CHUNK = 1 << 19  # numbers in a chunk of views on a CPU, which stay in its cache through all operations
BEYOND = 1e9  # pixels; beyond the reach of any kernel
LUMA = (19595.0, 38470.0, 7471.0)  # ITU-R 601 weights in units of 2**-16, as in Pillow
DARKEST = (3.0, 5.0, 1.0)  # where red, green and blue are smallest on the circle of six sectors: see `turn_hue`


def make_views(images: Tensor, drawn: DrawnViews, augmentation: Augmentation) -> tuple[Tensor, Tensor]:
    """Make two views of each image.

    Args:
        images: (N, H, W, C) uint8 with the C of the augmentation; the views are on the same device.
        drawn: parameters of the views, drawn for this H and W.
        augmentation: defines S, the solarize threshold, the mean and std.

    Returns:
        two (N, C, S, S) float32.
    """
    n, _, _, c = images.shape
    s = augmentation.size
    views = torch.empty(2, n, c, s, s, device=images.device)
    step = n if images.device.type != "cpu" else max(1, CHUNK // (2 * c * s * s))
    for first in range(0, n, step):
        rows = slice(first, min(first + step, n))
        levels = crop_batch(images[rows], drawn[rows], s)  # (2n, C, S, S)
        levels = distort_batch(levels, drawn[rows], augmentation)
        views[:, rows] = normalize(levels, augmentation).view(2, -1, c, s, s)
    return views[0], views[1]


def finish_views(crops: Tensor, drawn: DrawnViews, augmentation: Augmentation) -> tuple[Tensor, Tensor]:
    """Make the views of images that are already cropped, resized and flipped.

    Args:
        crops: (2, N, S, S, C) uint8: the first views, then the second views.
        drawn: parameters of the views.
        augmentation: as for `make_views`.

    Returns:
        two (N, C, S, S) float32.
    """
    _, n, s, _, c = crops.shape
    levels = (
        crops.flatten(0, 1).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    )  # (2N, C, S, S)
    views = normalize(distort_batch(levels, drawn, augmentation), augmentation).view(2, n, c, s, s)
    return views[0], views[1]


def normalize(levels: Tensor, augmentation: Augmentation) -> Tensor:
    """Scale levels (n, C, S, S) in 0-255 to [0, 1], subtract the mean and divide by the std, in place."""
    scale = [1 / (255 * std) for std in augmentation.std]
    shift = [mean / std for mean, std in zip(augmentation.mean, augmentation.std, strict=True)]
    columns = to_device(np.array([scale, shift], np.float32), levels.device)[..., None, None]  # (2, C, 1, 1)
    return levels.mul_(columns[0]).sub_(columns[1])


def to_device(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """Copy parameters to the device; for a GPU without waiting."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


# Geometry -------------------------------------------------------------------------------------------------------------


def crop_batch(images: Tensor, drawn: DrawnViews, size: int) -> Tensor:
    """Crop, resize and flip.

    Args:
        images: (N, H, W, C) uint8.
        drawn: the boxes and flips.
        size: S.

    Returns:
        (2N, C, S, S) float32 levels, whole numbers in 0-255: all first views, then all second views.
    """
    n, h, w, c = images.shape
    edges = to_device(np.concatenate([drawn.box, drawn.flip[..., None]], 2, dtype=np.float32), images.device)
    left, top, width, height, flip = edges.permute(2, 1, 0)  # (2, N) each
    across = resize_matrix(left, width, w, size, flip)  # (2, N, W, S)
    down = resize_matrix(top, height, h, size)  # (2, N, H, S)
    pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)  # (N, C, H, W)
    levels = torch.empty(2, n, c, size, size, device=images.device)
    for view in range(2):
        rows = _to_levels(torch.bmm(pixels.view(n, c * h, w), across[view]))  # Pillow also rounds in between
        torch.matmul(down[view].transpose(1, 2)[:, None], rows.view(n, c, h, size), out=levels[view])
    return _to_levels(levels).flatten(0, 1)


def resize_matrix(start: Tensor, length: Tensor, pixels: int, size: int, flip: Tensor | None = None) -> Tensor:
    """Return the weights of source pixels in resized pixels along one axis, as in Pillow's bicubic resize.

    Args:
        start, length: of the part, in source pixels, (...) float.
        pixels: of the source, P.
        size: S.
        flip: 1 to flip the result, 0 not to; (...) float.

    Returns:
        (..., P, S), each column sums to 1; pixels outside of the part have weight 0.
    """
    at = torch.arange(size, device=start.device, dtype=start.dtype).expand(*start.shape, size)  # (..., S)
    if flip is not None:
        at = at + flip[..., None] * (size - 1 - 2 * at)
    scale = length[..., None] / size  # (..., 1): source pixels for one resized pixel
    wide = scale.clamp(min=1)  # when shrinking, the kernel spans more source pixels
    center = (at + 0.5) * scale  # (..., S), from the start of the part
    source = torch.arange(pixels, device=start.device, dtype=start.dtype) + 0.5 - start[..., None]  # (..., P)
    source.masked_fill_((source < 0) | (source > length[..., None]), BEYOND)
    weight = bicubic((source / wide)[..., None] - (center / wide)[..., None, :])  # (..., P, S)
    return weight.div_(weight.sum(-2, keepdim=True))


def bicubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5, in place: 1 at 0, and 0 at 1 and beyond 2.

    Computed as the piece for 1 <= |x| < 2 plus, for |x| < 1, the difference of the pieces, in terms of y = 1 - |x|.
    """
    y = x.abs_().neg_().add_(1).clamp_(min=-1)
    more = y.clamp(min=0).square_().mul_(1 - 2 * y)
    return (y + 1).square_().mul_(y).mul_(0.5).add_(more)


def _to_levels(x: Tensor) -> Tensor:
    """Round to 0-255, in place."""
    return x.add_(0.5).clamp_(0, 255).floor_()


# Color ----------------------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """One operation for some of the views."""

    operation: Callable[[Tensor, Tensor], Tensor]
    """(n, C, S, S) levels and (n,) values -> levels."""
    views: npt.NDArray[np.int64]
    """(n,) indices of the views."""
    values: npt.NDArray[np.floating]
    """(n,) parameter of the operation for each view."""


def distort_batch(levels: Tensor, drawn: DrawnViews, augmentation: Augmentation) -> Tensor:
    """Apply everything but the geometry to (2N, C, S, S) levels, first views first, in place."""
    steps = plan_steps(drawn, augmentation)
    if not steps:
        return levels
    counts = [len(step.views) for step in steps]
    views = to_device(np.concatenate([step.views for step in steps]), levels.device).split(counts)
    values = to_device(np.concatenate([step.values for step in steps], dtype=np.float32), levels.device).split(counts)
    for step, chosen, value in zip(steps, views, values, strict=True):
        if len(chosen) == len(levels):
            levels = step.operation(levels, value)
        else:
            levels.index_copy_(0, chosen, step.operation(levels.index_select(0, chosen), value))
    return levels


def plan_steps(drawn: DrawnViews, augmentation: Augmentation) -> list[Step]:
    """List the operations and their views, in order; operations without views are left out."""
    jitter, grey, solarize, sigma = (
        np.concatenate([field[:, 0], field[:, 1]])  # (2N,), first views first
        for field in (drawn.jitter, drawn.grey, drawn.solarize, drawn.blur_sigma)
    )
    factors, order = (np.concatenate([field[:, 0], field[:, 1]]) for field in (drawn.factors, drawn.order))  # (2N, 4)
    steps = []
    jitters = 4 if augmentation.channels == 3 else 2  # gray images have neither saturation nor hue
    active = [which for which in range(jitters) if (factors[jitter, which] != NEUTRAL[which]).any()]
    order = order[np.isin(order, active)].reshape(
        len(order), len(active)
    )  # (2N, active), in the order drawn for each view
    for turn in range(len(active)):
        for which in active:
            views = np.flatnonzero(jitter & (order[:, turn] == which) & (factors[:, which] != NEUTRAL[which]))
            values = factors[views, which]
            # The hue shifts by whole 8-bit steps, truncated toward zero as in torchvision.
            steps.append(Step(JITTERS[which], views, np.trunc(values * 255) if which == 3 else values))
    if augmentation.channels == 3:
        steps.append(_all_at(to_grey, grey))
    blurred = np.flatnonzero(sigma > 0)  # NaN is none
    steps.append(Step(blur, blurred, sigma[blurred]))
    bright = np.flatnonzero(solarize)
    steps.append(Step(invert_bright, bright, np.full(len(bright), float(augmentation.solarize_threshold))))
    return [step for step in steps if len(step.views)]


def _all_at(operation: Callable[[Tensor, Tensor], Tensor], chosen: npt.NDArray[np.bool_]) -> Step:
    views = np.flatnonzero(chosen)
    return Step(operation, views, np.zeros(len(views)))


def brightness(levels: Tensor, factor: Tensor) -> Tensor:
    """Scale toward black, or away from it."""
    return levels.mul_(factor[:, None, None, None]).clamp_(max=255).floor_()


def contrast(levels: Tensor, factor: Tensor) -> Tensor:
    """Scale toward the mean luma of the image, or away from it."""
    mean = luma(levels).mean((1, 2, 3), keepdim=True).add_(0.5).floor_()  # (n, 1, 1, 1)
    return _blend(mean, levels, factor)


def saturation(levels: Tensor, factor: Tensor) -> Tensor:
    """Scale toward the luma of each pixel, or away from it."""
    return _blend(luma(levels), levels, factor)


def to_grey(levels: Tensor, _: Tensor) -> Tensor:
    """Set all channels to the luma of the pixel."""
    return levels.copy_(luma(levels).expand_as(levels))


def invert_bright(levels: Tensor, threshold: Tensor) -> Tensor:
    """Solarize: invert levels at or above the threshold."""
    is_bright = (levels - (threshold[:, None, None, None] - 1)).clamp_(0, 1)  # levels are whole numbers
    return levels.addcmul_(255 - 2 * levels, is_bright)


def luma(levels: Tensor) -> Tensor:
    """(n, C, S, S) -> (n, 1, S, S) whole numbers; every term is below 2**24, so float32 is exact.

    For other channels than gray or RGB it is the rounded mean.
    """
    if levels.shape[1] == 1:
        return levels
    if levels.shape[1] != 3:
        return levels.mean(1, keepdim=True).add_(0.5).floor_()
    red, green, blue = levels.split(1, 1)
    grey = (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return grey.add_(0x8000).mul_(2**-16).floor_()


def _blend(end: Tensor, levels: Tensor, factor: Tensor) -> Tensor:
    """Return end + factor * (levels - end), truncated to a level as in Pillow."""
    return levels.sub_(end).mul_(factor[:, None, None, None]).add_(end).clamp_(0, 255).floor_()


def turn_hue(levels: Tensor, steps: Tensor) -> Tensor:
    """Shift the hue by whole 8-bit steps, (n,) from -127 to 127, in 8-bit HSV.

    The circle of hues has six sectors. A channel is darkest within one sector of its opposite hue, brightest beyond
    two sectors, and linear in between.
    """
    red, green, blue = levels.split(1, 1)  # (n, 1, S, S) each
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    # Weights 0 and 1 select the largest channel, red before green before blue; `torch.where` is slow on CPUs.
    not_red, not_green = (value - red).clamp_(max=1), (value - green).clamp_(max=1)
    is_blue = not_red * not_green
    is_green = not_red - is_blue
    sector = (green - blue).mul_(1 - not_red).addcmul_(blue - red, is_green).addcmul_(red - green, is_blue)
    sector.div_(spread.clamp(min=1)).add_(is_green, alpha=2).add_(is_blue, alpha=4)
    hue = sector.mul_(255 / 6)  # (-42.5, 212.5], 255 being the full circle
    hue = hue.sub_((hue / 255).floor_(), alpha=255).floor_().add_(steps[:, None, None, None])
    hue.sub_((hue * 2**-8).floor_(), alpha=256)  # here the circle has 256 steps, as in Pillow
    saturation = spread.mul_(255).div_(value.clamp(min=1)).floor_()
    darkest = to_device(np.array(DARKEST, np.float32), levels.device)[:, None, None]  # (C, 1, 1)
    far = hue.mul_(6 / 255).sub(darkest).abs_()  # (n, C, S, S), from 0 to 5 sectors
    dark = torch.maximum(2 - far, far.sub_(4)).clamp_(0, 1)
    return dark.mul_(saturation.mul_(-1 / 255)).add_(1).mul_(value).add_(0.5).floor_()


NEUTRAL = (1.0, 1.0, 1.0, 0.0)
JITTERS = (brightness, contrast, saturation, turn_hue)


# Blur -----------------------------------------------------------------------------------------------------------------


def blur(levels: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of Pillow with standard deviation sigma (n,): three extended box blurs along each axis."""
    matrix = blur_matrix(sigma, levels.shape[-1])[:, None]  # (n, 1, S, S)
    return _to_levels(matrix @ (levels @ matrix.transpose(2, 3)))


def blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """Return (n, S, S), three box blurs of fractional width in sequence; border pixels are repeated outside.

    Gwosdek et al., "Theoretical Foundations of Gaussian Convolution by Extended Box Filtering", 2011.
    """
    variance = sigma.square() / 3  # of each of the three
    whole = ((12 * variance + 1).sqrt() - 1).div(2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1).square()))
    radius = (whole + part)[:, None, None]  # of the box; a pixel counts by the share of it that is inside
    at = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    # The cumulative share up to the far side of a pixel, so border pixels represent everything beyond them.
    upto = ((at + 0.5 - at[:, None]) / (2 * radius + 1) + 0.5).clamp_(0, 1)  # (n, S, S)
    upto[..., -1] = 1
    box = upto.diff(dim=2, prepend=torch.zeros_like(upto[..., :1]))
    return box @ box @ box
