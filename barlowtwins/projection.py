"""Features as points of a plane, and as clusters. Rows are scaled to unit length first: angles count, as elsewhere."""

# N rows, D features, d of them after reduction, K clusters

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from barlowtwins.errors import MissingExtraError
from barlowtwins.nearest import chunks, unit_rows

__all__ = ["cluster", "pca", "project"]

REDUCED = 50  # features that t-SNE, UMAP and k-means see, as is usual for t-SNE
CPU = torch.device("cpu")
CHUNK = 8192
ROUNDS = 50  # of k-means at most

Rows = npt.NDArray[np.float32]


def pca(features: npt.NDArray[np.float32], width: int) -> Rows:
    """Principal components of unit-length rows, (N, D) -> (N, min(width, D)), strongest first.

    Two passes over the rows, chunk by chunk, so that they may lie on a disk. Each component's largest loading is
    positive, which makes the answer one of two.
    """
    n, d = features.shape
    total, second = torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    for _, block in chunks(features, CHUNK, CPU):
        unit = unit_rows(block)[0].double()  # (n, D)
        total += unit.sum(0)
        second += unit.T @ unit
    mean = total / n
    covariance = second / n - torch.outer(mean, mean)  # (D, D)
    axes = torch.linalg.eigh(covariance)[1].flip(1)[:, :width]  # (D, d)
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    parts = [((unit_rows(block)[0].double() - mean) @ axes).float() for _, block in chunks(features, CHUNK, CPU)]
    return torch.cat(parts).numpy()


def project(features: npt.NDArray[np.float32], method: str, *, seed: int = 0) -> Rows:
    """Two coordinates for each row: (N, D) -> (N, 2).

    Args:
        features: finite.
        method: "pca", "tsne" or "umap".
        seed: of the latter two.

    Raises:
        MissingExtraError: scikit-learn (tsne) or umap-learn (umap) is not installed.
    """
    n = len(features)
    if method == "pca" or n < 5:  # fewer points have no neighbourhoods to keep
        points = pca(features, 2)
    elif method == "tsne":
        try:
            from sklearn.manifold import TSNE
        except ModuleNotFoundError:
            raise MissingExtraError("sklearn", "map") from None
        tsne = TSNE(perplexity=min(30.0, (n - 1) / 3), init="pca", random_state=seed)
        points = tsne.fit_transform(pca(features, REDUCED))
    else:
        try:
            from umap import UMAP
        except ModuleNotFoundError:
            raise MissingExtraError("umap", "map") from None
        points = UMAP(n_neighbors=min(15, n - 1), random_state=seed, n_jobs=1).fit_transform(pca(features, REDUCED))
    flat = np.zeros((n, 2), np.float32)
    flat[:, : points.shape[1]] = points  # features of one dimension have one component
    return flat


def cluster(features: npt.NDArray[np.float32], count: int, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """k-means of unit-length rows, (N, D) -> cluster of each, (N,); clusters are numbered by size, largest first.

    Lloyd's algorithm from a k-means++ start (Arthur & Vassilvitskii 2007), on the first principal components.
    """
    x = torch.from_numpy(pca(features, REDUCED))  # (N, d)
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
