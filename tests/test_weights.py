"""From what a user calls a weight to a network: every way to name one, the registry, and the weights commands."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from servers import Server, file
from weight_files import TINY, backbone_state, equal, record, saved, sha256, twins_state, write_registry

from barlowtwins.config import WeightsGetConfig, WeightsListConfig, WeightsShowConfig, WeightsVerifyConfig
from barlowtwins.core.errors import WeightsError
from barlowtwins.data.preprocess import Preprocessing
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.runs.run_folder import RunFolder
from barlowtwins.zoo.commands import weights_get, weights_list, weights_show, weights_verify
from barlowtwins.zoo.registry import registry, registry_folder
from barlowtwins.zoo.weights import load_backbone, load_weights

STATE = backbone_state()
DATA = saved(STATE)
SHA256 = sha256(DATA)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    for name in ("BARLOWTWINS_REGISTRY", "BARLOWTWINS_WEIGHTS_DIR", "BARLOWTWINS_MIRROR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tiny(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A registry with two weights, of which one has a published digest; the name of that one."""
    published = record(
        "tiny",
        server.answer("/resnet50.pth", file(DATA)),
        sha256=SHA256[:10],
        epochs=5,
        metrics=[{"name": "ImageNet linear probe, top-1", "value": 12.5, "unit": "%", "source": "nobody"}],
    )
    other = record("tiny-other", server.answer("/other.pth", file(saved(twins_state()))))
    monkeypatch.setenv(
        "BARLOWTWINS_REGISTRY", str(write_registry(tmp_path / "zoo" / "registry.json", published, other))
    )
    (tmp_path / "zoo" / "tiny.md").write_text("# tiny\n\nRandom numbers.\n")
    return "tiny"


# Sources --------------------------------------------------------------------------------------------------------------


def test_by_name(server: Server, tmp_path: Path, tiny: str) -> None:
    for _ in range(2):
        loaded = load_weights(tiny, progress=False)
        assert equal(loaded.backbone, STATE)
        assert (loaded.name, loaded.sha256, loaded.digest, loaded.epoch) == ("tiny", SHA256, "verified", 5)
        assert loaded.path == tmp_path / "home/hub/checkpoints" / f"barlowtwins-tiny-{SHA256[:10]}.pth"
        assert loaded.preprocessing == Preprocessing(image_size=32, resize=None)
    assert len(server.requests) == 1


def test_by_path_and_by_path_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my weights.pth").write_bytes(DATA)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for source in (tmp_path / "my weights.pth", str(tmp_path / "my weights.pth"), "~/my weights.pth"):
        loaded = load_weights(source)
        assert (loaded.name, loaded.sha256, loaded.digest) == ("my weights.pth", SHA256, "unknown")


def test_a_name_on_record_wins_over_a_file_unless_written_as_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: str
) -> None:
    monkeypatch.chdir(tmp_path)
    other = backbone_state(seed=1)
    Path("tiny").write_bytes(saved(other))
    assert equal(load_weights("tiny", progress=False).backbone, STATE)
    assert equal(load_weights("./tiny", progress=False).backbone, other)
    assert equal(load_weights(Path("tiny"), progress=False).backbone, other)


