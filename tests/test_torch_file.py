"""What `torch.save` writes, read without running it: against torch's own reader, and files made to explode."""

from __future__ import annotations

import argparse
import hashlib
import io
import pickle
import resource
import struct
import time
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from weight_files import backbone_state, published_checkpoint, saved, twins_state

from barlowtwins.core.errors import CheckpointError, WeightsError
from barlowtwins.core.torch_file import ForeignClass, Inert, UnsoundFile, read_torch_file
from barlowtwins.runs.checkpoint import load_checkpoint
from barlowtwins.zoo.safe_load import read_weight_file

BOTH = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def same(ours: Any, theirs: Any) -> bool:
    """Equal in kind and value, tensors to the bit."""
    if isinstance(theirs, torch.Tensor):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        return torch.equal(ours, theirs.detach())
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs)


base = torch.arange(24.0)
VALUES: dict[str, Any] = {
    "a backbone": backbone_state(),
    "a published checkpoint": published_checkpoint(twins_state()),
    "every type of number": {
        str(kind): torch.tensor([1, 0, 1]).to(kind)
        for kind in (
            *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16),
            *(torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128),
        )
    },
    "views": [base, base[3:7], base.view(4, 6).T, base[::5], base.view(2, 3, 4)[:, 1], torch.tensor(7), base[:0]],
    "plain data": {
        "none": None, "yes": True, "no": False, "int": -3, "large": 2**40, "float": 0.25, "text": "ä\ud800",
        "list": [1, [2, (3,)]], "tuple": (1, 2, 3, 4), "set": {1, "a"}, 7: "int key", "empty": [(), [], {}],
        "ordered": OrderedDict(a=1), "default": defaultdict(list, a=[1]), "counter": Counter(a=2),
        "size": torch.Size([2, 3]), "dtype": torch.float16, "bytes": b"\x00\xff",
    },
    "an optimizer": {"state": {0: {"momentum_buffer": base.view(4, 6)}}, "param_groups": [{"lr": 0.2, "params": [0]}]},
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("kind", VALUES)
def test_what_torch_reads(kind: str, zipped: bool) -> None:
    data = saved(VALUES[kind], _use_new_zipfile_serialization=zipped)
    theirs = torch.load(io.BytesIO(data), weights_only=False)
    assert same(read_torch_file(io.BytesIO(data)), theirs)


def test_newer_protocols_types_and_parameters() -> None:
    value = {"a": base, "b": (1, 2), "c": torch.zeros(3).to(torch.float8_e4m3fn), "d": torch.nn.Parameter(base[2:])}
    for protocol in (2, 3, 4, 5):
        ours = read_torch_file(io.BytesIO(saved(value, pickle_protocol=protocol)))
        assert torch.equal(ours["a"], base) and ours["b"] == (1, 2) and torch.equal(ours["d"], base[2:])
        assert ours["c"].dtype == torch.float8_e4m3fn and ours["c"].shape == (3,)


def test_tensors_that_share_numbers_still_do() -> None:
    ours = read_torch_file(io.BytesIO(saved([base, base[4:]])))
    ours[1][0] = 99
    assert ours[0][4] == 99


def test_a_large_file_is_mapped_and_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("barlowtwins.core.torch_file.LARGE", 1000)
    path = tmp_path / "w.pth"
    state = backbone_state()
    path.write_bytes(saved(state))
    before = path.read_bytes()
    with open(path, "rb") as file:
        ours = read_torch_file(file)
    assert same(ours, state)
    ours["conv1.weight"].zero_()
    assert path.read_bytes() == before  # a private copy


def test_what_other_libraries_leave_beside_is_inert() -> None:
    value = {"a": base, "args": argparse.Namespace(lr=1), "path": Path("x"), "array": np.ones(3), "kind": np.float32(2)}
    ours = read_torch_file(io.BytesIO(saved(value)))
    assert torch.equal(ours["a"], base)
    assert all(isinstance(ours[name], Inert) for name in ("args", "path", "array", "kind"))


