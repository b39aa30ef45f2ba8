"""Who makes the views, and that it does not matter who: batches are the same function of (seed, epoch, index)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import write_images
from training import log, outcome, tiny

from barlowtwins.core.errors import CheckpointError
from barlowtwins.data.open import Source, open_source, subset
from barlowtwins.pretraining import pretrain
from barlowtwins.runs.checkpoint import load_newest
from barlowtwins.views.executors import CropReader, Executor, with_channels
from barlowtwins.views.transform import TwinTransform
from barlowtwins.views.twins import Rows, TwinBatch, TwinReader, plan_batches

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TRANSFORM = TwinTransform("small", size=16, seed=3)


def near(a: TwinBatch, b: TwinBatch, *, std: float = 0.5) -> bool:
    """The same rows, and views that differ by a few levels in a few places."""
    off = torch.cat([(a.y1 - b.y1).abs(), (a.y2 - b.y2).abs()]) * 255 * std
    return a.rows == b.rows and bool(off.mean() < 0.1) and bool((off > 3).float().mean() < 0.01)


def same(a: TwinBatch, b: TwinBatch) -> bool:
    return tuple(a.rows.indices) == b.rows.indices and torch.equal(a.y1, b.y1) and torch.equal(a.y2, b.y2)


@pytest.fixture
def photos(tmp_path: Path) -> Source:
    """Twelve images of two sizes, one of them unreadable."""
    write_images(tmp_path / "photos", 11)
    (tmp_path / "photos" / "broken.png").write_text("no image")
    return open_source(str(tmp_path / "photos"))


def test_auto_takes_the_faster_one(photos: Source) -> None:
    small, large = open_source("shapes:20"), open_source(np.zeros((4, 97, 20, 3), np.uint8))
    assert Executor(small, TRANSFORM, CPU).backend == "batched"
    assert Executor(small, TwinTransform("small", size=97), CPU).backend == "pillow"
    assert Executor(large, TRANSFORM, CPU).backend == "pillow"
    assert Executor(photos, TRANSFORM, CPU).backend == "pillow"
    assert Executor(photos, TRANSFORM, torch.device("meta")).backend == "batched"
    assert Executor(small, TRANSFORM, CPU, "pillow").backend == "pillow"


def test_images_in_memory_need_no_workers(photos: Source) -> None:
    assert Executor(open_source("shapes:20"), TRANSFORM, CPU).workers(4) == 0
    assert Executor(open_source("shapes:20"), TRANSFORM, CPU, "pillow").workers(4) == 4
    assert Executor(photos, TRANSFORM, CPU, "batched").workers(4) == 4


@pytest.mark.parametrize("data", ["shapes:40", "grey"])
def test_batches_from_memory_are_pillows(data: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 20, 24), dtype=np.uint8)
    source = open_source(pixels if data == "grey" else data)
    transform = TwinTransform(data if data == "grey" else "small", size=16, seed=3)
    executor = Executor(source, transform, CPU)
    for rows in plan_batches(40, 16, seed=3, start=1, stop=5):
        made = executor[rows]
        assert near(made, TwinReader(source, transform)[rows])
        assert (made.unreadable, made.exhausted) == ({}, False)


@pytest.mark.parametrize("backend", ["pillow", "batched"])
def test_batches_do_not_depend_on_start_rank_or_workers(backend: str, photos: Source) -> None:
    for source in (open_source("shapes:12"), photos):
        executor = Executor(source, TRANSFORM, CPU, backend)
        plan = list(plan_batches(12, 4, seed=3, start=0, stop=5))
        whole = [executor[rows] for rows in plan]
        with executor.batches(plan[2:], workers=1) as batches:
            assert all(same(a, b) for a, b in zip(batches, whole[2:], strict=True))
        for rank in range(2):
            shares = plan_batches(12, 4, seed=3, start=0, stop=5, rank=rank, world_size=2)
            for rows, full in zip(shares, whole, strict=True):
                part, mine = executor[rows], slice(2 * rank, 2 * rank + 2)
                full = TwinBatch(rows, full.y1[mine], full.y2[mine], part.unreadable, False)
                assert near(part, full) if backend == "batched" else same(part, full)


def test_batches_from_files_are_pillows_and_bad_images_are_told(photos: Source) -> None:
    rows = Rows(0, 2, tuple(range(12)))
    made, expected = Executor(photos, TRANSFORM, CPU, "batched")[rows], TwinReader(photos, TRANSFORM)[rows]
    assert near(made, expected)
    assert made.unreadable == expected.unreadable
    assert len(made.unreadable) == 1
    crops = CropReader(photos, TRANSFORM)[rows].levels
    assert (crops.dtype, crops.shape) == (torch.uint8, (2, 12, 16, 16, 3))


def test_nothing_readable_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no image")
    made = Executor(open_source(str(tmp_path)), TRANSFORM, CPU, "batched")[Rows(0, 0, (0, 0))]
    assert made.exhausted
    assert list(made.unreadable) == [0]


def test_a_part_of_images_in_memory_is_in_memory() -> None:
    source = open_source("shapes:30")
    part = subset(source, [7, 3, 20])
    array = part.array()
    assert array is not None
    np.testing.assert_array_equal(array[1], np.asarray(source.read(3)))
    rows = Rows(0, 0, (0, 1, 2))
    assert near(Executor(part, TRANSFORM, CPU)[rows], TwinReader(part, TRANSFORM)[rows])
    assert open_source(np.zeros((2, 5, 5, 4), np.uint8)).array() is None  # transparent: read one by one


def test_channels_are_turned_into_each_other_as_pillow_does() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (5000, 5, 4, 3), dtype=np.uint8)
    grey = with_channels(colours, 1)
    for index in (0, 4095, 4096, 4999):
        np.testing.assert_array_equal(grey[index, ..., 0], np.asarray(Image.fromarray(colours[index]).convert("L")))
    np.testing.assert_array_equal(with_channels(grey[..., 0], 3)[7], grey[7].repeat(3, 2))
    np.testing.assert_array_equal(with_channels(colours, 3), colours)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_views_of_the_cpu(photos: Source) -> None:
    for source in (open_source("shapes:12"), photos):
        rows = Rows(0, 0, tuple(range(12)))
        there = Executor(source, TRANSFORM, GPU, "batched")[rows]
        there = there._replace(y1=there.y1.cpu(), y2=there.y2.cpu())
        assert near(Executor(source, TRANSFORM, CPU, "batched")[rows], there)


# In a run -------------------------------------------------------------------------------------------------------------


def test_a_batched_run_that_is_cut_is_the_run_that_is_not(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pretrain(tiny(whole, augment_backend="batched"))
    for steps in (3, 8, None):
        pretrain(tiny(cut, augment_backend="batched", max_steps=steps, workers=0 if steps == 3 else 2))
    assert outcome(cut) == outcome(whole)


def test_another_executor_is_another_run_unless_allowed(tmp_path: Path) -> None:
    pretrain(tiny(tmp_path, max_steps=4))
    newest = load_newest(tmp_path)
    assert newest is not None
    assert newest.config["augment_backend"] == "batched"
    with pytest.raises(CheckpointError, match="augment_backend batched, not augment_backend pillow"):
        pretrain(tiny(tmp_path, augment_backend="pillow"))
    pretrain(tiny(tmp_path, augment_backend="pillow", allow_change=("augment_backend",), max_steps=6))
    assert log(tmp_path)[-1]["step"] == 6


def test_both_executors_train_alike(tmp_path: Path) -> None:
    """Other pixels by a level here and there: the first losses agree to a percent."""
    losses = []
    for backend in ("pillow", "batched"):
        pretrain(tiny(tmp_path / backend, augment_backend=backend, max_steps=3))
        losses.append([record["loss"] for record in log(tmp_path / backend) if "loss" in record])
    np.testing.assert_allclose(*losses, rtol=0.01)
