"""What follows from other settings and from the images: the authors' rules, that flags win, and that it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from barlowtwins.config import PretrainConfig
from barlowtwins.data.open import open_source
from barlowtwins.pretraining import pretrain
from barlowtwins.train.recipes import Settings, recipe_names, resolve
from barlowtwins.train.recipes.defaults import augmentation_for, lars_rate
from barlowtwins.train.recipes.probe_images import Observed, observe


def resolved(
    recipe: str, *, channels: int = 3, size: tuple[int, int] | None = None, data: str = "photos", **flags: Any
) -> Settings:
    return resolve(PretrainConfig(data, "run", recipe, **flags), channels=channels, size=size)


def said(settings: Settings, *words: str) -> bool:
    """Whether one line of what was chosen has all the words."""
    return any(all(word in line for word in words) for line in settings.chosen)


# Batch size and learning rate -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "rate"),
    [(128, 0.7), (256, 0.4), (512, 0.3), (1024, 0.25), (2048, 0.2), (4096, 0.2), (16384, 0.2), (64, 1.0), (32, 1.3)],
)
def test_rates_are_the_authors_and_go_on_below_their_table_as_they_guess(batch: int, rate: float) -> None:
    assert lars_rate(batch) == pytest.approx(rate, rel=1e-12)


def test_between_the_points_the_rate_is_linear_in_the_logarithm_of_the_batch_size() -> None:
    batches = np.arange(130, 4096, 7)
    points = [128, 256, 512, 1024, 2048, 4096]
    wanted = np.interp(np.log2(batches), np.log2(points), [0.7, 0.4, 0.3, 0.25, 0.2, 0.2])
    np.testing.assert_allclose([lars_rate(int(n)) for n in batches], wanted, rtol=1e-12)


def test_another_batch_size_takes_its_rate_from_the_table_and_says_so() -> None:
    settings = resolved("imagenet-1000ep", batch_size=512)
    assert settings.lr == pytest.approx(0.3)
    assert settings.lr_bias == pytest.approx(0.0003 * 0.3 / 0.2)
    assert said(settings, "learning rate 0.3 per 256 images: batch size 512, authors' table; --lr overrides")
    assert said(settings, "learning rate of biases 0.00045", "--lr-bias overrides")


def test_the_recipes_own_batch_size_changes_nothing_and_says_nothing() -> None:
    for name in ("imagenet-1000ep", "imagenet-bs256", "one-gpu"):
        plain = resolved(name)
        assert plain.chosen == ()
        assert resolved(name, batch_size=plain.batch_size) == plain


def test_recipes_of_one_network_at_two_batch_sizes_lead_to_each_other() -> None:
    a, b = resolved("imagenet-300ep", batch_size=256, epochs=300), resolved("imagenet-bs256")
    assert (a.lr, a.lr_bias) == (pytest.approx(b.lr), pytest.approx(b.lr_bias))


def test_flags_win_over_the_table() -> None:
    settings = resolved("imagenet-bs256", batch_size=512, lr=0.123)
    assert settings.lr == 0.123
    assert settings.lr_bias == pytest.approx(0.0006 * 0.123 / 0.4)  # still follows the weights' rate
    settings = resolved("imagenet-bs256", batch_size=512, lr=0.123, lr_bias=0.5)
    assert (settings.lr, settings.lr_bias, settings.chosen) == (0.123, 0.5, ())


def test_below_the_table_there_is_a_warning() -> None:
    settings = resolved("imagenet-bs256", batch_size=64)
    assert settings.lr == pytest.approx(1.0)
    assert said(settings, "warning: batch size 64 is below the authors' table (128 to 4096)", "--optimizer sgd")
    assert not said(resolved("imagenet-bs256", batch_size=128), "warning")


def test_a_recipe_away_from_the_table_keeps_its_distance(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "barlowtwins" / "train" / "recipes" / "imagenet-bs256.toml").read_text()
    mine = tmp_path / "mine.toml"
    mine.write_text(text.replace("lr = 0.4", "lr = 0.8"))
    assert resolved(str(mine), batch_size=1024).lr == pytest.approx(2 * 0.25)
    mine.write_text(text.replace("lr = 0.4", "").replace("lr_bias = 0.0006", ""))  # and one that leaves it open
    settings = resolved(str(mine), batch_size=1024)
    assert (settings.lr, settings.lr_bias) == (pytest.approx(0.25), pytest.approx(0.25 * 0.024 / 16))


def test_other_optimizers_scale_in_proportion_to_the_batch_size() -> None:
    plain, settings = resolved("small-data"), resolved("small-data", batch_size=512)
    assert (settings.lr, settings.lr_bias) == (plain.lr, plain.lr_bias)  # per 256 images
    assert said(settings, "0.002 per 256 images, 0.004 at its peak: batch size 512 instead of 256, in proportion")


# Optimizer and projector ----------------------------------------------------------------------------------------------


def test_another_optimizer_does_not_get_the_recipes_rates() -> None:
    lars = resolved("small-data", optimizer="lars")
    assert (lars.lr, lars.weight_decay) == (pytest.approx(0.4), 1.6e-5)
    assert lars.lr_bias == pytest.approx(0.4 * 196 / 2048 / 16, rel=5e-3)  # the authors' loss scale on 16 GPUs
    assert said(lars, "optimizer lars, the authors' table instead of the recipe's for adamw")
    adamw = resolved("imagenet-bs256", optimizer="adamw", weight_decay=0.5)
    assert (adamw.lr, adamw.lr_bias, adamw.weight_decay) == (0.002, 0.002, 0.5)
    assert resolved("small-data", optimizer="lars", lr=0.1).lr_bias == pytest.approx(0.1 * 196 / 2048 / 16, rel=5e-3)
    sgd = resolved("small-data", optimizer="sgd")
    assert sgd.lr == resolved("small-data").lr
    assert said(sgd, "warning", "give --lr and --lr-bias")
    assert resolved("small-data", optimizer="adamw") == resolved("small-data")


def test_biases_follow_the_projector_width_by_the_authors_loss_scale() -> None:
    settings = resolved("imagenet-1000ep", projector="2048-2048-2048")
    assert settings.lr_bias == pytest.approx(0.0003 * 4)
    assert settings.lambd == 0.0051
    assert said(settings, "lambda 0.0051 as at projector width 8192", "--lambd overrides")
    assert said(settings, "196 / projector width")
    assert resolved("imagenet-1000ep", projector="2048-2048-2048", lambd=0.01).lambd == 0.01
    adamw = resolved("small-data", projector="512-512-512")
    assert adamw.lr_bias == 0.002  # AdamW does not feel the loss's scale anywhere


def test_rates_of_lars_recipes_agree_on_the_authors_rule() -> None:
    for name in recipe_names():
        settings = resolved(name, size=(32, 32))
        if settings.optimizer == "lars":
            width = int(settings.projector.rpartition("-")[2])
            assert settings.lr == pytest.approx(lars_rate(settings.batch_size)), name
            assert settings.lr_bias == pytest.approx(settings.lr * 196 / width / 16, rel=5e-3), name


# The images -----------------------------------------------------------------------------------------------------------


def images(folder: Path, sizes: list[tuple[int, int]], mode: str) -> str:
    folder.mkdir()
    for number, (width, height) in enumerate(sizes):
        rng = np.random.default_rng(number)
        shape = (height, width) if mode == "L" else (height, width, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{number}.png")
    return str(folder)


@pytest.mark.parametrize(
    ("sizes", "mode", "seen"),
    [
        ([(20, 24)] * 30, "L", Observed(1, (24, 20))),
        ([(20, 24)] * 3, "RGB", Observed(3, (24, 20))),
        ([(20, 24), (20, 25)], "L", Observed(1, None)),
    ],
)
def test_images_of_a_folder_say_their_size_and_whether_they_are_grey(
    tmp_path: Path, sizes: list[tuple[int, int]], mode: str, seen: Observed
) -> None:
    source = open_source(images(tmp_path / "photos", sizes, mode))
    assert observe(source) == seen
    (tmp_path / "photos" / "0.png").write_bytes(b"")  # one that cannot be read says nothing
    assert observe(source).channels == seen.channels


def test_a_few_color_images_among_many_grey_ones_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = images(tmp_path / "photos", [(4, 4)] * 300, "L")
    assert observe(open_source(data)).channels == 1
    assert f"{data}: 256 of 300, all that were looked at, images are grey, so 1 channel by default; --channels 3" in (
        capsys.readouterr().err
    )
    missed = 0
    for seed in range(20):
        chosen = np.random.default_rng(seed).choice(300, 15, replace=False)  # 5 %
        for number in chosen:
            Image.fromarray(np.full((4, 4, 3), (9, 0, 0), np.uint8)).save(tmp_path / "photos" / f"{number}.png")
        missed += observe(open_source(data)).channels == 1
        for number in chosen:
            Image.new("L", (4, 4)).save(tmp_path / "photos" / f"{number}.png")
    assert missed == 0


@pytest.mark.parametrize(("top", "said"), [(4095, True), (65535, False)])
def test_12_bit_values_in_16_bit_files_are_said(
    top: int, said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        values = np.random.default_rng(number).integers(0, top + 1, (30, 30)).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / f"{number}.png")
    observe(open_source(str(tmp_path)))
    assert ("channels:0-4095:FOLDER scales those" in capsys.readouterr().err) == said


def test_images_that_cannot_be_read_leave_it_to_the_source(tmp_path: Path) -> None:
    source = open_source(images(tmp_path / "photos", [(8, 8)] * 2, "L"))
    for path in (tmp_path / "photos").iterdir():
        path.write_bytes(b"")
    assert observe(source) == (3, None)


def test_a_source_that_knows_is_not_read() -> None:
    source = open_source("shapes:8")
    source.read = None  # type: ignore[assignment,method-assign]
    assert observe(source) == (3, (32, 32))


@pytest.mark.parametrize(
    ("channels", "size", "wanted"),
    [(1, 28, "grey"), (3, 64, "small"), (1, 96, "imagenet"), (3, 224, "imagenet"), (13, 64, "grey"), (4, 224, "grey")],
)
def test_views_suit_the_images(channels: int, size: int, wanted: str) -> None:
    assert augmentation_for(channels, size) == wanted


def test_small_images_are_taken_at_their_size_and_grey_ones_as_grey() -> None:
    settings = resolved("auto", channels=1, size=(48, 40))
    assert (settings.recipe, settings.image_size, settings.augmentation) == ("small-data", 48, "grey")
    assert said(settings, "views of 48 pixels: images of 48 x 40; --image-size overrides")
    assert said(settings, "augmentation grey: grey images", "--augmentation overrides")
    settings = resolved("small-data", channels=1, augmentation="small", image_size=20)
    assert (settings.image_size, settings.augmentation, settings.chosen) == (20, "small", ())
    assert resolved("small-data").image_size == 32  # where no size is known
    assert resolved("small-data", size=(500, 400)).augmentation == "imagenet"


def test_what_was_chosen_is_printed_recorded_and_part_of_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = images(tmp_path / "photos", [(12, 12)] * 8, "L")
    config = PretrainConfig(
        data,
        str(tmp_path / "run"),
        backbone="resnet10_x0_5",
        projector="8-8",
        batch_size=4,
        epochs=1,
        workers=0,
        device="cpu",
        report_every=0,
    )
    result = pretrain(config)
    assert (result.settings.channels, result.settings.image_size) == (1, 12)
    printed, kept = capsys.readouterr().err, (tmp_path / "run" / "config.json").read_text()
    for line in result.settings.chosen:
        assert line in printed
        assert line in kept
    assert len(result.settings.chosen) == 4  # size, views, rate at this batch size, lambda at this width


# Few images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "batch"),
    [(10_000, 256), (256, 256), (255, 248), (20, 16), (8, 8), (7, 6), (3, 2), (2, 2), (1, 256), (None, 256)],
)
def test_the_recipes_batch_follows_few_images_and_a_flag_does_not(images: int | None, batch: int) -> None:
    config = PretrainConfig("photos", "run", "imagenet-bs256")
    settings = resolve(config, channels=3, size=None, images=images)
    assert settings.batch_size == batch
    assert said(settings, f"batch size {batch} instead of 256: only {images} images") is (batch != 256)
    assert (settings.lr == resolved("imagenet-bs256").lr) is (batch == 256)  # the rate follows the batch
    flag = PretrainConfig("photos", "run", "imagenet-bs256", batch_size=256)
    assert resolve(flag, channels=3, size=None, images=images).batch_size == 256
