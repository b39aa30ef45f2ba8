"""Text files that name images: a path a line, or a table with a column of paths and perhaps one of labels.

| the file | is read as |
|---|---|
| a heading with a name of `PATH_NAMES` | it holds the paths, one of `LABEL_NAMES` the labels; no other is used |
| no heading, one column | paths |
| no heading, two columns | paths and labels: the paths are the column that names files |
| no heading, more columns | refused: nothing tells which one is the label |

What can be read in two ways is refused, and both are named. A .csv or .tsv file has quotes as usual and may be
separated by commas, semicolons, tabs or bars. Any other list has a line an image, and what follows an image suffix
after a tab, comma, semicolon or space is its label.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from barlowtwins.core.errors import DataError
from barlowtwins.data.images import IMAGE_SUFFIXES

__all__ = ["LABEL_NAMES", "LIST_SUFFIXES", "PATH_NAMES", "Listed", "read_list", "read_text"]

LIST_SUFFIXES = (".txt", ".tsv", ".csv")
PATH_NAMES = frozenset(
    "path paths image images img imgs file files filename filenames file_name file_names filepath filepaths file_path "
    "file_paths image_path image_paths img_path img_paths image_file image_filename image_name imagepath imagefile "
    "imagename relative_path rel_path relpath".split()
)
"""Headings of the column of paths, in lower case, blanks and hyphens as underscores."""
LABEL_NAMES = frozenset(
    "label labels class classes class_name classname class_label target targets category label_name".split()
)
"""Headings of the column of labels."""

SEPARATORS = {".csv": ",", ".tsv": "\t"}  # of files with quotes, unless the first line says otherwise
OTHERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
SAMPLE = 50  # lines by which columns without a heading are told apart
_LABELED = re.compile(
    rf"(?P<path>.+\.(?:{'|'.join(suffix[1:] for suffix in sorted(IMAGE_SUFFIXES))}))\s*(?P<by>[,; ])\s*(?P<label>\S.*)",
    re.IGNORECASE | re.DOTALL,
)


class Listed(NamedTuple):
    """What a list names."""

    keys: list[str]
    """N paths with forward slashes, as the list has them."""
    labels: list[str] | None
    """A class name for each, or None."""
    notes: tuple[str, ...] = ()
    """What was decided on the way, a sentence each."""


class _Row(NamedTuple):
    line: int
    fields: list[str]


def read_list(file: Path) -> Listed:
    """Read a text file that names images, by the table at the top of this module.

    Empty lines and lines that begin with # are skipped. Paths are absolute or relative to the list's own folder;
    backslashes do where only they lead to a file. Order and repetitions are kept. The text is UTF-8, or UTF-16 with
    its mark.

    Raises:
        DataError: the list cannot be read or can be read in two ways, names no image, names files that do not exist,
            or labels only some lines.
    """
    lines = read_text(file).split("\n")  # `splitlines` would split at odd characters in names
    suffix = file.suffix.lower()
    by = SEPARATORS.get(suffix) and _separator(lines, file, SEPARATORS[suffix])
    by = by or _heading_of_plain_list(lines, file)
    rows = list(_table(lines, file, by) if by else _plain(lines, file))
    notes: list[str] = []
    path_at, label_at = 0, None
    heading = _heading(rows, file)
    if heading:
        del rows[0]
        path_at, label_at, note = _by_names(heading, rows, file)
        notes += [note] if note else []
    if not rows:
        raise DataError(
            f"the list {file} names no image: its lines are empty, comments or headings; give a path a line"
        )
    if not heading:
        path_at, label_at = _by_files(rows, file)
    keys = _existing(rows, path_at, file)
    return Listed(keys, _labels(rows, label_at, file), tuple(notes))


def read_text(file: Path) -> str:
    """A text file as a user saves it: UTF-8 with or without its mark, or UTF-16 with it; line ends become newlines.

    Raises:
        DataError: it cannot be read, is neither, or holds a NUL character.
    """
    try:
        data = file.read_bytes()
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the list {file}: {error}; it must be UTF-8 text, a path a line") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"cannot read the list {file}: line {line} holds a NUL character; save it as UTF-8 text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


# Lines to rows --------------------------------------------------------------------------------------------------------


def _table(lines: Sequence[str], file: Path, by: str) -> Iterator[_Row]:
    """Rows of a file with quotes."""
    reader = csv.reader(_without_comments(lines, file, by), delimiter=by, strict=True)
    line = 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield _Row(line, [field.strip() for field in fields])
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"cannot read the list {file}: line {line}: {error}; check the quotes there, and that it is a list of paths"
        ) from error


def _without_comments(lines: Sequence[str], file: Path, by: str) -> Iterator[str]:
    """The lines with their ends; a comment becomes an empty line, so that numbers stay right."""
    quoted = False
    for number, line in enumerate(lines, 1):
        if not quoted and line.lstrip().startswith("#"):
            _require_comment(line.partition(by)[0], number, file)
            yield "\n"
        else:
            quoted ^= line.count('"') % 2 == 1
            yield line + "\n"


def _plain(lines: Sequence[str], file: Path) -> Iterator[_Row]:
    """Rows of a file without quotes."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if line.lstrip().startswith("#"):
            _require_comment(line, number, file)
            continue
        yield _Row(number, _fields(line, number, file))


