"""Recipes: one TOML file each, headed by what it gives and where that was measured; `Settings` is what they decide.

    flags  >  recipe  >  what follows from other settings and from the images (`follow`)

`resolve` fills every setting in that order, so that a run records each number that made it.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from barlowtwins.config import PretrainConfig
from barlowtwins.config.rules import convert, setting_types
from barlowtwins.config.settings import FIELDS, Settings, default_values
from barlowtwins.core.errors import ConfigError, UsageError
from barlowtwins.train.recipes.defaults import SMALL, follow

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["FIELDS", "Settings", "load_recipe", "recipe_for", "recipe_names", "record", "resolve"]

FOLDER = Path(__file__).parent


DATA_SETS = {  # data sets with a recipe of their own
    "cifar10": "cifar10",
    "cifar100": "cifar10",
    "fashion-mnist": "fashion-mnist",
    "shapes": "shapes",
    "stl10": "stl10",
    "stl10-unlabeled": "stl10",
}


def recipe_names() -> list[str]:
    """Names that `--recipe` takes, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name: str) -> dict[str, Any]:
    """The settings of a recipe, by name or by the path of a TOML file.

    Raises:
        ConfigError: no such recipe (with the nearest name), a file that is not TOML, a field that no recipe has, or a
            wrong value.
    """
    path = FOLDER / f"{name}.toml"
    if name not in recipe_names():
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"no recipe and no file is called {name!r}; {_hint(name, recipe_names())}")
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} is not TOML: {error}; a line must be such as lr = 0.2") from error
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror or error}; make it readable") from error
    for setting, value in settings.items():
        if setting not in FIELDS:
            raise ConfigError(f"recipe {path}: {setting} is not a setting; {_hint(setting, FIELDS)}")
        try:
            settings[setting] = convert(setting, value, setting_types(PretrainConfig)[setting])
        except UsageError as error:
            raise ConfigError(f"recipe {path}: {error}") from error
    return settings


def recipe_for(data: str, size: tuple[int, int] | None) -> str:
    """The recipe that "auto" means: the data set's own, else one for the images' size.

    Args:
        data: what the user called the data.
        size: (height, width) where all images have the same, else None.
    """
    name = data.split(":")[0]
    if name in DATA_SETS:
        return DATA_SETS[name]
    return "small-data" if size is not None and max(size) <= SMALL else "imagenet-bs256"


def resolve(
    config: PretrainConfig, *, channels: int, size: tuple[int, int] | None, images: int | None = None
) -> Settings:
    """Decide every setting: as the flags say, else as the recipe says, else as it follows from others and the images.

    Args:
        config: as the user gave it.
        channels: of the images.
        size: (height, width) where all images have the same, else None.
        images: how many there are; None: as many as any batch needs.

    Raises:
        ConfigError: an unknown recipe, a setting that nothing decides, or a wrong value.
    """
    if config.image_size is not None:
        size = (config.image_size, config.image_size)
    name = recipe_for(config.data, size) if config.recipe == "auto" else config.recipe
    recipe = load_recipe(name)
    flags = {setting: value for setting in FIELDS if (value := getattr(config, setting)) is not None}
    values: dict[str, Any] = {"channels": channels, **recipe, **flags}
    if str(values.get("backbone")).startswith("timm:") and config.stem is None:
        values["stem"] = "imagenet"  # a recipe's stem is for ResNets; those models have their own
    chosen = follow(values, recipe, flags, size, images)
    known = default_values(Settings)  # which recipes without them have
    if missing := [setting for setting in FIELDS if setting not in values and setting not in known]:
        flags_too = ", ".join(f"--{setting.replace('_', '-')}" for setting in missing)
        raise ConfigError(f"recipe {name} does not set {', '.join(missing)}; add it or pass {flags_too}")
    checked = PretrainConfig(config.data, config.out, **values)  # of what follows, too
    return Settings(recipe=name, **{setting: getattr(checked, setting) for setting in values}, chosen=tuple(chosen))


def record(config: PretrainConfig, settings: Settings) -> dict[str, Any]:
    """The configuration with every setting decided, as config.json and the checkpoints keep it."""
    decided = asdict(settings)
    del decided["chosen"]  # words about the rest
    return {**asdict(config), **decided}


def _hint(wrong: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(wrong, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}"
