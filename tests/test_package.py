"""What is installed: names, imports, and the contents of the wheel and of the source archive."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import barlowtwins

ROOT = Path(__file__).parent.parent
SHIPPED = (
    *("barlowtwins", "weights", "tests", "benchmarks", "hubconf.py", "setup.py", "pyproject.toml", "MANIFEST.in"),
    *("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "docs", ".ci", ".github", "CITATION.cff"),
)


def _python(code: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=Path(sys.prefix),  # not the source tree
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


ALIASES = {"NeighboursConfig": "NeighborsConfig", "NeighboursResult": "NeighborsResult", "neighbours": "neighbors"}


def test_every_public_name_resolves_to_what_has_that_name() -> None:
    for name in barlowtwins.__all__:
        value = getattr(barlowtwins, name)
        assert name == "__version__" or value.__name__ == ALIASES.get(name, name)
        assert name in dir(barlowtwins)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = barlowtwins.nonsense


def test_promised_names_are_public() -> None:
    promised = (
        "resnet50 resnet18 barlow_twins embedder preprocess BarlowTwins BarlowTwinsLoss cross_correlation "
        "TwinTransform LARS load_backbone Embedder pretrain embed evaluate_knn neighbors neighbours check demo "
        "weights_list weights_show weights_get weights_verify"
    )
    assert set(promised.split()) <= set(barlowtwins.__all__)
    for config in ("Pretrain", "Embed", "KNN", "Neighbors", "Neighbours", "Check", "Demo"):
        assert f"{config}Config" in barlowtwins.__all__


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse((ROOT / "barlowtwins" / "__init__.py").read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: node.module for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    assert seen == barlowtwins._HOMES


def test_importing_the_package_imports_no_library() -> None:
    loaded = _python("import sys, barlowtwins; print(*sys.modules)")
    assert not {"torch", "numpy", "PIL", "tyro", "requests", "barlowtwins.cli"} & set(loaded)


def test_using_the_package_imports_no_extra() -> None:
    loaded = _python("import sys, barlowtwins as b; [getattr(b, name) for name in b.__all__]; print(*sys.modules)")
    assert not {"matplotlib", "bokeh", "onnx", "onnxruntime", "ray", "pyarrow", "timm", "barlowtwins.cli"} & set(loaded)


def test_the_hub_needs_only_what_the_hub_promises() -> None:
    absent = "import sys; sys.modules.update(dict.fromkeys(('tyro', 'tqdm', 'safetensors')))"  # importing them fails
    names = "('resnet50', 'resnet18', 'barlow_twins', 'embedder', 'preprocess')"
    assert len(_python(f"{absent}; import barlowtwins as b; print(*[getattr(b, n).__name__ for n in {names}])")) == 5


def test_no_public_name_is_also_a_module() -> None:
    modules = {path.stem for path in (ROOT / "barlowtwins").iterdir()}
    assert not modules & set(barlowtwins._HOMES)  # importing the module would replace the function


def test_a_star_import_leaves_built_in_names_alone() -> None:
    assert _python("from barlowtwins import *; print(map is __builtins__.map, pretrain.__name__)") == [
        "True",
        "pretrain",
    ]


def test_the_makefile_names_tests_that_exist() -> None:
    text = (ROOT / "Makefile").read_text("utf-8").replace("\\\n", " ")
    stems = re.search(r"^OLDEST := \$\(addprefix tests/test_, \$\(addsuffix .py, ([^)]+)\)\)", text, re.M)
    assert stems is not None
    assert [stem for stem in stems[1].split() if not (ROOT / "tests" / f"test_{stem}.py").exists()] == []
    assert [name for name in re.findall(r"tests/[\w/]+\.py", text) if not (ROOT / name).exists()] == []


def _first(pattern: str, file: str) -> str:
    found = re.search(pattern, (ROOT / file).read_text("utf-8"), re.M)
    assert found is not None, f"{file} does not hold {pattern}"
    return found[1]


def test_what_is_promised_is_what_continuous_integration_tests() -> None:
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8")
    promised = (ROOT / "pyproject.toml").read_text("utf-8")
    tested = re.findall(r'"([\d.]+)"', _first(r"^ +python: \[(.+)\]$", ".github/workflows/tests.yml"))
    oldest = _first(r'^requires-python = ">=([\d.]+)"', "pyproject.toml")
    assert tested[0] == oldest
    assert all(f'"Programming Language :: Python :: {version}"' in promised for version in tested)
    assert re.search(rf'python-version: "{oldest}"\n(?: +.*\n)*? +- run: make oldest', workflow)
    torch = _first(r'"torch>=([\d.]+)"', "pyproject.toml")
    assert f"torch=={torch}.*" in (ROOT / "Makefile").read_text("utf-8")
    assert re.findall(r"os: \[(.+)\]", workflow) == ["ubuntu-latest, macos-latest, windows-latest"]


def test_versions_that_are_written_twice_agree() -> None:
    assert _first(r"^version: (.+)$", "CITATION.cff") == barlowtwins.__version__
    assert _first(r"rev: v([\d.]+) # as in", ".pre-commit-config.yaml") == _first(r'"ruff==([\d.]+)"', "pyproject.toml")


def test_each_folder_has_its_row_in_the_contract_and_in_the_house() -> None:
    house = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    layers = (ROOT / "pyproject.toml").read_text("utf-8").partition("layers = [")[2].partition("]")[0]
    order = [name for name in re.findall(r"[a-z_]+", layers) if (ROOT / "barlowtwins" / name).is_dir()]
    rows = re.findall(r"^\| `([a-z]+)/` \|", house.partition("## The house")[2].partition("## Where")[0], re.M)
    assert rows == order


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, and the wheel that pip makes of that archive without the network."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    source.mkdir()
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    quiet = {"capture_output": True, "text": True, "timeout": 200}
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, **quiet)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = folder.glob("*.tar.gz")
    command = [sys.executable, "-m", "pip", "wheel", str(archive), "--no-deps", "--no-build-isolation", "-w"]
    done = subprocess.run([*command, str(folder)], **quiet)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_source_archive_is_whole(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {"hubconf.py", "weights/registry.json", "barlowtwins/py.typed", "LICENSE", "Makefile", "tests/conftest.py"}
    wanted |= {f"tests/fixtures/run-0.1.0/{name}" for name in ("config.json", "checkpoints/step-00000006.pt")}
    wanted |= {"docs/notebook.md", "docs/slurm/embed.sbatch", ".ci/run", ".github/workflows/tests.yml"}  # tests read
    assert wanted <= names
    assert not [name for name in names if "__pycache__" in name]


def test_the_wheel_has_the_package_its_data_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"barlowtwins-{barlowtwins.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
        entries = archive.read(next(name for name in names if name.endswith("/entry_points.txt"))).decode()
    shipped = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "barlowtwins").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    weights = {
        f"barlowtwins/weights_data/{path.relative_to(ROOT / 'weights').as_posix()}"
        for path in (ROOT / "weights").rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    assert "barlowtwins/weights_data/registry.json" in weights
    assert "barlowtwins/py.typed" in shipped
    assert shipped | weights <= set(names)
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"barlowtwins"}
    assert "barlowtwins = barlowtwins.cli:main" in entries
    for extra in ("fast", "onnx", "report", "parquet", "shards", "ray", "timm", "track", "test", "bench", "all"):
        assert f"Provides-Extra: {extra}" in metadata


def test_the_wheel_finds_its_registry(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "import barlowtwins; print(barlowtwins.__file__, *barlowtwins.registry())"
    file, *names = _python(code, PYTHONPATH=str(tmp_path))
    assert Path(file).is_relative_to(tmp_path)
    assert names == list(barlowtwins.registry())
    assert "resnet50" in names
