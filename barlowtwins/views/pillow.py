"""The published operations with Pillow, for one view of one image.

Each function is bit-exact with torchvision on PIL images, in the published order: crop and resize (bicubic), flip,
color jitter, grayscale, blur, solarize.
"""

from __future__ import annotations

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from barlowtwins.views.augmentation import Augmentation, Jitter, ViewParameters

__all__ = ["apply_view", "crop_view"]


def apply_view(image: Image.Image, params: ViewParameters, augmentation: Augmentation) -> Image.Image:
    """Apply the parameters of one view; nothing here is random.

    Args:
        image: mode "RGB" or "L", of the size that the parameters were drawn for.
        params: parameters from `draw_view`.
        augmentation: defines the side S of the view and the solarize threshold.

    Returns:
        an S x S image of the same mode; `image` is not changed.
    """
    view = crop_view(image, params, augmentation)
    if params.jitter is not None:
        view = jitter_color(view, params.jitter)
    if params.grey:
        view = view.convert("L").convert(view.mode)
    if params.blur_sigma is not None:
        view = view.filter(ImageFilter.GaussianBlur(params.blur_sigma))
    if params.solarize:
        view = ImageOps.solarize(view, augmentation.solarize_threshold)
    return view


def crop_view(image: Image.Image, params: ViewParameters, augmentation: Augmentation) -> Image.Image:
    """Crop, resize and flip."""
    view = image.crop((params.left, params.top, params.left + params.width, params.top + params.height))
    if view.size != (augmentation.size, augmentation.size):
        view = view.resize((augmentation.size, augmentation.size), Image.Resampling.BICUBIC)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if params.flip else view


def jitter_color(image: Image.Image, jitter: Jitter) -> Image.Image:
    """Change brightness, contrast, saturation and hue in the drawn order; neutral factors are skipped."""
    for which in jitter.order:
        factor = jitter.factors[which]
        if which == 3:
            image = turn_hue(image, factor) if factor != 0 else image
        elif factor != 1:
            image = ENHANCERS[which](image).enhance(factor)
    return image


ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """Shift the hue by `turn` of the full circle, [-0.5, 0.5], in 8-bit HSV; gray images have no hue."""
    if image.mode == "L":
        return image
    steps = int(turn * 255)  # 255 and truncation toward zero, as in torchvision
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(level + steps) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
