"""Lists of images as people's tools write them: which column is the path, which one the label, and what is refused."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from barlowtwins.core.errors import DataError
from barlowtwins.data.lists import read_list
from barlowtwins.data.open import Source, open_source

NAMES = ("x.png", "sub/y z.png", "a,b.png")
LABELS = ("dog", "cat", "dog")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, and folders that have the names of labels and of a split."""
    for number, name in enumerate(NAMES):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (2, 2), number).save(path, "PNG")
    for name in ("dog", "train", "40"):
        (tmp_path / name).mkdir()
    return tmp_path


def labeled(source: Source) -> list[tuple[str, str]]:
    assert source.labels is not None, source.notes
    return [(source.key(row), source.classes[source.labels[row]]) for row in range(len(source))]


def write(path: Path, heading: Sequence[str], rows: Sequence[Sequence[object]], **form: str) -> Path:
    with path.open("w", newline="", encoding=form.pop("encoding", "utf-8")) as file:
        csv.writer(file, **form).writerows([heading, *rows] if heading else rows)  # type: ignore[arg-type]
    return path


COLUMNS = {
    "path": NAMES,
    "label": LABELS,
    "split": ("train", "val", "train"),
    "width": (40, 40, 50),
    "height": (1, 2, 3),
}


@pytest.mark.parametrize(
    "heading",
    [
        "path,label",
        "label,path",
        "path,split,label",
        "file_name,width,height,label",
        "split,image_path,class",
        "Image Path,Label",
        "filename,target,width",
        "width,class_name,filepath",
        ",image,category",
    ],
)
@pytest.mark.parametrize("by", [",", ";", "\t", "|"])
def test_a_heading_says_which_column_is_which(heading: str, by: str, folder: Path) -> None:
    names = heading.split(",")
    kinds = {
        "path": "path",
        "image": "path",
        "file": "path",
        "label": "label",
        "class": "label",
        "target": "label",
        "category": "label",
    }
    kind = [next((kinds[start] for start in kinds if name.lower().startswith(start)), name) for name in names]
    rows = [[row if column == "" else COLUMNS[column][row] for column in kind] for row in range(3)]
    for suffix in (".csv", ".tsv") if by in ",\t" else (".csv",):
        source = open_source(write(folder / f"list{suffix}", names, rows, delimiter=by))
        assert labeled(source) == list(zip(NAMES, LABELS, strict=True))
        unused = [
            name.lower() or "(no name)"
            for name, column in zip(names, kind, strict=True)
            if column not in ("path", "label")
        ]
        assert source.notes == ((f"columns not used: {', '.join(unused)}",) if unused else ())


def test_what_pandas_writes(folder: Path) -> None:
    frame = pd.DataFrame({"label": LABELS, "path": NAMES})
    frame.to_csv(folder / "index.csv")
    frame.to_csv(folder / "plain.csv", index=False)
    frame.to_csv(folder / "tabs.tsv", sep="\t")
    frame.to_csv(folder / "german.csv", sep=";", encoding="utf-8-sig", lineterminator="\r\n")
    frame.to_csv(folder / "excel.txt", sep="\t", encoding="utf-16", index=False)
    frame.to_csv(folder / "bare.csv", header=False, index=False)
    for file in sorted(folder.glob("*.[ct]*")):
        assert labeled(open_source(file)) == list(zip(NAMES, LABELS, strict=True)), file.name


def test_columns_that_are_not_used_are_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_source(write(folder / "list.csv", ["path", "split"], [["x.png", "train"], ["a,b.png", "val"]]))
    assert (source.labels, source.classes) == (None, ())
    note = "no column is called 'label', so there are no labels; columns not used: split"
    assert source.notes == (note,)
    assert f"list.csv: {note}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "paths", "labels"),
    [
        ("dog\tx.png\ncat\tsub/y z.png\n", ["x.png", "sub/y z.png"], ["dog", "cat"]),  # labels first
        ("x.png 0\nsub/y z.png 1\n", ["x.png", "sub/y z.png"], ["0", "1"]),
        ("x.png;0\na,b.png; 1\n", ["x.png", "a,b.png"], ["0", "1"]),
        ("x.png,0\r\na,b.png,1\r\n", ["x.png", "a,b.png"], ["0", "1"]),
        ("sub\\y z.png\nx.png\n", ["sub/y z.png", "x.png"], None),
        ("path\tlabel\nx.png\t0\n", ["x.png"], ["0"]),
        ("image,label\nx.png,0\n", ["x.png"], ["0"]),
        ("file\nx.png\n", ["x.png"], None),
        ("x.png\rsub/y z.png\r", ["x.png", "sub/y z.png"], None),  # of old Macs
    ],
)
def test_plain_lists(text: str, paths: list[str], labels: list[str] | None, folder: Path) -> None:
    (folder / "list.txt").write_bytes(text.encode())
    assert read_list(folder / "list.txt")[:2] == (paths, labels)


