"""Embedding with ONNX Runtime: the features of torch, a cache that is never trusted blindly, one runtime a folder."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import write_images, write_weights
from torch import nn

from barlowtwins.config import EmbedConfig
from barlowtwins.core.errors import ConfigError, MissingExtraError, OutputError, WeightsError
from barlowtwins.embedding import onnx_runtime
from barlowtwins.embedding.embed import embed
from barlowtwins.embedding.embedder import load_embedder
from barlowtwins.embedding.onnx_runtime import PARITY, graph_path, onnx_program
from barlowtwins.embedding.parity import parity
from barlowtwins.zoo.weights import load_weights

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return tmp_path / "cache"


def images(n: int) -> torch.Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(7))


def close(given: np.ndarray, expected: np.ndarray) -> None:
    assert (np.abs(given - expected) / np.abs(expected).max(axis=1, keepdims=True)).max() <= PARITY


def test_features_are_those_of_torch_whatever_the_batch_size(weights: Path) -> None:
    plain = load_embedder(weights, device="cpu", runtime="torch")
    fast = load_embedder(weights, device="cpu", runtime="onnx")
    assert (plain.runtime, fast.runtime) == ("torch", "onnx")
    expected = plain.backbone(images(13)).detach().numpy()
    for batch_size in (1, 5, 13):
        close(fast.encode(images(13), batch_size=batch_size), expected)
        close(plain.encode(images(13), batch_size=batch_size), expected)


def test_the_graph_is_built_once_and_a_damaged_one_anew(
    weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load_weights(weights)
    network, how = loaded.build().eval(), loaded.preprocessing
    onnx_program(network, how, loaded.sha256, folder=cache)
    path = graph_path(how, loaded.sha256, cache)
    assert sorted(cache.iterdir()) == sorted([path, path.with_suffix(".sha256")])
    whole = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("barlowtwins.embedding.onnx_runtime.to_onnx", None)  # not needed a second time
        assert parity(network, onnx_program(network, how, loaded.sha256, folder=cache), how) <= PARITY
    path.write_bytes(whole[:-100] + bytes(100))
    assert parity(network, onnx_program(network, how, loaded.sha256, folder=cache), how) <= PARITY
    assert "does not have its digest" in caplog.text
    path.with_suffix(".sha256").unlink()  # killed between the two files: not trusted either
    path.write_bytes(b"nonsense")
    onnx_program(network, how, loaded.sha256, folder=cache)
    assert len(path.read_bytes()) == len(whole)


def test_a_cached_graph_of_other_features_is_not_used(weights: Path, cache: Path) -> None:
    loaded = load_weights(weights)
    onnx_program(loaded.build().eval(), loaded.preprocessing, "ab" * 32, folder=cache)
    other = loaded.build().eval()
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    program = onnx_program(other, loaded.preprocessing, "ab" * 32, folder=cache)  # says that it is the same
    assert parity(other, program, loaded.preprocessing) <= PARITY


class Moody(nn.Module):
    """Other features at each call: no program can have them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) * torch.rand(())


class Opaque(nn.Module):
    """ONNX has no singular values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(x).flatten(1)


def test_a_network_that_it_cannot_run_is_an_error_for_onnx_and_a_warning_for_auto(
    weights: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    how = load_weights(weights).preprocessing
    with pytest.raises(WeightsError, match="gives features that differ by"):
        onnx_program(Moody(), how, "")

    with pytest.raises(WeightsError, match=r"ONNX Runtime cannot run this network .*; use --runtime torch"):
        onnx_program(Opaque(), how, "")

    def refused(*_: object) -> None:
        raise WeightsError("its features differ")

    monkeypatch.setattr(onnx_runtime, "onnx_program", refused)
    with caplog.at_level(logging.WARNING):
        assert load_embedder(weights, device="cpu", runtime="auto", images=512).runtime == "torch"
    assert "torch runs the network: its features differ" in caplog.text
    with pytest.raises(WeightsError, match="its features differ"):
        load_embedder(weights, device="cpu", runtime="onnx")


def test_auto_takes_it_where_it_pays(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_embedder(weights, device="cpu", runtime="auto", images=512).runtime == "onnx"
    assert load_embedder(weights, device="cpu", runtime="auto", images=511).runtime == "torch"
    assert load_embedder(weights, device="cpu", runtime="auto").runtime == "torch"
    monkeypatch.setattr("barlowtwins.embedding.onnx_runtime.importlib.util.find_spec", lambda name: None)
    assert load_embedder(weights, device="cpu", runtime="torch").runtime == "torch"
    with pytest.raises(MissingExtraError, match=r"barlowtwins\[onnx\]"):
        onnx_program(nn.Identity(), load_weights(weights).preprocessing, "")


def test_what_cannot_be_asked_for(weights: Path) -> None:
    with pytest.raises(ConfigError, match="there is no runtime 'tpu'"):
        load_embedder(weights, device="cpu", runtime="tpu")
    with pytest.raises(ConfigError, match="runs in fp32 on a CPU, not in bf16"):
        load_embedder(weights, device="cpu", precision="bf16", runtime="onnx")


def test_a_folder_has_the_rows_of_one_runtime(weights: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "images", 12)
    config = EmbedConfig(str(data), str(weights), str(tmp_path / "out"), device="cpu", workers=0, runtime="onnx")
    embed(config, shard_rows=4)
    out = tmp_path / "out"
    rows, meta = np.load(out / "embeddings.npy"), json.loads((out / "meta.json").read_text())
    assert meta["runtime"] == "onnx"
    close(rows, load_embedder(weights, device="cpu").encode(data))

    begun = tmp_path / "begun"  # a run that was stopped before its first shard
    record = {name: meta[name] for name in meta if name not in ("rows", "versions")}
    (begun / "shards").mkdir(parents=True)
    (begun / "shards" / "job.json").write_text(json.dumps(record))
    with pytest.raises(OutputError, match="unfinished embeddings made with other --runtime"):
        embed(replace(config, out=str(begun), runtime="torch"), shard_rows=4)
    embed(replace(config, out=str(begun), runtime="auto"), shard_rows=4)  # few images: only the record asks for onnx
    assert (begun / "embeddings.npy").read_bytes() == (out / "embeddings.npy").read_bytes()
