"""The page of a run: what is on it, what a browser makes of it, and that hostile names stay text."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import PHONE, Browser
from PIL import Image
from training import tiny

from barlowtwins.cli import main
from barlowtwins.data.shapes import draw_shapes
from barlowtwins.metrics.representation import Verdict
from barlowtwins.pretraining import pretrain
from barlowtwins.reports.report import write_report
from barlowtwins.reports.report_page import build
from barlowtwins.runs.snapshots import list_snapshots, load_snapshot

HOSTILE = "<script>window.hacked=1<"  # a file name has no slash


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on images with hostile names, one of them unreadable."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("report")
    images, labels = draw_shapes(40, split="train", size=16)
    for i, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        kind = HOSTILE if label % 2 else "\"'&amp;"
        path = folder / "photos" / kind / ("n" * 150) / f"{i:02} <img src=x onerror=window.hacked=2>{'x' * 120}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (folder / "photos" / HOSTILE / "broken <b>.png").write_text("no image")
    config = tiny(folder / "run", data=str(folder / "photos"), epochs=2, report_every=1, channels=3, max_bad=0.1)
    with torch.random.fork_rng():
        pretrain(config)
    return folder / "run"


def test_training_writes_the_page_and_the_command_writes_it_again(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_training = (run / "report.html").read_text("utf-8")
    assert main(["report", str(run), "--json"]) == 0

    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    again = (run / "report.html").read_text("utf-8")
    assert result["bytes"] == (run / "report.html").stat().st_size
    assert (result["step"], result["steps"]) == (4, 4)
    when = re.compile("Written .*? by")
    assert when.sub("", by_training) == when.sub("", again)


def test_the_page_asks_nothing_of_anybody_and_has_every_part(run: Path) -> None:
    page = (run / "report.html").read_text("utf-8")

    assert "default-src 'none'" in page
    urls = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'>\s]+)""", re.sub(r"&lt;.*?&gt;", "", page))
    assert all(url.startswith(("data:", "#")) for url in urls)
    charts = [
        "Loss",
        "On and off the diagonal",
        "Effective rank of the features",
        "Feature deviation",
        "Learning rates",
    ]
    charts += ["Spectrum of the features", "Throughput, average so far", "Online kNN, held-out images"]
    for title in charts:
        assert f"<h3>{title}</h3><svg" in page, title
    parts = ["Cross-correlation matrix", "Augmented pairs", "Nearest neighbors", "Unreadable images", "Recipe"]
    for title in [*parts, "Data and environment"]:
        assert f"<h2>{title}</h2>" in page, title
    assert "broken &lt;b&gt;.png" in page
    assert "Of training images (there are no held-out images)" in page  # a folder without a test split


def test_numbers_on_the_page_are_those_of_the_run(run: Path, browser: Browser) -> None:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    now = load_snapshot(list_snapshots(run / "snapshots")[-1])
    assert now is not None
    browser.open(run / "report.html")

    flat = browser.run("return [...document.querySelectorAll('.tile > *')].map((part) => part.textContent)")
    tiles = dict(zip(flat[1::2], flat[::2], strict=True))
    rank = [record["effective_rank"] for record in records if "effective_rank" in record][-1]
    knn = [record["knn"] for record in records if "knn" in record][-1]
    assert tiles["effective rank"] == f"{rank:.3g}"
    assert tiles["online kNN"] == f"{knn:.1f} %"
    c = now.correlation.astype(np.float32)
    caption = browser.text(".matrices figure:last-child figcaption")
    assert f"mean on the diagonal {np.diag(c).mean():.2f}, mean magnitude off the diagonal" in caption
    assert browser.text("#verdict").startswith("Too early to say, after 4 steps")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("phone", [False, True])
def test_a_browser_shows_the_page_without_complaint(
    run: Path, browser: Browser, tmp_path: Path, dark: bool, phone: bool
) -> None:
    size = PHONE if phone else (1200, 860)
    browser.open(run / "report.html", size=size, dark=dark)

    assert browser.errors() == []
    assert browser.run("return window.hacked === undefined")
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    broken = "return [...document.images].filter((image) => !image.naturalWidth).length"
    assert browser.run(broken) == 0
    assert browser.run("return document.images.length") > 20
    browser.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        corner = picture.convert("L").getpixel((2, 2))
        assert picture.width == size[0]
        assert corner < 60 if dark else corner > 200
        assert len(np.unique(np.asarray(picture))) > 20


def test_hostile_names_are_text(run: Path, browser: Browser) -> None:
    browser.open(run / "report.html")

    text = browser.run("return document.body.textContent")
    titles = browser.run("return [...document.images].map((image) => image.title)")
    assert HOSTILE in text
    assert "broken <b>.png" in text
    assert any("onerror=window.hacked=2" in title and len(title) > 300 for title in titles)
    assert browser.run("return document.scripts.length") == 0
    assert browser.run("return document.querySelectorAll('b b, main script, img[src=x]').length") == 0


def test_a_collapse_is_seen_at_a_glance(tmp_path: Path, browser: Browser) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "bad.html"
    page.write_text(build("<i>", {}, [], [], Verdict("bad", "Collapsed: <all> alike.")), "utf-8")
    browser.open(page)

    assert browser.text("#verdict") == "Collapsed: <all> alike."
    red, green, _ = browser.run(
        "return getComputedStyle(document.getElementById('verdict')).borderLeftColor.match(/\\d+/g).map(Number)"
    )
    assert red > 2 * green
    assert browser.text("h1") == "<i>"
    assert browser.errors() == []


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main(["report", str(tmp_path)]) == 1
    assert "is not a folder that `barlowtwins pretrain` has made" in capsys.readouterr().err


def test_without_matplotlib_training_says_so_once_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as where it is not installed
    pretrain(tiny(tmp_path, report_every=1, epochs=2))

    said = [line for line in capsys.readouterr().err.splitlines() if "report.html" in line]
    assert len(said) == 1
    assert "barlowtwins[report]" in said[0]
    assert not (tmp_path / "report.html").exists()
    assert (tmp_path / "backbone.safetensors").exists()
    assert main(["report", str(tmp_path)]) == 1


def test_a_damaged_snapshot_and_log_leave_a_page(run: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "step-00000000.npz").write_bytes(b"PK\3\4 no")
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.5, "loss": 3.0}\n{"step": 2, "ep')

    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<h3>Loss</h3><svg" in page
    assert "Not measured" in page


def test_a_report_that_fails_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "report.html").mkdir()  # a folder where the page is to be
    pretrain(tiny(tmp_path, report_every=1, epochs=2))

    assert "report.html is a folder" in capsys.readouterr().err
    assert (tmp_path / "backbone.safetensors").exists()