@BOTH
def test_what_is_not_on_the_list_is_named(zipped: bool) -> None:
    for value, name in ((len, "len"), (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear")):
        with pytest.raises(ForeignClass, match=name):
            read_torch_file(io.BytesIO(saved(value, _use_new_zipfile_serialization=zipped)))


# Bombs: small files that other readers turn into gigabytes or minutes ------------------------------------------------


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def archive(data: bytes, *, compress: int = zipfile.ZIP_STORED, **storages: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compress) as made:
        made.writestr("archive/data.pkl", data)
        for key, numbers in storages.items():
            made.writestr(f"archive/data/{key.removeprefix('s')}", numbers)
    return buffer.getvalue()


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], *, numel: int = 4, offset: int = 0) -> bytes:
    """The opcodes of a float tensor over storage 0."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"\x8a\x08" + value.to_bytes(8, "little", signed=True) for value in values) + b"t"

    storage = (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
        + b"\x8a\x08" + numel.to_bytes(8, "little", signed=True) + b"tQ"
    )  # fmt: skip
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage
        + b"\x8a\x08" + offset.to_bytes(8, "little", signed=True) + numbers(shape) + numbers(stride) + b"\x89}tR"
    )  # fmt: skip


def doubled(function: bytes, start: bytes, times: int) -> bytes:
    """`x = function((x, x))`, again and again."""
    step = b"q\x00" + function + b"h\x00h\x00\x86\x85R"
    return b"\x80\x02" + start + step * times + b"."


SIXTEEN = bytes(16)
BOMBS: dict[str, tuple[bytes, str]] = {
    "str of itself twice": (archive(doubled(b"cbuiltins\nstr\n", text("x" * 20), 40)), ""),
    "list of itself twice": (archive(doubled(b"cbuiltins\nlist\n", b"]", 40)), ""),
    "bytearray": (archive(b"\x80\x02cbuiltins\nbytearray\n\x8a\x08" + (2**40).to_bytes(8, "little") + b"\x85R."), ""),
    "hex of hex": (
        archive(b"\x80\x02" + text("ab" * 20)
                + (b"q\x00c_codecs\nencode\nh\x00" + text("hex") + b"\x86R") * 40 + b"."), "",
    ),
    "a tensor class that allocates": (
        archive(b"\x80\x02ctorch\nTensor\n\x8a\x08" + (2**40).to_bytes(8, "little") + b"\x85R."), "torch.Tensor"),
    "a storage class that allocates": (
        archive(b"\x80\x02ctorch\nFloatStorage\n\x8a\x08" + (2**40).to_bytes(8, "little") + b"\x85R."), "FloatStorage"),
    "tuples of themselves": (archive(b"\x80\x02)" + b"q\x00h\x00h\x00\x86" * 40 + b"."), "nested"),
    "hashing them": (archive(b"\x80\x02})" + b"q\x00h\x00\x86" * 40 + b"Ns."), "{}"),
    "a list in itself": (archive(b"\x80\x02]q\x00h\x00a."), "nested"),
    "a stride of 0": (archive(b"\x80\x02" + tensor((2**30,), (0,)) + b".", s0=SIXTEEN), "does not fit"),
    "a tensor beyond its storage": (archive(b"\x80\x02" + tensor((4,), (1,), offset=1) + b".", s0=SIXTEEN), "fit"),
    "overflowing strides": (archive(b"\x80\x02" + tensor((2, 2), (2**47, 2**47)) + b".", s0=SIXTEEN), "fit"),
    "negative sizes": (archive(b"\x80\x02" + tensor((-4,), (1,)) + b".", s0=SIXTEEN), "cannot be"),
    "a storage that claims more": (archive(b"\x80\x02" + tensor((4,), (1,), numel=2**40) + b".", s0=SIXTEEN), "claims"),
    "a storage that is missing": (archive(b"\x80\x02" + tensor((4,), (1,)) + b"."), "is missing"),
    "many dimensions": (archive(b"\x80\x02" + tensor((1,) * 40, (1,) * 40) + b".", s0=SIXTEEN), "40 dimensions"),
    "the same bytes again and again": (
        archive(b"\x80\x02]" + (tensor((2**18,), (1,), numel=2**18) + b"a") * 40 + b".", s0=bytes(2**20)), "again"),
    "compressed zeros": (
        archive(b"\x80\x02" + tensor((2**24,), (1,), numel=2**24) + b".", compress=zipfile.ZIP_DEFLATED,
                s0=bytes(2**26)), "compressed"),
    "a number of 9,000 digits": (archive(b"\x80\x02\x8b" + struct.pack("<I", 4000) + b"\x7f" * 4000 + b"."), "bits"),
    "a far place in the memo": (archive(b"\x80\x02Nr\xff\xff\xff\x7fj\xff\xff\xff\x7f."), "None"),
    "text longer than the file": (archive(b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x."), ""),
    "opcodes without end": (archive(b"\x80\x02" + b"N" * 2_000_000 + b"."), "opcodes"),
    "records that claim more than the file": (
        archive(b"\x80\x02N.").replace(struct.pack("<I", 4), struct.pack("<I", 2**30)), ""),
}  # fmt: skip


def grown(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and MiB that the process grew at most."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    call()
    seconds = time.perf_counter() - started
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_or_inert_at_once(name: str, tmp_path: Path) -> None:
    data, complaint = BOMBS[name]
    path, run = tmp_path / "w.pth", tmp_path / "step-00000001.pt"
    path.write_bytes(data)
    run.write_bytes(data + f"\nsha256 {hashlib.sha256(data).hexdigest()}\n".encode())
    said = []

    def read() -> None:
        try:
            said.append(repr(read_weight_file(path).value))
        except WeightsError as error:
            said.append(str(error))
        with pytest.raises(CheckpointError):
            load_checkpoint(run)

    seconds, mebibytes = grown(read)
    assert complaint in said[0] and "\n" not in said[0]
    assert seconds < 4  # two reads; a bound for slow machines
    assert mebibytes < 300


def test_those_bombs_are_live() -> None:
    """Python's own reader does double."""
    grew = pickle.loads(doubled(b"cbuiltins\nstr\n", text("x"), 8))
    assert len(grew) > 2**8


