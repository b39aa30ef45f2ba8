"""One EMB folder, many processes: parts of an array, ranks of torchrun, and what they do to each other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import forkserver
from tiny import write_images, write_weights

from barlowtwins.config import EmbedConfig
from barlowtwins.core.errors import BarlowTwinsError, OutputError, RunLockedError, UsageError
from barlowtwins.core.files import write_text
from barlowtwins.core.locks import FolderLock
from barlowtwins.data.sources import FileSource
from barlowtwins.embedding import embed_job
from barlowtwins.embedding.embed import embed

embed_module = sys.modules[embed.__module__]
ROWS, SHARD_ROWS = 25, 4  # 7 shards
FILES = ["embeddings.npy", "index.csv", "meta.json"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes that are started here have; sums of more threads round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_images(tmp_path_factory.mktemp("images"), ROWS)
    (folder / "0013.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture
def config(images: Path, weights: Path, tmp_path: Path) -> EmbedConfig:
    return EmbedConfig(str(images), str(weights), str(tmp_path / "out"), device="cpu", workers=0, batch_size=3)


@pytest.fixture(scope="module")
def undisturbed(images: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    config = EmbedConfig(str(images), str(weights), str(out), device="cpu", workers=0, batch_size=3)
    embed(config, shard_rows=SHARD_ROWS)
    return contents(out)


def contents(folder: str | Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def embed_part(config: EmbedConfig, part: str):
    return embed(replace(config, part=part), shard_rows=SHARD_ROWS)


# Parts, one after the other -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_the_last_part_joins_and_the_files_are_those_of_one_process(
    order: tuple[int, ...], config: EmbedConfig, undisturbed: dict[str, bytes]
) -> None:
    rows = {1: 9, 2: 8, 3: 8}  # shards 0 3 6, 1 4, 2 5; the last shard has one row
    left = ROWS
    for part in order:
        result = embed_part(config, f"{part}/3")
        left -= rows[part]
        assert (result.missing, result.joined, result.rows) == (left, left == 0, ROWS)
    assert result.failed == 1
    assert contents(config.out) == undisturbed


def test_a_part_is_done_once_and_says_what_is_missing(config: EmbedConfig, undisturbed: dict[str, bytes]) -> None:
    assert "16 of 25 rows are still missing" in embed_part(config, "1/3").summary()
    before = contents(config.out)
    assert embed_part(config, "1/3").images_per_second == 0
    assert contents(config.out) == before
    embed_part(config, "2/3")
    embed_part(config, "3/3")
    assert embed_part(config, "2/3").joined  # a task that its queue starts once more finds everything done
    assert contents(config.out) == undisturbed


def test_other_numbers_of_parts_and_none_may_follow(config: EmbedConfig, undisturbed: dict[str, bytes]) -> None:
    embed_part(config, "1/3")
    embed_part(config, "2/5")
    embed(config, shard_rows=SHARD_ROWS)
    assert contents(config.out) == undisturbed


def test_more_parts_than_shards(config: EmbedConfig, undisturbed: dict[str, bytes]) -> None:
    for part in range(1, 10):
        embed_part(config, f"{part}/9")
    assert contents(config.out) == undisturbed


def test_parts_of_tar_shards_have_the_rows_of_the_folder(
    config: EmbedConfig, undisturbed: dict[str, bytes], images: Path, tmp_path: Path
) -> None:
    paths = sorted(images.iterdir())
    for number in range(3):
        with tarfile.open(tmp_path / f"s-{number}.tar", "w") as archive:
            for path in paths[10 * number : 10 * number + 10]:
                archive.add(path, path.name)
    config = replace(config, data=f"{tmp_path}/s-{{0..2}}.tar")
    for part in (2, 1):
        embed_part(config, f"{part}/2")
    assert contents(config.out)["embeddings.npy"] == undisturbed["embeddings.npy"]
    told = contents(config.out)["index.csv"].decode().splitlines()
    expected = undisturbed["index.csv"].decode().splitlines()
    assert told[1] == "0,s-0.tar/0000.png,,ok"
    assert [line.replace("s-0.tar/", "").replace("s-1.tar/", "").replace("s-2.tar/", "") for line in told] == expected


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/3/5", ""])
def test_what_is_no_part(part: str, config: EmbedConfig) -> None:
    with pytest.raises(UsageError, match="must be such as 3/16"):
        replace(config, part=part)


def test_parts_do_not_overwrite_and_do_not_mix(config: EmbedConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="remove the folder first"):
        replace(config, part="1/2", overwrite=True)
    embed_part(config, "1/2")
    other = replace(config, weights=str(write_weights(tmp_path / "other.safetensors", seed=1)))
    with pytest.raises(OutputError, match="unfinished embeddings made with other weights"):
        embed_part(other, "2/2")
    embed_part(config, "2/2")
    with pytest.raises(OutputError, match="holds embeddings already, made with other weights"):
        embed_part(other, "1/2")


# Several at once ----------------------------------------------------------------------------------------------------


def test_a_part_and_a_whole_run_refuse_each_other_and_parts_do_not(
    config: EmbedConfig, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes]
) -> None:
    monkeypatch.setattr(embed_job, "LOCK_PATIENCE", 0.1)
    with FolderLock(config.out), pytest.raises(RunLockedError, match=f"in use by process {os.getpid()}"):
        embed_part(config, "1/2")
    with FolderLock(config.out, ".part-1-of-2.lock"):
        with pytest.raises(RunLockedError):
            embed_part(config, "1/2")
        with pytest.raises(RunLockedError):
            embed(config, shard_rows=SHARD_ROWS)
        assert not embed_part(config, "2/2").joined
    Path(config.out, ".part-9-of-9.lock").write_text("{}")  # of a part that was killed
    embed(config, shard_rows=SHARD_ROWS)
    assert contents(config.out) == undisturbed


def test_while_one_part_joins_another_leaves_it_to_that(config: EmbedConfig, undisturbed: dict[str, bytes]) -> None:
    embed_part(config, "1/2")
    with FolderLock(config.out, ".join.lock"):
        result = embed_part(config, "2/2")
    assert (result.joined, result.missing) == (False, 0)
    assert embed_part(config, "2/2").joined
    assert contents(config.out) == undisturbed


class SlowSource(FileSource):
    """So that processes really are at work at the same time."""

    def read(self, index: int):
        time.sleep(0.02)
        return super().read(index)


class StuckSource(FileSource):
    """Never gets past row 12, the first of shard 3: whoever makes that shard says so in a file, and can be killed."""

    told: Path

    def read(self, index: int):
        if index == 3 * SHARD_ROWS:
            write_text(self.told, str(os.getpid()))  # whole or not at all
            time.sleep(3600)
        return super().read(index)


def read_by(kind: type[FileSource], folder: Path) -> FileSource:
    """From now on, `embed` reads the images of the folder by this source, in this process."""
    source = kind(str(folder), folder, sorted(path.name for path in folder.iterdir()))
    embed_module.open_source = lambda *_, **__: source
    return source


def kill_the_stuck_one(told: Path, deadline: float, alive: Callable[[], bool]) -> None:
    while not told.exists():
        assert time.monotonic() < deadline and alive()
        time.sleep(0.005)
    os.kill(int(told.read_text()), signal.SIGKILL)


def _part(config: EmbedConfig, part: str, told: Path | None = None) -> None:
    torch.set_num_threads(1)
    source = read_by(SlowSource if told is None else StuckSource, Path(config.data))
    source.told = told  # type: ignore[attr-defined]
    try:
        embed(replace(config, part=part), shard_rows=SHARD_ROWS)
    except BarlowTwinsError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def start_part(config: EmbedConfig, part: str, told: Path | None = None):
    process = forkserver().Process(target=_part, args=(config, part, told))
    process.start()
    return process


def test_parts_that_begin_run_and_end_together(config: EmbedConfig, undisturbed: dict[str, bytes]) -> None:
    processes = [start_part(config, f"{part}/4") for part in range(1, 5)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    assert contents(config.out) == undisturbed


def test_a_part_that_is_killed_is_done_by_the_next_call(
    config: EmbedConfig, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Part 2/2 makes shards 1, 3 and 5, and is killed in the second."""
    process = start_part(config, "2/2", tmp_path / "told")
    kill_the_stuck_one(tmp_path / "told", time.monotonic() + 120, process.is_alive)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in Path(config.out).glob("shards/*.npz")] == ["00001-of-00007.npz"]
    assert not embed_part(config, "1/2").joined
    assert embed_part(config, "2/2").joined
    assert {name: data for name, data in contents(config.out).items() if name in FILES} == undisturbed


