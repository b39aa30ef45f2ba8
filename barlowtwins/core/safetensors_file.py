"""Weight files as this package writes them: safetensors, float32 unless told, with strings that say what they are."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import torch
from torch import Tensor

from barlowtwins.core.files import atomic_write

__all__ = ["write_safetensors"]


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write tensors atomically, floating-point ones as `dtype`, from whatever device they are on.

    The same tensors and strings make the same bytes, so that a digest says whether two files are one.

    Raises:
        OutputError: the file cannot be written.
    """
    from safetensors.torch import save

    plain = {
        key: value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous()
        for key, value in tensors.items()
    }
    data = memoryview(save(plain))
    start = 8 + int.from_bytes(data[:8], "little")
    header = {"__metadata__": dict(metadata), **json.loads(bytes(data[8:start]))}  # `save` itself would shuffle them
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(data[start:])
