"""Embedding on Ray: the rows of one process, also where a node dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import write_images, write_weights

from barlowtwins.config import EmbedConfig
from barlowtwins.embedding.embed import embed

ROWS = 60
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EmbedConfig:
    folder = tmp_path_factory.mktemp("ray")
    images = write_images(folder / "images", ROWS)
    (images / "0033.png").write_bytes(b"")
    weights = write_weights(folder / "tiny.safetensors")
    return EmbedConfig(str(images), str(weights), str(folder / "alone"), device="cpu", workers=0, batch_size=4)


@pytest.mark.slow
@pytest.mark.timeout(600)  # a dozen processes start, on however few cores
def test_a_node_that_dies_takes_no_row_along(config: EmbedConfig, tmp_path: Path) -> None:
    """Two nodes share the shards; one is killed in the middle of one; the folder ends as that of one process."""
    pytest.importorskip("ray", reason="needs pip install 'barlowtwins[ray]'")
    out, reads = tmp_path / "out", tmp_path / "reads"
    command = [sys.executable, HERE / "ray_cluster.py", config.data, config.weights, out, reads]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stdout + run.stderr
    killed = next(line.split()[1] for line in run.stdout.splitlines() if line.startswith("killed "))  # Ray talks too

    read = [line.split() for line in reads.read_text().splitlines()]
    by_node = {node: [int(row) for row, at in read if at == node] for _, node in read}
    assert len(by_node) == 2
    (other,) = by_node.keys() - {killed}
    whole, cut = by_node[killed][:8], by_node[killed][8:]
    assert len(cut) == 4  # it died in the middle of its second shard
    assert set(cut) <= set(by_node[other])  # which was begun anew
    assert not set(whole) & set(by_node[other])  # its first one was not
    assert set(by_node[killed]) | set(by_node[other]) == set(range(ROWS))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each task has: sums of more threads round otherwise
    try:
        embed(config, shard_rows=8)
    finally:
        torch.set_num_threads(threads)
    assert (out / "embeddings.npy").read_bytes() == Path(config.out, "embeddings.npy").read_bytes()
    assert (out / "index.csv").read_bytes() == Path(config.out, "index.csv").read_bytes()
    assert sorted(path.name for path in out.iterdir()) == ["embeddings.npy", "index.csv", "meta.json"]


def test_where_ray_is_absent_the_message_says_what_brings_it(config: EmbedConfig, tmp_path: Path) -> None:
    code = "import sys; sys.modules['ray'] = None; from barlowtwins.cli import main; sys.exit(main())"
    flags = ["--weights", config.weights, "--out", str(tmp_path / "out"), "--launch", "ray", "--device", "cpu"]
    command = [sys.executable, "-c", code, "embed", config.data, *flags]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].endswith("run: pip install 'barlowtwins[ray]'")
