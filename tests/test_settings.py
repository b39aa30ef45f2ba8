"""Settings check themselves: what a field takes, what it is converted to, and how a message names it."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from barlowtwins import config
from barlowtwins.cli import COMMANDS, main
from barlowtwins.config import (
    AugmentConfig,
    EmbedConfig,
    KNNConfig,
    LinearConfig,
    MapConfig,
    NeighborsConfig,
    PretrainConfig,
    SVMConfig,
)
from barlowtwins.config.rules import Range
from barlowtwins.config.shared import Batched, Computing, NamedData, Reading, Seeded
from barlowtwins.core.errors import UsageError
from barlowtwins.data.open import open_source
from barlowtwins.train.pretrain import pretrain

CONFIGS = sorted({command.settings for command in COMMANDS.values()}, key=lambda settings: settings.__name__)
REQUIRED = {  # values for the fields without a default
    settings: {
        field.name: "torchvision" if field.name == "to" else "x"
        for field in dataclasses.fields(settings)
        if field.default is dataclasses.MISSING
    }
    for settings in CONFIGS
}
EVERY_FIELD = [(settings, field.name) for settings in CONFIGS for field in dataclasses.fields(settings)]

# Error text for the caller --------------------------------------------------------------------------------------------

MESSAGES: list[tuple[str, dict[str, Any], str]] = [
    ("pretrain", {"epochs": 0}, "{epochs} must be >= 1, got 0"),
    ("pretrain", {"batch_size": -3}, "{batch_size} must be >= 1, got -3"),
    ("pretrain", {"lr": math.inf}, "{lr} must be >= 0, got inf"),
    ("pretrain", {"weight_decay": math.nan}, "{weight_decay} must be >= 0, got nan"),
    ("pretrain", {"scale_loss": 0.0}, "{scale_loss} must be > 0, got 0.0"),
    ("pretrain", {"max_bad": 1.5}, "{max_bad} must be from 0 to 1, got 1.5"),
    ("pretrain", {"seed": -1}, "{seed} must be from 0 to 9223372036854775807, got -1"),
    (
        "pretrain",
        {"mixup": 1.0, "micro_batch_size": 4},
        "{mixup} 1 mixes images of the whole batch, {micro_batch_size} 4 holds only a part of it; leave one of them "
        "out",
    ),
    ("evaluate svm", {"folds": 1}, "{folds} must be >= 2, got 1"),
    ("evaluate svm", {"seed": 2**32}, "{seed} must be from 0 to 4294967295, got 4294967296"),
    ("map", {"seed": 2**32}, "{seed} must be from 0 to 4294967295, got 4294967296"),
    ("augment", {"images": 101}, "{images} must be from 1 to 100, got 101"),
    ("embed", {"part": "3/2"}, "{part} must be such as 3/16 (the third of 16, counted from 1), got '3/2'"),
    (
        "embed",
        {"part": "1/2", "overwrite": True},
        "{part} 1/2 and {overwrite}: each part would drop the others; remove the folder first",
    ),
    (
        "embed",
        {"part": "1/2", "launch": "ray"},
        "{part} 1/2 and {launch} ray: each divides the work; use one of them",
    ),
    ("neighbors", {"k": 0}, "{k} must be >= 1, got 0"),
]


@pytest.mark.parametrize(("command", "wrong", "said"), MESSAGES)
def test_python_reads_field_names_and_the_command_line_flags(
    command: str, wrong: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = COMMANDS[command].settings
    names = {field.name: field.name for field in dataclasses.fields(settings)}
    with pytest.raises(UsageError) as caught:
        settings(**REQUIRED[settings] | wrong)
    assert str(caught.value) == said.format(**names)

    positional = [name for name in REQUIRED[settings] if "Positional" in str(settings.__annotations__[name])]
    words = ["x" for _ in positional]
    for name, value in {**REQUIRED[settings], **wrong}.items():
        if name not in positional:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    assert main([*command.split(), *words]) == 2
    flags = {name: f"--{name.replace('_', '-')}" for name in names}
    assert capsys.readouterr().err == f"barlowtwins: error: {said.format(**flags)}\n"


def test_an_error_keeps_its_names_on_the_way_between_processes() -> None:
    with pytest.raises(UsageError) as caught:
        PretrainConfig("x", out="y", epochs=0)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.settings) == ("epochs must be >= 1, got 0", ("epochs",))


# Types ----------------------------------------------------------------------------------------------------------------


def test_paths_are_taken_and_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # of Windows
    found = PretrainConfig(Path("photos"), out="~/run", val=Path("~/val"), data_root="~", init="a~b")  # type: ignore[arg-type]
    home = str(tmp_path)
    assert (found.data, found.out, found.val) == ("photos", os.path.join(home, "run"), os.path.join(home, "val"))
    assert (found.data_root, found.init) == (home, "a~b")
    assert PretrainConfig("channels:~/arrays", out="y").data == f"channels:{home}/arrays"
    assert NeighborsConfig(Path("emb"), query=Path("~/a.png")).query == os.path.join(home, "a.png")  # type: ignore[arg-type]


def test_images_may_be_a_source_that_is_open() -> None:
    source = open_source("shapes:8")
    assert PretrainConfig(source, "run").data is source  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="out must be a path"):
        PretrainConfig(source, source)  # type: ignore[arg-type]


def test_whole_floats_lists_and_numpy_numbers_are_converted() -> None:
    found = PretrainConfig("x", "y", batch_size=16.0, epochs=np.int64(3), lr=1, lambd=np.float32(0.5), seed=Fraction(4))  # type: ignore[arg-type]
    values = found.batch_size, found.epochs, found.lr, found.lambd, found.seed
    assert values == (16, 3, 1.0, 0.5, 4)
    assert [type(value) for value in values] == [int, int, float, float, int]
    knn = KNNConfig("x", k=[20.0, 200], shots=[])  # type: ignore[arg-type]
    assert (knn.k, knn.shots) == ((20, 200), ())
    assert PretrainConfig("x", "y", allow_change=["data"]).allow_change == ("data",)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "wrong", "said"),
    [
        (PretrainConfig, {"epochs": "1"}, "epochs must be a whole number, got '1'"),
        (PretrainConfig, {"epochs": 1.5}, "epochs must be a whole number, got 1.5"),
        (PretrainConfig, {"epochs": True}, "epochs must be a whole number, got True"),
        (PretrainConfig, {"epochs": math.nan}, "epochs must be a whole number, got nan"),
        (PretrainConfig, {"epochs": math.inf}, "epochs must be a whole number, got inf"),
        (PretrainConfig, {"lr": "0.1"}, "lr must be a number, got '0.1'"),
        (PretrainConfig, {"lr": 10**400}, f"lr must be a number, got {10**400}"),
        (PretrainConfig, {"projector": [64, 64]}, r"projector must be a string, got [64, 64]"),
        (PretrainConfig, {"out": 3}, "out must be a path, got 3"),
        (PretrainConfig, {"out": None}, "out must be a path, got None"),
        (PretrainConfig, {"data": b"photos"}, "data must be a path, got b'photos'"),
        (PretrainConfig, {"dry_run": 1}, "dry_run must be True or False, got 1"),
        (PretrainConfig, {"optimizer": "adam"}, "optimizer must be one of lars, adamw, sgd, got 'adam'"),
        (PretrainConfig, {"precision": None}, "precision must be one of auto, fp32, bf16, got None"),
        (PretrainConfig, {"allow_change": "lr"}, "allow_change must be a tuple or a list, got 'lr'"),
        (KNNConfig, {"k": 20}, "k must be a tuple or a list, got 20"),
        (KNNConfig, {"k": (20, 0)}, "k must be >= 1, got 0"),
        (LinearConfig, {"l2": (0.1, "x")}, "l2 must be a number, got 'x'"),
        (SVMConfig, {"c": (0.0,)}, "c must be > 0, got 0.0"),
        (MapConfig, {"thumbnails": 501}, "thumbnails must be from 0 to 500, got 501"),
        (AugmentConfig, {"pairs": 0}, "pairs must be from 1 to 100, got 0"),
    ],
)
def test_other_types_and_values_are_refused_in_one_line(settings: type, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings(**REQUIRED[settings] | wrong)
    assert str(caught.value) == said


def test_nothing_is_written_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="epochs must be a whole number"):
        pretrain(PretrainConfig("shapes:16", out="run", epochs="1"))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("settings", "name"), EVERY_FIELD, ids=lambda part: getattr(part, "__name__", part))
def test_no_field_takes_just_anything(settings: type, name: str) -> None:
    class Odd:
        pass

    with pytest.raises(UsageError, match=rf"^{name} must be ") as caught:
        settings(**REQUIRED[settings] | {name: Odd()})
    assert caught.value.settings == (name,)  # type: ignore[attr-defined]


@given(st.one_of(st.integers(), st.floats(), st.sampled_from([10**400, -(10**400), math.nan, math.inf, -math.inf])))
def test_a_range_has_what_lies_in_it(value: float) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        inside = (False, False, False)
    else:
        exact = Fraction(value)
        inside = (exact >= 1, exact > 0, 0 <= exact <= 1)
    assert (value in Range(1), value in Range(0, above=True), value in Range(0, 1)) == inside


# What commands share --------------------------------------------------------------------------------------------------

MIXINS = (Batched, Computing, NamedData, Reading, Seeded)
SHARED = {field.name: mixin for mixin in MIXINS for field in dataclasses.fields(mixin)}


@pytest.mark.parametrize("settings", CONFIGS)
def test_shared_settings_are_written_once_and_given_by_name(settings: type) -> None:
    own = {name for base in settings.__mro__ if base not in MIXINS for name in inspect.get_annotations(base)}
    for field in dataclasses.fields(settings):
        if field.name not in own:
            assert issubclass(settings, SHARED[field.name])
        assert field.kw_only == (field.name not in own)
    assert own & set(SHARED) <= {"batch_size"}  # which means another thing where a network is trained
    by_name = [field.kw_only for field in dataclasses.fields(settings)]
    assert by_name == sorted(by_name)  # help begins with what is special to the command


def test_the_first_arguments_are_positional() -> None:
    found = PretrainConfig("photos", "run", "shapes")
    assert (found.data, found.out, found.recipe) == ("photos", "run", "shapes")
    embedded = EmbedConfig("photos", "resnet50", "emb", workers=2)
    assert (embedded.data, embedded.weights, embedded.out, embedded.workers) == ("photos", "resnet50", "emb", 2)


def test_the_names_before_are_aliases() -> None:
    import barlowtwins

    assert config.NeighboursConfig is NeighborsConfig
    assert barlowtwins.neighbours is barlowtwins.neighbors
    assert barlowtwins.NeighboursResult is barlowtwins.NeighborsResult


def test_the_command_before_is_an_alias(capsys: pytest.CaptureFixture[str]) -> None:
    pages = []
    for name in ("neighbors", "neighbours"):
        assert main([name, "--help"]) == 0
        pages.append(capsys.readouterr().out)
    assert pages[0] == pages[1]
    assert pages[0].startswith("usage: barlowtwins neighbors ")
