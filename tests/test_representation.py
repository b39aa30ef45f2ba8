"""Effective rank and feature deviation against their definitions, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from barlowtwins.metrics.representation import (
    alignment,
    effective_rank,
    feature_deviation,
    judge,
    judge_loss,
    singular_values,
    uniformity,
)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_effective_rank_is_the_exponential_of_the_entropy_of_the_singular_values(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=shape) @ np.diag(np.linspace(0.1, 3, shape[1]))
    s = np.linalg.svd(x, compute_uv=False)
    p = s / s.sum()

    np.testing.assert_allclose(singular_values(x), s, rtol=1e-6)
    assert effective_rank(x) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)


def test_effective_rank_counts_directions() -> None:
    assert effective_rank(np.eye(9)) == pytest.approx(9, rel=1e-4)  # all alike
    assert effective_rank(np.outer(np.arange(1, 8), np.ones(5))) == pytest.approx(1, abs=1e-3)  # one
    assert effective_rank(np.zeros((4, 3))) == 1  # none


def test_feature_deviation_is_1_where_rows_point_everywhere_and_0_where_they_point_one_way() -> None:
    x = np.random.default_rng(0).normal(size=(5000, 64))

    assert feature_deviation(x) == pytest.approx(1, abs=0.01)
    assert feature_deviation(x[:1].repeat(10, 0) * np.arange(1, 11)[:, None]) == pytest.approx(0, abs=1e-7)
    assert feature_deviation(x + 3) < 0.5  # a common part


def record(rank: float, deviation: float = 0.8, **step: int) -> dict[str, float]:
    return {"effective_rank": rank, "rank_limit": 500, "feature_deviation": deviation, **step}


@pytest.mark.parametrize(
    ("seen", "level", "words"),
    [
        ([], "none", "Not measured"),
        ([record(90), record(120)], "good", "No collapse"),
        ([record(90), record(80, deviation=0.01)], "bad", "Collapsed"),
        ([record(90), record(2.5)], "bad", "Dimensional collapse"),
        ([record(120), record(50)], "watch", "Shrinking: the effective rank was 120.0"),
        ([record(90, step=0), record(120, step=100)], "good", "No collapse"),
        ([record(90, step=0), record(120, step=99)], "none", "Too early to say, after 99 steps; no sign"),
        ([record(90, step=0), record(120, step=1)], "none", "Too early to say, after 1 step; no sign"),
        ([record(2.5, deviation=0.01, step=0)], "none", "Too early to say: nothing is trained yet"),
        ([record(90, step=0), record(80, deviation=0.01, step=20)], "bad", "Collapsed"),
    ],
)
def test_a_collapse_is_said_in_words(seen: list[dict[str, float]], level: str, words: str) -> None:
    verdict = judge([{"loss": 3.0}, *seen, {"loss": 2.0}])

    assert verdict.level == level
    assert verdict.words.startswith(words)


def test_a_collapsed_network_is_seen_as_such() -> None:
    rng = np.random.default_rng(0)
    same = np.ones((64, 32)) + 1e-3 * rng.normal(size=(64, 32))
    few = rng.normal(size=(64, 2)) @ rng.normal(size=(2, 32))
    for features, words in ((same, "Collapsed"), (few, "Dimensional"), (rng.normal(size=(64, 32)), "No collapse")):
        seen = record(effective_rank(features), feature_deviation(features)) | {"rank_limit": 32}
        assert judge([seen]).words.startswith(words)


def test_alignment_and_uniformity_are_those_of_the_definition() -> None:
    x, y = torch.randn(2, 40, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = torch.nn.functional.normalize(x), torch.nn.functional.normalize(y)
    assert alignment(x, y) == pytest.approx((a - b).norm(dim=1).square().mean().item())
    assert uniformity(x) == pytest.approx(torch.pdist(a).square().mul(-2).exp().mean().log().item())
    assert uniformity(x, t=3) == pytest.approx(torch.pdist(a).square().mul(-3).exp().mean().log().item())


def test_alignment_and_uniformity_at_their_ends() -> None:
    x = np.random.default_rng(0).normal(size=(300, 400))
    assert alignment(x, 3 * x) == pytest.approx(0, abs=1e-12)
    assert alignment(x, -x) == pytest.approx(4)
    assert alignment(x, x[::-1]) == pytest.approx(2, abs=0.1)
    assert uniformity(np.ones((5, 3))) == pytest.approx(0, abs=1e-12)
    assert uniformity(x) == pytest.approx(-4, abs=0.05)
    assert np.isfinite(uniformity(np.zeros((4, 3))))


@pytest.mark.parametrize(
    ("losses", "level"),
    [
        ([100.0] * 9, "none"),  # too few
        (list(np.linspace(1000, 100, 40)), "good"),
        ([100.0, 1000.0] * 10, "good"),  # jumps, but no trend
        ([100.0] * 20 + [149.0] * 5, "good"),
        ([100.0] * 20 + [151.0] * 5, "bad"),
        ([100.0] * 20 + [900.0] * 5 + [100.0] * 5, "good"),  # it came back
    ],
)
def test_a_loss_that_stays_far_above_its_best_diverges(losses: list[float], level: str) -> None:
    verdict = judge_loss([{"loss": loss} for loss in losses] + [{"knn": 50.0}])
    assert verdict.level == level
    assert ("lower --lr" in verdict.advice) == (level == "bad")


def test_a_bad_verdict_says_what_to_try_first() -> None:
    for seen in ([record(80, deviation=0.01)], [record(2.5)], [record(120), record(50)]):
        assert "--lr" in judge(seen).advice
    assert judge([record(120)]).advice == ""
