"""Thousands of damaged inputs: only our errors come out, memory stays bounded, nothing hangs.

Each batch runs in a process of its own, under a limit of address space and of time for each input (see fuzz.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from weight_files import record

from barlowtwins.core.errors import BarlowTwinsError, DataError, WeightsError
from barlowtwins.data.lists import read_list
from barlowtwins.embedding.embeddings import open_embeddings, read_index
from barlowtwins.runs.run_folder import RunFolder
from barlowtwins.zoo.registry import registry

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux counts it")
long = (pytest.mark.exhaustive, pytest.mark.timeout(1800))
Counted = Callable[[str, int], None]

FUZZ = Path(__file__).parent.parent / "fuzz.py"
MOST_GROWTH = {"images": 64, "weights": 256, "strangers": 300, "bits": 300}
"""MiB of resident memory. An image of `fuzz.MAX_PIXELS` takes 8 with its mask; what torch loads once, the rest."""


def fuzz(kind: str, count: int, work: Path) -> dict[str, int]:
    """Let a process read `count` damaged inputs; what came of them."""
    command = [sys.executable, str(FUZZ), kind, str(count), str(count), str(work / "input")]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    kept = f"it is kept in {work / 'input'}"
    assert done.returncode == 0, f"{done.returncode} (-14: too slow) at an input; {kept}:\n{done.stderr[-2000:]}"
    found = json.loads(done.stdout)
    assert found.pop("MiB grown") < MOST_GROWTH[kind]
    assert found.pop("slowest") < 10
    assert sum(found.values()) == count
    return found


@linux
@pytest.mark.parametrize("count", [1000, pytest.param(20_000, marks=long)])
def test_32_33_34_damaged_photographs_are_an_image_or_unreadable(count: int, tmp_path: Path, counted: Counted) -> None:
    found = fuzz("images", count, tmp_path)
    assert min(found["images"], found["unreadable"]) > count // 10  # the damage is neither fatal nor in vain
    counted("damaged images", count)


@linux
@pytest.mark.parametrize("count", [pytest.param(140, marks=pytest.mark.slow), pytest.param(2100, marks=long)])
def test_18_24_40_damaged_weights_and_checkpoints_are_tensors_or_refused(
    count: int, tmp_path: Path, counted: Counted
) -> None:
    """Pickles of both layouts, safetensors, as weights and as heads; checkpoints, also with a right digest."""
    found = fuzz("weights", count, tmp_path)
    assert found["refused"] > count // 2
    assert found["loaded"] > 0
    counted("damaged files", count)


@linux
@pytest.mark.parametrize("kind", ["strangers", "bits"])
@pytest.mark.parametrize("count", [660, pytest.param(22_000, marks=long)])
def test_67_69_70_damaged_folders_of_strangers_are_read_or_refused(
    kind: str, count: int, tmp_path: Path, counted: Counted
) -> None:
    """EMB, RUN, snapshots, shards, registry, lists, recipes, tars; no connection is made."""
    found = fuzz(kind, count, tmp_path)
    assert min(found["read"], found["refused"]) > count // 20
    counted("damaged files", count)


# Text files ----------------------------------------------------------------------------------------------------------


class Tally:
    """How many inputs were taken and how many refused."""

    def __init__(self) -> None:
        self.taken = self.refused = 0

    def __call__(self, call: Callable[[], Any], *kinds: type[BarlowTwinsError]) -> Any:
        """The result of `call`; None if it raised one of `kinds`, whose message must be one line. All else goes on."""
        try:
            result = call()
        except kinds as error:
            self.refused += 1
            complaint = str(error).strip()
        else:
            self.taken += 1
            return result
        assert complaint
        assert "\n" not in complaint
        return None

    @property
    def total(self) -> int:
        return self.taken + self.refused


@pytest.fixture
def tally(counted: Counted) -> Any:
    tally = Tally()
    yield tally
    counted("inputs", tally.total)
    assert tally.refused > 10


often = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 2**63, 10**400])
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=12)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
RECORD = record("tiny", "https://example.org/w.pth", metrics=[{"name": "a", "value": 1, "unit": "%", "source": "b"}])
NOISE = st.one_of(
    st.binary(max_size=60),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(
        [b"[" * 9000, b'{"weights":' + b"[" * 9000, b'{"weights": "abc"}', b'{"weights": [[1]]}', b"1" * 5000]
    ),
)


def changed(whole: Mapping[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """`whole` with some fields of other types, left out, or added."""
    odd = st.dictionaries(st.sampled_from([*whole, "more"]), JSON, max_size=2)
    gone = st.sets(st.sampled_from(list(whole)), max_size=1)
    return st.builds(lambda odd, gone: {k: v for k, v in {**whole, **odd}.items() if k not in gone}, odd, gone)


@often
@given(text=NOISE | st.lists(changed(RECORD), max_size=2).map(lambda found: json.dumps({"weights": found}).encode()))
def test_23_a_registry_of_anything_is_sound_or_refused(
    text: bytes, tally: Tally, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "registry.json"
    path.write_bytes(text)
    monkeypatch.setenv("BARLOWTWINS_REGISTRY", str(path))
    for found in (tally(registry, WeightsError) or {}).values():
        assert "/" not in found.file_name
        assert isinstance(found.card, str)


@often
@given(
    text=st.binary(max_size=80)
    | st.text('a.png\t,\n\r"# \\/', max_size=30).map(str.encode)
    | st.lists(
        st.sampled_from(["a.png", "path,label", "a.png\tcat", "b.png,dog", '"a.png"', "\x00", "#", "a" * 300, "\x1c"])
    ).map(lambda lines: "\n".join(lines).encode()),
    suffix=st.sampled_from([".txt", ".csv"]),
)
def test_26_27_a_list_of_anything_names_images_or_is_refused(
    text: bytes, suffix: str, tally: Tally, tmp_path: Path
) -> None:
    (tmp_path / "a.png").touch()
    path = tmp_path / f"list{suffix}"
    path.write_bytes(text)
    found = tally(lambda: read_list(path), DataError)
    if found is not None:
        keys, labels, _ = found
        assert keys
        assert labels is None or len(labels) == len(keys)


META = {"layout": 1, "format": "npy", "rows": 2, "dim": 3}


@often
@given(meta=NOISE | changed(META).map(lambda value: json.dumps(value).encode()), index=st.binary(max_size=40))
def test_51_53_an_embedding_folder_of_anything_opens_or_is_refused(
    meta: bytes, index: bytes, tally: Tally, tmp_path: Path
) -> None:
    import numpy as np

    np.save(tmp_path / "embeddings.npy", np.zeros((2, 3), np.float32))
    (tmp_path / "meta.json").write_bytes(meta)
    (tmp_path / "index.csv").write_bytes(index)
    tally(lambda: open_embeddings(tmp_path), DataError)
    tally(lambda: list(read_index(tmp_path / "index.csv")), DataError)


@often
@given(lines=st.lists(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()), max_size=5))
def test_39_a_log_of_anything_is_read_as_far_as_it_goes(lines: list[bytes], tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.metrics.write_bytes(b"\n".join([*lines, b'{"step": 3}', b'{"step": 4']))
    assert {"step": 3} in run.read_log()
    assert all(isinstance(found["step"], int) for found in run.read_log())
