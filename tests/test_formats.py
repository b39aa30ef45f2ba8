"""Each known layout, built from its documentation, comes out as our key names with the same numbers to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from weight_files import TINY, backbone_state, equal, published_checkpoint, saved, twins_state

from barlowtwins.checkpoint import Checkpoint, save_checkpoint
from barlowtwins.errors import WeightsError
from barlowtwins.formats import FORMATS, match_keys, take_apart
from barlowtwins.model import BACKBONES
from barlowtwins.registry import registry
from barlowtwins.safe_load import Contents, read_weight_file
from barlowtwins.weights import load_weights

BACKBONE, TWINS = backbone_state(), twins_state()
PROJECTOR = {key: tensor for key, tensor in TWINS.items() if not key.startswith("backbone.")}
TWINS_BACKBONE = {key.removeprefix("backbone."): tensor for key, tensor in TWINS.items() if key not in PROJECTOR}


@pytest.mark.parametrize(
    ("value", "name", "backbone", "projector"),
    [
        (BACKBONE, "torchvision", BACKBONE, None),
        (BACKBONE | {"fc.weight": torch.zeros(10, 256), "fc.bias": torch.zeros(10)}, "torchvision", BACKBONE, None),
        (TWINS, "barlowtwins", TWINS_BACKBONE, PROJECTOR),
        ({f"backbone.{key}": tensor for key, tensor in BACKBONE.items()}, "barlowtwins", BACKBONE, None),
        (published_checkpoint(TWINS), "checkpoint", TWINS_BACKBONE, PROJECTOR),
    ],
    ids=["torchvision", "with a classifier", "whole model", "backbone in a model", "published checkpoint"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickled_layouts(tmp_path: Path, value: Any, name: str, backbone: Any, projector: Any, zipped: bool) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(saved(value, _use_new_zipfile_serialization=zipped))
    loaded = load_weights(path)
    assert loaded.format == name
    assert loaded.backbone_name == TINY
    assert equal(loaded.backbone, backbone)
    assert (loaded.projector is None) if projector is None else equal(loaded.projector, projector)
    assert loaded.projector_widths == (None if projector is None else "32-32-16")
    assert loaded.epoch == (1000 if name == "checkpoint" else None)


def test_a_training_checkpoint_of_this_package(tmp_path: Path) -> None:
    state = twins_state(stem="small-stride2", channels=1)
    settings = {"backbone": TINY, "stem": "small-stride2", "channels": 1, "lambd": 0.0051}
    path = save_checkpoint(tmp_path, Checkpoint(step=7, model=state, optimizer={}, config=settings, data={}))
    loaded = load_weights(path)
    assert (loaded.format, loaded.stem, loaded.channels) == ("checkpoint", "small-stride2", 1)
    assert equal({f"backbone.{key}": tensor for key, tensor in loaded.backbone.items()} | loaded.projector, state)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype)
)
def test_safetensors_are_read_as_their_library_reads_them(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in BACKBONE.items()}
    tensors |= {"empty": torch.empty(0, 3), "scalar": torch.tensor(3.0), "flag": torch.tensor([True, False, True])}
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(tensors, path, {"format": "pt", "größe": "ß"})
    ours = read_weight_file(path)
    theirs = safetensors.torch.load_file(path)
    assert equal(ours.value, theirs)
    assert all(ours.value[key].dtype == theirs[key].dtype for key in theirs)
    assert ours.metadata == {"format": "pt", "größe": "ß"}


def test_half_precision_files_give_float32(tmp_path: Path) -> None:
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in BACKBONE.items()}
    safetensors.torch.save_file(half, tmp_path / "w.safetensors")
    loaded = load_weights(tmp_path / "w.safetensors").backbone
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in loaded.values())
    assert all(torch.equal(loaded[key], half[key].to(loaded[key].dtype)) for key in half)


def test_metadata_says_what_shapes_cannot(tmp_path: Path) -> None:
    """The stride of a small stem leaves no trace in the weights; the preprocessing never does."""
    state = backbone_state(stem="small-stride2", channels=1)
    preprocessing = {"image_size": 28, "resize": None, "channels": 1, "mean": [0.3], "std": [0.2]}
    metadata = {"backbone": TINY, "stem": "small-stride2", "channels": "1", "preprocessing": json.dumps(preprocessing)}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors", metadata)
    loaded = load_weights(tmp_path / "w.safetensors")
    assert (loaded.stem, loaded.channels) == ("small-stride2", 1)
    assert loaded.preprocessing.image_size == 28
    assert loaded.build().conv1.stride == (2, 2)
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    loaded = load_weights(tmp_path / "w.safetensors")
    assert (loaded.stem, loaded.channels, loaded.preprocessing.channels) == ("small", 1, 1)


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ({"backbone": "resnet9000"}, "unknown backbone 'resnet9000'"),
        ({"backbone": "resnet18"}, "do not make a resnet18"),
        ({"backbone": TINY, "stem": "huge"}, "unknown stem 'huge'"),
        ({"backbone": TINY, "channels": "many"}, "'many' channels"),
        ({"backbone": TINY, "channels": "1"}, "1 of another shape"),
        ({"preprocessing": "{"}, "preprocessing"),
        ({"preprocessing": "3"}, "preprocessing"),
        ({"preprocessing": '{"image_size": "x"}'}, "preprocessing"),
    ],
)
def test_metadata_that_lies_is_named(tmp_path: Path, metadata: dict[str, str], complaint: str) -> None:
    safetensors.torch.save_file(BACKBONE, tmp_path / "w.safetensors", metadata)
    with pytest.raises(WeightsError, match=rf"w\.safetensors.*{complaint}"):
        load_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_torchvisions_own_state_dicts_fit(name: str) -> None:
    """The oracle for the key names: what torchvision itself builds."""
    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    parts = take_apart(Contents(state))
    assert parts.format.name == "torchvision"
    assert set(state) - set(parts.backbone) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(256, dtype=torch.complex64),
        torch.zeros(256).to_sparse(),
        torch.zeros(256, device="meta"),
    ],
    ids=["complex", "sparse", "meta"],
)
def test_tensors_of_other_kinds_are_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(saved(BACKBONE | {"layer4.0.bn2.bias": tensor}))
    with pytest.raises(WeightsError, match=r"w\.pth.*(layer4\.0\.bn2\.bias|damaged)"):
        load_weights(path)


def test_a_tensor_that_only_claims_to_be_large_costs_no_memory(tmp_path: Path) -> None:
    """Its storage is one number; a copy would take 4 TB."""
    path = tmp_path / "w.pth"
    path.write_bytes(saved(BACKBONE | {"bn1.bias": torch.zeros(1).expand(1 << 40)}))
    with pytest.raises(WeightsError, match=r"1 of another shape \(bn1\.bias \(1099511627776,\) instead of \(32,\)\)"):
        load_weights(path)


def test_the_loaded_tensors_belong_to_nobody_else(tmp_path: Path) -> None:
    shared = BACKBONE | {"bn1.bias": BACKBONE["bn1.weight"]}  # one storage under two names
    path = tmp_path / "w.pth"
    path.write_bytes(saved(shared))
    loaded = load_weights(path)
    loaded.backbone["bn1.bias"].zero_()
    assert torch.equal(loaded.backbone["bn1.weight"], BACKBONE["bn1.weight"])
    net = loaded.build()
    net.conv1.weight.data.zero_()
    assert torch.equal(loaded.backbone["conv1.weight"], BACKBONE["conv1.weight"])


def test_counts_are_of_all_keys_and_names_of_the_first_three() -> None:
    expected = {name: torch.zeros(1) for name in "abcdefg"}
    found = {name: torch.zeros(2) for name in "efghijkl"}
    with pytest.raises(WeightsError) as caught:
        match_keys(found, expected, "no")
    assert str(caught.value) == (
        "no: 4 missing (a, b, c, ...); 5 unexpected (h, i, j, ...); 3 of another shape "
        "(e (2,) instead of (1,), f (2,) instead of (1,), g (2,) instead of (1,))"
    )


def test_every_record_names_a_format_and_a_backbone_that_exist() -> None:
    for record in registry().values():
        assert record.format in FORMATS
        assert record.backbone in BACKBONES
