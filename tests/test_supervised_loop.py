"""The supervised loop: published schedules, one step by hand, nothing frozen moves, and every stop can go on."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from processes import run_processes
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from barlowtwins.config import FinetuneConfig, KNNConfig, LinearConfig, SemiConfig
from barlowtwins.core.distributed import World
from barlowtwins.core.errors import CheckpointError, ConfigError, OutputError, TrainingError
from barlowtwins.evaluate.crops import CropFlip, LabeledReader
from barlowtwins.evaluate.finetune import evaluate_finetune
from barlowtwins.evaluate.knn import evaluate_knn
from barlowtwins.evaluate.labeled import LabeledImages, open_labeled, open_pair
from barlowtwins.evaluate.linear import evaluate_linear
from barlowtwins.evaluate.protocols import FINE_TUNING, PUBLISHED_LINEAR, Protocol, fine_tuning, learning_rate
from barlowtwins.evaluate.semi import evaluate_semi
from barlowtwins.evaluate.supervised_loop import LoopOptions, score, train_classifier
from barlowtwins.runs.checkpoint import Checkpoint, save_checkpoint
from barlowtwins.views.twins import plan_batches
from barlowtwins.zoo.heads import fresh_classifier, load_classifier, load_head
from barlowtwins.zoo.weights import load_weights

torch.set_num_threads(1)  # as in the processes that are started here: sums depend on how they are shared out

ALONE = World(0, 1, torch.device("cpu"))
HOW = tiny.TINY
COMMON = LoopOptions(HOW, ALONE)
FAST = Protocol("test", 2, 16, 0.5, 0.1, 1e-4, "warm-up", (0.3, 1.0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_weights(tmp_path_factory.mktemp("weights") / "w.safetensors", preprocessing=HOW)


def network(weights: Path, classes: int = 10) -> ResNet:
    net = load_weights(weights).build()
    net.fc = fresh_classifier(tiny.DIM, classes, seed=0)
    return net


def shapes(images: int = 50) -> LabeledImages:
    return open_labeled(f"shapes:{images}", split="train")


def state_of(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


# The numbers ----------------------------------------------------------------------------------------------------------


def rates_of(scheduler_of: Any, epochs: int) -> list[float]:
    """Learning rates by epoch of one of torch's schedulers, for a peak of 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = scheduler_of(optimizer)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_published_schedules_are_torchs_own_an_epoch_at_a_time() -> None:
    for protocol, scheduler_of in (
        (PUBLISHED_LINEAR, lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)),
        (FINE_TUNING["published"], lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)),
        (FINE_TUNING["paper"], lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [12, 16], 0.2)),
    ):
        expected = np.repeat(rates_of(scheduler_of, protocol.epochs), 7)
        found = [learning_rate(protocol, step, 7) for step in range(7 * protocol.epochs)]
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_warm_up_rises_to_the_peak_and_falls_to_nothing() -> None:
    rates = [learning_rate(FINE_TUNING["default"], step, 10) for step in range(10 * FINE_TUNING["default"].epochs)]
    peak = rates.index(max(rates))
    assert rates[0] == 0 and max(rates) == 1 and peak == len(rates) // 20
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 1e-3


def test_the_published_numbers_are_those_on_record() -> None:
    linear, semi, paper = PUBLISHED_LINEAR, FINE_TUNING["published"], FINE_TUNING["paper"]
    assert (linear.epochs, linear.batch_size, linear.lr_head, linear.weight_decay) == (100, 256, 0.3, 1e-6)
    assert linear.frozen and not semi.frozen and linear.crop_scale == (0.08, 1)
    for protocol in (semi, paper):
        assert (protocol.epochs, protocol.batch_size, protocol.lr_head, protocol.weight_decay) == (20, 256, 0.5, 0)
        assert 0.002 <= protocol.lr_backbone <= 0.005


def test_flags_replace_the_protocols_numbers() -> None:
    config = FinetuneConfig("data", epochs=3, lr_backbone=0.0, weight_decay=0.1)
    changed = FINE_TUNING["published"].with_flags(config)
    assert (changed.epochs, changed.lr_backbone, changed.weight_decay) == (3, 0, 0.1)
    assert (changed.batch_size, changed.lr_head, changed.schedule) == (256, 0.5, "cosine")
    assert changed.frozen


def test_little_data_is_passed_over_more_often_unless_told() -> None:
    protocol = fine_tuning("default", 224)
    assert [protocol.for_data(steps).epochs for steps in (1, 9, 50, 1000)] == [1000, 112, 20, 20]
    assert protocol.with_flags(FinetuneConfig("data", epochs=3)).for_data(1).epochs == 3
    assert fine_tuning("published", 28).for_data(1).epochs == 20
    assert fine_tuning("default", 28).crop_scale[0] > protocol.crop_scale[0]  # small images are cropped less
    assert fine_tuning("published", 28).crop_scale == (0.08, 1)


