"""Embed on a Ray cluster of two nodes of this machine, one of which is killed midway. Run by test_ray.py.

    python ray_cluster.py IMAGES WEIGHTS OUT READS

READS becomes a file with a line for each image that is read: the row, and the node that reads it.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from barlowtwins.config import EmbedConfig
from barlowtwins.embed import embed
from barlowtwins.listing import list_folder
from barlowtwins.sources import FileSource

ROWS_OF_A_SHARD = 8


class SlowSource(FileSource):
    """Takes a while for each image, and writes down who reads it."""

    reads: str

    def read(self, index: int):
        with open(self.reads, "a") as file:
            file.write(f"{index} {ray.get_runtime_context().get_node_id()}\n")
        time.sleep(0.1)
        return super().read(index)


def main(images: str, weights: str, out: str, reads: str) -> None:
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    second = cluster.add_node(**node)
    cluster.wait_for_nodes()

    def kill() -> None:
        """In the middle of the second node's third shard or later: by then it has finished some."""
        while sum(line.endswith(second.node_id) for line in read_lines(reads)) < 2 * ROWS_OF_A_SHARD + 3:
            time.sleep(0.02)
        cluster.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    ray.init(cluster.address, log_to_driver=False)
    source = SlowSource("images", Path(images), list_folder(Path(images)))
    source.reads = reads
    config = EmbedConfig(source, weights, out, device="cpu", workers=0, batch_size=4, launch="ray")  # type: ignore[arg-type]
    print(embed(config, shard_rows=ROWS_OF_A_SHARD).summary())
    killer.join(10)
    print("killed", second.node_id)
    ray.shutdown()
    cluster.shutdown()


def read_lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


if __name__ == "__main__":
    main(*sys.argv[1:])
