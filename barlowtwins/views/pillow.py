"""The published operations to the letter: one view's parameters carried out by Pillow on one image.

Each function is what torchvision computes for PIL images, bit for bit, in the published order: crop and resize
(bicubic), flip, colour jitter, greyscale, blur, solarise.
"""

from __future__ import annotations

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from barlowtwins.views.augmentation import AugmentRecipe, Jitter, ViewParameters

__all__ = ["apply_view", "crop_view"]


def apply_view(image: Image.Image, params: ViewParameters, recipe: AugmentRecipe) -> Image.Image:
    """Carry out one view's parameters; nothing here is random.

    Args:
        image: mode "RGB" or "L", of the size that the parameters were drawn for.
        params: what `draw_view` drew.
        recipe: gives the side S of the view and the threshold of solarise.

    Returns:
        an S x S image of the same mode; `image` is left as it was.
    """
    view = crop_view(image, params, recipe)
    if params.jitter is not None:
        view = jitter_colour(view, params.jitter)
    if params.grey:
        view = view.convert("L").convert(view.mode)
    if params.blur_sigma is not None:
        view = view.filter(ImageFilter.GaussianBlur(params.blur_sigma))
    if params.solarize:
        view = ImageOps.solarize(view, recipe.solarize_threshold)
    return view


def crop_view(image: Image.Image, params: ViewParameters, recipe: AugmentRecipe) -> Image.Image:
    """The geometry alone: crop, resize, flip."""
    view = image.crop((params.left, params.top, params.left + params.width, params.top + params.height))
    if view.size != (recipe.size, recipe.size):
        view = view.resize((recipe.size, recipe.size), Image.Resampling.BICUBIC)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if params.flip else view


def jitter_colour(image: Image.Image, jitter: Jitter) -> Image.Image:
    """Brightness, contrast, saturation and hue in the drawn order; a neutral factor is skipped."""
    for which in jitter.order:
        factor = jitter.factors[which]
        if which == 3:
            image = turn_hue(image, factor) if factor != 0 else image
        elif factor != 1:
            image = ENHANCERS[which](image).enhance(factor)
    return image


ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """Move the hue by `turn` of the full circle, [-0.5, 0.5], in Pillow's 8-bit HSV; grey images have none."""
    if image.mode == "L":
        return image
    steps = int(turn * 255)  # 255 and truncation towards zero, as torchvision has it
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(level + steps) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
