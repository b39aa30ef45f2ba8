"""Sheets: what is on them, by their pixels and by what was drawn; neighbours and views as pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import write_images, write_weights

from barlowtwins.cli import main
from barlowtwins.config import AugmentConfig
from barlowtwins.data.open import open_source
from barlowtwins.reports.sheets import SIDE, augment, describe
from barlowtwins.reports.tiles import GAP, LINE, MARGIN, Tile, draw_sheet
from barlowtwins.views.augmentation import Jitter, ViewParameters, augmentation, draw_views, rng_for
from barlowtwins.views.pillow import apply_view
from barlowtwins.views.transform import TwinTransform


def tile(sheet: Image.Image, row_top: int, column: int, side: int) -> np.ndarray:
    """The pixels of a picture on a sheet without a title."""
    left = MARGIN + column * (side + GAP)
    return np.asarray(sheet.crop((left, row_top, left + side, row_top + side)))


def test_pictures_fill_their_tiles_and_small_ones_keep_their_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    wide = Image.new("L", (400, 100), 7)
    sheet = draw_sheet([[Tile(Image.fromarray(pixels)), Tile(wide), Tile(None)]], side=80)

    np.testing.assert_array_equal(tile(sheet, MARGIN, 0, 80), pixels.repeat(10, 0).repeat(10, 1))
    letterboxed = tile(sheet, MARGIN, 1, 80)
    assert (letterboxed[30:50] == 7).all()
    assert (letterboxed[:30] == 255).all()
    assert (tile(sheet, MARGIN, 2, 80) == (200, 205, 212)).all()


@pytest.mark.parametrize("words", ["<script>", "x" * 300, "caf\udce9", "a\nb\tc\0", "naïve \u202e 日本"])
def test_any_text_stays_within_its_tile(words: str) -> None:
    sheet = np.asarray(draw_sheet([[Tile(None, (words,)), Tile(None)]], side=60))

    below = sheet[MARGIN + 61 :, :, :].min(axis=(0, 2)) < 250  # where something is written
    assert below[MARGIN : MARGIN + 60].any()
    assert not below[MARGIN + 60 + GAP :].any()


def test_parameters_are_described_in_their_order() -> None:
    jitter = Jitter((1.25, 0.75, 1.0, -0.05), (2, 0, 3, 1))
    full = ViewParameters(3, 4, 20, 30, True, jitter, True, 1.234, True)

    said = ("crop 20 x 30 at 3, 4", "saturation 1.00, brightness 1.25", "hue -0.05, contrast 0.75")
    assert describe(full) == (*said, "flip, grayscale, blur 1.23 px, solarize")
    assert describe(ViewParameters(0, 0, 5, 5)) == ("crop 5 x 5 at 0, 0",)


def test_augment_shows_the_views_that_training_would_see(tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    result = augment(AugmentConfig("shapes:50", str(out), images=2, pairs=1, epoch=3, seed=7))

    assert (result.images, result.views, result.augmentation.name) == (2, 4, "shapes")
    source, recipe = open_source("shapes:50"), augmentation("shapes")
    image = source.read(0)
    with Image.open(out) as sheet:
        top = MARGIN + 2 * LINE  # below the title
        pair = draw_views(recipe, 32, 32, rng_for(7, 3, 0))
        batched = TwinTransform(dataclasses.replace(recipe, mean=(0.0,) * 3, std=(1.0,) * 3), "batched", seed=7)
        for view, (parameters, y) in enumerate(zip(pair, batched(image, epoch=3, index=0), strict=True)):
            expected = apply_view(image, parameters, recipe).resize((SIDE, SIDE), Image.Resampling.NEAREST)
            np.testing.assert_array_equal(tile(sheet, top, 1 + 2 * view, SIDE), np.asarray(expected))
            shown = tile(sheet, top, 2 + 2 * view, SIDE)[::26, ::26]  # a pixel in 32 / 8 of each tile
            np.testing.assert_array_equal(shown, (y * 255).round().permute(1, 2, 0).numpy()[::4, ::4])
            # The same words under both but for the executor's name and, below all, how far they differ.
            height = LINE * len(describe(parameters))
            words = [
                np.asarray(sheet.crop((left, top + SIDE + 3 + LINE, left + SIDE, top + SIDE + 3 + LINE + height)))
                for left in (MARGIN + (1 + 2 * view + i) * (SIDE + GAP) for i in (0, 1))
            ]
            assert words[0].min() < 150
            np.testing.assert_array_equal(*words)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            "shapes:8",
            "shows 6 of 8 images, evenly spread (for more, raise --images), and 12 views of 32 x 32 pixels (shapes)",
        ),
        ("shapes:4", "shows all 4 images, and 8 views of"),
        ("shapes:1", "shows 1 image, and 2 views of"),
    ],
)
def test_augment_says_how_many_of_all_it_shows(data: str, words: str, tmp_path: Path) -> None:
    result = augment(AugmentConfig(data, str(tmp_path / "s.png"), pairs=1))
    assert words in result.summary()
    assert result.summary().endswith("each made by both executors")


def test_augment_shows_what_cannot_be_read_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "photos", 2)
    (tmp_path / "photos" / "broken.png").write_text("no image")
    command = ["augment", str(tmp_path / "photos"), "--out", str(tmp_path / "sheet.webp"), "--image-size", "16"]

    assert main([*command, "--augmentation", "imagenet", "--pairs", "1"]) == 0
    assert "shows all 3 images, and 4 views" in capsys.readouterr().out
    with Image.open(tmp_path / "sheet.webp") as sheet:
        assert sheet.width > 3 * SIDE


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--out", "sheet"], 2, "use one of .png"),
        (["--out", "s.png", "--augmentation", "smal"], 1, "did you mean 'small'"),
        (["--out", "s.png", "--images", "0"], 2, "from 1 to 100"),
    ],
)
def test_mistakes_are_said(
    flags: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["augment", "shapes:10", *flags]) == code
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_neighbours_as_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_images(tmp_path / "photos", 9, classes=2)
    weights = write_weights(tmp_path / "w.safetensors")
    emb, sheet = str(tmp_path / "emb"), tmp_path / "near.png"
    assert main(["embed", str(photos), "--weights", str(weights), "--out", emb, "--workers", "0"]) == 0
    keys = [open_source(photos).key(i) for i in range(9)]
    capsys.readouterr()

    to_sheet = ["--sheet", str(sheet), "--data", str(photos)]
    assert main(["neighbours", emb, "--query", str(photos / keys[4]), "--k", "3", *to_sheet]) == 0
    *lines, last = capsys.readouterr().out.splitlines()[2:]
    assert last == f"image sheet: {sheet}"
    found = [line.split()[2] for line in lines]
    assert found[0] == keys[4]
    with Image.open(sheet) as picture:
        for column, key in enumerate([keys[4], *found]):
            with Image.open(photos / key) as image:
                expected = image.resize((160, 160), Image.Resampling.NEAREST)
            got = tile(picture.convert("RGB"), MARGIN, column, 160)
            np.testing.assert_array_equal(got[8:-8, 8:-8], np.asarray(expected)[8:-8, 8:-8])
    assert main(["neighbours", emb, "--query", "0", "--sheet", "near.doc"]) == 2
    (photos / keys[2]).unlink()  # an image that has vanished is an empty tile
    assert main(["neighbours", emb, "--query", "0", *to_sheet]) == 0
