"""The errors of the package: the form of their messages, and those that no test of a module brings about.

That each is reached by some test is seen at the end of a full run (see raises.py and conftest.py).
"""

from __future__ import annotations

import ast
import builtins
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from raises import ELSEWHERE, NOTES, PACKAGE, noted_lines, places, unreached
from safetensors.torch import save_file
from servers import Server, redirect
from tiny import write_images, write_weights
from training import full_disk
from weight_files import backbone_state, record, saved, write_registry

import barlowtwins
from barlowtwins import errors
from barlowtwins.config import (
    AugmentConfig,
    EmbedConfig,
    ExportConfig,
    LinearConfig,
    MapConfig,
    NeighboursConfig,
    WeightsConvertConfig,
)
from barlowtwins.data.datasets import _read_idx as read_idx
from barlowtwins.data.open import open_source
from barlowtwins.data.preprocess import Preprocessing, as_image, check_normalization
from barlowtwins.detection import detection_backbone
from barlowtwins.device import resolve_precision
from barlowtwins.distributed import World
from barlowtwins.embedding.embed import embed
from barlowtwins.embedding.embedder import load_embedder
from barlowtwins.embedding.embeddings import open_embeddings, require_format
from barlowtwins.errors import (
    BarlowTwinsError,
    ConfigError,
    DataError,
    DownloadError,
    MissingExtraError,
    OutputError,
    WeightsError,
)
from barlowtwins.evaluate import evaluate_linear
from barlowtwins.evaluate.features import extract_features
from barlowtwins.evaluate.knn import knn_predict
from barlowtwins.evaluate.multilabel import open_multilabel
from barlowtwins.evaluate.semi import listed_images
from barlowtwins.lock import FolderLock
from barlowtwins.looking.map import map
from barlowtwins.looking.neighbours import neighbours
from barlowtwins.looking.projection import project
from barlowtwins.looking.sheets import augment
from barlowtwins.loss import barlow_twins_loss
from barlowtwins.model import build_backbone, recognize_backbone
from barlowtwins.timm_backbone import build_timm
from barlowtwins.views.augment import TwinTransform
from barlowtwins.zoo import safe_load
from barlowtwins.zoo.convert import weights_convert
from barlowtwins.zoo.download import download
from barlowtwins.zoo.export import export
from barlowtwins.zoo.head import load_classifier, load_head
from barlowtwins.zoo.safe_save import backbone_metadata, write_safetensors
from barlowtwins.zoo.weights import load_weights

# The form of a message: what was found, where, and what to do ---------------------------------------------------------

EVERY = places()
WRAPPED = re.compile(r"^(its|it) |^\{\}$|^\{\}\{\}$|^\{\}: \{\}$")
"""Half a sentence that another message of the same file completes, or words that were put together before."""


def test_places_are_found() -> None:
    assert len(EVERY) > 250
    named = {place.file for place in EVERY}
    assert {"pretrain.py", "zoo/safe_load.py", "evaluate/semi.py", "recipes/__init__.py"} <= named


def test_a_message_is_one_line_that_begins_small_and_has_no_full_stop() -> None:
    for place in EVERY:
        if place.kind == "MissingExtraError":
            continue  # it makes its own
        assert "\n" not in place.message, place
        assert place.message == place.message.strip(), place
        assert not place.message.endswith((".", "!")) or place.message.endswith("..."), place
        first = place.message.split()[0]
        assert not (first[0].isupper() and first[1:].islower()), place  # names such as LARS may begin with a capital


def test_a_message_says_what_was_found_or_where() -> None:
    """Something is filled in: the value, the file, the numbers."""
    plain = [place.message for place in EVERY if "{}" not in place.message and place.kind != "MissingExtraError"]
    left = {message for message in plain if not WRAPPED.search(message) and ";" not in message}
    assert left <= {"a classifier needs readable images of two classes or more"}


WAY_OUT = re.compile(
    r";|\?|--|\b(must|try|choose|use|give|pass|see|put|leave|needs?|instead|did you mean|the same command)\b"
    r"|: refused|Without a connection|only .* (is|are) understood"
)
"""Something to do: a second part, a flag, a question, or a verb."""
COMPLETED = {
    "recipe {}: {}": "by an error of the settings",
    "{} cannot be opened: {}{}": "by the package that is missing",
    "the entry of {} is not understood: {}": "by the error of the whole file, as are the next three",
    "{} has shape {} and offsets {}, which cannot be": "",
    "{} has {} bytes, which do not hold {} numbers of {}": "",
    "{} (bytes {} to {}) {} {}": "",
}
"""Messages that another one completes, and which."""


