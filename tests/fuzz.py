"""Files with random damage, and processes that read thousands of them under a limit of memory and of time for each.

`python fuzz.py images COUNT SEED LAST` reads damaged images; `weights` runs in a process of the pool, which has
imported torch. Both print one JSON object. LAST is the file that holds the input which is being read, for the case
that the process dies of it.
"""

from __future__ import annotations

import importlib.util
import io
import json
import random
import signal
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

DEADLINE = 10.0
"""Seconds for one input."""
MOST_MEMORY = 1 << 30
"""Bytes of address space that the process may take beyond what it has."""
MAX_PIXELS = 2_000_000

EXTREMES = (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\1\0", b"\x80", b"\x01\0\0\0\0\0\0\0", b"-1")


def damage(data: bytes, chance: random.Random) -> bytes:
    """Flip bits, overwrite, cut out, insert, repeat or cut off a few bytes, mostly in the first and last 300."""
    damaged = bytearray(data)
    for kind in chance.choices(range(6), weights=(3, 3, 2, 2, 2, 1), k=chance.randint(1, 3)):
        size = max(1, len(damaged))
        where = (chance.randrange(size), chance.randrange(min(300, size)), size - 1 - chance.randrange(min(300, size)))
        place = chance.choice(where)
        if kind == 0 and damaged:
            damaged[place % len(damaged)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            extreme = chance.choice(EXTREMES)
            damaged[place : place + len(extreme)] = extreme
        elif kind == 2:
            del damaged[place : place + chance.randint(1, 20)]
        elif kind == 3:
            damaged[place:place] = chance.randbytes(chance.randint(1, 8))
        elif kind == 4:
            start = chance.randrange(size)
            damaged[place : place + 30] = damaged[start : start + 30]
        else:
            del damaged[chance.randrange(size) :]
    return bytes(damaged)


def with_right_checksums(png: bytes) -> bytes:
    """Mend the checksums of a PNG file, so that the damage gets past them."""
    mended, place = bytearray(png), 8
    while place + 12 <= len(mended):
        (length,) = struct.unpack_from(">I", mended, place)
        end = place + 8 + length
        if end + 4 > len(mended):
            break
        struct.pack_into(">I", mended, end, zlib.crc32(mended[place + 4 : end]))
        place = end + 4
    return bytes(mended)


# Images ---------------------------------------------------------------------------------------------------------------

FORMATS: dict[str, list[dict[str, Any]]] = {
    "JPEG": [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"quality": 100, "subsampling": 0}],
    "PNG": [{}, {"interlace": 1}, {"save_all": True}],
    "WEBP": [{}, {"lossless": True}, {"save_all": True}],
    "TIFF": [{}, *({"compression": name} for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"))],
    "GIF": [{}, {"save_all": True}],
}
"""Pillow's names, and options to write each with."""


def photographs() -> list[bytes]:
    """Parts of real photographs (those that scikit-learn comes with), written in every way of `FORMATS`."""
    from PIL import Image

    spec = importlib.util.find_spec("sklearn")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "images"
    files = []
    for name, corner in (("china.jpg", (200, 100)), ("flower.jpg", (250, 150))):
        with Image.open(folder / name) as whole:
            part = whole.convert("RGB").crop((*corner, corner[0] + 64, corner[1] + 48))
        for form, ways in FORMATS.items():
            for options in ways:
                modes = (
                    ("RGB", "L", "P", "RGBA") if form == "PNG" else ("RGB", "L", "CMYK") if form == "JPEG" else ("RGB",)
                )
                for mode in modes:
                    several = {"append_images": [part.convert(mode).rotate(180)]} if "save_all" in options else {}
                    buffer = io.BytesIO()
                    part.convert(mode).save(buffer, form, **options, **several)
                    files.append(buffer.getvalue())
    return files


def images(count: int, seed: int, last: Path) -> dict[str, Any]:
    """Read `count` damaged images; anything but an image or `Unreadable` ends the process."""
    from barlowtwins.data.images import read_image

    whole, chance = photographs(), random.Random(seed)
    formats: Counter[str] = Counter()

    def inputs() -> Iterator[bytes]:
        for number in range(count):
            data = damage(whole[number % len(whole)], chance)
            if data.startswith(b"\x89PNG") and chance.random() < 0.8:
                data = with_right_checksums(data)
            yield data

    def read(data: bytes) -> str:
        image = read_image(data, max_pixels=MAX_PIXELS)
        if hasattr(image, "why"):
            assert image.why and "\n" not in image.why
            return "unreadable"
        assert image.mode == "RGB" and len(image.tobytes()) == 3 * image.width * image.height
        formats[data[:2].hex()] += 1
        return "images"

    return watched(inputs(), read, last)


# Weight files and checkpoints -----------------------------------------------------------------------------------------


def weights(count: int, seed: int, last: Path) -> dict[str, Any]:
    """Load `count` damaged files, in turn of each kind; anything but tensors or our errors ends the process."""
    import hashlib

    import torch
    from safetensors.torch import save

    from barlowtwins.core.errors import CheckpointError, WeightsError
    from barlowtwins.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from barlowtwins.zoo.heads import load_head
    from barlowtwins.zoo.safe_load import read_weight_file
    from barlowtwins.zoo.weights import load_weights

    chance = random.Random(seed)
    state = {"conv1.weight": torch.randn(4, 3, 3, 3), "bn1.weight": torch.ones(4), "bn1.num": torch.tensor(7)}
    folder = last.parent
    config = {"lr": 0.2, "epochs": 3, "projector": "8-8", "knn": None}
    sealed = save_checkpoint(folder, Checkpoint(3, state, {"state": {}, "param_groups": []}, config, {"images": 3}))

    def pickled(**options: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(state, buffer, **options)
        return buffer.getvalue()

    def resealed(data: bytes) -> bytes:
        return data + f"\nsha256 {hashlib.sha256(data).hexdigest()}\n".encode()

    tensors = save(state, {"format": "pt", "barlowtwins": "0.1.0", "backbone": "resnet18", "channels": "3"})
    checkpoint = sealed.read_bytes()
    unsealed = checkpoint[: checkpoint.rindex(b"\nsha256 ")]
    kinds: dict[str, tuple[bytes, Callable[[bytes], bytes], Callable[[Path], Any]]] = {
        "zip": (pickled(), bytes, read_weight_file),
        "legacy": (pickled(_use_new_zipfile_serialization=False), bytes, read_weight_file),
        "safetensors": (tensors, bytes, read_weight_file),
        "as weights": (tensors, bytes, load_weights),
        "as head": (tensors, bytes, load_head),
        "checkpoint": (checkpoint, bytes, load_checkpoint),
        "checkpoint, sealed anew": (unsealed, resealed, load_checkpoint),
    }
    names = list(kinds)
    number = -1

    def inputs() -> Iterator[bytes]:
        for turn in range(count):
            whole, finish, _ = kinds[names[turn % len(names)]]
            yield finish(damage(whole, chance))

    def read(data: bytes) -> str:
        nonlocal number
        number += 1
        try:
            kinds[names[number % len(names)]][2](last)
        except (WeightsError, CheckpointError) as error:
            complaint = str(error)
        else:
            return "loaded"
        assert complaint and "\n" not in complaint, complaint
        return "refused"

    return watched(inputs(), read, last)


# Folders and files of strangers ---------------------------------------------------------------------------------------


def strangers(count: int, seed: int, last: Path) -> dict[str, Any]:
    """Read folders with `count` damaged files, each kind in turn: half with one bit flipped, half with more damage."""
    chance = random.Random(seed)
    folder = last.parent
    kinds = stranger_kinds(folder)
    names = list(kinds)
    turn = iter(range(count))
    block_connections()

    def inputs() -> Iterator[bytes]:
        for number in range(count):
            whole = kinds[names[number % len(names)]][0].read_bytes()
            if number // len(names) % 2:
                yield damage(whole, chance)
                continue
            flipped = bytearray(whole)
            flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
            yield bytes(flipped)

    def read(data: bytes) -> str:
        return read_stranger(data, *kinds[names[next(turn) % len(names)]])

    return watched(inputs(), read, last)


def bits(count: int, seed: int, last: Path) -> dict[str, Any]:
    """Flip every bit of the small files in turn, or `count` of these evenly spread."""
    kinds = {name: kind for name, kind in stranger_kinds(last.parent).items() if kind[0].stat().st_size < 1500}
    every = [(name, bit) for name, kind in kinds.items() for bit in range(8 * kind[0].stat().st_size)]
    chosen = [every[len(every) * number // count] for number in range(count)]
    turn = iter(chosen)
    block_connections()

    def inputs() -> Iterator[bytes]:
        for name, bit in chosen:
            flipped = bytearray(kinds[name][0].read_bytes())
            flipped[bit // 8] ^= 1 << bit % 8
            yield bytes(flipped)

    return watched(inputs(), lambda data: read_stranger(data, *kinds[next(turn)[0]]), last)


def read_stranger(data: bytes, path: Path, read: Callable[[], Any]) -> str:
    """Put `data` in the place of a file, read its folder, and put the file back."""
    from barlowtwins.core.errors import BarlowTwinsError

    whole = path.read_bytes()
    path.write_bytes(data)
    try:
        read()
    except BarlowTwinsError as error:
        complaint = str(error)
    else:
        return "read"
    finally:
        if not path.exists() or path.read_bytes() != whole:
            path.write_bytes(whole)
    assert complaint and "\n" not in complaint, complaint
    return "refused"


def block_connections() -> None:
    """Whoever connects anywhere ends the process."""
    import socket

    def refuse(*_: Any) -> Any:
        raise SystemExit("a connection was made")

    socket.socket.connect = refuse  # type: ignore[method-assign]
    socket.getaddrinfo = refuse


def stranger_kinds(place: Path) -> dict[str, tuple[Path, Callable[[], Any]]]:
    """Small folders of each kind: a file in it that is damaged, and what reads the folder then."""
    import os
    import tarfile

    import numpy as np
    from weight_files import record

    from barlowtwins.config import NeighborsConfig
    from barlowtwins.data.lists import read_list
    from barlowtwins.data.open import open_source
    from barlowtwins.embedding.embeddings import IndexRow, open_embeddings, write_index
    from barlowtwins.embedding.shards import plan_shards, read_failures, read_features
    from barlowtwins.reports.neighbors import neighbors
    from barlowtwins.runs.run_folder import RunFolder
    from barlowtwins.runs.snapshots import Snapshot, load_snapshot, save_snapshot
    from barlowtwins.train.recipes import load_recipe
    from barlowtwins.zoo.registry import registry

    emb, run = place / "emb", place / "run"
    emb.mkdir(exist_ok=True)
    run.mkdir(exist_ok=True)
    np.save(emb / "embeddings.npy", np.eye(4, 3, dtype=np.float32))
    with open(emb / "index.csv", "wb") as file:
        write_index(file, (IndexRow(row, f"{row}.png", "cat", "ok") for row in range(4)))
    meta = {"layout": 1, "format": "npy", "rows": 4, "dim": 3, "failed": 0, "root": None, "weights": "https://e.org/w",
            "data": "s3://bucket/x", "data_fingerprint": "", "classes": ["cat"]}  # fmt: skip
    (emb / "meta.json").write_text(json.dumps(meta))
    (run / "config.json").write_text(json.dumps({"lambd": 0.005, "plan": {"steps": 3}, "classes": ["a"]}))
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": n, "epoch": n, "loss": 1.5}) + "\n" for n in (1, 2)))
    one = np.ones((1, 2, 2, 3), np.uint8)
    words: dict[str, Any] = {"pair_keys": ["a"], "query_keys": ["a"], "query_labels": ["b"], "unreadable": ["c"]}
    words |= {"neighbour_keys": [["d"]], "neighbour_labels": [["e"]]}
    numbers: dict[str, Any] = {"step": 3, "epoch": 1, "images": 2, "width": 2, "unreadable_count": 1, "held_out": True}
    shot = save_snapshot(
        run,
        Snapshot(
            **words,
            **numbers,
            correlation=np.eye(2, dtype=np.float16),
            singular_values=np.ones(2, np.float32),
            pairs=one[None].repeat(2, 1),
            queries=one,
            neighbours=one[None],
            similarity=np.ones((1, 1), np.float32),
        ),
    )
    (shard,) = plan_shards(2)
    np.savez(shard.path(place), features=np.ones((2, 3), np.float32), failed=np.array([1]), why=np.array(["cut"]))
    (place / "registry.json").write_text(json.dumps({"weights": [record("tiny", "https://example.org/w.pth")]}))
    os.environ["BARLOWTWINS_REGISTRY"] = str(place / "registry.json")
    (place / "list.csv").write_text("path,label\nfuzz.png,cat\n")
    (place / "recipe.toml").write_text('backbone = "resnet18"\nlr = 0.2\nepochs = 3\n')
    (place / "fuzz.png").touch()
    with tarfile.open(place / "x.tar", "w") as tar:
        for name in ("a.png", "a.cls"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"cat"))

    def whole_run() -> None:
        folder = RunFolder(run)
        folder.read_config()
        folder.read_log()

    def whole_shard() -> None:
        read_features(shard, place)
        read_failures(shard, place)

    def whole_emb() -> None:
        list(open_embeddings(emb).index())
        neighbors(NeighborsConfig(str(emb), "0", k=2))

    return {
        **{f"EMB {name}": (emb / name, whole_emb) for name in ("meta.json", "index.csv", "embeddings.npy")},
        **{f"RUN {name}": (run / name, whole_run) for name in ("config.json", "metrics.jsonl")},
        "snapshot": (shot, lambda: load_snapshot(shot)),
        "shard": (shard.path(place), whole_shard),
        "registry": (place / "registry.json", registry),
        "list": (place / "list.csv", lambda: read_list(place / "list.csv")),
        "recipe": (place / "recipe.toml", lambda: load_recipe(str(place / "recipe.toml"))),
        "tar": (place / "x.tar", lambda: open_source(str(place / "x.tar"))),
    }


# Both -----------------------------------------------------------------------------------------------------------------


def watched(inputs: Iterator[bytes], read: Callable[[bytes], str], last: Path) -> dict[str, Any]:
    """Read each input from memory or from the file `last`, which holds it; count what `read` says of them.

    The process is killed by a signal if one takes longer than `DEADLINE`, and has no more than `MOST_MEMORY` to grow.
    """
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, -1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    said: Counter[str] = Counter()
    slowest = 0.0
    for data in inputs:
        last.write_bytes(data)
        signal.setitimer(signal.ITIMER_REAL, DEADLINE)
        started = time.perf_counter()
        said[read(data)] += 1
        slowest = max(slowest, time.perf_counter() - started)
        signal.setitimer(signal.ITIMER_REAL, 0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {**said, "MiB grown": grown // 1024, "slowest": round(slowest, 3)}


KINDS: Mapping[str, Callable[[int, int, Path], dict[str, Any]]] = {
    "images": images,
    "weights": weights,
    "strangers": strangers,
    "bits": bits,
}


def main(kind: str, count: str, seed: str, last: str) -> None:
    print(json.dumps(KINDS[kind](int(count), int(seed), Path(last))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