# The loop -------------------------------------------------------------------------------------------------------------


def by_hand(net: ResNet, train: LabeledImages, protocol: Protocol, *, frozen: bool) -> None:
    """What the loop should do, in the plainest words: one optimiser for the head, one for what lies below."""
    n = protocol.batch_size
    head = torch.optim.SGD(net.fc.parameters(), lr=1, momentum=0.9, weight_decay=protocol.weight_decay)
    rest = [p for name, p in net.named_parameters() if "fc" not in name]
    body = torch.optim.SGD(rest, lr=1, momentum=0.9, weight_decay=protocol.weight_decay)
    net.eval() if frozen else net.train()
    per_epoch = len(train.source) // n
    reader = LabeledReader(train, CropFlip(HOW, scale=protocol.crop_scale))
    for rows in plan_batches(len(train.source), n, seed=0, start=0, stop=protocol.epochs * per_epoch):
        batch = reader[rows]
        net.zero_grad()
        nn.functional.cross_entropy(net(batch.images), batch.labels).backward()
        factor = learning_rate(protocol, rows.step, per_epoch) * n / 256
        head.param_groups[0]["lr"] = protocol.lr_head * factor
        body.param_groups[0]["lr"] = protocol.lr_backbone * factor
        head.step()
        if not frozen:
            body.step()


