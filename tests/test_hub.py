"""torch.hub itself, in fresh processes: the clone, GitHub's layout in the hub's cache, and what users do with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from servers import Server, file
from torch import nn
from torchvision.ops import FrozenBatchNorm2d
from weight_files import (
    TINY,
    backbone_state,
    equal,
    published_checkpoint,
    saved,
    sha256,
    twins_state,
)

from barlowtwins.core.errors import ConfigError, WeightsError
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.hub import barlow_twins, embedder, preprocess, resnet18, resnet50
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.runs.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
REPO = "OWNER/barlowtwins:v0.1.0"


class Zoo(NamedTuple):
    """A hub cache with this repository in it as GitHub's archive is laid out, its weights on a server on loopback."""

    home: Path
    repo: Path
    server: Server
    backbone: Path
    full: Path


def _copy_repo(target: Path) -> Path:
    for name in ("barlowtwins", "weights"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "hubconf.py", target)
    return target


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    home = tmp_path_factory.mktemp("torch home")
    repo = _copy_repo(home / "hub" / "OWNER_barlowtwins_v0.1.0")
    files = {"resnet50": saved(backbone_state("resnet50")), "resnet50-full": saved(published_checkpoint(twins_state()))}
    paths = {name: home / f"{name}.pth" for name in files}
    path = repo / "weights" / "registry.json"
    registry = json.loads(path.read_text())
    with Server() as server:
        for entry in registry["weights"]:
            if data := files.get(entry["name"]):
                paths[entry["name"]].write_bytes(data)
                entry["url"] = server.answer(f"/{entry['name']}.pth", file(data))
                entry["sha256"] = sha256(data)[:10]
        registry["weights"][2]["backbone"] = TINY
        path.write_text(json.dumps(registry))
        yield Zoo(home, repo, server, paths["resnet50"], paths["resnet50-full"])


def _run(script: str, *arguments: object, home: Path) -> dict[str, Any]:
    """Run a script in a process of its own, far from the source tree; it prints one JSON object at its end."""
    path = home / f"script-{sha256(script.encode())[:10]}.py"  # a file, for spawned workers import it
    path.write_text(textwrap.dedent(script))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("BARLOWTWINS", "PYTHONPATH"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", path, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=home,
        env=environment | {"TORCH_HOME": str(home)},
        stdin=subprocess.DEVNULL,  # a question on standard input would end the script
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"stdout": done.stdout, "stderr": done.stderr}


# As a repository on GitHub --------------------------------------------------------------------------------------------

FROM_GITHUB = """
import json, sys
import torch, torchvision
from torch.utils.data import DataLoader
from functools import partial
from PIL import Image

class Photos(torch.utils.data.Dataset):
    def __init__(self, photos, transform):
        self.photos, self.transform = photos, transform

    def __len__(self):
        return len(self.photos)

    def __getitem__(self, i):
        return self.transform(self.photos[i])

def main():
    repo, other, saved_model = sys.argv[1:]
    found = {}
    found["list"] = torch.hub.list(repo, trust_repo=True)
    found["help"] = {name: torch.hub.help(repo, name, trust_repo=True) for name in found["list"]}
    load = partial(torch.hub.load, repo, trust_repo=True)

    model = load("resnet50")
    again = load("resnet50", num_classes=10)
    found["type"] = [type(model) is torchvision.models.ResNet, type(model.fc) is torch.nn.Identity]
    found["fc"] = [model.fc.in_features, model.fc.out_features, str(again.fc)]
    found["features"] = list(model(torch.zeros(2, 3, 64, 64)).shape)
    torch.save(model.state_dict(), saved_model + ".state")
    torch.save(model, saved_model)

    twins = load("barlow_twins", pretrained=True, progress=False)
    torch.save(twins.state_dict(), saved_model + ".twins")

    photos = [Image.effect_noise((80, 60 + i), 90).convert("RGB") for i in range(4)]
    transform = load("preprocess", image_size=32)
    images = torch.stack([transform(photo) for photo in photos])
    workers = DataLoader(Photos(photos, transform), batch_size=4, num_workers=1, multiprocessing_context="spawn")
    found["spawn"] = torch.equal(next(iter(workers)), images)
    embedder = load("embedder", device="cpu")
    features = embedder.encode(photos)
    images = torch.stack([embedder.preprocessing(photo) for photo in photos])
    with torch.no_grad():
        found["embedder"] = bool(torch.allclose(torch.from_numpy(features), model(images), rtol=1e-3, atol=1e-4))

    try:
        torch.hub.load(other, "resnet18", trust_repo=True)
    except ImportError as error:
        found["collision"] = str(error)
    found["heavy"] = sorted({"tyro", "safetensors", "sklearn", "matplotlib"} & set(sys.modules))
    print(json.dumps(found))

if __name__ == "__main__":
    main()
"""