def test_a_message_says_what_to_do() -> None:
    silent = {
        place.message
        for place in EVERY
        if place.kind != "MissingExtraError" and not WAY_OUT.search(place.message) and not WRAPPED.search(place.message)
    }
    assert silent <= set(COMPLETED)


def test_every_exception_that_is_raised_is_ours() -> None:
    """Or one that Python's protocols ask for, or one that never leaves its module."""
    protocols = {
        "IndexError",
        "AttributeError",
        "KeyboardInterrupt",
        "NotImplementedError",
        "StopIteration",
        "TypeError",
    }
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text("utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
                name = node.exc.func.id
                if isinstance(getattr(builtins, name, None), type) and name not in protocols:
                    caught = re.search(rf"except [^\n]*\b{name}\b", source) or (path.name, name) in CAUGHT
                    assert caught, f"{path}:{node.lineno} raises {name}"


CAUGHT = {("images.py", "OSError")}
"""By `except _DECODING_ERRORS`, which has it."""


# The look at the end of a full run ------------------------------------------------------------------------------------


def test_a_place_that_was_reached_is_noted() -> None:
    with pytest.raises(ConfigError):
        barlowtwins.BarlowTwins("resnet19")
    place = next(place for place in EVERY if place.message.startswith("unknown backbone"))
    notes = Path(os.environ[NOTES])
    assert {f"{place.file}:{line}" for line in range(place.first, place.last + 1)} & noted_lines(notes)
    assert place not in unreached(notes)


def test_places_that_were_not_reached_are_told(tmp_path: Path) -> None:
    assert [place for place in unreached(tmp_path) if place.message in ELSEWHERE] == []
    assert len(unreached(tmp_path)) == len(EVERY) - sum(place.message in ELSEWHERE for place in EVERY)
    place = next(place for place in EVERY if place.file == "evaluate/knn.py")
    (tmp_path / f"evaluate+knn.py:{place.last}").touch()
    assert place not in unreached(tmp_path)


def test_exceptions_to_the_rule_are_still_there() -> None:
    assert set(ELSEWHERE) <= {place.message for place in EVERY}


# Errors that no other test brings about -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Weights, images, and what was embedded of them."""
    folder = tmp_path_factory.mktemp("work")
    weights, images = write_weights(folder / "w.safetensors"), write_images(folder / "images", 6)
    embed(EmbedConfig(str(images), str(weights), str(folder / "emb"), device="cpu", workers=0))
    (folder / "bad").mkdir()
    (folder / "bad" / "0.png").write_bytes(b"no image")
    embed(EmbedConfig(str(folder / "bad"), str(weights), str(folder / "nothing"), device="cpu", workers=0))
    return SimpleNamespace(
        folder=folder, weights=weights, images=images, emb=folder / "emb", nothing=folder / "nothing"
    )


def fails(call: Callable[[], Any], kind: type[BarlowTwinsError], match: str) -> None:
    with pytest.raises(kind, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


def missing(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Make it look as if `module` were not installed."""
    monkeypatch.setitem(sys.modules, module, None)


def test_weights_that_do_not_go_into_a_format(work: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "out.pkl"
    convert = WeightsConvertConfig(str(work.weights), to="detectron2", out=str(out))
    fails(lambda: weights_convert(convert), WeightsError, "has the 'small' stem; detectron2's ResNets begin with 7x7")
    out.touch()
    fails(lambda: weights_convert(convert), OutputError, r"out\.pkl exists; choose another name, or add --overwrite")


def test_an_empty_sequence() -> None:
    fails(lambda: open_source([]), DataError, "an empty sequence")


def test_detectors(work: SimpleNamespace, tmp_path: Path) -> None:
    grey = tmp_path / "grey.pth"
    grey.write_bytes(saved(backbone_state(channels=1)))
    fails(lambda: detection_backbone(grey), WeightsError, "takes grey images; torchvision's detectors")
    pytest.importorskip("timm")
    network = build_backbone("timm:resnet10t")
    says = backbone_metadata("timm:resnet10t", "imagenet", Preprocessing())
    write_safetensors(tmp_path / "timm.safetensors", network.state_dict(), says)
    fails(lambda: detection_backbone(tmp_path / "timm.safetensors"), WeightsError, "a feature pyramid needs the stages")


def test_precision_that_a_gpu_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no such GPU here, so torch is made to say so."""

    class Context:
        def __init__(self, _: object) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "device", Context)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "an old GPU")
    fails(lambda: resolve_precision("bf16", torch.device("cuda")), ConfigError, "cannot compute in bf16; use")
    assert resolve_precision("auto", torch.device("cuda")) == "fp32"


def test_embedding(work: SimpleNamespace, tmp_path: Path) -> None:
    onnx = EmbedConfig(str(work.images), str(work.weights), str(tmp_path / "out"), runtime="onnx")
    fails(lambda: embed(onnx), ConfigError, "torch only; leave out --runtime onnx")
    fails(lambda: load_embedder(work.weights, device="cpu").encode(3), DataError, "int is no kind of images")  # type: ignore[arg-type]


def test_embedding_folders(work: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "index.csv").touch()
    (newer / "meta.json").write_text('{"layout": 99}')
    fails(lambda: open_embeddings(newer), DataError, "made by a newer barlowtwins")
    fails(lambda: map(MapConfig(str(work.nothing), str(tmp_path / "m.html"))), DataError, "no row of .* holds features")
    fails(
        lambda: map(MapConfig(str(work.emb), str(tmp_path / "m.html"), method="pca", colour="label", clusters=2)),
        DataError,
        "has no labels; use --colour cluster",
    )
    query = NeighboursConfig(str(work.nothing), query=str(work.images / "0000.png"))
    fails(lambda: neighbours(query), DataError, "no image in .* could be read; its index.csv says why")
    missing(monkeypatch, "pyarrow")
    fails(lambda: require_format("parquet"), MissingExtraError, r"'barlowtwins\[parquet\]'")
    export = MapConfig(str(work.emb), str(tmp_path / "m.html"), export=str(tmp_path / "m.parquet"))
    fails(lambda: map(export), MissingExtraError, r"'barlowtwins\[parquet\]'")


def test_evaluations(work: SimpleNamespace, tmp_path: Path) -> None:
    nothing = torch.empty(0, 3)
    fails(lambda: knn_predict(nothing, [], torch.ones(1, 3)), ConfigError, "no rows")
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    fails(lambda: open_multilabel(str(tmp_path), None), DataError, r"has no files \*_trainval\.txt")
    fails(lambda: open_multilabel(str(work.images), str(work.images)), DataError, "has no labels; a line is a path")
    labelled = write_images(tmp_path / "labelled", 8, classes=2)
    other = tmp_path / "other.safetensors"
    other.write_bytes(work.weights.read_bytes())
    emb = tmp_path / "emb"
    embed(EmbedConfig(str(labelled), str(other), str(emb), device="cpu", workers=0))
    write_weights(other, seed=5)
    fails(
        lambda: evaluate_linear(LinearConfig(str(emb), str(emb), "-")), WeightsError, "by other weights than .* now is"
    )


def test_lists_and_data_that_name_nothing(work: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("\n")
    source = open_source(work.images)
    fails(
        lambda: listed_images(source, tmp_path / "one.txt"), DataError, r"the list .*one\.txt names no image; give one"
    )
    (tmp_path / "raw").mkdir()
    for part in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (tmp_path / "raw" / part).write_bytes(b"\0")
    fails(lambda: read_idx(tmp_path, "train-images-idx3-ubyte", ndim=3), DataError, "is incomplete there")
    fails(
        lambda: read_idx(tmp_path / "raw", "t10k-images-idx3-ubyte", ndim=3), DataError, "is no whole file of the MNIST"
    )


def test_missing_extras(monkeypatch: pytest.MonkeyPatch, work: SimpleNamespace, tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    missing(monkeypatch, "sklearn.manifold")
    fails(lambda: project(features, "tsne", seed=0), MissingExtraError, r"'barlowtwins\[map\]'")
    missing(monkeypatch, "umap")
    fails(lambda: project(features, "umap", seed=0), MissingExtraError, r"'barlowtwins\[map\]'")
    missing(monkeypatch, "timm")
    fails(lambda: build_timm("resnet18", torch.nn.Identity), MissingExtraError, r"'barlowtwins\[timm\]'")
    missing(monkeypatch, "onnxscript")
    onnx = ExportConfig(str(work.weights), format="onnx", out=str(tmp_path / "w.onnx"))
    fails(lambda: export(onnx), MissingExtraError, r"'barlowtwins\[onnx\]'")


def test_models_of_timm() -> None:
    pytest.importorskip("timm")
    fails(lambda: build_timm("resnet81", torch.nn.Identity), ConfigError, "has no model 'resnet81'; did you mean")
    fails(lambda: build_timm("resnet18", torch.nn.Identity, output_stride=7), ConfigError, "does not build 'resnet18'")


def test_heads(work: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    head = {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}
    save_file(head, path, {"head": "99"})
    fails(lambda: load_head(path), WeightsError, r"head\.safetensors: it was made by a newer barlowtwins")
    says = {
        "head": "1",
        "backbone": "resnet10_x0_5",
        "backbone_tensors_sha256": "0" * 64,
        "backbone_file_sha256": "0" * 64,
        "weights": "",
        "preprocessing": "{}",
    }
    for tensors, classes, complaint in (
        (head, '["a"]', "1 class names do not make a linear classifier"),
        ({**head, "bias": torch.full((2,), float("nan"))}, '["a", "b"]', "numbers that are not finite"),
        (head, "3", "is no sound HEAD file"),
    ):
        save_file(tensors, path, {**says, "classes": classes})
        fails(lambda: load_head(path), WeightsError, complaint)
    save_file(head, path, {**says, "classes": '["a", "b"]'})
    fails(lambda: load_classifier(path), WeightsError, "does not say where its backbone .* is; pass its weights")
    fails(lambda: load_head(work.weights), WeightsError, "a backbone without a classifier")


def test_weights_of_a_registry_that_lacks_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_registry(tmp_path / "registry.json", record("tiny", file="tiny.pth"))
    monkeypatch.setenv("BARLOWTWINS_REGISTRY", str(path))
    fails(lambda: load_weights("tiny"), WeightsError, r"tiny\.pth is not there; reinstall it")


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
def test_a_folder_that_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file system here refuses locks in that way, so the system call is made to."""
    import fcntl

    def lockf(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    fails(lambda: FolderLock(tmp_path).__enter__(), OutputError, "cannot lock the folder .*: Input/output error")


def test_folders_that_cannot_be_locked_for_lack_of_space_or_leave(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fails(lambda: FolderLock(tmp_path / "file" / "x").__enter__(), OutputError, "cannot write to .*file/x: Not a dir")
    with full_disk(0):
        fails(
            lambda: FolderLock(tmp_path).__enter__(), OutputError, r"cannot write .*\.lock: File too large; free some"
        )


def test_a_file_that_becomes_shorter_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at its size and the reading of its numbers; the moment is hit by way of the check in between."""
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(100_000)}, path)
    check = safe_load._check_spans

    def cut(*arguments: Any) -> None:
        check(*arguments)
        os.truncate(path, 10_000)

    monkeypatch.setattr(safe_load, "_check_spans", cut)
    fails(lambda: safe_load.read_weight_file(path), WeightsError, "it became shorter while it was read")


def test_several_processes_need_a_folder_to_share(work: SimpleNamespace) -> None:
    world = World(1, 2, torch.device("cpu"))
    embedder, source = load_embedder(work.weights, device="cpu"), open_source(work.images)
    fails(
        lambda: extract_features(source, embedder, None, world=world, batch_size=2, workers=0),
        ConfigError,
        "2 processes share features by way of a folder; give one with --out",
    )


def test_the_loss() -> None:
    fails(lambda: barlow_twins_loss(torch.ones(4, 3), torch.ones(4, 2)), ConfigError, "both must be the same")
    fails(lambda: barlow_twins_loss(torch.ones(1, 3), torch.ones(1, 3)), ConfigError, "correlations need 2 or more")


def test_views() -> None:
    fails(lambda: TwinTransform(backend="cv3"), ConfigError, "unknown backend 'cv3'; ")  # type: ignore[arg-type]
    fails(lambda: TwinTransform("imagnet"), ConfigError, "unknown augmentation 'imagnet'; ")


def test_networks_that_nobody_knows() -> None:
    state = dict(backbone_state())
    state["layer1.7.conv1.weight"] = torch.zeros(3)
    fails(
        lambda: recognize_backbone(state),
        WeightsError,
        "a ResNet of .* basic blocks, first width .* is unknown; choose one of",
    )


def test_metadata_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    state = backbone_state()
    for says, complaint in (
        ({"channels": "two"}, "'two' channels; it must be a number"),
        ({"preprocessing": "{"}, "the preprocessing in its metadata is not understood"),
        ({"preprocessing": '{"size": 3}'}, "unknown preprocessing field 'size'; it may come from a newer"),
    ):
        save_file(state, path, {"format": "pt", "backbone": "resnet10_x0_5", **says})
        fails(lambda: load_weights(path), WeightsError, complaint)
    (tmp_path / "w.pth").write_bytes(saved({**state, "bn1.bias": state["bn1.bias"].to(torch.complex64)}))
    fails(lambda: load_weights(tmp_path / "w.pth"), WeightsError, r"bn1\.bias is no plain tensor of real numbers")


def test_preprocessing_and_images() -> None:
    fails(lambda: Preprocessing.from_dict({"mean": 3}), ConfigError, "not a preprocessing record")
    fails(lambda: check_normalization(3, (0.0,), (1.0,)), ConfigError, "1 means and 1 stds for 3 channels")
    fails(lambda: check_normalization(1, (0.0,), (0.0,)), ConfigError, "must be finite and std .* positive")
    fails(lambda: check_normalization(0, (), ()), ConfigError, "channels is 0")
    fails(lambda: as_image(Image.new("RGB", (0, 3))), DataError, "no pixels: it is 0 x 3")
    fails(lambda: as_image(np.zeros((3, 4, 3), np.float32)), DataError, "an image is uint8 with levels 0-255")
    fails(lambda: as_image(np.zeros((0, 4, 3), np.uint8)), DataError, "it has no pixels")


def test_sheets(tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("# nothing\n")
    config = AugmentConfig(str(tmp_path / "none.txt"), out=str(tmp_path / "sheet.png"))
    fails(lambda: augment(config), DataError, "names no image")


def test_answers_that_nobody_asked_for(server: Server, tmp_path: Path) -> None:
    def compressed(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Encoding", "br")
        handler.send_header("Content-Length", "3")
        handler.end_headers()
        handler.wfile.write(b"abc")

    url = server.answer("/w.pth", compressed)
    fails(lambda: download(url, tmp_path / "w.pth", progress=False), DownloadError, "comes as br, which nobody asked")
    loop = server.answer("/loop", redirect(server.url("/loop")))
    fails(lambda: download(loop, tmp_path / "w.pth", progress=False), DownloadError, "redirects more than")


def test_all_kinds_are_known() -> None:
    assert {place.kind for place in EVERY} <= set(errors.__all__)


@pytest.mark.parametrize(
    ("arguments", "code", "lists"),
    [([], 1, True), (["-n", "2"], 1, True), (["-k", "here"], 0, False)],
)
def test_a_full_run_that_reaches_too_little_lists_it_and_fails(
    tmp_path: Path, arguments: list[str], code: int, lists: bool
) -> None:
    """A run of one test, which reaches next to nothing, with the conftest of all; with and without worker processes."""
    here = Path(__file__).parent
    (tmp_path / "tests").mkdir()
    for name in ("conftest.py", "raises.py", "servers.py", "browser.py"):
        shutil.copy(here / name, tmp_path / "tests")
    shutil.copytree(here / "noting", tmp_path / "tests" / "noting")
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = tests\n")
    (tmp_path / "tests" / "test_it.py").write_text(
        "import subprocess, sys\n"
        "from barlowtwins.cli import main\n"
        "def test_here(): assert main([]) == 2\n"
        "def test_in_a_process(): assert subprocess.call([sys.executable, '-m', 'barlowtwins', 'pretrian']) == 2\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != NOTES}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("barlowtwins/")]
    if not lists:
        assert told == []
        return
    assert f"{len(told)} errors that no test reached" in done.stdout
    assert len(told) == len(EVERY) - len(ELSEWHERE) - 2
    assert not any("a command is missing" in line or "did you mean" in line for line in told)
