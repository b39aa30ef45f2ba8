"""The points of a map in other tools, by the very lines of the guide; a tool that is not installed skips its test."""

from __future__ import annotations

import inspect
import io
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from test_map import write_embeddings
from training import wait_until

from barlowtwins.config import MapConfig
from barlowtwins.embedding.embeddings import IndexRow
from barlowtwins.reports.map import map as draw_map

GUIDE = (Path(__file__).parent.parent / "docs" / "look.md").read_text("utf-8")
N, D = 40, 8
LABELS = ("<script>", "\"quote\" & 'other'", "long " * 60)


def block(word: str) -> str:
    """The guide's block of code in which a word stands."""
    return next(code for code in re.findall(r"^```\w+\n(.*?)^```$", GUIDE, re.M | re.S) if word in code)


@pytest.fixture
def points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """points.parquet in the working folder, as pandas reads it."""
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra parquet)")
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    features = np.random.default_rng(0).normal(size=(N, D))
    entries = [IndexRow(i, f"{i:02}.png", LABELS[i % 3], "ok") for i in range(N)]
    emb = write_embeddings(tmp_path / "emb", features, entries, root=str(tmp_path / "photos"))
    monkeypatch.chdir(tmp_path)
    draw_map(MapConfig(str(emb), out="map.html", export="points.parquet", neighbours=3, thumbnails=0, workers=0))
    return pandas.read_parquet("points.parquet")


@pytest.mark.parametrize("word", ["pandas.read_parquet", "embedding-atlas points", "import fiftyone"])
def test_each_tool_takes_at_most_five_lines(word: str) -> None:
    assert 1 <= len([line for line in block(word).splitlines() if line.strip()]) <= 5


def test_pandas_reads_it_by_the_lines_of_the_readme(points: Any) -> None:
    names: dict[str, Any] = {}
    exec(block("pandas.read_parquet"), names)

    table = names["points"]
    assert list(table.columns) == ["row", "path", "label", "cluster", "x", "y", "neighbors"]
    assert table["label"].tolist() == [LABELS[i % 3] for i in range(N)]
    np.testing.assert_array_equal(table[["x", "y"]], points[["x", "y"]])
    assert [list(found["ids"]) for found in table["neighbors"]] == [list(found["ids"]) for found in points["neighbors"]]
    assert len(table.groupby("label").x.mean()) == 3


@pytest.fixture
def atlas(points: Any, tmp_path: Path) -> Iterator[str]:
    """The address at which the guide's command serves."""
    words = shlex.split(block("embedding-atlas points"))
    if not shutil.which(words[0]):
        pytest.skip("embedding-atlas is not installed (pip install embedding-atlas: another program, of 2 GB)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(tmp_path / "atlas.log", "wb") as log:
        running = subprocess.Popen([*words, "--port", str(port), "--no-auto-port"], stdout=log, stderr=log)
    address = f"http://localhost:{port}"

    def answers() -> bool:
        assert running.poll() is None, (tmp_path / "atlas.log").read_text()
        try:
            return requests.get(f"{address}/data/metadata.json", timeout=10).ok
        except requests.ConnectionError:
            return False

    try:
        wait_until(answers)
        yield address
    finally:
        running.kill()
        running.wait()


def test_embedding_atlas_serves_it_with_its_points_and_neighbours(points: Any, atlas: str) -> None:
    import pandas

    shown = requests.get(f"{atlas}/data/metadata.json", timeout=10).json()["props"]["data"]
    assert shown["projection"] == {"x": "x", "y": "y"}
    assert shown["neighbors"] == "neighbors"
    served = pandas.read_parquet(io.BytesIO(requests.get(f"{atlas}/data/dataset.parquet", timeout=10).content))
    assert served[shown["id"]].tolist() == list(range(N))  # what ids of neighbours count
    for name in ("path", "label", "x", "y"):
        assert served[name].tolist() == points[name].tolist(), name
    for ours, theirs in zip(points["neighbors"], served["neighbors"], strict=True):
        assert list(ours["ids"]) == list(theirs["ids"])


@pytest.mark.filterwarnings("ignore")  # of foreign libraries
def test_fiftyone_takes_it_by_the_lines_of_the_readme(points: Any) -> None:
    fo = pytest.importorskip("fiftyone", reason="fiftyone is not installed")
    brain = pytest.importorskip("fiftyone.brain", reason="fiftyone is not installed")
    coordinates = points[["x", "y"]].to_numpy()
    inspect.signature(brain.compute_visualization).bind("samples", points=coordinates, brain_key="map")
    sample = fo.Sample(points.path[0], label=fo.Classification(label=points.label[0]))
    assert (sample.filepath, sample.label.label) == (points.path[0], LABELS[0])

    *lines, last = block("import fiftyone").strip().splitlines()
    assert last == "fo.launch_app(samples)"  # opens a window
    names: dict[str, Any] = {"points": points}
    try:
        exec("\n".join(lines), names)
    except fo.core.config.FiftyOneConfigError as error:
        pytest.skip(f"the names are those of fiftyone {fo.__version__}, but its database is not there: {error}")
    samples = names["samples"]
    assert samples.values("label.label") == points.label.tolist()
    np.testing.assert_array_equal(samples.load_brain_results("map").points, coordinates)
