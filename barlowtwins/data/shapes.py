"""Ten classes of drawn shapes: labelled images for demonstrations and tests, with nothing to download.

Image i of a split is a pure function of the split, i and the size. Place, size, angle, colours, textures, clutter and
noise are drawn independently of the class, and a shape is darker or brighter than what lies behind it, so neighbours
in pixel space rarely share a class. The colours are strong: they are what pixels and untrained networks compare, and
what a distortion of colours (augmentation "shapes") takes away. What two views still share is mostly the outline. The
shapes stand nearly upright, as things in photographs do: no published distortion turns an image, so a network would
learn the angle before the class.

The pixels are the same on every platform: random numbers come raw from a counter-based generator, and what is done to
a pixel is single precision + - * /, square root and comparison, which IEEE 754 rounds exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["CLASSES", "SPLITS", "draw_shapes"]

# n images in a block, S side in pixels, P = S * S pixels, m clutter marks

Array: TypeAlias = npt.NDArray[np.floating]  # in fact float32

SPLITS = ("train", "test")
_BLOCK = 200  # images drawn at a time: their pixels stay in the processor's cache
_PARAMETERS = 48  # random numbers an image has for everything but noise; a multiple of 4, as one Philox step gives 4
_MARKS = 1  # clutter


def draw_shapes(
    n: int, *, split: str = "train", size: int = 32, start: int = 0
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Draw images start .. start + n - 1 of a split.

    Args:
        n: how many images.
        split: "train" or "test"; the two share no random numbers.
        size: side S in pixels.
        start: number of the first image.

    Returns:
        Images (n, S, S, 3) uint8, and labels (n,) int64, numbers into `CLASSES`. Images 10 j .. 10 j + 9 are one of
        each class, in random order.
    """
    images = np.empty((n, size, size, 3), np.uint8)
    for first in range(0, n, _BLOCK):
        count = min(_BLOCK, n - first)
        images[first : first + count] = _draw_block(start + first, count, SPLITS.index(split), size)
    return images, _labels(start, n, SPLITS.index(split))


# The shapes, as signed distances: x to the right and y up, (n, P) each -> (n, P), negative inside. The unit is about
# half a shape's extent. No distance changes faster than one goes, which is what makes the edges smooth.


def _circle(x: Array, y: Array) -> Array:
    return _length(x, y) - 0.85


def _ring(x: Array, y: Array) -> Array:
    return abs(_length(x, y) - 0.72) - 0.22


def _square(x: Array, y: Array) -> Array:
    return np.maximum(abs(x), abs(y)) - 0.75


def _triangle(x: Array, y: Array) -> Array:
    return np.maximum(0.866 * abs(x) + 0.5 * y, -y) - 0.56


def _star(x: Array, y: Array) -> Array:
    """A pentagram: inside at most one of the five edges' outer half-planes, so the second largest distance decides."""
    largest = np.full_like(x, -np.inf)
    second = largest
    for normal_x, normal_y in _FIVE_NORMALS:
        distance = normal_x * x + normal_y * y
        second = np.maximum(second, np.minimum(largest, distance))
        largest = np.maximum(largest, distance)
    return second - 0.36


def _cross(x: Array, y: Array) -> Array:
    long, short = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y))
    return np.maximum(long - 0.95, short - 0.3)


def _heart(x: Array, y: Array) -> Array:
    """A square that stands on a corner, and a disc on each of its upper edges."""
    u, v = 0.7071 * (y + x) + 0.15, 0.7071 * (y - x) + 0.15
    square = np.maximum(abs(u), abs(v)) - 0.5
    return np.minimum(square, np.minimum(_length(u - 0.5, v), _length(u, v - 0.5)) - 0.5)


def _crescent(x: Array, y: Array) -> Array:
    x = x - 0.2
    return np.maximum(_length(x, y) - 0.98, 0.78 - _length(x - 0.5, y))


def _arrow(x: Array, y: Array) -> Array:
    head = np.maximum(0.6 * x + 0.8 * abs(y) - 0.6, -x)
    shaft = np.maximum(abs(x + 0.4) - 0.6, abs(y) - 0.22)
    return np.minimum(head, shaft)


def _hourglass(x: Array, y: Array) -> Array:
    return np.maximum(0.8 * abs(x) - 0.6 * abs(y) - 0.06, abs(y) - 0.85)


_SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": _circle,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
    "crescent": _crescent,
    "arrow": _arrow,
    "hourglass": _hourglass,
}
CLASSES: tuple[str, ...] = tuple(_SHAPES)
"""Class names, by label."""
_FIVE_NORMALS = ((0.0, 1.0), (0.9511, 0.309), (0.5878, -0.809), (-0.5878, -0.809), (-0.9511, 0.309))


def _length(x: Array, y: Array) -> Array:
    return np.sqrt(x * x + y * y)


def _draw_block(start: int, n: int, split: int, size: int) -> npt.NDArray[np.uint8]:
    """Images start .. start + n - 1 as (n, S, S, 3)."""
    chance = iter(_random(start, n, split, stream=0, per_image=_PARAMETERS).T[..., None])  # each (n, 1) in [0, 1)

    def between(low: float, high: float) -> Array:
        return (low + (high - low) * next(chance)).astype(np.float32)

    def direction(most: float = 180) -> tuple[Array, Array]:
        """Cosine and sine, (n, 1) each, of any angle up to that many degrees either way."""
        angle = (2 * next(chance) - 1) * most * np.pi / 180
        return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    def colour(brightness: Array) -> Array:
        """(n, 3, 1): any hue around a brightness (n, 1), which clipping may change a little."""
        tint = np.stack([between(-0.4, 0.4) for _ in range(3)], 1)  # (n, 3, 1)
        return np.clip(brightness[:, None] + tint - tint.mean(1, keepdims=True), 0, 1)

    def waves() -> Array:
        """(n, P) in -1..1: triangular waves across the image, of any direction and length."""
        (cos, sin), per_frame, phase = direction(), between(1, 7), between(0, 1)
        cycles = per_frame * (cos * x + sin * y) + phase
        return 4 * abs(cycles - np.floor(cycles) - 0.5) - 1

    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    y, x = (axis.reshape(1, -1) for axis in np.meshgrid(grid, grid, indexing="ij"))  # (1, P) each, in 0..1

    brightness, contrast = between(0.4, 0.6), between(0.2, 0.5)
    darker = between(0, 1) < 0.5
    behind, front = colour(brightness), colour(np.where(darker, brightness - contrast, brightness + contrast))

    image = behind + between(0, 0.015)[..., None] * waves()[:, None]  # (n, 3, P)
    for _ in range(_MARKS):
        mark_x, mark_y, radius = between(0, 1), between(0, 1), between(0.0, 0.11)
        cover = _cover(_length(x - mark_x, y - mark_y) - radius, size)
        image += cover[:, None] * (colour(between(0, 1)) - image)

    (cos, sin), radius = direction(25), between(0.25, 0.4)
    right, up = (x - between(0.3, 0.7)) / radius, (between(0.3, 0.7) - y) / radius  # (n, P), from the centre
    u, v = cos * right + sin * up, cos * up - sin * right  # the same in the shape's own frame
    distance = np.empty_like(u)
    labels = _labels(start, n, split)
    for label, shape in enumerate(_SHAPES.values()):
        mine = labels == label
        distance[mine] = shape(u[mine], v[mine])
    cover = _cover(distance * radius, size)
    image += cover[:, None] * (front + between(0, 0.015)[..., None] * waves()[:, None] - image)

    noise = _random(start, n, split, stream=1, per_image=3 * size * size).astype(np.float32) - 0.5
    image += between(0, 0.1)[..., None] * noise.reshape(image.shape)
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return pixels.reshape(n, 3, size, size).transpose(0, 2, 3, 1)


def _cover(distance: Array, size: int) -> Array:
    """Fraction of each pixel that lies inside, from the signed distance of its centre in units of the frame."""
    return np.clip(0.5 - distance * size, 0, 1)


def _labels(start: int, n: int, split: int) -> npt.NDArray[np.int64]:
    """(n,): the order of ten random numbers for each ten images."""
    first, last = start // 10, -(-(start + n) // 10)
    order = _random(first, last - first, split, stream=2, per_image=10).argsort(axis=1, kind="stable")
    return order.reshape(-1)[start - 10 * first :][:n].astype(np.int64)


def _random(start: int, n: int, split: int, *, stream: int, per_image: int) -> npt.NDArray[np.float64]:
    """(n, per_image) numbers in [0, 1), the same for an image whatever the block it is drawn in."""
    steps = -(-per_image // 4)  # of the generator, each of which gives four numbers
    generator = np.random.Philox(key=[split, stream], counter=[start * steps, 0, 0, 0])
    raw = generator.random_raw(n * steps * 4).reshape(n, steps * 4)[:, :per_image]
    return (raw >> np.uint64(11)) * 2.0**-53
