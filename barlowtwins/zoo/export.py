"""`barlowtwins export`: a backbone as a program that runs without this package, or as another one's weight file.

Programs take normalised images (N, C, S, S) float32, any N, and give features (N, F) float32. What must be done to the
images before is written beside them: in the file's metadata, as `Preprocessing.to_dict` says it. A program that can be
run here is run, on other numbers of images than it was traced with, and compared with the backbone.
"""

# Legend: N images, C input channels, S side in pixels, F features.

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from barlowtwins.core.errors import MissingExtraError, WeightsError
from barlowtwins.core.files import sha256_of, write_bytes
from barlowtwins.core.printing import render
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.version import __version__
from barlowtwins.zoo.conversion import WRITERS, check_free, write_as
from barlowtwins.zoo.weights import load_weights

if TYPE_CHECKING:
    from barlowtwins.config import ExportConfig

__all__ = ["ExportResult", "export", "to_onnx", "to_torch_export", "to_torchscript"]

INPUT, OUTPUT = "images", "features"
LARGEST_DIFFERENCE = 1e-3  # of a feature, relative to the largest one of its image: float32 in another order of sums
OTHER_N = (1, 3)  # numbers of images that a program is tried with; it is traced with 2


@dataclass(frozen=True)
class ExportResult:
    """A file that was written."""

    out: Path
    format: str
    sha256: str
    backbone: str
    input: str
    """Shape of what it takes; of weight files, of what the network takes."""
    features: int | None
    """F; None for weight files."""
    difference: float | None
    """Largest difference of a feature from the backbone's own, relative to the largest one of its image."""
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """What a person is told; what there is none of has no line."""
        told = {name: value for name, value in vars(self).items() if value not in (None, ())}
        return render(told)


def export(config: ExportConfig) -> ExportResult:
    """Write the backbone of `config.weights` to the file `config.out`.

    Raises:
        WeightsError, DownloadError: the weights cannot be loaded, or the program gives other features than they do.
        MissingExtraError: ONNX is asked for and its libraries are not installed.
        OutputError: the file exists, or cannot be written.
    """
    out = Path(config.out)
    check_free(out, config.overwrite)
    weights = load_weights(config.weights)
    how = weights.preprocessing
    if config.image_size is not None:
        how = dataclasses.replace(how, image_size=config.image_size)
    shape = f"(N, {weights.channels}, {how.image_size}, {how.image_size})"
    if config.format in WRITERS:
        written = write_as(config.format, weights, out)
        return ExportResult(out, config.format, written.sha256, weights.backbone_name, shape, None, None, written.notes)

    backbone = weights.build()
    make, notes = PROGRAMS[config.format]
    data, run = make(backbone, how)
    difference = _compare(backbone, run, how)
    write_bytes(out, data)
    with torch.inference_mode():
        features = backbone(_images(1, how)).shape[1]
    return ExportResult(out, config.format, sha256_of(out), weights.backbone_name, shape, features, difference, notes)


Program = Callable[[Tensor], Tensor]


def to_onnx(backbone: nn.Module, preprocessing: Preprocessing) -> tuple[bytes, Program]:
    """An ONNX model with a dynamic number of images, and how ONNX Runtime runs it on the CPU.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise MissingExtraError(module, "onnx") from error
    import onnx
    import onnxruntime

    with _quiet():
        program = torch.onnx.export(
            backbone.eval(),
            (_images(2, preprocessing),),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, _metadata(preprocessing))
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    return data, run


def to_torch_export(backbone: nn.Module, preprocessing: Preprocessing) -> tuple[bytes, Program]:
    """A `torch.export` program (.pt2) with a dynamic number of images: `torch.export.load(FILE).module()(images)`."""
    with _quiet(), torch.no_grad():
        example = (_images(2, preprocessing),)
        program = torch.export.export(backbone.eval(), example, dynamic_shapes=({0: torch.export.Dim("N")},))
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files=_metadata(preprocessing))
        buffer.seek(0)
        return buffer.getvalue(), torch.export.load(buffer).module()


def to_torchscript(backbone: nn.Module, preprocessing: Preprocessing) -> tuple[bytes, Program]:
    """A traced TorchScript module: `torch.jit.load(FILE)(images)`. deprecated by torch, and still there."""
    with _quiet(), torch.no_grad():
        traced = torch.jit.trace(backbone.eval(), _images(2, preprocessing))
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer, _extra_files=_metadata(preprocessing))
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
    return buffer.getvalue(), loaded


PROGRAMS: dict[str, tuple[Callable[[nn.Module, Preprocessing], tuple[bytes, Program]], tuple[str, ...]]] = {
    "onnx": (to_onnx, ()),
    "torch-export": (to_torch_export, ()),
    "torchscript": (to_torchscript, ("torch calls TorchScript deprecated; torch-export is its successor",)),
}


def _images(n: int, preprocessing: Preprocessing) -> Tensor:
    side = preprocessing.image_size
    return torch.randn(n, preprocessing.channels, side, side, generator=torch.Generator().manual_seed(n))


def _compare(backbone: nn.Module, run: Program, preprocessing: Preprocessing) -> float:
    """The largest relative difference of the program's features from the backbone's.

    Raises:
        WeightsError: it is too large to be rounding.
    """
    largest = 0.0
    for n in OTHER_N:
        images = _images(n, preprocessing)
        with torch.no_grad(), _quiet():
            expected, given = backbone(images), run(images)  # (n, F)
        scale = expected.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
        difference = ((given - expected).abs() / scale).max().item()
        if not difference <= LARGEST_DIFFERENCE:  # nor NaN
            raise WeightsError(f"the exported program gives other features ({difference:.2g}); nothing was written")
        largest = max(largest, difference)
    return largest


def _metadata(preprocessing: Preprocessing) -> dict[str, str]:
    return {"barlowtwins": __version__, "preprocessing": json.dumps(preprocessing.to_dict())}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own warnings, which speak of their insides and of what they will rename."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
