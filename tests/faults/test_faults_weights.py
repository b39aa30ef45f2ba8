"""FAULTS 17-25: files that are hostile, damaged, of another architecture, or not what they claim to be."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import struct
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies
from safetensors.torch import save as save_safetensors
from servers import Server, file
from weight_files import (
    TINY,
    backbone_state,
    equal,
    published_checkpoint,
    record,
    saved,
    sha256,
    twins_state,
    write_registry,
)

from barlowtwins.config import WeightsVerifyConfig
from barlowtwins.core.errors import DownloadError, WeightsError
from barlowtwins.hub import resnet18
from barlowtwins.zoo.commands import weights_verify
from barlowtwins.zoo.safe_load import read_weight_file
from barlowtwins.zoo.weights import load_weights

STATE = backbone_state()


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# 17 and 25: files that would run code, or that need foreign classes ---------------------------------------------------


class Payload:
    """Unpickling it calls `function(*arguments)`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class Foreign:
    """A class of somebody else's training code."""


def foreign_function(parameter: object) -> bool:
    """As older published checkpoints carry one among the optimiser's settings."""
    return True


def _hostile(sentinel: Path) -> dict[str, tuple[Any, str]]:
    touch = f"open({str(sentinel)!r}, 'w')"
    return {
        "a shell command": (Payload(os.system, f"touch {sentinel}"), f"{os.name}.system"),
        "evaluated text": (Payload(eval, touch), "eval"),
        "inside a state dict": ({**STATE, "extra": Payload(exec, touch)}, "exec"),
        "an opened file": ({"model": Payload(open, str(sentinel), "w")}, "io.open"),
        "a nested unpickling": (Payload(pickle.loads, pickle.dumps(Payload(eval, touch))), "pickle.loads"),
        "a torch function": (Payload(torch.save, STATE, str(sentinel)), "torch.serialization.save"),
        "a foreign class": ({"model": Foreign(), "state_dict": STATE}, f"{__name__}.Foreign"),
        "a function": ({**published_checkpoint(STATE), "filter": foreign_function}, f"{__name__}.foreign_function"),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("case", list(_hostile(Path())))
def test_17_25_a_file_that_needs_more_than_plain_data_is_refused_by_name_and_never_run(
    tmp_path: Path, case: str, zipped: bool
) -> None:
    sentinel = tmp_path / "sentinel"
    value, culprit = _hostile(sentinel)[case]
    path = _write(tmp_path / "w.pth", saved(value, _use_new_zipfile_serialization=zipped))
    with pytest.raises(WeightsError, match=rf"w\.pth holds {re.escape(culprit)}, .*refused"):
        load_weights(path)
    assert not sentinel.exists()


def test_17_a_bare_pickle_is_not_run_either(tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    path = _write(tmp_path / "w.pkl", pickle.dumps(Payload(eval, f"open({str(sentinel)!r}, 'w')"), protocol=2))
    with pytest.raises(WeightsError, match=r"w\.pkl"):
        load_weights(path)
    assert not sentinel.exists()


def test_17_a_hostile_file_with_the_right_digest_is_refused_all_the_same(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    sentinel = tmp_path / "sentinel"
    data = saved(Payload(eval, f"open({str(sentinel)!r}, 'w')"))
    with pytest.raises(WeightsError, match="holds eval"):
        load_weights(f"{server.answer('/w.pth', file(data))}#sha256={sha256(data)}", progress=False)
    assert not sentinel.exists()


def test_25_harmless_settings_beside_the_weights_are_read(tmp_path: Path) -> None:
    checkpoint = published_checkpoint(twins_state()) | {"args": Namespace(projector="32-32-16", lambd=0.0051)}
    assert load_weights(_write(tmp_path / "w.pth", saved(checkpoint))).format == "checkpoint"


# 18: damaged files ----------------------------------------------------------------------------------------------------


def _zip_of(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return buffer.getvalue()


DAMAGED = {
    "zero bytes": b"",
    "one byte": b"\x80",
    "text": b"version https://example.org/large-file/v1\nsize 94000000\n",
    "a web page": b"<!DOCTYPE html><html></html>",
    "noise": bytes(range(255, 0, -1)) * 100,
    "noise that begins as a pickle": b"\x80\x02" + bytes(range(255, 0, -1)) * 100,
    "noise that begins as a zip": b"PK\x03\x04" + bytes(range(255, 0, -1)) * 100,
    "a zip of a text": _zip_of(readme=b"hello"),
    "a zip in a folder": _zip_of(archive__readme=b"hello"),
    "a zip with an empty pickle": _zip_of(archive__data__pkl=b"", archive__version=b"3\n"),
    "a list": saved([1, 2, 3]),
    "a number": saved(3.0),
    "an empty dict": saved({}),
    "a dict of tensors that are no ResNet": saved({"weight": torch.zeros(3)}),
    "a state dict with a number in it": saved({**STATE, "epoch": 3}),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
def test_18_what_is_no_weight_file_is_a_clear_error(tmp_path: Path, data: bytes) -> None:
    path = _write(tmp_path / "w.pth", data)
    with pytest.raises(WeightsError, match=r"w\.pth") as caught:
        load_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors"])
def test_18_a_file_that_is_cut_anywhere_is_a_clear_error(tmp_path: Path, layout: str) -> None:
    state = {key: STATE[key] for key in ("conv1.weight", "bn1.weight")}
    whole = (
        save_safetensors(state)
        if layout == "safetensors"
        else saved(state, _use_new_zipfile_serialization=layout == "zip")
    )
    for length in [*range(64), *range(64, len(whole), len(whole) // 50), len(whole) - 1]:
        with pytest.raises(WeightsError):
            read_weight_file(_write(tmp_path / "w", whole[:length]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=strategies.floats(0, 1, exclude_max=True), value=strategies.integers(0, 255), zipped=strategies.booleans())
def test_18_any_changed_byte_gives_tensors_or_a_clear_error(
    tmp_path: Path, place: float, value: int, zipped: bool
) -> None:
    whole = bytearray(saved({"bn1.weight": torch.ones(3)}, _use_new_zipfile_serialization=zipped))
    whole[int(place * len(whole))] = value
    with contextlib.suppress(WeightsError):
        read_weight_file(_write(tmp_path / "w.pth", whole))


# 19: wrong digest -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [64, 8])
def test_19_a_wrong_digest_is_refused_and_nothing_is_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: int
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    other = sha256(b"another file")[:digits]
    entry = record("tiny", server.answer("/tiny.pth", file(saved(STATE))), sha256=other)
    monkeypatch.setenv("BARLOWTWINS_REGISTRY", str(write_registry(tmp_path / "registry.json", entry)))
    for _ in range(2):  # the second time is no easier
        with pytest.raises(DownloadError, match=rf"sha256 {sha256(saved(STATE))}, not {other} \(on record\)"):
            load_weights("tiny", progress=False)
    assert list((tmp_path / "home/hub/checkpoints").iterdir()) == []


def test_19_a_wrong_digest_in_a_shared_folder_is_refused_not_fetched(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = saved(STATE)
    entry = record("tiny", server.answer("/tiny.pth", file(data)), sha256=sha256(data))
    monkeypatch.setenv("BARLOWTWINS_REGISTRY", str(write_registry(tmp_path / "registry.json", entry)))
    monkeypatch.setenv("BARLOWTWINS_WEIGHTS_DIR", str(tmp_path))
    _write(tmp_path / f"barlowtwins-tiny-{sha256(data)[:10]}.pth", data[:-1])
    with pytest.raises(WeightsError, match="is damaged"):
        load_weights("tiny", progress=False)
    assert server.requests == []


# 20: wrong architecture -----------------------------------------------------------------------------------------------


def test_20_another_architecture_is_told_by_counts_and_examples(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    entry = record("tiny", server.answer("/tiny.pth", file(saved(STATE))), backbone="resnet18")
    monkeypatch.setenv("BARLOWTWINS_REGISTRY", str(write_registry(tmp_path / "registry.json", entry)))
    with pytest.raises(WeightsError) as caught:
        load_weights("tiny", progress=False)
    theirs = backbone_state("resnet18")
    missing, reshaped = (
        len(theirs.keys() - STATE.keys()),
        sum(theirs[key].shape != STATE[key].shape for key in theirs.keys() & STATE.keys()),
    )
    assert f"{missing} missing (layer1.1.conv1.weight, " in str(caught.value)
    assert f"{reshaped} of another shape (conv1.weight (32, 3, 7, 7) instead of (64, 3, 7, 7), " in str(caught.value)
    with pytest.raises(WeightsError, match=rf"is a {TINY}, not a resnet18; load it with the entry embedder"):
        resnet18(weights=_write(tmp_path / "tiny.pth", saved(STATE)))


def test_20_missing_and_unexpected_keys_are_named(tmp_path: Path) -> None:
    changed = {key: tensor for key, tensor in STATE.items() if key != "bn1.bias"} | {"extra": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"w\.pth: .*1 missing \(bn1\.bias\); 1 unexpected \(extra\)"):
        load_weights(_write(tmp_path / "w.pth", saved(changed)))
    checkpoint = published_checkpoint(twins_state() | {"teacher.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"1 keys do not belong .*'checkpoint' \(teacher\.weight\)"):
        load_weights(_write(tmp_path / "w.pth", saved(checkpoint)))
    short = {key: tensor for key, tensor in twins_state().items() if key != "bn.running_var"}
    with pytest.raises(WeightsError, match=r"projector 32-32-16: 1 missing \(bn\.running_var\)"):
        load_weights(_write(tmp_path / "w.pth", saved(short)))


# 21: prefixes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_21_prefixes_of_wrappers_are_understood(tmp_path: Path, prefix: str) -> None:
    path = _write(tmp_path / "w.pth", saved({prefix + key: tensor for key, tensor in STATE.items()}))
    assert equal(load_weights(path).backbone, STATE)


def test_21_a_backbone_that_was_compiled_alone_is_understood(tmp_path: Path) -> None:
    state = twins_state()
    wrapped = {key.replace("backbone.", "module.backbone._orig_mod."): tensor for key, tensor in state.items()}
    loaded = load_weights(_write(tmp_path / "w.pth", saved(wrapped)))
    assert equal({f"backbone.{key}": tensor for key, tensor in loaded.backbone.items()} | loaded.projector, state)


def test_21_a_key_with_and_without_prefix_is_ambiguous(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="1 keys occur twice"):
        load_weights(_write(tmp_path / "w.pth", saved(STATE | {"module.conv1.weight": STATE["conv1.weight"]})))


# 22: numbers that are not finite --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_22_verify_names_tensors_that_are_not_finite(tmp_path: Path, value: float) -> None:
    state = {key: tensor.clone() for key, tensor in twins_state().items()}
    for key in ("backbone.layer2.0.bn1.bias", "projector.3.weight"):
        state[key].view(-1)[-1] = value
    report = weights_verify(WeightsVerifyConfig(str(_write(tmp_path / "w.pth", saved(state)))))
    assert report.not_finite == ("layer2.0.bn1.bias", "projector.3.weight")
    assert report.exit_code == 1


# 23: paths in names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/b", "..", "C:evil", "a\\b", "", "Evil", "a" * 65, "x\0y"])
def test_23_a_registry_name_that_is_a_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = write_registry(tmp_path / "registry.json", record(name, "https://example.org/w.pth"))
    monkeypatch.setenv("BARLOWTWINS_REGISTRY", str(path))
    with pytest.raises(WeightsError, match=r"registry\.json is not sound: .* is no name"):
        load_weights("resnet50")


@pytest.mark.parametrize("name", ["../w.pth", "/etc/passwd", "folder/w.pth", "..", "C:w.pth"])
def test_23_a_registry_file_outside_its_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _write(tmp_path / "w.pth", saved(STATE))
    path = write_registry(tmp_path / "weights" / "registry.json", record("tiny", file=name))
    monkeypatch.setenv("BARLOWTWINS_REGISTRY", str(path))
    with pytest.raises(WeightsError, match="must be a plain name"):
        load_weights("tiny")


@pytest.mark.parametrize("path", ["/%2e%2e/%2e%2e/evil.pth", "/..%2f..%2fevil.pth", "/%00.pth", "/a%5cb.pth", "/.pth"])
def test_23_a_url_cannot_choose_where_its_file_lands(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    server.otherwise = file(saved(STATE))
    found = load_weights(server.url(path), progress=False).path
    assert found.parent == tmp_path / "home/hub/checkpoints"
    assert re.fullmatch(r"barlowtwins-[a-z-]+-url-[0-9a-f]{10}\.(pth|bin)", found.name)
    assert [entry.name for entry in tmp_path.iterdir()] == ["home"]


def test_23_names_inside_an_archive_are_never_written(tmp_path: Path) -> None:
    buffer = io.BytesIO(saved(STATE))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("../evil", b"evil")
        archive.writestr("/tmp/barlowtwins-evil", b"evil")
    folder = tmp_path / "folder"
    folder.mkdir()
    path = _write(folder / "w.pth", buffer.getvalue())
    with contextlib.suppress(WeightsError):  # reading it or refusing it are both right
        load_weights(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
    assert [entry.name for entry in folder.iterdir()] == ["w.pth"]
    assert not Path("/tmp/barlowtwins-evil").exists()


# 24: safetensors ------------------------------------------------------------------------------------------------------


def _safetensors(header: str | dict[str, Any], data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _tensor(begin: int, end: int, *, dtype: str = "F32", shape: Any = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


UNSOUND = {
    "a header of 100 MB": (_safetensors("{" + " " * 100_000_000 + "}"), "claims 100,000,002 bytes"),
    "a header that claims 100 MB": (_safetensors({"a": _tensor(0, 16)}, length=100_000_000), "claims 100,000,000"),
    "a header that claims 2**64": (_safetensors({"a": _tensor(0, 16)}, length=2**64 - 1), "claims 18,446"),
    "a header longer than the file": (_safetensors({"a": _tensor(0, 16)}, length=5000), "cut short"),
    "overlapping offsets": (_safetensors({"a": _tensor(0, 12), "b": _tensor(8, 16)}), "'b' .* overlaps 'a'"),
    "the same bytes twice": (_safetensors({"a": _tensor(0, 16), "b": _tensor(0, 16)}), "'b' .* overlaps 'a'"),
    "a hole": (_safetensors({"a": _tensor(0, 4), "b": _tensor(8, 16)}), "hole after 'a'"),
    "a hole at the start": (_safetensors({"a": _tensor(4, 16)}), "hole after 'the header'"),
    "bytes left over": (_safetensors({"a": _tensor(0, 12)}), "16 are there"),
    "offsets beyond the end": (_safetensors({"a": _tensor(0, 20)}), "16 are there"),
    "offsets backwards": (_safetensors({"a": _tensor(16, 0, shape=[-4])}), "cannot be"),
    "a negative size": (_safetensors({"a": _tensor(0, 16, shape=[-2, -2])}), "cannot be"),
    "a size that overflows": (_safetensors({"a": _tensor(0, 16, shape=[2**62, 4])}), "cannot be"),
    "a shape that does not fit": (_safetensors({"a": _tensor(0, 16, shape=[5])}), "do not hold"),
    "a shape of fractions": (_safetensors({"a": _tensor(0, 16, shape=[2.0, 2])}), "cannot be"),
    "a shape of text": (_safetensors({"a": _tensor(0, 16, shape="4")}), "cannot be"),
    "too many dimensions": (_safetensors({"a": _tensor(0, 16, shape=[1] * 100 + [4])}), "cannot be"),
    "duplicate keys": (
        _safetensors('{"a": %s, "a": %s}' % (json.dumps(_tensor(0, 16)), json.dumps(_tensor(0, 16)))),  # noqa: UP031
        "key 'a' twice",
    ),
    "a duplicate inside": (
        _safetensors('{"a": {"dtype": "F32", "dtype": "I32", "shape": [4], "data_offsets": [0, 16]}}'),
        "key 'dtype' twice",
    ),
    "an unknown dtype": (_safetensors({"a": _tensor(0, 16, dtype="F31")}), "not understood"),
    "an entry without shape": (_safetensors({"a": {"dtype": "F32", "data_offsets": [0, 16]}}), "not understood"),
    "metadata that is no dict": (_safetensors({"__metadata__": ["x"], "a": _tensor(0, 16)}), "metadata"),
    "metadata of numbers": (_safetensors({"__metadata__": {"x": 1}, "a": _tensor(0, 16)}), "metadata"),
    "no JSON": (_safetensors("{'a': 1}"), "not JSON"),
    "deep JSON": (_safetensors('{"a":' + "[" * 200_000 + "}"), "not JSON"),
    "no UTF-8": (struct.pack("<Q", 4) + b'{"\xff}', "not JSON"),
}


@pytest.mark.parametrize(("data", "complaint"), UNSOUND.values(), ids=UNSOUND.keys())
def test_24_unsound_safetensors_are_refused(tmp_path: Path, data: bytes, complaint: str) -> None:
    path = _write(tmp_path / "w.safetensors", data)
    with pytest.raises(WeightsError, match=rf"w\.safetensors is not sound safetensors: .*{complaint}"):
        load_weights(path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=strategies.floats(0, 1, exclude_max=True), value=strategies.integers(0, 255))
def test_24_any_changed_byte_of_safetensors_gives_tensors_or_a_clear_error(
    tmp_path: Path, place: float, value: int
) -> None:
    whole = bytearray(save_safetensors({"a": torch.ones(3), "b": torch.zeros(2, 2).half()}, {"format": "pt"}))
    whole[int(place * len(whole))] = value
    with contextlib.suppress(WeightsError):
        read_weight_file(_write(tmp_path / "w.safetensors", whole))
