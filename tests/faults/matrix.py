"""The faults that the project must survive, by number. A test of row 7 is called `test_07_...`, one of two rows
`test_39_44_...`; `make faults` makes its table from these names (see conftest.py)."""

from __future__ import annotations

import re

__all__ = ["ROWS", "rows_of"]

ROWS = {
    1: "download: a body shorter than announced",
    2: "download: the connection drops",
    3: "download: the server ignores Range",
    4: "download: the server stalls",
    5: "download: a web page with status 200",
    6: "download: 429, 5xx, 403, 404",
    7: "download: plain http, TLS failures",
    8: "download: the disk fills up",
    9: "download: offline",
    10: "cache: a rotten file",
    11: "cache: read-only",
    12: "cache: odd or unwritable TORCH_HOME",
    13: "cache: partial files of the dead",
    14: "cache: a folder in the file's place",
    15: "cache: many processes fetch one weight",
    16: "two runs in one folder",
    17: "weights: a malicious pickle",
    18: "weights: cut, empty, noise, no checkpoint",
    19: "weights: wrong digest",
    20: "weights: wrong architecture",
    21: "weights: prefixes of wrappers",
    22: "weights: numbers that are not finite",
    23: "weights: paths in names",
    24: "weights: hostile safetensors",
    25: "weights: unknown classes",
    26: "data: missing, empty, no images",
    27: "data: odd names, links, hidden files",
    28: "data: files that vanish while running",
    29: "data: the order of a listing",
    30: "data: changed between stop and resume",
    31: "data: one class, one image, unknown classes",
    32: "images: cut",
    33: "images: empty, text, mislabelled",
    34: "images: decompression bombs",
    35: "images: unusual modes",
    36: "images: orientation, several frames",
    37: "images: 1x1, 1x5000, 5000x1",
    38: "images: formats that must not be parsed",
    39: "training: killed around a checkpoint write",
    40: "training: corrupt checkpoints",
    41: "training: signals",
    42: "training: the disk fills up",
    43: "training: numbers that are not finite",
    44: "training: resumed in the middle of an epoch",
    45: "training: changed settings at resume",
    46: "training: other number of processes at resume",
    47: "training: batches that do not fit",
    48: "training: a rank is killed",
    49: "training: out of memory",
    50: "workers that die or hang",
    51: "embedding: killed at any moment",
    52: "embedding: any number of processes",
    53: "embedding: duplicates, unreadable, other weights",
    54: "embedding: output exists, full disk",
    55: "evaluation: missing labels, foreign heads",
    56: "command line: mistyped words",
    57: "command line: no such device",
    58: "command line: Ctrl-C, closed pipes",
    59: "command line: anything at all",
    67: "pipes, devices and sockets in a file's place",
    69: "metadata that asks for memory",
    70: "hostile checkpoints and records",
    74: "URLs in a folder or file of a stranger",
}


def rows_of(function: str) -> tuple[int, ...]:
    """The rows that a test function is named after; none if it stands beside the matrix."""
    found = re.match(r"test((?:_\d\d)+)_", function)
    return tuple(map(int, found[1].strip("_").split("_"))) if found else ()
