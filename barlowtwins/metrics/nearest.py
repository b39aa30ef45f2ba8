"""Exact nearest neighbors by cosine similarity: deterministic, in bounded memory.

Bank and queries are read in chunks, so both can be memory-mapped files larger than the memory.
"""

# Q queries, M rows in the bank, D features, K neighbors

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch

from barlowtwins.core.device import autocast
from barlowtwins.core.errors import ConfigError, DataError
from barlowtwins.core.matmul import matmul

__all__ = ["CHUNK", "Features", "chunks", "nearest", "place_of", "unit_rows"]

Features: TypeAlias = "torch.Tensor | np.ndarray[Any, np.dtype[Any]]"

CHUNK = 2048  # rows of bank and queries per tile; a tile of similarities and its keys takes about 100 MB
HELD = 8  # chunks of queries per chunk of the bank, which is then read and scaled once for all of them


@torch.no_grad()
def nearest(
    bank: Features,
    queries: Features,
    k: int,
    *,
    chunk: int = CHUNK,
    device: torch.device | str | None = None,
    after_chunk: Callable[[int], object] = lambda queries: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the `k` rows of the bank with the highest cosine similarity to each query.

    Equal similarities are ordered by row number, so the result depends only on the inputs. A row of zeros has
    similarity 0 to all rows. Rows with NaN or infinity, such as those of unreadable images, are never neighbors.

    Args:
        bank: (M, D) of any float type, a tensor or an array; a memory-mapped one is read once per 8 `chunk` queries.
        queries: (Q, D), all finite.
        k: 1 to M.
        chunk: rows per tile of similarities; memory is about chunk * (36 D + 64 k + 28 chunk) bytes.
        device: where to compute; the device of the bank by default (the CPU for arrays).
        after_chunk: called after each chunk of the bank with its share of the queries; Q in total.

    Returns:
        similarity (Q, k) float32 in [-1, 1] up to rounding, highest first, and row numbers (Q, k) int64, on `device`.

    Raises:
        ConfigError: `k` exceeds the number of usable rows, or the widths differ.
        DataError: a query is not finite.
    """
    if queries.shape[1:] != bank.shape[1:]:
        raise ConfigError(
            f"queries have {queries.shape[1]} features and the bank has {bank.shape[1]}; use the same network for both"
        )
    if not 1 <= k <= len(bank):
        raise ConfigError(f"k is {k}, but the bank has {len(bank)} rows; choose k from 1 to {len(bank)}")
    place = place_of(bank, device)
    blocks = [_nearest_block(bank, block, k, chunk, after_chunk) for _, block in chunks(queries, HELD * chunk, place)]
    if not blocks:
        return torch.empty(0, k, device=place), torch.empty(0, k, dtype=torch.int64, device=place)
    similarity, rows = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return similarity, rows  # (Q, k), (Q, k)


def _nearest_block(
    bank: Features, queries: torch.Tensor, k: int, chunk: int, after_chunk: Callable[[int], object]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare a block of queries (q, D) with the whole bank, keeping the k best keys; sorted at the end."""
    queries, finite = unit_rows(queries)
    if not finite.all():
        raise DataError(f"{int((~finite).sum())} of {len(queries)} queries contain NaN or infinity; remove those rows")
    tiles = queries.split(chunk)
    best = [torch.empty(len(tile), 0, dtype=torch.int64, device=queries.device) for tile in tiles]
    usable = done = 0
    for start, block in chunks(bank, chunk, queries.device):
        block, finite = unit_rows(block)  # (m, D), (m,)
        usable += int(finite.sum())
        damaged = None if finite.all() else ~finite
        for place, tile in enumerate(tiles):
            with autocast(queries.device, "fp32"):
                similarity = matmul(tile, block.T)  # (q, m)
            if damaged is not None:
                similarity.masked_fill_(damaged, -torch.inf)
            best[place] = _keep_best(best[place], similarity, start, k)
        passed = len(queries) * (start + len(block)) // len(bank)
        after_chunk(passed - done)
        done = passed
    if usable < k:
        raise ConfigError(f"k is {k}, but the bank has {usable} usable rows; choose k up to {usable}")
    return _unpack(torch.cat(best).sort(dim=1, descending=True).values)


def _keep_best(best: torch.Tensor, similarity: torch.Tensor, start: int, k: int) -> torch.Tensor:
    """Return the k highest of keys (q, <= k) and of similarities (q, m) to the rows from `start`, unsorted."""
    full = best.shape[1] == k  # then few rows of a chunk exceed the worst one kept
    fresh = _better(similarity, start, _unpack(best.amin(1, keepdim=True))[0]) if full else _pack(similarity, start)
    keys = torch.cat([best, fresh], dim=1)  # (q, <= k + m)
    return keys.topk(min(k, keys.shape[1]), dim=1, sorted=False).values


def _better(similarity: torch.Tensor, start: int, worst: torch.Tensor) -> torch.Tensor:
    """Return keys (q, <= m) of the similarities (q, m) above `worst` (q, 1), rows padded with -1 << 63.

    Sorting only these is much faster. The result is the same: a later row with an equal similarity would lose against
    the worst one kept.
    """
    query, column = (similarity > worst).nonzero(as_tuple=True)  # in query order
    counts = torch.bincount(query, minlength=len(similarity))
    keys = _pack(similarity[query, column][:, None], 0)[:, 0] - (start + column)  # row numbers are stored negated
    within = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
    widest = int(counts.max())
    padded = torch.full((len(similarity), widest), -(1 << 63), dtype=torch.int64, device=query.device)
    padded[query, within] = keys
    return padded  # (q, widest)


def unit_rows(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale rows (n, D) to unit length; rows of zeros stay zero. Also return which rows are finite, (n,) bool."""
    features = features.float()
    low, high = features.amin(1, keepdim=True), features.amax(1, keepdim=True)  # ten times as fast as aminmax
    largest = torch.maximum(-low, high)  # avoids overflow and underflow of the squares
    scaled = features / torch.where(largest > 0, largest, 1.0)
    norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True).clamp_min(1e-12)
    return scaled.div_(norm), largest[:, 0].isfinite()


def _pack(similarity: torch.Tensor, start: int) -> torch.Tensor:
    """Pack similarities (q, m) to rows start..start+m into int64 keys that sort by similarity, then by row number.

    `topk` does not define which of equal values it returns, and keys are unique. The upper half holds the bits of the
    float, mapped to an integer of the same order; the lower half holds the negated row number.
    """
    bits = similarity.add_(0.0).view(torch.int32)  # + 0 turns -0.0 into 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    rows = torch.arange(start, start + similarity.shape[1], device=similarity.device)
    return (ordered.long() << 32) | (0xFFFFFFFF - rows)


def _unpack(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    ordered = (keys >> 32).int()
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return bits.view(torch.float32), 0xFFFFFFFF - (keys & 0xFFFFFFFF)


def chunks(features: Features, size: int, device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (first row, rows (<= size, D) float32 on `device`); only these are read from a memory-mapped array."""
    for start in range(0, len(features), size):
        part = features[start : start + size]
        if isinstance(part, np.ndarray):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
                part = torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32))
        yield start, part.to(device, torch.float32)


def place_of(features: Features, device: torch.device | str | None = None) -> torch.device:
    """Return `device` if given, else the device of a tensor, or the CPU for an array."""
    if device is not None:
        return torch.device(device)
    return features.device if isinstance(features, torch.Tensor) else torch.device("cpu")
