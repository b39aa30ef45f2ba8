"""Pages of the site that come from elsewhere: the README, the changelog, the benchmarks, and the references.

mkdocs calls the two functions `on_files` and `on_page_markdown` (see `hooks` in mkdocs.yml).
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import barlowtwins
from barlowtwins.cli import COMMANDS

ROOT = Path(__file__).parent.parent
COPIED = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "benchmarks.md": "benchmarks/README.md"}
PARTS = {  # of the Python reference: a title, and the modules whose public names it lists
    "Models and loss": ("models", "loss", "optim", "hub"),
    "Pretraining": ("pretraining", "train", "views"),
    "Images": ("data",),
    "Embeddings": ("embedding",),
    "Evaluation": ("evaluate",),
    "Weights": ("zoo",),
    "Reports": ("reports",),
    "Demo": ("shapes_demo",),
    "Errors": ("core",),
    "Settings": ("config",),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for name, source in COPIED.items():
        text = (ROOT / source).read_text("utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=_outside(text, Path(source).parent, str(config.repo_url))))
    files.append(File.generated(config, "reference/api.md", content=_api()))
    files.append(File.generated(config, "reference/commands.md", content=_commands()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to files outside docs/ to the repository, and drop the comments for tests."""
    markdown = re.sub(r"^<!-- test: .*? -->\n", "", markdown, flags=re.MULTILINE)
    return re.sub(r"\]\(\.\./([^)]+)\)", rf"]({config.repo_url}/blob/main/\1)", markdown)


def _outside(text: str, folder: Path, repository: str) -> str:
    """Links from a file of the repository to others that are not pages of the site."""

    def link(found: re.Match[str]) -> str:
        target = found[1]
        if (ROOT / "docs" / target).exists() or target.startswith(("http", "#")):
            return found[0]
        if target == "benchmarks/README.md":
            return "](benchmarks.md)"
        if target.startswith("../docs/"):
            return f"]({target.removeprefix('../docs/')})"
        return f"]({repository}/blob/main/{(folder / target).as_posix()})"

    return re.sub(r"\]\(([^)]+)\)", link, text)


def _api() -> str:
    """Every public name of the package, by topic."""
    homes = dict(barlowtwins._HOMES)
    lines = ["# Python reference", "", "Import every name from `barlowtwins`.", ""]
    for title, modules in PARTS.items():
        lines += [f"## {title}", ""]
        for name, home in sorted(homes.items()):
            if home.split(".")[1] in modules:
                value = getattr(barlowtwins, name)
                if value.__name__ == name:  # else an alias: its own name is listed
                    lines += [f"::: {value.__module__}.{value.__qualname__}", ""]
                del homes[name]
    assert not homes, f"add the modules of {sorted(homes.values())} to PARTS"
    return "\n".join(lines)


def _commands() -> str:
    """Every command with its flags, from the dataclasses."""
    lines = ["# Command reference", "", "Every command also takes `--json`, `--debug` and `--help`.", ""]
    for name, command in COMMANDS.items():
        lines += [f"## barlowtwins {name}", "", inspect.getdoc(command.settings) or "", ""]
        lines += ["| flag | default | |", "|---|---|---|"]
        help_of = _field_help(command.settings)
        for field in dataclasses.fields(command.settings):
            flag = f"`--{field.name.replace('_', '-')}`" if not _positional(field) else f"`{field.name.upper()}`"
            lines.append(f"| {flag} | {_default(field)} | {help_of.get(field.name, '')} |")
        lines.append("")
    return "\n".join(lines)


def _positional(field: dataclasses.Field[Any]) -> bool:
    return "Positional" in str(field.type)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "" if field.default_factory is not dataclasses.MISSING else "required"
    return "" if field.default is None else f"`{field.default}`".replace("|", "\\|")


def _field_help(settings: type) -> dict[str, str]:
    """The string below each field, of the class and of its bases."""
    found: dict[str, str] = {}
    for kind in reversed(settings.__mro__[:-1]):
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
        body = tree.body[0].body  # type: ignore[attr-defined]
        for node, after in itertools.pairwise(body):
            text = after.value if isinstance(after, ast.Expr) else None
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(text, ast.Constant):
                found[node.target.id] = " ".join(str(text.value).split()).replace("|", "\\|")
    return found