def _fields(line: str, number: int, file: Path) -> list[str]:
    if "\t" in line:
        return [field.strip() for field in line.split("\t")]
    whole = line.strip()
    found = _LABELED.fullmatch(whole)
    if found is None or os.path.splitext(whole)[1].lower() in IMAGE_SUFFIXES:
        return [whole]
    path, by, label = found["path"], found["by"], found["label"].strip()
    if _is_file(file, whole):
        if _is_file(file, path):
            raise DataError(
                f"line {number} of {file} can be read in two ways: as the file {whole!r}, or as {path!r} with the "
                f"label {label!r}; both files exist, so rename one, or put a tab before the label"
            )
        return [whole]
    return [path, *(part.strip() for part in label.split(by))]


def _require_comment(line: str, number: int, file: Path) -> None:
    """Raise DataError if a line that begins with # is the name of a file."""
    name = line.strip()
    if _is_file(file, name):
        raise DataError(
            f"line {number} of {file} begins with #, as a comment does, but {name!r} is also a file; write ./{name} to "
            "name the file, or put a blank after the #"
        )


# Rows to columns ------------------------------------------------------------------------------------------------------


def _separator(lines: Sequence[str], file: Path, usual: str) -> str:
    """What separates the columns of a file with quotes: the usual character, unless only another one makes sense."""

    def makes_sense(by: str) -> bool:
        first = next(_safely(lines, file, by), None)
        if first is None or len(first.fields) < 2:
            return False
        return any(_named(field) in PATH_NAMES or _is_file(file, field) for field in first.fields)

    if makes_sense(usual):
        return usual
    return next((by for by in OTHERS if by != usual and makes_sense(by)), usual)


def _safely(lines: Sequence[str], file: Path, by: str) -> Iterator[_Row]:
    try:
        yield from _table(lines, file, by)
    except DataError:
        return


def _heading_of_plain_list(lines: Sequence[str], file: Path) -> str:
    """The separator of a table that is not called one: its first line is a heading of several columns."""
    first = next((line for line in lines if line.strip() and not line.lstrip().startswith("#")), "")
    for by in ("\t", ",", ";", "|"):
        names = [_named(field) for field in first.split(by)]
        if len(names) > 1 and PATH_NAMES.intersection(names) and not _is_file(file, first.strip()):
            return by
    return ""


def _heading(rows: Sequence[_Row], file: Path) -> list[str] | None:
    """The names of the columns, if the first row has them.

    Raises:
        DataError: it is a heading, and no column in it is called a path.
    """
    if not rows:
        return None
    fields = rows[0].fields
    names = [_named(field) for field in fields]
    files = [_is_file(file, field) for field in fields]
    if any(name in PATH_NAMES and not there for name, there in zip(names, files, strict=True)):
        return names
    looks_like_paths = any(files) or any(_has_image_suffix(field) for field in fields)
    below = rows[1].fields if len(rows) > 1 else []
    below_has_paths = any(_is_file(file, field) or _has_image_suffix(field) for field in below)
    if not looks_like_paths and (
        LABEL_NAMES.intersection(names) or (below_has_paths and max(len(fields), len(below)) > 1)
    ):
        raise DataError(
            f"no column of {file} is called a path: its heading is {', '.join(map(repr, fields))}; call the column of "
            "paths 'path' and that of labels 'label'"
        )
    return None


