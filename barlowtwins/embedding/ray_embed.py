"""Shards of an EMB folder as tasks of a Ray cluster. If a node dies, its tasks run on other nodes.

A task makes one shard, the same unit as everywhere, so the rows are the same. The machines share a file system, on
which the EMB folder is; the list of images is made once and handed to them.
"""

from __future__ import annotations

import functools
import platform
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from barlowtwins.core.errors import BarlowTwinsError, DataError, MissingExtraError, WeightsError
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.embedding.embed_job import EmbedJob, findable
from barlowtwins.embedding.embedder import Embedder, load_embedder
from barlowtwins.embedding.shards import Shard, embed_shards, read_failures

if TYPE_CHECKING:
    from barlowtwins.data.sources import Source

__all__ = ["embed_on_ray", "require_ray"]

RETRIES = 10  # of a shard whose node or process died; an image that crashes its reader must not be retried forever
LOOK = 0.5  # seconds between looks at a stop signal


def embed_on_ray(job: EmbedJob, shards: list[Shard], after_shard: Callable[[int, int], object]) -> None:
    """Make `shards`, each as a task; a task takes one GPU where the cluster has any, else one CPU core.

    Args:
        job: what to embed, begun.
        shards: those to make.
        after_shard: called with no rows now and then, and with the numbers of rows and of failed ones as a shard is
            made; what it raises ends the work, and whole shards stay.

    Raises:
        MissingExtraError: Ray is not installed.
        DataError: there is no cluster, or a shard's task died too often.
        BarlowTwinsError: as `embed_shards` raises it.
    """
    ray = require_ray()
    ours = not ray.is_initialized()
    if ours:
        _connect(ray)
    try:
        _run(ray, job, shards, after_shard)
    finally:
        if ours:
            ray.shutdown()  # ends the tasks that are left


def require_ray() -> Any:
    """The module `ray`; raises MissingExtraError where it is not installed."""
    try:
        import ray
    except ModuleNotFoundError:
        raise MissingExtraError("ray", "ray") from None
    return ray


def _connect(ray: Any) -> None:
    """Join the cluster that RAY_ADDRESS names or that runs on this machine, or start one on this machine."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise DataError(f"cannot connect to a Ray cluster: {error}; set RAY_ADDRESS to its address") from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, handler)  # Ray sets one of its own, which ends the process at once


def _run(ray: Any, job: EmbedJob, shards: list[Shard], after_shard: Callable[[int, int], object]) -> None:
    resources = ray.cluster_resources()
    gpus, cores = resources.get("GPU", 0), resources.get("CPU", 1)
    workers = job.config.workers
    if workers is None:
        workers = max(0, int(cores // gpus) - 1) if gpus else 0
    task = ray.remote(_embed_shard).options(
        num_cpus=max(1, workers), num_gpus=1 if gpus else 0, max_retries=RETRIES, scheduling_strategy="SPREAD"
    )
    source = ray.put(job.source)
    settings = (
        findable(job.config.weights),
        job.embedder.sha256,
        job.embedder.precision,
        job.embedder.preprocessing,
        job.embedder.runtime,
    )
    folder = job.folder.absolute()
    left = list(reversed(shards))
    running: dict[Any, Shard] = {}
    while left or running:
        now = ray.cluster_resources()  # a cluster may grow if it sees tasks that wait, and shrink
        at_once = 2 * int(now.get("GPU", 0) if gpus else now.get("CPU", 0)) + 1
        while left and len(running) < at_once:
            shard = left.pop()
            running[
                task.remote(source, settings, shard, folder, job.config.batch_size, job.config.normalize, workers)
            ] = shard
        ended, _ = ray.wait(list(running), timeout=LOOK)
        for reference in ended:
            shard = running.pop(reference)
            after_shard(len(shard.rows), _result(ray, reference, shard))
        after_shard(0, 0)


def _result(ray: Any, reference: Any, shard: Shard) -> int:
    """How many rows of a shard failed."""
    try:
        return int(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, BarlowTwinsError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        first = str(error).strip().partition("\n")[0]
        raise DataError(
            f"shard {shard.index} (rows {shard.rows.start} to {shard.rows.stop - 1}) died {RETRIES + 1} times on Ray: "
            f"{first}; the same command resumes with it"
        ) from error


# What runs on the machines of the cluster ---------------------------------------------------------------------------


def _embed_shard(
    source: Source,
    settings: tuple[Any, ...],
    shard: Shard,
    folder: Path,
    batch_size: int,
    normalize: bool,
    workers: int,
) -> int:
    """Make one shard; gives the number of rows that failed."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not on {platform.node()}; the machines must share the folder of the result")
    embedder = _embedder(*settings)
    embed_shards(source, embedder, [shard], folder, batch_size=batch_size, normalize=normalize, workers=workers)
    return len(read_failures(shard, folder))


@functools.lru_cache(maxsize=1)  # Ray uses its processes again
def _embedder(weights: str, sha256: str, precision: str, preprocessing: Preprocessing, runtime: str) -> Embedder:
    embedder = load_embedder(weights, precision=precision, progress=False, runtime=runtime)
    if embedder.sha256 != sha256:
        raise WeightsError(
            f"{weights} on {platform.node()} is another file than on the machine that asks for it; put the same there"
        )
    embedder.preprocessing = preprocessing
    return embedder
