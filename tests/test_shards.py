"""Shards: each one a pure function of its rows, whoever makes it and when."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import DIM, write_images, write_weights

from barlowtwins.core.errors import OutputError
from barlowtwins.data.open import open_source
from barlowtwins.data.sources import Source
from barlowtwins.embedding.embedder import Embedder, load_embedder
from barlowtwins.embedding.shards import embed_shards, plan_shards, read_failures, read_features


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return load_embedder(write_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors"), device="cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = write_images(tmp_path_factory.mktemp("images"), 23)
    (folder / "0009.png").write_bytes(b"")
    (folder / "0021.png").write_text("no image")
    return open_source(folder)


def test_a_plan_covers_every_row_once() -> None:
    shards = plan_shards(23, 10)
    assert [shard.rows for shard in shards] == [range(10), range(10, 20), range(20, 23)]
    assert [shard.path(Path("x")).name for shard in shards] == [f"0000{i}-of-00003.npz" for i in range(3)]
    assert plan_shards(0) == []


def test_shards_hold_what_encoding_gives(embedder: Embedder, source: Source, tmp_path: Path) -> None:
    shards = plan_shards(len(source), 10)
    embed_shards(source, embedder, shards, tmp_path, batch_size=4)
    features = np.concatenate([read_features(shard, tmp_path) for shard in shards])
    assert features.shape == (23, DIM) and features.dtype == np.float32
    expected = embedder.encode(source)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)  # NaN stands where NaN stands
    assert np.flatnonzero(np.isnan(features).any(axis=1)).tolist() == [9, 21]
    assert read_failures(shards[0], tmp_path) == {9: embedder.failed[9].why}
    assert read_failures(shards[1], tmp_path) == {}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_has_the_same_bytes_alone_and_among_others(
    workers: int, embedder: Embedder, source: Source, tmp_path: Path
) -> None:
    shards = plan_shards(len(source), 10)
    embed_shards(source, embedder, shards, tmp_path / "all", batch_size=4)
    for shard in reversed(shards):
        embed_shards(source, embedder, [shard], tmp_path / "alone", batch_size=4, workers=workers)
    for shard in shards:
        assert shard.path(tmp_path / "all").read_bytes() == shard.path(tmp_path / "alone").read_bytes()


def test_shards_that_are_there_are_not_made_again(embedder: Embedder, source: Source, tmp_path: Path) -> None:
    shards = plan_shards(len(source), 10)
    embed_shards(source, embedder, shards[1:2], tmp_path)
    before = shards[1].path(tmp_path).stat().st_mtime_ns
    done: list[int] = []
    embed_shards(source, embedder, shards, tmp_path, batch_size=6, after_batch=lambda rows, failed: done.append(rows))
    assert done == [6, 4, 3]
    assert shards[1].path(tmp_path).stat().st_mtime_ns == before


def test_what_after_batch_raises_ends_the_work_and_keeps_whole_shards(
    embedder: Embedder, source: Source, tmp_path: Path
) -> None:
    class Enough(Exception):
        pass

    done: list[int] = []

    def after_batch(rows: int, failed: int) -> None:
        done.append(rows)
        if sum(done) >= 15:
            raise Enough

    shards = plan_shards(len(source), 10)
    with pytest.raises(Enough):
        embed_shards(source, embedder, shards, tmp_path, batch_size=5, workers=1, after_batch=after_batch)
    assert [path.name for path in tmp_path.iterdir()] == ["00000-of-00003.npz"]


def test_normalized_shards(embedder: Embedder, source: Source, tmp_path: Path) -> None:
    shards = plan_shards(len(source), 10)
    embed_shards(source, embedder, shards[:1], tmp_path, normalize=True)
    length = np.linalg.norm(read_features(shards[0], tmp_path), axis=1)
    np.testing.assert_allclose(np.delete(length, 9), 1, rtol=1e-6)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "absent"])
def test_a_damaged_shard_is_removed_and_told(damage: str, embedder: Embedder, source: Source, tmp_path: Path) -> None:
    shard = plan_shards(len(source), 10)[0]
    embed_shards(source, embedder, [shard], tmp_path)
    path = shard.path(tmp_path)
    whole = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        whole[len(whole) // 2] ^= 1
        path.write_bytes(whole)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with pytest.raises(OutputError, match="run the same command"):
        read_features(shard, tmp_path)
    assert not path.exists()
