"""What is on record about each published weight: where it lies, its digest, its figures and who says so.

The records are data (`weights/registry.json`, one Markdown card beside it for each), so that adding a weight takes no
code. The environment variable BARLOWTWINS_REGISTRY names another such file, to be used in place of ours.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from barlowtwins.core.errors import WeightsError
from barlowtwins.core.readers import read_json

__all__ = ["Metric", "WeightRecord", "closest_names", "registry", "registry_folder", "registry_path"]

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")  # a name becomes part of a file's name
SHA256 = re.compile(r"[0-9a-f]{8,64}")  # some publish only how the digest begins
KINDS: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "None": type(None),
    "Mapping[str, Any]": Mapping,
}
SUFFIXES = (".pth", ".pt", ".torch", ".ckpt", ".safetensors", ".pkl")


@dataclass(frozen=True)
class Metric:
    """One figure and who reported it."""

    name: str
    value: float
    unit: str
    source: str


@dataclass(frozen=True)
class WeightRecord:
    """One weight. Exactly one of `url` and `file` says where it is."""

    name: str
    """What users call it."""
    summary: str
    """One line."""
    backbone: str
    """The architecture: a key of `model.BACKBONES`."""
    format: str
    """The layout of the file: a name of `formats.FORMATS`."""
    licence: str
    """As its publishers state it."""
    citation: str
    """The paper."""
    preprocessing: Mapping[str, Any]
    """The fields of `Preprocessing` that the weight expects."""
    url: str | None = None
    """Where it is published, https."""
    file: str | None = None
    """A file in the registry's folder, for weights that come with the package."""
    sha256: str | None = None
    """The digest or its beginning, 8-64 hex digits; None if nobody has published it."""
    sha256_source: str | None = None
    """Where that digest is on record."""
    size: int | None = None
    """Bytes, if known exactly."""
    approximate_size: int | None = None
    """Bytes, more or less."""
    stem: str = "imagenet"
    """The first layers: see `model.build_backbone`."""
    channels: int = 3
    """Input channels."""
    projector: str | None = None
    """Widths of the projector if the file holds one."""
    epochs: int | None = None
    """Passes over the training data."""
    recipe: str = ""
    """How it was trained."""
    metrics: tuple[Metric, ...] = ()
    """Reported figures."""
    notes: str = ""
    """What else a user should know."""

    @property
    def file_name(self) -> str:
        """What the file is called in the cache: unlike any other, and with the digest or (`url-`) that of its URL."""
        if self.file is not None:
            return self.file
        assert self.url is not None
        mark = self.sha256[:10] if self.sha256 else f"url-{hashlib.sha256(self.url.encode()).hexdigest()[:10]}"
        suffix = PurePosixPath(urlsplit(self.url).path).suffix.lower()
        return f"barlowtwins-{self.name}-{mark}{suffix if suffix in SUFFIXES else '.bin'}"

    @property
    def card(self) -> str:
        """The card's Markdown; empty if there is none."""
        path = registry_folder() / f"{self.name}.md"
        return path.read_text(encoding="utf-8") if path.is_file() else ""


def registry_path() -> Path:
    """The registry in use: BARLOWTWINS_REGISTRY, or that of the installed package, or that of the checkout."""
    if chosen := os.environ.get("BARLOWTWINS_REGISTRY"):
        return Path(chosen)
    package = Path(__file__).parent.parent
    for folder in (package / "weights_data", package.parent / "weights"):  # a wheel; a checkout
        if (path := folder / "registry.json").is_file():
            return path
    raise WeightsError(f"no weights/registry.json beside or inside {package}; install the package again")


def registry_folder() -> Path:
    """Where the registry, its cards and the bundled weights lie."""
    return registry_path().parent


def registry() -> dict[str, WeightRecord]:
    """All weights on record by name, in the order of the registry in use.

    Raises:
        WeightsError: the registry cannot be read, or a record in it breaks the rules.
    """
    path = registry_path()
    try:
        entries = read_json(path)["weights"]
        records = [_record(entry) for entry in entries]
    except OSError as error:
        raise WeightsError(
            f"cannot read the registry {path}: {error.strerror or error}; BARLOWTWINS_REGISTRY must name one"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, WeightsError) as error:
        raise WeightsError(
            f"the registry {path} is not sound: {error}; mend it, or unset BARLOWTWINS_REGISTRY to use ours"
        ) from error
    names = [record.name for record in records]
    if twice := {name for name in names if names.count(name) > 1}:
        raise WeightsError(
            f"the registry {path} has two records named {', '.join(sorted(twice))}; a name must be unique"
        )
    return dict(zip(names, records, strict=True))


def closest_names(name: str) -> list[str]:
    """Names on record that look like `name`, or all if none does."""
    names = list(registry())
    return difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names


def _record(entry: Mapping[str, Any]) -> WeightRecord:
    known = {field.name for field in dataclasses.fields(WeightRecord)}
    if unknown := sorted(set(entry) - known):
        raise WeightsError(
            f"{entry.get('name')!r} has a field {unknown[0]!r} that this version does not know; update, or leave it out"
        )
    metrics = tuple(Metric(**metric) for metric in entry.get("metrics", ()))
    record = WeightRecord(**{**entry, "metrics": metrics})
    if not (isinstance(record.name, str) and NAME.fullmatch(record.name)):
        raise WeightsError(f"{record.name!r} is no name: use small letters, digits, dots, dashes and underscores")
    _check_types(record, record.name)
    for metric in metrics:
        _check_types(metric, record.name)
    if (record.url is None) == (record.file is None):
        raise WeightsError(f"{record.name!r} needs a url or a file, one of the two")
    if record.file is not None and not NAME.fullmatch(record.file.lower()):
        raise WeightsError(f"{record.name!r} has the file {record.file!r}, which must be a plain name in this folder")
    if record.sha256 is not None and not SHA256.fullmatch(record.sha256):
        raise WeightsError(f"{record.name!r} has sha256 {record.sha256!r}, which must be 8-64 hex digits")
    record.file_name  # noqa: B018  # a URL that is none raises a ValueError now, not at its first use
    return record


def _check_types(part: WeightRecord | Metric, name: str) -> None:
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if field.name != "metrics" and not any(isinstance(value, KINDS[kind]) for kind in str(field.type).split(" | ")):
            raise WeightsError(f"{name!r} has {field.name} {value!r}, which must be of type {field.type}")
