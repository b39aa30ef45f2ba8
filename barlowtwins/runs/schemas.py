"""What config.json and a line of metrics.jsonl may say, as msgspec checks it: the fields that reports compute with."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from msgspec import Meta

__all__ = ["Config", "Line"]

Step = Annotated[int, Meta(ge=0, le=2**53)]


class _Plan(TypedDict, total=False):
    steps: Step | None


class Config(TypedDict, total=False):
    """Of a RUN folder; settings are checked where they are used."""

    lambd: float | None
    classes: Annotated[list[Any], Meta(max_length=1_000_000)] | None
    plan: _Plan | None
    data_facts: dict[str, Any] | None
    versions: dict[str, Any] | None


class _Needed(TypedDict):
    step: Step


class Line(_Needed, total=False):
    """Of metrics.jsonl."""

    epoch: float
    loss: float | None
    on_diagonal: float | None
    off_diagonal: float | None
    floor: float | None
    above_floor: float | None
    lr: float | None
    lr_bias: float | None
    unreadable: Step | None
    images_per_second: float | None
    knn: float | None
    probe: float | None
    effective_rank: float
    rank_limit: float
    feature_deviation: float
    alignment: float | None
    uniformity: float | None
