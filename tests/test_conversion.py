"""Weights go out into every format and come back to the bit; what reads those formats reads the files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from training import log, tiny
from weight_files import (
    TINY,
    backbone_state,
    equal,
    lightning_checkpoint,
    lightning_module,
    mmpretrain_checkpoint,
    published_checkpoint,
    saved,
    sha256,
    twins_state,
    vissl_checkpoint,
)

from barlowtwins.cli import main
from barlowtwins.config import WeightsConvertConfig
from barlowtwins.core.errors import CheckpointError, OutputError, WeightsError
from barlowtwins.loss import barlow_twins_loss
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.models.resnet import build_backbone
from barlowtwins.optim import build_optimizer
from barlowtwins.pretraining import pretrain
from barlowtwins.runs.checkpoint import Checkpoint, save_checkpoint
from barlowtwins.train.resume import restore
from barlowtwins.zoo.conversion import WRITERS, Conversion, detectron2_name, weights_convert
from barlowtwins.zoo.published import published_checkpoint as to_published, read_published
from barlowtwins.zoo.weights import load_weights

WEIGHT_DECAY = 0.0  # with 1 / W of the gradient, the same number means W times as much
BACKBONE, TWINS = backbone_state(), twins_state()
PROJECTOR = {key: tensor for key, tensor in TWINS.items() if not key.startswith("backbone.")}
TWINS_BACKBONE = {key.removeprefix("backbone."): tensor for key, tensor in TWINS.items() if key not in PROJECTOR}


def _convert(source: Path, out: Path, to: Any) -> Conversion:
    return weights_convert(WeightsConvertConfig(str(source), str(out), to))


def _write(path: Path, value: Any) -> Path:
    path.write_bytes(saved(value))
    return path


def _module(style: str, state: dict[str, Tensor]) -> nn.Module:
    net = build_backbone(TINY)
    net.load_state_dict(state)
    return lightning_module(style, net, (8, 8, 4))


FOREIGN = {
    "torchvision": BACKBONE,
    "vissl": vissl_checkpoint(BACKBONE),
    "mmpretrain": mmpretrain_checkpoint(BACKBONE),
    "lightly": lightning_checkpoint(_module("lightly", BACKBONE)),
    "solo-learn": lightning_checkpoint(_module("solo-learn", BACKBONE)),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("to", ["torchvision", "safetensors", "timm", "lightly"])
def test_any_format_into_any_other_and_back(tmp_path: Path, name: str, to: str) -> None:
    source = _write(tmp_path / "in", FOREIGN[name])
    there = _convert(source, tmp_path / "out", to)
    assert (there.source_format, there.format, there.out) == (name, to, tmp_path / "out")
    loaded = load_weights(there.out)
    assert equal(loaded.backbone, BACKBONE)
    back = _convert(there.out, tmp_path / "back.pth", "torchvision")
    assert back.sha256 != "" and equal(torch.load(back.out, weights_only=True), BACKBONE)


@pytest.mark.parametrize("to", ["published", "safetensors"])
def test_the_whole_model_and_back(tmp_path: Path, to: str) -> None:
    source = _write(tmp_path / "in.pth", published_checkpoint(TWINS))
    loaded = load_weights(_convert(source, tmp_path / "out", to).out)
    assert loaded.projector is not None
    assert equal({f"backbone.{key}": tensor for key, tensor in loaded.backbone.items()} | loaded.projector, TWINS)
    assert loaded.projector_widths == "32-32-16"


def test_a_published_checkpoint_stays_as_it_is_with_its_optimiser(tmp_path: Path) -> None:
    value = published_checkpoint(TWINS)
    made = torch.load(_convert(_write(tmp_path / "a", value), tmp_path / "b", "published").out, weights_only=True)
    assert made["epoch"] == 1000 and equal(made["model"], value["model"])
    assert made["optimizer"]["param_groups"] == value["optimizer"]["param_groups"]
    assert torch.equal(made["optimizer"]["state"][0]["mu"], value["optimizer"]["state"][0]["mu"])


def test_safetensors_say_what_is_in_them(tmp_path: Path) -> None:
    state = twins_state(stem="small-stride2", channels=1)
    settings = {"backbone": TINY, "stem": "small-stride2", "channels": 1}
    path = save_checkpoint(tmp_path, Checkpoint(step=7, model=state, optimizer={}, config=settings, data={}))
    loaded = load_weights(_convert(path, tmp_path / "w.safetensors", "safetensors").out)
    assert (loaded.backbone_name, loaded.stem, loaded.channels) == (TINY, "small-stride2", 1)


# What other programs read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_loads_ours_strictly(tmp_path: Path, name: str) -> None:
    state = backbone_state(name)
    out = _convert(_write(tmp_path / "in", state), tmp_path / "out.pth", "torchvision").out
    theirs = getattr(torchvision.models, name)()
    theirs.fc = nn.Identity()
    assert (
        str(theirs.load_state_dict(torch.load(out, weights_only=True), strict=True))
        == "<All keys matched successfully>"
    )
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ours = load_weights(out).build()
    assert torch.equal(theirs.eval()(images), ours(images))


def detectron2_by_the_book(state: dict[str, Tensor]) -> set[str]:
    """The names of detectron2's ResNet, from its own structure: stem, res2 to res5, conv, norm, shortcut."""
    names = set()
    tensors = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    for key in state:
        *where, tensor = key.split(".")
        assert tensor in tensors
        if not where[0].startswith("layer"):
            names.add(f"stem.conv1.{'norm.' if where[0] == 'bn1' else ''}{tensor}")
            continue
        block = f"res{int(where[0][5:]) + 1}.{where[1]}"
        if where[2] == "downsample":
            names.add(f"{block}.shortcut.{'norm.' if where[3] == '1' else ''}{tensor}")
        else:
            kind, number = where[2][:-1], where[2][-1]
            names.add(f"{block}.conv{number}.{'norm.' if kind == 'bn' else ''}{tensor}")
    return names


