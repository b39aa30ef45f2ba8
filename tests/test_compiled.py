"""Embedding with the compiled network: the features of the plain one, or an error that says what to do."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import write_images, write_weights
from torch import nn

from barlowtwins.config import EmbedConfig
from barlowtwins.core.errors import WeightsError
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.embedding import runtime
from barlowtwins.embedding.compiled import PARITY, compiled_program
from barlowtwins.embedding.embed import embed
from barlowtwins.embedding.embedder import load_embedder

CPU = torch.device("cpu")
SMALL = Preprocessing(8, None)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "tiny.safetensors")


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="torch needs a C++ compiler here")
@pytest.mark.filterwarnings("default")  # of the compiler, about its own parts
def test_features_are_those_of_the_plain_network_whatever_the_batch_size(weights: Path, tmp_path: Path) -> None:
    plain, fast = (load_embedder(weights, device="cpu", runtime=name) for name in ("torch", "compiled"))
    images = torch.randn(13, 3, 8, 8, generator=torch.Generator().manual_seed(7))
    expected = plain.encode(images)
    with torch.compiler.set_stance("fail_on_recompile"):  # once for all sizes
        for batch_size in (13, 5, 4, 1):
            given = fast.encode(images, batch_size=batch_size)
            assert (np.abs(given - expected) / np.abs(expected).max(1, keepdims=True)).max() <= PARITY["fp32"]

    data = write_images(tmp_path / "images", 6)
    out = tmp_path / "out"
    embed(EmbedConfig(str(data), str(weights), str(out), device="cpu", workers=0, batch_size=4, runtime="compiled"))
    assert json.loads((out / "meta.json").read_text())["runtime"] == "compiled"
    np.testing.assert_allclose(np.load(out / "embeddings.npy"), plain.encode(data), rtol=1e-3, atol=1e-4)


class Moody(nn.Module):
    """Other features at each call: no program can have them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) * torch.rand(())


def test_a_network_that_gives_other_features_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda network: network)  # the comparison is the same
    with pytest.raises(WeightsError, match=r"compiled in fp32 .* differ by .* more than 0\.0001; use --runtime torch"):
        compiled_program(Moody(), SMALL, CPU, "fp32")


def test_a_network_that_cannot_be_compiled_is_an_error_or_for_auto_a_warning(
    weights: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no C++ compiler\nis here")

    monkeypatch.setattr(torch, "compile", lambda network: no_compiler)
    with pytest.raises(WeightsError, match=r"cannot compile this network here \(no C\+\+ compiler\); use --runtime"):
        load_embedder(weights, device="cpu", runtime="compiled")
    monkeypatch.setattr(runtime, "what_pays", lambda *_: "compiled")
    with caplog.at_level(logging.WARNING):
        assert load_embedder(weights, device="cpu", runtime="auto", images=1).runtime == "torch"
    assert "torch runs the network: torch cannot compile" in caplog.text
