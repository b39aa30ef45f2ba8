"""An EMB folder as an interactive map: points in a plane, in one HTML file that needs no network.

The page is a canvas and a short script instead of a plotting library: these add a megabyte each, draw 50,000 points
slowly, or keep the tooltip images of all points in memory.
"""

# N rows that hold features, D of them, K neighbors

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from barlowtwins.config import MapConfig
from barlowtwins.core.device import resolve_workers
from barlowtwins.core.errors import DataError
from barlowtwins.core.files import write_text
from barlowtwins.core.printing import data_size, plural
from barlowtwins.core.progress import Progress, say
from barlowtwins.embedding.embeddings import OK, Embeddings, open_embeddings
from barlowtwins.metrics.nearest import CHUNK, chunks, unit_rows
from barlowtwins.reports.pages import base64_of, json_block, page, shipped
from barlowtwins.reports.points_file import printable, require_arrow, write_points
from barlowtwins.reports.projection import REDUCED, cluster, pca, project, require_method
from barlowtwins.reports.thumbnails import Sheets, images_of, sheets

__all__ = ["MapResult", "map"]

EDGE = 0.002  # fraction of points at each end of an axis that may be outside of the initial view
QUERIES = 256  # rows per neighbor search
METHODS = {"pca": "principal components", "tsne": "t-SNE", "umap": "UMAP"}


@dataclass(frozen=True)
class MapResult:
    """Result of `map`."""

    out: str
    points: int
    """Number of rows with features; other rows are not on the map."""
    thumbnails: int
    """Number of points with a thumbnail."""
    bytes: int
    export: str | None
    seconds: float

    def summary(self) -> str:
        pictures = plural(self.thumbnails, "thumbnail") if self.thumbnails else "no thumbnails"
        also = f"; points exported to {self.export}" if self.export else ""
        points = plural(self.points, "point")
        return f"{self.out}: {points}, {pictures}, {data_size(self.bytes)} ({self.seconds:.0f} s){also}"


def map(config: MapConfig) -> MapResult:
    """Draw an EMB folder as an HTML map, and optionally export its points for other tools.

    Raises:
        DataError: the folder is not an EMB folder, or no row has features.
        MissingExtraError: the method or the export needs a package that is not installed.
        OutputError: a file cannot be written.
    """
    started = time.monotonic()
    require_method(config.method)
    if config.export:
        require_arrow()
    opened = open_embeddings(config.embeddings)
    entries = [entry for entry in opened.index() if entry.status == OK]
    if not entries:
        raise DataError(f"no row of {opened.folder} has features; see its index.csv for the reason")
    rows = np.fromiter((entry.row for entry in entries), np.int64, len(entries))
    features = opened.features if len(rows) == len(opened.features) else opened.features[rows]  # (N, D)

    say(f"{plural(len(rows), 'point')} by {METHODS[config.method]} ...")
    components = pca(features, REDUCED)  # (N, <= REDUCED)
    points = project(components, config.method, seed=config.seed)  # (N, 2)
    labelled = any(entry.label for entry in entries)
    clusters = cluster(components, config.clusters, seed=config.seed)  # (N,)
    found, similarity = _neighbours(features, min(config.neighbours, len(rows) - 1))  # (N, K) each
    pictures = _pictures(config, opened, rows)

    by_label = labelled and config.colour != "cluster"
    if config.colour == "label" and not labelled:
        raise DataError(f"{opened.folder} has no labels; use --colour cluster")
    names = (
        sorted({entry.label for entry in entries}) if by_label else [f"cluster {i + 1}" for i in range(config.clusters)]
    )
    place = {name: number for number, name in enumerate(names)}
    kinds = [place[entry.label] for entry in entries] if by_label else clusters.tolist()
    data = {
        "title": opened.folder.absolute().name,
        "about": f"{opened.meta['data']}, {opened.meta['weights_name']}, {METHODS[config.method]}",
        "n": len(rows),
        "points": base64_of(points.astype(np.float32)),
        "view": [*np.quantile(points, EDGE, axis=0).tolist(), *np.quantile(points, 1 - EDGE, axis=0).tolist()],
        "kinds": base64_of(np.asarray(kinds, np.int32)),
        "names": [printable(name) or "(no label)" for name in names],
        "by": "label" if by_label else "cluster",
        "rows": base64_of(rows.astype(np.int32)),
        "paths": [printable(entry.path) for entry in entries],
        "labels": [printable(entry.label) for entry in entries] if labelled and not by_label else [],
        "k": found.shape[1],
        "neighbours": base64_of(found.astype(np.int32)),
        "similarity": base64_of(np.rint(similarity * 100).astype(np.int8)),
        "thumbnails": {"side": pictures.side, "across": pictures.across, "count": pictures.count},
    }
    write_text(config.out, _page(data, pictures))
    if config.export:
        write_points(Path(config.export), opened, entries, points, clusters, found, similarity)
    size = Path(config.out).stat().st_size
    return MapResult(config.out, len(rows), pictures.count, size, config.export, seconds=time.monotonic() - started)


def _neighbours(features: npt.NDArray[np.float32], k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the k other rows nearest to each row by cosine, and their similarity: (N, K) each."""
    n = len(features)
    if k < 1:
        return np.empty((n, 0), np.int64), np.empty((n, 0), np.float32)
    found, near = np.empty((n, k), np.int64), np.empty((n, k), np.float32)
    unit = torch.cat([unit_rows(block)[0] for _, block in chunks(features, CHUNK, torch.device("cpu"))])  # (N, D)
    with Progress(n, desc="neighbors", unit="row") as progress:
        for start in range(0, n, QUERIES):
            similarity = unit[start : start + QUERIES] @ unit.T  # (q, N)
            similarity.diagonal(start).fill_(-torch.inf)  # a row is not its own neighbor
            values, rows = similarity.topk(k)  # (q, K); the order of equal values does not matter here
            found[start : start + len(rows)], near[start : start + len(rows)] = rows.numpy(), values.numpy()
            progress.update(len(rows))
    return found, near


def _pictures(config: MapConfig, opened: Embeddings, rows: npt.NDArray[np.int64]) -> Sheets:
    none = Sheets(0, 1, [], 0)
    if not config.thumbnails:
        return none
    try:
        source = images_of(opened, config.data_root, config.data)
    except DataError as error:
        say(f"warning: the map has no thumbnails: {error}")
        return none
    if source is None:
        say(f"warning: cannot find the images of {opened.meta['data']} (see --data-root); the map has no thumbnails")
        return none
    workers = resolve_workers(config.workers)
    made = sheets(source, rows.tolist(), budget=int(config.thumbnails * 1e6), workers=workers)
    if made.count < len(rows):
        say(f"{made.count:,} of {len(rows):,} points have thumbnails; --thumbnails allows {config.thumbnails:g} MB")
    elif made.small:
        say(f"thumbnails have {made.side} pixels to fit into {config.thumbnails:g} MB; raise --thumbnails for more")
    return made


def _page(data: dict[str, Any], pictures: Sheets) -> str:
    """Return the page; it contains the thumbnail sheets as text, which the script decodes on demand."""
    blocks = [json_block("data", data)]
    blocks += [f'<script type="text/plain" id="sheet{i}">{file}</script>' for i, file in enumerate(pictures.files)]
    return page(
        f"{data['title']} - map", "\n".join([shipped("map.html"), *blocks]), styles=["map.css"], script="map.js"
    )