def test_detectron2_as_its_converter_writes_it(tmp_path: Path) -> None:
    state = backbone_state("resnet50")
    out = _convert(_write(tmp_path / "in", state), tmp_path / "out.pkl", "detectron2").out
    with open(out, "rb") as file:
        made = pickle.load(file)
    assert set(made) == {"model", "__author__", "matching_heuristics"} and made["matching_heuristics"] is True
    assert set(made["model"]) == detectron2_by_the_book(state)
    for theirs, ours in {
        "stem.conv1.weight": "conv1.weight",
        "stem.conv1.norm.running_var": "bn1.running_var",
        "res2.0.shortcut.weight": "layer1.0.downsample.0.weight",
        "res2.0.shortcut.norm.bias": "layer1.0.downsample.1.bias",
        "res5.2.conv3.norm.weight": "layer4.2.bn3.weight",
    }.items():
        array = made["model"][theirs]
        assert type(array) is np.ndarray and np.array_equal(array, state[ours].numpy())
    assert {detectron2_name(key) for key in state} == set(made["model"])
    assert all(np.array_equal(made["model"][detectron2_name(key)], tensor.numpy()) for key, tensor in state.items())


def test_a_file_for_lightly_fits_its_module_strictly(tmp_path: Path) -> None:
    """The module of its benchmark without the online classifier, which no source here has."""
    module = lightning_module("lightly", build_backbone(TINY), (32, 32, 16))
    del module.online_classifier
    made = _convert(_write(tmp_path / "in", TWINS), tmp_path / "out.ckpt", "lightly")
    module.load_state_dict(torch.load(made.out, weights_only=True)["state_dict"], strict=True)
    assert equal(module.backbone.state_dict(), TWINS_BACKBONE)
    assert equal(
        {f"projector.{key}": tensor for key, tensor in module.projection_head.layers.state_dict().items()},
        {key: tensor for key, tensor in PROJECTOR.items() if key.startswith("projector.")}
        | {"projector.6.bias": torch.zeros(16)},
    )
    again = load_weights(made.out).projector
    assert again is not None
    assert all(torch.equal(again[key], PROJECTOR[key]) for key in PROJECTOR if key.startswith("projector."))
    assert any("bn" in note for note in made.notes)