@pytest.mark.parametrize(
    "stream",
    {
        "nothing on the stack": b"\x80\x020",
        "a tuple of nothing": b"\x80\x02\x85.",
        "no mark": b"\x80\x02t.",
        "below a mark": b"\x80\x02N(.",
        "a memo that is not there": b"\x80\x02h\x07.",
        "append to a number": b"\x80\x02K\x01Na.",
        "an item of a list": b"\x80\x02]NNs.",
        "half an item": b"\x80\x02}(Nu.",
        "a call of a number": b"\x80\x02K\x01)R.",
        "a call without a tuple": b"\x80\x02ccollections\nOrderedDict\nNR.",
        "attributes of a number": b"\x80\x02K\x01}b.",
        "attributes of a class": b"\x80\x02cargparse\nNamespace\n}b.",
        "a class named by numbers": b"\x80\x04K\x01K\x02\x93.",
        "an instruction of old": b"\x80\x02(S'x'\nibuiltins\neval\n.",
        "a storage of nothing": b"\x80\x02)Q.",
        "a storage of numbers": b"\x80\x02(K\x01K\x01K\x01K\x01K\x01tQ.",
        "a tensor of nothing": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        "a tensor of numbers": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x01K\x01K\x01tR.",
        "no end": b"\x80\x02N",
        "nothing": b"",
    }.values(),
)
def test_a_pickle_that_makes_no_sense_is_unsound(stream: bytes) -> None:
    for data in (archive(stream), saved({}, _use_new_zipfile_serialization=False).partition(b"}q\x00.")[0] + stream):
        with pytest.raises(UnsoundFile) as caught:
            read_torch_file(io.BytesIO(data))
        assert str(caught.value) and "\n" not in str(caught.value)


def test_archives_that_are_not_as_torch_writes_them() -> None:
    def changed(**members: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as made:
            for name, data in members.items():
                made.writestr(name.replace("__", "/").replace("_DOT_", "."), data)
        return buffer.getvalue()

    sound = b"\x80\x02N."
    for data, complaint in (
        (changed(a__data_DOT_pkl=sound, a__byteorder=b"big"), "big-endian"),
        (changed(a__data_DOT_pkl=sound, a__constants_DOT_pkl=sound), "TorchScript"),
        (changed(a__data_DOT_pkl=sound, b__data_DOT_pkl=sound), "without data.pkl"),
        (changed(readme=b"x"), "without data.pkl"),
    ):
        with pytest.raises(UnsoundFile, match=complaint):
            read_torch_file(io.BytesIO(data))
    assert read_torch_file(io.BytesIO(changed(a__data_DOT_pkl=sound))) is None
