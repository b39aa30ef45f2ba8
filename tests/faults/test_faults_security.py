"""FAULTS 17 and 25, at length: files that would run code, by every way a pickle has, wherever this package reads one.

The pickles are written opcode by opcode. Each of them is shown to be live: Python's own `pickle` runs it.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from servers import Server, file
from training import tiny
from weight_files import backbone_state, published_checkpoint, saved, sha256, twins_state

from barlowtwins.core.errors import BarlowTwinsError, CheckpointError, DataError, OutputError
from barlowtwins.embedding.embeddings import open_embeddings
from barlowtwins.embedding.shards import plan_shards, read_features
from barlowtwins.hub import barlow_twins, embedder, resnet18
from barlowtwins.pretraining import pretrain
from barlowtwins.runs.checkpoint import load_checkpoint
from barlowtwins.zoo.weights import load_weights

Counted = Callable[[str, int], None]


def text(value: str) -> bytes:
    """Push a string."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def payloads(sentinel: Path) -> dict[str, bytes]:
    """Pickles that make the file `sentinel` when they run."""
    call = text(f"open({str(sentinel)!r}, 'w').close()")
    name = b"cbuiltins\neval\n"
    inner = b"\x80\x02" + name + b"(" + call + b"tR."
    namespace = b"cargparse\nNamespace\n(tR"  # a class that is allowed
    return {
        "reduce": inner,
        "reduce, by the name on the stack": b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93(" + call + b"tR.",
        "instance of protocol 0": b"(" + call + b"ibuiltins\neval\n.",
        "object of protocol 1": b"(" + name + call + b"o.",
        "build, by an allowed class with another __setstate__": b"\x80\x02"
        + namespace
        + b"}(" + text("__setstate__") + name + b"ub" + call + b"b.",
        "a pickle within the pickle": b"\x80\x02cpickle\nloads\n(B" + struct.pack("<I", len(inner)) + inner + b"tR.",
        "an attribute of an allowed module": b"\x80\x02cbuiltins\ngetattr\n(c__builtin__\n__import__\n("
        + text("builtins") + b"tR" + text("eval") + b"tR(" + call + b"tR.",
        "beside harmless data": b"\x80\x02}(" + text("state_dict") + b"}"
        + text("extra") + name + b"(" + call + b"tRu.",
        "in an optimizer group": b"\x80\x02}(" + text("model") + b"}" + text("optimizer") + b"}(" + text("param_groups")
        + b"]}(" + text("filter") + name + b"(" + call + b"tRuauu.",
    }  # fmt: skip


KINDS = list(payloads(Path()))


def in_zip(data: bytes) -> bytes:
    """An archive as `torch.save` writes it, whose pickle is `data`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved({}))) as whole, zipfile.ZipFile(buffer, "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, data if name.endswith("data.pkl") else whole.read(name))
    return buffer.getvalue()


def in_zip_in_zip(data: bytes) -> bytes:
    """The same as the pickle of another such archive."""
    return in_zip(in_zip(data))


def in_legacy(data: bytes) -> bytes:
    """A file of the old layout, whose last pickle, the object, is `data`."""
    whole = saved({}, _use_new_zipfile_serialization=False)
    buffer = io.BytesIO(whole)
    for _ in range(3):  # magic number, protocol, system
        pickle.load(buffer)
    return whole[: buffer.tell()] + data + pickle.dumps([], protocol=2)


def sealed(data: bytes) -> bytes:
    """A training checkpoint, with the digest that says it is whole."""
    archive = in_zip(data)
    return archive + f"\nsha256 {hashlib.sha256(archive).hexdigest()}\n".encode()


CONTAINERS = {"zip": in_zip, "zip in zip": in_zip_in_zip, "legacy": in_legacy, "bare": bytes, "checkpoint": sealed}
READERS: dict[str, Callable[[Path], Any]] = {
    "load_weights": load_weights,
    "resnet18(weights=)": lambda path: resnet18(weights=path),
    "resnet18(head=)": lambda path: resnet18(head=path),
    "barlow_twins(weights=)": lambda path: barlow_twins("resnet18", "8-8", weights=path),
    "embedder": lambda path: embedder(path, device="cpu"),
    "a checkpoint": load_checkpoint,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_17_a_pickle_never_runs(kind: str, container: str, tmp_path: Path, counted: Counted) -> None:
    sentinel, path = tmp_path / "sentinel", tmp_path / "w.pth"
    path.write_bytes(CONTAINERS[container](payloads(sentinel)[kind]))
    for name, read in READERS.items():
        with pytest.raises(BarlowTwinsError, match=r"w\.pth"):
            read(path)
        assert not sentinel.exists(), name
    counted("loads refused", len(READERS))


@pytest.mark.parametrize("kind", KINDS)
def test_17_those_pickles_are_live(kind: str, tmp_path: Path) -> None:
    """Else the tests above would show nothing."""
    pickle.loads(payloads(tmp_path / "sentinel")[kind])
    assert (tmp_path / "sentinel").exists()


def test_17_a_run_does_not_go_on_from_a_hostile_checkpoint(tmp_path: Path) -> None:
    run, sentinel = tmp_path / "run", tmp_path / "sentinel"
    pretrain(tiny(run, max_steps=1, checkpoint_every=1))
    (checkpoint,) = (run / "checkpoints").iterdir()
    for container in (sealed, in_zip, in_legacy):
        checkpoint.write_bytes(container(payloads(sentinel)["in an optimizer group"]))
        for resume in ("auto", str(checkpoint)):
            with pytest.raises(CheckpointError):
                pretrain(tiny(run, resume=resume))
    assert not sentinel.exists()


class _Filter:
    """What unpickles as a function of somebody else's module, as older published checkpoints have it."""

    def __reduce__(self) -> Any:
        return print, ("run",)


def test_17_25_a_function_in_an_optimizer_group_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = published_checkpoint(twins_state())
    checkpoint["optimizer"]["param_groups"][0]["weight_decay_filter"] = _Filter()
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(saved(checkpoint))
    with pytest.raises(BarlowTwinsError, match="print, which is neither a tensor nor plain data"):
        load_weights(path)
    with pytest.raises(CheckpointError, match="print"):
        pretrain(tiny(tmp_path / "run", resume=str(path)))
    assert "run" not in capsys.readouterr().out


def test_17_a_compiled_program_is_no_weight_file(tmp_path: Path) -> None:
    """A TorchScript archive is code; `torch.load` would run it."""
    path = tmp_path / "w.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torch calls TorchScript old
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(path))
    with pytest.raises(BarlowTwinsError, match=r"w\.pth"):
        load_weights(path)