def test_by_url_with_and_without_digest(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    url = server.answer("/some%20folder/my%20weights.PTH?v=1", file(DATA))
    assert load_weights(f"{url}#sha256={SHA256}", progress=False).digest == "verified"
    assert caplog.messages == []
    loaded = load_weights(url, progress=False)
    assert loaded.digest == "recorded, not verified"
    assert loaded.path.name.startswith("barlowtwins-my-weights-url-") and loaded.path.suffix == ".pth"
    assert len(server.requests) == 1
    for fragment in ("#md5=1234", "#sha256=xyz", "#sha256=12"):
        with pytest.raises(WeightsError, match="after # only sha256="):
            load_weights(url + fragment, progress=False)


def test_by_run_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BarlowTwins(TINY, "16-16-8", stem="small", channels=1)
    preprocessing = Preprocessing(image_size=28, resize=None, channels=1, mean=(0.3,), std=(0.3,))
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.write_weights(model, name=TINY, stem="small", preprocessing=preprocessing)
    light, full = load_weights(run.path), load_weights(str(run.path), full=True)
    assert (light.name, light.projector, light.path.name) == ("run", None, "backbone.safetensors")
    assert (full.projector_widths, full.path.name) == ("16-16-8", "model.safetensors")
    for loaded in (light, full):
        assert equal(loaded.backbone, model.backbone.state_dict())
        assert (loaded.backbone_name, loaded.stem, loaded.channels) == (TINY, "small", 1)
        assert loaded.preprocessing == preprocessing
    run.backbone.unlink()
    assert load_weights(run.path).path.name == "model.safetensors"
    run.model.unlink()
    (run.path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"no finished RUN folder: .* but config\.json"):
        load_weights(run.path)


@pytest.mark.parametrize("source", ["resnet5O", "no/such/file.pth", "tiny "])
def test_what_is_nothing_is_told_with_what_there_is(source: str, tiny: str) -> None:
    with pytest.raises(WeightsError, match="tiny"):
        load_weights(source)


@pytest.mark.parametrize(
    "url", ["http://example.org/w.pth", "ftp://example.org/w.pth", "file:///etc/passwd", "s3://a/b"]
)
def test_urls_of_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(WeightsError, match="https only"):
        load_weights(url)


def test_a_shared_folder_is_looked_into_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: str
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / f"barlowtwins-tiny-{SHA256[:10]}.pth").write_bytes(DATA)
    monkeypatch.setenv("BARLOWTWINS_WEIGHTS_DIR", str(shared))
    assert load_weights(tiny, progress=False).path.parent == shared
    assert load_weights("tiny-other", progress=False).path.parent == tmp_path / "home/hub/checkpoints"
    assert [request.path for request in server.requests] == ["/other.pth"]


def test_a_mirror_serves_the_names_of_the_cache(server: Server, monkeypatch: pytest.MonkeyPatch, tiny: str) -> None:
    server.answer(f"/mirror/barlowtwins-tiny-{SHA256[:10]}.pth", file(DATA))
    monkeypatch.setenv("BARLOWTWINS_MIRROR", server.url("/mirror/"))
    assert load_weights(tiny, progress=False).digest == "verified"
    assert [request.path for request in server.requests] == [f"/mirror/barlowtwins-tiny-{SHA256[:10]}.pth"]


def test_weights_that_come_with_the_registry_need_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_registry(tmp_path / "registry.json", record("bundled", file="bundled.pth", sha256=SHA256))
    monkeypatch.setenv("BARLOWTWINS_REGISTRY", str(path))
    with pytest.raises(WeightsError, match=r"bundled\.pth is not there"):
        load_weights("bundled")
    (tmp_path / "bundled.pth").write_bytes(DATA)
    assert load_weights("bundled").digest == "verified"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bundled.pth", "registry.json"]


def test_load_backbone_gives_features_in_evaluation_mode(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(DATA)
    net = load_backbone(tmp_path / "w.pth")
    assert not net.training
    assert equal(net.state_dict(), STATE)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, net.fc.in_features)


# Registry -------------------------------------------------------------------------------------------------------------


def test_our_registry_is_whole() -> None:
    records = registry()
    published = {name: entry for name, entry in records.items() if entry.url}
    assert list(published) == [
        *("resnet50", "resnet50-ljng", "resnet50-full", "resnet50-vissl-300ep", "resnet50-vissl-1000ep"),
        *("resnet50-mmpretrain-300ep", "resnet50-mmpretrain-linear", "resnet50-lightly-100ep"),
    ]
    for name, entry in records.items():
        assert entry.card.startswith(f"# {name}\n") and entry.licence in entry.card
        assert "2103.03230" in entry.citation
        if entry.file:  # comes with the package, so its digest is known whole
            path = registry_folder() / entry.file
            assert entry.sha256 == sha256(path.read_bytes()) and path.stat().st_size <= 12e6
    for entry in published.values():
        assert entry.url is not None and entry.url.startswith("https://") and entry.url in entry.card
        assert Preprocessing.from_dict(entry.preprocessing) == Preprocessing()
        assert (entry.backbone, entry.stem, entry.channels) == ("resnet50", "imagenet", 3)
        assert (entry.sha256 is None) == (entry.sha256_source is None)
        assert entry.sha256 is None or (entry.sha256 in entry.card and entry.sha256 in entry.file_name)
        assert all(metric.source for metric in entry.metrics)
    assert len({entry.file_name for entry in records.values()}) == len(records)
    assert {path.stem for path in registry_folder().glob("*.md")} == set(records)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not sound"),
        ("[]", "is not sound"),
        ('{"weights": [3]}', "is not sound"),
        (json.dumps({"weights": [record("a", "https://x.y/z"), record("a", "https://x.y/z")]}), "two records named a"),
        (json.dumps({"weights": [record("a", "https://x.y/z", colour="red")]}), "'a' has a field 'colour'"),
        (json.dumps({"weights": [record("a")]}), "needs a url or a file"),
        (json.dumps({"weights": [record("a", "https://x.y/z", file="z")]}), "needs a url or a file"),
        (json.dumps({"weights": [record("a", "https://x.y/z", sha256="12")]}), "8-64 hex digits"),
        (json.dumps({"weights": [record("a", "https://x.y/z", metrics=[{"name": "x"}])]}), "is not sound"),
    ],
)
def test_a_registry_that_breaks_the_rules_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, complaint: str
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    monkeypatch.setenv("BARLOWTWINS_REGISTRY", str(path))
    with pytest.raises(WeightsError, match=rf"mine\.json .*{complaint}"):
        registry()


