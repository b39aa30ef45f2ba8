"""Points of a plane and clusters, against other ways to compute them."""

from __future__ import annotations

import re

import numpy as np
import pytest
from sklearn.decomposition import PCA

from barlowtwins.core.progress import Progress
from barlowtwins.reports.projection import REDUCED, cluster, pca, project


def blobs(n: int = 300, d: int = 24, kinds: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    kind = np.arange(n) % kinds
    return (rng.normal(size=(kinds, d))[kind] + 0.1 * rng.normal(size=(n, d))).astype(np.float32), kind


def test_pca_is_that_of_unit_length_rows() -> None:
    x, _ = blobs()
    x *= np.random.default_rng(1).uniform(0.1, 50, (len(x), 1)).astype(np.float32)  # lengths do not count
    expected = PCA(4, svd_solver="full").fit_transform(x / np.linalg.norm(x, axis=1, keepdims=True))

    np.testing.assert_allclose(np.abs(pca(x, 4)), np.abs(expected), atol=1e-5)
    np.testing.assert_array_equal(pca(x, 4), pca(x, 4))
    assert pca(x[:, :1], 2).shape == (300, 1)


def test_clusters_are_found_and_numbered_by_size() -> None:
    x, kind = blobs()
    x, kind = x[kind != 2][:150], kind[kind != 2][:150]
    x, kind = np.concatenate([x, x[kind == 1][:40]]), np.concatenate([kind, np.ones(40, int)])
    components = pca(x, REDUCED)
    found = cluster(components, 2, seed=3)

    np.testing.assert_array_equal(found, (kind == 0).astype(int))  # kind 1 is larger, so it is cluster 0
    np.testing.assert_array_equal(found, cluster(components, 2, seed=3))


def test_fewer_different_rows_than_clusters() -> None:
    assert set(cluster(pca(np.ones((7, 3), np.float32), 3), 5).tolist()) == {0}
    assert len(cluster(pca(np.eye(3, dtype=np.float32), 3), 10)) == 3


@pytest.mark.parametrize("method", ["pca", "tsne", pytest.param("umap", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")  # of foreign libraries
def test_every_method_keeps_kinds_apart(method: str) -> None:
    if method == "umap":
        pytest.importorskip("umap", reason="umap-learn is not installed (extra map)")
    x, kind = blobs(90)
    points = project(pca(x, REDUCED), method, seed=0)

    assert points.shape == (90, 2)
    assert points.dtype == np.float32
    centres = np.stack([points[kind == k].mean(0) for k in range(3)])
    distance = np.linalg.norm(points[:, None] - centres, axis=-1)  # (90, 3)
    assert (distance.argmin(1) == kind).mean() > 0.95


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_few_points(n: int, method: str) -> None:
    points = project(pca(np.eye(6, dtype=np.float32)[:n], REDUCED), method)

    assert points.shape == (n, 2)
    assert np.isfinite(points).all()


@pytest.mark.parametrize("method", ["pca", "tsne", "umap"])
def test_equal_rows_are_one_point(method: str) -> None:
    """t-SNE itself ends the process by a segmentation fault."""
    rows = np.tile(np.random.default_rng(0).normal(size=(1, 16)).astype(np.float32), (60, 1))
    points = project(pca(rows, REDUCED), method)
    assert points.shape == (60, 2) and np.isfinite(points).all()
    assert np.ptp(points, axis=0).max() < 1e-5


def test_points_of_pca_are_the_first_two_components() -> None:
    x, _ = blobs()
    np.testing.assert_array_equal(project(pca(x, REDUCED), "pca"), pca(x, 2))


@pytest.mark.parametrize("method", ["tsne", pytest.param("umap", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")  # of foreign libraries
def test_long_methods_say_how_far_they_are_and_nothing_else(
    method: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if method == "umap":
        pytest.importorskip("umap", reason="umap-learn is not installed (extra map)")
    monkeypatch.setattr(Progress.__init__, "__kwdefaults__", {**Progress.__init__.__kwdefaults__, "interval": 0.0})
    x, _ = blobs(90)
    project(pca(x, REDUCED), method, seed=0)

    captured = capsys.readouterr()
    name = {"tsne": "t-SNE", "umap": "UMAP"}[method]
    done = [int(step.replace(",", "")) for step in re.findall(rf"{name}: ([\d,]+)/[\d,]+ step", captured.err)]
    assert len(done) > 3
    assert done == sorted(done)
    assert all(line.startswith((name, "principal components")) for line in captured.err.splitlines())
    assert captured.out == ""
