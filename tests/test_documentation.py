"""The code blocks of the README and of the guide run, in reading order, as a reader would run them.

A comment above a block says how the test departs from the letter, and why:

    <!-- test: skip: REASON -->              the block is not run
    <!-- test: add FLAGS (REASON) -->        the flags are added to each of its commands
    <!-- test: stand-in: WHAT -->            something small takes the place of something large
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from servers import Server, file

from barlowtwins.cli import COMMANDS, main
from barlowtwins.data.shapes import draw_shapes
from barlowtwins.models.resnet import build_backbone

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *(f"docs/{name}.md" for name in ("hub", "pretrain", "embed", "evaluate", "look", "files"))]
PAGES += [f"docs/{name}.md" for name in ("method", "troubleshooting", "results", "coming-from")]
TEXT = {page: (ROOT / page).read_text("utf-8") for page in PAGES}
FENCE = re.compile(r"(?:^<!-- test: (?P<how>.*?) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)
HOW = re.compile(r"skip: .+|stand-in: .+|add (?P<flags>--[^(]+) \(.+\)")


class Block(NamedTuple):
    page: str
    line: int
    language: str
    code: str
    how: str


def _blocks() -> list[Block]:
    return [
        Block(page, text.count("\n", 0, found.start("code")) + 1, found["language"], found["code"], found["how"] or "")
        for page, text in TEXT.items()
        for found in FENCE.finditer(text)
    ]


def _commands(code: str) -> list[list[str]]:
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> dict[str, Any]:
    """A folder of photos, the project where torch.hub keeps what it has fetched, and small weights on a server."""
    monkeypatch.chdir(tmp_path)
    images, labels = draw_shapes(16, split="train", size=48)
    for i, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "photos" / ("cat" if i == 0 or label % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")

    for number in range(16):  # pets: their coats tell them apart, for any features at all
        kind, colour = [("cats", (220, 120, 40)), ("dogs", (60, 90, 200))][number % 2]
        folder = tmp_path / "pets" / ("train" if number < 10 else "validation") / kind
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).normal(colour, 30, (48, 48, 3))
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "torch" / "hub").mkdir(parents=True)
    (tmp_path / "torch" / "hub" / "OWNER_barlowtwins_v0.1.0").symlink_to(ROOT, target_is_directory=True)

    published = tmp_path / "published.pth"
    state = {key: value for key, value in build_backbone("resnet50").state_dict().items() if not key.startswith("fc.")}
    torch.save(state, published)
    content = published.read_bytes()
    shutil.copytree(ROOT / "weights", tmp_path / "registry")
    registry = tmp_path / "registry" / "registry.json"
    records = json.loads(registry.read_text())
    for record in records["weights"]:
        if record["name"] == "resnet50":
            record["url"] = server.answer("/resnet50.pth", file(content))
            record["sha256"] = hashlib.sha256(content).hexdigest()
            record["approximate_size"] = len(content)
    registry.write_text(json.dumps(records))
    monkeypatch.setenv("BARLOWTWINS_REGISTRY", str(registry))
    return {"__name__": "readme"}


@pytest.mark.slow
def test_every_block_runs(reader: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    for block in _blocks():
        if block.how.startswith("skip"):
            continue
        if block.language == "python":
            exec(compile(f"{(block.line - 1) * chr(10)}{block.code}", block.page, "exec"), reader)
            continue
        flags = HOW.fullmatch(block.how)
        added = shlex.split(flags["flags"]) if flags and flags["flags"] else []
        for words in _commands(block.code):
            assert words[0] == "barlowtwins"
            code = main([*words[1:], *added])
            assert code == 0, f"{block.page}, line {block.line}: {shlex.join(words)}\n{capsys.readouterr().err}"
    assert reader["accuracy"] > 0.8  # of the walk-through's classifier


def test_each_block_is_of_a_known_language_and_each_departure_has_a_reason() -> None:
    blocks = _blocks()
    assert len(blocks) == sum(text.count("\n```") for text in TEXT.values()) // 2  # none is missed by the pattern
    for block in blocks:
        assert block.language in ("python", "bash") or block.how.startswith("skip"), block
        assert not block.how or HOW.fullmatch(block.how), block
    assert sum(text.count("<!-- test:") for text in TEXT.values()) == sum(bool(block.how) for block in blocks)


def test_every_command_is_shown() -> None:
    shown = {" ".join(words[1:]) for block in _blocks() if block.language == "bash" for words in _commands(block.code)}
    for name in set(COMMANDS) - {"demo"}:  # which is `make demo`
        assert any(f"{command} ".startswith(f"{name} ") for command in shown), f"no page shows `barlowtwins {name}`"


def test_linked_files_exist() -> None:
    for page in [*PAGES, "docs/weights.md", "docs/scaling.md", "docs/notebook.md", "CONTRIBUTING.md", "SECURITY.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text("utf-8")):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_the_readme_is_short_and_names_every_page() -> None:
    assert TEXT["README.md"].count("\n") <= 200
    for page in PAGES[1:]:
        assert f"]({page})" in TEXT["README.md"]
