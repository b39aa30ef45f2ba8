"""Training under the real `torchrun`: processes, nodes, a killed rank, another number of them at each resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from processes import free_port
from safetensors.torch import load_file

from barlowtwins.config import PretrainConfig
from barlowtwins.pretraining import pretrain

pytestmark = pytest.mark.slow

# Batch norm over 8 images makes a network in which rounding grows: with plain SGD, weights that differ by 3e-7 give
# losses that differ by 10 % at the tenth step, in one process. LARS bounds a step by the size of the weights (here
# 2.5e-4 of it at the peak), so eight steps keep five digits, and yet each loss depends on the steps before by far more.
STEPS = 8
FLAGS = (
    "shapes:32 --backbone resnet10_x0_5 --stem small-stride2 --projector 32-32 --image-size 16 --augmentation small "
    "--epochs 2 --batch-size 8 --optimizer lars --lr 8 --lr-bias 0.00008 --weight-decay 0.0001 --workers 0 "
    "--knn-every 0 --device cpu --log-every 1 --checkpoint-every 1 --report-every 0"
).split()


def torchrun(out: Path, *extra: str, processes: int = 2, launch: tuple[str, ...] = ("--standalone",)) -> list[str]:
    """The command line of a run on `processes` processes of this machine."""
    module = ["-m", "barlowtwins", "pretrain", *FLAGS, "--out", str(out), *extra]
    return [sys.executable, "-m", "torch.distributed.run", *launch, f"--nproc-per-node={processes}", *module]


@pytest.fixture
def start() -> Iterator[Callable[[list[str]], subprocess.Popen[str]]]:
    """Start a command; whatever a test leaves running ends with it."""
    started: list[subprocess.Popen[str]] = []

    def start(command: list[str]) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return output


def result(out: Path) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The weights that a run wrote, and its losses."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    lines = [record for record in records if "loss" in record]  # the others are looks at the end of an epoch
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return load_file(out / "model.safetensors"), [line["loss"] for line in lines]


def assert_close(out: Path, reference: Path) -> None:
    (weights, losses), (expected, expected_losses) = result(out), result(reference)
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=2e-5, msg=key)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in one process."""
    out = tmp_path_factory.mktemp("alone")
    pretrain(
        PretrainConfig(
            "shapes:32",
            str(out),
            backbone="resnet10_x0_5",
            stem="small-stride2",
            projector="32-32",
            image_size=16,
            augmentation="small",
            epochs=2,
            batch_size=8,
            optimizer="lars",
            lr=8.0,
            lr_bias=8e-5,
            weight_decay=1e-4,
            workers=0,
            knn_every=0,
            device="cpu",
            log_every=1,
            checkpoint_every=1,
            report_every=0,
        )
    )
    return out


def test_two_nodes_give_the_result_of_one_process(alone, tmp_path, start):
    """Two torchrun agents on loopback, one process each, as two machines would be."""
    rendezvous = (f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-backend=c10d", "--rdzv-id=test", "--nnodes=2")
    nodes = [start(torchrun(tmp_path, processes=1, launch=rendezvous)) for _ in range(2)]
    for node in nodes:
        finish(node)
    assert_close(tmp_path, alone)
    assert json.loads((tmp_path / "config.json").read_text())["world_size"] == 2


def test_another_number_of_processes_at_each_resume(alone, tmp_path, start):
    finish(start(torchrun(tmp_path, "--max-steps", "3", processes=2)))
    finish(start(torchrun(tmp_path, "--max-steps", "5", processes=1)))
    said = finish(start(torchrun(tmp_path, processes=4)))
    assert said.count("1 process shared a batch, now 4 do") == 1  # by one process for all
    assert_close(tmp_path, alone)


def test_a_killed_rank_is_restarted_from_the_newest_checkpoint(alone, tmp_path, start):
    """kill -9 of one rank in the middle: torchrun starts both again, and the end is that of the undisturbed run."""
    launch = ("--standalone", "--max-restarts=2")
    job = start(torchrun(tmp_path, launch=launch))
    checkpoints = tmp_path / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-0000000[23456].pt")):
        assert time.monotonic() < deadline and job.poll() is None
        time.sleep(0.01)
    os.kill(rank_process(job.pid), signal.SIGKILL)
    said = finish(job)
    assert "resuming at step" in said
    assert_close(tmp_path, alone)


def rank_process(agent: int) -> int:
    """A worker of a torchrun agent, by the process table."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    workers = [int(pid) for pid in children if b"barlowtwins" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return workers[-1]


def test_every_rank_agrees_on_a_stop(alone, tmp_path, start):
    """SIGTERM to the agent reaches all ranks; they stop after the same step, and the run goes on later."""
    job = start(torchrun(tmp_path))
    deadline = time.monotonic() + 120
    while not list((tmp_path / "checkpoints").glob("step-*.pt")):
        assert time.monotonic() < deadline and job.poll() is None
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=120)
    finish(start(torchrun(tmp_path)))
    assert_close(tmp_path, alone)


def test_a_batch_that_does_not_divide_is_refused_with_numbers(tmp_path, start):
    said = finish(start(torchrun(tmp_path, "--batch-size", "9")), code=1)
    assert "batch size 9 is not divisible by 2 processes; try 8" in said
