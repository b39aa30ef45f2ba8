"""The drawn data set: the same pixels everywhere, outlines as they should be, hard for pixels."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw
from sklearn.neighbors import KNeighborsClassifier

from barlowtwins.data import shapes
from barlowtwins.data.shapes import CLASSES, draw_shapes


class TestPureFunction:
    def test_an_image_does_not_depend_on_what_is_drawn_with_it(self) -> None:
        images, labels = draw_shapes(430, split="test")
        for start, n in ((0, 1), (7, 1), (399, 3), (195, 230)):
            part, part_labels = draw_shapes(n, split="test", start=start)
            np.testing.assert_array_equal(part, images[start : start + n])
            np.testing.assert_array_equal(part_labels, labels[start : start + n])

    def test_splits_share_nothing(self) -> None:
        train, test = draw_shapes(50, split="train")[0], draw_shapes(50, split="test")[0]
        assert not any((image == other).all() for image in train for other in test)

    def test_types_and_sizes(self) -> None:
        for size in (8, 32, 65):
            images, labels = draw_shapes(3, size=size)
            assert (images.shape, images.dtype) == ((3, size, size, 3), np.uint8)
            assert (labels.shape, labels.dtype) == ((3,), np.int64)
        assert draw_shapes(0)[0].shape == (0, 32, 32, 3)

    def test_each_ten_images_show_each_class_once_in_no_fixed_order(self) -> None:
        labels = draw_shapes(300)[1].reshape(30, 10)
        assert (np.sort(labels) == np.arange(10)).all()
        assert len({tuple(row) for row in labels.tolist()}) > 25


Point = tuple[float, float]


def fan(corners: int, radius: float, start: float) -> list[Point]:
    """Points on a circle, from `start` (in turns, 0 to the right, 0.25 up) against the clock."""
    turns = [2 * math.pi * (start + k / corners) for k in range(corners)]
    return [(radius * math.cos(turn), radius * math.sin(turn)) for turn in turns]


def star(inner: float) -> list[Point]:
    """Five tips above the sides of a pentagon whose sides are `inner` away from the middle."""
    tips = fan(5, inner / math.cos(math.radians(72)), 0.25)
    dents = fan(5, inner / math.cos(math.radians(36)), 0.35)
    return [corner for pair in zip(tips, dents, strict=True) for corner in pair]


def box(width: float, height: float, x: float = 0, y: float = 0) -> list[Point]:
    return [(x - width, y - height), (x + width, y - height), (x + width, y + height), (x - width, y + height)]


ROOT = math.sqrt(0.5)
# Each outline once more, as polygons and as discs (x, y, radius), the last ones cut out (negative radius).
OUTLINES: dict[str, list[list[Point] | tuple[float, float, float]]] = {
    "circle": [(0, 0, 0.85)],
    "ring": [(0, 0, 0.94), (0, 0, -0.5)],
    "square": [box(0.75, 0.75)],
    "triangle": [fan(3, 1.12, 0.25)],
    "star": [star(0.36)],
    "cross": [box(0.95, 0.3), box(0.3, 0.95)],
    "heart": [
        [(x, y - 0.3 * ROOT) for x, y in fan(4, ROOT, 0.25)],
        *((side * 0.5 * ROOT, 0.2 * ROOT, 0.5) for side in (-1, 1)),
    ],
    "crescent": [(0.2, 0, 0.98), (0.7, 0, -0.78)],
    "arrow": [box(0.6, 0.22, x=-0.4), [(0, 0.75), (1, 0), (0, -0.75)]],
    "hourglass": [[(-0.075, 0), (-0.7125, side * 0.85), (0.7125, side * 0.85), (0.075, 0)] for side in (-1, 1)],
}


def grid(size: int, reach: float = 1.3) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """x and y, (1, size * size) each, row by row from the upper left."""
    line = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32) * np.float32(reach)
    y, x = np.meshgrid(-line, line, indexing="ij")
    return x.reshape(1, -1), y.reshape(1, -1)


class TestOutlines:
    def test_every_class_has_one(self) -> None:
        assert tuple(OUTLINES) == CLASSES

    @pytest.mark.parametrize("name", CLASSES)
    def test_inside_is_where_the_polygons_and_discs_are(self, name: str) -> None:
        size, reach = 800, 1.3
        canvas = Image.new("1", (size, size))
        pen = ImageDraw.Draw(canvas)

        def place(x: float, y: float) -> tuple[float, float]:
            return (x / reach + 1) / 2 * size - 0.5, (1 - y / reach) / 2 * size - 0.5

        for part in OUTLINES[name]:
            if isinstance(part, list):
                pen.polygon([place(x, y) for x, y in part], fill=1)
            else:
                x, y, radius = part
                box = (*place(x - abs(radius), y + abs(radius)), *place(x + abs(radius), y - abs(radius)))
                pen.ellipse(box, fill=radius > 0)
        expected = np.asarray(canvas)
        got = (shapes._SHAPES[name](*grid(size, reach)) < 0).reshape(size, size)
        assert (got != expected).sum() < 0.02 * expected.sum()  # a pixel along the outline

    @pytest.mark.parametrize("name", CLASSES)
    def test_distances_change_no_faster_than_one_goes(self, name: str) -> None:
        chance = np.random.default_rng(0)
        here, step = chance.uniform(-1.3, 1.3, (2, 1, 20000)), chance.uniform(-0.05, 0.05, (2, 1, 20000))
        there = here + step
        change = abs(shapes._SHAPES[name](*there) - shapes._SHAPES[name](*here))
        assert (change <= 1.001 * np.hypot(*step) + 1e-6).all()


def accuracy(train: int, test: int, features: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float64]]) -> float:
    """Percent of test images whose 20 nearest training images, by cosine, vote for the right class."""
    bank, labels = draw_shapes(train)
    queries, answers = draw_shapes(test, split="test")
    neighbours = KNeighborsClassifier(20, metric="cosine", weights="distance").fit(features(bank), labels)
    return 100 * float(neighbours.score(features(queries), answers))


def test_pixels_are_poor_neighbours_but_no_noise() -> None:
    """With all 10,000 training and 2,000 test images it is 44 percent; chance is 10."""
    assert 15 < accuracy(3000, 500, lambda images: images.reshape(len(images), -1) / 255) < 45


def test_the_background_says_nothing_about_the_class() -> None:
    def corners(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        return np.median(images[:, [1, 1, 30, 30], [1, 30, 1, 30]] / 255 - 0.5, axis=1)  # (n, 3)

    assert accuracy(3000, 1000, corners) < 14


def test_the_pixels_are_the_same_on_every_platform() -> None:
    """A drawing that changes by one bit invalidates every number that was published for this data set."""
    images, labels = draw_shapes(1000, split="train")
    digest = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    assert digest == "0b617c1c66e1d0cb0618175e9bf9f62340f4d92b61edaf7457620851d46dc5b5"
