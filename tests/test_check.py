"""`barlowtwins check`: every image read once, in any number of processes; what cannot be read is listed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import write_weights

from barlowtwins.cli import main
from barlowtwins.config import CheckConfig
from barlowtwins.core.errors import DataError
from barlowtwins.core.progress import Progress
from barlowtwins.data.check import check
from barlowtwins.data.describe import describe, record_of
from barlowtwins.data.open import open_source

N = 150  # more than a worker takes at a time


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Class a with 100 images, class b with 50; of b two are bad. Widths 3..12, heights 5..9."""
    for number in range(N):
        path = tmp_path / ("a" if number < 100 else "b") / f"{number:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (3 + number % 10, 5 + number % 5)).save(path)
    (tmp_path / "b" / "110.png").write_bytes(b"")
    cut = tmp_path / "b" / "149.png"
    cut.write_bytes(cut.read_bytes()[:-20])
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_any_number_of_workers_finds_the_same(images: Path, workers: int) -> None:
    result = check(CheckConfig(str(images), workers=workers))
    assert (result.n, result.readable) == (N, N - 2)
    assert [Path(bad.path).name for bad in result.bad] == ["110.png", "149.png"]
    assert [bad.why for bad in result.bad] == ["the file is empty", "the PNG file is cut before its end"]
    assert result.class_counts == {"a": 100, "b": 50}
    assert (result.width, result.height, result.channels) == ((3, 12), (5, 9), 1)
    assert result.seconds > 0


def test_it_says_how_far_it_is_and_how_many_are_bad(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Progress.__init__, "__kwdefaults__", {**Progress.__init__.__kwdefaults__, "interval": 0.0})
    assert main(["check", str(images), "--workers", "0", "--json"]) == 0

    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("check: ")]
    assert [line.partition(" img")[0] for line in lines[:3]] == ["check: 64/150", "check: 128/150", "check: 150/150"]
    assert [line.rpartition(", ")[2] for line in lines[:3]] == ["bad 0", "bad 1", "bad 2"]
    assert " left" in lines[0] and "img/s" in lines[0]
    assert captured.out.count("\n") == 1  # the result alone


def test_an_unlabelled_folder_of_which_nothing_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_text("no")
    result = check(CheckConfig(str(tmp_path)))
    assert (result.n, result.readable, result.class_counts, result.exit_code) == (1, 0, {}, 1)
    assert main(["check", str(tmp_path), "--json"]) == 1
    assert (result.width, result.height) == (None, None)


def test_a_named_data_set() -> None:
    result = check(CheckConfig("shapes:70", workers=0))
    assert (result.readable, result.width, result.height) == (70, (32, 32), (32, 32))
    assert set(result.class_counts.values()) == {7}


