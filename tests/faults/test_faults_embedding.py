"""FAULTS.md 50-55: embedding that is killed, stopped, starved of disk, or pointed at what does not fit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from error_coverage import note_raises
from processes import forkserver
from tiny import TINY, write_images, write_weights

from barlowtwins.config import EmbedConfig, KNNConfig
from barlowtwins.core.errors import BarlowTwinsError, DataError, OutputError, RunLockedError
from barlowtwins.core.locks import FolderLock
from barlowtwins.data.batches import open_batches, ranges
from barlowtwins.data.open import open_source
from barlowtwins.data.sources import FileSource
from barlowtwins.embedding.embed import embed
from barlowtwins.embedding.embedder import load_embedder
from barlowtwins.embedding.embeddings import open_embeddings
from barlowtwins.embedding.shards import embed_shards, plan_shards
from barlowtwins.evaluate import evaluate_knn

resource = pytest.importorskip("resource", reason="signals and file-size limits are those of POSIX")

ROWS, SHARD_ROWS = 25, 10
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_images(tmp_path_factory.mktemp("images"), ROWS)
    (folder / "0013.png").write_bytes(b"")
    return folder


@pytest.fixture
def config(weights: Path, images: Path, tmp_path: Path) -> EmbedConfig:
    return EmbedConfig(str(images), str(weights), str(tmp_path / "out"), device="cpu", workers=0, batch_size=4)


@pytest.fixture(scope="module")
def undisturbed(weights: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    embed(
        EmbedConfig(str(images), str(weights), str(out), device="cpu", workers=0, batch_size=4), shard_rows=SHARD_ROWS
    )
    return contents(out)


def contents(folder: str | Path) -> dict[str, bytes]:
    """All files but the lock, which a killed process leaves behind."""
    files = [path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith(".lock")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def run(config: EmbedConfig, *, at: int = 0, number: int = 0, group: bool = False, file_size: int | None = None) -> int:
    """Embed in a process of its own and give its exit code.

    Args:
        config: what to embed.
        at: before its `at`-th change of the file system, counted from 1, the process sends itself
        number: this signal,
        group: or its whole process group, reading processes included.
        file_size: the largest file that it may write, in bytes.
    """
    process = forkserver().Process(target=_embed, args=(config, at, number, group, file_size))
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def _embed(config: EmbedConfig, at: int, number: int, group: bool, file_size: int | None) -> None:
    os.setsid()
    note_raises()
    multiprocessing.set_start_method("fork", force=True)  # of reading processes: faster than another server
    changes = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal changes
        if event in CHANGES or (event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]):
            path = str(arguments[0])
            changes += config.out in path or not os.path.isabs(path)  # relative: to a folder that is being removed
            if changes == at:
                (os.killpg if group else os.kill)(os.getpid(), number)

    sys.addaudithook(count)
    if file_size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    try:
        embed(config, shard_rows=SHARD_ROWS)
    except BarlowTwinsError as error:
        Path(f"{config.out}.error").write_text(str(error))
        sys.exit(error.exit_code)


def test_51_killed_before_every_change_of_the_disk(config: EmbedConfig, undisturbed: dict[str, bytes]) -> None:
    """Run k is killed before its k-th change. What is done stays done, so the runs get further and further."""
    stages = set()
    for at in range(1, 100):
        code = run(config, at=at, number=signal.SIGKILL)
        assert code in (-signal.SIGKILL, 0)
        stages.add(frozenset(name for name in contents(config.out) if not name.endswith(".partial")))
        if contents(config.out) == undisturbed:
            break
    assert contents(config.out) == undisturbed
    assert len(stages) > 5  # nothing, a job, some shards, all of them, final files beside them


@pytest.mark.parametrize("at", [20, 24, 26, 32, 34, 36])
def test_51_killed_while_the_shards_are_joined_and_removed(
    at: int, config: EmbedConfig, undisturbed: dict[str, bytes]
) -> None:
    assert run(config, at=at, number=signal.SIGKILL) == -signal.SIGKILL
    assert contents(config.out) != undisturbed
    assert run(config) == 0
    assert contents(config.out) == undisturbed


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_51_a_stop_signal_ends_it_with_75_and_it_goes_on(
    number: int, workers: int, config: EmbedConfig, undisturbed: dict[str, bytes]
) -> None:
    """Sent to the whole process group, as a scheduler or a terminal does, so that reading processes get it too."""
    config = replace(config, workers=workers)
    assert run(config, at=12, number=number, group=True) == 75
    shards = [name for name in contents(config.out) if name.endswith(".npz")]
    assert 1 <= len(shards) < 3
    assert run(config) == 0
    assert contents(config.out) == undisturbed


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_52_any_number_of_workers(workers: int, config: EmbedConfig, undisturbed: dict[str, bytes]) -> None:
    embed(replace(config, workers=workers), shard_rows=SHARD_ROWS)
    assert contents(config.out) == undisturbed


def test_52_processes_that_race_for_the_same_shards(weights: Path, images: Path, tmp_path: Path) -> None:
    context = forkserver()
    orders = [[0, 1, 2], [2, 1, 0], [1, 0, 2]]
    racers = [context.Process(target=_shards, args=(weights, images, tmp_path / "raced", order)) for order in orders]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(120)
    assert [racer.exitcode for racer in racers] == [0, 0, 0]
    _shards(weights, images, tmp_path / "alone", [0, 1, 2])
    assert contents(tmp_path / "raced") == contents(tmp_path / "alone")


def _shards(weights: Path, images: Path, folder: Path, order: list[int]) -> None:
    source = open_source(images)
    shards = plan_shards(len(source), SHARD_ROWS)
    embed_shards(source, load_embedder(weights, device="cpu"), [shards[i] for i in order], folder, batch_size=4)


def test_53_duplicates_are_kept_unreadable_images_are_nan(config: EmbedConfig, images: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(f"{images}/{row:04}.png\n" for row in (2, 13, 2, 0)))
    embed(replace(config, data=str(tmp_path / "list.txt")))
    opened = open_embeddings(config.out)
    assert [Path(entry.path).name for entry in opened.index()] == ["0002.png", "0013.png", "0002.png", "0000.png"]
    assert [entry.status == "ok" for entry in opened.index()] == [True, False, True, True]
    assert np.isnan(opened.features).all(axis=1).tolist() == [False, True, False, False]
    np.testing.assert_array_equal(opened.features[0], opened.features[2])


def test_53_unfinished_work_of_other_weights_preprocessing_or_images_is_refused(
    config: EmbedConfig, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    assert run(config, at=12, number=signal.SIGKILL) == -signal.SIGKILL
    before = contents(config.out)
    others = {
        "weights": replace(config, weights=str(write_weights(tmp_path / "other.safetensors", seed=1))),
        "preprocessing": replace(config, image_size=16),
        "images": replace(config, data=str(write_images(tmp_path / "images", ROWS + 1))),
        "--normalize": replace(config, normalize=True),
    }
    for what, other in others.items():
        with pytest.raises(OutputError, match=f"unfinished embeddings made with other {what};"):
            embed(other, shard_rows=SHARD_ROWS)
    assert contents(config.out) == before
    embed(replace(others["weights"], overwrite=True), shard_rows=SHARD_ROWS)
    assert contents(config.out)["embeddings.npy"] != undisturbed["embeddings.npy"]
    embed(replace(config, overwrite=True), shard_rows=SHARD_ROWS)
    assert contents(config.out) == undisturbed


def test_53_images_that_change_between_two_runs_are_noticed(config: EmbedConfig, tmp_path: Path) -> None:
    config = replace(config, data=str(write_images(tmp_path / "images", ROWS)))
    assert run(config, at=12, number=signal.SIGKILL) == -signal.SIGKILL
    (tmp_path / "images" / "0007.png").unlink()
    with pytest.raises(OutputError, match="made with other images"):
        embed(config, shard_rows=SHARD_ROWS)


def test_54_an_output_that_exists_is_refused(config: EmbedConfig, undisturbed: dict[str, bytes]) -> None:
    assert run(config) == 0
    with pytest.raises(OutputError, match="--overwrite"):
        embed(config, shard_rows=SHARD_ROWS)
    assert contents(config.out) == undisturbed


@pytest.mark.parametrize("file_size", [5_000, 20_000])
def test_54_a_full_disk_is_told_and_the_work_goes_on_later(
    file_size: int, config: EmbedConfig, undisturbed: dict[str, bytes]
) -> None:
    """Too small for a shard (10 kB), and for the joined file (26 kB)."""
    assert run(config, file_size=file_size) == 1
    assert "no space left to write" in Path(f"{config.out}.error").read_text()
    assert "embeddings.npy" not in contents(config.out)
    assert not any(name.endswith(".partial") for name in contents(config.out))
    assert run(config) == 0
    assert contents(config.out) == undisturbed


def test_54_a_full_disk_leaves_an_overwritten_result_whole(config: EmbedConfig, undisturbed: dict[str, bytes]) -> None:
    assert run(config) == 0
    assert run(replace(config, overwrite=True, normalize=True), file_size=20_000) == 1
    kept = {name: data for name, data in contents(config.out).items() if not name.startswith("shards/")}
    assert kept == undisturbed


def test_55_labels_that_are_missing_are_told_before_anything_is_embedded(config: EmbedConfig) -> None:
    settings = KNNConfig(config.data, config.data, "no such weights")
    with pytest.raises(DataError, match="has no labels, which an evaluation needs: put the images of each class into"):
        evaluate_knn(settings)
    embed(config)
    with pytest.raises(DataError, match=f"{ROWS} of {ROWS} rows of .* have no label"):
        evaluate_knn(replace(settings, train=config.out, val=config.out))


def test_16_two_processes_do_not_embed_into_one_folder(config: EmbedConfig) -> None:
    with FolderLock(config.out), pytest.raises(RunLockedError, match=f"process {os.getpid()} on"):
        embed(config)


class Deadly(FileSource):
    """Kills the process that reads its fifth image."""

    def read(self, index: int):
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


class Hanging(FileSource):
    """Never reads its fifth image."""

    def read(self, index: int):
        if index == 5:
            time.sleep(3600)
        return super().read(index)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch was just opening something
def test_50_a_reading_process_that_dies_is_told(images: Path) -> None:
    with pytest.raises(DataError, match="a process that reads images died"):
        read_all(Deadly("images", images, [path.name for path in sorted(images.iterdir())]))


def test_50_a_reading_process_that_hangs_is_told(images: Path) -> None:
    started = time.monotonic()
    with pytest.raises(DataError, match="no image arrived for 1 s: the processes that read them hang"):
        read_all(Hanging("images", images, [path.name for path in sorted(images.iterdir())]))
    assert time.monotonic() - started < 60


def read_all(source: FileSource) -> None:
    with open_batches(source, TINY, ranges(0, ROWS, 2), workers=1, stall=1) as batches:
        for _ in batches:
            pass