def _by_names(names: Sequence[str], rows: Sequence[_Row], file: Path) -> tuple[int, int | None, str]:
    """The columns of paths and labels by their names, and what is to be said of the others."""
    paths = [place for place, name in enumerate(names) if name in PATH_NAMES]
    if len(paths) > 1 and rows:
        lead = [place for place in paths if place < len(rows[0].fields) and _is_file(file, rows[0].fields[place])]
        paths = lead if len(lead) == 1 else paths
    labels = [place for place, name in enumerate(names) if name in LABEL_NAMES]
    for kind, columns in (("paths", paths), ("labels", labels)):
        if len(columns) > 1:
            called = " and ".join(repr(names[place]) for place in columns)
            raise DataError(f"{file} has {len(columns)} columns of {kind}: {called}; keep one, or rename the others")
    label = labels[0] if labels else None
    ragged = next((row for row in rows if len(row.fields) <= max(paths[0], label or 0)), None)
    if ragged is not None:
        raise DataError(
            f"line {ragged.line} of {file} has {len(ragged.fields)} columns, its heading has {len(names)}; "
            "quote fields that hold the separator"
        )
    others = [name or "(no name)" for place, name in enumerate(names) if place not in (paths[0], label)]
    if not others:
        return paths[0], label, ""
    unlabeled = "" if labels else "no column is called 'label', so there are no labels; "
    return paths[0], label, f"{unlabeled}columns not used: {', '.join(others)}"


def _by_files(rows: Sequence[_Row], file: Path) -> tuple[int, int | None]:
    """The columns of paths and labels where nothing names them."""
    wide = next((row for row in rows if len(row.fields) > 2), None)
    if wide is not None:
        raise DataError(
            f"line {wide.line} of {file} has {len(wide.fields)} columns ({', '.join(map(repr, wide.fields[:4]))}), and "
            "no heading says what they are; put one such as path,width,label first, or keep a path and a label a line"
        )
    sample = [row for row in rows if len(row.fields) == 2][:SAMPLE]
    if not sample:
        return 0, None
    first, second = (sum(_is_file(file, row.fields[place]) for row in sample) for place in (0, 1))
    if first and second:
        raise DataError(
            f"both columns of {file} name files ({', '.join(map(repr, sample[0].fields))}), so either could be the "
            "path and the other its label; put a heading such as path,label first"
        )
    return (1, 0) if second else (0, 1)


def _existing(rows: Sequence[_Row], at: int, file: Path) -> list[str]:
    """The paths of all rows.

    Raises:
        DataError: some do not exist.
    """
    keys, missing = [], []
    for row in rows:
        path = row.fields[at] if at < len(row.fields) else ""
        if not (path and os.path.exists(file.parent / path)):
            turned = path.replace("\\", "/")
            if not _is_file(file, turned):
                missing.append((row, path))
                continue
            path = turned
        keys.append(PurePath(path).as_posix())
    if missing:
        first = "; ".join(f"line {row.line}: {path or '(empty)'}" for row, path in missing[:3])
        raise DataError(
            f"{len(missing)} of {len(rows)} files in {file} do not exist ({first}); relative paths are "
            f"taken from {file.parent}{_hint(*missing[0], file)}"
        )
    return keys


def _hint(row: _Row, path: str, file: Path) -> str:
    """What may be wrong with a path that does not exist."""
    for suffix in sorted(IMAGE_SUFFIXES):
        if path and _is_file(file, path + suffix):
            return f"; {path}{suffix} exists, so write its suffix"
    for by, name in OTHERS.items():
        if by in path and len(row.fields) == 1 and _is_file(file, path.partition(by)[0].strip().strip('"')):
            return f"; if a {name} separates columns there, use commas in a .csv file, or a tab"
    return ""


def _labels(rows: Sequence[_Row], at: int | None, file: Path) -> list[str] | None:
    """The labels of all rows, or None.

    Raises:
        DataError: only some have one, or one holds a line break.
    """
    if at is None:
        return None
    labels = [row.fields[at] if at < len(row.fields) else "" for row in rows]
    unlabeled = [row.line for row, label in zip(rows, labels, strict=True) if not label]
    if 0 < len(unlabeled) < len(rows):
        raise DataError(
            f"{len(unlabeled)} of {len(rows)} lines in {file} have no label, first line {unlabeled[0]}; "
            "label all or none"
        )
    if broken := [row.line for row, label in zip(rows, labels, strict=True) if "\n" in label]:
        raise DataError(f"the label on line {broken[0]} of {file} goes over several lines; a quote is missing there")
    return None if unlabeled else labels


def _named(field: str) -> str:
    """A heading as `PATH_NAMES` has it."""
    return re.sub(r"[\s-]+", "_", field.strip().strip('"').lower())


def _is_file(file: Path, name: str) -> bool:
    """Whether a name in the list leads to a file (not a folder, which a label may be the name of)."""
    return bool(name) and os.path.isfile(os.path.join(file.parent, name))


def _has_image_suffix(path: str) -> bool:
    return os.path.splitext(path.strip())[1].lower() in IMAGE_SUFFIXES