def test_quotes(folder: Path) -> None:
    (folder / "two\nlines.png").write_bytes((folder / "x.png").read_bytes())
    rows = [["two\nlines.png", 'a "quoted" label'], ["a,b.png", "cat, grey"], ["x.png", "#1"]]
    file = write(folder / "list.csv", ["path", "label"], rows)
    assert labeled(open_source(file)) == [(path, label) for path, label in rows]
    file.write_text('path,label\n# a comment with "one quote\n"x.png",dog\ngone.png,cat\n')
    with pytest.raises(DataError, match=r"1 of 2 files in .*list\.csv do not exist \(line 4: gone\.png\)"):
        open_source(file)


REFUSED = {
    "three columns without a heading": (
        "x.png\ttrain\tdog\n",
        r"line 1 of .* has 3 columns .*put one such as path,width,label",
    ),
    "a comma more": ("x.png,40,dog\n", r"line 1 of .* has 3 columns \('x\.png', '40', 'dog'\)"),
    "blanks": ("x.png 0 1\n", r"line 1 of .* has 3 columns"),
    "two columns of files": ("x.png\ta,b.png\n", r"both columns of .* name files .* put a heading such as path,label"),
    "no path in the heading": (
        "img_id;label\nx.png;dog\n",
        r"no column of .* is called a path: its heading is 'img_id.*label'",
    ),
    "no path in the heading, no label": (
        "name,kind\nx.png,dog\n",
        r"no column of .* is called a path: .*'name.*kind'",
    ),
    "two labels": ("path,label,class\nx.png,dog,1\n", r"has 2 columns of labels: 'label' and 'class'; keep one"),
    "two paths": ("image,path\nx.png,x.png\n", r"has 2 columns of paths: 'image' and 'path'"),
    "a quote is missing": ('path,label\nx.png,"dog\nx.png,cat\n', r"line 2: unexpected end of data; check the quotes"),
    "two quotes are missing": (
        'path,label\nx.png,"dog\nx.png,cat"\n',
        r"the label on line 2 of .* goes over several lines",
    ),
    "a field is missing": ("path,label\nx.png\n", r"line 2 of .* has 1 columns, its heading has 2"),
    "a NUL": ("path,label\nx.png,d\0og\n", r"line 2 holds a NUL character"),
    "a field of 140 kB": ("path,label\nx.png," + "d" * 140_000 + "\n", r"line 2: field larger than field limit"),
    "no suffix": ("path,label\nx,dog\n", r"line 2: x\); .* x\.png exists, so write its suffix"),
    "a heading alone": ("path,label\n", "names no image"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt"])
def test_what_is_refused_and_why(name: str, suffix: str, folder: Path) -> None:
    text, message = REFUSED[name]
    by = "\t" if "\t" in text else ";" if ";" in text else ","
    if name == "blanks" and suffix != ".txt":
        pytest.skip("a blank separates only what is no table")
    if suffix == ".csv":
        text = text.replace(by, ",") if "a,b" not in text else text.replace("a,b.png", '"a,b.png"').replace("\t", ",")
    elif suffix == ".tsv":
        text = text.replace(by, "\t") if "a,b" not in text else text
    (folder / f"list{suffix}").write_bytes(text.encode())
    with pytest.raises(DataError, match=message) as caught:
        open_source(folder / f"list{suffix}")
    assert "\n" not in str(caught.value)


def test_a_line_that_could_be_a_file_or_a_file_and_a_label(folder: Path) -> None:
    (folder / "list.txt").write_text("x.png 0\n")
    (folder / "x.png 0").write_bytes((folder / "a,b.png").read_bytes())
    with pytest.raises(
        DataError, match=r"line 1 of .* can be read in two ways: as the file 'x\.png 0', or as 'x\.png' wi"
    ):
        open_source(folder / "list.txt")
    (folder / "x.png").unlink()
    assert read_list(folder / "list.txt")[:2] == (["x.png 0"], None)


@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_a_comment_that_is_also_a_file(name: str, folder: Path) -> None:
    (folder / "#1.png").write_bytes((folder / "x.png").read_bytes())
    (folder / name).write_text("# 1.png\nx.png\n#1.png\n")
    with pytest.raises(DataError, match=r"line 3 of .* begins with #, as a comment does, but '#1\.png' is also a file"):
        open_source(folder / name)
    (folder / name).write_text("# 1.png\nx.png\n./#1.png\n")
    assert read_list(folder / name).keys == ["x.png", "#1.png"]


def test_labels_of_two_spellings_are_one_class(folder: Path) -> None:
    (folder / "list.csv").write_text("path,label\nx.png,\u00c4pfel\nx.png,A\u0308pfel\n", "utf-8")
    assert open_source(folder / "list.csv").classes == ("\u00c4pfel",)


def test_a_list_of_every_kind_says_the_same_of_random_labels(folder: Path) -> None:
    """Paths and labels of a random table come back, whatever tool's form it is written in."""
    rng = np.random.default_rng(0)
    rows = [(NAMES[rng.integers(3)], f"class {rng.integers(5)}") for _ in range(50)]
    for form in ({"delimiter": ";"}, {"delimiter": "\t"}, {"quoting": csv.QUOTE_ALL}, {"lineterminator": "\n"}):
        text = io.StringIO()
        csv.writer(text, **form).writerows([("label", "path", "n"), *((b, a, i) for i, (a, b) in enumerate(rows))])  # type: ignore[arg-type]
        (folder / "list.csv").write_text(text.getvalue(), newline="")
        assert labeled(open_source(folder / "list.csv")) == rows
