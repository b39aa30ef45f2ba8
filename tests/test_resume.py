"""Where a run begins: only from what belongs to it, and every difference is said."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from training import tiny

from barlowtwins.config import PretrainConfig
from barlowtwins.core.errors import CheckpointError, ConfigError, OutputError, WeightsError
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.models.resnet import build_backbone
from barlowtwins.optim import build_optimizer
from barlowtwins.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from barlowtwins.runs.run_folder import RunFolder
from barlowtwins.train.recipes import record, resolve
from barlowtwins.train.resume import MATHS, SHAPES, find_checkpoint, initialize, restore

DATA = {"images": 64, "fingerprint": "0123456789abcdef"}
OTHER_DATA = {"images": 48, "fingerprint": "fedcba9876543210"}


def decided(config: PretrainConfig) -> dict[str, Any]:
    return record(config, resolve(config, channels=3, size=(32, 32)))


def saved(run: Path, step: int = 6, **changes: Any) -> Checkpoint:
    """A checkpoint of `tiny` in `run`, with nothing in its tensors."""
    checkpoint = Checkpoint(step, {}, {}, decided(tiny(run, **changes)), DATA, unreadable=(5,))
    save_checkpoint(run, checkpoint)
    return checkpoint


def find(run: Path, facts: dict[str, Any] = DATA, **changes: Any) -> Checkpoint | None:
    config = tiny(run, **changes)
    return find_checkpoint(config, decided(config), run, facts)


def test_another_number_of_processes_is_said_with_what_it_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, 6)
    config = tiny(tmp_path)
    assert find_checkpoint(config, decided(config), tmp_path, DATA, world_size=4)
    assert "1 process shared a batch, now 4 do; the batches, the loss" in capsys.readouterr().err


# Which checkpoint -----------------------------------------------------------------------------------------------------


def test_without_checkpoints_a_run_begins(tmp_path: Path) -> None:
    assert find(tmp_path) is None
    assert find(tmp_path, resume="never") is None


def test_the_newest_is_found_and_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, 3)
    assert find(tmp_path, resume="auto") == load_checkpoint(tmp_path / "checkpoints" / "step-00000003.pt")
    newest = saved(tmp_path, 6)
    assert find(tmp_path) == newest
    assert capsys.readouterr().err == ""


def test_never_refuses_what_is_there(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(OutputError, match="has checkpoints and --resume is never; choose another --out"):
        find(tmp_path, resume="never")


def test_a_file_may_be_older_or_of_another_run(tmp_path: Path) -> None:
    for step in (3, 6):
        saved(tmp_path / "a", step)
    older = str(tmp_path / "a" / "checkpoints" / "step-00000003.pt")
    for run in ("a", "b"):
        found = find(tmp_path / run, resume=older)
        assert found is not None
        assert found.step == 3


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"there is no checkpoint nowhere\.pt; checkpoints lie in RUN/checkpoints"
    ):
        find(tmp_path, resume="nowhere.pt")


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_result_without_checkpoints_is_not_written_over(tmp_path: Path, resume: str) -> None:
    (tmp_path / "model.safetensors").write_text("weeks of work")
    with pytest.raises(OutputError, match="holds the weights of a run, but no checkpoint to resume from"):
        find(tmp_path, resume=resume)


# Settings that are not the same (row 45) ------------------------------------------------------------------------------

CHANGES: dict[str, Any] = {
    "backbone": "resnet18",
    "stem": "small",
    "channels": 1,
    "projector": "32-33",
    "image_size": 24,
    "augmentation": "imagenet",
    "augment_backend": "pillow",
    "epochs": 4,
    "batch_size": 8,
    "micro_batch_size": 4,
    "lambd": 0.01,
    "scale_loss": 0.5,
    "optimizer": "sgd",
    "lr": 0.03,
    "lr_bias": 0.003,
    "weight_decay": 0.2,
    "warmup_epochs": 1.5,
    "seed": 1,
    "precision": "bf16",
    "mixup": 2.0,
}


def test_every_setting_that_alters_the_maths_is_tested_here() -> None:
    assert set(CHANGES) == set(MATHS)


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_what_alters_the_maths_is_refused_unless_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    old = {"warmup_epochs": 0.0, "lr_bias": 0.02}  # which follow others unless told
    new = {**old, name: CHANGES[name]}
    before = saved(tmp_path, **old).config[name]
    with pytest.raises(CheckpointError, match="the checkpoint at step 6 of") as caught:
        find(tmp_path, **new, workers=3)
    assert f"made with {name} {before}, not {name} {CHANGES[name]}; " in str(caught.value)
    assert capsys.readouterr().err == ""  # what goes on is told of its changes; here the error has all that matters
    if name in SHAPES:
        assert (
            f"cannot change within a run; set it back, or begin another --out, perhaps with --init {tmp_path}"
            in str(caught.value)
        )
        with pytest.raises(CheckpointError, match="cannot change within a run"):
            find(tmp_path, **new, allow_change=(name,))
    else:
        assert str(caught.value).endswith(f"or accept it with --allow-change {name}")
        found = find(tmp_path, **new, allow_change=(name,))
        assert found is not None
        assert found.step == 6
        assert f"{name} was {before}, is {CHANGES[name]}" in capsys.readouterr().err


def test_the_advice_names_everything_that_has_to_be_allowed(tmp_path: Path) -> None:
    """More epochs have a longer warm-up, too."""
    saved(tmp_path)
    with pytest.raises(CheckpointError, match=r"--allow-change epochs warmup_epochs$"):
        find(tmp_path, epochs=30)
    with pytest.raises(CheckpointError, match=r"--allow-change epochs warmup_epochs$"):
        find(tmp_path, epochs=30, allow_change=("epochs",))
    assert find(tmp_path, epochs=30, allow_change=("epochs", "--warmup-epochs"))


def test_what_does_not_alter_the_maths_is_only_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path)
    free = {"workers": 3, "device": "mps", "log_every": 7, "checkpoint_every": 9, "knn_every": 4, "max_bad": 0.5}
    assert find(tmp_path, **free, max_steps=8, recipe="shapes", resume="auto", data_root="elsewhere")
    said = capsys.readouterr().err
    for name, value in free.items():
        assert f"changed since the checkpoint: {name} was " in said
        assert re.search(rf"{name} was .*, is {value}( \(.*\))?\n", said)
    assert "resume" not in said
    assert "allow" not in said


@pytest.mark.parametrize(
    ("name", "words"),
    [("lamda", "did you mean lambd?"), ("learning-rate", "it takes data, "), ("Data", "did you mean data?")],
)
def test_a_mistyped_setting_to_allow_is_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=r"--allow-change \w+: there is no such setting; ") as caught:
        find(tmp_path, allow_change=(name,))
    assert words in str(caught.value)


def test_another_batch_size_means_another_place_in_the_schedule_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path)
    assert find(tmp_path, batch_size=32, allow_change=("batch_size",))
    wanted = "an epoch had 4 steps and has 2 now: step 6 was in epoch 1.50 and is in epoch 3.00"
    assert wanted in capsys.readouterr().err


# Data that are not the same (row 30) ----------------------------------------------------------------------------------


def test_other_data_are_refused_unless_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path)
    with pytest.raises(CheckpointError, match=r"data 64 images \(0123456789\), not data 48 images \(fedcba9876\)"):
        find(tmp_path, OTHER_DATA)
    capsys.readouterr()
    found = find(tmp_path, OTHER_DATA, allow_change=("data",))
    assert found is not None
    assert found.unreadable == ()  # those were numbers of other images
    assert "data was 64 images (0123456789), is 48 images (fedcba9876)" in capsys.readouterr().err


def test_the_same_data_may_lie_elsewhere(tmp_path: Path) -> None:
    saved(tmp_path, recipe="shapes")
    assert find(tmp_path, data="/moved/here", recipe="shapes")


# Putting a network back -----------------------------------------------------------------------------------------------


def network(widths: str = "8-8", **kwargs: Any) -> BarlowTwins:
    return BarlowTwins("resnet10_x0_5", widths, **{"stem": "small", **kwargs})


def optimizer_of(model: BarlowTwins, lr: float = 0.1, decay: float = 1e-4) -> torch.optim.Optimizer:
    return build_optimizer("adamw", model, lr=lr, lr_bias=lr / 2, weight_decay=decay)


def trained() -> tuple[BarlowTwins, torch.optim.Optimizer]:
    model = network()
    optimizer = optimizer_of(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    model(torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)).backward()
    optimizer.step()
    return model, optimizer


def test_the_state_comes_back_and_the_settings_stay_those_of_now() -> None:
    """`load_state_dict` alone would bring the old learning rates and decay back, allowed to change or not."""
    model, optimizer = trained()
    again = network()
    its_optimizer = optimizer_of(again, lr=0.7, decay=0.3)
    restore(Checkpoint(1, model.state_dict(), optimizer.state_dict(), {}, {}), again, its_optimizer)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())
    old, new = optimizer.state_dict()["state"], its_optimizer.state_dict()["state"]
    assert old.keys() == new.keys()
    assert all(torch.equal(old[p][name], new[p][name]) for p in old for name in old[p])
    assert [group["peak_lr"] for group in its_optimizer.param_groups] == [0.7, 0.35]
    assert [group["weight_decay"] for group in its_optimizer.param_groups] == [0.3, 0.0]


def test_tensors_of_another_network_are_refused_in_one_line() -> None:
    model, optimizer = trained()
    good = Checkpoint(9, dict(model.state_dict()), optimizer.state_dict(), {}, {})
    other = network("8-9")
    short = {key: value for key, value in good.model.items() if key != "backbone.conv1.weight"}
    for checkpoint, into in (
        (good, other),
        (dataclasses.replace(good, model=short), model),
        (dataclasses.replace(good, optimizer={}), model),
    ):
        with pytest.raises(CheckpointError, match="the checkpoint at step 9 does not fit the network") as caught:
            restore(checkpoint, into, optimizer_of(into))
        assert "\n" not in str(caught.value)


# Beginning from weights -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, BarlowTwins]:
    """The result of a run, and the network that it came from."""
    model, folder = trained()[0], RunFolder(tmp_path_factory.mktemp("run"))
    folder.write_weights(model, name="resnet10_x0_5", stem="small", preprocessing=Preprocessing(8, None))
    return folder, model


def same(model: BarlowTwins, other: BarlowTwins, part: str) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in model.state_dict().items() if key.startswith(part))


def test_nothing_is_loaded_where_nothing_is_named() -> None:
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    initialize(model, None)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_run_gives_backbone_and_projector(
    run: tuple[RunFolder, BarlowTwins], capsys: pytest.CaptureFixture[str]
) -> None:
    model = network()
    initialize(model, str(run[0].path))
    assert same(model, run[1], "")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("widths", ["8-16", "16-8", "8", "8-8-8"])
def test_a_projector_of_other_widths_stays_as_it_is_and_that_is_said(
    run: tuple[RunFolder, BarlowTwins], capsys: pytest.CaptureFixture[str], widths: str
) -> None:
    model = network(widths)
    before = {key: value.clone() for key, value in model.state_dict().items() if not key.startswith("backbone.")}
    initialize(model, str(run[0].model))
    assert same(model, run[1], "backbone.")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert "has other widths and is not used: it starts from random weights" in capsys.readouterr().err


def test_a_backbone_alone_is_enough(
    run: tuple[RunFolder, BarlowTwins], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(run[1].backbone.state_dict(), tmp_path / "flat.pth")
    for path in (run[0].backbone, tmp_path / "flat.pth"):
        model = network()
        initialize(model, str(path))
        assert same(model, run[1], "backbone.")
        assert not same(model, run[1], "projector.")
        assert "has no projector: it starts from random weights" in capsys.readouterr().err


def test_another_architecture_is_refused_with_counts(run: tuple[RunFolder, BarlowTwins], tmp_path: Path) -> None:
    torch.save(build_backbone("resnet18").state_dict(), tmp_path / "resnet18.pth")
    cases = [
        (network(), str(tmp_path / "resnet18.pth"), r"is a resnet18 and does not fit .*unexpected .*of another shape"),
        (network(channels=1), str(run[0].path), r"trained on 3 channels, the network here has 1; give --channels 3$"),
        (network(stem="imagenet"), str(run[0].path), r"1 of another shape \(backbone\.conv1\.weight"),
        (network(), str(tmp_path / "nothing"), r"no weights .*nothing"),
    ]
    for model, init, words in cases:
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(WeightsError, match=words):
            initialize(model, init)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_another_stride_which_no_shape_shows_is_said(
    run: tuple[RunFolder, BarlowTwins], capsys: pytest.CaptureFixture[str]
) -> None:
    initialize(network(stem="small-stride2"), str(run[0].path))
    assert "the first layer of" in (said := capsys.readouterr().err)
    assert "has stride (1, 1), that of this network (2, 2); see --stem" in said
