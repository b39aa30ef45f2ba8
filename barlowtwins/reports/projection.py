"""Features as points of a plane, and as clusters. Rows are scaled to unit length first: angles count, as elsewhere.

features (N, D) -> principal components (N, d) -> points (N, 2) by t-SNE or UMAP, or the first two; clusters (N,)
"""

# N rows, D features, d principal components, K clusters

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from barlowtwins.core.errors import MissingExtraError
from barlowtwins.core.progress import Progress
from barlowtwins.metrics.nearest import chunks, unit_rows

__all__ = ["REDUCED", "cluster", "pca", "project", "require_method"]

REDUCED = 50  # components that t-SNE, UMAP and k-means see, as is usual for t-SNE
CPU = torch.device("cpu")
CHUNK = 8192
ROUNDS = 50  # of k-means at most
COUNTED = re.compile(r"Iteration (\d+):|Epochs completed:.*?(\d+)/\d+")  # by t-SNE; by UMAP

Components = npt.NDArray[np.float32]


def pca(features: npt.NDArray[np.float32], width: int) -> Components:
    """Principal components of unit-length rows, (N, D) -> (N, min(width, D)), strongest first.

    Two passes over the rows, chunk by chunk, so that they may lie on a disk. Each component's largest loading is
    positive, which makes the answer one of two.
    """
    n, d = features.shape
    total, second = torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    with Progress(2 * n, desc="principal components", unit="row") as progress:
        for _, block in chunks(features, CHUNK, CPU):
            unit = unit_rows(block)[0].double()  # (n, D)
            total += unit.sum(0)
            second += unit.T @ unit
            progress.update(len(block))
        mean = total / n
        covariance = second / n - torch.outer(mean, mean)  # (D, D)
        axes = torch.linalg.eigh(covariance)[1].flip(1)[:, :width]  # (D, d)
        axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
        parts = []
        for _, block in chunks(features, CHUNK, CPU):
            parts.append(((unit_rows(block)[0].double() - mean) @ axes).float())
            progress.update(len(block))
    return torch.cat(parts).numpy()


def project(components: Components, method: str, *, seed: int = 0) -> Components:
    """Two coordinates for each row: (N, d) -> (N, 2).

    Args:
        components: of `pca`.
        method: "pca", "tsne" or "umap".
        seed: of the latter two.

    Raises:
        MissingExtraError: scikit-learn (tsne) or umap-learn (umap) is not installed.
    """
    n = len(components)
    if method == "pca" or n < 5:  # fewer points have no neighbourhoods to keep
        points = components[:, :2]
    elif method == "tsne":
        points = _tsne(components, seed)
    else:
        points = _umap(components, seed)
    flat = np.zeros((n, 2), np.float32)
    flat[:, : points.shape[1]] = points  # features of one dimension have one component
    return flat


def require_method(method: str) -> Any:
    """The class behind a method, None behind "pca"; MissingExtraError where its library is not installed."""
    if method == "tsne":
        try:
            from sklearn.manifold import TSNE
        except ModuleNotFoundError:
            raise MissingExtraError("sklearn", "map") from None
        return TSNE
    if method == "umap":
        try:
            from umap import UMAP
        except ModuleNotFoundError:
            raise MissingExtraError("umap", "map") from None
        return UMAP
    return None


def _tsne(components: Components, seed: int) -> Components:
    perplexity = min(30.0, (len(components) - 1) / 3)
    tsne = require_method("tsne")(perplexity=perplexity, init="pca", random_state=seed, verbose=2)
    steps = getattr(tsne, "max_iter", None) or tsne.n_iter  # the older name
    with Progress(steps, desc="t-SNE", unit="step") as progress, _listening(progress):
        return np.asarray(tsne.fit_transform(components))


def _umap(components: Components, seed: int) -> Components:
    n = len(components)
    steps = 500 if n <= 10_000 else 200  # as UMAP would choose by itself
    UMAP = require_method("umap")
    with Progress(steps, desc="UMAP", unit="step") as progress, _listening(progress) as ear:
        words: Any = {"verbose": True, "tqdm_kwds": {"file": ear, "mininterval": 0}}
        umap = UMAP(n_neighbors=min(15, n - 1), n_epochs=steps, random_state=seed, n_jobs=1, **words)
        return np.asarray(umap.fit_transform(components))


@contextlib.contextmanager
def _listening(progress: Progress) -> Iterator[io.TextIOBase]:
    """Keep what a library prints meanwhile off the standard output, and take from it how far the work is."""
    with contextlib.redirect_stdout(_Ear(progress)):
        yield _Ear(progress)  # another one: tqdm draws bars on the standard output again after each line that it writes


class _Ear(io.TextIOBase):
    """A file to print to, of which only counts are kept."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def write(self, text: str) -> int:
        for of_tsne, of_umap in COUNTED.findall(text):
            if (further := int(of_tsne or of_umap) - self.progress.done) > 0:
                self.progress.update(further)
        return len(text)


def cluster(components: Components, count: int, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """k-means of the rows of `pca`, (N, d) -> cluster of each, (N,); clusters are numbered by size, largest first.

    Lloyd's algorithm from a k-means++ start (Arthur & Vassilvitskii 2007).
    """
    x = torch.from_numpy(components)  # (N, d)
    count = min(count, len(x))
    rng = np.random.default_rng(seed)
    centres = x[[int(rng.integers(len(x)))]]  # (1, d)
    nearest = (x - centres[0]).square().sum(1)  # (N,) squared distance to the nearest centre
    while len(centres) < count:
        weights = nearest.double().numpy()
        if weights.sum() == 0:  # fewer different rows than clusters
            break
        chosen = int(rng.choice(len(x), p=weights / weights.sum()))
        centres = torch.cat([centres, x[[chosen]]])
        nearest = torch.minimum(nearest, (x - x[chosen]).square().sum(1))
    member = torch.full((len(x),), -1)
    for _ in range(ROUNDS):
        before, member = member, torch.cdist(x, centres).argmin(1)  # (N,)
        if torch.equal(before, member):
            break
        sizes = torch.bincount(member, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, member, x)
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centres)
    sizes = torch.bincount(member, minlength=len(centres))
    number = torch.empty_like(sizes)
    number[sizes.argsort(descending=True, stable=True)] = torch.arange(len(sizes))
    return number[member].numpy()