def test_from_github(zoo: Zoo, tmp_path: Path) -> None:
    other = _copy_repo(zoo.home / "hub" / "OWNER_barlowtwins_v9.9.9")
    version = other / "barlowtwins" / "version.py"
    version.write_text(re.sub(r'"\d+\.\d+\.\d+"', '"9.9.9"', version.read_text()))
    found = _run(FROM_GITHUB, REPO, "OWNER/barlowtwins:v9.9.9", tmp_path / "model.pth", home=zoo.home)
    assert sorted(found["list"]) == ["barlow_twins", "embedder", "preprocess", "resnet18", "resnet50"]
    for name, text in found["help"].items():
        assert f'torch.hub.load("{REPO}", "{name}"' in text and "trust_repo=True" in text and "Args:" in text
    assert found["type"] == [True, True]
    assert found["fc"] == [2048, 2048, "Linear(in_features=2048, out_features=10, bias=True)"]
    assert found["features"] == [2, 2048]
    assert equal(torch.load(tmp_path / "model.pth.state"), torch.load(zoo.backbone))
    twins = {key.removeprefix("module."): tensor for key, tensor in torch.load(zoo.full)["model"].items()}
    assert equal(torch.load(tmp_path / "model.pth.twins"), twins)
    assert found["spawn"] is True
    assert found["embedder"] is True
    assert found["heavy"] == []
    for what in ("0.1.0", str(zoo.repo), "9.9.9", str(other)):
        assert what in found["collision"]
    assert [request.path for request in zoo.server.requests] == ["/resnet50.pth", "/resnet50-full.pth"]
    _load_where_the_package_is_absent(zoo, tmp_path / "model.pth")


def _load_where_the_package_is_absent(zoo: Zoo, model: Path) -> None:
    """And, since a process costs seconds, in the same one: what a missing dependency says."""
    found = _run(
        """
        import json, sys, torch
        sys.modules["barlowtwins"] = None  # importing it fails from here on
        model = torch.load(sys.argv[1], weights_only=False)
        found = {"features": list(model(torch.zeros(1, 3, 64, 64)).shape), "fc": model.fc.in_features}

        del sys.modules["barlowtwins"]
        for name in [name for name in sys.modules if name.split(".")[0] == "requests"] + ["requests", "PIL"]:
            sys.modules[name] = None
        try:
            torch.hub.load(sys.argv[2], "resnet18", source="local")
        except ImportError as error:
            found["missing"] = str(error)
        print(json.dumps(found))
        """,
        model,
        zoo.repo,
        home=zoo.home,
    )
    assert found["features"] == [1, 2048] and found["fc"] == 2048
    assert found["missing"].startswith("barlowtwins needs requests, PIL")
    assert found["missing"].endswith("pip install requests pillow")


# As a clone -----------------------------------------------------------------------------------------------------------


def test_from_a_clone(zoo: Zoo, tmp_path: Path) -> None:
    """From the clone's parent folder, where Python takes the folder of the clone for a package without code."""
    clone = _copy_repo(tmp_path / "barlowtwins")
    found = _run(
        """
        import json, os, sys, torch
        clone, weights = sys.argv[1:]
        os.chdir(os.path.dirname(clone))
        sys.path.insert(0, "")
        model = torch.hub.load(clone, "resnet50", source="local", weights=weights, progress=False)
        found = {"features": list(model(torch.zeros(1, 3, 64, 64)).shape), "training": model.training}
        torch.hub.load(clone, "resnet18", source="local")  # a second time in one process
        try:
            torch.hub.load(clone, "resnet50", source="local", weights="resnet5O")
        except Exception as error:
            found["unknown"] = f"{type(error).__name__}: {error}"
        print(json.dumps(found))
        """,
        clone,
        zoo.backbone,
        home=zoo.home,
    )
    assert found["features"] == [1, 2048] and found["training"] is False
    assert found["unknown"].startswith("WeightsError: no weights 'resnet5O'") and "resnet50-ljng" in found["unknown"]


# The entries themselves, in this process ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet18_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    path.write_bytes(saved(backbone_state("resnet18")))
    return path


