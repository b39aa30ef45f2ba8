"""The loop as a whole: what it computes, where it can be cut, and what it refuses to begin."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from training import equal, log, outcome, steps, tiny, uninterrupted

from barlowtwins.core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    OutputError,
    StoppedEarly,
    WeightsError,
)
from barlowtwins.data.open import open_source
from barlowtwins.loss import off_diagonal_floor
from barlowtwins.optim import learning_rate_factor
from barlowtwins.pretraining import pretrain
from barlowtwins.runs.checkpoint import list_checkpoints, load_checkpoint, load_newest
from barlowtwins.runs.guards import FiniteGuard
from barlowtwins.train.pretrain import Plan, build_model, plan_run
from barlowtwins.train.recipes import resolve
from barlowtwins.views.transform import TwinTransform
from barlowtwins.views.twins import epoch_order
from barlowtwins.zoo.weights import load_weights

SETTINGS = resolve(tiny(Path("run")), channels=3, size=(32, 32))


def folder_of_images(folder: Path, count: int, mode: str = "RGB") -> str:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{number:02}.png")
    return str(folder)


class Signaller:
    """A tracker that sends this process a signal when the loss of a step is logged."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    def log(self, record: dict[str, Any]) -> None:
        if record["step"] == self.step and "loss" in record:
            os.kill(os.getpid(), self.number)

    def close(self) -> None:
        pass


# What it computes -----------------------------------------------------------------------------------------------------


def test_the_loop_is_the_textbooks(tmp_path: Path) -> None:
    """The same run, written down once more: order, views, loss, schedule and update, with torch's own optimiser."""
    changes = {"optimizer": "sgd", "lr": 0.002, "lr_bias": 0.0004, "weight_decay": 0.01, "warmup_epochs": 0.5}
    config = tiny(tmp_path, epochs=2, augmentation="small", augment_backend="pillow", **changes)
    pretrain(config)

    settings = resolve(config, channels=3, size=(32, 32))
    source = open_source("shapes:64")
    transform = TwinTransform("small", size=16, seed=0)
    model = build_model(settings, seed=0).to(memory_format=torch.channels_last)  # else rounding differs, and grows
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    peaks = (0.002 * 16 / 256, 0.0004 * 16 / 256)
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], lr=0.0, momentum=0.9
    )
    losses = []
    for step in range(8):
        epoch, place = divmod(step, 4)
        chosen = epoch_order(0, epoch, 64)[16 * place : 16 * (place + 1)].tolist()
        pairs = [transform(source.read(index), epoch=epoch, index=index) for index in chosen]
        views = (torch.stack(view).to(memory_format=torch.channels_last) for view in zip(*pairs, strict=True))
        z1, z2 = (model.projector(model.backbone(view)) for view in views)
        a, b = ((z - z.mean(0)) / torch.sqrt(z.var(0, correction=0) + 1e-5) for z in (z1, z2))
        c = a.T @ b / 16
        loss = (c.diagonal() - 1).square().sum() + 0.0051 * (c - torch.diag(c.diagonal())).square().sum()
        factor = step / 2 if step < 2 else 0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * (step - 2) / 6))
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    logged = [record for record in log(tmp_path) if "loss" in record]
    np.testing.assert_allclose([record["loss"] for record in logged], losses, rtol=2e-4)
    np.testing.assert_allclose(
        [record["lr"] for record in logged],
        [peaks[0] * learning_rate_factor(s, steps=8, warmup_steps=2) for s in range(8)],
    )
    found = load_weights(tmp_path).backbone
    for key, value in model.backbone.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)


