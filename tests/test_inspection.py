"""A look at a network in training shows what is there, and leaves no trace in the training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from training import outcome, tiny, uninterrupted

from barlowtwins.data.open import open_source
from barlowtwins.metrics.representation import alignment, effective_rank, feature_deviation, uniformity
from barlowtwins.models.barlow_twins import BarlowTwins
from barlowtwins.pretraining import pretrain
from barlowtwins.runs.snapshots import Snapshot, list_snapshots, load_snapshot, save_snapshot
from barlowtwins.train.inspection import Inspector
from barlowtwins.views.transform import TwinTransform


@pytest.fixture(scope="module")
def network() -> BarlowTwins:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BarlowTwins("resnet10_x0_5", "32-32", stem="small").train()


def watch(folder: Path, transform: TwinTransform) -> Inspector:
    source, held_out = (open_source("shapes:64", split=split) for split in ("train", "test"))
    preprocessing = transform.recipe.preprocessing()
    return Inspector(source, held_out, transform, preprocessing, folder, device="cpu", workers=0)


def test_a_look_sees_what_is_there_and_leaves_everything_as_it_was(tmp_path: Path, network: BarlowTwins) -> None:
    transform = TwinTransform("small", size=16, seed=3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.random.get_rng_state()
    watching = watch(tmp_path, transform)
    seen = watching.look(network, step=8, epoch=2, unreadable={5}, give_up=lambda: False)

    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)

    # The same again, by hand: features of the images, correlations of the embeddings of their views in epoch 2.
    source, preprocessing = open_source("shapes:64"), watching.preprocessing
    rows = watching.rows.tolist()
    views = [transform(source.read(row), epoch=1, index=row) for row in rows]
    network.eval()
    with torch.no_grad():
        features = network.backbone(torch.stack([preprocessing(source.read(row)) for row in rows])).numpy()
        z1, z2 = (network.embed(torch.stack(list(ys))).numpy() for ys in zip(*views, strict=True))
    network.train()
    c = np.corrcoef(z1.T, z2.T)[:32, 32:]
    snapshot = load_snapshot(tmp_path / "step-00000008.npz")
    assert snapshot is not None
    np.testing.assert_allclose(snapshot.correlation, c, atol=2e-3)  # kept in half precision
    assert seen == {
        "effective_rank": pytest.approx(effective_rank(features), rel=1e-3),
        "rank_limit": len(rows),
        "feature_deviation": pytest.approx(feature_deviation(features), rel=1e-3),
        "alignment": pytest.approx(alignment(z1, z2), rel=1e-3),
        "uniformity": pytest.approx(uniformity(z1), rel=1e-3),
    }
    assert (snapshot.images, snapshot.width, snapshot.epoch) == (len(rows), 32, 2)
    shown = (views[0][0] * 0.5 + 0.5).mul(255).round().permute(1, 2, 0).numpy()
    np.testing.assert_allclose(snapshot.pairs[0, 0], shown, atol=1)
    assert snapshot.pair_keys[0] == source.key(rows[0])
    assert snapshot.unreadable == [source.key(5)]
    assert snapshot.held_out is True

    # And the nearest of the first query.
    test = open_source("shapes:64", split="test")
    network.eval()
    with torch.no_grad():
        query = network.backbone(preprocessing(test.read(0))[None]).numpy()[0]
    network.train()
    cosine = features @ query / np.linalg.norm(features, axis=1) / np.linalg.norm(query)
    assert snapshot.query_keys[0] == test.key(0)
    assert snapshot.neighbour_keys[0] == [source.key(rows[place]) for place in np.argsort(-cosine)[:5]]
    np.testing.assert_allclose(snapshot.similarity[0], np.sort(cosine)[::-1][:5], atol=1e-3)


def test_a_look_ends_when_it_is_to_give_up(tmp_path: Path, network: BarlowTwins) -> None:
    watching = watch(tmp_path, TwinTransform("small", size=16, seed=3))

    assert watching.look(network, step=8, epoch=2, unreadable=set(), give_up=lambda: True) is None
    assert list_snapshots(tmp_path) == []


def test_a_run_that_is_watched_is_the_same_run(tmp_path: Path) -> None:
    pretrain(tiny(tmp_path, report_every=1))
    watched, plain = outcome(tmp_path), uninterrupted()

    looks = [record for record in watched["log"] if "effective_rank" in record]
    assert [record["step"] for record in looks] == [0, 4, 8, 12]
    watched["log"] = [record for record in watched["log"] if "effective_rank" not in record]
    assert watched == plain


def test_a_stopped_run_looks_as_one_that_was_not_stopped(tmp_path: Path) -> None:
    for stop in (4, 6, None):  # at the end of an epoch and within one
        pretrain(tiny(tmp_path, report_every=1, max_steps=stop))

    assert outcome(tmp_path) == uninterrupted(report_every=1)
    assert [path.name for path in list_snapshots(tmp_path / "snapshots")] == ["step-00000000.npz", "step-00000012.npz"]


def test_a_snapshot_keeps_any_text_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    names = ["<script>", 'a"b', "x" * 300, "caf\udce9"]
    pixels = np.zeros((4, 2, 8, 8, 3), np.uint8)
    made = Snapshot(
        **{field.name: 0 for field in dataclasses.fields(Snapshot)}  # type: ignore[arg-type]
        | {
            "correlation": np.eye(3, dtype=np.float16),
            "singular_values": np.ones(3, np.float32),
            "similarity": np.ones((4, 2), np.float32),
            "pairs": pixels,
            "queries": pixels[:, 0],
            "neighbours": pixels,
            "unreadable": [],
            "held_out": False,
        }
        | dict.fromkeys(("pair_keys", "query_keys", "query_labels"), names)
        | {field: [[name, ""] for name in names] for field in ("neighbour_keys", "neighbour_labels")}
    )
    path = save_snapshot(tmp_path, made)
    read = load_snapshot(path)

    spelt = [*names[:3], "caf\\udce9"]
    assert read is not None
    assert read.query_keys == spelt
    assert read.neighbour_labels == [[name, ""] for name in spelt]
    assert read.unreadable == []
    np.testing.assert_array_equal(read.correlation, np.eye(3))
    path.write_bytes(path.read_bytes()[:200])
    assert load_snapshot(path) is None
