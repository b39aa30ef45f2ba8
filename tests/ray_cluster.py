"""Embed on a Ray cluster of two nodes of this machine, one of which is killed midway. Run by test_ray.py.

    python ray_cluster.py IMAGES WEIGHTS OUT READS

READS becomes a file with a line for each image that is read: the row, and the node that reads it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from barlowtwins.config import EmbedConfig
from barlowtwins.data.listing import list_folder
from barlowtwins.data.sources import FileSource
from barlowtwins.embedding.embed import embed

ROWS_OF_A_SHARD = 8
LAST_READ = ROWS_OF_A_SHARD + 3  # of the node that is killed: in the middle of its second shard


class WatchedSource(FileSource):
    """Writes down which node reads what. The one to be killed comes as far as that and no further; the other one makes
    its first shard, and goes on when that has happened."""

    reads: str
    doomed: str

    def read(self, index: int):
        node = ray.get_runtime_context().get_node_id()
        with open(self.reads, "a") as file:
            file.write(f"{index} {node}\n")
        mine = sum(line.endswith(node) for line in read_lines(self.reads))
        last = LAST_READ if node == self.doomed else ROWS_OF_A_SHARD
        while mine > last:
            if Path(f"{self.reads}.killed").exists():
                if node == self.doomed:  # Ray's workers live on for a moment when their node is dead
                    os._exit(1)
                break
            time.sleep(0.05)
        return super().read(index)


def main(images: str, weights: str, out: str, reads: str) -> None:
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    second = cluster.add_node(**node)
    cluster.wait_for_nodes()

    def kill() -> None:
        while sum(line.endswith(second.node_id) for line in read_lines(reads)) <= LAST_READ:
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)
        Path(f"{reads}.killed").touch()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    ray.init(cluster.address, log_to_driver=False)
    source = WatchedSource("images", Path(images), list_folder(Path(images)))
    source.reads, source.doomed = reads, second.node_id
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
