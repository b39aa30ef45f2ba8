"""Our writer and reader of safetensors beside those of the library; what is unsound is in test_faults_weights.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from barlowtwins.core.safetensors_file import DTYPES, read_safetensors, write_safetensors

KINDS = [getattr(torch, name) for name, _ in DTYPES.values()]
TENSORS = {
    **{f"{n}.{kind}": (50 * torch.randn(n, 3)).to(kind) for n in (0, 1, 7) for kind in KINDS},
    "a number": torch.tensor(3),
    "a part": torch.randn(10)[::2],
    "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
}
SAYS = {"format": "pt", "wörter": '"{}"'}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_library_writes_the_same_numbers_in_the_same_places(tmp_path: Path, dtype: torch.dtype) -> None:
    write_safetensors(tmp_path / "ours", TENSORS, SAYS, dtype=dtype)
    plain = {key: (t.to(dtype) if t.is_floating_point() else t).contiguous() for key, t in TENSORS.items()}
    (ours, data), (theirs, expected) = (_parts(whole) for whole in ((tmp_path / "ours").read_bytes(), save(plain)))
    assert ours.pop("__metadata__") == SAYS
    assert list(ours.items()) == list(theirs.items())
    assert data == expected


def test_the_library_reads_it_and_we_read_the_same(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "ours", TENSORS, SAYS)
    with open(tmp_path / "ours", "rb") as file:
        tensors, says = read_safetensors(file)
    with safe_open(tmp_path / "ours", "pt") as theirs:
        assert theirs.metadata() == says == SAYS
        assert set(theirs.keys()) == set(tensors) == set(TENSORS)
        for key, tensor in tensors.items():
            expected = theirs.get_tensor(key)
            assert tensor.dtype == expected.dtype
            assert torch.equal(tensor, expected)


def _parts(whole: bytes) -> tuple[dict[str, object], bytes]:
    start = 8 + int.from_bytes(whole[:8], "little")
    return json.loads(whole[8:start]), whole[start:]
