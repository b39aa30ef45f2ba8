"""Projects features to points in a plane, and clusters them. Rows are scaled to unit length first.

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

REDUCED = 50  # input components of t-SNE, UMAP and k-means, as usual for t-SNE
CPU = torch.device("cpu")
CHUNK = 8192
EQUAL = 1e-6  # rows of unit length that differ less are equal but for rounding
ROUNDS = 50  # maximum of k-means iterations
COUNTED = re.compile(r"Iteration (\d+):|Epochs completed:.*?(\d+)/\d+")  # t-SNE; UMAP

Components = npt.NDArray[np.float32]


def pca(features: npt.NDArray[np.float32], width: int) -> Components:
    """Return the principal components of unit-length rows, (N, D) -> (N, min(width, D)), largest first.

    Reads the rows twice in chunks, so they can stay on disk. The largest loading of each component is positive, which
    makes the sign unique.
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
    """Return two coordinates per row: (N, d) -> (N, 2).

    Args:
        components: result of `pca`.
        method: "pca", "tsne" or "umap".
        seed: seed of t-SNE and UMAP.

    Raises:
        MissingExtraError: scikit-learn (tsne) or umap-learn (umap) is not installed.
    """
    n = len(components)
    same = np.ptp(components, axis=0).max(initial=0) < EQUAL  # t-SNE of equal rows crashes
    if method == "pca" or n < 5 or same:  # too few points for neighborhoods
        points = components[:, :2]
    elif method == "tsne":
        points = _tsne(components, seed)
    else:
        points = _umap(components, seed)
    flat = np.zeros((n, 2), np.float32)
    flat[:, : points.shape[1]] = points  # one-dimensional features have one component
    return flat


def require_method(method: str) -> Any:
    """Return the class of a method (None for "pca"), or raise MissingExtraError if it is not installed."""
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
    steps = getattr(tsne, "max_iter", None) or tsne.n_iter  # older name
    with Progress(steps, desc="t-SNE", unit="step") as progress, _listening(progress):
        return np.asarray(tsne.fit_transform(components))


def _umap(components: Components, seed: int) -> Components:
    n = len(components)
    steps = 500 if n <= 10_000 else 200  # the defaults of UMAP
    UMAP = require_method("umap")
    with Progress(steps, desc="UMAP", unit="step") as progress, _listening(progress) as ear:
        words: Any = {"verbose": True, "tqdm_kwds": {"file": ear, "mininterval": 0}}
        umap = UMAP(n_neighbors=min(15, n - 1), n_epochs=steps, random_state=seed, n_jobs=1, **words)
        return np.asarray(umap.fit_transform(components))


@contextlib.contextmanager
def _listening(progress: Progress) -> Iterator[io.TextIOBase]:
    """Capture the output of a library and read its progress from it."""
    with contextlib.redirect_stdout(_Ear(progress)):
        yield _Ear(progress)  # a separate object, because tqdm redraws bars on standard output after each line


class _Ear(io.TextIOBase):
    """A file that only extracts counts from its text."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def write(self, text: str) -> int:
        for of_tsne, of_umap in COUNTED.findall(text):
            if (further := int(of_tsne or of_umap) - self.progress.done) > 0:
                self.progress.update(further)
        return len(text)


def cluster(components: Components, count: int, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """Cluster the result of `pca` by k-means, (N, d) -> (N,); clusters are numbered by size, largest first.

    Lloyd's algorithm with k-means++ initialization (Arthur & Vassilvitskii 2007).
    """
    x = torch.from_numpy(components)  # (N, d)
    count = min(count, len(x))
    rng = np.random.default_rng(seed)
    centers = x[[int(rng.integers(len(x)))]]  # (1, d)
    nearest = (x - centers[0]).square().sum(1)  # (N,) squared distance to the nearest center
    while len(centers) < count:
        weights = nearest.double().numpy()
        if weights.sum() == 0:  # fewer distinct rows than clusters
            break
        chosen = int(rng.choice(len(x), p=weights / weights.sum()))
        centers = torch.cat([centers, x[[chosen]]])
        nearest = torch.minimum(nearest, (x - x[chosen]).square().sum(1))
    member = torch.full((len(x),), -1)
    for _ in range(ROUNDS):
        before, member = member, torch.cdist(x, centers).argmin(1)  # (N,)
        if torch.equal(before, member):
            break
        sizes = torch.bincount(member, minlength=len(centers))
        sums = torch.zeros_like(centers).index_add_(0, member, x)
        centers = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centers)
    sizes = torch.bincount(member, minlength=len(centers))
    number = torch.empty_like(sizes)
    number[sizes.argsort(descending=True, stable=True)] = torch.arange(len(sizes))
    return number[member].numpy()
