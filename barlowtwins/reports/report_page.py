"""Builds the HTML report of a run from its settings, its log and its snapshots."""

# P pairs of views, Q query images, K neighbors of each, d features of a block of C

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from barlowtwins.core.printing import plural
from barlowtwins.metrics.representation import Verdict
from barlowtwins.reports.charts import Chart, charts, spectrum_chart
from barlowtwins.reports.figures import color_of, correlation_pixels, draw, page_color
from barlowtwins.reports.pages import LOSSLESS, page, picture, text
from barlowtwins.runs.snapshots import Snapshot

__all__ = ["build"]

# Settings of the recipe in config.json, in the order of the page; the other settings follow.
RECIPE = (
    *("recipe", "backbone", "stem", "channels", "projector", "image_size", "augmentation", "epochs", "batch_size"),
    *("micro_batch_size", "lambd", "scale_loss", "optimizer", "lr", "lr_bias", "weight_decay", "warmup_epochs", "seed"),
)


def build(
    name: str,
    config: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    snapshots: Sequence[Snapshot],
    verdict: Verdict,
) -> str:
    """Return the report of a run as HTML.

    Args:
        name: name of the run.
        config: contents of config.json.
        records: records of metrics.jsonl.
        snapshots: oldest first; the first and the last are shown.
        verdict: verdict on collapse.
    """
    classes = len(config.get("classes") or ())
    shown = charts(records, float(config.get("lambd") or 0), classes)
    if snapshots:
        shown.insert(min(5, len(shown)), spectrum_chart(snapshots[0].singular_values, snapshots[-1].singular_values))
    body = [
        "<main>",
        _head(name, config, records),
        f'<p class="verdict {verdict.level}" id="verdict">{text(f"{verdict.words} {verdict.advice}".rstrip())}</p>',
        _tiles(config, records),
        "<h2>Curves</h2>",
        f'<div class="charts">{"".join(map(_figure, shown)) or "<p>Nothing has been logged yet.</p>"}</div>',
    ]
    if snapshots:
        now = snapshots[-1]
        body += [_matrices(snapshots[0], now), _pairs(now), _neighbours(now), _unreadable(now, records)]
    else:
        body.append(_unreadable(None, records))
    body += [_settings(config), f"<footer>Written {time.strftime('%Y-%m-%d %H:%M:%S %z')} by barlowtwins.</footer>"]
    return page(f"{name} - Barlow Twins", "\n".join([*body, "</main>"]), styles=["report.css"])


