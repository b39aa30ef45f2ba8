"""The points of a map as a Parquet file, for pandas, Embedding Atlas and FiftyOne."""

# N points, K neighbors of each

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from barlowtwins.core.errors import MissingExtraError
from barlowtwins.core.files import atomic_write
from barlowtwins.embedding.embeddings import Embeddings, IndexRow

__all__ = ["printable", "require_arrow", "write_points"]


def write_points(
    path: Path,
    opened: Embeddings,
    entries: Sequence[IndexRow],
    points: npt.NDArray[np.float32],
    clusters: npt.NDArray[np.int64],
    found: npt.NDArray[np.int64],
    similarity: npt.NDArray[np.float32],
) -> None:
    """Write one row per point: row, path, label, cluster, x, y, neighbors.

    Args:
        path: the file.
        opened: the EMB folder; its root is prepended to each path.
        entries: N rows of its index.
        points: (N, 2).
        clusters: (N,).
        found: (N, K) positions in `entries`. The file has the layout of Embedding Atlas: `neighbors` holds ids, which
            are row numbers of this file, and distances.
        similarity: (N, K) cosine.

    Raises:
        MissingExtraError: pyarrow is not installed.
        OutputError: the file cannot be written.
    """
    arrow, parquet = require_arrow()
    root = opened.meta["root"]
    paths = [entry.path if root is None else str(Path(root) / entry.path) for entry in entries]
    near = [
        {"ids": ids, "distances": distances}
        for ids, distances in zip(found.tolist(), (1 - similarity).tolist(), strict=True)
    ]
    kind = arrow.struct([("ids", arrow.list_(arrow.int64())), ("distances", arrow.list_(arrow.float32()))])
    table = arrow.table(
        {
            "row": arrow.array([entry.row for entry in entries], arrow.int64()),
            "path": arrow.array([printable(path) for path in paths], arrow.string()),
            "label": arrow.array([printable(entry.label) for entry in entries], arrow.string()),
            "cluster": arrow.array(clusters.tolist(), arrow.int64()),
            "x": arrow.array(points[:, 0], arrow.float32()),
            "y": arrow.array(points[:, 1], arrow.float32()),
            "neighbors": arrow.array(near, kind),
        }
    )
    with atomic_write(path) as file:
        parquet.write_table(table, file)


def printable(value: str) -> str:
    """Return text that is valid UTF-8: other bytes become escapes."""
    return value.encode("utf-8", "backslashreplace").decode()


def require_arrow() -> tuple[Any, Any]:
    """Return pyarrow and pyarrow.parquet, or raise MissingExtraError."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise MissingExtraError("pyarrow", "parquet") from None
    return pyarrow, pyarrow.parquet