class PublishedLARS(torch.optim.Optimizer):
    """The update of the published code, from its description: one `mu` a parameter, 1-d ones filtered."""

    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": 0.9, "eta": 0.001}
        super().__init__(params, {**defaults, "weight_decay_filter": True, "lars_adaptation_filter": True})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                update = p.grad
                if p.ndim != 1:
                    update = update + group["weight_decay"] * p
                    norm, size = p.norm(), update.norm()
                    if norm > 0 and size > 0:
                        update = update * (group["eta"] * norm / size)
                mu = self.state[p].setdefault("mu", torch.zeros_like(p))
                mu.mul_(group["momentum"]).add_(update)
                p.sub_(group["lr"] * mu)


def _published_step(model: BarlowTwins, optimizer: torch.optim.Optimizer, views: list[Tensor], world: int) -> None:
    """One step of the published code on `world` GPUs: its gradient is 1 / world of the true one."""
    model.train()
    loss = barlow_twins_loss(model.embed(views[0]), model.embed(views[1]), lambd=0.0051).loss
    optimizer.zero_grad()
    (loss / world).backward()
    optimizer.step()


def _published_groups(model: nn.Module) -> list[dict[str, Any]]:
    params = list(model.parameters())
    return [{"params": [p for p in params if p.ndim != 1]}, {"params": [p for p in params if p.ndim == 1]}]


def _continue_both_ways(path: Path, checkpoint: dict[str, Any], world: int) -> None:
    """From one published checkpoint the published code takes a step, and ours does: the same network comes out.

    Theirs at learning rates 0.2 and 0.0048 with 1 / world of the gradient; ours at 0.2 and 0.0048 / world with all of
    it.
    """
    path.write_bytes(saved(checkpoint))  # before their step, which changes the momentum in place
    views = [torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(n)) for n in (1, 2)]
    theirs = BarlowTwins(TINY, "32-16")
    theirs.load_state_dict({key.removeprefix("module."): value for key, value in checkpoint["model"].items()})
    optimizer = PublishedLARS(_published_groups(theirs), lr=0.0, weight_decay=WEIGHT_DECAY)
    optimizer.load_state_dict(checkpoint["optimizer"])
    for group, lr in zip(optimizer.param_groups, (0.2, 0.0048), strict=True):
        group["lr"] = lr
    _published_step(theirs, optimizer, views, world)

    settings = {"backbone": TINY, "stem": "imagenet", "channels": 3, "projector": "32-16", "optimizer": "lars"}
    record = {**settings, "lr": 0.2, "lr_bias": 0.0048 / world, "batch_size": 16}
    found = read_published(path, record, {"images": 100, "fingerprint": "f"})
    assert found is not None and found.step == checkpoint["epoch"] * 6  # 100 images make 6 batches of 16
    ours = BarlowTwins(TINY, "32-16")
    mine = build_optimizer("lars", ours, lr=0.2, lr_bias=0.0048 / world, weight_decay=WEIGHT_DECAY)
    restore(found, ours, mine)
    for group in mine.param_groups:
        group["lr"] = group["peak_lr"]
    _published_step(ours, mine, views, 1)
    for (name, a), b in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=2e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("world", [16, 32])
def test_ours_goes_on_from_a_published_checkpoint_as_the_published_code_does(tmp_path: Path, world: int) -> None:
    torch.manual_seed(0)
    model = BarlowTwins(TINY, "32-16")
    optimizer = PublishedLARS(_published_groups(model), lr=0.0, weight_decay=WEIGHT_DECAY)
    views = [torch.randn(16, 3, 32, 32) for _ in range(2)]
    for group, lr in zip(optimizer.param_groups, (0.2, 0.0048), strict=True):
        group["lr"] = lr
    for _ in range(2):
        _published_step(model, optimizer, views, world)
    state = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    checkpoint = {"epoch": 5, "model": state, "optimizer": optimizer.state_dict()}
    _continue_both_ways(tmp_path / "checkpoint.pth", checkpoint, world)


