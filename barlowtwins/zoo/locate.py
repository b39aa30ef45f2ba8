"""From what a user calls a weight to one verified file on this disk.

    registry name   bundled with the package; else $BARLOWTWINS_WEIGHTS_DIR; else the hub's cache, fetched if missing
    https URL       the hub's cache, fetched if missing; `#sha256=...` at its end says what the digest must be
    file            as it is
    RUN folder      its backbone.safetensors, or model.safetensors where the projector is wanted

BARLOWTWINS_WEIGHTS_DIR is a folder of files with the names of the cache, such as a shared disk has. BARLOWTWINS_MIRROR
is the URL of a server that has such files; it is asked in place of the publishers. Digests are checked all the same.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urldefrag, urlsplit

from barlowtwins.core.errors import WeightsError
from barlowtwins.core.files import sha256_of
from barlowtwins.zoo.download import Fetched, check_digest, fetch
from barlowtwins.zoo.registry import SUFFIXES, WeightRecord, closest_names, registry, registry_folder
from barlowtwins.zoo.transfer import Transfer, check_url

__all__ = ["Located", "cache_folder", "find_file", "locate"]


@dataclass(frozen=True)
class Located:
    """A weight file that is on this disk and has the digest that it should have.

    Args:
        name: what to call it: its registry name, or that of the file or RUN folder.
        path: the file.
        sha256: its digest, just computed.
        digest: "verified" (it fits what is published), "recorded, not verified" (nothing is published; it fits what was
            seen when it was first fetched) or "unknown" (a file of the user's: there is nothing to compare with).
        record: what the registry says, if it is on record.
    """

    name: str
    path: Path
    sha256: str
    digest: str
    record: WeightRecord | None = None


def locate(source: str | os.PathLike[str], *, full: bool = False, progress: bool = True) -> Located:
    """Find the file that `source` means, fetch it if need be, and check its digest.

    Args:
        source: registry name, https URL, weight file or RUN folder. A name on record wins over a file of that name
            (write ./resnet50 for the file).
        full: of a RUN folder, take the file that holds the projector, too.
        progress: show a bar while fetching.

    Raises:
        WeightsError: there is no such weight, or its digest is wrong.
        DownloadError: it could not be fetched.
    """
    if isinstance(source, str):
        if "://" in source:
            return _locate_url(source, progress)
        if (record := registry().get(source)) is not None:
            return _locate_record(record, progress)
    path = Path(source).expanduser()
    if path.is_dir():
        return _locate_run(path, full)
    if path.is_file():
        return _located_file(path.name, path)
    names = ", ".join(closest_names(str(source)))
    raise WeightsError(
        f"no weights {str(source)!r}: there is no such file or folder, and on record are {names}; give "
        f"one of these, or an existing path"
    )


def cache_folder() -> Path:
    """Where fetched weights are kept: `checkpoints` in torch.hub's folder, which TORCH_HOME moves."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def find_file(record: WeightRecord) -> Path | None:
    """The file of a record if it is on this disk already; nothing is fetched or checked."""
    folders = [registry_folder()] if record.file else [*_shared_folder(), cache_folder()]
    return next((folder / record.file_name for folder in folders if (folder / record.file_name).is_file()), None)


def _shared_folder() -> list[Path]:
    folder = os.environ.get("BARLOWTWINS_WEIGHTS_DIR")
    return [Path(folder).expanduser()] if folder else []


def _locate_record(record: WeightRecord, progress: bool) -> Located:
    path = find_file(record)
    if path is None and record.file is not None:
        raise WeightsError(f"{record.name} should come with this package, but {record.file} is not there; reinstall it")
    if path is not None and path.parent != cache_folder():  # not ours to mend by fetching it again
        found = check_digest(path, record.sha256)
        if found is None:
            raise WeightsError(
                f"{path} is damaged: its sha256 {sha256_of(path)} does not begin with {record.sha256}; put a "
                f"whole copy there"
            )
    else:
        assert record.url is not None
        mirror = os.environ.get("BARLOWTWINS_MIRROR")
        url = f"{mirror.rstrip('/')}/{record.file_name}" if mirror else record.url
        found = _fetch(url, cache_folder() / record.file_name, record.sha256, record.size, progress)
    return Located(record.name, found.path, found.sha256, _digest_state(found), record)


def _locate_url(source: str, progress: bool) -> Located:
    url, fragment = urldefrag(source)
    sha256 = None
    if fragment:
        stated = re.fullmatch("sha256=([0-9a-f]{8,64})", fragment.lower())
        if stated is None:
            raise WeightsError(f"{source}: after # only sha256= and 8-64 hex digits are understood")
        sha256 = stated[1]
    found = _fetch(url, cache_folder() / _cache_name(url), sha256, None, progress)
    return Located(PurePosixPath(urlsplit(url).path).name, found.path, found.sha256, _digest_state(found))


def _cache_name(url: str) -> str:
    """Unlike that of any other URL, plain on every system, and still telling a person what it is."""
    path = PurePosixPath(unquote(urlsplit(url).path))
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip(".-")[:64] or "weights"
    suffix = path.suffix.lower() if path.suffix.lower() in SUFFIXES else ".bin"
    return f"barlowtwins-{stem}-url-{hashlib.sha256(url.encode()).hexdigest()[:10]}{suffix}"


def _fetch(url: str, target: Path, sha256: str | None, size: int | None, progress: bool) -> Fetched:
    check_url(url)
    return fetch(Transfer(url, target, size=size, progress=progress), sha256)


def _digest_state(found: Fetched) -> str:
    return "verified" if found.verified else "recorded, not verified"


def _locate_run(folder: Path, full: bool) -> Located:
    names = ["model.safetensors"] if full else ["backbone.safetensors", "model.safetensors"]
    for name in names:
        if (folder / name).is_file():
            return _located_file(folder.name, folder / name)
    inside = sorted(path.name for path in folder.iterdir())
    found = ", ".join(inside[:5]) + (", ..." if len(inside) > 5 else "") if inside else "nothing"
    raise WeightsError(
        f"{folder} is no finished RUN folder: it has no {' or '.join(names)}, but {found}; finish the run first"
    )


def _located_file(name: str, path: Path) -> Located:
    try:
        return Located(name, path, sha256_of(path), "unknown")
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}; make it readable") from error
