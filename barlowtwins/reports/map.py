"""An EMB folder as a map to explore: points of a plane on a canvas, in one page that needs no network.

The page is a canvas and three hundred lines of script rather than a plotting library's: those bring a megabyte each,
draw 50,000 points slowly, or hold a tooltip's picture for each of them at once.
"""

# N rows that hold features, D of them, K neighbours

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from barlowtwins.config import MapConfig
from barlowtwins.core.device import default_workers
from barlowtwins.core.errors import DataError
from barlowtwins.core.files import write_text
from barlowtwins.core.printing import data_size, plural
from barlowtwins.core.progress import Progress, say
from barlowtwins.embedding.embeddings import OK, Embeddings, open_embeddings
from barlowtwins.metrics.nearest import CHUNK, chunks, unit_rows
from barlowtwins.reports.pages import base64_of, json_block, page, shipped
from barlowtwins.reports.points_file import require_arrow, spelt, write_points
from barlowtwins.reports.projection import REDUCED, cluster, pca, project, require_method
from barlowtwins.reports.thumbnails import Sheets, images_of, sheets

__all__ = ["MapResult", "map"]

EDGE = 0.002  # of the points at each end of an axis may lie outside of the first view
QUERIES = 256  # rows whose neighbours are looked for at once
METHODS = {"pca": "principal components", "tsne": "t-SNE", "umap": "UMAP"}


@dataclass(frozen=True)
class MapResult:
    """What `map` made."""

    out: str
    points: int
    """Rows with features; the others are not on the map."""
    thumbnails: int
    """Points that have one."""
    bytes: int
    export: str | None
    seconds: float

    def summary(self) -> str:
        pictures = plural(self.thumbnails, "thumbnail") if self.thumbnails else "no thumbnails"
        also = f"; the points for other tools are in {self.export}" if self.export else ""
        points = plural(self.points, "point")
        return f"{self.out}: {points}, {pictures}, {data_size(self.bytes)} ({self.seconds:.0f} s){also}"


def map(config: MapConfig) -> MapResult:
    """Draw an EMB folder as a page, and perhaps write its points for other tools.

    Raises:
        DataError: no EMB folder, or none of its rows holds features.
        MissingExtraError: the method, or the export, needs what is not installed.
        OutputError: a file cannot be written.
    """
    started = time.monotonic()
    require_method(config.method)
    if config.export:
        require_arrow()
    opened = open_embeddings(config.embeddings)
    entries = [entry for entry in opened.index() if entry.status == OK]
    if not entries:
        raise DataError(f"no row of {opened.folder} holds features; its index.csv says why")
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
        "names": [spelt(name) or "(no label)" for name in names],
        "by": "label" if by_label else "cluster",
        "rows": base64_of(rows.astype(np.int32)),
        "paths": [spelt(entry.path) for entry in entries],
        "labels": [spelt(entry.label) for entry in entries] if labelled and not by_label else [],
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
    """Of each row the k others nearest by cosine, and how near: (N, K) each."""
    n = len(features)
    if k < 1:
        return np.empty((n, 0), np.int64), np.empty((n, 0), np.float32)
    found, near = np.empty((n, k), np.int64), np.empty((n, k), np.float32)
    unit = torch.cat([unit_rows(block)[0] for _, block in chunks(features, CHUNK, torch.device("cpu"))])  # (N, D)
    with Progress(n, desc="neighbours", unit="row") as progress:
        for start in range(0, n, QUERIES):
            similarity = unit[start : start + QUERIES] @ unit.T  # (q, N)
            similarity.diagonal(start).fill_(-torch.inf)  # nobody is a neighbour of itself
            values, rows = similarity.topk(k)  # (q, K); of equals whichever: for looking at, that will do
            found[start : start + len(rows)], near[start : start + len(rows)] = rows.numpy(), values.numpy()
            progress.update(len(rows))
    return found, near


def _pictures(config: MapConfig, opened: Embeddings, rows: npt.NDArray[np.int64]) -> Sheets:
    none = Sheets(0, 1, [], 0)
    if not config.thumbnails:
        return none
    source = images_of(opened, config.data_root)
    if source is None:
        say(f"warning: the images of {opened.meta['data']} are not at hand (--data-root?); the map has no thumbnails")
        return none
    workers = default_workers() if config.workers is None else config.workers
    made = sheets(source, rows.tolist(), budget=int(config.thumbnails * 1e6), workers=workers)
    if made.count < len(rows):
        say(f"{made.count:,} of {len(rows):,} points have thumbnails: --thumbnails allows {config.thumbnails:g} MB")
    elif made.small:
        say(
            f"thumbnails of {made.side} pixels, so that all fit into {config.thumbnails:g} MB; --thumbnails allows more"
        )
    return made


def _page(data: dict[str, Any], pictures: Sheets) -> str:
    """The page; the thumbnails' sheets are text that the script decodes when one is looked at."""
    blocks = [json_block("data", data)]
    blocks += [f'<script type="text/plain" id="sheet{i}">{file}</script>' for i, file in enumerate(pictures.files)]
    return page(
        f"{data['title']} - map", "\n".join([shipped("map.html"), *blocks]), styles=["map.css"], script="map.js"
    )
