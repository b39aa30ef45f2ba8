"""Every way to come by the package finds its registry and the weights that come with it: wheel, sdist, clone, hub.

The copy that is built here has one more weight on record, with its file: as the project's own are bundled.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import save
from weight_files import TINY, backbone_state, record, sha256

ROOT = Path(__file__).parent.parent
SHIPPED = ("barlowtwins", "weights", "tests", "benchmarks", "__init__.py", "hubconf.py", "setup.py", "pyproject.toml")
TEXTS = ("MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile")
HOW = {"image_size": 28, "resize": None, "channels": 1, "mean": [0.3], "std": [0.3]}


class Clone(NamedTuple):
    path: Path
    names: list[str]


def _bundle(registry: Path, name: str, backbone: str, stem: str) -> None:
    """Put a weight on record whose file lies beside the registry: half precision, its digest known whole."""
    state = backbone_state(backbone, stem=stem, channels=1)
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    data = save(half, {"format": "pt"})
    (registry.parent / f"{name}.safetensors").write_bytes(data)
    about: dict[str, Any] = {"backbone": backbone, "stem": stem, "channels": 1, "preprocessing": HOW, "epochs": 3}
    whole = record(name, file=f"{name}.safetensors", sha256=sha256(data), format="torchvision", **about)
    entries = json.loads(registry.read_text("utf-8"))
    entries["weights"].append(whole)
    registry.write_text(json.dumps(entries))
    (registry.parent / f"{name}.md").write_text(f"# {name}\n\nRandom numbers.\n")


def _copy(target: Path) -> Clone:
    for name in (*SHIPPED, *TEXTS):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    registry = target / "weights" / "registry.json"
    _bundle(registry, "tiny-bundled", TINY, "small-stride2")
    _bundle(registry, "small-bundled", "resnet18", "small")
    return Clone(target, [entry["name"] for entry in json.loads(registry.read_text("utf-8"))["weights"]])


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    return _copy(tmp_path_factory.mktemp("around") / "barlowtwins")


def _python(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    """Run Python without a connection: every address but loopback's is behind a proxy that is not there."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("BARLOWTWINS", "PYTHONPATH"))}
    dead = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**clean, **dead, "TORCH_HOME": str(cwd / "home"), **environment},
        stdin=subprocess.DEVNULL,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


USE = """
import json, sys
import barlowtwins
net = barlowtwins.load_backbone("tiny-bundled")
shown = barlowtwins.weights_show(barlowtwins.WeightsShowConfig("tiny-bundled"))
print(json.dumps({
    "file": barlowtwins.__file__, "names": list(barlowtwins.registry()), "features": net.fc.in_features,
    "stride": net.conv1.stride, "card": shown.card, "path": str(shown.path),
}))
"""


def _check(found: str, clone: Clone, inside: Path) -> None:
    said = json.loads(found.splitlines()[-1])
    assert said["names"] == clone.names
    assert (said["features"], said["stride"]) == (256, [2, 2])
    assert said["card"] == "# tiny-bundled\n\nRandom numbers.\n"
    assert Path(said["file"]).is_relative_to(inside) and Path(said["path"]).is_relative_to(inside)


def _install(what: Path, target: Path, cwd: Path) -> None:
    """As `pip install` does, but into a folder of its own, without dependencies or a connection."""
    quiet = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation")
    _python(*quiet, "--target", target, what, cwd=cwd)


@pytest.mark.slow
def test_wheel_and_sdist_installs_find_the_registry(clone: Clone, tmp_path: Path) -> None:
    _python("-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, clone.path, cwd=tmp_path)
    (sdist,) = tmp_path.glob("*.tar.gz")
    wheel = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, clone.path)
    _python(*wheel, cwd=tmp_path)
    (built,) = tmp_path.glob("*.whl")
    for number, what in enumerate((sdist, built)):
        target = tmp_path / f"site-{number}"
        _install(what, target, tmp_path)
        assert not (target / "weights").exists() and not (target / "__init__.py").exists()
        _check(_python("-c", USE, cwd=tmp_path, PYTHONPATH=str(target)), clone, target)
        listed = _python("-m", "barlowtwins", "weights", "list", "--json", cwd=tmp_path, PYTHONPATH=str(target))
        rows = json.loads(listed)["weights"]
        assert [row["name"] for row in rows] == clone.names
        assert [row["name"] for row in rows if row["here"]] == [
            "resnet10-fashion-mnist",
            "resnet8-fashion-mnist",
            "tiny-bundled",
            "small-bundled",
        ]


def test_a_clone_works_from_its_parent_folder(clone: Clone) -> None:
    """There, Python would take the folder of the clone for a package without any code."""
    around = clone.path.parent
    _check(_python("-c", USE, cwd=around), clone, clone.path)
    assert _python("-m", "barlowtwins", "--version", cwd=around).startswith("barlowtwins ")
    said = _python("-c", "from barlowtwins import loss; import barlowtwins as b; print(b.loss is loss, b)", cwd=around)
    assert said.startswith("True") and str(clone.path / "barlowtwins" / "__init__.py") in said


HUB = """
import json, sys
import torch
from functools import partial
repo, clone = sys.argv[1:]
load = partial(torch.hub.load, repo, trust_repo=True)
net = load("resnet18", weights="small-bundled")
features = load("embedder", "tiny-bundled", device="cpu").encode(torch.rand(3, 1, 28, 28))
found = {"type": str(type(net)), "out": list(net(torch.zeros(1, 1, 28, 28)).shape), "embedded": list(features.shape)}
found["heavy"] = sorted({"tyro", "safetensors"} & set(sys.modules))
try:
    torch.hub.load(clone, "resnet18", source="local")
except ImportError as error:
    found["mixed"] = str(error)
print(json.dumps(found))
"""


def test_weights_that_come_along_need_no_connection_through_the_hub(clone: Clone, tmp_path: Path) -> None:
    repo = tmp_path / "home" / "hub" / "OWNER_barlowtwins_v0.1.0"
    repo.parent.mkdir(parents=True)
    shutil.copytree(clone.path, repo)
    found = json.loads(_python("-c", HUB, "OWNER/barlowtwins:v0.1.0", clone.path, cwd=tmp_path).splitlines()[-1])
    assert found["type"] == "<class 'torchvision.models.resnet.ResNet'>"
    assert (found["out"], found["embedded"], found["heavy"]) == ([1, 512], [3, 256], [])
    assert str(repo) in found["mixed"] and str(clone.path) in found["mixed"]
    kept = [path.name for path in (tmp_path / "home" / "hub").rglob("*") if path.is_file() and repo not in path.parents]
    assert set(kept) <= {"trusted_list"}  # nothing was fetched or copied into the cache


INSTALLED_AND_HUB = """
import json, sys
import torch
import barlowtwins
try:
    torch.hub.load(sys.argv[1], "resnet18", source="local")
except ImportError as error:
    print(json.dumps(str(error)))
"""


def test_an_installed_copy_and_the_hubs_are_not_mixed(clone: Clone, tmp_path: Path) -> None:
    site = tmp_path / "site"
    shutil.copytree(clone.path / "barlowtwins", site / "barlowtwins")
    said = json.loads(_python("-c", INSTALLED_AND_HUB, clone.path, cwd=tmp_path, PYTHONPATH=str(site)).splitlines()[-1])
    assert str(site) in said and str(clone.path) in said and said.count("0.1.0") == 2