def test_the_loss_falls_and_stays_above_its_floor(tmp_path: Path) -> None:
    """N = 64 images and D = 128 features: C has rank 63, so |C|^2 >= (sum d)^2 / 63, and with all d = t the loss is at
    least D (1 - t)^2 + lambd t^2 floor, whose minimum over t is below."""
    n, d, lambd = 64, 128, 0.0051
    changes = {"data": "shapes:128", "batch_size": n, "epochs": 20, "lr": 0.05, "knn_every": 0, "probe_every": 0}
    result = pretrain(tiny(tmp_path, **changes, projector=f"{d}-{d}", lambd=lambd))
    records = log(tmp_path)
    assert len(records) == 40
    floor = d * d / (n - 1) - d
    least = d * lambd * floor / (d + lambd * floor)
    for record in records:
        assert record["floor"] == pytest.approx(floor)
        assert record["loss"] == pytest.approx(record["on_diagonal"] + lambd * record["off_diagonal"], rel=1e-5)
        assert record["loss"] > least
    first, last = (np.mean([record["loss"] for record in part]) for part in (records[:8], records[-8:]))
    assert last < 0.75 * first
    assert result.loss == records[-1]["loss"]
    assert result.images_per_second is not None
    assert result.images_per_second > 0


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device: values and shapes that are read off tensors."""

    WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.settling = False
        self.inside: list[str] = []
        self.settled = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(name.startswith(wait) for wait in self.WAITS):
            if self.settling:
                self.settled += 1
            else:
                self.inside.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("micro", [None, 8])
def test_a_step_reads_nothing_back_but_the_verdict_on_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro: int | None
) -> None:
    """As on a GPU. A run of four steps more reads as often outside the guard: views, network, loss, update never do."""

    def reads(steps: int) -> Reads:
        mode = Reads()

        class Late(FiniteGuard):
            def settle(self) -> None:
                mode.settling = True
                super().settle()
                mode.settling = False

        monkeypatch.setattr(
            sys.modules["barlowtwins.train.pretrain"], "FiniteGuard", functools.partial(Late, late=True)
        )
        data = {"data": "shapes:160", "optimizer": "lars", "micro_batch_size": micro}
        with mode:
            pretrain(tiny(tmp_path / str(steps), **data, epochs=1, val="none", log_every=1000, max_steps=steps))
        return mode

    few, many = reads(4), reads(8)
    assert sorted(many.inside) == sorted(few.inside)
    assert (few.settled, many.settled) == (4, 8)


def test_the_untrained_network_is_a_function_of_the_seed_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (build_model(SETTINGS, seed).state_dict() for seed in (0, 0, 1))
    assert equal(dict(first), dict(again))
    assert not torch.equal(first["backbone.conv1.weight"], other["backbone.conv1.weight"])
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    pretrain(tiny(tmp_path, seed=1))
    assert [record.get("loss") for record in log(tmp_path)] != [record.get("loss") for record in uninterrupted()["log"]]


def test_a_run_leaves_the_random_state_alone(tmp_path: Path) -> None:
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002  the global one is meant
    pretrain(tiny(tmp_path, max_steps=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002


# Where it can be cut --------------------------------------------------------------------------------------------------


def test_a_run_cut_anywhere_is_the_same_run(tmp_path: Path) -> None:
    """In the middle and at the ends of epochs, and with other numbers of workers."""
    for cut, workers in ((1, 0), (4, 2), (6, 0), (11, 1), (None, 2)):
        result = pretrain(tiny(tmp_path, max_steps=cut, workers=workers, checkpoint_every=5))
        assert result.step == (cut or 12)
        assert result.loss is not None
    assert outcome(tmp_path) == uninterrupted()


@pytest.mark.parametrize("optimizer", ["lars", "sgd"])
def test_every_optimizer_goes_on_to_the_bit(tmp_path: Path, optimizer: str) -> None:
    changes = {"optimizer": optimizer, "epochs": 2, "val": "none"}
    pretrain(tiny(tmp_path, **changes, max_steps=3))
    pretrain(tiny(tmp_path, **changes))
    assert outcome(tmp_path) == uninterrupted(**changes)


def test_micro_batches_go_on_to_the_bit(tmp_path: Path) -> None:
    changes = {"micro_batch_size": 6, "epochs": 1, "val": "none"}
    pretrain(tiny(tmp_path, **changes, max_steps=2))
    pretrain(tiny(tmp_path, **changes))
    assert outcome(tmp_path) == uninterrupted(**changes)


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_a_signal_at_the_end_of_an_epoch_does_not_wait_for_the_evaluation(tmp_path: Path) -> None:
    """The next process makes up for it, on the very weights: the log is that of a run that was never stopped."""
    changes: dict[str, Any] = {"report_every": 1}
    for step in (4, 7, 8):
        with pytest.raises(StoppedEarly, match=f"stopped by SIGTERM after step {step} of 12, saved in"):
            pretrain(tiny(tmp_path, **changes, checkpoint_every=5), trackers=[Signaller(step)])
        assert log(tmp_path)[-1]["step"] == step
        assert "loss" in log(tmp_path)[-1]
        newest = load_newest(tmp_path)
        assert newest is not None
        assert newest.step == step
    pretrain(tiny(tmp_path, **changes))
    assert outcome(tmp_path) == uninterrupted(**changes)
    assert [record["step"] for record in log(tmp_path) if "knn" in record] == [4, 8, 12]


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_a_signal_at_the_last_step_changes_nothing(tmp_path: Path) -> None:
    result = pretrain(tiny(tmp_path), trackers=[Signaller(12)])
    assert result.step == 12
    assert steps(tmp_path)[-1] == 12
    assert (tmp_path / "model.safetensors").exists()


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    first = pretrain(tiny(tmp_path))
    before = outcome(tmp_path)
    again = pretrain(tiny(tmp_path, workers=2))
    assert outcome(tmp_path) == before
    assert (again.step, again.loss, again.knn) == (12, first.loss, first.knn)
    assert again.images_per_second is None
    assert (first.begun_at, again.begun_at) == (0, 12)
    for result, head in ((first, "finished: 12 steps, 3 epochs of 64 images"), (again, "already finished at step 12")):
        said = result.summary()
        floor = 0.0051 * off_diagonal_floor(16, 32)
        assert said.startswith(head)
        assert f"loss {first.loss:.4g} (its floor is {floor:.4g}), kNN {first.knn:.1f} % (k = 20)" in said
        assert ("images/s" in said) is (result is first)
        assert f"  barlowtwins embed YOUR_IMAGES --weights {tmp_path} --out embeddings\n" in said
        assert f"  barlowtwins evaluate knn LABELLED_IMAGES --val OTHERS --weights {tmp_path}" in said
    crowded = dataclasses.replace(first.plan, images=60_000)
    said = dataclasses.replace(first, plan=crowded).summary()
    assert f"kNN {first.knn:.1f} % (k = 20; in a bank of 10,000: all images as the bank give more)" in said


def test_a_run_that_is_told_to_stop_early_says_that_it_is_not_finished(tmp_path: Path) -> None:
    result = pretrain(tiny(tmp_path, max_steps=2, val="none"))
    assert result.summary().startswith("stopped at --max-steps, step 2 of 12; rerun without it to continue")


def test_going_on_from_an_older_file_gives_the_newer_ones_up(tmp_path: Path) -> None:
    pretrain(tiny(tmp_path, max_steps=9, checkpoint_every=3))
    older = str(list_checkpoints(tmp_path)[0])
    assert older.endswith("step-00000006.pt")
    if sys.platform != "win32":
        with pytest.raises(StoppedEarly, match="--resume auto resumes from there"):
            pretrain(tiny(tmp_path, resume=older, checkpoint_every=100), trackers=[Signaller(7)])
        assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000006.pt", "step-00000007.pt"]
    pretrain(tiny(tmp_path, checkpoint_every=100))
    assert outcome(tmp_path) == uninterrupted()


def test_a_changed_learning_rate_that_is_allowed_takes_effect(tmp_path: Path) -> None:
    pretrain(tiny(tmp_path, max_steps=5))
    with pytest.raises(CheckpointError, match=r"--allow-change lr lr_bias weight_decay$"):
        pretrain(tiny(tmp_path, lr=0.001, weight_decay=0.3))
    pretrain(tiny(tmp_path, lr=0.001, weight_decay=0.3, allow_change=("lr", "lr_bias", "weight_decay")))
    rates = {record["step"]: record["lr"] for record in log(tmp_path) if "loss" in record}
    for step in range(1, 13):
        peak = (0.02 if step <= 5 else 0.001) * 16 / 256
        assert rates[step] == pytest.approx(peak * learning_rate_factor(step - 1, steps=12, warmup_steps=1))
    newest = load_newest(tmp_path)
    assert newest is not None
    assert newest.optimizer["param_groups"][0]["weight_decay"] == 0.3
    assert newest.config["lr"] == 0.001


# What it begins from, and what it leaves behind -----------------------------------------------------------------------


def test_a_run_may_begin_from_the_weights_of_another(tmp_path: Path) -> None:
    pretrain(tiny(tmp_path / "first", max_steps=3, val="none"))
    pretrain(tiny(tmp_path / "second", max_steps=0, init=str(tmp_path / "first"), seed=5, val="none"))
    for name in ("backbone.safetensors", "model.safetensors"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


def test_the_run_folder_holds_what_it_should(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", checkpoint_every=5, report_every=0)
    result = pretrain(config)
    run = tmp_path / "run"
    found = sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    assert found == [
        "backbone.safetensors",
        "checkpoints/step-00000010.pt",
        "checkpoints/step-00000012.pt",
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
    ]
    kept = json.loads((run / "config.json").read_text())
    assert kept["classes"] == list(open_source("shapes:64").classes)
    assert kept["plan"] == {"images": 64, "steps_per_epoch": 4, "steps": 12, "warmup_steps": 1}
    assert kept["precision"] == "fp32"
    assert {name: kept[name] for name in vars(result.settings)} == json.loads(json.dumps(vars(result.settings)))
    assert result.plan == Plan(64, 4, 12, 1)
    assert result.parameters == sum(value.numel() for value in build_model(SETTINGS, 0).parameters())
    checkpoint = load_checkpoint(list_checkpoints(run)[-1])
    assert {name: kept[name] for name in checkpoint.config} == {**checkpoint.config, "allow_change": []}
    assert equal(dict(checkpoint.model), {**dict(checkpoint.model), **_of_file(run)})
    weights = load_weights(run, full=True)
    assert (weights.backbone_name, weights.stem, weights.channels) == ("resnet10_x0_5", "small-stride2", 3)
    assert weights.preprocessing.image_size == 16


def _of_file(run: Path) -> dict[str, torch.Tensor]:
    weights = load_weights(run, full=True)
    assert weights.projector is not None
    return {**{f"backbone.{key}": value for key, value in weights.backbone.items()}, **weights.projector}


def test_a_dry_run_says_what_would_be_and_writes_nothing(tmp_path: Path) -> None:
    result = pretrain(tiny(tmp_path / "run", dry_run=True))
    assert (result.step, result.loss, result.plan) == (0, None, Plan(64, 4, 12, 1))
    assert result.settings == dataclasses.replace(SETTINGS)
    assert not (tmp_path / "run").exists()


def test_unlabelled_grey_images_are_trained_on_without_a_knn(tmp_path: Path) -> None:
    data = folder_of_images(tmp_path / "data", 20, "L")
    config = tiny(tmp_path / "run", data=data, recipe="small-data", channels=1, epochs=2, knn_every=1, report_every=1)
    result = pretrain(dataclasses.replace(config, stem="small-stride2"))
    assert (result.step, result.knn) == (2, None)
    weights = load_weights(tmp_path / "run")
    assert (weights.channels, weights.preprocessing.channels) == (1, 1)


def test_half_precision_trains_too(tmp_path: Path) -> None:
    result = pretrain(tiny(tmp_path, precision="bf16", max_steps=2))
    assert result.loss is not None
    assert math.isfinite(result.loss)
    exact = next(record["loss"] for record in uninterrupted()["log"] if record["step"] == 2)
    assert result.loss == pytest.approx(exact, rel=0.1)
    with pytest.raises(CheckpointError, match="made with precision bf16, not precision fp32"):
        pretrain(tiny(tmp_path))


# What it refuses to begin (row 47) ------------------------------------------------------------------------------------


@given(
    images=st.integers(2, 10_000),
    batch=st.integers(2, 600),
    epochs=st.integers(1, 50),
    warmup=st.floats(0, 60),
    world=st.sampled_from([1, 2, 3, 8]),
)
def test_a_plan_counts_whole_batches(images: int, batch: int, epochs: int, warmup: float, world: int) -> None:
    settings = dataclasses.replace(SETTINGS, batch_size=batch, epochs=epochs, warmup_epochs=warmup)
    if batch > images or batch % world:
        with pytest.raises(ConfigError, match=r"larger than the data|not divisible"):
            plan_run(settings, images, world_size=world)
        return
    plan = plan_run(settings, images, world_size=world)
    assert plan.steps_per_epoch * batch <= images < (plan.steps_per_epoch + 1) * batch
    assert plan.steps == plan.steps_per_epoch * epochs
    assert plan.warmup_steps == min(plan.steps, round(warmup * plan.steps_per_epoch))


@pytest.mark.parametrize(
    ("changes", "images", "world", "words"),
    [
        ({"batch_size": 1}, 64, 1, "batch size 1 is too small: a correlation over the batch needs 2 images or more"),
        ({"batch_size": 2}, 1, 1, "1 image is too few: a correlation"),
        ({"batch_size": 65}, 64, 1, "batch size 65 is larger than the data: 64 images"),
        ({"batch_size": 32}, 64, 3, "batch size 32 is not divisible by 3 processes; try 30"),
        ({"batch_size": 2}, 64, 4, "batch size 2 is not divisible by 4 processes; try 4"),
    ],
)
def test_batches_that_do_not_fit_are_refused_with_numbers(
    changes: dict[str, Any], images: int, world: int, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_run(dataclasses.replace(SETTINGS, **changes), images, world_size=world)


@pytest.mark.parametrize("micro", [1, 17, 64])
def test_micro_batches_that_do_not_fit_are_refused_with_numbers(micro: int) -> None:
    with pytest.raises(ConfigError, match=f"micro-batch size {micro} does not fit batch size 16"):
        plan_run(SETTINGS, 64, micro=micro)


def test_sizes_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    data = folder_of_images(tmp_path / "data", 1)
    for changes, words in (
        ({"data": data, "recipe": "small-data"}, "1 image is too few"),
        ({"data": "shapes:15"}, "batch size 16 is larger than the data: 15 images"),
        ({"batch_size": 1}, "batch size 1 is too small"),
    ):
        with pytest.raises(ConfigError, match=words):
            pretrain(tiny(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dry_run", [False, True])
def test_held_out_images_are_opened_before_anything_is_written(tmp_path: Path, dry_run: bool) -> None:
    for changes in ({"report_every": 1, "knn_every": 0, "probe_every": 0}, {"report_every": 0}):
        with pytest.raises(DataError, match="no folder, file or data set 'nosuch'"):
            pretrain(tiny(tmp_path / "run", val="nosuch", dry_run=dry_run, **changes))
    assert not (tmp_path / "run").exists()


def test_few_images_make_the_recipes_batch_smaller_and_a_flags_batch_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder_of_images(tmp_path / "data", 20)
    config = tiny(tmp_path / "run", data=data, recipe="small-data", batch_size=None, epochs=1)
    result = pretrain(config)
    assert (result.settings.batch_size, result.step) == (16, 1)
    assert "batch size 16 instead of 256: only 20 images; --batch-size overrides" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="batch size 256 is larger than the data: 20 images"):
        pretrain(dataclasses.replace(config, batch_size=256, out=str(tmp_path / "other")))


def test_data_of_one_batch_are_enough(tmp_path: Path) -> None:
    assert pretrain(tiny(tmp_path / "one", data="shapes:16")).step == 3
    assert pretrain(tiny(tmp_path / "two", data="shapes:2", batch_size=2, epochs=1)).step == 1


def test_data_that_are_not_there_and_weights_that_do_not_fit_are_told(tmp_path: Path) -> None:
    for changes, error, words in (
        ({"data": str(tmp_path / "nothing")}, DataError, "nothing"),
        (
            {"data": str(folder_of_images(tmp_path / "flat", 16)), "val": "none", "backbone": "resnet19"},
            ConfigError,
            "19",
        ),
        ({"val": "shape"}, DataError, "did you mean 'shapes'"),
        ({"init": "resnet50x"}, WeightsError, "resnet50x"),
        ({"augmentation": "smal"}, ConfigError, "small"),
        ({"projector": "32-x"}, ConfigError, "32-x"),
    ):
        with pytest.raises(error, match=words):
            pretrain(tiny(tmp_path / "run", **changes))


def test_a_file_in_the_place_of_the_run_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("precious")
    with pytest.raises(OutputError, match="run"):
        pretrain(tiny(tmp_path / "run"))
    assert (tmp_path / "run").read_text() == "precious"