def test_17_arrays_are_read_without_pickles(tmp_path: Path) -> None:
    """Shards and embeddings are NumPy's files, which may hold objects."""
    sentinel = tmp_path / "sentinel"

    class Payload:
        def __reduce__(self) -> Any:
            return open, (str(sentinel), "w")

    objects = np.array([Payload()], dtype=object)
    (shard,) = plan_shards(1, 10)
    with open(shard.path(tmp_path), "wb") as written:
        np.savez(written, features=objects, failed=objects, why=objects)
    with pytest.raises(OutputError, match="was damaged"):
        read_features(shard, tmp_path)
    np.save(tmp_path / "embeddings.npy", objects)
    (tmp_path / "meta.json").write_text('{"layout": 1, "format": "npy", "rows": 1, "dim": 1}')
    (tmp_path / "index.csv").write_text("row,path,label,status\n")
    with pytest.raises(DataError, match="are damaged"):
        open_embeddings(tmp_path)
    assert not sentinel.exists()


def test_19_the_digest_is_asked_before_anything_is_read(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong file is refused for its digest, so that no parser sees it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    url = server.answer("/w.pth", file(saved(backbone_state())))
    with pytest.raises(BarlowTwinsError, match="has sha256"):
        load_weights(f"{url}#sha256={sha256(b'another')}", progress=False)