def test_the_published_code_goes_on_from_ours_and_nothing_is_lost_on_the_way(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BarlowTwins(TINY, "32-16")
    optimizer = build_optimizer("lars", model, lr=0.2, lr_bias=0.0003, weight_decay=WEIGHT_DECAY)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"]
    for _ in range(2):
        _published_step(model, optimizer, [torch.randn(16, 3, 32, 32) for _ in range(2)], 1)
    settings = {"backbone": TINY, "stem": "imagenet", "channels": 3, "projector": "32-16", "optimizer": "lars"}
    config = {**settings, "lr": 0.2, "lr_bias": 0.0003, "weight_decay": 1e-6, "batch_size": 16}
    data = {"images": 100, "fingerprint": "f"}
    checkpoint = Checkpoint(30, model.state_dict(), optimizer.state_dict(), config=config, data=data)
    made = _convert(save_checkpoint(tmp_path, checkpoint), tmp_path / "checkpoint.pth", "published")
    value = torch.load(made.out, weights_only=True)
    assert value["epoch"] == 5
    _continue_both_ways(tmp_path / "again.pth", value, 16)
    back = read_published(made.out, config, data)
    assert back is not None and equal(back.model, model.state_dict())
    momentum = optimizer.state_dict()["state"]
    assert back.optimizer["state"].keys() == momentum.keys()
    assert all(
        torch.equal(back.optimizer["state"][i]["momentum_buffer"], momentum[i]["momentum_buffer"]) for i in momentum
    )


def test_what_a_published_checkpoint_lacks_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.device("meta"):
        model = BarlowTwins(TINY, "32-32-16")
    path = _write(tmp_path / "checkpoint.pth", to_published(TWINS, model, 3))
    settings = {"backbone": TINY, "stem": "imagenet", "channels": 3, "projector": "32-32-16", "batch_size": 10}
    record = {**settings, "optimizer": "lars", "lr": 0.2, "lr_bias": 0.0003}
    data = {"images": 100, "fingerprint": "f"}
    found = read_published(path, record, data)
    assert found is not None and (found.step, found.optimizer["state"]) == (30, {})
    assert "no momentum, which starts at 0" in capsys.readouterr().err
    value = published_checkpoint(TWINS)
    assert read_published(_write(path, value), {**record, "optimizer": "adamw"}, data) is not None
    assert "the momentum of its LARS does not fit adamw" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"momentum of parameter 0 has shape \(3,\) instead of .*--init"):
        read_published(path, record, data)
    for kept in (3, [1], {0: {"mu": "x"}}, {"a": {"mu": torch.ones(1)}}, {0: 3}):
        with pytest.raises(CheckpointError, match="momentum of parameter 0 has none"):
            read_published(_write(path, {**value, "optimizer": {"state": kept, "param_groups": 7}}), record, data)
    for epoch in ("3", -1, 2**70, None):
        with pytest.raises(CheckpointError, match="its epoch is"):
            read_published(_write(path, {**value, "epoch": epoch}), record, data)
    assert read_published(_write(path, BACKBONE), record, data) is None


# What does not go -----------------------------------------------------------------------------------------------------


def test_a_backbone_alone_makes_no_training_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds a backbone without projector"):
        _convert(_write(tmp_path / "in", BACKBONE), tmp_path / "out", "published")
    state = backbone_state(stem="small")
    with pytest.raises(WeightsError, match="has the 'small' stem; detectron2"):
        _convert(_write(tmp_path / "in", state), tmp_path / "out", "detectron2")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert "'small' stem" in _convert(tmp_path / "in", tmp_path / "out", "timm").notes[0]


