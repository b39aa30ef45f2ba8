"""Which runtime runs a network. (What each of them does: test_onnx_runtime.py, test_compiled.py.)"""

from __future__ import annotations

import pytest
import torch

from barlowtwins.core.errors import ConfigError
from barlowtwins.embedding import compiled, onnx_runtime
from barlowtwins.embedding.runtime import require_runtime, what_pays

CPU, GPU, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
FEW, MANY = onnx_runtime.WORTH, compiled.WORTH


@pytest.mark.parametrize(
    ("device", "precision", "images", "runtime"),
    [
        (GPU, "bf16", MANY, "compiled"),
        (GPU, "bf16", MANY - 1, "torch"),
        (GPU, "bf16", None, "torch"),
        (MPS, "fp32", MANY, "torch"),
        (CPU, "fp32", FEW, "onnx"),
        (CPU, "fp32", FEW - 1, "torch"),
        (CPU, "fp32", None, "torch"),
        (CPU, "bf16", MANY, "torch"),
    ],
)
def test_auto_takes_what_is_paid_back(
    device: torch.device, precision: str, images: int | None, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_runtime, "installed", lambda: True)
    assert what_pays(device, precision, images) == runtime
    monkeypatch.setattr(onnx_runtime, "installed", lambda: False)
    assert what_pays(device, precision, images) == ("torch" if runtime == "onnx" else runtime)


def test_there_are_these_and_no_others() -> None:
    for name in ("auto", "torch", "onnx", "compiled"):
        require_runtime(name)
    with pytest.raises(ConfigError, match="no runtime 'tpu'; use 'auto', 'torch', 'onnx' or 'compiled'"):
        require_runtime("tpu")
