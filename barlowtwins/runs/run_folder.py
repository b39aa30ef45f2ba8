"""A RUN folder: what lies where, and how it is written.

config.json             the resolved settings, versions and data, under a schema number (see `migrations`)
metrics.jsonl           one object a log step
checkpoints/            step-XXXXXXXX.pt, the newest two (see `checkpoint`)
backbone.safetensors    the result: torchvision's key names, no fc
model.safetensors       backbone and projector
snapshots/              what the network looked like at the start and now (see `snapshots`)
report.html             all of it as a page (see `report`)
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from barlowtwins.config.settings import with_defaults
from barlowtwins.core.errors import DataError, OutputError
from barlowtwins.core.files import sweep_partial, write_json, write_text
from barlowtwins.core.readers import UnsoundFile, open_regular, parse_json, read_json
from barlowtwins.core.safetensors_file import write_safetensors
from barlowtwins.core.versions import versions
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.runs.migrations import current, numbered
from barlowtwins.version import __version__

__all__ = ["RunFolder", "backbone_metadata"]

LONGEST_LINE = 1 << 20  # bytes of a line of metrics.jsonl


class RunFolder:
    """The files of one pretraining run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path} is a file; --out must name a folder")
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.backbone = self.path / "backbone.safetensors"
        self.model = self.path / "model.safetensors"
        self.snapshots = self.path / "snapshots"
        self.report = self.path / "report.html"

    def write_config(self, record: dict[str, Any]) -> None:
        """Write the decided settings and what else is worth knowing, with the versions that made the run."""
        write_json(self.config, numbered({**record, "versions": versions()}))

    def read_config(self) -> dict[str, Any]:
        """What `write_config` wrote, in this version or an earlier one, with the defaults of newer settings.

        Raises:
            DataError: the folder has no config.json, or something else under that name.
            ConfigError: a later version wrote it.
        """
        try:
            from barlowtwins.runs.schemas import Config

            record = read_json(self.config, Config)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path} is not a folder that `barlowtwins pretrain` has made ({error}); give a RUN folder"
            ) from error
        return with_defaults(current(record, self.config))

    def sweep(self) -> None:
        """Remove what killed processes left half-written; for the process that holds the folder's lock."""
        for folder in (self.path, self.path / "checkpoints", self.snapshots):
            sweep_partial(folder, older_than=float("-inf"))

    def log(self, records: list[dict[str, Any]]) -> None:
        """Append lines to metrics.jsonl; raises OSError, after which none of them stands there."""
        text = memoryview("".join(json.dumps(record) + "\n" for record in records).encode())
        with open(self.metrics, "ab", buffering=0) as file:  # a buffer would try again behind our back
            before = file.seek(0, 2)
            try:
                while text:
                    text = text[file.write(text) :]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(before)
                raise

    def read_log(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl; one that a kill cut short is left out, and whatever else is no record."""
        if not self.metrics.exists():
            return []
        from barlowtwins.runs.schemas import Line

        records = []
        try:
            with open_regular(self.metrics) as file:
                while line := file.readline(LONGEST_LINE):
                    with contextlib.suppress(UnsoundFile):
                        records.append(parse_json(line.decode("utf-8", "replace"), Line))
        except (UnsoundFile, OSError) as error:
            raise DataError(f"cannot read {self.metrics}: {error}; move it away") from error
        return records

    def rewind_log(self, step: int) -> list[dict[str, Any]]:
        """Forget what was logged after `step`, from where training goes on; returns what stays."""
        kept = [record for record in self.read_log() if record["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))
        return kept

    def write_weights(self, model: BarlowTwins, *, name: str, stem: str, preprocessing: Preprocessing) -> None:
        """Write backbone.safetensors and model.safetensors, in fp32, with what is needed to build and feed them."""
        metadata = backbone_metadata(name, stem, preprocessing)
        for path, module in ((self.backbone, model.backbone), (self.model, model)):
            write_safetensors(path, module.state_dict(), metadata)


def backbone_metadata(name: str, stem: str, preprocessing: Preprocessing) -> dict[str, str]:
    """What is needed to build a backbone and to feed it, as `load_weights` reads it back."""
    return {
        "format": "pt",
        "barlowtwins": __version__,
        "backbone": name,
        "stem": stem,
        "channels": str(preprocessing.channels),
        "preprocessing": json.dumps(preprocessing.to_dict()),
    }
