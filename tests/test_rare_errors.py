"""Errors that no test of a module brings about; that every one is brought about is seen at the end of a full run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from servers import Server, redirect, without_length
from tiny import write_images, write_weights
from training import full_disk
from weight_files import backbone_state, record, saved, write_registry

from barlowtwins.config import (
    AugmentConfig,
    EmbedConfig,
    ExportConfig,
    LinearConfig,
    MapConfig,
    NeighborsConfig,
    WeightsConvertConfig,
)
from barlowtwins.core import safetensors_file
from barlowtwins.core.device import resolve_precision
from barlowtwins.core.distributed import World
from barlowtwins.core.errors import (
    BarlowTwinsError,
    ConfigError,
    DataError,
    DownloadError,
    MissingExtraError,
    OutputError,
    StoppedEarly,
    TrainingError,
    WeightsError,
)
from barlowtwins.core.locks import FolderLock
from barlowtwins.core.readers import UnsoundFile
from barlowtwins.core.safetensors_file import read_header, write_safetensors
from barlowtwins.data.batches import ranges
from barlowtwins.data.datasets import _read_idx as read_idx
from barlowtwins.data.open import open_source
from barlowtwins.data.preprocess import Preprocessing, as_image, check_normalization
from barlowtwins.data.tars import _read_index as read_tar
from barlowtwins.embedding.embed import _wait_for_others, embed
from barlowtwins.embedding.embedder import Embedder, load_embedder
from barlowtwins.embedding.embeddings import open_embeddings, require_format
from barlowtwins.embedding.ray_embed import _connect, _embed_shard, _result, require_ray
from barlowtwins.embedding.shards import Shard
from barlowtwins.evaluate import evaluate_linear
from barlowtwins.evaluate.features import extract_features
from barlowtwins.evaluate.multilabel import open_multilabel
from barlowtwins.evaluate.protocols import FINE_TUNING, learning_rate
from barlowtwins.evaluate.semi import listed_images
from barlowtwins.loss import barlow_twins_loss
from barlowtwins.metrics.knn import knn_predict
from barlowtwins.models.resnet import build_backbone, feature_width, recognize_backbone
from barlowtwins.models.timm import build_timm
from barlowtwins.reports.map import map
from barlowtwins.reports.neighbors import neighbors
from barlowtwins.reports.projection import project
from barlowtwins.reports.sheets import augment
from barlowtwins.runs.job_folder import read_record
from barlowtwins.runs.run_folder import backbone_metadata
from barlowtwins.train.trackers import TensorBoard
from barlowtwins.views.transform import TwinTransform
from barlowtwins.zoo.conversion import weights_convert, write_as
from barlowtwins.zoo.detection import detection_backbone
from barlowtwins.zoo.download import check_digest, download
from barlowtwins.zoo.export import export
from barlowtwins.zoo.heads import load_classifier, load_head
from barlowtwins.zoo.locate import _located_file
from barlowtwins.zoo.safe_load import read_weight_file
from barlowtwins.zoo.transfer import Transfer
from barlowtwins.zoo.weights import load_weights


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
    fails(
        lambda: detection_backbone(tmp_path / "timm.safetensors"),
        WeightsError,
        "a feature pyramid needs a ResNet.s four stages",
    )


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
    fails(lambda: load_embedder(work.weights, runtime="tpu"), ConfigError, "there is no runtime 'tpu'; use 'auto'")
    fails(lambda: load_embedder(work.weights, device="cpu").encode(3), DataError, "int is not a supported input")  # type: ignore[arg-type]


def test_embedding_folders(work: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "index.csv").touch()
    (newer / "meta.json").write_text('{"layout": 99}')
    fails(lambda: open_embeddings(newer), DataError, "made by a newer barlowtwins")
    fails(lambda: map(MapConfig(str(work.nothing), str(tmp_path / "m.html"))), DataError, "no row of .* has features")
    fails(
        lambda: map(MapConfig(str(work.emb), str(tmp_path / "m.html"), method="pca", colour="label", clusters=2)),
        DataError,
        "has no labels; use --colour cluster",
    )
    query = NeighborsConfig(str(work.nothing), query=str(work.images / "0000.png"))
    fails(lambda: neighbors(query), DataError, "no image in .* could be read; see its index.csv")
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
    fails(lambda: build_timm("resnet18", torch.nn.Identity, output_stride=7), ConfigError, "cannot build 'resnet18'")


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

    def flock(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    fails(lambda: FolderLock(tmp_path).__enter__(), OutputError, "cannot write to .*: Input/output error")


def test_folders_that_cannot_be_locked_for_lack_of_space_or_leave(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fails(lambda: FolderLock(tmp_path / "file" / "x").__enter__(), OutputError, "cannot write to .*file/x: Not a dir")
    with full_disk(0):
        fails(
            lambda: FolderLock(tmp_path).__enter__(),
            OutputError,
            r"no space left to write .*\.lock\.json .*; free some",
        )


def test_a_file_that_becomes_shorter_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at its size and the reading of its numbers; the moment is hit by way of the check in between."""
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(100_000)}, path)
    check = safetensors_file._check_spans

    def cut(*arguments: Any) -> None:
        check(*arguments)
        os.truncate(path, 10_000)

    monkeypatch.setattr(safetensors_file, "_check_spans", cut)
    fails(lambda: read_weight_file(path), WeightsError, "it became shorter while it was read")


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


