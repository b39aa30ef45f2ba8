"""Recipes: one TOML file each, headed by what it gives and where that was measured; `Settings` is what they decide.

    flags  >  recipe  >  what the data say

`resolve` fills every setting in that order, so that a run records each number that made it.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from barlowtwins.config import PretrainConfig
from barlowtwins.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Settings", "load_recipe", "recipe_for", "recipe_names", "record", "resolve"]

FOLDER = Path(__file__).parent
SMALL = 64  # pixels: images up to this side get the small-image recipe


@dataclass(frozen=True)
class Settings:
    """The settings that make the result, each with a value; `PretrainConfig` says what they mean."""

    recipe: str
    backbone: str
    stem: str
    channels: int
    projector: str
    image_size: int
    augmentation: str
    epochs: int
    batch_size: int
    lambd: float
    scale_loss: float
    optimizer: str
    lr: float
    lr_bias: float
    weight_decay: float
    warmup_epochs: float


FIELDS = {field.name: str(field.type) for field in fields(Settings) if field.name != "recipe"}  # name -> "int", ...
DATA_SETS = ("fashion-mnist", "shapes")  # those with a recipe of their name


def recipe_names() -> list[str]:
    """Names that `--recipe` takes, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name: str) -> dict[str, Any]:
    """The settings of a recipe, by name or by the path of a TOML file.

    Raises:
        ConfigError: no such recipe (with the nearest name), a file that is no TOML, or a field that no recipe has.
    """
    path = FOLDER / f"{name}.toml"
    if name not in recipe_names():
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"no recipe and no file is called {name!r}; {_hint(name, recipe_names())}")
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} is not TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror or error}") from error
    for field, value in settings.items():
        if field not in FIELDS:
            raise ConfigError(f"recipe {path}: {field} is not a setting; {_hint(field, FIELDS)}")
        kinds = {"int": (int,), "float": (int, float), "str": (str,)}[FIELDS[field]]
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ConfigError(f"recipe {path}: {field} is {value!r}; it must be of type {FIELDS[field]}")
    return settings


def recipe_for(data: str, size: tuple[int, int] | None) -> str:
    """The recipe that "auto" means: the data set's own, else one for the images' size.

    Args:
        data: what the user called the data.
        size: (height, width) where all images have the same, else None.
    """
    name = data.split(":")[0]
    if name in DATA_SETS:
        return name
    return "small-data" if size is not None and max(size) <= SMALL else "imagenet-bs256"


def resolve(config: PretrainConfig, *, channels: int, size: tuple[int, int] | None) -> Settings:
    """Decide every setting: as the flags say, else as the recipe says, else from the data.

    Args:
        config: as the user gave it.
        channels: of the images, 1 or 3.
        size: (height, width) where all images have the same, else None.

    Raises:
        ConfigError: an unknown recipe, a setting that nothing decides, or a value that is wrong (as `PretrainConfig`
            would say of a flag).
    """
    if config.image_size is not None:
        size = (config.image_size, config.image_size)
    name = recipe_for(config.data, size) if config.recipe == "auto" else config.recipe
    values: dict[str, Any] = {"channels": channels}
    values |= load_recipe(name)
    values |= {field: value for field in FIELDS if (value := getattr(config, field)) is not None}
    if str(values.get("backbone")).startswith("timm:") and config.stem is None:
        values["stem"] = "imagenet"  # a recipe's stem is for ResNets; those models have their own
    if "epochs" in values:
        values.setdefault("warmup_epochs", min(10.0, values["epochs"] / 10))
    if missing := [field for field in FIELDS if field not in values]:
        raise ConfigError(f"recipe {name} leaves open {', '.join(missing)}; add it there or give the flag")
    try:
        PretrainConfig(config.data, config.out, **values)  # the checks of the flags, for the recipe's values too
    except ConfigError as error:
        raise ConfigError(f"recipe {name}: {error}") from error
    for field, kind in get_type_hints(PretrainConfig).items():
        choices = [choice for part in get_args(kind) if get_origin(part) is Literal for choice in get_args(part)]
        if field in values and choices and values[field] not in choices:
            raise ConfigError(f"recipe {name}: {field} is {values[field]!r}; it is one of {', '.join(choices)}")
    values |= {field: float(values[field]) for field, kind in FIELDS.items() if kind == "float"}
    return Settings(recipe=name, **values)


def record(config: PretrainConfig, settings: Settings) -> dict[str, Any]:
    """The configuration with every setting decided, as config.json and the checkpoints keep it."""
    return {**asdict(config), **asdict(settings)}


def _hint(wrong: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(wrong, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}"