# Slurm --------------------------------------------------------------------------------------------------------------

SBATCH = Path(__file__).parent.parent / "docs" / "slurm" / "embed.sbatch"


def sbatch(folder: Path, barlowtwins: str, task: int, **variables: str) -> tuple[int, str]:
    """Run the script as a job of an array, with stand-ins for the programs; its exit code, and what it asked Slurm."""
    programs = {"srun": 'exec "$@"', "scontrol": f'echo "$@" >> {folder}/asked', "barlowtwins": barlowtwins}
    for name, line in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{line}\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2"}
    path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    run = subprocess.run(["bash", SBATCH], env={**environment(), **job, **path, **variables}, timeout=120, check=False)
    return run.returncode, (folder / "asked").read_text() if (folder / "asked").exists() else ""


def test_a_stopped_job_of_an_array_is_queued_again_and_a_failed_one_is_not(tmp_path: Path) -> None:
    """The stand-in for `barlowtwins` notes its arguments and ends as it is told."""
    variables = {"DATA": "/data/s-{0..9}.tar", "WEIGHTS": "resnet50", "OUT": "/runs/a b"}
    for code, asked in ((0, ""), (1, ""), (75, "requeue 7_2\n")):
        told = f'printf "%s\\n" "$@" > {tmp_path}/told; exit {code}'
        assert sbatch(tmp_path, told, 2, **variables) == (code, asked)
    words = (tmp_path / "told").read_text().splitlines()
    assert words[:6] == ["embed", "/data/s-{0..9}.tar", "--weights", "resnet50", "--out", "/runs/a b"]
    assert words[6:8] == ["--part", "2/2"]
    sbatch(tmp_path, told, 2, PARTS="16", **variables)
    assert "2/16" in (tmp_path / "told").read_text().splitlines()


