"""The linear classifier against scikit-learn, against the gradient by autograd, and against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from barlowtwins.core.errors import ConfigError
from barlowtwins.metrics.logistic import L2_GRID, fit_logistic, fit_path, sweep

CLASSES, WIDTH = 5, 12


def clusters(rows: int, seed: int = 0, spread: float = 1.5) -> tuple[Tensor, Tensor]:
    """Overlapping clusters with features of very different scales and offsets, one of them constant."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, WIDTH))
    labels = rng.integers(0, CLASSES, rows)
    x = centres[labels] + spread * rng.normal(size=(rows, WIDTH))
    x = x @ np.random.default_rng(98).normal(size=(WIDTH, WIDTH))  # correlated
    x = x * np.logspace(-2, 3, WIDTH) + 100 * rng.random()
    x[:, 3] = 0.1
    return torch.tensor(x, dtype=torch.float32), torch.tensor(labels)


def standardized(x: Tensor) -> Tensor:
    std, mean = torch.std_mean(x.double(), dim=0, correction=0)
    std[3] = 1  # the constant one
    return (x.double() - mean) / std


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_agrees_with_scikit_learn(l2: float) -> None:
    x, labels = clusters(600)
    queries, _ = clusters(200, seed=1)
    fit = fit_logistic(x, labels, num_classes=CLASSES, l2=l2, tolerance=1e-8)
    scaler = StandardScaler().fit(x.double().numpy())
    peer = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-9, max_iter=20_000)
    peer.fit(scaler.transform(x.double().numpy()), labels.numpy())
    theirs = peer.predict_proba(scaler.transform(queries.double().numpy()))
    np.testing.assert_allclose(fit.logits(queries).softmax(1).numpy(), theirs, atol=1e-5)
    np.testing.assert_allclose(fit.weight.numpy() * scaler.scale_, peer.coef_, atol=1e-4 * np.abs(peer.coef_).max())


@pytest.mark.parametrize("l2", [1.0, 1e-3, 1e-6])
def test_the_gradient_by_autograd_is_zero_and_every_step_away_costs(l2: float) -> None:
    x, labels = clusters(300)
    x = standardized(x)
    fit = fit_logistic(x, labels, num_classes=CLASSES, l2=l2, tolerance=1e-8)
    assert fit.converged

    def loss(weight: Tensor, bias: Tensor) -> Tensor:
        return nn.functional.cross_entropy(x @ weight.T + bias, labels) + l2 / 2 * weight.square().sum()

    weight, bias = fit.weight.clone().requires_grad_(), fit.bias.clone().requires_grad_()
    found = loss(weight, bias)
    assert found.item() == pytest.approx(fit.loss, rel=1e-9)
    found.backward()
    assert weight.grad.abs().max() < 1e-7 and bias.grad.abs().max() < 1e-7
    rng = torch.Generator().manual_seed(0)
    for _ in range(5):
        assert loss(fit.weight + 1e-3 * torch.randn(weight.shape, generator=rng, dtype=torch.float64), bias) > fit.loss


def test_the_tolerance_bounds_the_loss() -> None:
    x, labels = clusters(400)
    best = fit_logistic(x, labels, num_classes=CLASSES, l2=1e-3, tolerance=1e-9)
    for tolerance in (1e-2, 1e-3, 1e-4):
        fit = fit_logistic(x, labels, num_classes=CLASSES, l2=1e-3, tolerance=tolerance)
        assert 0 <= fit.loss - best.loss < CLASSES * WIDTH * tolerance**2 / 2 * 10
        assert fit.converged and fit.steps <= best.steps


def test_units_of_the_features_do_not_matter() -> None:
    x, labels = clusters(300)
    scale, shift = torch.logspace(-3, 3, WIDTH), torch.linspace(-5, 5, WIDTH)
    fit = fit_logistic(x, labels, num_classes=CLASSES, l2=1e-2, tolerance=1e-8)
    other = fit_logistic(x.double() * scale + shift, labels, num_classes=CLASSES, l2=1e-2, tolerance=1e-8)
    torch.testing.assert_close(fit.logits(x), other.logits(x.double() * scale + shift), rtol=1e-4, atol=1e-4)


def test_without_features_the_answer_is_the_classes_frequencies() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    fit = fit_logistic(torch.ones(10, 2), labels, num_classes=3, l2=0.0, tolerance=1e-9)
    torch.testing.assert_close(fit.logits(torch.ones(1, 2)).softmax(1)[0], torch.tensor([0.6, 0.3, 0.1]).double())
    assert fit.weight.abs().max() == 0


def test_more_features_than_rows_and_separable_rows_converge() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(20, 50, generator=rng)
    labels = torch.arange(20) % 4
    fit = fit_logistic(x, labels, num_classes=4, l2=1e-4)
    assert fit.converged
    assert (fit.logits(x).argmax(1) == labels).all()


def test_a_path_ends_where_single_fits_end() -> None:
    x, labels = clusters(300)
    for fit in fit_path(x, labels, num_classes=CLASSES, penalties=(1e-3, 1.0, 1e-1), tolerance=1e-8):
        alone = fit_logistic(x, labels, num_classes=CLASSES, l2=fit.l2, tolerance=1e-8)
        torch.testing.assert_close(fit.logits(x), alone.logits(x), rtol=1e-5, atol=1e-5)


def test_the_sweep_judges_by_rows_that_it_did_not_train_on() -> None:
    x, labels = clusters(200, spread=4)
    aside = torch.arange(200) % 4 == 0
    trials = list(sweep(x, labels, aside, num_classes=CLASSES, penalties=L2_GRID))
    assert [trial.l2 for trial in trials] == list(L2_GRID[: len(trials)])
    for trial in trials[::3]:
        fit = fit_logistic(x[~aside], labels[~aside], num_classes=CLASSES, l2=trial.l2, tolerance=1e-8)
        logits = fit.logits(x[aside])
        assert trial.top1 == pytest.approx(100 * (logits.argmax(1) == labels[aside]).double().mean().item(), abs=2.1)
        assert trial.loss == pytest.approx(nn.functional.cross_entropy(logits, labels[aside]).item(), rel=0.02)

    scrambled = x.clone()
    scrambled[aside] = scrambled[aside].flip(0)  # what is set aside changes the verdicts, and nothing else
    assert list(sweep(scrambled, labels, aside, num_classes=CLASSES)) != trials
    torch.testing.assert_close(
        fit_logistic(scrambled[~aside], labels[~aside], num_classes=CLASSES, l2=0.1).weight,
        fit_logistic(x[~aside], labels[~aside], num_classes=CLASSES, l2=0.1).weight,
    )


def test_the_sweep_leaves_out_penalties_that_are_hopelessly_weak() -> None:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(400, 60, generator=rng)  # noise but for one feature: the weaker the penalty, the worse
    labels = (x[:, 0] > 0).long()
    x[:, 0] += torch.randn(400, generator=rng)
    trials = list(sweep(x, labels, torch.arange(400) % 2 == 0, num_classes=2))
    assert len(trials) < len(L2_GRID)
    best = max(trials, key=lambda trial: trial.top1)
    assert all(trial.top1 < best.top1 for trial in trials[-3:])


def test_a_negative_penalty_is_refused() -> None:
    with pytest.raises(ConfigError, match="-1"):
        fit_logistic(*clusters(10), num_classes=CLASSES, l2=-1.0)