def test_without_weights_the_backbone_is_random_and_never_a_classifier() -> None:
    for net in (resnet50(pretrained=False), resnet18()):
        assert type(net) is torchvision.models.ResNet
        assert type(net.fc) is nn.Identity
        assert net.training
    assert net.fc.in_features == net.fc.out_features == 512
    net.fc = nn.Linear(net.fc.in_features, 7)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_num_classes_is_a_fresh_classifier_as_the_linear_probe_starts(resnet18_file: Path) -> None:
    torch.manual_seed(0)
    net = resnet18(weights=resnet18_file, num_classes=1000)
    assert type(net.fc) is nn.Linear
    assert net.fc.weight.shape == (1000, 512)
    assert net.fc.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert net.fc.bias.eq(0).all()
    with pytest.raises(ConfigError, match="num_classes is 0"):
        resnet18(num_classes=0)


def test_weights_give_the_features_that_torchvision_gives(resnet18_file: Path) -> None:
    theirs = torchvision.models.resnet18()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(torch.load(resnet18_file))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ours = resnet18(weights=resnet18_file)
    assert not ours.training
    assert torch.equal(ours(images), theirs.eval()(images))


def test_torchvisions_options_are_passed_on(resnet18_file: Path) -> None:
    net = resnet18(zero_init_residual=False)
    assert net.layer1[0].bn2.weight.eq(1).all()
    assert resnet18(zero_init_residual=True).layer1[0].bn2.weight.eq(0).all()
    groups = resnet18(norm_layer=partial(nn.GroupNorm, 8))
    assert isinstance(groups.bn1, nn.GroupNorm)
    assert resnet18(stem="small", channels=1).conv1.weight.shape == (64, 1, 3, 3)
    dilated = resnet50(pretrained=False, replace_stride_with_dilation=[False, False, True])
    assert dilated.layer4[1].conv2.dilation == (2, 2)
    frozen = resnet18(weights=resnet18_file, norm_layer=FrozenBatchNorm2d)  # it has no counter of batches
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(frozen(images), resnet18(weights=resnet18_file)(images))
    with pytest.raises(WeightsError, match=r"does not fit this resnet18: .*unexpected \(bn1\.running_mean"):
        resnet18(weights=resnet18_file, norm_layer=partial(nn.GroupNorm, 8))


def test_weights_of_another_architecture_are_told_by_name_with_the_entry_for_them(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_weights(BarlowTwins(TINY, "8-8"), name=TINY, stem="imagenet", preprocessing=Preprocessing(8, None))
    with pytest.raises(WeightsError) as caught:
        resnet50(weights=tmp_path)
    said = str(caught.value)
    assert f"is a {TINY}, not a resnet50; load it with the entry embedder, or with " in said
    assert "missing" not in said


@pytest.mark.parametrize("option", ["foo", "groups", "weight", "progess", "pretained"])
def test_an_unknown_argument_is_named_with_those_there_are(option: str) -> None:
    with pytest.raises(TypeError, match=rf"resnet18\(\) has no argument '{option}'.* zero_init_residual"):
        resnet18(**{option: 1})


def test_what_is_not_there_yet_says_so(resnet18_file: Path) -> None:
    with pytest.raises(WeightsError, match="no published weights exist for resnet18; pass weights="):
        resnet18(pretrained=True)
    with pytest.raises(ConfigError, match="there is no runtime 'tpu'; use 'auto', 'torch', 'onnx' or 'compiled'"):
        embedder(resnet18_file, runtime="tpu")


def test_barlow_twins_takes_backbone_and_projector_from_the_weights(zoo: Zoo, resnet18_file: Path) -> None:
    state = {key.removeprefix("module."): tensor for key, tensor in torch.load(zoo.full)["model"].items()}
    model = barlow_twins(weights=zoo.full, lambd=0.02)
    assert equal(model.state_dict(), state)
    assert model.training
    assert model.loss.lambd == 0.02
    assert torch.isfinite(model(torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32)))
    with pytest.raises(WeightsError, match=r"does not fit BarlowTwins\('resnet50', '32-32-32'\): .* of another shape"):
        barlow_twins(weights=zoo.full, projector="32-32-32")
    with pytest.raises(WeightsError, match=r"resnet18\.pth contains no projector"):
        barlow_twins(weights=resnet18_file)
    assert barlow_twins("resnet18", "8-4").projector[0].weight.shape == (8, 512)


def test_preprocess_is_torchvisions_evaluation_transform() -> None:
    from PIL import Image
    from torchvision import transforms

    image = Image.effect_noise((301, 262), 80).convert("RGB")
    for size, resize in ((224, 256), (112, 128)):
        theirs = transforms.Compose(
            [
                transforms.Resize(resize),
                transforms.CenterCrop(size),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )
        assert torch.equal(preprocess(size)(image), theirs(image))