def _head(name: str, config: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    images = _under(config, "data_facts", "images")
    what = [
        f"{config.get('backbone')} + projector {config.get('projector')}",
        f"{plural(images, 'image')} of {config.get('data')}" if isinstance(images, int) else str(config.get("data")),
        f"recipe {config.get('recipe')}",
    ]
    return f'<header><h1>{text(name)}</h1><p class="soft">{text(", ".join(what))}</p></header>'


def _tiles(config: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    def last(field: str) -> Any:
        return next((record[field] for record in reversed(records) if record.get(field) is not None), None)

    steps, step = _under(config, "plan", "steps"), max((record["step"] for record in records), default=0)
    epoch = max((float(record.get("epoch", 0)) for record in records), default=0.0)
    tiles = [
        (
            f"{round(epoch, 2):g} / {config.get('epochs')}",
            ("epoch" if config.get("epochs") == 1 else "epochs") + (", finished" if steps and step >= steps else ""),
        ),
        (_number(last("loss")), "loss"),
        (f"{last('knn'):.1f} %" if last("knn") is not None else None, "online kNN"),
        (f"{last('probe'):.1f} %" if last("probe") is not None else None, "online linear probe"),
        (_number(last("effective_rank")), "effective rank"),
        (_number(last("feature_deviation")), "feature deviation"),
        (_number(last("images_per_second")), "images per second"),
    ]
    cells = [f'<div class="card tile"><b>{text(v)}</b><span>{text(n)}</span></div>' for v, n in tiles if v is not None]
    return f'<div class="tiles">{"".join(cells)}</div>'


def _number(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _figure(chart: Chart) -> str:
    keys = []
    for curve in chart.series:
        color = page_color(color_of(chart, curve.name))
        line = f'<i style="border-color:{color}"{" class=dashed" if curve.bound else ""}></i>'
        value = "" if chart.x_label != "epoch" else f" <b>{text(_number(curve.y[-1]))}</b>"
        keys.append(f'<span class="key">{line}{text(curve.name)}{value}</span>')
    note = f"<div>{text(chart.note)}</div>" if chart.note else ""
    return (
        f'<figure class="card"><h3>{text(chart.title)}</h3>{draw(chart)}'
        f"<figcaption>{' '.join(keys)}{note}</figcaption></figure>"
    )


def _matrices(start: Snapshot, now: Snapshot) -> str:
    cards = []
    for when, snapshot in (("At the start", start), ("Now", now)):
        c = snapshot.correlation.astype(np.float32)  # (d, d)
        off = np.abs(c[~np.eye(len(c), dtype=bool)]).mean() if len(c) > 1 else 0.0
        numbers = f"mean on the diagonal {np.diag(c).mean():.2f}, mean magnitude off the diagonal {off:.3f}"
        said = f"{when}, epoch {snapshot.epoch}: {numbers}"
        cards.append(
            f'<figure class="card">{picture(correlation_pixels(c), said)}<figcaption>{text(said)}</figcaption></figure>'
        )
    ticks = np.linspace(-1, 1, 41)
    colors = ", ".join("rgb({},{},{})".format(*pixel) for pixel in correlation_pixels(ticks[None])[0])
    d = len(now.correlation)
    return (
        "<h2>Cross-correlation matrix</h2>"
        f"<p>Between two views of {plural(now.images, 'image')}, {'all' if d == now.width else 'the first'} {d} of "
        f"{now.width:,} features, computed by the network at that time. Training moves it toward the identity: a "
        "bright diagonal (the views agree), dark elsewhere (the features are not redundant).</p>"
        f'<div class="matrices">{"".join(cards)}</div>'
        f'<div class="scale" style="background:linear-gradient(90deg, {colors})"></div>'
        '<div class="scale-labels"><span>-1</span><span>0</span><span>1</span></div>'
    )


def _pairs(now: Snapshot) -> str:
    if not len(now.pairs):
        return ""
    cards = []
    for (first, second), key in zip(now.pairs, now.pair_keys, strict=True):
        views = _image(first, f"{key}: first view") + _image(second, f"{key}: second view")
        cards.append(
            f'<div class="card pair"><div>{views}</div><div class="name" title="{text(key)}">{text(key)}</div></div>'
        )
    return (
        "<h2>Augmented pairs</h2><p>Two views of one image, as used for training in "
        f'epoch {max(1, now.epoch)}.</p><div class="pairs">{"".join(cards)}</div>'
    )


def _neighbours(now: Snapshot) -> str:
    if not len(now.queries) or not len(now.query_keys):
        return ""
    whose = "held-out images" if now.held_out else "training images (there are no held-out images)"
    cards = []
    for i, key in enumerate(now.query_keys):
        label = now.query_labels[i]
        cells = [_cell(now.queries[i], key, "query", label)]
        for j, other in enumerate(now.neighbour_keys[i]):
            its = now.neighbour_labels[i][j]
            near = f"{now.similarity[i, j]:.2f}"
            cells.append(_cell(now.neighbours[i, j], other, near, its, same=bool(label) and its == label))
        cards.append(f'<div class="card found">{"".join(cells)}</div>')
    return (
        f"<h2>Nearest neighbors</h2><p>Of {whose} (first in each row), by cosine similarity of the features, "
        f'among {plural(now.images, "training image")}.</p><div class="neighbours">{"".join(cards)}</div>'
    )


def _cell(pixels: Any, key: str, *lines: str, same: bool = False) -> str:
    names = "".join(f'<div class="name" title="{text(line)}">{text(line)}</div>' for line in lines if line)
    return f"<div{' class=same' if same else ''}>{_image(pixels, key)}{names}</div>"


def _image(pixels: Any, said: str) -> str:
    return picture(pixels, said, "pixels" if len(pixels) <= LOSSLESS else "")


def _unreadable(now: Snapshot | None, records: Sequence[Mapping[str, Any]]) -> str:
    count = max((int(record.get("unreadable") or 0) for record in records), default=0)
    count = max(count, now.unreadable_count if now else 0)
    named = list(now.unreadable) if now else []
    if not count:
        return "<h2>Unreadable images</h2><p>None so far.</p>"
    items = "".join(f"<li>{text(key)}</li>" for key in named)
    left = f"<li>... and {count - len(named):,} more</li>" if count > len(named) else ""
    return (
        f"<h2>Unreadable images</h2><p>{plural(count, 'unreadable image')}, replaced by other images. "
        f'Run <code>barlowtwins check</code> to find out why.</p><ul class="card bad">{items}{left}</ul>'
    )


def _settings(config: Mapping[str, Any]) -> str:
    facts: dict[str, Any] = {"data": config.get("data")}
    for name, inside in (("data_facts", "data: "), ("plan", "plan: "), ("versions", "")):
        found = config.get(name)
        facts |= {f"{inside}{key}": value for key, value in found.items()} if isinstance(found, dict) else {}
    for name in ("precision", "device", "workers", "world_size"):
        facts[name] = config.get(name)
    classes = config.get("classes") or ()
    facts["classes"] = f"{len(classes)}: {', '.join(map(str, classes[:20]))}{', ...' if len(classes) > 20 else ''}"
    shown = {*RECIPE, *facts, "data_facts", "plan", "versions", "classes"}
    others = {name: value for name, value in config.items() if name not in shown and value not in (None, [], ())}
    tables = [
        ("Recipe", {name: config[name] for name in RECIPE if config.get(name) is not None}),
        ("Data and environment", {name: value for name, value in facts.items() if value not in (None, "0: ")}),
        ("Other settings", others),
    ]
    made = "".join(
        f'<section><h2>{text(title)}</h2><div class="card scroll">{_table(rows)}</div></section>'
        for title, rows in tables
    )
    return f'<div class="tables">{made}</div>'


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"<tr><th>{text(n.replace('_', ' '))}</th><td>{text(value)}</td></tr>" for n, value in rows.items()]
    return f"<table>{''.join(lines)}</table>"


def _under(config: Mapping[str, Any], *names: str) -> Any:
    """Return config[name][name]..., or None if it does not exist."""
    value: Any = config
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