def test_settings_of_nothing() -> None:
    fails(lambda: ranges(0, 4, 0), ConfigError, "the batch size is 0; it must be 1 or more")
    fails(lambda: feature_width(torch.nn.Linear(2, 3)), ConfigError, "Linear does not define its feature width")
    strange = dataclasses.replace(FINE_TUNING["default"], schedule="zigzag")
    fails(lambda: learning_rate(strange, 0, 10), ConfigError, "there is no schedule 'zigzag'; use cosine")


def test_a_format_that_nobody_writes(work: SimpleNamespace, tmp_path: Path) -> None:
    weights = load_weights(work.weights)
    fails(lambda: write_as("zip", weights, tmp_path / "out"), ConfigError, "there is no format 'zip' to write; choose")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A link to itself and a folder cannot be read even by the superuser."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    fails(lambda: check_digest(loop, None), DownloadError, "cannot read .*; make it readable, or remove it")
    fails(lambda: _located_file("w", loop), WeightsError, "cannot read .*; make it readable")
    fails(lambda: read_weight_file(tmp_path), WeightsError, "it is a folder, pipe, device or socket where a file")
    fails(lambda: read_weight_file(loop), WeightsError, "cannot read .*; make it readable")
    (tmp_path / "job.json").write_text("{")
    fails(lambda: read_record(tmp_path / "job.json"), OutputError, "cannot be read .*; choose another folder, or remo")
    (tmp_path / "x.tar").mkdir()
    fails(lambda: read_tar(str(tmp_path / "x.tar")), DataError, "cannot read .*x.tar")


