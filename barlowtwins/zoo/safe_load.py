"""The contents of a weight file, without running anything that is in it.

Two containers are told apart by their first bytes: what `torch.save` writes (read by `core.torch_file`, which knows
tensors and plain data and calls nothing), and safetensors (read by `core.safetensors_file`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from barlowtwins.core.errors import WeightsError
from barlowtwins.core.readers import UnsoundFile, open_regular
from barlowtwins.core.safetensors_file import read_safetensors
from barlowtwins.core.torch_file import ForeignClass, read_torch_file

__all__ = ["Contents", "read_weight_file"]


@dataclass(frozen=True)
class Contents:
    """What a weight file holds.

    Args:
        value: a mapping of names to tensors, or whatever else plain data was saved.
        metadata: safetensors' own strings; empty for a pickle.
    """

    value: Any
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_weight_file(path: Path) -> Contents:
    """Read a weight file of either container onto the CPU.

    Raises:
        WeightsError: it is missing, damaged or no weight file, or it needs a class that is not on the list; the
            message names that class. Nothing of the file was run.
    """
    try:
        with open_regular(path) as file:
            start = file.read(9)
            if start[8:] == b"{":
                return Contents(*_read_safetensors(file, path))
            if start[:2] == b"PK" or start[:1] == b"\x80":
                return Contents(_read_pickle(file, path))
    except FileNotFoundError:
        raise WeightsError(f"there is no weight file {path}; give an existing one") from None
    except UnsoundFile as error:
        raise WeightsError(f"{path} is not a weight file: {error}; give one") from error
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}; make it readable") from error
    if not start:
        raise WeightsError(f"{path} is empty (0 bytes); fetch or copy it again")
    raise WeightsError(
        f"{path} is not a weight file: it begins with {start!r}, neither as torch.save nor as safetensors "
        f"write; fetch or copy it again"
    )


def _read_pickle(file: IO[bytes], path: Path) -> Any:
    try:
        return read_torch_file(file)
    except ForeignClass as error:
        raise WeightsError(
            f"{path} holds {error}, which is neither a tensor nor plain data and could run code: refused. "
            "Ask its maker for the state dict alone, best as safetensors"
        ) from error
    except UnsoundFile as error:
        raise WeightsError(f"{path} is damaged or not a weight file ({error}); fetch or copy it again") from error


def _read_safetensors(file: IO[bytes], path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        return read_safetensors(file)
    except UnsoundFile as error:
        raise WeightsError(f"{path} is not sound safetensors: {error}; fetch or copy it again") from error
