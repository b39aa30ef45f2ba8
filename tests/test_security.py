"""What the source must not contain, and that SECURITY.md names tests which exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "barlowtwins").rglob("*.py"), ROOT / "hubconf.py", ROOT / "setup.py", ROOT / "__init__.py"])

FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "breakpoint"),
    *("os.system", "os.popen", "os.execv", "os.spawnv", "pty.spawn", "tempfile.mktemp"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "yaml.load"),
    *("joblib.load", "torch.jit.load", "torch.hub.load", "ssl._create_unverified_context"),
    *("urllib.request.urlopen", "urllib.request.urlretrieve", "torch.hub.load_state_dict_from_url"),
}
"""Calls, by their dotted names. (`Module.eval()` is called on an object, not by this name.)"""
NEEDED = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
"""Calls, and the argument that each of them must have."""
PICKLE_WRITERS = {"barlowtwins/zoo/conversion.py"}
"""detectron2's format is a pickle."""
ALLOWED = {
    ("barlowtwins/shapes_demo.py", "torch.hub.load"): "what the demo has just trained, from this very clone",
    ("barlowtwins/zoo/export.py", "torch.jit.load"): "the program that it has just written, to compare features",
}
LOOPBACK = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\])")
NAMESPACE = re.compile(r"http://www\.w3\.org/")  # a name in XML, fetched by nobody


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a chain of names; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def violations(source: str, name: str = "x.py") -> list[str]:
    """What a file must not do, each with its line."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        complaint = ""
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            words = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
            needed, value = NEEDED.get(called, ("", None))
            if called in FORBIDDEN and (name, called) not in ALLOWED:
                complaint = f"calls {called}"
            elif needed and words.get(needed) is not value:
                complaint = f"calls {called} without {needed}={value}"
            elif words.get("verify", True) is False or words.get("shell", False) is not False:
                complaint = f"calls {called} with verify=False or a shell"
            elif called in ("pickle.dump", "pickle.dumps", "pickle.Pickler") and name not in PICKLE_WRITERS:
                complaint = f"calls {called}"
            elif isinstance(node.func, ast.Attribute) and node.func.attr in ("extractall", "extract"):
                complaint = "unpacks an archive to names that the archive chooses"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "http://" in node.value:
            left = NAMESPACE.sub("", LOOPBACK.sub("", node.value))
            if "http://" in left:
                complaint = "names an address without TLS"
        elif isinstance(node, ast.ImportFrom) and node.module in ("pickle", "subprocess", "os", "marshal", "builtins"):
            taken = {f"{node.module}.{alias.name}" for alias in node.names}
            if taken & FORBIDDEN:
                complaint = f"imports {taken & FORBIDDEN}"
        if complaint:
            found.append(f"{name}:{node.lineno} {complaint}")
    return found


def test_the_source_does_nothing_of_the_kind() -> None:
    assert len(SOURCES) > 50
    names = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in SOURCES}
    assert [complaint for name, source in names.items() for complaint in violations(source, name)] == []


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "import os; os.system('ls')",
        "from os import system",
        "subprocess.run('ls', shell=True)",
        "requests.get(url, verify=False)",
        "requests.get('http://example.org/w.pth')",
        "url = f'http://{host}/w.pth'",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "pickle.loads(data)",
        "pickle.dump(value, file)",
        "tarfile.open(path).extractall(folder)",
    ],
)
def test_each_of_these_would_be_found(source: str) -> None:
    assert violations(source)


@pytest.mark.parametrize(
    "source", ["model.eval()", "requests.get('https://example.org')", "url = 'http://127.0.0.1:80/'", "re.compile('a')"]
)
def test_none_of_these_is(source: str) -> None:
    assert violations(source) == []


def named_tests() -> list[tuple[str, str]]:
    """Files and functions that SECURITY.md names."""
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text("utf-8"))


def test_the_tests_that_the_threat_model_names_exist() -> None:
    named = named_tests()
    assert len(named) > 15
    for file, function in named:
        defined = [node.name for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8"))) if hasattr(node, "name")]
        assert function in defined, f"{file}::{function}"


def test_every_line_of_the_threat_model_names_a_test() -> None:
    rows = [line for line in (ROOT / "SECURITY.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    assert len(rows) > 15
    for row in rows:
        assert "`tests/" in row or row.startswith("| what"), row