def test_a_registry_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BARLOWTWINS_REGISTRY", str(tmp_path / "mine.json"))
    with pytest.raises(WeightsError, match=r"cannot read the registry .*mine\.json"):
        registry()


# Commands -------------------------------------------------------------------------------------------------------------


def test_list_says_what_is_here(tiny: str) -> None:
    assert [row.here for row in weights_list(WeightsListConfig()).weights] == [False, False]
    load_weights(tiny, progress=False)
    first, second = weights_list().weights
    assert (first.name, first.backbone, first.epochs, first.top1, first.digest) == ("tiny", TINY, 5, 12.5, "prefix")
    assert (first.here, second.here, second.digest) == (True, False, "none")
    assert (first.format, first.licence, first.size) == ("torchvision", "MIT", "?")


def test_show_prints_the_card_and_where_the_file_is(tiny: str) -> None:
    assert "weights get tiny" in weights_show(WeightsShowConfig("tiny")).summary()
    path = load_weights(tiny, progress=False).path
    shown = weights_show(WeightsShowConfig("tiny"))
    assert shown.record == registry()["tiny"]
    assert shown.summary() == f"# tiny\n\nRandom numbers.\n\non this disk: {path}"
    with pytest.raises(WeightsError, match="no weights 'tine' on record; there are tiny"):
        weights_show(WeightsShowConfig("tine"))


def test_get_fetches_and_says_how_far_it_is_to_be_trusted(
    server: Server, tiny: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = weights_get(WeightsGetConfig("tiny"))
    assert (found.sha256, found.digest, found.size) == (SHA256, "verified", len(DATA))
    assert found.path.read_bytes() == DATA
    caplog.set_level(logging.WARNING)
    assert weights_get(WeightsGetConfig("tiny-other")).digest == "recorded, not verified"
    assert "recorded, not verified" in caplog.text


def test_verify_reports_what_a_file_is(tiny: str) -> None:
    report = weights_verify(WeightsVerifyConfig("tiny-other"))
    assert (report.format, report.backbone, report.stem, report.channels) == ("barlowtwins", TINY, "imagenet", 3)
    assert (report.projector, report.not_finite, report.exit_code) == ("32-32-16", (), 0)
    model = BarlowTwins(TINY, "32-32-16")
    assert report.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "width"), [("resnet10-fashion-mnist", 256), ("resnet8-fashion-mnist", 2048)])
def test_a_bundled_weight_needs_no_connection_and_is_what_its_card_says(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BARLOWTWINS_REGISTRY", raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody is there
    weights = load_weights(name)
    assert weights.digest == "verified"
    noted = registry()[name]
    assert noted.size == weights.path.stat().st_size <= 12_000_000
    assert noted.sha256 is not None and noted.sha256 in noted.card
    assert f"{noted.size:,} bytes" in noted.card
    for metric in noted.metrics:
        assert f"{metric.value:.2f} %" in noted.card
    backbone = weights.build().eval()
    with torch.inference_mode():
        assert backbone(torch.randn(2, 1, 28, 28)).shape == (2, width)
