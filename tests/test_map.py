"""The map of an embedding folder: its data against the features, its page in a browser, its points for other tools."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import DESKTOP, PHONE, Browser
from PIL import Image

from barlowtwins.cli import main
from barlowtwins.config import MapConfig
from barlowtwins.data.shapes import draw_shapes
from barlowtwins.embedding.embeddings import IndexRow, write_index
from barlowtwins.reports.map import map as draw_map

N, D = 60, 16
KINDS = ("</script><script>window.hacked=1</script>", "\"quote\" & 'other' <b>", "long " * 60)
BAD = 5  # a row without features


def write_embeddings(folder: Path, features: np.ndarray, entries: list[IndexRow], **meta: Any) -> Path:
    """An EMB folder of given features."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "embeddings.npy", features.astype(np.float32))
    with open(folder / "index.csv", "wb") as file:
        write_index(file, entries)
    made = {"layout": 1, "format": "npy", "rows": len(features), "dim": features.shape[1], "failed": 0, "root": None}
    made |= {"weights": "none", "weights_name": "none", "data": "photos", "classes": [], "data_fingerprint": ""}
    (folder / "meta.json").write_text(json.dumps({**made, **meta}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EMB of images whose file names and labels are hostile; row BAD could not be read."""
    place = tmp_path_factory.mktemp("map")
    rng = np.random.default_rng(0)
    images, _ = draw_shapes(N, split="train", size=16)
    features = rng.normal(size=(3, D))[np.arange(N) % 3] + 0.3 * rng.normal(size=(N, D))
    features[BAD] = np.nan
    (place / "photos").mkdir()
    entries = []
    for i, pixels in enumerate(images):
        name = f"{i:02} <img src=x onerror=window.hacked=2> {'y' * 100}.png"
        Image.fromarray(pixels).save(place / "photos" / name)
        entries.append(IndexRow(i, name, KINDS[i % 3], "ok" if i != BAD else "it is no image"))
    return write_embeddings(place / "emb<i>", features, entries, root=str(place / "photos"), failed=1)


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    out = folder.parent / "map.html"
    draw_map(MapConfig(str(folder), out=str(out), neighbours=4, workers=0, data=str(folder.parent / "photos")))
    return out


def _data(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.S)
    assert found
    return json.loads(found[1])


def _array(data: dict[str, Any], name: str, kind: Any) -> np.ndarray:
    return np.frombuffer(base64.b64decode(data[name]), kind)


def _nearest(folder: Path, k: int) -> tuple[np.ndarray, np.ndarray]:
    """By numpy: rows with features, and the places among them of the k nearest of each."""
    x = np.load(folder / "embeddings.npy")
    rows = np.flatnonzero(np.isfinite(x).all(1))
    unit = x[rows] / np.linalg.norm(x[rows], axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    return rows, np.argsort(-cosine, axis=1)[:, :k]


def test_the_data_of_the_page_are_those_of_the_folder(folder: Path, page: Path) -> None:
    data = _data(page)
    rows, near = _nearest(folder, 4)

    assert data["n"] == N - 1
    np.testing.assert_array_equal(_array(data, "rows", "<i4"), rows)
    np.testing.assert_array_equal(_array(data, "neighbours", "<i4").reshape(-1, 4), near)
    assert [data["names"][kind] for kind in _array(data, "kinds", "<i4")] == [KINDS[row % 3] for row in rows]
    assert data["thumbnails"]["count"] == N - 1
    points = _array(data, "points", "<f4").reshape(-1, 2)
    assert np.isfinite(points).all()


def test_the_page_asks_nothing_of_anybody(page: Path) -> None:
    text = page.read_text("utf-8")

    assert "default-src 'none'" in text
    assert re.findall(r"https?://", text) == []
    assert text.count("<script") == 3  # data, one sheet, the page's own: none by a label
    assert KINDS[0] not in text


def _pixel(browser: Browser, place: int) -> list[float]:
    return browser.run("return barlowtwinsMap.toPixel(arguments[0])", place)


def _visible(browser: Browser, near: np.ndarray) -> tuple[int, float, float]:
    """A point that is the nearest to its own place on the screen, and its place."""
    for place in range(len(near)):
        x, y = _pixel(browser, place)
        covered = browser.run("return document.elementFromPoint(...arguments)?.id !== 'map'", x, y)
        if not covered and browser.run("return barlowtwinsMap.at(arguments[0], arguments[1], 10)", x, y) == place:
            return place, x, y
    raise AssertionError("no point can be seen")


def test_hovering_shows_the_image_and_a_click_its_neighbours(
    folder: Path, page: Path, browser: Browser, tmp_path: Path
) -> None:
    rows, near = _nearest(folder, 4)
    browser.open(page, size=DESKTOP)
    place, x, y = _visible(browser, near)

    browser.mouse("mouseMoved", x, y)
    browser.wait("document.querySelector('#tip:not([hidden]) canvas[data-drawn]')")
    assert browser.text("#tip .path").startswith(f"{rows[place]:02} <img src=x onerror")
    middle = browser.run(
        "const c = document.querySelector('#tip canvas'); const s = c.width / 2;"
        "return [...c.getContext('2d').getImageData(s - 1, s - 1, 3, 3).data]"
    )
    images, _ = draw_shapes(N, split="train", size=16)
    side = int(browser.run("return document.querySelector('#tip canvas').width"))
    shown = np.reshape(middle, (9, 4))[:, :3].mean(0)
    assert side >= 16
    assert np.abs(shown - images[rows[place]][7:9, 7:9].mean((0, 1))).max() < 60  # small, and compressed

    browser.click(x, y)
    browser.wait("!document.getElementById('panel').hidden")
    paths = browser.run("return [...document.querySelectorAll('#near button .soft')].map((part) => part.textContent)")
    assert [int(path[:2]) for path in paths] == rows[near[place]].tolist()
    browser.run("document.querySelector('#near button').click()")  # from one to the next
    assert f"row {rows[near[place][0]]}" in browser.text("#chosen")
    browser.run("document.getElementById('close').click()")
    assert browser.run("return document.getElementById('panel').hidden")
    browser.screenshot(tmp_path / "map.png")
    assert len(np.unique(np.asarray(Image.open(tmp_path / "map.png")))) > 20
    assert browser.errors() == []


def test_the_legend_hides_kinds_and_the_search_finds_paths(page: Path, browser: Browser) -> None:
    browser.open(page, size=DESKTOP)

    names = browser.run("return [...document.querySelectorAll('#legend span')].map((part) => part.textContent)")
    assert sorted(names) == sorted(KINDS)
    x, y = _pixel(browser, 0)
    before = browser.run("return barlowtwinsMap.at(arguments[0], arguments[1], 1e4)", x, y)
    assert before == 0
    kind = names.index(KINDS[0])
    browser.run("document.querySelectorAll('#legend button')[arguments[0]].click()", kind)
    other = browser.run("return barlowtwinsMap.at(arguments[0], arguments[1], 1e4)", x, y)
    assert other != 0
    search = "const s = document.getElementById('search'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))"
    browser.run(search, "07 <IMG")
    assert browser.text("#matches") == f"1 of {N - 1} points"


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_and_a_tap_chooses(folder: Path, page: Path, browser: Browser, dark: bool) -> None:
    _, near = _nearest(folder, 4)
    browser.open(page, size=PHONE, dark=dark)
    place, x, y = _visible(browser, near)
    browser.click(x, y)

    browser.wait("!document.getElementById('panel').hidden")
    assert browser.run("return document.documentElement.scrollWidth") <= PHONE[0]
    low, top = browser.run(
        "const p = document.getElementById('panel').getBoundingClientRect(); return [p.bottom, p.top]"
    )
    assert low <= PHONE[1]
    assert top > _pixel(browser, place)[1]  # what was chosen stays in sight
    assert browser.errors() == []


def test_hostile_names_are_text(page: Path, browser: Browser) -> None:
    browser.open(page, size=DESKTOP)
    browser.run("barlowtwinsMap.choose(0)")

    assert KINDS[0] in browser.text("#chosen")
    assert browser.text("#title") == "emb<i>"
    assert browser.run("return window.hacked === undefined && document.querySelectorAll('img').length === 0")
    assert browser.errors() == []


def test_without_labels_clusters_colour_and_without_images_there_are_no_thumbnails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = np.repeat(np.eye(2, 4), 5, axis=0) + 0.01 * np.random.default_rng(0).normal(size=(10, 4))
    entries = [IndexRow(i, f"gone/{i}.png", "", "ok") for i in range(10)]
    emb = write_embeddings(tmp_path / "emb", features, entries)

    assert main(["map", str(emb), "--out", str(tmp_path / "map.html"), "--clusters", "2", "--json"]) == 0
    captured = capsys.readouterr()
    data = _data(tmp_path / "map.html")
    kinds = _array(data, "kinds", "<i4")
    assert data["by"] == "cluster"
    assert len(set(kinds[:5])) == len(set(kinds[5:])) == 1
    assert kinds[0] != kinds[9]
    assert "no thumbnails" in captured.err
    assert json.loads(captured.out.splitlines()[-1])["thumbnails"] == 0
    assert main(["map", str(emb), "--out", str(tmp_path / "map.html"), "--colour", "label"]) == 1


def test_thumbnails_stay_within_their_budget(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "map.html"
    result = draw_map(MapConfig(str(folder), out=str(out), thumbnails=0.002, workers=0))

    sheets = re.findall(r'id="sheet\d+">([^<]*)<', out.read_text("utf-8"))
    assert sum(map(len, sheets)) <= 2000
    assert result.thumbnails < N


def test_thumbnails_shrink_so_that_all_fit_and_it_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(N):  # of noise, which takes many more bytes than is guessed
        Image.fromarray(rng.integers(0, 256, (96, 96, 3), np.uint8)).save(tmp_path / "photos" / f"{i:02}.png")
    entries = [IndexRow(i, f"{i:02}.png", "", "ok") for i in range(N)]
    emb = write_embeddings(tmp_path / "emb", rng.normal(size=(N, D)), entries, root=str(tmp_path / "photos"))
    found = {}
    for budget in (0.1, 0.2, 5):
        out = tmp_path / "map.html"
        photos = str(tmp_path / "photos")
        result = draw_map(MapConfig(str(emb), out=str(out), thumbnails=budget, workers=0, data=photos))
        assert result.thumbnails == N
        found[budget] = _data(out)["thumbnails"]["side"], capsys.readouterr().err
        assert sum(map(len, re.findall(r'id="sheet\d+">([^<]*)<', out.read_text("utf-8")))) <= budget * 1e6

    assert 24 <= found[0.1][0] < found[0.2][0] < found[5][0] == 96
    assert f"thumbnails have {found[0.2][0]} pixels to fit into 0.2 MB" in found[0.2][1]
    assert "so that all fit" not in found[5][1]


@pytest.mark.slow
def test_a_map_of_50_000_points_opens_and_answers(tmp_path: Path, browser: Browser) -> None:
    n, kinds, files = 50_000, 12, 64
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i, pixels in enumerate(draw_shapes(files, split="train", size=32)[0]):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i:02}.png")
    features = (rng.normal(size=(kinds, D))[np.arange(n) % kinds] + rng.normal(size=(n, D))).astype(np.float32)
    entries = [IndexRow(i, f"{i % files:02}.png", f"kind {i % kinds}", "ok") for i in range(n)]
    emb = write_embeddings(tmp_path / "emb", features, entries, root=str(tmp_path / "photos"))
    out = tmp_path / "map.html"
    config = MapConfig(str(emb), out=str(out), neighbours=4, thumbnails=10, workers=0, data=str(tmp_path / "photos"))
    result = draw_map(config)

    assert (result.points, result.thumbnails) == (n, n)
    assert result.bytes < 10e6 + 120 * n  # the thumbnails, and what a point takes beside
    browser.open(out, size=DESKTOP)
    places = np.array(browser.run("return Array.from({length: arguments[0]}, (_, i) => barlowtwinsMap.toPixel(i))", n))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    tried = 0
    for x, y in ((600, 430), (520, 380), (650, 300), (700, 450)):
        away = np.hypot(*(places - (x, y)).T)
        place = int(away.argmin())
        if away[place] > 5:
            continue
        tried += 1
        browser.mouse("mouseMoved", x, y)
        browser.wait("document.querySelector('#tip:not([hidden]) canvas[data-drawn]')")
        assert browser.text("#tip .path") == f"{place % files:02}.png"
        assert browser.text("#tip .label") == f"kind {place % kinds}"
        browser.click(x, y)
        browser.wait("document.querySelectorAll('#near canvas[data-drawn]').length === 4")
        assert f"row {place}" in browser.text("#chosen")
        near = np.argsort(-(unit @ unit[place]))[1:5]
        shown = browser.run("return [...document.querySelectorAll('#near button')].map((part) => part.innerText)")
        assert [text.split()[1:] for text in shown] == [
            ["kind", str(row % kinds), f"{row % files:02}.png"] for row in near
        ]
        browser.run("document.getElementById('close').click()")
        browser.mouse("mouseMoved", 600, 2)
    assert tried >= 2
    browser.screenshot(tmp_path / "map.png")
    assert len(np.unique(np.asarray(Image.open(tmp_path / "map.png")))) > 20
    assert browser.errors() == []


def test_a_page_of_few_bytes_is_not_of_0_megabytes(folder: Path, tmp_path: Path) -> None:
    result = draw_map(MapConfig(str(folder), out=str(tmp_path / "map.html"), thumbnails=0, workers=0))
    assert re.search(rf": {N - 1} points, no thumbnails, \d+\.\d kB \(0 s\)$", result.summary())


def test_pandas_reads_the_points(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pandas = pytest.importorskip("pandas")
    out, export = str(tmp_path / "map.html"), str(tmp_path / "points.parquet")
    draw_map(MapConfig(str(folder), out=out, export=export, neighbours=4, thumbnails=0, workers=0))
    table = pandas.read_parquet(export)
    rows, near = _nearest(folder, 4)

    assert table["row"].tolist() == rows.tolist()
    assert all(Path(path).is_file() for path in table["path"])
    assert table["label"].tolist() == [KINDS[row % 3] for row in rows]
    np.testing.assert_array_equal(
        table[["x", "y"]].to_numpy().ravel(), _array(_data(tmp_path / "map.html"), "points", "<f4")
    )
    np.testing.assert_array_equal(np.stack([found["ids"] for found in table["neighbors"]]), near)
    assert all((np.diff(found["distances"]) >= 0).all() for found in table["neighbors"])


def test_what_is_no_embedding_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", str(tmp_path), "--out", str(tmp_path / "map.html")]) == 1
    assert "is not a folder that `barlowtwins embed` has made" in capsys.readouterr().err
    assert not (tmp_path / "map.html").exists()
