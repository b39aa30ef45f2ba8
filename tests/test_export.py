"""Exported programs give the backbone's features for any number of images, and exported files fit other programs."""

from __future__ import annotations

import io
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file
from tiny import write_weights
from weight_files import backbone_state, equal, saved

from barlowtwins.cli import main
from barlowtwins.config import ExportConfig
from barlowtwins.core.errors import MissingExtraError, OutputError, WeightsError
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.zoo.conversion import WRITERS
from barlowtwins.zoo.export import ExportResult, _compare, export
from barlowtwins.zoo.weights import load_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A resnet10_x0_5 for 8 x 8 pixels."""
    return write_weights(tmp_path_factory.mktemp("weights") / "w.safetensors")


def _export(weights: Path, out: Path, format: Any, **options: Any) -> ExportResult:
    return export(ExportConfig(str(weights), str(out), format, **options))


def _images(n: int, side: int = 8) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(n))


def _expected(weights: Path, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return load_weights(weights).build()(images)


def test_onnx_runtime_gives_the_same_features_for_any_number_of_images(weights: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    made = _export(weights, tmp_path / "net.onnx", "onnx")
    assert (made.features, made.input) == (256, "(N, 3, 8, 8)")
    assert made.difference is not None and made.difference < 1e-5
    session = runtime.InferenceSession(made.out, providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, given.name) == ("images", "features")
    assert isinstance(taken.shape[0], str) and taken.shape[1:] == [3, 8, 8]
    assert given.shape[1:] == [256]
    for n in (1, 2, 7, 33):
        features = session.run(None, {"images": _images(n).numpy()})[0]
        np.testing.assert_allclose(features, _expected(weights, _images(n)).numpy(), rtol=1e-4, atol=1e-5)
    said = {prop.key: prop.value for prop in onnx.load(made.out).metadata_props}
    assert Preprocessing.from_dict(json.loads(said["preprocessing"])) == load_weights(weights).preprocessing
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]  # no second file with the numbers


def test_a_grid_of_means_is_exported_too(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    name = "resnet8-fashion-mnist"  # comes with the package
    images = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = load_weights(name).build()(images)
    made = export(ExportConfig(name, str(tmp_path / "net.onnx"), "onnx"))
    assert (made.features, made.input) == (2048, "(N, 1, 28, 28)")
    features = runtime.InferenceSession(made.out, providers=["CPUExecutionProvider"]).run(
        None, {"images": images.numpy()}
    )
    np.testing.assert_allclose(features[0], expected.numpy(), rtol=1e-3, atol=1e-4)
    program = torch.export.load(export(ExportConfig(name, str(tmp_path / "net.pt2"), "torch-export")).out).module()
    torch.testing.assert_close(program(images), expected, rtol=1e-4, atol=1e-5)


def test_torch_export_and_torchscript(weights: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    exported = _export(weights, tmp_path / "net.pt2", "torch-export")
    traced = _export(weights, tmp_path / "net.pt", "torchscript")
    assert "deprecated" in traced.notes[0]
    assert not recwarn.list  # torch's own words about it included
    extra = {"preprocessing": ""}
    program = torch.export.load(exported.out, extra_files=extra).module()
    assert Preprocessing.from_dict(json.loads(extra["preprocessing"])) == load_weights(weights).preprocessing
    for n in (1, 2, 7):
        torch.testing.assert_close(program(_images(n)), _expected(weights, _images(n)))


def test_torchscript_runs_where_torch_still_loads_it(weights: Path, tmp_path: Path) -> None:
    made = _export(weights, tmp_path / "net.pt", "torchscript", image_size=16)
    assert made.input == "(N, 3, 16, 16)"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        loaded = torch.jit.load(io.BytesIO(made.out.read_bytes()))
        for n in (1, 5):
            torch.testing.assert_close(loaded(_images(n, 16)), _expected(weights, _images(n, 16)))


@pytest.mark.parametrize("format", ["safetensors", "torchvision", "timm", "detectron2"])
def test_weight_files_are_those_of_convert(tmp_path: Path, format: str) -> None:
    state = backbone_state("resnet18")
    (tmp_path / "in.pth").write_bytes(saved(state))
    made = _export(tmp_path / "in.pth", tmp_path / "out", format)
    assert (made.backbone, made.features, made.difference) == ("resnet18", None, None)
    if format == "timm":
        timm = pytest.importorskip("timm", reason="the extra timm is not installed")
        net = timm.create_model("resnet18", num_classes=0)
        net.load_state_dict(load_file(made.out), strict=True)
        assert equal(net.state_dict(), state)
    elif format == "torchvision":
        net = torchvision.models.resnet18()
        net.fc = torch.nn.Identity()
        net.load_state_dict(torch.load(made.out, weights_only=True), strict=True)
    elif format == "safetensors":
        assert equal(load_weights(made.out).backbone, state)
    assert format in WRITERS


def test_a_program_that_gives_other_features_is_refused(weights: Path) -> None:
    loaded = load_weights(weights)
    net = loaded.build()
    assert _compare(net, net, loaded.preprocessing) == 0
    with pytest.raises(WeightsError, match="gives other features"):
        _compare(net, lambda images: net(images) * 1.01, loaded.preprocessing)
    with pytest.raises(WeightsError, match="gives other features"):
        _compare(net, lambda images: net(images) * float("nan"), loaded.preprocessing)


def test_the_command(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "--weights", str(weights), "--out", str(tmp_path / "w.pth"), "--format", "torchvision", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["backbone"] == "resnet10_x0_5"
    assert main(words) == 1 and "exists" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    with pytest.raises(OutputError, match="exists"):
        _export(weights, tmp_path / "w.pth", "torch-export")


def test_without_the_extra_the_message_names_it(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # importing it fails from here on
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"'onnx' is not installed; run: pip install 'barlowtwins\[onnx\]'"):
        _export(weights, tmp_path / "net.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []
