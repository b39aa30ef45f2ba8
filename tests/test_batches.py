"""Batches in order, whatever reads them. (Workers that die or hang: tests/faults/test_faults_embedding.py.)"""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from barlowtwins.data.batches import Batch, open_batches, ranges
from barlowtwins.data.open import open_source
from barlowtwins.data.preprocess import Preprocessing

SMALL = Preprocessing(image_size=8, resize=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven images of which two cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(11):
        pixels = np.random.default_rng(number).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    (folder / "03.png").write_bytes(b"")
    (folder / "08.png").write_text("no image")
    return folder


def read(folder: Path, size: int, workers: int) -> list[Batch]:
    source = open_source(folder)
    with open_batches(source, SMALL, ranges(0, len(source), size), workers=workers) as batches:
        return [Batch(batch.start, batch.images.clone(), batch.failed) for batch in batches]


def test_ranges_cover_every_row_once() -> None:
    assert ranges(3, 10, 4) == [range(3, 7), range(7, 10)]
    assert ranges(0, 8, 4) == [range(4), range(4, 8)]
    assert ranges(5, 5, 4) == []


@pytest.mark.parametrize(("size", "workers"), [(1, 0), (4, 0), (50, 0), (1, 1), (4, 3), (50, 2)])
def test_rows_and_their_order_do_not_depend_on_batches_or_workers(folder: Path, size: int, workers: int) -> None:
    batches = read(folder, size, workers)
    assert [batch.start for batch in batches] == list(range(0, 11, size))
    images = torch.cat([batch.images for batch in batches])
    assert images.dtype == torch.uint8
    assert not images[[3, 8]].any()
    finished = SMALL.finish(images)
    for row in set(range(11)) - {3, 8}:
        assert torch.equal(finished[row], SMALL(folder / f"{row:02}.png"))
    failed = {row: bad for batch in batches for row, bad in batch.failed.items()}
    assert {row: Path(bad.path).name for row, bad in failed.items()} == {3: "03.png", 8: "08.png"}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_random_state_is_left_alone(folder: Path, workers: int) -> None:
    before = torch.get_rng_state()
    read(folder, 4, workers)
    assert torch.equal(before, torch.get_rng_state())


def test_the_block_may_be_left_early(folder: Path) -> None:
    source = open_source(folder)
    with open_batches(source, SMALL, ranges(0, 11, 2), workers=2) as batches:
        assert next(batches).start == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # only workers ignore it


def test_errors_of_the_block_pass_through(folder: Path) -> None:
    source = open_source(folder)
    with (
        pytest.raises(RuntimeError, match="of the caller"),
        open_batches(source, SMALL, ranges(0, 11, 2), workers=1) as batches,
    ):
        next(batches)
        raise RuntimeError("of the caller")


def test_workers_may_be_spawned(folder: Path, tmp_path: Path) -> None:
    """As on macOS and Windows, where a worker gets its work pickled."""
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import multiprocessing, pickle, sys
from barlowtwins.data.batches import open_batches, ranges
from barlowtwins.data.open import open_source
from barlowtwins.data.preprocess import Preprocessing

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    source = open_source({str(folder)!r})
    with open_batches(source, Preprocessing(8, None), ranges(0, 11, 4), workers=1) as batches:
        pickle.dump([(b.start, b.images.numpy(), sorted(b.failed)) for b in batches], open(sys.argv[1], "wb"))
"""
    )
    subprocess.run([sys.executable, script, tmp_path / "out"], check=True, timeout=120)
    spawned = pickle.loads((tmp_path / "out").read_bytes())
    for (start, images, failed), batch in zip(spawned, read(folder, 4, 0), strict=True):
        assert (start, failed) == (batch.start, sorted(batch.failed))
        np.testing.assert_array_equal(images, batch.images.numpy())
