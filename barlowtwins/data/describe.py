"""What a source took, in one line and as a record: images, channels, classes, and what was left out."""

from __future__ import annotations

from typing import Any

from barlowtwins.data.channels import ChannelSource
from barlowtwins.data.sources import Source

__all__ = ["describe", "record_of"]


def record_of(source: Source) -> dict[str, Any]:
    """What is worth recording of a source, as JSON knows it."""
    return {
        "images": len(source),
        "channels": source.channels,
        "size": None if source.size is None else list(source.size),
        "classes": len(source.classes),
        "left_out": dict(source.left_out),
        "notes": list(source.notes),
    }


def describe(source: Source) -> str:
    """One line, such as "photos: 1,200 images, RGB, 8 bits, 12 classes; left out: 3 .heic files, 2 hidden files"."""
    kind = {1: "grey", 3: "RGB"}.get(source.channels, f"{source.channels} channels")
    parts = [f"{len(source):,} image{'s' * (len(source) != 1)}", kind, "8 bits"]
    if source.size is not None:
        parts.append(f"{source.size[1]} x {source.size[0]} pixels")
    if isinstance(source, ChannelSource) or source.array() is not None:
        parts[2] = "8 bits in memory"
    if source.classes:
        parts.append(f"{len(source.classes):,} class{'es' * (len(source.classes) != 1)}")
    else:
        parts.append("no classes")
    line = f"{source.name}: {', '.join(parts)}"
    if source.left_out:
        line += "; left out: " + ", ".join(f"{count:,} {why}" for why, count in sorted(source.left_out.items()))
    return "; ".join([line, *source.notes])