def test_a_header_that_is_a_list(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes((2).to_bytes(8, "little") + b"{}")
    assert read_weight_file(path).value == {}
    path.write_bytes((2).to_bytes(8, "little") + b"[]")
    with open(path, "rb") as file, pytest.raises(UnsoundFile, match="its header is not a JSON object"):
        read_header(file)


def test_a_sparse_member_of_an_archive(tmp_path: Path) -> None:
    """GNU tar's sparse files store pieces: the bytes of one image would not lie in a row."""
    with open(tmp_path / "holes.png", "wb") as file:
        file.truncate(1 << 20)
        file.write(b"end")
    command = ["tar", "--sparse", "--format=gnu", "-cf", "x.tar", "holes.png"]
    if subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode:
        pytest.skip("there is no GNU tar")
    fails(lambda: read_tar(str(tmp_path / "x.tar")), DataError, "as a sparse file; make it again without --sparse")


def test_a_gpu_whose_memory_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest thing on a machine without a GPU: the network says what torch says there."""

    class Full(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    full = Full()
    full.fc = torch.nn.Identity()  # type: ignore[assignment]
    full.fc.in_features = full.fc.out_features = 4  # type: ignore[assignment]
    embedder = Embedder(full, Preprocessing(8, None), device="cpu")  # type: ignore[arg-type]
    fails(lambda: embedder.forward(torch.zeros(6, 3, 8, 8)), TrainingError, "with 6 images; try --batch-size 3")


def test_extras_that_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing(monkeypatch, "torch.utils.tensorboard")
    fails(lambda: TensorBoard(tmp_path), MissingExtraError, "track")
    missing(monkeypatch, "fsspec")
    fails(lambda: open_source("memory://nothing"), MissingExtraError, "shards")
    missing(monkeypatch, "ray")
    fails(require_ray, MissingExtraError, "ray")


def test_a_file_system_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    missing(monkeypatch, "s3fs")
    fails(lambda: open_source("s3://bucket/images"), DataError, "cannot be opened: .*pip install s3fs")


def test_images_that_are_no_longer_at_hand(work: SimpleNamespace, tmp_path: Path) -> None:
    folder = shutil.copytree(work.emb, tmp_path / "emb")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "root": None, "data": "a folder that was"}))
    config = NeighborsConfig(str(folder), query="0", sheet=str(tmp_path / "sheet.png"))
    fails(lambda: neighbors(config), DataError, "for --sheet; name them as --data or --data-root")


def test_a_cluster_that_does_not_answer_and_shards_that_die(work: SimpleNamespace, tmp_path: Path) -> None:
    """Ray's own errors, handed over as `ray.get` and `ray.init` raise them."""
    ray = pytest.importorskip("ray", reason="needs pip install 'barlowtwins[ray]'")

    def refuse(**_: object) -> None:
        raise ConnectionError("nobody there")

    fails(
        lambda: _connect(SimpleNamespace(init=refuse)),
        DataError,
        "cannot connect to a Ray cluster: nobody there; set RAY_ADD",
    )

    def die(_: object) -> int:
        raise ray.exceptions.WorkerCrashedError

    shard = Shard(3, 9, range(8, 16))
    dead = SimpleNamespace(get=die, exceptions=ray.exceptions)
    fails(lambda: _result(dead, None, shard), DataError, r"shard 3 \(rows 8 to 15\) died 11 times on Ray")
    settings = (str(work.weights), "0" * 64, "fp32", Preprocessing(), "torch")
    arguments = (shard, tmp_path / "absent", 4, False, 0)
    fails(lambda: _embed_shard(None, settings, *arguments), DataError, "the machines must share the folder")  # type: ignore[arg-type]
    arguments = (shard, tmp_path, 4, False, 0)
    fails(lambda: _embed_shard(None, settings, *arguments), WeightsError, "is another file than on the machine")  # type: ignore[arg-type]


def test_a_rank_that_is_stopped_while_it_waits() -> None:
    job = SimpleNamespace(shards=[1], missing=lambda shards: shards)
    stop = SimpleNamespace(requested=True, name="SIGTERM")
    fails(lambda: _wait_for_others(job, stop), StoppedEarly, "SIGTERM while other processes embed")  # type: ignore[arg-type]


def test_ways_of_dividing_the_work_that_exclude_each_other(
    work: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    @contextlib.contextmanager
    def two(_: str) -> Iterator[World]:
        yield World(0, 2, torch.device("cpu"))

    monkeypatch.setattr("barlowtwins.embedding.embed.open_world", two)
    config = EmbedConfig(str(work.images), str(work.weights), str(tmp_path / "out"), part="1/2", device="cpu")
    fails(lambda: embed(config), ConfigError, "torchrun, --part and --launch ray each divide the work; use one")


def test_a_server_that_sends_more_than_it_should_and_an_address_that_is_none(server: Server, tmp_path: Path) -> None:
    url = server.answer("/w.pth", without_length(b"x" * 1000))
    too_much = Transfer(url, tmp_path / "w.pth", size=10, progress=False)
    fails(too_much.run, DownloadError, "sends more than the 10 bytes that it should have")
    nowhere = "http://127.0.0.1:99999/w.pth"
    fails(
        lambda: download(nowhere, tmp_path / "w.pth", progress=False), DownloadError, "cannot fetch .*is the URL right"
    )
    assert list(tmp_path.iterdir()) == []
