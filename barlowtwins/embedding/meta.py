"""What `meta.json` of an EMB folder may say, as msgspec checks it: types, ranges and lengths of the fields we use."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta as Limits

__all__ = ["Layout", "Meta"]

Count = Annotated[int, Limits(ge=0, le=2**40)]
Text = Annotated[str, Limits(max_length=100_000)]
Digest = Annotated[str, Limits(max_length=200)]


class Layout(TypedDict):
    """The field that comes before all others: what a newer version writes is not judged by these rules."""

    layout: Annotated[int, Limits(ge=1, le=10**6)]


class _Needed(TypedDict):
    format: Literal["npy", "parquet", "safetensors"]
    rows: Count
    dim: Annotated[int, Limits(ge=1, le=1 << 20)]


class Meta(_Needed, total=False):
    """Fields that folders of earlier versions may lack have no default: whoever needs one says that it is missing."""

    failed: Count
    weights: Text
    weights_name: Text
    weights_sha256: Digest
    preprocessing: dict[str, Any]
    data: Text
    data_fingerprint: Digest
    split: Text | None
    root: Text | None
    classes: Annotated[list[Text], Limits(max_length=10_000_000)]
    normalized: bool
    precision: Text
    runtime: Text
    shard_rows: Count
    versions: dict[str, Text]
