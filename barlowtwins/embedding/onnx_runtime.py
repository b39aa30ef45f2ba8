"""A backbone run by ONNX Runtime on the CPU: built once, cached, and compared with torch before every use.

The graph is stored in the hub's cache beside its SHA-256; its name has the digest of the weights, the size of the
images and the versions of what made it. A file that does not have its digest is built again, never run.
"""

# N images, C channels, S side in pixels, D features

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from barlowtwins.core.device import usable_cores
from barlowtwins.core.errors import MissingExtraError, OutputError, WeightsError
from barlowtwins.core.files import sweep_partial, write_bytes, write_text
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.embedding.parity import parity
from barlowtwins.version import __version__
from barlowtwins.zoo.export import INPUT, OUTPUT, to_onnx
from barlowtwins.zoo.locate import cache_folder

__all__ = ["PARITY", "WORTH", "graph_path", "installed", "onnx_program"]

PARITY = 1e-4  # largest difference of a feature from torch's, relative to the largest one of its image
WORTH = 512  # images from which building the graph, some ten seconds, is paid back: torch takes half a minute for them

logger = logging.getLogger(__name__)

Program = Callable[[Tensor], Tensor]


def installed() -> bool:
    """Whether all that is needed is there; nothing is imported for the question."""
    return all(importlib.util.find_spec(module) is not None for module in ("onnx", "onnxscript", "onnxruntime"))


def onnx_program(
    backbone: nn.Module, preprocessing: Preprocessing, sha256: str, *, folder: Path | None = None
) -> Program:
    """What maps images (N, C, S, S) float32 on the CPU, any N, to features (N, D) float32.

    Args:
        backbone: in evaluation mode, on the CPU.
        preprocessing: says C and S.
        sha256: of the weights, for the name in the cache; empty: nothing is cached.
        folder: the cache; the hub's by default.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        WeightsError: the network cannot be exported, or the graph gives other features than torch.
    """
    if not installed():
        raise MissingExtraError("onnxruntime", "onnx")
    path = graph_path(preprocessing, sha256, folder or cache_folder()) if sha256 else None
    graph = None if path is None else _cached(path)
    if graph is not None:
        with contextlib.suppress(Exception):  # a graph that this machine cannot run is built again
            program = _session(graph)
            if parity(backbone, program, preprocessing) <= PARITY:
                return program
    try:
        graph, _ = to_onnx(backbone, preprocessing)
        program = _session(graph)
    except Exception as error:  # the exporter has many errors of its own
        said = str(error).strip().partition("\n")[0]
        raise WeightsError(f"ONNX Runtime cannot run this network ({said}); use --runtime torch") from error
    difference = parity(backbone, program, preprocessing)
    if not difference <= PARITY:  # nor NaN
        raise WeightsError(
            f"ONNX Runtime gives features that differ by {difference:.2g} from those of torch, more than {PARITY:g}; "
            "use --runtime torch"
        )
    if path is not None:
        _keep(path, graph)
    return program


def graph_path(preprocessing: Preprocessing, sha256: str, folder: Path) -> Path:
    """The path of the graph of these weights, whether it is built or not."""
    import onnxruntime

    made_by = (__version__, torch.__version__, onnxruntime.__version__)
    what = repr((sha256, preprocessing.channels, preprocessing.image_size, *made_by))
    return folder / f"barlowtwins-graph-{sha256[:8]}-{hashlib.sha256(what.encode()).hexdigest()[:16]}.onnx"


def _session(graph: bytes) -> Program:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL  # folds batch norm, too
    options.intra_op_num_threads = min(torch.get_num_threads(), usable_cores())  # OMP_NUM_THREADS is obeyed by both
    # A thread that waits for work must not burn the core on which a worker decodes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.contiguous().numpy()})[0]).flatten(1)

    return run


def _cached(path: Path) -> bytes | None:
    """The graph, if it is there and has the digest that was recorded when it was written; else it is removed."""
    digest = _digest_of(path)
    try:
        graph, recorded = path.read_bytes(), digest.read_text("utf-8").strip()
    except (OSError, ValueError):
        return None
    if hashlib.sha256(graph).hexdigest() == recorded:
        return graph
    logger.warning("%s does not have its digest any more; it is built again", path)
    with contextlib.suppress(OSError):
        path.unlink()
        digest.unlink()
    return None


def _keep(path: Path, graph: bytes) -> None:
    try:
        write_bytes(path, graph)
        write_text(_digest_of(path), hashlib.sha256(graph).hexdigest() + "\n")
        sweep_partial(path.parent)
    except OutputError as error:  # without a cache it is built each time
        logger.warning("the ONNX graph is not kept: %s", error)


def _digest_of(path: Path) -> Path:
    return path.with_suffix(".sha256")