@pytest.mark.parametrize("frozen", [False, True])
def test_training_is_what_it_says_step_by_step(frozen: bool, weights: Path) -> None:
    protocol = Protocol("test", 2, 16, 0.5, 0.0 if frozen else 0.1, 1e-3, "cosine")
    train, net = shapes(), network(weights)
    expected = copy.deepcopy(net)
    by_hand(expected, train, protocol, frozen=frozen)
    trained = train_classifier(net, train, protocol, COMMON)
    assert (trained.steps, trained.batch_size) == (2 * (50 // 16), 16)
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(net.state_dict()[key], value, rtol=1e-5, atol=1e-6)


def test_a_frozen_backbone_stays_as_it_is_to_the_bit(weights: Path) -> None:
    net = network(weights)
    before = state_of(net)
    train_classifier(net, shapes(), PUBLISHED_LINEAR.with_flags(LinearConfig("", epochs=2, batch_size=16)), COMMON)
    after = net.state_dict()
    assert {key for key in after if not torch.equal(after[key], before[key])} == {"fc.weight", "fc.bias"}
    assert sum("running_var" in key for key in after) > 5  # batch norm's statistics are among what stays


def test_a_tiny_set_is_learned_by_heart(weights: Path, tmp_path: Path) -> None:
    """Eight images of noise, of four classes, that nothing but memory can tell apart."""
    train = open_labeled(str(tiny.write_images(tmp_path, 8, classes=4)), split="train")
    protocol = Protocol("test", 60, 8, 3.0, 1.0, 0.0, "warm-up", (1.0, 1.0))
    net = network(weights, classes=4)
    trained = train_classifier(net, train, protocol, COMMON)
    assert trained.accuracy == 100 and trained.loss < 0.05
    assert score(net, train, COMMON).top1 == 100


def test_scores_are_the_networks_in_evaluation_mode(weights: Path) -> None:
    _, val = open_pair("shapes:45", None)
    net = network(weights).train()
    found = score(net, val, COMMON, batch_size=7)
    with torch.no_grad():
        logits = net.eval()(torch.stack([HOW(val.source.read(index)) for index in range(45)]))
    right = (logits.argmax(1).numpy() == val.labels).mean()
    assert found.images == 45 and found.top1 == pytest.approx(100 * right)


def test_workers_change_nothing(weights: Path) -> None:
    nets = [network(weights) for _ in range(2)]
    results = [
        train_classifier(net, shapes(), FAST, dataclasses.replace(COMMON, workers=workers))
        for net, workers in zip(nets, (0, 2), strict=True)
    ]
    assert results[0] == results[1]
    assert all(torch.equal(a, b) for a, b in zip(state_of(nets[0]).values(), state_of(nets[1]).values(), strict=True))


# What stops it --------------------------------------------------------------------------------------------------------


def settings(weights: Path, out: Path | None, **changes: Any) -> FinetuneConfig:
    usual = {"epochs": 8, "batch_size": 16, "workers": 0, "device": "cpu", "out": out and str(out)}
    return FinetuneConfig("shapes:48", weights=str(weights), **(usual | changes))


def outcome(out: Path) -> dict[str, Any]:
    """All that an evaluation leaves, but for the seconds that it took and where it lies."""
    results = json.loads((out / "results.json").read_text())
    tensors = load_head(out / "head.safetensors")
    return {
        "results": {name: value for name, value in results.items() if name not in ("seconds", "out", "head")},
        "metrics": (out / "metrics.jsonl").read_text(),
        "head": (tensors.weight.tolist(), tensors.bias.tolist(), tensors.belonging.tensors_sha256),
    }


@pytest.fixture(scope="module")
def undisturbed(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("undisturbed")
    evaluate_finetune(settings(weights, out))
    return outcome(out)


def start(config: FinetuneConfig) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    flags = [
        f"--{field.name.replace('_', '-')}={getattr(config, field.name)}"
        for field in dataclasses.fields(config)
        if field.name != "train" and getattr(config, field.name) != field.default
    ]
    command = [sys.executable, "-m", "barlowtwins", "evaluate", "finetune", config.train, *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def wait_until(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_stop_signal_saves_and_the_same_command_goes_on_to_the_bit(
    weights: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    process = start(settings(weights, tmp_path))
    metrics = tmp_path / "metrics.jsonl"
    wait_until(process, lambda: metrics.exists() and bool(metrics.read_text()))
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 75, said
    assert re.search(
        r"stopped: stopped by SIGTERM after step \d+ of 24, saved in .*; the same command resumes from there", said
    )
    assert len(list((tmp_path / "checkpoints").glob("*.pt"))) == 1 and not (tmp_path / "results.json").exists()

    with pytest.raises(OutputError, match=r"holds another evaluation \(seed was 0, is 1\)"):
        evaluate_finetune(settings(weights, tmp_path, seed=1))
    evaluate_finetune(settings(weights, tmp_path))
    assert outcome(tmp_path) == undisturbed

    evaluate_finetune(settings(weights, tmp_path))  # once more: nothing is left to train
    assert outcome(tmp_path) == undisturbed
    evaluate_finetune(settings(weights, tmp_path, seed=1, overwrite=True))
    assert outcome(tmp_path) != undisturbed


def test_a_signal_to_the_reading_processes_as_well_is_a_stop_too(weights: Path, tmp_path: Path) -> None:
    process = start(settings(weights, tmp_path, epochs=500, workers=2))
    metrics = tmp_path / "metrics.jsonl"
    wait_until(process, lambda: metrics.exists() and bool(metrics.read_text()))
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 75 and "stopped by SIGTERM" in said, said


def test_a_killed_process_loses_what_came_after_its_checkpoint_and_no_more(
    weights: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    process = start(settings(weights, tmp_path, save_every=0.0))
    wait_until(process, lambda: len(list((tmp_path / "checkpoints").glob("step-*.pt"))) == 2)
    process.kill()
    process.communicate()
    assert not (tmp_path / "results.json").exists()
    evaluate_finetune(settings(weights, tmp_path))
    assert outcome(tmp_path) == undisturbed


def test_without_a_folder_nothing_is_kept(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = evaluate_finetune(settings(weights, None, epochs=1))
    assert result.out is None and result.head is None and not list(tmp_path.iterdir())


def test_the_saved_classifier_is_the_one_that_was_judged(weights: Path, tmp_path: Path) -> None:
    """With a folder or with --save-head alone: the fine-tuned backbone lies where the head finds it."""
    for config in (
        settings(weights, tmp_path / "out"),
        settings(weights, None, save_head=str(tmp_path / "heads" / "mine.safetensors")),
    ):
        result = evaluate_finetune(config)
        assert result.head is not None
        classifier = load_classifier(result.head)
        assert classifier.weights.sha256 != load_weights(weights).sha256
        _, val = open_pair(config.train, None)
        again = score(classifier.build(), val, LoopOptions(classifier.head.preprocessing, ALONE))
        assert again.top1 == result.scores.top1
    assert sorted(path.name for path in (tmp_path / "heads").iterdir()) == [
        "mine.backbone.safetensors",
        "mine.safetensors",
    ]


def test_too_many_unreadable_images_end_it_and_a_few_do_not(weights: Path, tmp_path: Path) -> None:
    train = open_labeled(str(tiny.write_images(tmp_path, 40, classes=4)), split="train")
    train.source.path(3).write_bytes(b"")
    net = network(weights, classes=4)
    trained = train_classifier(net, train, FAST, dataclasses.replace(COMMON, max_bad=0.05))
    assert trained.unreadable == 1
    with pytest.raises(TrainingError, match=r"cannot be read: 1 .* more than the 0 that --max-bad allows"):
        train_classifier(net, train, FAST, COMMON)


@pytest.mark.parametrize("protocol", [FAST, PUBLISHED_LINEAR])
def test_a_loss_that_is_not_finite_ends_it_before_the_update(weights: Path, tmp_path: Path, protocol: Protocol) -> None:
    net = network(weights)
    net.fc.bias.data[0] = torch.inf
    before = state_of(net.fc)
    rates = "--lr-head" if protocol.frozen else "--lr-backbone or --lr-head"
    with pytest.raises(TrainingError, match=rf"the loss is nan at step 0; nothing was updated\. Try a lower {rates},"):
        train_classifier(net, shapes(), protocol, COMMON)
    assert all(torch.equal(value, before[key]) for key, value in net.fc.state_dict().items())
    with pytest.raises(TrainingError, match=r"nonfinite\.json has the images and the numbers\)"):
        train_classifier(net, shapes(), protocol, dataclasses.replace(COMMON, folder=tmp_path))
    report = json.loads((tmp_path / "nonfinite.json").read_text())
    assert report["loss"] == "nan" and report["parameters_not_finite"] == ["fc.bias"] and report["views"] == []
    assert len(report["images"]) == min(protocol.batch_size, 50) and not list(tmp_path.glob("checkpoints/*"))


def test_a_checkpoint_of_something_else_is_refused(weights: Path, tmp_path: Path) -> None:
    """As when a folder is put together by hand: of another network, or of pretraining."""
    model, data = network(weights, classes=4).state_dict(), {"epoch": {}}
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0).state_dict()
    options = dataclasses.replace(COMMON, folder=tmp_path)
    for checkpoint in (Checkpoint(3, model, optimizer, {}, data), Checkpoint(4, {}, optimizer, {}, {})):
        save_checkpoint(tmp_path, checkpoint)
        told = rf"the checkpoint at step {checkpoint.step} of .* is not of this evaluation: .+; choose another --out"
        with pytest.raises(CheckpointError, match=told):
            train_classifier(network(weights), shapes(), FAST, options)


def test_batches_that_do_not_fit_are_refused_with_numbers(weights: Path) -> None:
    with pytest.raises(ConfigError, match="batch size 16 is not divisible by 3 processes; try 15"):
        train_classifier(network(weights), shapes(), FAST, LoopOptions(HOW, World(0, 3, torch.device("cpu"))))
    one = LabeledImages(shapes().source, shapes().labels, shapes().classes)
    with pytest.raises(ConfigError, match="too few to train on"):
        train_classifier(network(weights), one, Protocol("test", 1, 1, 0.1, 0.1, 0, "cosine"), COMMON)


# Processes ------------------------------------------------------------------------------------------------------------


def train_among(rank: int, world_size: int, weights: str, out: str) -> list[float]:
    common: dict[str, Any] = {"weights": weights, "batch_size": 16, "workers": 0, "device": "cpu", "epochs": 1}
    fine = evaluate_finetune(FinetuneConfig("shapes:48", out=f"{out}/fine", **common))
    published = evaluate_linear(LinearConfig("shapes:48", out=f"{out}/linear", protocol="published", **common))
    fast = evaluate_linear(
        LinearConfig("shapes:48", out=f"{out}/fast", weights=weights, workers=0, device="cpu", batch_size=16)
    )
    semi = evaluate_semi(SemiConfig("shapes:48", percent="50", out=f"{out}/semi", **common))
    plain = KNNConfig("shapes:48", weights=weights, k=(5,), workers=0, device="cpu", batch_size=16)
    knn = evaluate_knn(dataclasses.replace(plain, out=f"{out}/knn"))
    if world_size > 1:
        with pytest.raises(ConfigError, match="2 processes share features by way of a folder; give one with --out"):
            evaluate_knn(plain)
    return [*(result.scores.top1 for result in (fine, published, fast, semi)), knn.accuracy[5]]


def test_two_processes_come_to_what_one_does(weights: Path, tmp_path: Path) -> None:
    both = run_processes(train_among, 2, str(weights), str(tmp_path / "two"))
    alone = train_among(0, 1, str(weights), str(tmp_path / "one"))
    assert both[0] == both[1]
    assert both[0][-1] == alone[-1]  # neighbours are found by one of them, of the very same features
    for name in ("fine", "linear", "fast", "semi"):
        ours, theirs = (load_head(tmp_path / how / name / "head.safetensors") for how in ("one", "two"))
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-3, atol=1e-3 * ours.weight.abs().max().item())
    np.testing.assert_allclose(both[0], alone, atol=3)  # a near tie or two may fall the other way
