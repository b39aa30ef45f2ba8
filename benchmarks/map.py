"""How long `barlowtwins map` takes, how large its page is, and how quickly a browser answers, at many points.

    python benchmarks/map.py [--points 50000] [--dim 512] [--thumbnails 24] [--method pca] [--quick]

Embeddings are drawn: a cloud for each of 20 labels. The images are JPEG files of 128 x 96 pixels, 512 of them, to which
the rows point in turn. The browser is headless Chromium without a GPU, so that painting is the CPU's work, on a screen
of 1200 x 860; its times are its own: from the start of navigation, or from an event of the mouse, to what it brings
about. Needs Chromium with its driver (Debian: apt-get install chromium chromium-driver).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from common import write_result
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from browser import DESKTOP, Browser, open_browser

from barlowtwins.config import MapConfig
from barlowtwins.embedding.embeddings import IndexRow, write_index
from barlowtwins.reports.map import map as draw_map

LABELS, DISTINCT = 20, 512
TRIES = 20  # of the mouse


def draw_images(folder: Path) -> list[str]:
    """JPEG files with edges and a little noise, as photographs have."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(DISTINCT):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((128, 96), Image.Resampling.BICUBIC)
        noisy = np.clip(np.asarray(coarse, np.int16) + rng.integers(-12, 13, (96, 128, 3)), 0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{number:04}.jpg", quality=85)
    return [path.name for path in sorted(folder.iterdir())]


def draw_embeddings(folder: Path, points: int, dim: int) -> Path:
    """An EMB folder of clouds, with images and labels."""
    rng = np.random.default_rng(0)
    names = draw_images(folder / "photos")
    label = np.arange(points) % LABELS
    centres = rng.normal(size=(LABELS, dim)).astype(np.float32)
    features = np.lib.format.open_memmap(folder / "embeddings.npy", "w+", np.float32, (points, dim))
    for start in range(0, points, 4096):
        part = label[start : start + 4096]
        features[start : start + 4096] = centres[part] + rng.normal(size=(len(part), dim), scale=1.5)
    features.flush()
    entries = [IndexRow(row, names[row % DISTINCT], f"label {label[row]}", "ok") for row in range(points)]
    with open(folder / "index.csv", "wb") as file:
        write_index(file, entries)
    meta = {"layout": 1, "format": "npy", "rows": points, "dim": dim, "failed": 0, "root": str(folder / "photos")}
    meta |= {"weights": "none", "weights_name": "drawn", "data": "photos", "classes": [], "data_fingerprint": ""}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def in_the_browser(browser: Browser, page: Path) -> dict[str, Any]:
    """Seconds to the first picture, and milliseconds from the mouse to its effect."""
    browser.open(page, size=DESKTOP)
    loaded = browser.driver.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now())))"
    )
    browser.run(
        """
        window.answers = {tip: [], near: []};
        let event = 0, sought = null;
        for (const [kind, effect] of [["pointermove", "tip"], ["pointerup", "near"]])
          addEventListener(kind, (e) => { event = e.timeStamp; sought = effect; }, true);
        new MutationObserver(() => {
          const place = sought && document.getElementById(sought);
          const pictures = place ? [...place.querySelectorAll("canvas")] : [];
          if (!pictures.length || !pictures.every((picture) => picture.dataset.drawn)) return;
          window.answers[sought].push(performance.now() - event);
          sought = null;
        }).observe(document.body, {subtree: true, attributes: true, attributeFilter: ["data-drawn"]});
        """
    )
    n = browser.run("return JSON.parse(document.getElementById('data').textContent).n")
    for place in np.linspace(0, n - 1, 20 * TRIES).astype(int).tolist():
        x, y = browser.run("return barlowtwinsMap.toPixel(arguments[0])", place)
        answers = browser.run("return [window.answers.tip.length, window.answers.near.length]")
        if min(answers) >= TRIES:
            break
        if browser.run("return document.elementFromPoint(...arguments)?.id !== 'map'", x, y):
            continue
        browser.mouse("mouseMoved", x, y)
        browser.wait("document.querySelector('#tip:not([hidden]) canvas[data-drawn]')")
        browser.click(x, y)
        browser.wait("document.querySelectorAll('#near canvas[data-drawn]').length")
        browser.run("document.getElementById('close').click()")
        browser.mouse("mouseMoved", 600, 4)
    answers = browser.run("return window.answers")
    frames = browser.driver.execute_async_script(
        """
        const done = arguments[0], times = [];
        let before = performance.now();
        const frame = (now) => {
          times.push(now - before); before = now;
          if (times.length > 30) { done(times.slice(1)); return; }
          barlowtwinsMap.zoom(times.length % 2 ? 1.01 : 1 / 1.01);
          requestAnimationFrame(frame);
        };
        requestAnimationFrame(frame);
        """
    )
    assert browser.errors() == []
    figures = {"hover_ms": answers["tip"], "click_ms": answers["near"], "frame_while_zooming_ms": frames}
    return {"load_seconds": loaded / 1000} | {
        name: {"median": statistics.median(values), "most": max(values), "n": len(values)}
        for name, values in figures.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--thumbnails", type=float, default=MapConfig.thumbnails)
    parser.add_argument("--method", default="pca")
    parser.add_argument("--quick", action="store_true", help="few points, nothing written: does it work?")
    flags = parser.parse_args()
    if flags.quick:
        flags.points, flags.dim = 2000, 32
    with tempfile.TemporaryDirectory() as temporary:
        folder = draw_embeddings(Path(temporary), flags.points, flags.dim)
        page = folder / "map.html"
        started = time.perf_counter()
        images = str(folder / "photos")
        made = draw_map(
            MapConfig(str(folder), out=str(page), data=images, method=flags.method, thumbnails=flags.thumbnails)
        )
        seconds = time.perf_counter() - started
        print(made.summary())
        try:
            browser = open_browser()
        except pytest.skip.Exception as missing:
            raise SystemExit(None if flags.quick else f"nothing is written: {missing}") from None
        try:
            seen = in_the_browser(browser, page)
        finally:
            browser.driver.quit()
    for name, value in seen.items():
        print(f"{name}: {value}")
    if not flags.quick:
        settings = {name: getattr(flags, name) for name in ("points", "dim", "thumbnails", "method")}
        figures = {"seconds": seconds, "bytes": made.bytes, "thumbnails": made.thumbnails, "browser": seen}
        write_result("map", {"settings": settings, **figures})


if __name__ == "__main__":
    main()
