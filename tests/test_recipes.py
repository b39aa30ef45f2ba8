"""Recipes: flags over recipe over data, and clear words for what is wrong in a recipe."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from barlowtwins.config import PretrainConfig
from barlowtwins.core.errors import ConfigError
from barlowtwins.models.barlow_twins import parse_projector
from barlowtwins.models.resnet import BACKBONES, STEMS
from barlowtwins.optim import build_optimizer
from barlowtwins.train.pretrain import build_model, plan_run
from barlowtwins.train.recipes import (
    FIELDS,
    Settings,
    load_recipe,
    recipe_for,
    recipe_names,
    record,
    resolve,
)
from barlowtwins.views.transform import AUGMENTATIONS, TwinTransform

# What each recipe was written for: data, channels, size of the images, how many.
MADE_FOR: dict[str, tuple[str, int, tuple[int, int] | None, int]] = {
    "cifar10": ("cifar10", 3, (32, 32), 50_000),
    "fashion-mnist": ("fashion-mnist", 1, (28, 28), 60_000),
    "imagenet-1000ep": ("imagenet/train", 3, None, 1_281_167),
    "imagenet-300ep": ("imagenet/train", 3, None, 1_281_167),
    "imagenet-bs256": ("imagenet/train", 3, None, 1_281_167),
    "medical-grey": ("channels:scans", 1, (512, 512), 50_000),
    "multispectral": ("channels:patches", 13, (64, 64), 27_000),
    "one-gpu": ("photos", 3, None, 50_000),
    "shapes": ("shapes", 3, (32, 32), 10_000),
    "small-data": ("thumbnails", 3, (48, 48), 50_000),
    "stl10": ("stl10-unlabeled", 3, (96, 96), 105_000),
}

WHOLE = """
backbone = "resnet10_x0_5"
stem = "small"
projector = "8-8"
image_size = 16
augmentation = "small"
epochs = 20
batch_size = 4
lambd = 0.01
scale_loss = 1
optimizer = "sgd"
lr = 1
lr_bias = 0.5
weight_decay = 0
"""


def resolved(recipe: str, *, channels: int = 3, size: tuple[int, int] | None = None, **flags: Any) -> Settings:
    return resolve(PretrainConfig(flags.pop("data", "photos"), "run", recipe, **flags), channels=channels, size=size)


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# Those that ship ------------------------------------------------------------------------------------------------------


def test_every_recipe_is_tested_here() -> None:
    assert recipe_names() == sorted(MADE_FOR)


@pytest.mark.parametrize("name", sorted(MADE_FOR))
def test_a_shipped_recipe_fits_its_data(name: str) -> None:
    data, channels, size, images = MADE_FOR[name]
    settings = resolved(name, data=data, channels=channels, size=size)
    assert settings.recipe == name
    assert settings.channels == channels
    assert {field: value for field, value in vars(settings).items() if field in load_recipe(name)} == load_recipe(name)
    assert settings.backbone in BACKBONES
    assert settings.stem in STEMS
    assert settings.augmentation in AUGMENTATIONS
    transform = TwinTransform(settings.augmentation, size=settings.image_size, channels=settings.channels)
    assert (transform.recipe.size, transform.recipe.channels) == (settings.image_size, channels)
    plan = plan_run(settings, images)
    assert plan.steps == images // settings.batch_size * settings.epochs
    assert 0 < plan.warmup_steps < plan.steps
    if max(parse_projector(settings.projector)) <= 1024:  # a large one takes gigabytes
        model = build_model(settings, seed=0)
        assert build_optimizer(settings.optimizer, model, lr=1, lr_bias=1, weight_decay=settings.weight_decay)


@pytest.mark.parametrize("name", sorted(MADE_FOR))
def test_a_shipped_recipe_is_headed_by_its_name_and_command(name: str) -> None:
    text = (Path(__file__).parent.parent / "barlowtwins" / "train" / "recipes" / f"{name}.toml").read_text(
        encoding="utf-8"
    )
    assert text.startswith(f"# {name}: ")
    for part in ("Gives", "Source", "Cost"):
        assert re.search(rf"^# {part} +\S", text, re.MULTILINE)
    command = re.search(r"^# Command +barlowtwins (pretrain|demo)(.*)$", text, re.MULTILINE)
    assert command is not None
    chosen = re.search(r"--recipe (\S+)", command[2])
    assert chosen is None or chosen[1] == name


def test_the_published_recipe_has_the_published_numbers() -> None:
    settings = resolved("imagenet-1000ep")
    assert (settings.backbone, settings.projector, settings.image_size) == ("resnet50", "8192-8192-8192", 224)
    assert (settings.batch_size, settings.epochs, settings.warmup_epochs) == (2048, 1000, 10)
    assert (settings.lambd, settings.scale_loss, settings.optimizer, settings.lr) == (0.0051, 1.0, "lars", 0.2)
    gpus = 16  # whose number divided the published gradient
    assert settings.lr_bias == pytest.approx(0.0048 / gpus)
    assert settings.weight_decay == pytest.approx(1e-6 * gpus)


# Which one ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "size", "name"),
    [
        ("shapes", (32, 32), "shapes"),
        ("shapes:500", (32, 32), "shapes"),
        ("fashion-mnist", (28, 28), "fashion-mnist"),
        ("cifar10", (32, 32), "cifar10"),
        ("cifar100", (32, 32), "cifar10"),
        ("stl10", (96, 96), "stl10"),
        ("stl10-unlabeled", (96, 96), "stl10"),
        ("imagenette", None, "imagenet-bs256"),
        ("photos", None, "imagenet-bs256"),
        ("photos", (64, 64), "small-data"),
        ("photos", (64, 65), "imagenet-bs256"),
        ("./shapes", None, "imagenet-bs256"),
        ("imagenet-1000ep", None, "imagenet-bs256"),  # a folder that is called like a recipe
        (r"C:\photos", None, "imagenet-bs256"),
    ],
)
def test_auto_goes_by_data_set_and_image_size(data: str, size: tuple[int, int] | None, name: str) -> None:
    assert recipe_for(data, size) == name
    assert resolved("auto", data=data, size=size).recipe == name


def test_auto_goes_by_the_size_that_a_flag_asks_for() -> None:
    settings = resolved("auto", image_size=48)
    assert (settings.recipe, settings.image_size) == ("small-data", 48)
    assert resolved("auto", size=(32, 32), image_size=128).recipe == "imagenet-bs256"


# Who decides ----------------------------------------------------------------------------------------------------------

FLAGS: dict[str, Any] = {
    "backbone": "resnet34",
    "stem": "imagenet",
    "channels": 1,
    "projector": "16-16",
    "image_size": 40,
    "augmentation": "grey",
    "epochs": 7,
    "batch_size": 12,
    "lambd": 0.02,
    "scale_loss": 0.024,
    "optimizer": "lars",
    "lr": 0.3,
    "lr_bias": 0.0,
    "weight_decay": 0.1,
    "warmup_epochs": 3.0,
}


def test_every_setting_is_tested_here() -> None:
    assert set(FLAGS) == set(FIELDS)


FOLLOWERS = {"lr": {"optimizer"}, "lr_bias": {"optimizer", "lr"}, "weight_decay": {"optimizer"}}


@given(st.sets(st.sampled_from(sorted(FLAGS))))
def test_flags_override_the_recipe_one_by_one(chosen: set[str]) -> None:
    flags = {name: FLAGS[name] for name in chosen}
    plain, settings = resolved("shapes"), resolved("shapes", **flags)
    for name in FIELDS:
        if name == "warmup_epochs" and name not in chosen:
            assert settings.warmup_epochs == settings.epochs / 10
        elif name in chosen or not FOLLOWERS.get(name, set()) & chosen:  # for what follows see test_follow
            assert getattr(settings, name) == (FLAGS[name] if name in chosen else getattr(plain, name))
            assert type(getattr(settings, name)) is type(getattr(plain, name))


def test_channels_are_the_datas_unless_told(tmp_path: Path) -> None:
    assert resolved("shapes", channels=1).channels == 1
    assert resolve(PretrainConfig("a", "b", "shapes", channels=3), channels=1, size=None).channels == 3
    assert resolved(write(tmp_path, WHOLE + "channels = 1"), channels=3).channels == 1


def test_the_warm_up_is_a_tenth_of_the_run_and_ten_epochs_at_most(tmp_path: Path) -> None:
    path = write(tmp_path, WHOLE)
    assert resolved(path).warmup_epochs == 2.0
    assert resolved(path, epochs=5).warmup_epochs == 0.5
    assert resolved(path, epochs=500).warmup_epochs == 10.0
    assert resolved(path, epochs=500, warmup_epochs=0.0).warmup_epochs == 0.0


@pytest.mark.parametrize(
    ("name", "epochs", "warmup"),
    [
        ("imagenet-1000ep", 300, 10.0),  # as in the paper's ablations
        ("imagenet-1000ep", 100, 10.0),
        ("imagenet-1000ep", 50, 5.0),
        ("imagenet-300ep", 5, 0.5),  # ten epochs would be all of it, and more
        ("fashion-mnist", 5, 0.5),
        ("fashion-mnist", 90, 2.0),
    ],
)
def test_a_short_run_does_not_spend_itself_on_a_recipes_warm_up(name: str, epochs: int, warmup: float) -> None:
    settings = resolved(name, epochs=epochs)
    assert settings.warmup_epochs == pytest.approx(warmup)
    told = [line for line in settings.chosen if line.startswith("warm-up")]
    assert bool(told) == (warmup != resolved(name).warmup_epochs)
    assert resolved(name, epochs=epochs, warmup_epochs=1.5).warmup_epochs == 1.5


def test_a_recipe_that_warms_up_for_more_than_a_tenth_does_so_in_a_short_run_too(tmp_path: Path) -> None:
    path = write(tmp_path, WHOLE + "\nwarmup_epochs = 5")  # of 20 epochs
    assert resolved(path).warmup_epochs == 5.0
    assert resolved(path, epochs=10).warmup_epochs == 2.5
    assert resolved(path, epochs=40).warmup_epochs == 5.0


def test_a_record_has_every_setting_and_survives_json() -> None:
    config = PretrainConfig("photos", "run", "shapes", lambd=0.02, allow_change=("lr",))
    settings = resolve(config, channels=3, size=None)
    kept = record(config, settings)
    assert set(kept) == {field.name for field in dataclasses.fields(PretrainConfig)}
    assert None not in {kept[name] for name in FIELDS}
    assert kept["lambd"] == 0.02
    assert json.loads(json.dumps(kept)) == {**kept, "allow_change": ["lr"]}


# Of a user's own, and what may be wrong with it -----------------------------------------------------------------------


def test_a_file_is_a_recipe_and_whole_numbers_may_stand_for_others(tmp_path: Path) -> None:
    settings = resolved(write(tmp_path, WHOLE))
    assert (settings.lr, settings.scale_loss, settings.weight_decay) == (1.0, 1.0, 0.0)
    assert all(isinstance(getattr(settings, name), float) for name in ("lr", "scale_loss", "weight_decay"))
    assert settings.recipe == str(tmp_path / "mine.toml")


def test_a_recipe_with_gaps_is_filled_by_flags(tmp_path: Path) -> None:
    path = write(tmp_path, WHOLE.replace('optimizer = "sgd"', "").replace("lr = 1", ""))
    with pytest.raises(ConfigError, match=r"mine\.toml does not set optimizer, lr; add it or pass --optimizer, --lr"):
        resolved(path)
    assert resolved(path, optimizer="adamw", lr=0.1).lr == 0.1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("learning_rate = 1", "learning_rate is not a setting; there is backbone, "),
        ("lambda = 1", "lambda is not a setting; did you mean lambd?"),
        ("workers = 2", "workers is not a setting"),
        ('recipe = "shapes"', "recipe is not a setting"),
        ("[optimizer]\nlr = 1", "TOML|optimizer"),
        ("channels = true", "channels must be a whole number, got True"),
        ("channels = 3.5", "channels must be a whole number, got 3.5"),
        ('warmup_epochs = "10"', "warmup_epochs must be a number, got '10'"),
        ("warmup_epochs = inf", "warmup_epochs must be >= 0, got inf"),
        ("warmup_epochs = nan", "warmup_epochs must be >= 0, got nan"),
        ("warmup_epochs = -1", "warmup_epochs must be >= 0, got -1"),
        ("channels = 0", "channels must be >= 1, got 0"),
        ("lr = ", "is not TOML"),
        ("lr = 1", "is not TOML"),  # a second time
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(ConfigError, match=r"recipe .*mine\.toml") as caught:
        resolved(write(tmp_path, WHOLE + line))
    assert re.search(words.replace("?", r"\?"), str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("optimizer", "adam", "optimizer must be one of lars, adamw, sgd, got 'adam'"),
        ("stem", "tiny", "stem must be one of imagenet, small, small-stride2, small-padding2, got 'tiny'"),
    ],
)
def test_words_that_are_not_among_the_choices_are_refused(tmp_path: Path, field: str, value: str, words: str) -> None:
    text = re.sub(rf"^{field} = .*$", f'{field} = "{value}"', WHOLE, flags=re.MULTILINE)
    with pytest.raises(ConfigError, match=re.escape(words)):
        resolved(write(tmp_path, text))
    with pytest.raises(ConfigError, match=re.escape(words)):  # also where a notebook gives it as a flag
        resolved("shapes", **{field: value})


@pytest.mark.parametrize("name", ["imagenet-1000", "shape", "smalldata"])
def test_a_mistyped_recipe_gets_a_suggestion(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no recipe and no file is called .*did you mean (imagenet|shapes|small)"):
        resolved(name)


def test_a_recipe_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    for name in ("/nowhere/of/this.toml", str(tmp_path), "", "../shapes"):
        with pytest.raises(ConfigError, match=r"no recipe and no file is called"):
            load_recipe(name)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"lr = \xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_recipe(str(tmp_path / "mine.toml"))


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = Path("/proc/self/mem")
    if not path.is_file():
        pytest.skip("needs a file whose reading fails")
    with pytest.raises(ConfigError, match="cannot read the recipe /proc/self/mem"):
        load_recipe(str(path))