@pytest.mark.slow
def test_the_jobs_of_an_array_make_the_result_of_one_process(config: EmbedConfig, tmp_path: Path) -> None:
    embed(replace(config, out=str(tmp_path / "alone"), batch_size=256))
    variables = {"DATA": config.data, "WEIGHTS": config.weights, "OUT": config.out}
    command = f'exec {sys.executable} -m barlowtwins "$@" --device cpu --workers 0'
    assert [sbatch(tmp_path, command, task, **variables) for task in (1, 2)] == [(0, ""), (0, "")]
    assert contents(config.out) == contents(tmp_path / "alone")


# torchrun -----------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from test_embed_parts import SHARD_ROWS, StuckSource, read_by
from barlowtwins.config import EmbedConfig
from barlowtwins.embedding.embed import embed

data, weights, out, told = sys.argv[1:]
read_by(StuckSource, Path(data)).told = Path(told)
print(embed(EmbedConfig(data, weights, out, device="cpu", workers=0, batch_size=3), shard_rows=SHARD_ROWS).to_dict())
"""


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(Path(__file__).parent)}


@pytest.mark.slow
def test_ranks_share_the_shards_of_one_folder(config: EmbedConfig, tmp_path: Path) -> None:
    """The command itself: 2100 images are two shards, one a rank."""
    folder = write_images(tmp_path / "many", 2100)
    expected = replace(config, data=str(folder), batch_size=500, out=str(tmp_path / "alone"))
    embed(expected)
    flags = ["--weights", config.weights, "--out", config.out, "--device", "cpu", "--workers", "0", "--batch-size=500"]
    command = torchrun("-m", "barlowtwins", "embed", str(folder), *flags, "--json")
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    (line,) = run.stdout.splitlines()  # one rank speaks
    assert json.loads(line)["rows"] == 2100 and json.loads(line)["joined"]
    assert contents(config.out) == contents(tmp_path / "alone")


@pytest.mark.slow
def test_the_shards_of_a_killed_rank_are_made_by_the_next_call(
    config: EmbedConfig, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Rank 1 makes shards 1, 3 and 5, and is killed in the second; rank 0 waits for it, until torchrun ends it."""
    (tmp_path / "script.py").write_text(SCRIPT)
    told = tmp_path / "told"
    command = torchrun(str(tmp_path / "script.py"), config.data, config.weights, config.out, str(told))
    job = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        kill_the_stuck_one(told, time.monotonic() + 120, lambda: job.poll() is None)
        said, _ = job.communicate(timeout=120)
        assert job.returncode != 0, said
    finally:
        job.kill()
        job.communicate()
    made = {path.name[:5] for path in Path(config.out, "shards").glob("*.npz")}
    assert "00001" in made and not made & {"00003", "00005"}  # how far rank 0 got is not decided
    embed(config, shard_rows=SHARD_ROWS)  # by torchrun or not
    assert contents(config.out) == undisturbed