def test_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images in"):
        check(CheckConfig(str(tmp_path)))


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_worker_that_is_killed_ends_in_one_clear_line(tmp_path: Path) -> None:
    Image.effect_noise((1500, 1500), 50).save(tmp_path / "large.png")
    (tmp_path / "list.txt").write_text("large.png\n" * 2000)  # minutes of work
    program = """
        from barlowtwins.config import CheckConfig
        from barlowtwins.data.check import check
        from barlowtwins.core.errors import DataError
        try:
            check(CheckConfig("list.txt", workers=2))
        except DataError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as running:
        try:
            children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
            deadline = time.monotonic() + 120
            while len(workers := children.read_text().split()) < 2:
                assert running.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            os.kill(int(workers[-1]), signal.SIGKILL)
            printed, _ = running.communicate(timeout=120)
        finally:
            running.kill()
    assert "a process that reads images died" in printed
    assert printed.count("\n") == 1
    assert running.returncode == 0


# What is found besides ------------------------------------------------------------------------------------------------


def draw(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0, mode: str = "RGB", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)  # type: ignore[arg-type]
    return path


def test_formats_sizes_modes_depths_and_what_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        draw(tmp_path / "cat" / f"{number}.jpg", seed=number)
        draw(tmp_path / "dog" / f"{number}.png", (50, 30), seed=10 + number, mode="L")
    draw(tmp_path / "dog" / "9.tif", (7, 8), seed=99)
    draw(tmp_path / "dog" / "@eaDir" / "0.jpg")
    (tmp_path / "cat" / "raw.nef").touch()
    assert main(["check", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["formats"] == {"JPEG": 4, "PNG": 4, "TIFF": 1}
    assert found["modes"] == {"RGB": 5, "L": 4} and found["bits"] == {"8": 9}
    assert found["sizes"] == {"40 x 30": 4, "50 x 30": 4, "7 x 8": 1}
    assert found["left_out"] == {"files in @eaDir": 1, ".nef files": 1}
    assert (found["channels"], found["why_channels"]) == (3, "5 of 9 images have color")
    assert found["class_counts"] == {"cat": 4, "dog": 5}
    assert found["suspicious"] == ["4 grey images among 5 of color"]


def test_exact_duplicates_and_images_of_val_that_are_also_in_the_data(tmp_path: Path) -> None:
    for number in range(70):
        draw(tmp_path / "train" / "a" / f"{number:02}.png", seed=number)
    for copy, number in (("b/x.png", 3), ("b/y.png", 3), ("b/z.png", 60), ("b/own.png", 100)):
        draw(tmp_path / "train" / copy, seed=number)
    for number in (3, 5, 200):
        draw(tmp_path / "val" / "a" / f"{number}.png", seed=number)
    draw(tmp_path / "val" / "c" / "1.png", seed=300)
    for workers in (0, 2):
        found = check(CheckConfig(str(tmp_path / "train"), val=str(tmp_path / "val"), workers=workers))
        assert found.duplicate_count == 3
        assert found.duplicates == [("b/x.png", "a/03.png"), ("b/y.png", "a/03.png"), ("b/z.png", "a/60.png")]
        assert found.in_val == 2
        said = "; ".join(found.suspicious)
        assert "2 of 4 images of" in said and "1 classes of" in said and "3 images have the same bytes" in said
    pack = tmp_path / "train.tar"
    subprocess.run(["tar", "-cf", pack, "-C", tmp_path / "train", "a", "b"], check=True)
    packed = check(CheckConfig(str(pack), val=str(tmp_path / "val"), workers=0))
    assert (packed.duplicate_count, packed.in_val, packed.formats) == (3, 2, {"PNG": 74})


@pytest.mark.parametrize(("top", "dark"), [(4095, True), (1023, True), (65535, False)])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_values_that_do_not_fill_16_bits(top: int, dark: bool, suffix: str, tmp_path: Path) -> None:
    for number in range(3):
        values = np.random.default_rng(number).integers(0, top + 1, (30, 30)).astype(np.uint16)
        values[0, 0] = top
        Image.fromarray(values).save(tmp_path / f"{number}.{suffix}")
    found = check(CheckConfig(str(tmp_path), workers=0))
    assert (found.bits, found.channels) == ({"16": 3}, 1)
    assert any(f"channels:0-{top}:FOLDER" in line for line in found.suspicious) == dark
    assert found.why_channels == "all 3 images are grey; --channels 3 trains in color"


def test_thumbnails_among_photographs_and_classes_of_hardly_an_image(tmp_path: Path) -> None:
    for number in range(5):
        draw(tmp_path / "a" / f"{number}.jpg", (1200, 800 + number), seed=number)
        draw(tmp_path / "a" / f"{number}-small.jpg", (160, 120), seed=number)
    draw(tmp_path / "b" / "0.jpg", (1200, 700))
    said = check(CheckConfig(str(tmp_path), workers=0)).suspicious
    assert said == [
        "5 images are 160 x 120 pixels, others far larger: are those thumbnails?",
        "1 classes have fewer than 3 images: b (1)",
    ]


def test_a_source_in_one_line_and_as_a_record(tmp_path: Path) -> None:
    draw(tmp_path / "photos" / "a" / "1.png")
    draw(tmp_path / "photos" / "b" / "1.png")
    (tmp_path / "photos" / "b" / "1.heics").touch()
    (tmp_path / "photos" / ".DS_Store").touch()
    source = open_source(tmp_path / "photos")
    left_out = "left out: 1 .heics files, 1 hidden files"
    assert describe(source) == f"{tmp_path / 'photos'}: 2 images, RGB, 8 bits, 2 classes; {left_out}"
    assert record_of(source)["left_out"] == {".heics files": 1, "hidden files": 1}
    assert json.loads(json.dumps(record_of(source)))["images"] == 2
    grey = open_source(np.zeros((1, 5, 6), np.uint8))
    assert describe(grey) == "array: 1 image, grey, 8 bits in memory, 6 x 5 pixels, no classes"
    (tmp_path / "list.csv").write_text("path,split\nphotos/a/1.png,train\n")
    unlabeled = "no classes; no column is called 'label', so there are no labels; columns not used: split"
    assert describe(open_source(tmp_path / "list.csv")).endswith(unlabeled)


def test_a_run_and_an_embedding_say_what_they_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = write_weights(tmp_path / "w.safetensors")
    draw(tmp_path / "photos" / "a" / "1.png")
    (tmp_path / "photos" / "a" / "1.heics").touch()
    line = f"{tmp_path / 'photos'}: 1 image, RGB, 8 bits, 1 class; left out: 1 .heics files\n"
    arguments = ["embed", str(tmp_path / "photos"), "--weights", str(weights), "--out", str(tmp_path / "emb")]
    assert main([*arguments, "--workers", "0", "--device", "cpu"]) == 0
    assert capsys.readouterr().err.count(line) == 1