def test_a_file_that_is_there_stays_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = _write(tmp_path / "in", BACKBONE), tmp_path / "out.pth"
    out.write_text("mine")
    with pytest.raises(OutputError, match=r"out\.pth exists"):
        _convert(source, out, "torchvision")
    assert out.read_text() == "mine"
    words = ["weights", "convert", str(source), str(out), "--to", "torchvision", "--overwrite", "--json"]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["format"] == "torchvision" and said["sha256"] == sha256(out.read_bytes())
    assert main([*words[:-4], "--to", "onnx"]) == 2
    assert set(get_args(get_type_hints(WeightsConvertConfig)["to"])) == set(WRITERS)


def test_pretraining_goes_on_from_a_published_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of 3 epochs, of which the published code did one; then the same RUN goes on by itself."""
    torch.manual_seed(0)
    model = BarlowTwins(TINY, "32-32")
    optimizer = PublishedLARS(_published_groups(model), lr=0.1, weight_decay=WEIGHT_DECAY)
    _published_step(model, optimizer, [torch.randn(16, 3, 32, 32) for _ in range(2)], 16)
    state = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    path = _write(tmp_path / "checkpoint.pth", {"epoch": 1, "model": state, "optimizer": optimizer.state_dict()})
    run = {"optimizer": "lars", "stem": "imagenet", "knn_every": 0, "report_every": 0}
    with pytest.raises(CheckpointError, match="is cut short or no checkpoint"):
        pretrain(tiny(tmp_path / "a", **run, resume=str(_write(tmp_path / "w.pth", BACKBONE))))
    done = pretrain(tiny(tmp_path / "a", **run, resume=str(path), max_steps=6))
    assert done.step == 6 and "resuming at step 4" in (said := capsys.readouterr().err) and "after 1 epochs" in said
    assert [entry["step"] for entry in log(tmp_path / "a")] == [5, 6]
    assert pretrain(tiny(tmp_path / "a", **run)).step == 12

    begun = pretrain(tiny(tmp_path / "b", **run, init=str(path), max_steps=0))
    assert begun.step == 0
    loaded = load_weights(tmp_path / "b", full=True)
    assert loaded.projector is not None
    whole = {f"backbone.{key}": tensor for key, tensor in loaded.backbone.items()} | loaded.projector
    assert equal(whole, model.state_dict())


def test_half_precision_rounds_each_number_and_loads_as_float32(tmp_path: Path) -> None:
    source = _write(tmp_path / "net.pth", BACKBONE)
    out = tmp_path / "half.safetensors"
    _convert(source, out, "safetensors-half")
    found = load_weights(out).backbone
    assert found.keys() == BACKBONE.keys()
    for key, value in BACKBONE.items():
        rounded = value.half().float() if value.is_floating_point() else value
        assert torch.equal(found[key], rounded), key
    whole = tmp_path / "whole.safetensors"
    _convert(source, whole, "safetensors")
    assert out.stat().st_size < 0.6 * whole.stat().st_size


def test_half_precision_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    source = _write(tmp_path / "net.pth", {**BACKBONE, "bn1.running_var": BACKBONE["bn1.running_var"] + 1e5})
    with pytest.raises(WeightsError, match=r"bn1\.running_var has values beyond half precision"):
        _convert(source, tmp_path / "half.safetensors", "safetensors-half")
    assert not (tmp_path / "half.safetensors").exists()


def test_a_classifier_that_is_left_out_is_named(tmp_path: Path) -> None:
    width = len(BACKBONE["layer4.0.bn2.weight"])
    head = {"head.fc.weight": torch.zeros(7, width), "head.fc.bias": torch.zeros(7)}
    contents = {"state_dict": {f"backbone.{key}": tensor for key, tensor in BACKBONE.items()} | head}
    made = _convert(_write(tmp_path / "linear.pth", contents), tmp_path / "out.pth", "torchvision")
    assert any("classifier of 7 classes is left out" in note and "linear.pth" in note for note in made.notes)
    assert not _convert(_write(tmp_path / "bare.pth", BACKBONE), tmp_path / "bare.out", "torchvision").notes
